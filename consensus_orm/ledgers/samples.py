"""Samples: how much was written or carried in each minute of the last day, by whom, and how long it took."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import bindparam, case, delete, select
from sqlalchemy.dialects.postgresql import insert

from consensus_orm._version import __version__
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.ledgers.audit import whoami
from consensus_orm.ledgers.binding import bound, milliseconds
from consensus_orm.models.control import Sample
from consensus_orm.times import when

__all__ = ["BACKFILL", "WRITE", "Entry", "add", "listed"]

WRITE = "write"
"""The kind of units of work that wrote; they are named by their phase."""

BACKFILL = "backfill"
"""The kind of rows that a backfill has carried; they are named by their pair."""

KEPT = timedelta(days=1)
"""How long a sample is kept, which bounds the table: a row for each minute, writer and phase."""

MINUTE = 60_000


class Entry(NamedTuple):
    """One sample: the columns of `models.control.Sample`, durations in seconds."""

    at: datetime
    kind: str
    name: str
    application: str
    process: str
    build: str
    amount: int
    took: float
    longest: float


_ADD = insert(Sample).values(
    **bound("minute", "kind", "name", "application", "process", "build", "amount", "took", "longest")
)
_COLUMNS = table_of(Sample).c
_PUT = _ADD.on_conflict_do_update(  # SQLite has the same syntax
    index_elements=["minute", "kind", "name", "application", "process"],
    set_={
        "amount": _COLUMNS.amount + _ADD.excluded.amount,
        "took": _COLUMNS.took + _ADD.excluded.took,
        "longest": case((_ADD.excluded.longest > _COLUMNS.longest, _ADD.excluded.longest), else_=_COLUMNS.longest),
    },
)
_PRUNE = delete(Sample).where(_COLUMNS.minute < bindparam("before"))
_LISTED = select(*_COLUMNS).order_by(_COLUMNS.minute, _COLUMNS.kind, _COLUMNS.name, _COLUMNS.process)


def add(
    uow: Transaction,
    kind: str,
    name: str,
    amount: int,
    *,
    application: str = "",
    took: float = 0.0,
    longest: float = 0.0,
) -> None:
    """Add to the sample of this minute and this process, and delete those that are too old.

    Args:
        uow: A writing unit of work.
        kind: What was done.
        name: The phase or the pair.
        amount: How much.
        application: Who did it.
        took: How long all of it took, in seconds.
        longest: How long the longest took, in seconds.
    """
    now = milliseconds(uow)
    facts = {"minute": now - now % MINUTE, "kind": kind, "name": name, "application": application}
    facts |= {"process": whoami(), "build": __version__, "amount": amount}
    uow._execute(_PUT, facts | {"took": int(took * 1e6), "longest": int(longest * 1e6)})
    uow._execute(_PRUNE, {"before": now - int(KEPT.total_seconds() * 1000)})


def listed(uow: Transaction) -> list[Entry]:
    """All samples, oldest first."""
    return [
        Entry(when(minute), kind, name, application, process, build, int(amount), took / 1e6, longest / 1e6)
        for minute, kind, name, application, process, build, amount, took, longest in uow._rows(_LISTED)
    ]
