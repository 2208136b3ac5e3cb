"""The state of the migration: the one row with the phase of a database and the step that is under way."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import ClauseElement, Update, bindparam, select, update

from consensus_orm.databases.base import Transaction
from consensus_orm.models.control import MigrationState
from consensus_orm.phase import Side

__all__ = ["EMPTYING", "EXPANDING", "TABLE", "get", "moved", "put", "put_step", "rebuilding", "step", "turn_epoch"]

TABLE = MigrationState.__tablename__
"""The table of the state."""

EMPTYING = "empty"
"""The step in which the legacy tables that CONTRACT has put away are emptied."""

EXPANDING = "rebuild"
"""The step in which the legacy tables are made again, on the way back from CONTRACT."""

_REBUILDING = "rebuild "
"""The step in which a side is made again from the other one; the name of the side follows."""


def get(uow: Transaction, *names: str) -> tuple[Any, ...] | None:
    """Read columns of the state.

    Args:
        uow: Any transaction.
        *names: The columns.

    Returns:
        Their values; None in a database without state, which was not upgraded or is an unfinished copy.
    """
    rows = uow._rows(_read(names))
    return rows[0] if rows else None


def put(uow: Transaction, **values: object) -> None:
    """Change columns of the state.

    Args:
        uow: Holds the write lock.
        **values: The columns.
    """
    uow._execute(_written(tuple(values)), values)


def moved(uow: Transaction) -> str:
    """The legacy tables of the moves, as the state records them."""
    return "\n".join(sorted(uow.statements.moves.tables(Side.LEGACY)))


def step(uow: Transaction) -> str:
    """The long step that is under way, which the next call finishes or undoes; empty where there is none."""
    found = get(uow, "step")
    return str(found[0] or "") if found else ""


def put_step(uow: Transaction, step: str | Side | None) -> None:
    """Set the step that is under way: one of the constants, a side that is made again, or none."""
    put(uow, step=_REBUILDING + step if isinstance(step, Side) else step)


def rebuilding(uow: Transaction) -> Side | None:
    """The side that is being made again from the other one."""
    found = step(uow)
    return Side(found.removeprefix(_REBUILDING)) if found.startswith(_REBUILDING) else None


def turn_epoch(uow: Transaction, **values: object) -> None:
    """Begin a new epoch, which voids every certificate, and change columns of the state.

    Args:
        uow: Holds the lock of a flip.
        **values: The columns.
    """
    uow._execute(_turned(tuple(values)), values)


@cache
def _read(names: tuple[str, ...]) -> ClauseElement:
    return select(*(getattr(MigrationState, name) for name in names))


@cache
def _written(names: tuple[str, ...]) -> Update:
    return update(MigrationState).values({name: bindparam(name) for name in names})


@cache
def _turned(names: tuple[str, ...]) -> Update:
    return _written(names).values(epoch=MigrationState.epoch + 1)
