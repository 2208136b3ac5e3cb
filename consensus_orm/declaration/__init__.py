"""The declaration: what in one schema corresponds to what in the other, and the rules for values and keys."""
