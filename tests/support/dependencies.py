"""What others have made upon the legacy tables, where a test is of something else."""

from __future__ import annotations

from typing import Any

from consensus_orm import Store

__all__ = ["accept_dependencies"]


def accept_dependencies(store: Store | Any) -> None:
    """Let it keep no gate shut."""
    names = [f"{each.kind} {each.name}" for each in store.migration.dependencies()]
    store.migration.accept_dependencies(names, reason="a test")
