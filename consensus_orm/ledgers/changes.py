"""The record of writes that only one side knows of, as the triggers made it, in the order of the writes.

While both sides are written these are writes of other programs; in phase NORMALIZED they are all writes, for the way
back. A record stays until its row is settled. Where that needs a choice it is marked as undecided, and not looked at
again until the choice is made or the row is written once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Integer,
    Select,
    Update,
    bindparam,
    column,
    delete,
    exists,
    func,
    not_,
    select,
    update,
)

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.keys import usable
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.row_keys import RowKey, in_columns
from consensus_orm.ledgers.binding import KEY, Key, among, as_written, keys_of
from consensus_orm.models.base import Told
from consensus_orm.models.control import UNDECIDED, Change
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import in_keys, in_range

__all__ = [
    "Written",
    "count",
    "deleted_among",
    "deleted_between",
    "forget",
    "forget_all",
    "leave",
    "not_recorded",
    "of_rows",
    "of_unnamed_rows",
    "recorded_among",
    "recorded_keys",
    "some_undecided",
    "some_waiting",
    "undecided",
    "undecided_among",
    "waiting",
    "written_since",
]

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

    def add(self, number: int, side: str, op: str, looked_at: bool) -> None:
        """Add one record."""
        with as_written(Change.__tablename__):
            self.ops[Side(side)].append(op)
        self.ids.append(number)
        self.unseen += not looked_at


_OF_PAIR = Change.pair == bindparam("pair")
_OF_KEYS = (_OF_PAIR, in_keys(KEY))
_WAITING = (
    select(Change.pair, Change.key)
    .where(not_(Change.undecided))
    .order_by(Change.id)
    .limit(bindparam("limit", type_=Integer))
)
_KEYS = select(Change.key).where(_OF_PAIR).distinct()
_AMONG = select(Change.key).where(*_OF_KEYS)
_OF_ROWS = select(Change.key, Change.id, Change.side, Change.op, Change.undecided).where(*_OF_KEYS)
_FORGET = delete(Change).where(in_keys(ID))
_FORGET_ALL = delete(Change)
_LEAVE = update(Change).where(in_keys(ID)).values(undecided=True)
_COUNT = select(func.count()).select_from(Change)
_UNSEEN = _COUNT.where(not_(Change.undecided))
_ROWS_UNDECIDED = select(Change.pair, Change.key).where(UNDECIDED).distinct().subquery()
_UNDECIDED = select(func.count()).select_from(_ROWS_UNDECIDED)
_SOME_UNDECIDED = select(Change.key).where(UNDECIDED, _OF_PAIR).limit(1)
_UNDECIDED_AMONG = select(Change.key).where(UNDECIDED, *_OF_KEYS)

_LATER = Change.__table__.alias().c
_DELETED = (
    select(Change.key)
    .where(_OF_PAIR, Change.side == bindparam("side"), Change.op == "delete")
    .where(
        ~exists()
        .where(_LATER.pair == Change.pair, _LATER.side == Change.side, _LATER.key == Change.key)
        .where(_LATER.id > Change.id, _LATER.op != "delete")
    )
    .distinct()
)
_DELETED_AMONG = _DELETED.where(in_keys(KEY))


@contextlib.contextmanager
def not_recorded(uow: Transaction) -> Iterator[None]:
    """Drop what the triggers record of the writes in this block: they are writes of our own, under the lock."""
    mark = uow.catalog.last_change(uow)
    yield  # after an error the transaction is rolled back, and the records with it
    uow.catalog.forget_changes(uow, after=mark)


def waiting(uow: Transaction, limit: int) -> tuple[dict[str, list[Key]], int]:
    """Keys, by pair, of the oldest records that were not looked at, and the number of these records."""
    found = uow._rows(_WAITING, {"limit": limit})
    keys: dict[str, dict[Key, None]] = {}
    for pair, key in found:
        keys.setdefault(pair, {})[key] = None
    return {pair: list(of_pair) for pair, of_pair in keys.items()}, len(found)


def written_since(uow: Transaction, mark: int) -> dict[str, dict[Key, Written]]:
    """What the session of a unit of work has written, by the name of the move and the key of the row.

    Args:
        uow: The unit of work.
        mark: `Catalog.session_mark` before the writes.
    """
    found: dict[str, dict[Key, Written]] = {}
    for pair, key, number, side, op in uow.catalog.written_since(uow, mark):
        found.setdefault(pair, {}).setdefault(key, Written()).add(number, side, op, looked_at=False)
    return found


def some_waiting(uow: Transaction) -> bool:
    """Whether there are records that were not looked at."""
    return bool(uow._rows(_WAITING, {"limit": 1}))


def recorded_keys(uow: Transaction, pair: Move) -> list[Key]:
    """Keys of the rows of a pair that have records."""
    return keys_of(uow, _KEYS, {"pair": pair.name})


def recorded_among(uow: Transaction, pair: Move, keys: Iterable[Key]) -> set[Key]:
    """Those of some rows that have records."""
    return set(keys_of(uow, _AMONG, {"pair": pair.name, **among(keys)}))


def of_rows(uow: Transaction, pair: Move, keys: Iterable[Key]) -> dict[Key, Written]:
    """What was recorded of some rows; those without a record are left out."""
    rows = uow._rows(_OF_ROWS, {"pair": pair.name, **among(keys)})
    found: dict[Key, Written] = {}
    # Sorted here: an ORDER BY would make the database walk the index of ids.
    for key, *record in sorted(rows, key=itemgetter(1)):
        found.setdefault(key, Written()).add(*record)
    return found


def _in_ledger(pair: Move) -> ColumnElement[Any]:
    """The key of a pair as a ledger has it, to be compared and put in order like that of a row."""
    given = Told(KEY, pair.key.type)
    return RowKey(*in_columns(given, pair.key)) if isinstance(pair.key, RowKey) else given


@cache
def _deleted_between(pair: Move) -> Select[Any]:
    return _DELETED.where(in_range(_in_ledger(pair)))


@cache
def _of_unnamed(pair: Move) -> Select[int, str, str, bool]:
    named = usable(_in_ledger(pair))
    return select(Change.id, Change.side, Change.op, Change.undecided).where(_OF_PAIR, not_(named))


def of_unnamed_rows(uow: Transaction, pair: Move) -> Written:
    """What was recorded of rows of a pair that cannot be named by their key, all of them together."""
    found = Written()
    for record in uow._rows(_of_unnamed(pair), {"pair": pair.name}):
        found.add(*record)
    return found


def deleted_among(uow: Transaction, pair: Move, side: Side, keys: Iterable[Key]) -> list[Key]:
    """Those of some rows of a side that another program has deleted last."""
    return keys_of(uow, _DELETED_AMONG, {"pair": pair.name, "side": side.value, **among(keys)})


def deleted_between(uow: Transaction, pair: Move, side: Side, first: Key, last: Key) -> list[Key]:
    """Keys of the rows of a side, in a range of keys, that another program has deleted last."""
    return keys_of(uow, _deleted_between(pair), {"pair": pair.name, "side": side.value, "_first": first, "_last": last})


def forget(uow: Transaction, settled: Iterable[Written]) -> int:
    """Forget the records of rows that are settled, as they were read; what was recorded since stays."""
    return _on_records(uow, _FORGET, settled)


def forget_all(uow: Transaction) -> None:
    """Forget every record: the side that it was to be settled with is gone, or does not exist yet."""
    uow._execute(_FORGET_ALL)


def leave(uow: Transaction, undecided: Iterable[Written]) -> None:
    """Mark records as waiting for a choice."""
    _on_records(uow, _LEAVE, undecided)


def _on_records(uow: Transaction, statement: Delete | Update, written: Iterable[Written]) -> int:
    # By number, not by key: another record of the row may have been committed since these were read.
    ids = [number for each in written for number in each.ids]
    return uow._execute(statement, among(ids)).rowcount if ids else 0


def count(uow: Transaction, *, unseen: bool = False) -> int:
    """How many writes are recorded, or how many of them were not looked at."""
    return int(uow._rows(_UNSEEN if unseen else _COUNT)[0][0])


def undecided(uow: Transaction) -> int:
    """How many rows wait for a choice."""
    return int(uow._rows(_UNDECIDED)[0][0])


def some_undecided(uow: Transaction, pair: Move) -> bool:
    """Whether rows of a pair wait for a choice."""
    return bool(uow._rows(_SOME_UNDECIDED, {"pair": pair.name}))


def undecided_among(uow: Transaction, pair: Move, keys: Iterable[Key]) -> set[Key]:
    """Those of some rows that wait for a choice."""
    return set(keys_of(uow, _UNDECIDED_AMONG, {"pair": pair.name, **among(keys)}))
