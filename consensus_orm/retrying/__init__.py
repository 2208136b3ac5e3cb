"""Retries of units of work, classification of errors, and the circuit breaker."""
