"""The progress of the backfill: how far it has come with each pair, committed together with the rows it carried."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers.binding import Key, bound, milliseconds, stored
from consensus_orm.models.control import BackfillCheckpoint, BackfillRange

__all__ = ["NOT_BEGUN", "BackfillProgress", "forget", "forget_ranges", "hold", "move", "of"]


@dataclass(frozen=True)
class BackfillProgress:
    """How far the backfill of a pair has come.

    Attributes:
        last_key: The key of the last row that was carried; None before the first.
        rows: How many rows were carried.
        finished: Whether all are.
    """

    last_key: Key
    rows: int
    finished: bool


NOT_BEGUN = BackfillProgress(None, 0, finished=False)

_OF = select(BackfillCheckpoint.last_key, BackfillCheckpoint.rows, BackfillCheckpoint.finished).where(
    BackfillCheckpoint.pair == bindparam("pair")
)
_BEGIN = insert(BackfillCheckpoint).values(**bound("pair", "last_key", "rows", "finished", "started_at", "updated_at"))
_MOVE = _BEGIN.on_conflict_do_update(  # SQLite has the same syntax
    index_elements=["pair"],
    set_={name: _BEGIN.excluded[name] for name in ("last_key", "rows", "finished", "updated_at")},
)
_BEGIN_ONCE = _BEGIN.on_conflict_do_nothing()
_HOLD = _OF.with_for_update()
_FORGET = delete(BackfillCheckpoint)
_FORGET_RANGES = delete(BackfillRange)
_FORGET_RANGES_OF = _FORGET_RANGES.where(BackfillRange.pair == bindparam("pair"))


def of(uow: Transaction, pair: Move) -> BackfillProgress:
    """How far the backfill of a pair has come."""
    rows = uow._rows(_OF, {"pair": pair.name})
    return BackfillProgress(rows[0][0], int(rows[0][1]), bool(rows[0][2])) if rows else NOT_BEGUN


def hold(uow: Transaction, pair: Move) -> BackfillProgress:
    """How far the backfill of a pair has come, locked until this transaction ends."""
    at = milliseconds(uow)
    begun = {"pair": pair.name, "last_key": None, "rows": 0, "finished": False, "started_at": at, "updated_at": at}
    uow._execute(_BEGIN_ONCE, begun)
    ((last_key, rows, finished),) = uow._rows(_HOLD, {"pair": pair.name})
    return BackfillProgress(last_key, int(rows), bool(finished))


def move(uow: Transaction, pair: Move, last_key: Key, rows: int, *, finished: bool) -> None:
    """Move the checkpoint of a pair behind `last_key`, with so many rows carried, under the write lock."""
    at = milliseconds(uow)
    facts = {"pair": pair.name, "last_key": stored(uow, last_key), "rows": rows, "finished": finished}
    uow._execute(_MOVE, {**facts, "started_at": at, "updated_at": at})
    if finished:
        uow._execute(_FORGET_RANGES_OF, {"pair": pair.name})


def forget(uow: Transaction) -> None:
    """Have the backfill of every pair start from the beginning."""
    uow._execute(_FORGET)
    forget_ranges(uow)


def forget_ranges(uow: Transaction) -> None:
    """Have the backfill go on from the checkpoints alone, whatever ranges workers have cut behind them."""
    uow._execute(_FORGET_RANGES)
