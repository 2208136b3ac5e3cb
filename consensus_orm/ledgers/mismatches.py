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

import sqlalchemy

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.pairs import Pair
from consensus_orm.events import AlarmEvent, MismatchEvent, RejectEvent
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

KEY = sqlalchemy.column("key", sqlalchemy.Integer())

OPEN = ("found", "confirmed")

NOT_REPAIRED = (*OPEN, "accepted", "rejected")
"""Every state of a mismatch but repaired: by them the index of the open ones serves those that are settled, too."""

NOT_DELETED = "not_deleted"
"""What is wrong with a row that we deleted and that one side kept; nobody else's, so never to be adopted."""


def milliseconds(uow: Transaction) -> int:
    """The start of a unit of work in ms since 1970 UTC."""
    return int(uow.now.timestamp() * 1000)


# The audit ------------------------------------------------------------------------------------------------


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
    uow._execute(
        "INSERT INTO consensus_orm_history (action, from_phase, to_phase, at, by, reason, forced, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            action,
            uow.phase.value,
            to.value if to else None,
            milliseconds(uow),
            whoami(),
            reason,
            forced,
            json.dumps(detail) if detail else None,
        ),
    )


def whoami() -> str:
    """Who runs this process: user, host and process number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user: containers with a bare number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} ({os.getpid()})"


# Mismatches -----------------------------------------------------------------------------------------------


def differences(uow: Transaction, pair: Pair, key: Any) -> list[Finding]:
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


def record(uow: Transaction, pair: Pair, key: Any, column: str | None, kind: str, *, found_by: str) -> None:
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
    where = (
        "pair = :pair AND column_name IS :column AND state IN ('found', 'confirmed') AND kind = :kind AND key IS :key"
    )
    facts = {"pair": pair.name, "key": key, "column": column, "kind": kind, "by": found_by}
    facts["at"] = milliseconds(uow)
    if uow._execute(f"UPDATE consensus_orm_mismatches SET seen = seen + 1 WHERE {where}", facts).rowcount:
        uow._tell(MismatchEvent(pair.name, key, column, kind, found_by, recorded=False))
        return
    # Which rows we deleted must be known of each, or repairing would bring them back.
    capped = kind != NOT_DELETED
    if capped and not _room(uow, pair, column):
        facts["key"], facts["kind"] = None, "storm"
        if uow._execute(f"UPDATE consensus_orm_mismatches SET seen = seen + 1 WHERE {where}", facts).rowcount:
            uow._tell(MismatchEvent(pair.name, key, column, kind, found_by, recorded=False))
            return
    uow._execute(
        "INSERT INTO consensus_orm_mismatches (pair, key, column_name, kind, state, found_by, found_at)"
        " VALUES (:pair, :key, :column, :kind, 'confirmed', :by, :at)",
        facts,
    )
    _alarm(uow)
    uow._tell(MismatchEvent(pair.name, facts["key"], column, facts["kind"], found_by, recorded=True))


def _room(uow: Transaction, pair: Pair, column: str | None) -> int:
    """How many more entries fit under the cap."""
    sql = "SELECT count(*) FROM consensus_orm_mismatches WHERE state = 'confirmed' AND pair = :pair"
    open_ = uow._rows(f"{sql} AND column_name IS :column", {"pair": pair.name, "column": column})[0][0]
    return max(int(uow.settings.mismatch_cap - open_), 0)


def _alarm(uow: Transaction) -> None:
    """Sound the alarm, once in its window, when confirmed mismatches pass the rate."""
    settings = uow.settings
    since = milliseconds(uow) - int(settings.alarm_window.total_seconds() * 1000)
    newest = "SELECT found_at FROM consensus_orm_mismatches ORDER BY id DESC LIMIT ?"
    found = f"SELECT count(*) FROM ({newest}) AS newest WHERE found_at >= ?"
    sounded = "SELECT count(*) FROM consensus_orm_history WHERE action = 'alarm' AND at >= ?"
    enough = settings.alarm_mismatches
    if uow._rows(found, (enough, since))[0][0] < enough or uow._rows(sounded, (since,))[0][0]:
        return
    reason = f"{settings.alarm_mismatches} mismatches were confirmed within {settings.alarm_window}"
    audit(uow, "alarm", reason=reason)
    uow._sound_alarm(reason)
    uow._tell(AlarmEvent(reason))


def kept_on_one_side(uow: Transaction, pair: Pair, keys: Iterable[Any]) -> set[Any]:
    """Those of some rows that we deleted, and that one side has kept until now."""
    states = ", ".join(f"'{state}'" for state in NOT_REPAIRED)
    sql = (
        f"SELECT DISTINCT key FROM consensus_orm_mismatches WHERE state IN ({states}) AND pair = :pair"
        f" AND column_name IS NULL AND {uow.statements.rendering.render(in_keys(KEY, 'keys'))} AND kind = :kind"
    )
    return {key for (key,) in uow._rows(sql, {"pair": pair.name, "kind": NOT_DELETED, "keys": json.dumps(list(keys))})}


def record_undecided(uow: Transaction, pair: Pair, found: Mapping[Any, str]) -> None:
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
        sql = "UPDATE consensus_orm_mismatches SET seen = seen + ? WHERE pair = ? AND column_name IS NULL"
        uow._execute(f"{sql} AND key IS NULL AND state = 'confirmed'", (rest, pair.name))


def confirm(uow: Transaction, pair: Pair, keys: Iterable[Any], *, found_by: str) -> int:
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


def settle(uow: Transaction, pair: Pair, keys: Iterable[Any], state: str, note: str | None = None) -> int:
    """Close the open mismatches of rows: repaired, or accepted with a reason."""
    return uow._execute(
        "UPDATE consensus_orm_mismatches SET state = :state, settled_at = :at, note = coalesce(:note, note)"
        " WHERE pair = :pair AND state IN ('found', 'confirmed')"
        f" AND {uow.statements.rendering.render(in_keys(KEY, 'keys'))}",
        {
            "state": state,
            "at": milliseconds(uow),
            "note": note,
            "pair": pair.name,
            "keys": json.dumps(list(keys)),
        },
    ).rowcount


def settle_storms(uow: Transaction, pair: Pair) -> None:
    """Close the entries that stand for many rows of a pair, all of which were looked at by now."""
    uow._execute(
        "UPDATE consensus_orm_mismatches SET state = 'repaired', settled_at = ?"
        " WHERE state IN ('found', 'confirmed') AND pair = ? AND key IS NULL",
        (milliseconds(uow), pair.name),
    )


def last_mismatch(uow: Transaction) -> int:
    """The number of the newest mismatch; 0 where there never was one."""
    return int(uow._rows("SELECT coalesce(max(id), 0) FROM consensus_orm_mismatches")[0][0])


def open_mismatches(uow: Transaction) -> int:
    """How many mismatches nobody has settled."""
    sql = "SELECT count(*) FROM consensus_orm_mismatches WHERE state IN ('found', 'confirmed')"
    return int(uow._rows(sql)[0][0])


# Rejects --------------------------------------------------------------------------------------------------


def reject(uow: Transaction, pair: Pair, key: Any, side: Side, reason: str) -> bool:
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
    known = "SELECT 1 FROM consensus_orm_rejects WHERE pair = ? AND key IS ? AND state = 'open'"
    if uow._execute(known, (pair.name, key)).fetchone():
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


def keep_reject(uow: Transaction, pair: Pair, key: Any, side: Side, reason: str, image: Image) -> None:
    """Keep a row that cannot be carried.

    Args:
        uow: Holds the write lock.
        pair: The pair of the row.
        key: The key of the row; None where it cannot be named by it.
        side: Where the row stands.
        reason: Why it cannot be carried; no contents.
        image: The row whole.
    """
    uow._execute(
        "INSERT INTO consensus_orm_rejects (pair, key, table_name, reason, image, state, found_at)"
        " VALUES (?, ?, ?, ?, ?, 'open', ?)",
        (pair.name, key, pair.table_name(side), reason, json.dumps(image), milliseconds(uow)),
    )
    uow._tell(RejectEvent(pair.name, key, reason))


def last_reject(uow: Transaction) -> int:
    """The number of the newest reject; 0 where there never was one."""
    return int(uow._rows("SELECT coalesce(max(id), 0) FROM consensus_orm_rejects")[0][0])


def open_rejects(uow: Transaction) -> int:
    """How many rejects nobody has decided on."""
    return int(uow._rows("SELECT count(*) FROM consensus_orm_rejects WHERE state = 'open'")[0][0])


class OpenReject(NamedTuple):
    """A reject nobody has decided on; `side` is where its row stood, `image` the row whole, as it is kept."""

    pair: Pair
    key: Any
    side: Side
    reason: str
    image: str


def open_rejects_of(uow: Transaction, pair: Pair, side: Side) -> Iterator[OpenReject]:
    """The rejects of a pair that nobody has decided on, and whose rows stood on a side."""
    sql = "SELECT key, reason, image FROM consensus_orm_rejects WHERE state = 'open' AND pair = ? AND table_name = ?"
    for key, reason, image in uow._rows(sql, (pair.name, pair.table_name(side))):
        yield OpenReject(pair, key, side, reason, image)


def take_reject(uow: Transaction, number: int) -> OpenReject:
    """The open reject of a number.

    Raises:
        InvalidValueError: There is no open reject of this number.
    """
    sql = "SELECT pair, key, state, table_name, reason, image FROM consensus_orm_rejects WHERE id = ?"
    row = uow._execute(sql, (number,)).fetchone()
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
    sql = "SELECT id FROM consensus_orm_rejects WHERE state = 'open' AND reason = ?"
    found = {number for (number,) in uow._rows(sql, (reason,))}
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


def _settle_reject(uow: Transaction, number: int, state: str, note: str | None) -> None:
    sql = "UPDATE consensus_orm_rejects SET state = ?, settled_at = ?, note = ? WHERE id = ?"
    uow._execute(sql, (state, milliseconds(uow), note, number))


def accept_mismatch(uow: Transaction, number: int, note: str) -> None:
    """Leave a mismatch as it is.

    Raises:
        InvalidValueError: There is no open mismatch of this number.
    """
    sql = (
        "UPDATE consensus_orm_mismatches SET state = 'accepted', settled_at = ?, note = ?"
        " WHERE id = ? AND state IN ('found', 'confirmed')"
    )
    if not uow._execute(sql, (milliseconds(uow), note, number)).rowcount:
        raise errors.InvalidValueError(
            f"there is no open mismatch {number}", hint="see: consensus-orm mismatches", field="id"
        )
