"""The backfill: carries the rows that were there before the dual write, in chunks, while other programs write.

Each chunk is one short transaction of set-based SQL on a range of keys, and the checkpoint behind the chunk before is
committed with it. Whenever a backfill is killed, the next one goes on behind the last chunk that was carried and
compared. A second run changes nothing.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from sqlalchemy import Engine

from consensus_orm import errors
from consensus_orm.databases.sqlite import checkpoints
from consensus_orm.databases.sqlite.checkpoints import Checkpoints
from consensus_orm.declaration.move import Move
from consensus_orm.events import BackfillEvent
from consensus_orm.ledgers import backfill_progress, changes, guards, rejects, samples
from consensus_orm.ledgers.binding import Key, among, keys_of
from consensus_orm.migration import keyless
from consensus_orm.migration.carrying import carry_fitting, carry_range, reject_unequal
from consensus_orm.migration.pace import Pace, catch_up
from consensus_orm.migration.ranges import Range, next_range
from consensus_orm.migration.settling import CHANGES_IN_ONE_TRANSACTION, Drained, drain
from consensus_orm.migration.transactions import Transactions, connections
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Progress, Watch
from consensus_orm.statements.pairs import Statements
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["BackfillReport", "backfill", "require_dual_write"]


@dataclass(frozen=True)
class BackfillReport:
    """What a backfill did: rows looked at in this run, rejects it added, changes it adopted, seconds."""

    rows: int
    rejects: int
    adopted: int
    seconds: float


def backfill(reading: Transactions, writing: Transactions, progress: Watch = None) -> BackfillReport:
    """Carry every legacy row that the normalized side does not have; see `Migration.backfill`."""
    started, rows, new_rejects, adopted = time.monotonic(), 0, 0, 0
    engine, statements, second_thread = writing.run(_begin)
    with checkpoints.beside(engine) as log, second_thread as comparing:
        for pair in statements.moves:
            _print_statements(statements, pair)
            chunks = _Chunks(reading, writing, log, comparing, pair, progress)
            while writing.repeat(chunks.next):
                pass
            rows, adopted = rows + chunks.state.rows, adopted + chunks.state.adopted
            new_rejects += chunks.state.rejects + _reject_keyless(reading, writing, pair)
    adopted += catch_up(writing, _drain)
    return BackfillReport(rows, new_rejects, adopted, time.monotonic() - started)


def require_dual_write(phase: Phase) -> None:
    """Refuse a phase in which rows would be missed, or have nowhere to go."""
    if not phase.compares:
        hint = "run: consensus-orm advance dual_write" if phase < Phase.DUAL_WRITE else "there is nothing to do"
        raise errors.WrongPhaseError(
            f"the backfill runs while both sides are written, and the phase is {phase.name}",
            hint=hint,
            phase=phase,
        )


def _begin(uow: UnitOfWork) -> tuple[Engine, Statements, AbstractContextManager[ThreadPoolExecutor | None]]:
    require_dual_write(uow.phase)
    return uow.engine, uow.statements, _second_thread(uow)


def _second_thread(uow: UnitOfWork) -> AbstractContextManager[ThreadPoolExecutor | None]:
    """A thread that compares, where it has a connection of its own and does not keep the work from committing."""
    if connections(uow.engine) > 1 and not uow.catalog.keeps_writers_waiting(uow):
        return ThreadPoolExecutor(1, "consensus_orm-backfill")
    return contextlib.nullcontext()


def _print_statements(statements: Statements, pair: Move) -> None:
    """Compile the statements of a chunk before its lock is taken: the first chunk held it for 20 to 50 ms more."""
    sql = statements[pair]
    _ = sql.backfill, sql.carry_new, sql.next_chunk(Side.LEGACY), sql.unequal_in_range
    for parent in statements.of_parents(pair):
        _ = parent.refresh and parent.refresh_in_range(sql.pair)


def _reject_keyless(reading: Transactions, writing: Transactions, pair: Move) -> int:
    """Reject the rows that no range contains; the scan that finds them takes no lock."""

    def count(uow: UnitOfWork) -> int:
        require_dual_write(uow.phase)
        return keyless.count(uow, pair, Side.LEGACY)

    def reject(uow: UnitOfWork) -> int:
        require_dual_write(uow.phase)
        return keyless.reject(uow, pair, Side.LEGACY)

    return writing.run(reject) if reading.run(count) else 0


def _drain(uow: UnitOfWork, limit: int) -> Drained:
    require_dual_write(uow.phase)
    if not changes.some_waiting(uow):
        return Drained(0, 0)
    guards.require(uow)
    return drain(uow, limit=limit)


# Chunks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chunk:
    """A range that was carried, behind the checkpoint `after`; `unequal` has its keys that did not come out equal."""

    after: Key
    of: Range
    unequal: Future[list[Key]] = field(default_factory=Future)


@dataclass(frozen=True)
class _State:
    """What the committed transactions of a run have done with a pair.

    Attributes:
        unsettled: Chunks that are carried; the checkpoint does not move behind one until it is compared and settled.
        rows: Rows that are settled in this run.
        rejects: Rejects that this run added.
        adopted: Changes that this run adopted.
        until: The highest key when the run began; None while that is not known.
        analyze_at: How many rows are carried when the statistics of the database are next out of date.
    """

    unsettled: tuple[_Chunk, ...] = ()
    rows: int = 0
    rejects: int = 0
    adopted: int = 0
    until: Key = None
    analyze_at: int = 0


class _Chunks:
    """The chunks of one pair, as many rows in each as fit the time a writer may be kept waiting.

    Under the lock a chunk is carried and nothing else. Another thread compares it while the next one is carried; rows
    that came out unequal are settled under the lock after that, and only then the checkpoint moves behind the chunk. So
    a chunk whose comparison was interrupted is carried, and compared, once more. Where others write, chunks are half as
    long, pauses are longer, and comparisons run in these pauses.
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
        self.state = _State()
        self.pace = Pace(writing)
        self.started = time.monotonic()
        self.total: int | None = None

    def next(self) -> bool:
        """Carry one more chunk, and settle those that were compared meanwhile.

        After an error the next call starts at the checkpoint, as after an interrupted backfill.

        Returns:
            False where nothing is left to carry or to settle.
        """
        before = self.state
        self.state = replace(before, unsettled=())
        with self.writing() as uow:
            require_dual_write(uow.phase)
            guards.require(uow)
            self.pace.begin(uow)
            self.log.relieve(uow, in_company=self.pace.in_company)
            # First the writes of others: a row that one of them deleted would look like one to carry.
            drained = drain(uow)
            after = replace(before, adopted=before.adopted + drained.carried)
            drains_on = drained.looked_at >= CHANGES_IN_ONE_TRANSACTION
            chunk, done = None, 0
            if not drains_on:
                after, chunk, done = self._carry(uow, after)
        self.state = replace(after, unsettled=())
        self.pace.end()
        if not drains_on:
            if chunk is not None:
                uow._tell(BackfillEvent(self.pair.name, chunk.of.rows))
            self.log.after_commit()
            self._compare(after, chunk)
            self.log.before_next()
            self._report(after, done)
        self.state = after
        self.pace.rest()
        return drains_on or bool(after.unsettled)

    def _carry(self, uow: UnitOfWork, state: _State) -> tuple[_State, _Chunk | None, int]:
        """Settle chunks that were compared, carry the next one and move the checkpoint, in one transaction.

        Returns:
            The state after it, the chunk, and how many rows are carried by now.
        """
        progress = backfill_progress.of(uow, self.pair)
        if progress.finished:
            return replace(state, unsettled=()), None, progress.rows
        state, after, done = self._settled(uow, state, progress)
        start = after
        for chunk in state.unsettled:
            start = chunk.of.last if chunk.after == start else start
        if state.until is None:
            state = replace(state, until=uow._rows(uow.statements[self.pair].last_key(Side.LEGACY))[0][0])
        found = None
        of = next_range(uow, self.pair, Side.LEGACY, start, self.pace.size)
        if of is not None and not _is_newer(uow, self.pair, of, state):
            found = _Chunk(start, of)
            carry_range(uow, self.pair, of)
            samples.add(uow, samples.BACKFILL, self.pair.name, of.rows)
            state = replace(state, unsettled=(*state.unsettled, found))
        carried = done + sum(chunk.of.rows for chunk in state.unsettled)
        if found is not None and carried > state.analyze_at:
            uow.catalog.analyze(uow, self.pair)
            state = replace(state, analyze_at=10 * carried)
        backfill_progress.move(uow, self.pair, after, done, finished=not state.unsettled)
        return state, found, carried

    def _settled(
        self, uow: UnitOfWork, state: _State, progress: backfill_progress.BackfillProgress
    ) -> tuple[_State, Key, int]:
        """Settle the chunks that were compared; returns the checkpoint behind them, and the rows before it, too."""
        after, done = progress.last_key, progress.rows
        for chunk in [chunk for chunk in state.unsettled if chunk.unequal.done()]:
            state = replace(
                state,
                unsettled=tuple(other for other in state.unsettled if other is not chunk),
                rejects=state.rejects + _settle(uow, self.pair, chunk.unequal.result()),
                rows=state.rows + chunk.of.rows,
            )
            if chunk.after == after:  # otherwise another backfill has moved the checkpoint meanwhile
                after, done = chunk.of.last, done + chunk.of.rows
        return state, after, done

    def _compare(self, state: _State, chunk: _Chunk | None) -> None:
        """Start to compare a chunk, and wait for the one before it; in company, or at the end, for all of them."""
        if chunk is not None and self.comparing is not None:
            self.comparing.submit(self._find_unequal, chunk)
        elif chunk is not None:
            self._find_unequal(chunk)
        beside = chunk is not None and not self.pace.in_company
        for waited_for in state.unsettled[:-1] if beside else state.unsettled:
            waited_for.unequal.result()

    def _find_unequal(self, chunk: _Chunk) -> None:
        """Compare a chunk as the database stored it, without a lock."""
        try:
            with self.reading() as uow:
                require_dual_write(uow.phase)
                uow.catalog.begin_scan(uow)
                sql = uow.statements[self.pair]
                found = keys_of(uow, sql.unequal_in_range, chunk.of.bounds)
                if self.progress is not None and self.total is None:  # once: it scans the table
                    self.total = uow._rows(sql.count(Side.LEGACY, ()))[0][0]
        except BaseException as error:
            chunk.unequal.set_exception(error)
        else:
            chunk.unequal.set_result(found)

    def _report(self, state: _State, done: int) -> None:
        if self.progress is not None and self.total is not None:
            rows = state.rows + sum(chunk.of.rows for chunk in state.unsettled)
            rate = rows / max(time.monotonic() - self.started, 1e-6)
            self.progress(Progress(self.pair.name, min(done, self.total), self.total, rate))


def _is_newer(uow: UnitOfWork, pair: Move, of: Range, state: _State) -> bool:
    """Whether the rows of a range were written since the run began: on both sides, or recorded.

    Without this, writers that are faster than the backfill would keep it from its end.
    """
    # The database compares: ranges follow the order of its keys, which is not always that of Python.
    return bool(uow._rows(uow.statements[pair].comes_after, {"_first": of.first, "_until": state.until}))


def _settle(uow: UnitOfWork, pair: Move, doubtful: list[Key]) -> int:
    """Carry rows that did not come out equal once more, and reject those that still do not; returns how many."""
    if not doubtful:
        return 0
    unequal = keys_of(uow, uow.statements[pair].unequal_in_keys, among(doubtful))
    # A row that another program wrote is carried later, with its change.
    known = rejects.on_one_side(uow, pair, Side.LEGACY) | changes.recorded_among(uow, pair, unequal)
    stale = [key for key in unequal if key not in known]
    carry_fitting(uow, pair, stale, Side.NORMALIZED, "the backfill carried the legacy row")
    return reject_unequal(uow, pair, stale, Side.LEGACY).new
