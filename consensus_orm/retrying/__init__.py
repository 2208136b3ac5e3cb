"""Retries of whole units of work: what may be retried, how often, and when to stop."""
