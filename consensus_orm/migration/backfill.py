"""The backfill: rows that were there before the dual write are carried, in chunks, beside live writers.

Each chunk is one short transaction of set-based SQL by key, and the checkpoint behind the one before is
committed with it. Whatever kills the backfill, the next one goes on behind the last chunk that was carried and
compared. Running it twice changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, bindparam, select

from consensus_orm import errors
from consensus_orm.databases.sqlite import checkpoints
from consensus_orm.databases.sqlite.checkpoints import Checkpoints
from consensus_orm.declaration.move import Move
from consensus_orm.events import BackfillEvent
from consensus_orm.ledgers import backfill_progress, mismatches
from consensus_orm.migration import keyless, shapes
from consensus_orm.migration.carrying import (
    CHANGES_IN_ONE_TRANSACTION,
    DELETED_IN_RANGE,
    Drained,
    carry,
    drain,
    follow_deletes,
    noted,
    reject_unequal,
)
from consensus_orm.migration.pace import Pace, catch_up
from consensus_orm.migration.transactions import Transactions
from consensus_orm.models.control import Reject
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Progress, Watch
from consensus_orm.statements.pairs import Statements
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["BackfillReport", "backfill", "is_finished", "require_dual_write"]


@dataclass(frozen=True)
class BackfillReport:
    """What a backfill did: rows looked at in this run, rejects it added, changes it adopted, seconds."""

    rows: int
    rejects: int
    adopted: int
    seconds: float


def backfill(
    reading: Transactions,
    writing: Transactions,
    progress: Watch = None,
) -> BackfillReport:
    """Carry every legacy row that the normalized side does not have.

    Args:
        reading: Opens a read-only unit of work.
        writing: Opens a writing one.
        progress: Called after each chunk.

    Returns:
        What was done.

    Raises:
        WrongPhaseError: Both sides are not being written, so rows would be missed.
    """
    started, rows, rejects, adopted = time.monotonic(), 0, 0, 0
    engine, statements, second_thread = writing.run(_begin)
    with checkpoints.beside(engine) as log, second_thread as comparing:
        for pair in statements.mapping:
            _print_statements(statements, pair)
            chunk = _Chunks(reading, writing, log, comparing, pair, progress)
            while writing.repeat(chunk.next):
                pass
            rows, rejects, adopted = rows + chunk.rows, rejects + chunk.rejects, adopted + chunk.adopted
            rejects += _reject_keyless(reading, writing, pair)
    adopted += catch_up(writing, _drain_once)
    return BackfillReport(rows, rejects, adopted, time.monotonic() - started)


def _begin(uow: UnitOfWork) -> tuple[Engine, Statements, AbstractContextManager[ThreadPoolExecutor | None]]:
    require_dual_write(uow.phase)
    return uow.engine, uow.statements, _second_thread(uow)


def _second_thread(uow: UnitOfWork) -> AbstractContextManager[ThreadPoolExecutor | None]:
    """A thread that compares, where it has a connection of its own and does not keep the work from committing."""
    several = uow.engine.pool.size() > 1  # type: ignore[attr-defined]
    if several and not uow.catalog.keeps_writers_waiting(uow):
        return ThreadPoolExecutor(1, "consensus_orm-backfill")
    return contextlib.nullcontext()


def _print_statements(statements: Statements, pair: Move) -> None:
    """Have the statements of a chunk ready before its lock is taken: the first one held it for 20 to 50 ms."""
    sql, parent = statements[pair], statements.of_parent(pair)
    _ = sql.backfill, sql.carry_new, sql.next_chunk(Side.LEGACY), sql.unequal_in_range
    if parent is not None and parent.refresh:
        _ = parent.refresh_in_range(sql.pair)


def _reject_keyless(reading: Transactions, writing: Transactions, pair: Move) -> int:
    """Reject the rows that lie in no range; all rows are looked at for them, which nobody waits for."""
    with reading() as uow:
        require_dual_write(uow.phase)
        if not keyless.count(uow, pair, Side.LEGACY):
            return 0

    def reject(uow: UnitOfWork) -> int:
        require_dual_write(uow.phase)
        return keyless.reject(uow, pair, Side.LEGACY)

    return writing.run(reject)


def _drain_once(uow: UnitOfWork, limit: int) -> Drained:
    require_dual_write(uow.phase)
    shapes.require(uow)
    return drain(uow, limit=limit)


def require_dual_write(phase: Phase) -> None:
    """Refuse a phase in which rows would be missed, or have nowhere to go."""
    if not phase.compares:
        hint = "run: consensus-orm advance dual_write" if phase < Phase.DUAL_WRITE else "there is nothing to do"
        raise errors.WrongPhaseError(
            f"the backfill runs while both sides are written, and the phase is {phase.name}",
            hint=hint,
            phase=phase,
        )


def is_finished(uow: UnitOfWork, pair: Move) -> bool:
    """Whether the backfill of a pair has come to its end."""
    progress = backfill_progress.of(uow, pair)
    return progress is not None and progress.finished


@dataclass(frozen=True)
class _Chunk:
    """Rows that were carried: those between two keys, after the checkpoint `after`."""

    after: Any
    first: Any
    last: Any
    rows: int
    unequal: Future[list[Any]] = field(default_factory=Future)
    """Keys of the rows that did not come out equal, once it is compared."""


class _Chunks:
    """The chunks of one pair, as many rows in each as fit the time a writer may be kept waiting.

    Under the lock a chunk is carried and nothing else. It is compared by another thread while the next one is
    carried; what came out unequal is settled under the lock after that. The checkpoint moves behind a chunk only
    there. So whatever was not compared to its end is carried, and compared, once more. Where others do write,
    chunks are half as long, pauses longer, and compared in them.
    """

    def __init__(
        self,
        reading: Transactions,
        writing: Transactions,
        log: Checkpoints,
        comparing: ThreadPoolExecutor | None,
        pair: Move,
        progress: Watch,
    ) -> None:
        self.reading = reading
        self.writing = writing
        self.log = log
        self.comparing = comparing
        self.pair = pair
        self.progress = progress
        self.rows = self.rejects = self.adopted = 0
        self.pace = Pace()
        self.started = time.monotonic()
        self.total: int | None = None
        self.until: Any = None
        self.unsettled: list[_Chunk] = []
        self.whole = True
        self.counted = (0, 0, 0)
        self.analyzed_until = 0

    def next(self) -> bool:
        """Carry one more chunk, and settle one that was compared meanwhile; False where there is none.

        After an error it goes on from the checkpoint, as a backfill does that was interrupted: rows count once their
        checkpoint is committed.
        """
        if not self.whole:
            self.unsettled = []
            self.rows, self.rejects, self.adopted = self.counted
        self.whole = False
        more = self._next()
        self.whole, self.counted = True, (self.rows, self.rejects, self.adopted)
        return more

    def _next(self) -> bool:
        with self.writing() as uow:
            require_dual_write(uow.phase)
            shapes.require(uow)
            self.pace.begin(uow)
            self.log.relieve(uow, in_company=self.pace.in_company)
            # First what others wrote: a row that one of them deleted would look like one to carry.
            drained = drain(uow)
            self.adopted += drained.carried
            many = drained.looked_at >= CHANGES_IN_ONE_TRANSACTION
            chunk, done = (None, 0) if many else self._carry(uow)
        self.counted = (self.rows, self.rejects, self.adopted)
        self.pace.end()
        if many:
            self.pace.rest()
            return True
        if chunk is not None:
            uow._tell(BackfillEvent(self.pair.name, chunk.rows))
            self.unsettled.append(chunk)
        self.log.after_commit()
        self._compare(chunk)
        self.log.before_next()
        self._tell(done)
        self.pace.rest()
        return bool(self.unsettled)

    def _carry(self, uow: UnitOfWork) -> tuple[_Chunk | None, int]:
        """Settle what was compared, carry the next chunk and move the checkpoint, in one transaction.

        Returns:
            The chunk, and how many rows are carried by now.
        """
        progress = backfill_progress.of(uow, self.pair) or backfill_progress.NOT_BEGUN
        if progress.finished:
            self.unsettled = []
            return None, progress.rows
        after, done = self._settled(uow, progress.last_key, progress.rows)
        start = after
        for chunk in self.unsettled:
            start = chunk.last if chunk.after == start else start
        bounds = uow.statements[self.pair].next_chunk(Side.LEGACY)[0 if start is None else 1]
        first, last, rows = uow._rows(bounds, {"_after": start, "_rows": self.pace.size})[0]
        found = None
        if rows and not self._is_newer(uow, first):
            found = _Chunk(start, first, last, rows)
            carry_range(uow, self.pair, first, last)
        pending = sum(chunk.rows for chunk in (*self.unsettled, found) if chunk is not None)
        if found is not None and done + pending > self.analyzed_until:
            uow.catalog.analyze(uow, self.pair)
            self.analyzed_until = 10 * (done + pending)
        finished = found is None and not self.unsettled
        backfill_progress.move(uow, self.pair, after, done, finished=finished)
        return found, done + pending

    def _settled(self, uow: UnitOfWork, after: Any, done: int) -> tuple[Any, int]:
        """Settle the chunks that were compared; the checkpoint behind them, and the rows before it."""
        for chunk in [chunk for chunk in self.unsettled if chunk.unequal.done()]:
            self.unsettled.remove(chunk)
            self.rejects += _settle(uow, self.pair, chunk.unequal.result())
            self.rows += chunk.rows
            if chunk.after == after:  # else another backfill has moved the checkpoint meanwhile
                after, done = chunk.last, done + chunk.rows
        return after, done

    def _is_newer(self, uow: UnitOfWork, first: Any) -> bool:
        """Whether a chunk is of rows that were written since this run began: on both sides, or noted.

        Else writers who are faster than the backfill would keep it from its end.
        """
        if self.until is None:
            self.until = uow._rows(uow.statements[self.pair].last_key(Side.LEGACY))[0][0]
        # The database compares: its order of texts is that of the ranges, and not always that of Python.
        return bool(uow._rows("SELECT :first > :until", {"first": first, "until": self.until})[0][0])

    def _compare(self, chunk: _Chunk | None) -> None:
        """Have a chunk compared, and wait for the one before it; in company, or at the end, for all of them."""
        if chunk is not None and self.comparing is not None:
            self.comparing.submit(self._find_unequal, chunk)
        elif chunk is not None:
            self._find_unequal(chunk)
        beside = chunk is not None and not self.pace.in_company
        for waited_for in self.unsettled[:-1] if beside else self.unsettled:
            waited_for.unequal.result()

    def _find_unequal(self, chunk: _Chunk) -> None:
        """Compare a chunk as the database stored it; nobody waits for this."""
        try:
            with self.reading() as uow:
                require_dual_write(uow.phase)
                uow.catalog.begin_scan(uow)
                sql = uow.statements[self.pair]
                bounds = {"_first": chunk.first, "_last": chunk.last}
                found = [key for (key,) in uow._rows(sql.unequal_in_range, bounds)]
                if self.progress is not None and self.total is None:  # counted once: it costs a look at every row
                    self.total = uow._rows(sql.count(Side.LEGACY, ()))[0][0]
        except BaseException as error:
            chunk.unequal.set_exception(error)
        else:
            chunk.unequal.set_result(found)

    def _tell(self, done: int) -> None:
        if self.progress is not None and self.total is not None:
            rows = self.rows + sum(chunk.rows for chunk in self.unsettled)
            rate = rows / max(time.monotonic() - self.started, 1e-6)
            self.progress(Progress(self.pair.name, min(done, self.total), self.total, rate))


def carry_range(uow: UnitOfWork, pair: Move, first: Any, last: Any) -> None:
    """Carry the legacy rows of a range of keys that have no normalized row."""
    parameters = {"_first": first, "_last": last}
    sql, parent = uow.statements[pair], uow.statements.of_parent(pair)
    mark = uow.catalog.last_change(uow)
    if parent is not None and sql.carry_new is not None:
        ((doubtful,),) = uow._rows(sql.carry_new, parameters)
        for statement in () if doubtful is None else parent.settle:
            uow._execute(statement, {"_keys": doubtful})
    else:
        for statement in (*sql.backfill, *([parent.refresh_in_range(sql.pair)] if parent and parent.refresh else [])):
            uow._execute(statement, parameters)
    follow_deletes(uow, pair, Side.NORMALIZED, DELETED_IN_RANGE, parameters)
    # What a trigger of somebody else did to a row meanwhile is no write to adopt: the legacy side decides.
    uow.catalog.forget_changes(uow, after=mark)


def _settle(uow: UnitOfWork, pair: Move, doubtful: list[Any]) -> int:
    """Carry rows that did not come out equal once more, whatever stands there, and reject what still does not.

    Returns:
        How many became rejects.
    """
    if not doubtful:
        return 0
    unequal = [key for (key,) in uow._rows(uow.statements[pair].unequal_in_keys, {"_keys": json.dumps(doubtful)})]
    known = set_aside(uow, pair, Side.LEGACY)
    known |= noted(uow, pair, unequal)  # it is carried with what its writer meant
    stale = [key for key in unequal if key not in known]
    carry(uow, pair, stale, Side.NORMALIZED, "the backfill carried the legacy row")
    return reject_unequal(uow, pair, stale, Side.LEGACY).new


_REJECTED = select(Reject.key).where(
    Reject.pair == bindparam("pair"),
    Reject.table_name == bindparam("table_name"),
    Reject.state != "resolved",
    Reject.key.is_not(None),
)


def set_aside(uow: UnitOfWork, pair: Move, side: Side) -> set[Any]:
    """Keys of the rejects, open or accepted, that stand on one side alone: nothing to compare them with.

    Args:
        uow: Sees both sides.
        pair: The pair of the rows.
        side: The side that has them.
    """
    table = pair.legacy_table if side is Side.LEGACY else pair.table
    keys = {key for (key,) in uow._rows(_REJECTED, {"pair": pair.name, "table_name": table.name})}
    return {key for key in keys if mismatches.differences(uow, pair, key) == [(None, f"missing_{side.other}")]}
