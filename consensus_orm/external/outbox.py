"""The outbox: which rows are to be sent to an external store, written in the transaction of the rows.

An entry names a row and has no contents: the relay reads the row as it is when it sends. So an entry that is sent
twice, or late, leaves what the newest one leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    Integer,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.external import rows
from consensus_orm.external.canonical import content_of, digest
from consensus_orm.external.stage import Stage
from consensus_orm.ledgers.binding import Key, bound, milliseconds, stored
from consensus_orm.ledgers.outboxes import IS_WAITING
from consensus_orm.models.external import OutboxEntry, SinkFinding, SinkState
from consensus_orm.statements.rendering import in_keys
from consensus_orm.store import Store
from consensus_orm.times import milliseconds as in_milliseconds
from consensus_orm.unit_of_work.unit import UnitOfWork, Written

__all__ = [
    "Entry",
    "attach",
    "due",
    "enqueue",
    "is_mirrored",
    "is_overtaken",
    "newest",
    "of_row",
    "postpone",
    "prune",
    "record",
    "settle",
    "touched",
]


# Written in the transaction of the rows -------------------------------------------------------------------


def attach(store: Store[Any]) -> None:
    """Have the units of work of a store write the outbox of each external store that is at MIRROR.

    Every process that writes rows must call this; what one writes without it is found by the next comparison. Units of
    work that have begun are not affected.

    Args:
        store: The store; one that is attached already stays so.
    """
    store._units.before_commit(record, is_mirrored)


_IS_MIRRORED: Select[Any] = select(literal_column("1")).where(
    exists().where(SinkState.stage == literal_column(str(Stage.MIRROR.value), Integer))
)


def is_mirrored(uow: Transaction) -> bool:
    """Whether an external store is at MIRROR, so that rows that are written get entries."""
    return bool(uow._rows(_IS_MIRRORED))


_COLUMNS = ("pair", "key", "op", "digest", "at")
# Without RETURNING, which more than doubles the price of an insert on SQLite (measured).
_RECORD = insert(OutboxEntry).from_select(
    ["sink", *_COLUMNS],
    select(SinkState.name, *(bindparam(name, type_=table_of(OutboxEntry).c[name].type) for name in _COLUMNS)).where(
        SinkState.stage == literal_column(str(Stage.MIRROR.value), Integer)
    ),
    include_defaults=False,
)


def record(uow: UnitOfWork, written: Written) -> Sequence[tuple[str, Any]]:
    """Write the rows of a unit of work to the outbox of each external store that is at MIRROR; the hook of `attach`.

    Args:
        uow: Is about to commit.
        written: The rows that it wrote.

    Returns:
        The statement that is left, which is sent with the commit.
    """
    at, entries = milliseconds(uow), []
    for name, keys in written.items():
        pair = uow.statements.moves[name]
        there = {key: content_of(pair, row) for key, row in keys.items() if row is not None}
        if unread := [key for key, row in keys.items() if row is None]:
            there |= rows.contents(uow, pair, unread)
        for key in keys:
            content = there.get(key)
            op, hashed = ("delete", None) if content is None else ("put", digest(content))
            entries.append({"pair": name, "key": stored(uow, key), "op": op, "digest": hashed, "at": at})
    if len(entries) == 1:
        return [(uow._printed(_RECORD), entry) for entry in entries]
    uow._execute_each(_RECORD, entries)
    return []


_ENQUEUE = insert(OutboxEntry).inline().values(**bound("sink", "pair", "key", "op", "at"))


def enqueue(uow: Transaction, sink: str, pair: str, keys: Iterable[Key], op: str) -> int:
    """Put rows into the outbox of one external store, as they are; returns how many."""
    count = 0
    for key in keys:
        facts = {"sink": sink, "pair": pair, "key": stored(uow, key), "op": op}
        uow._execute(_ENQUEUE, {**facts, "at": milliseconds(uow)})
        count += 1
    return count


# Read by the relay ----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An entry that waits: its number, and the row it is about."""

    id: int
    pair: str
    key: Key
    tries: int
    at: int


_IS_STOPPED = exists().where(
    SinkFinding.sink == OutboxEntry.sink,
    SinkFinding.state == "open",
    SinkFinding.kind == "unsent",
    SinkFinding.pair == OutboxEntry.pair,
    SinkFinding.key == OutboxEntry.key,
)
# A time that is further away than any wait was noted before the clock was set back.
_WAITS = OutboxEntry.retry_at.between(bindparam("soon"), bindparam("latest"))
_DUE = (
    select(OutboxEntry.id, OutboxEntry.pair, OutboxEntry.key, OutboxEntry.tries, OutboxEntry.at)
    .where(IS_WAITING, or_(OutboxEntry.retry_at.is_(None), ~_WAITS), ~_IS_STOPPED)
    .order_by(OutboxEntry.id)
    .limit(bindparam("_rows", type_=Integer))
)
_OF_ROW = (
    select(OutboxEntry.id, OutboxEntry.tries, OutboxEntry.at)
    .where(IS_WAITING, OutboxEntry.pair == bindparam("pair"), OutboxEntry.key == bindparam("key"))
    .order_by(OutboxEntry.id)
)


LONGEST_WAIT = timedelta(hours=1)
"""An entry that failed waits no longer, nor is one postponed for longer."""


def due(uow: Transaction, sink: str, size: int) -> list[Entry]:
    """The oldest entries that may be sent now; not those of rows that a reject has stopped."""
    now = milliseconds(uow)
    times = {"soon": now + 1, "latest": now + in_milliseconds(LONGEST_WAIT)}
    found = uow._rows(_DUE, {"of_sink": sink, "_rows": size, **times})
    return [Entry(*row) for row in found]


def of_row(uow: Transaction, sink: str, pair: str, key: Key) -> list[tuple[int, int, int]]:
    """Number, tries and time of each waiting entry of a row, oldest first."""
    found = uow._rows(_OF_ROW, {"of_sink": sink, "pair": pair, "key": stored(uow, key)})
    return [(number, tries, at) for number, tries, at in found]


_DELETED = select(OutboxEntry.pair, OutboxEntry.key).where(
    OutboxEntry.sink == bindparam("of_sink"), OutboxEntry.op == "delete"
)
_OVERTAKEN = (
    select(OutboxEntry.id)
    .where(
        OutboxEntry.sink == bindparam("of_sink"),
        OutboxEntry.id > bindparam("number"),
        OutboxEntry.outcome == "sent",
        tuple_(OutboxEntry.pair, OutboxEntry.key).not_in(_DELETED),
    )
    .limit(1)
)


def is_overtaken(uow: Transaction, sink: str, number: int) -> bool:
    """Whether the external store took the row of a younger entry; a full disk takes none, and lets rows be deleted."""
    return bool(uow._rows(_OVERTAKEN, {"of_sink": sink, "number": number}))


_BY_NUMBER = in_keys(table_of(OutboxEntry).c.id)
_SETTLE = update(OutboxEntry).where(_BY_NUMBER).values(**bound("settled_at", "outcome"))
_POSTPONE = update(OutboxEntry).where(_BY_NUMBER).values(tries=OutboxEntry.tries + 1, retry_at=bindparam("retry_at"))


def settle(uow: Transaction, numbers: str, outcome: str) -> None:
    """Close entries, whose numbers are a JSON array."""
    uow._execute(_SETTLE, {"_keys": numbers, "settled_at": milliseconds(uow), "outcome": outcome})


def postpone(uow: Transaction, numbers: str, wait: timedelta) -> None:
    """Count a failed try of entries, whose numbers are a JSON array, and let them wait."""
    wait_ms = in_milliseconds(min(wait, LONGEST_WAIT))
    uow._execute(_POSTPONE, {"_keys": numbers, "retry_at": milliseconds(uow) + wait_ms})


_PRUNE = delete(OutboxEntry).where(
    OutboxEntry.sink == bindparam("of_sink"), OutboxEntry.settled_at < bindparam("before")
)


def prune(uow: Transaction, sink: str, before: int) -> int:
    """Delete entries that were closed before a time in ms; returns how many."""
    return int(uow._execute(_PRUNE, {"of_sink": sink, "before": before}).rowcount)


# Looked at ------------------------------------------------------------------------------------------------


_NEWEST = select(func.coalesce(func.max(OutboxEntry.id), 0)).where(OutboxEntry.sink == bindparam("of_sink"))
_TOUCHED = (
    select(OutboxEntry.pair, OutboxEntry.key)
    .where(
        OutboxEntry.sink == bindparam("of_sink"),
        or_(OutboxEntry.id > bindparam("sequence"), OutboxEntry.settled_at.is_(None)),
    )
    .distinct()
)


def newest(uow: Transaction, sink: str) -> int:
    """The number of the newest entry; 0 where there never was one."""
    return int(uow._rows(_NEWEST, {"of_sink": sink})[0][0])


def touched(uow: Transaction, sink: str, sequence: int) -> set[tuple[str, Key]]:
    """Rows that wait to be sent, or were written after an entry."""
    return {(pair, key) for pair, key in uow._rows(_TOUCHED, {"of_sink": sink, "sequence": sequence})}
