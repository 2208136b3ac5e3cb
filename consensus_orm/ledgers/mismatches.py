"""The ledger of mismatches: differences between the sides, from the day they are found until they are settled.

A mismatch is confirmed (read again under the lock, so that a write in progress raises no alarm) before it is recorded,
and then repaired or accepted. Log lines and errors name keys, columns and kinds, and never repeat contents of rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from sqlalchemy import Integer, Text, bindparam, func, insert, select, update

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.move import Move
from consensus_orm.events import AlarmEvent, MismatchEvent
from consensus_orm.ledgers import audit
from consensus_orm.ledgers.binding import KEY, Key, among, bound, keys_of, milliseconds, stored
from consensus_orm.models.control import Mismatch, PhaseChange
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import in_keys

__all__ = [
    "NOT_DELETED",
    "OPEN",
    "Finding",
    "accept",
    "confirm",
    "count_open",
    "differences",
    "kept_on_one_side",
    "newest",
    "open_keys",
    "record",
    "record_undecided",
    "settle",
    "settle_storms",
]

Finding = tuple[str | None, str]
"""A column (None for the row as a whole) and what is wrong with it."""

OPEN = ("found", "confirmed")

NOT_REPAIRED = (*OPEN, "accepted", "rejected")
"""Every state of a mismatch but repaired: a list of states lets the index of the open ones serve the others, too."""

SHADOW_FAILED = "shadow_failed"
"""What is wrong with a row that the truth has taken, and the other side has refused."""

NOT_DELETED = "not_deleted"
"""What is wrong with a row that this package deleted and one side kept: it is no other program's row to adopt."""


def differences(uow: Transaction, pair: Move, key: Key) -> list[Finding]:
    """What differs between the sides of a row, within one snapshot.

    Returns:
        One finding for each differing column, or one for the missing side; empty where the sides agree, or
        where neither has the row.
    """
    names, sql = uow.statements[pair].columns_differing
    legacy, normalized, *equal = uow._execute(sql, {"_key": key}).fetchone()
    if legacy and normalized:
        return [(name, "different") for name, same in zip(names, equal, strict=True) if not same]
    if not legacy and not normalized:
        return []
    return [(None, f"missing_{Side.NORMALIZED if legacy else Side.LEGACY}")]


_SEEN_AGAIN = (
    update(Mismatch)
    .where(
        Mismatch.pair == bindparam("pair"),
        Mismatch.column_name.is_not_distinct_from(bindparam("column_name")),
        Mismatch.state.in_(OPEN),
        Mismatch.kind == bindparam("kind"),
        Mismatch.key.is_not_distinct_from(bindparam("key")),
    )
    .values(seen=Mismatch.seen + 1)
)
_FOUND = (
    insert(Mismatch)
    .inline()
    .values(**bound("pair", "key", "column_name", "kind", "found_by", "found_at"), state="confirmed")
)


def record(uow: Transaction, pair: Move, key: Key, column: str | None, kind: str, *, found_by: str) -> None:
    """Record a confirmed mismatch; one that is open already is counted again.

    Above the cap of open entries for a table and column, one entry without a key counts the rest.

    Args:
        uow: Holds the write lock.
        pair: The pair of the row.
        key: The key of the row.
        column: The differing column; None for the row as a whole.
        kind: What is wrong with it.
        found_by: What found it: write, shadow_read, verify.
    """
    facts = {"pair": pair.name, "key": stored(uow, key), "column_name": column, "kind": kind}
    of, again = key, bool(uow._execute(_SEEN_AGAIN, facts).rowcount)
    # Of rows that this package deleted each key must be known, or a repair would bring them back.
    if not again and kind != NOT_DELETED and not _room(uow, pair, column):
        key = facts["key"] = None
        facts["kind"] = "storm"
        again = bool(uow._execute(_SEEN_AGAIN, facts).rowcount)
    if again:
        uow._tell(MismatchEvent(pair.name, of, column, kind, found_by, recorded=False))
        return
    uow._execute(_FOUND, {**facts, "found_by": found_by, "found_at": milliseconds(uow)})
    _alarm(uow)
    uow._tell(MismatchEvent(pair.name, key, column, str(facts["kind"]), found_by, recorded=True))


_CONFIRMED = select(func.count()).where(
    Mismatch.state == "confirmed",
    Mismatch.pair == bindparam("pair"),
    Mismatch.column_name.is_not_distinct_from(bindparam("column_name")),
)


def _room(uow: Transaction, pair: Move, column: str | None) -> int:
    """How many more entries fit under the cap."""
    confirmed = uow._rows(_CONFIRMED, {"pair": pair.name, "column_name": column})[0][0]
    return max(int(uow.settings.mismatch_cap - confirmed), 0)


_NEWEST = select(Mismatch.found_at).order_by(Mismatch.id.desc()).limit(bindparam("most", type_=Integer)).subquery()
_RECENT = select(func.count()).where(_NEWEST.c.found_at >= bindparam("since"))
_SOUNDED = select(func.count()).where(PhaseChange.action == "alarm", PhaseChange.at >= bindparam("since"))


def _alarm(uow: Transaction) -> None:
    """Sound the alarm, once in its window, when confirmed mismatches pass the rate."""
    settings = uow.settings
    since = milliseconds(uow) - int(settings.alarm_window.total_seconds() * 1000)
    enough = settings.alarm_mismatches
    if uow._rows(_RECENT, {"most": enough, "since": since})[0][0] < enough:
        return
    if uow._rows(_SOUNDED, {"since": since})[0][0]:
        return
    reason = f"{enough} mismatches were confirmed within {settings.alarm_window}"
    audit.add(uow, "alarm", reason=reason)
    uow._sound_alarm(reason)
    uow._tell(AlarmEvent(reason))


_KEPT_ON_ONE_SIDE = (
    select(Mismatch.key)
    .where(Mismatch.state.in_(NOT_REPAIRED), Mismatch.pair == bindparam("pair"), Mismatch.column_name.is_(None))
    .where(in_keys(KEY), Mismatch.kind == NOT_DELETED)
    .distinct()
)


def kept_on_one_side(uow: Transaction, pair: Move, keys: Iterable[Key]) -> set[Key]:
    """Those of some rows that this package deleted, and that one side has kept until now."""
    return set(keys_of(uow, _KEPT_ON_ONE_SIDE, {"pair": pair.name, **among(keys)}))


_OPEN_KEYS = (
    select(Mismatch.key)
    .where(Mismatch.pair == bindparam("pair"), Mismatch.state.in_(OPEN), Mismatch.key.is_not(None))
    .distinct()
)


def open_keys(uow: Transaction, pair: Move) -> list[Key]:
    """Keys of the rows of a pair that have open mismatches."""
    return keys_of(uow, _OPEN_KEYS, {"pair": pair.name})


_SEEN_BESIDES = (
    update(Mismatch)
    .where(Mismatch.pair == bindparam("of_pair"), Mismatch.column_name.is_(None), Mismatch.key.is_(None))
    .where(Mismatch.state == "confirmed")
    .values(seen=Mismatch.seen + bindparam("more", type_=Integer))
)


def record_undecided(uow: Transaction, pair: Move, found: Mapping[Key, str]) -> None:
    """Record rows that another program wrote on the side that is not the truth, each with what was done to it.

    Above the cap of open entries one entry without a key counts the rest; the changes name these rows.
    """
    room = _room(uow, pair, None) + 1  # the first one above the cap makes the entry that counts
    for key, did in itertools.islice(found.items(), room):
        record(uow, pair, key, None, f"foreign_{did}", found_by="trigger")
    if (rest := len(found) - room) > 0:
        uow._execute(_SEEN_BESIDES, {"more": rest, "of_pair": pair.name})


def confirm(uow: Transaction, pair: Move, keys: Iterable[Key], *, found_by: str) -> None:
    """Read doubtful rows again under the lock, and record what still differs."""
    for key in keys:
        for column, kind in differences(uow, pair, key):
            record(uow, pair, key, column, kind, found_by=found_by)


_OF_PAIR = (Mismatch.pair == bindparam("of_pair"), Mismatch.state.in_(OPEN))
_SETTLE = (
    update(Mismatch)
    .where(*_OF_PAIR, in_keys(KEY))
    .values(**bound("state", "settled_at"), note=func.coalesce(bindparam("note", type_=Text), Mismatch.note))
)
_SETTLE_STORMS = (
    update(Mismatch).where(*_OF_PAIR, Mismatch.key.is_(None)).values(**bound("settled_at"), state="repaired")
)
_ACCEPT = (
    update(Mismatch).where(Mismatch.id == bindparam("number")).values(**bound("settled_at", "note"), state="accepted")
)


def settle(uow: Transaction, pair: Move, keys: Iterable[Key], state: str, note: str) -> None:
    """Close the open mismatches of rows: as repaired, or as rejected."""
    facts = {"state": state, "settled_at": milliseconds(uow), "note": note, "of_pair": pair.name}
    uow._execute(_SETTLE, facts | among(keys))


def settle_storms(uow: Transaction, pair: Move) -> None:
    """Close the entries that stand for many rows of a pair, once all these rows were compared again."""
    uow._execute(_SETTLE_STORMS, {"settled_at": milliseconds(uow), "of_pair": pair.name})


def accept(uow: Transaction, number: int, note: str) -> None:
    """Leave an open mismatch as it is."""
    uow._execute(_ACCEPT, {"settled_at": milliseconds(uow), "note": note, "number": number})


_LAST = select(func.coalesce(func.max(Mismatch.id), 0))
_COUNT = select(func.count()).where(Mismatch.state.in_(OPEN))


def newest(uow: Transaction) -> int:
    """The number of the newest mismatch; 0 where there never was one."""
    return int(uow._rows(_LAST)[0][0])


def count_open(uow: Transaction) -> int:
    """How many mismatches are not settled."""
    return int(uow._rows(_COUNT)[0][0])
