"""The ledger of rejects: rows that cannot be carried exactly, each kept whole until an operator decides on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import bindparam, func, insert, select, update

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.move import Move
from consensus_orm.events import RejectEvent
from consensus_orm.ledgers import mismatches
from consensus_orm.ledgers.binding import Key, bound, keys_of, milliseconds, stored
from consensus_orm.models.control import Reject
from consensus_orm.phase import Side

__all__ = [
    "Image",
    "OpenReject",
    "accept",
    "as_image",
    "count_open",
    "keep",
    "newest",
    "on_one_side",
    "open_of",
    "reject",
    "resolve",
    "take",
]

Image = dict[str, list[str]]
"""A whole row: the type of each column, and its bytes in hexadecimal digits."""

_IS_OPEN = Reject.state == "open"
_OF_TABLE = (Reject.pair == bindparam("pair"), Reject.table_name == bindparam("table_name"))
_REJECTED = select(Reject.id).where(
    Reject.pair == bindparam("pair"), Reject.key.is_not_distinct_from(bindparam("key")), _IS_OPEN
)
_KEEP = (
    insert(Reject).inline().values(**bound("pair", "key", "table_name", "reason", "image", "found_at"), state="open")
)
_NEWEST = select(func.coalesce(func.max(Reject.id), 0))
_COUNT = select(func.count()).where(_IS_OPEN)
_OPEN_OF = select(Reject.key, Reject.reason, Reject.image).where(_IS_OPEN, *_OF_TABLE)
_UNRESOLVED = select(Reject.key).where(*_OF_TABLE, Reject.state != "resolved", Reject.key.is_not(None))
_TAKE = select(Reject.pair, Reject.key, Reject.state, Reject.table_name, Reject.reason, Reject.image).where(
    Reject.id == bindparam("number")
)
_SETTLE = update(Reject).where(Reject.id == bindparam("number")).values(**bound("state", "settled_at", "note"))


class OpenReject(NamedTuple):
    """A reject that awaits a decision; `side` is where its row stood, `image` the whole row as JSON."""

    pair: Move
    key: Key
    side: Side
    reason: str
    image: str


def reject(uow: Transaction, pair: Move, key: Key, side: Side, reason: str) -> bool:
    """Keep a whole row of a side that cannot be carried, once, with a reason without contents; whether it is new."""
    if uow._execute(_REJECTED, {"pair": pair.name, "key": stored(uow, key)}).fetchone():
        return False
    for where in (side, side.other):  # a row that was deleted on its side may be kept by the other one
        names, sql = uow.statements[pair].image(where)
        if (parts := uow._execute(sql, {"_key": key}).fetchone()) is not None:
            keep(uow, pair, key, side, reason, as_image(names, parts))
            return True
    return False


def as_image(names: Sequence[str], parts: Sequence[str]) -> Image:
    """The image of a row, from the names of its columns and, for each of them, its type and its bytes."""
    return {name: [parts[2 * i], parts[2 * i + 1]] for i, name in enumerate(names)}


def keep(uow: Transaction, pair: Move, key: Key, side: Side, reason: str, image: Image) -> None:
    """Add a reject; its key is None where the row cannot be named by it."""
    facts = {"pair": pair.name, "key": stored(uow, key), "table_name": pair.table_name(side), "reason": reason}
    uow._execute(_KEEP, {**facts, "image": json.dumps(image), "found_at": milliseconds(uow)})
    uow._tell(RejectEvent(pair.name, key, reason))


def newest(uow: Transaction) -> int:
    """The number of the newest reject; 0 where there never was one."""
    return int(uow._rows(_NEWEST)[0][0])


def count_open(uow: Transaction) -> int:
    """How many rejects await a decision."""
    return int(uow._rows(_COUNT)[0][0])


def open_of(uow: Transaction, pair: Move, side: Side) -> Iterator[OpenReject]:
    """The rejects of rows of one side that await a decision."""
    for key, reason, image in uow._rows(_OPEN_OF, {"pair": pair.name, "table_name": pair.table_name(side)}):
        yield OpenReject(pair, key, side, reason, image)


def on_one_side(uow: Transaction, pair: Move, side: Side) -> set[Key]:
    """Keys of the rejects, open or accepted, whose rows stand on this side alone: there is nothing to compare."""
    keys = set(keys_of(uow, _UNRESOLVED, {"pair": pair.name, "table_name": pair.table_name(side)}))
    return {key for key in keys if mismatches.differences(uow, pair, key) == [(None, f"missing_{side.other}")]}


def take(uow: Transaction, number: int) -> OpenReject:
    """The open reject of a number.

    Raises:
        InvalidValueError: There is no open reject of this number.
    """
    row = uow._execute(_TAKE, {"number": number}).fetchone()
    if row is None or row[2] != "open":
        raise errors.InvalidValueError(
            f"there is no open reject {number}", hint="see: consensus-orm rejects", field="id"
        )
    pair = uow.statements.moves[row[0]]
    side = Side.LEGACY if row[3] == pair.legacy_name else Side.NORMALIZED
    return OpenReject(pair, row[1], side, *row[4:])


def accept(uow: Transaction, number: int, note: str) -> OpenReject:
    """Let the migration go on without the row of an open reject; its image stays."""
    accepted = take(uow, number)
    _settle(uow, number, "accepted", note)
    return accepted


def resolve(uow: Transaction, number: int) -> None:
    """Close a reject whose row was carried after all."""
    _settle(uow, number, "resolved", None)


def _settle(uow: Transaction, number: int, state: str, note: str | None) -> None:
    uow._execute(_SETTLE, {"number": number, "state": state, "settled_at": milliseconds(uow), "note": note})
