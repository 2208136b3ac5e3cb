"""The row of the keeper: when it last verified, backed up and vacuumed, for whichever process keeps next."""

from __future__ import annotations

from functools import cache

from sqlalchemy import ClauseElement, bindparam, select, update
from sqlalchemy.dialects.postgresql import insert

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.models.control import KeeperState

__all__ = ["DUTIES", "ONLY", "add_row", "done", "note"]

ONLY = 1
"""The id of the row."""

DUTIES = {"verify": "verified_at", "backup": "backed_up_at", "vacuum": "vacuumed_at"}
"""What the keeper does from time to time, each with the column that says when it was last done."""

_DONE = select(*(table_of(KeeperState).c[column] for column in DUTIES.values())).where(KeeperState.id == ONLY)
_ADD = insert(KeeperState).values(id=ONLY).on_conflict_do_nothing()


def add_row(uow: Transaction) -> None:
    """Make the row, if there is none."""
    uow._execute(_ADD)


def done(uow: Transaction) -> dict[str, int]:
    """When each duty was last done, in ms since 1970 UTC; those that never were are left out."""
    rows = uow._rows(_DONE)
    return {duty: at for duty, at in zip(DUTIES, rows[0], strict=True) if at is not None} if rows else {}


def note(uow: Transaction, duty: str) -> None:
    """Note that a duty is done now."""
    uow._execute(_noted(duty), {"at": milliseconds(uow)})


@cache
def _noted(duty: str) -> ClauseElement:
    return update(KeeperState).where(KeeperState.id == ONLY).values({DUTIES[duty]: bindparam("at")})
