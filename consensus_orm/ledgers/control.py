"""The control row: what an operator tells a migration that runs in another process, read between its chunks."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ClauseElement, bindparam, select
from sqlalchemy.dialects.postgresql import insert

from consensus_orm.databases.base import Transaction
from consensus_orm.ledgers import audit
from consensus_orm.models.control import ControlRow
from consensus_orm.times import when

__all__ = ["FREE", "HOLD", "Control", "held", "put", "read"]

HOLD = "consensus-orm hold --release"
"""The command that lets phases change again."""

ONLY = 1
"""The id of the row."""


class Control(BaseModel):
    """What an operator has told a migration.

    Attributes:
        paused_at: Since when long steps wait, UTC; None while they go on.
        throttle: How many rows a second a long step works through at most; None without a limit.
        held_at: Since when no phase may change, UTC; None while phases may.
        by: Who said the last of this.
        reason: Why.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    paused_at: datetime | None = None
    throttle: int | None = None
    held_at: datetime | None = None
    by: str | None = None
    reason: str | None = None


FREE = Control()
"""Nothing was said."""

_READ = select(ControlRow.paused_at, ControlRow.throttle, ControlRow.held_at, ControlRow.by, ControlRow.reason).where(
    ControlRow.id == ONLY
)


def read(uow: Transaction) -> Control:
    """What was told; in a transaction of a database whose schema is current."""
    rows = uow._rows(_READ)
    if not rows:
        return FREE
    paused, throttle, held_, by, reason = rows[0]
    return Control(paused_at=_when(paused), throttle=throttle, held_at=_when(held_), by=by, reason=reason)


def _when(stored: int | None) -> datetime | None:
    return None if stored is None else when(stored)


@cache
def _put(name: str) -> ClauseElement:
    names = (name, "by", "reason")
    made = insert(ControlRow).values(id=ONLY, **{each: bindparam(each) for each in names})
    return made.on_conflict_do_update(index_elements=["id"], set_={each: made.excluded[each] for each in names})


def put(uow: Transaction, action: str, name: str, value: int | None, reason: str | None) -> Control:
    """Change one column of the row, and add an entry to the audit.

    Args:
        uow: A writing unit of work.
        action: What is done, for the audit.
        name: The column.
        value: Its value; for a time that begins now, that of `milliseconds`.
        reason: Why.

    Returns:
        What is told now.
    """
    uow._execute(_put(name), {name: value, "by": audit.whoami(), "reason": reason})
    told: dict[str, Any] = {"rows_per_second": value} if name == "throttle" else {}
    audit.add(uow, action, reason=reason, **told)
    return read(uow)


def held(uow: Transaction) -> str | None:
    """Why no phase may change; None while phases may."""
    found = read(uow)
    if found.held_at is None:
        return None
    why = f": {found.reason}" if found.reason else ""
    return f"changes of phase are on hold{why}"
