"""Writes that only one side knows of, as the triggers recorded them, in the order in which they were made.

While both sides are written these are writes of other programs; in phase NORMALIZED they are all writes, for the way
back. A record stays until its row was settled. Where that needs a choice it is marked as undecided, and not looked at
again before the choice is made or the row is written once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Delete, Integer, Select, Update, bindparam, column, delete, func, not_, select, update

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.keys import usable
from consensus_orm.declaration.move import Move
from consensus_orm.models.control import UNDECIDED, Change
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import in_keys

__all__ = [
    "Written",
    "count",
    "forget",
    "forget_all",
    "keys_of",
    "leave",
    "of_rows",
    "of_unnamed_rows",
    "some_undecided",
    "undecided",
    "undecided_among",
    "waiting",
]

KEY = column("key", Integer())
ID = column("id", Integer())


@dataclass
class Written:
    """What was recorded of one row.

    Attributes:
        ops: For each side what was done to it, oldest first: insert, update, delete, move.
        ids: The numbers of the records.
        unseen: How many of them were not looked at before.
    """

    ops: dict[Side, list[str]] = field(default_factory=lambda: {side: [] for side in Side})
    ids: list[int] = field(default_factory=list)
    unseen: int = 0


_OF_PAIR = Change.pair == bindparam("pair")
_WAITING = (
    select(Change.pair, Change.key)
    .where(not_(Change.undecided))
    .order_by(Change.id)
    .limit(bindparam("limit", type_=Integer))
)
_KEYS = select(Change.key).where(_OF_PAIR).distinct().order_by(Change.key)
_OF_ROWS = select(Change.id, Change.key, Change.side, Change.op, Change.undecided).where(_OF_PAIR, in_keys(KEY, "keys"))
_FORGET = delete(Change).where(in_keys(ID, "keys"))
_FORGET_ALL = delete(Change)
_LEAVE = update(Change).where(in_keys(ID, "keys")).values(undecided=True)
_COUNT = select(func.count()).select_from(Change)
_UNSEEN = _COUNT.where(not_(Change.undecided))
_ROWS_UNDECIDED = select(Change.pair, Change.key).where(UNDECIDED).distinct().subquery()
_UNDECIDED = select(func.count()).select_from(_ROWS_UNDECIDED)
_SOME_UNDECIDED = select(Change.key).where(UNDECIDED, _OF_PAIR).limit(1)
_UNDECIDED_AMONG = select(Change.key).where(UNDECIDED, _OF_PAIR, in_keys(KEY, "keys"))


def waiting(uow: Transaction, limit: int) -> tuple[dict[str, list[Any]], int]:
    """Keys, by pair, of the oldest records that nobody has looked at, and the number of these records."""
    found = uow._rows(_WAITING, {"limit": limit})
    keys: dict[str, dict[Any, None]] = {}
    for pair, key in found:
        keys.setdefault(pair, {})[key] = None
    return {pair: list(of_pair) for pair, of_pair in keys.items()}, len(found)


def keys_of(uow: Transaction, pair: Move) -> Iterator[Any]:
    """Keys of the rows of a pair that have records."""
    return (key for (key,) in uow._rows(_KEYS, {"pair": pair.name}))


def of_rows(uow: Transaction, pair: Move, keys: Iterable[Any]) -> dict[Any, Written]:
    """What was recorded of some rows; those without a record are left out."""
    rows = uow._rows(_OF_ROWS, {"pair": pair.name, "keys": json.dumps(list(keys))})
    found: dict[Any, Written] = {}
    for number, key, side, op, looked_at in sorted(rows, key=itemgetter(0)):  # in SQL an order is a reason to walk
        written = found.setdefault(key, Written())
        written.ops[Side(side)].append(op)
        written.ids.append(number)
        written.unseen += not looked_at
    return found


@cache
def _of_unnamed(pair: Move) -> Select[int, str, str, bool]:
    named = usable(column("key", pair.key.type))
    return select(Change.id, Change.side, Change.op, Change.undecided).where(_OF_PAIR, not_(named))


def of_unnamed_rows(uow: Transaction, pair: Move) -> Written:
    """What was recorded of rows of a pair that cannot be named by their key, all of them together."""
    found = Written()
    for number, side, op, looked_at in uow._rows(_of_unnamed(pair), {"pair": pair.name}):
        found.ops[Side(side)].append(op)
        found.ids.append(number)
        found.unseen += not looked_at
    return found


def forget(uow: Transaction, settled: Iterable[Written]) -> int:
    """Forget the records of rows that are settled: those that were read, not what was recorded since."""
    return _on_records(uow, _FORGET, settled)


def forget_all(uow: Transaction) -> None:
    """Forget every record: there is no side to settle it with any more, or not yet."""
    uow._execute(_FORGET_ALL)


def leave(uow: Transaction, open_: Iterable[Written]) -> None:
    """Leave records for a choice that nobody has made yet."""
    _on_records(uow, _LEAVE, open_)


def _on_records(uow: Transaction, statement: Delete | Update, written: Iterable[Written]) -> int:
    # By their numbers: an earlier one may be committed just now, and nobody has looked at it.
    ids = [number for each in written for number in each.ids]
    return uow._execute(statement, {"keys": json.dumps(ids)}).rowcount if ids else 0


def count(uow: Transaction, *, unseen: bool = False) -> int:
    """How many writes are recorded, or how many of them nobody has looked at."""
    return int(uow._rows(_UNSEEN if unseen else _COUNT)[0][0])


def undecided(uow: Transaction) -> int:
    """How many rows wait for a choice."""
    return int(uow._rows(_UNDECIDED)[0][0])


def some_undecided(uow: Transaction, pair: Move) -> bool:
    """Whether rows of a pair wait for a choice."""
    return bool(uow._rows(_SOME_UNDECIDED, {"pair": pair.name}))


def undecided_among(uow: Transaction, pair: Move, keys: Iterable[Any]) -> set[Any]:
    """Those of some rows that wait for a choice."""
    return {key for (key,) in uow._rows(_UNDECIDED_AMONG, {"pair": pair.name, "keys": json.dumps(list(keys))})}
