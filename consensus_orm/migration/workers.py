"""The workers of a backfill: threads of any number of processes and hosts, which share the ranges of a pair.

The ranges are rows of the database (`ledgers.backfill_ranges`), and a worker has no other state. So a worker that is
killed leaves its range to the others, and the last one that is done finishes the backfill of the pair.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from consensus_orm import errors
from consensus_orm.declaration.move import Move
from consensus_orm.events import BackfillEvent
from consensus_orm.ledgers import backfill_progress, backfill_ranges, guards, samples
from consensus_orm.ledgers.backfill_ranges import RangeState
from consensus_orm.ledgers.binding import Key, keys_of
from consensus_orm.migration.carrying import carry_range, is_newer, require_dual_write, settle_unequal
from consensus_orm.migration.pace import Pace
from consensus_orm.migration.ranges import Range, next_range
from consensus_orm.migration.transactions import Transactions, connections
from consensus_orm.phase import Side
from consensus_orm.progress import Progress, Watch
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Carried", "carry_together", "may_share"]

LOOK_AGAIN = 0.1
"""Seconds after which a worker looks again for a range, while others have them all or a throttle lets none begin."""


@dataclass
class Carried:
    """How many rows the workers of this process have carried, and how many rejects they added."""

    rows: int = 0
    rejects: int = 0


def may_share(uow: UnitOfWork, workers: int) -> bool:
    """Whether workers can share the ranges of this database: a file has one writer, so nothing to share.

    Raises:
        InvalidValueError: The database has one writer, or the store has fewer connections.
    """
    if workers > 1 and not uow.catalog.others_write_meanwhile:
        raise errors.InvalidValueError(
            "a file has one writer at a time, so several workers would only wait for each other",
            hint="leave out the workers",
            field="workers",
        )
    if workers > connections(uow.engine):
        raise errors.InvalidValueError(
            f"{workers} workers need as many connections, and this store has {connections(uow.engine)}",
            hint="set CONSENSUS_ORM_POOL_SIZE, or run workers in several processes",
            field="workers",
        )
    return uow.catalog.others_write_meanwhile


def carry_together(
    reading: Transactions, claiming: Transactions, pair: Move, workers: int, progress: Watch = None
) -> Carried:
    """Have workers carry the ranges of a pair, alongside those of other processes, until all are done.

    Args:
        reading: Opens a unit of work that reads.
        claiming: Opens one that carries a range.
        pair: The pair.
        workers: How many there are in this process.
        progress: Called after each range, by one thread at a time.

    Returns:
        What the workers of this process did.
    """
    together = _Together(reading, claiming, pair, progress)
    with ThreadPoolExecutor(workers, "consensus_orm-worker") as threads:
        running = [threads.submit(_Worker(together).run) for _ in range(workers)]
        try:
            for worker in running:
                worker.result()
        finally:
            together.stop.set()
    together.raise_first()
    return together.carried


class _StoppedError(Exception):
    """Another worker of this process has failed, or the process was interrupted."""


class _Together:
    """What the workers of one process share.

    Attributes:
        until: The highest key when they began.
        stop: Set when they are to end.
        carried: What they did.
    """

    def __init__(self, reading: Transactions, claiming: Transactions, pair: Move, progress: Watch) -> None:
        self.reading = reading
        self.claiming = claiming
        self.pair = pair
        self.until, self.total = reading.run(self._look)
        self.stop = threading.Event()
        self.carried = Carried()
        self._progress = progress
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._error: BaseException | None = None

    def _look(self, uow: UnitOfWork) -> tuple[Key, int]:
        sql = uow.statements[self.pair]
        return uow._rows(sql.last_key(Side.LEGACY))[0][0], int(uow._rows(sql.count(Side.LEGACY, ()))[0][0])

    def sleep(self, seconds: float) -> None:
        """Wait; end early when the workers are to end.

        Raises:
            _StoppedError: The workers are to end.
        """
        if self.stop.wait(max(seconds, 0.0)):
            raise _StoppedError

    def fail(self, error: BaseException) -> None:
        """Keep the first error, and have all workers end."""
        with self._lock:
            self._error = self._error or error
        self.stop.set()

    def raise_first(self) -> None:
        """Raise the first error of a worker, if one has failed."""
        if self._error is not None:
            raise self._error

    def note(self, rows: int, rejects: int, done: int) -> None:
        """Count a range that is done, and report the progress."""
        with self._lock:
            self.carried.rows += rows
            self.carried.rejects += rejects
            if self._progress is not None:
                rate = self.carried.rows / max(time.monotonic() - self._started, 1e-6)
                self._progress(Progress(self.pair.name, min(done, self.total), self.total, rate))


class _Worker:
    """Claims one range after the other: compares one that is carried, or carries one, or cuts the next one."""

    def __init__(self, together: _Together) -> None:
        self._together = together
        self._pair = together.pair
        self._pace = Pace(together.claiming, shared=True, sleep=together.sleep)

    def run(self) -> None:
        try:
            while self._together.claiming.repeat(self._next):
                self._pace.rest()
        except _StoppedError:
            return
        except BaseException as error:
            self._together.fail(error)

    def _next(self) -> bool:
        """Take the next step, in one transaction; whether there may be another one."""
        with self._together.claiming() as uow:
            require_dual_write(uow.phase)
            guards.require(uow)
            self._pace.begin(uow)
            if backfill_progress.of(uow, self._pair).finished:
                return False
            steps = (self._compare, self._carry, self._cut)
            after = next((done for step in steps if (done := step(uow)) is not None), self._wait)
        return after() is not False

    def _compare(self, uow: UnitOfWork) -> Callable[[], object] | None:
        """Compare a range that is carried, and settle what did not come out equal."""
        claimed = backfill_ranges.claim(uow, self._pair, RangeState.CARRIED)
        if claimed is None:
            return None
        of = Range(claimed.first, claimed.last, claimed.rows)
        uow.catalog.begin_scan(uow)
        unequal = keys_of(uow, uow.statements[self._pair].unequal_in_range, of.bounds)
        rejects = settle_unequal(uow, self._pair, unequal)
        if str(claimed.number).rstrip("0") == "1":  # by then the statistics of the database are out of date
            uow.catalog.analyze(uow, self._pair)
        backfill_ranges.turn(uow, self._pair, claimed, RangeState.DONE)
        done = backfill_progress.of(uow, self._pair).rows + backfill_ranges.done_rows(uow, self._pair)
        return lambda: self._together.note(claimed.rows, rejects, done)

    def _carry(self, uow: UnitOfWork) -> Callable[[], object] | None:
        """Carry an open range."""
        claimed = backfill_ranges.claim(uow, self._pair, RangeState.OPEN)
        if claimed is None:
            return None
        carry_range(uow, self._pair, Range(claimed.first, claimed.last, claimed.rows))
        samples.add(uow, samples.BACKFILL, self._pair.name, claimed.rows)
        backfill_ranges.turn(uow, self._pair, claimed, RangeState.CARRIED)

        def after() -> None:
            self._pace.end()
            uow._tell(BackfillEvent(self._pair.name, claimed.rows))

        return after

    def _cut(self, uow: UnitOfWork) -> Callable[[], object] | None:
        """Cut the next range behind the last one; where there is none, and all are done, finish the backfill."""
        pair = self._pair
        progress = backfill_progress.hold(uow, pair)
        if progress.finished or backfill_ranges.some_undone(uow, pair, still_open=True):
            return None
        after = backfill_ranges.frontier(uow, pair, progress)
        progress = backfill_ranges.fold(uow, pair, progress)
        of = next_range(uow, pair, Side.LEGACY, after, self._pace.size)
        if of is not None and not is_newer(uow, pair, of, self._together.until):
            backfill_ranges.cut(uow, pair, *of, self._pace.throttle)
            return lambda: None
        if backfill_ranges.some_undone(uow, pair):
            return None
        rows = progress.rows + backfill_ranges.done_rows(uow, pair)
        backfill_progress.move(uow, pair, after, rows, finished=True)
        return lambda: False

    def _wait(self) -> None:
        self._together.sleep(LOOK_AGAIN)
