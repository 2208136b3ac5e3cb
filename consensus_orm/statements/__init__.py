"""The statements on the data, printed once from the declaration."""
