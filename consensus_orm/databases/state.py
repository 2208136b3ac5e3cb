"""The state of the migration: the one row with the phase of a database and the step that is under way."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import ClauseElement, Update, bindparam, select, update

from consensus_orm.databases.base import Transaction
from consensus_orm.models.control import MigrationState

__all__ = ["get", "put", "turn_epoch"]


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
