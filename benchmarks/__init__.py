"""Benchmarks: a ladder of costs from the raw driver to the full thing, beside what others offer.

`python -m benchmarks [SUITE] [--rows N] [--rounds N] [--json FILE] [--plot FILE] [--check FILE]`
"""
