"""The unit of work: one session, one transaction, one phase."""
