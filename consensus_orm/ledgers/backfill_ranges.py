"""The ranges of keys that workers of a backfill share, in any number of processes and hosts.

A worker cuts a range behind the last one, and each range is then carried in one transaction and compared in another. A
transaction claims its range by the lock of its row, so the range of a worker that is killed is free at once, and stands
where its last commit has left it. The checkpoint of the pair moves behind the first ranges once they are done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import BigInteger, bindparam, cast, delete, extract, func, select, update
from sqlalchemy.dialects.postgresql import insert

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import backfill_progress
from consensus_orm.ledgers.backfill_progress import BackfillProgress
from consensus_orm.ledgers.binding import Key, bound, stored
from consensus_orm.models.control import BackfillRange

__all__ = ["ClaimedRange", "RangeState", "claim", "cut", "done_rows", "fold", "frontier", "some_undone", "turn"]


class RangeState(StrEnum):
    """How far a range has come."""

    OPEN = "open"
    CARRIED = "carried"
    DONE = "done"


@dataclass(frozen=True)
class ClaimedRange:
    """A range that this transaction has claimed: its number, its first and last key, and how many rows it has."""

    number: int
    first: Key
    last: Key
    rows: int


_NOW = cast(extract("epoch", func.clock_timestamp()) * 1000, BigInteger)
"""The clock of the server, which all workers share; in ms."""

_OF_PAIR = BackfillRange.pair == bindparam("pair")
_IS_DONE = BackfillRange.state == RangeState.DONE
_COLUMNS = (BackfillRange.number, BackfillRange.first_key, BackfillRange.last_key, BackfillRange.rows)
_CLAIM = (
    select(*_COLUMNS)
    .where(_OF_PAIR, BackfillRange.state == bindparam("state"), BackfillRange.begins_at <= _NOW)
    .order_by(BackfillRange.number)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_TURN = update(BackfillRange).where(_OF_PAIR, BackfillRange.number == bindparam("of")).values(state=bindparam("to"))
_NEWEST = (
    select(BackfillRange.number, BackfillRange.last_key, BackfillRange.begins_at, BackfillRange.rows)
    .where(_OF_PAIR)
    .order_by(BackfillRange.number.desc())
    .limit(1)
)
_SOME_UNDONE = select(BackfillRange.number).where(_OF_PAIR, ~_IS_DONE).limit(1)
_SOME_OPEN = _SOME_UNDONE.where(BackfillRange.state == RangeState.OPEN)
_CUT = insert(BackfillRange).values(
    **bound("pair", "number", "first_key", "last_key", "rows"),
    state=RangeState.OPEN,
    begins_at=func.greatest(_NOW, bindparam("at", type_=BigInteger)),
)
_FIRST_UNDONE = select(func.min(BackfillRange.number)).where(_OF_PAIR, ~_IS_DONE).scalar_subquery()
_LAST = select(func.max(BackfillRange.number)).where(_OF_PAIR).scalar_subquery()
_FOLD = (
    delete(BackfillRange)
    # The newest stays: it says where the next one begins, and when a throttle lets it.
    .where(_OF_PAIR, BackfillRange.number < func.least(func.coalesce(_FIRST_UNDONE, _LAST), _LAST))
    .returning(*_COLUMNS)
)
_DONE_ROWS = select(func.coalesce(func.sum(BackfillRange.rows), 0)).where(_OF_PAIR, _IS_DONE)


def claim(uow: Transaction, pair: Move, state: RangeState) -> ClaimedRange | None:
    """Claim the first range in a state that no other transaction has claimed, until this one ends.

    Returns:
        The range; None where there is none, or a throttle does not let it begin yet.
    """
    rows = uow._rows(_CLAIM, {"pair": pair.name, "state": state.value})
    return ClaimedRange(*rows[0]) if rows else None


def turn(uow: Transaction, pair: Move, of: ClaimedRange, to: RangeState) -> None:
    """Move a claimed range to another state."""
    uow._execute(_TURN, {"pair": pair.name, "of": of.number, "to": to.value})


def fold(uow: Transaction, pair: Move, progress: BackfillProgress) -> BackfillProgress:
    """Move the checkpoint behind the first ranges that are done, and delete them; the caller has locked it."""
    done = sorted((ClaimedRange(*row) for row in uow._execute(_FOLD, {"pair": pair.name}).fetchall()), key=_number)
    if not done:
        return progress
    moved = BackfillProgress(done[-1].last, progress.rows + sum(of.rows for of in done), finished=False)
    backfill_progress.move(uow, pair, moved.last_key, moved.rows, finished=False)
    return moved


def _number(of: ClaimedRange) -> int:
    return of.number


def frontier(uow: Transaction, pair: Move, progress: BackfillProgress) -> Key:
    """The key behind which the next range is cut."""
    rows = uow._rows(_NEWEST, {"pair": pair.name})
    return rows[0][1] if rows else progress.last_key


def cut(uow: Transaction, pair: Move, first: Key, last: Key, rows: int, throttle: int | None) -> None:
    """Add a range behind the last one; the caller has locked the checkpoint.

    Args:
        uow: The transaction.
        pair: The pair.
        first: The first key.
        last: The last key.
        rows: How many rows it has.
        throttle: How many rows a second all workers may carry together: the range begins when those of the one before
            may be through.
    """
    newest = uow._rows(_NEWEST, {"pair": pair.name})
    number, _, begins_at, before = newest[0] if newest else (0, None, 0, 0)
    keys = {"first_key": stored(uow, first), "last_key": stored(uow, last)}
    at = begins_at + (1000 * before // throttle if throttle else 0)
    uow._execute(_CUT, {"pair": pair.name, "number": number + 1, "rows": rows, "at": at, **keys})


def some_undone(uow: Transaction, pair: Move, *, still_open: bool = False) -> bool:
    """Whether a range is not done yet, or is still open."""
    return bool(uow._rows(_SOME_OPEN if still_open else _SOME_UNDONE, {"pair": pair.name}))


def done_rows(uow: Transaction, pair: Move) -> int:
    """How many rows of a pair are in ranges that are done, behind the checkpoint."""
    return int(uow._rows(_DONE_ROWS, {"pair": pair.name})[0][0])
