"""The suites, each a module with its groups of cases."""

from __future__ import annotations

import importlib

from benchmarks.harness import Group

__all__ = ["NAMES", "groups_of"]

NAMES = (
    "writes",
    "moves",
    "batches",
    "reads",
    "backfill",
    "verify",
    "concurrency",
    "coroutines",
    "flips",
    "pool",
    "vacuum",
    "growth",
    "imports",
    "outbox",
    "telemetry",
    "ratios",
    "postgresql",
    "workers",
)
"""In the order in which they run."""


def groups_of(suite: str) -> tuple[Group, ...]:
    """The groups of a suite."""
    groups: tuple[Group, ...] = importlib.import_module(f"benchmarks.suites.{suite}").GROUPS
    return groups
