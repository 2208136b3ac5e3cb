"""Writes that only one side knows of, as the triggers recorded them, in the order in which they were made.

While both sides are written these are writes of other programs; in phase NORMALIZED they are all writes, for the way
back. A record stays until its row was settled. Where that needs a choice it is marked as undecided, and not looked at
again before the choice is made or the row is written once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import sqlalchemy

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.keys import usable
from consensus_orm.declaration.pairs import Pair
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import in_keys

__all__ = [
    "Written",
    "count",
    "forget",
    "keys_of",
    "leave",
    "of_rows",
    "of_unnamed_rows",
    "some_undecided",
    "undecided",
    "undecided_among",
    "waiting",
]

KEY = sqlalchemy.column("key", sqlalchemy.Integer())
ID = sqlalchemy.column("id", sqlalchemy.Integer())


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


def waiting(uow: Transaction, limit: int) -> tuple[dict[str, list[Any]], int]:
    """Keys, by pair, of the oldest records that nobody has looked at, and the number of these records."""
    sql = "SELECT pair, key FROM consensus_orm_changes WHERE NOT undecided ORDER BY id LIMIT :limit"
    found = uow._rows(sql, {"limit": limit})
    keys: dict[str, dict[Any, None]] = {}
    for pair, key in found:
        keys.setdefault(pair, {})[key] = None
    return {pair: list(of_pair) for pair, of_pair in keys.items()}, len(found)


def keys_of(uow: Transaction, pair: Pair) -> Iterator[Any]:
    """Keys of the rows of a pair that have records."""
    sql = "SELECT DISTINCT key FROM consensus_orm_changes WHERE pair = ? ORDER BY key"
    return (key for (key,) in uow._rows(sql, (pair.name,)))


def of_rows(uow: Transaction, pair: Pair, keys: Iterable[Any]) -> dict[Any, Written]:
    """What was recorded of some rows; those without a record are left out."""
    sql = f"SELECT id, key, side, op, undecided FROM consensus_orm_changes WHERE pair = :pair AND {_among(uow, KEY)}"
    rows = uow._rows(sql, {"pair": pair.name, "keys": json.dumps(list(keys))})
    found: dict[Any, Written] = {}
    for number, key, side, op, looked_at in sorted(rows, key=itemgetter(0)):  # in SQL an order is a reason to walk
        written = found.setdefault(key, Written())
        written.ops[Side(side)].append(op)
        written.ids.append(number)
        written.unseen += not looked_at
    return found


def of_unnamed_rows(uow: Transaction, pair: Pair) -> Written:
    """What was recorded of rows of a pair that cannot be named by their key, all of them together."""
    named = usable(sqlalchemy.column("key", pair.key.type))
    where = uow.statements.rendering.render(sqlalchemy.not_(named))
    sql = f"SELECT id, side, op, undecided FROM consensus_orm_changes WHERE pair = :pair AND {where}"
    found = Written()
    for number, side, op, looked_at in uow._rows(sql, {"pair": pair.name}):
        found.ops[Side(side)].append(op)
        found.ids.append(number)
        found.unseen += not looked_at
    return found


def forget(uow: Transaction, settled: Iterable[Written]) -> int:
    """Forget the records of rows that are settled: those that were read, not what was recorded since."""
    return _on_records(uow, "DELETE FROM consensus_orm_changes", settled)


def leave(uow: Transaction, open_: Iterable[Written]) -> None:
    """Leave records for a choice that nobody has made yet."""
    _on_records(uow, "UPDATE consensus_orm_changes SET undecided = TRUE", open_)


def _on_records(uow: Transaction, sql: str, written: Iterable[Written]) -> int:
    # By their numbers: an earlier one may be committed just now, and nobody has looked at it.
    ids = [number for each in written for number in each.ids]
    return uow._execute(f"{sql} WHERE {_among(uow, ID)}", {"keys": json.dumps(ids)}).rowcount if ids else 0


def count(uow: Transaction, *, unseen: bool = False) -> int:
    """How many writes are recorded, or how many of them nobody has looked at."""
    where = " WHERE NOT undecided" if unseen else ""
    return int(uow._rows(f"SELECT count(*) FROM consensus_orm_changes{where}")[0][0])


def undecided(uow: Transaction) -> int:
    """How many rows wait for a choice."""
    sql = "SELECT count(*) FROM (SELECT DISTINCT pair, key FROM consensus_orm_changes WHERE undecided) AS open_rows"
    return int(uow._rows(sql)[0][0])


def some_undecided(uow: Transaction, pair: Pair) -> bool:
    """Whether rows of a pair wait for a choice."""
    return bool(uow._rows("SELECT 1 FROM consensus_orm_changes WHERE undecided AND pair = ? LIMIT 1", (pair.name,)))


def undecided_among(uow: Transaction, pair: Pair, keys: Iterable[Any]) -> set[Any]:
    """Those of some rows that wait for a choice."""
    sql = f"SELECT key FROM consensus_orm_changes WHERE undecided AND pair = :pair AND {_among(uow, KEY)}"
    return {key for (key,) in uow._rows(sql, {"pair": pair.name, "keys": json.dumps(list(keys))})}


def _among(uow: Transaction, column: sqlalchemy.ColumnElement[Any]) -> str:
    return uow.statements.rendering.render(in_keys(column, "keys"))
