"""The long step that is under way, as the state of the migration names it: the next call finishes or undoes it."""

from __future__ import annotations

from consensus_orm.databases import state
from consensus_orm.databases.base import Transaction
from consensus_orm.phase import Side

__all__ = ["EMPTYING", "EXPANDING", "get", "put", "rebuilding"]

EMPTYING = "empty"
"""The legacy tables that CONTRACT has put away are emptied."""

EXPANDING = "rebuild"
"""The legacy tables are made again, on the way back from CONTRACT."""

_REBUILDING = "rebuild "
"""A side is made again from the other one; its name follows."""


def get(uow: Transaction) -> str:
    """The step that is under way; empty where there is none."""
    found = state.get(uow, "step")
    return str(found[0] or "") if found else ""


def put(uow: Transaction, step: str | Side | None) -> None:
    """Set the step that is under way: one of the constants, a side that is made again, or none."""
    state.put(uow, step=_REBUILDING + step if isinstance(step, Side) else step)


def rebuilding(uow: Transaction) -> Side | None:
    """The side that is being made again from the other one."""
    step = get(uow)
    return Side(step.removeprefix(_REBUILDING)) if step.startswith(_REBUILDING) else None
