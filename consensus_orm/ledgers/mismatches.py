"""The ledgers of the migration: mismatches, rejects, and changes that one side does not know of.

A mismatch is found, confirmed (read again under the lock, so that nothing in flight alarms), and repaired or
accepted. A reject is a row that cannot be carried; it is kept whole until somebody decides. Neither log lines
nor errors repeat contents of rows: keys, columns and kinds are told.
"""

from __future__ import annotations

import getpass
import itertools
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, Integer, Text, bindparam, func, insert, select, update
from sqlalchemy import column as column_

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.move import Move
from consensus_orm.events import AlarmEvent, MismatchEvent, RejectEvent
from consensus_orm.models.control import Mismatch, PhaseChange, Reject
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.rendering import in_keys

__all__ = [
    "Finding",
    "audit",
    "confirm",
    "differences",
    "open_mismatches",
    "open_rejects",
    "open_rejects_of",
    "record",
    "reject",
]

Finding = tuple[str | None, str]
"""A column (None for the row as a whole) and what is wrong with it."""

Image = dict[str, list[str]]
"""A row whole: the type and the bytes of each column, in hexadecimal digits."""

KEY = column_("key", Integer())

OPEN = ("found", "confirmed")

NOT_REPAIRED = (*OPEN, "accepted", "rejected")
"""Every state of a mismatch but repaired: by them the index of the open ones serves those that are settled, too."""

NOT_DELETED = "not_deleted"
"""What is wrong with a row that we deleted and that one side kept; nobody else's, so never to be adopted."""


def milliseconds(uow: Transaction) -> int:
    """The start of a unit of work in ms since 1970 UTC."""
    return int(uow.now.timestamp() * 1000)


def bound(*names: str) -> dict[str, BindParameter[Any]]:
    """Values for columns, each bound under the name of its column."""
    return {name: bindparam(name) for name in names}


# The audit ------------------------------------------------------------------------------------------------


_AUDIT = (
    insert(PhaseChange)
    .inline()
    .values(**bound("action", "from_phase", "to_phase", "at", "by", "reason", "forced", "detail"))
)


def audit(
    uow: Transaction,
    action: str,
    *,
    to: Phase | None = None,
    reason: str | None = None,
    forced: bool = False,
    **detail: Any,
) -> None:
    """Keep in the audit who did what, when and why.

    Args:
        uow: The unit of work that does it.
        action: What is done.
        to: The phase to come, where it changes.
        reason: Why.
        forced: Whether waiting was skipped.
        **detail: Facts; no contents of rows.
    """
    facts = {"action": action, "from_phase": uow.phase.value, "to_phase": to.value if to else None}
    facts |= {"at": milliseconds(uow), "by": whoami(), "reason": reason, "forced": forced}
    uow._execute(_AUDIT, facts | {"detail": json.dumps(detail) if detail else None})


def whoami() -> str:
    """Who runs this process: user, host and process number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user: containers with a bare number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} ({os.getpid()})"


# Mismatches -----------------------------------------------------------------------------------------------


def differences(uow: Transaction, pair: Move, key: Any) -> list[Finding]:
    """What differs between the sides of a row.

    Args:
        uow: Sees both sides in one snapshot.
        pair: The pair of the row.
        key: The key of the row.

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


def record(uow: Transaction, pair: Move, key: Any, column: str | None, kind: str, *, found_by: str) -> None:
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
    facts = {"pair": pair.name, "key": key, "column_name": column, "kind": kind}
    if uow._execute(_SEEN_AGAIN, facts).rowcount:
        uow._tell(MismatchEvent(pair.name, key, column, kind, found_by, recorded=False))
        return
    # Which rows we deleted must be known of each, or repairing would bring them back.
    capped = kind != NOT_DELETED
    if capped and not _room(uow, pair, column):
        facts["key"], facts["kind"] = None, "storm"
        if uow._execute(_SEEN_AGAIN, facts).rowcount:
            uow._tell(MismatchEvent(pair.name, key, column, kind, found_by, recorded=False))
            return
    uow._execute(_FOUND, {**facts, "found_by": found_by, "found_at": milliseconds(uow)})
    _alarm(uow)
    uow._tell(MismatchEvent(pair.name, facts["key"], column, facts["kind"], found_by, recorded=True))


_CONFIRMED = select(func.count()).where(
    Mismatch.state == "confirmed",
    Mismatch.pair == bindparam("pair"),
    Mismatch.column_name.is_not_distinct_from(bindparam("column_name")),
)


def _room(uow: Transaction, pair: Move, column: str | None) -> int:
    """How many more entries fit under the cap."""
    open_ = uow._rows(_CONFIRMED, {"pair": pair.name, "column_name": column})[0][0]
    return max(int(uow.settings.mismatch_cap - open_), 0)


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
    reason = f"{settings.alarm_mismatches} mismatches were confirmed within {settings.alarm_window}"
    audit(uow, "alarm", reason=reason)
    uow._sound_alarm(reason)
    uow._tell(AlarmEvent(reason))


_KEPT_ON_ONE_SIDE = (
    select(Mismatch.key)
    .where(Mismatch.state.in_(NOT_REPAIRED), Mismatch.pair == bindparam("pair"), Mismatch.column_name.is_(None))
    .where(in_keys(KEY, "keys"), Mismatch.kind == NOT_DELETED)
    .distinct()
)


def kept_on_one_side(uow: Transaction, pair: Move, keys: Iterable[Any]) -> set[Any]:
    """Those of some rows that we deleted, and that one side has kept until now."""
    return {key for (key,) in uow._rows(_KEPT_ON_ONE_SIDE, {"pair": pair.name, "keys": json.dumps(list(keys))})}


_SEEN_BESIDES = (
    update(Mismatch)
    .where(Mismatch.pair == bindparam("of_pair"), Mismatch.column_name.is_(None), Mismatch.key.is_(None))
    .where(Mismatch.state == "confirmed")
    .values(seen=Mismatch.seen + bindparam("more", type_=Integer))
)


def record_undecided(uow: Transaction, pair: Move, found: Mapping[Any, str]) -> None:
    """Record rows that another program wrote on the side that is not the truth, each once.

    Above the cap of open entries one entry without a key counts the rest; the changes tell which rows these are.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        found: For each key what was done: insert, update or delete.
    """
    room = _room(uow, pair, None) + 1  # the first one above the cap makes the entry that counts
    for key, did in itertools.islice(found.items(), room):
        record(uow, pair, key, None, f"foreign_{did}", found_by="trigger")
    if (rest := len(found) - room) > 0:
        uow._execute(_SEEN_BESIDES, {"more": rest, "of_pair": pair.name})


def confirm(uow: Transaction, pair: Move, keys: Iterable[Any], *, found_by: str) -> int:
    """Read doubtful rows again under the lock, and record what still differs.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys.
        found_by: What doubted them.

    Returns:
        How many of them differ.
    """
    differing = 0
    for key in keys:
        found = differences(uow, pair, key)
        differing += bool(found)
        for column, kind in found:
            record(uow, pair, key, column, kind, found_by=found_by)
    return differing


_OF_PAIR = (Mismatch.pair == bindparam("of_pair"), Mismatch.state.in_(OPEN))
_SETTLE = (
    update(Mismatch)
    .where(*_OF_PAIR, in_keys(KEY, "keys"))
    .values(**bound("state", "settled_at"), note=func.coalesce(bindparam("note", type_=Text), Mismatch.note))
)
_SETTLE_STORMS = (
    update(Mismatch).where(*_OF_PAIR, Mismatch.key.is_(None)).values(**bound("settled_at"), state="repaired")
)


def settle(uow: Transaction, pair: Move, keys: Iterable[Any], state: str, note: str | None = None) -> int:
    """Close the open mismatches of rows: repaired, or accepted with a reason."""
    facts = {"state": state, "settled_at": milliseconds(uow), "note": note, "of_pair": pair.name}
    return uow._execute(_SETTLE, {**facts, "keys": json.dumps(list(keys))}).rowcount


def settle_storms(uow: Transaction, pair: Move) -> None:
    """Close the entries that stand for many rows of a pair, all of which were looked at by now."""
    uow._execute(_SETTLE_STORMS, {"settled_at": milliseconds(uow), "of_pair": pair.name})


_LAST_MISMATCH = select(func.coalesce(func.max(Mismatch.id), 0))
_OPEN_MISMATCHES = select(func.count()).where(Mismatch.state.in_(OPEN))


def last_mismatch(uow: Transaction) -> int:
    """The number of the newest mismatch; 0 where there never was one."""
    return int(uow._rows(_LAST_MISMATCH)[0][0])


def open_mismatches(uow: Transaction) -> int:
    """How many mismatches nobody has settled."""
    return int(uow._rows(_OPEN_MISMATCHES)[0][0])


# Rejects --------------------------------------------------------------------------------------------------


_OPEN_REJECT = Reject.state == "open"
_REJECTED = select(Reject.id).where(
    Reject.pair == bindparam("pair"), Reject.key.is_not_distinct_from(bindparam("key")), _OPEN_REJECT
)


def reject(uow: Transaction, pair: Move, key: Any, side: Side, reason: str) -> bool:
    """Keep a row that cannot be carried: whole, once, with the reason.

    Args:
        uow: Holds the write lock.
        pair: The pair of the row.
        key: The key of the row.
        side: Where the row stands.
        reason: Why it cannot be carried; no contents.

    Returns:
        Whether it is new; False where it was rejected before.
    """
    if uow._execute(_REJECTED, {"pair": pair.name, "key": key}).fetchone():
        return False
    for where in (side, side.other):  # a row that is deleted on its side stands on the other one, which has kept it
        names, sql = uow.statements[pair].image(where)
        if (parts := uow._execute(sql, {"_key": key}).fetchone()) is not None:
            keep_reject(uow, pair, key, side, reason, as_image(names, parts))
            return True
    return False


def as_image(names: Sequence[str], parts: Sequence[str]) -> Image:
    """A row whole, from its column names and, for each column, its type and its bytes."""
    return {name: [parts[2 * i], parts[2 * i + 1]] for i, name in enumerate(names)}


_KEEP_REJECT = (
    insert(Reject).inline().values(**bound("pair", "key", "table_name", "reason", "image", "found_at"), state="open")
)


def keep_reject(uow: Transaction, pair: Move, key: Any, side: Side, reason: str, image: Image) -> None:
    """Keep a row that cannot be carried.

    Args:
        uow: Holds the write lock.
        pair: The pair of the row.
        key: The key of the row; None where it cannot be named by it.
        side: Where the row stands.
        reason: Why it cannot be carried; no contents.
        image: The row whole.
    """
    facts = {"pair": pair.name, "key": key, "table_name": pair.table_name(side), "reason": reason}
    uow._execute(_KEEP_REJECT, {**facts, "image": json.dumps(image), "found_at": milliseconds(uow)})
    uow._tell(RejectEvent(pair.name, key, reason))


_LAST_REJECT = select(func.coalesce(func.max(Reject.id), 0))
_OPEN_REJECTS = select(func.count()).where(_OPEN_REJECT)


def last_reject(uow: Transaction) -> int:
    """The number of the newest reject; 0 where there never was one."""
    return int(uow._rows(_LAST_REJECT)[0][0])


def open_rejects(uow: Transaction) -> int:
    """How many rejects nobody has decided on."""
    return int(uow._rows(_OPEN_REJECTS)[0][0])


class OpenReject(NamedTuple):
    """A reject nobody has decided on; `side` is where its row stood, `image` the row whole, as it is kept."""

    pair: Move
    key: Any
    side: Side
    reason: str
    image: str


_OPEN_REJECTS_OF = select(Reject.key, Reject.reason, Reject.image).where(
    _OPEN_REJECT, Reject.pair == bindparam("pair"), Reject.table_name == bindparam("table_name")
)


def open_rejects_of(uow: Transaction, pair: Move, side: Side) -> Iterator[OpenReject]:
    """The rejects of a pair that nobody has decided on, and whose rows stood on a side."""
    of = {"pair": pair.name, "table_name": pair.table_name(side)}
    for key, reason, image in uow._rows(_OPEN_REJECTS_OF, of):
        yield OpenReject(pair, key, side, reason, image)


_REJECT = select(Reject.pair, Reject.key, Reject.state, Reject.table_name, Reject.reason, Reject.image).where(
    Reject.id == bindparam("number")
)
_REJECTED_FOR = select(Reject.id).where(_OPEN_REJECT, Reject.reason == bindparam("reason"))


def take_reject(uow: Transaction, number: int) -> OpenReject:
    """The open reject of a number.

    Raises:
        InvalidValueError: There is no open reject of this number.
    """
    row = uow._execute(_REJECT, {"number": number}).fetchone()
    if row is None or row[2] != "open":
        raise errors.InvalidValueError(
            f"there is no open reject {number}", hint="see: consensus-orm rejects", field="id"
        )
    pair = uow.statements.mapping[row[0]]
    side = Side.LEGACY if row[3] == pair.legacy_name else Side.NORMALIZED
    return OpenReject(pair, row[1], side, *row[4:])


def rejected_for(uow: Transaction, reason: str) -> set[int]:
    """Numbers of the open rejects that have a reason.

    Raises:
        InvalidValueError: There is none.
    """
    found = {number for (number,) in uow._rows(_REJECTED_FOR, {"reason": reason})}
    if not found:
        raise errors.InvalidValueError(
            "no open reject has this reason", hint="see: consensus-orm rejects", field="all_of"
        )
    return found


def accept_reject(uow: Transaction, number: int, note: str) -> tuple[str, Any]:
    """Let the migration go on without a row; its image stays."""
    pair, key, *_ = take_reject(uow, number)
    _settle_reject(uow, number, "accepted", note)
    return pair.name, key


def resolve_reject(uow: Transaction, number: int) -> None:
    """Close a reject whose row was carried after all."""
    _settle_reject(uow, number, "resolved", None)


_SETTLE_REJECT = update(Reject).where(Reject.id == bindparam("number")).values(**bound("state", "settled_at", "note"))
_ACCEPT_MISMATCH = (
    update(Mismatch)
    .where(Mismatch.id == bindparam("number"), Mismatch.state.in_(OPEN))
    .values(**bound("settled_at", "note"), state="accepted")
)


def _settle_reject(uow: Transaction, number: int, state: str, note: str | None) -> None:
    facts = {"state": state, "settled_at": milliseconds(uow), "note": note}
    uow._execute(_SETTLE_REJECT, {**facts, "number": number})


def accept_mismatch(uow: Transaction, number: int, note: str) -> None:
    """Leave a mismatch as it is.

    Raises:
        InvalidValueError: There is no open mismatch of this number.
    """
    facts = {"settled_at": milliseconds(uow), "note": note, "number": number}
    if not uow._execute(_ACCEPT_MISMATCH, facts).rowcount:
        raise errors.InvalidValueError(
            f"there is no open mismatch {number}", hint="see: consensus-orm mismatches", field="id"
        )
