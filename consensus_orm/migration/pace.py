"""The pace of a long step: how much it does in one transaction, and how long it then leaves the database to writers.

A step that takes the lock again at once keeps writers out for as long as it lasts: a writer of another process asks
for the lock now and then, and finds it taken each time (measured: 0.03 of its writes, and waits of 535 ms, while 4,000
changes were carried). So between two transactions the lock is free for as long as it was held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from consensus_orm.events import WaitingEvent
from consensus_orm.formats import moment
from consensus_orm.ledgers import changes, control
from consensus_orm.migration.lag import Lag
from consensus_orm.migration.settling import CHANGES_IN_ONE_TRANSACTION, Drained
from consensus_orm.migration.transactions import Transactions
from consensus_orm.progress import Tally, Watch
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Pace", "catch_up", "in_chunks"]

T = TypeVar("T")

UNKNOWN = 3
"""Transactions of a step after which it leaves the lock free whether others have written or not: a writer that asks for
it now and then gets it in one of these rests (without them 9 to 37 of its 370 turns a second, measured)."""


NO_USE = 0.75
"""Where the smaller of two transactions takes more than this share of the time of the other, rows are not what takes
it, but the way to the database and back. Smaller ones would keep no writer waiting less, and would be many more
(measured, with a way of 30 ms: a backfill came down to one row in each transaction of 1 s, and to no end)."""

LOOK_AGAIN = 0.5
"""Seconds after which a paused step looks again whether it may go on."""


class Pace:
    """The pace of one step: `begin` in each of its transactions, `end` after it, `rest` before the next.

    An operator steers it from any process by the control row: `rest` waits while steps are paused, and after as many
    rows as a throttle allows. It also waits while a replica is further behind than `MAX_LAG`.

    Args:
        reading: Opens a reading unit of work, to look at the control row while the step is paused.
        most: How much is done in one transaction at most, in rows or changes; `chunk_rows` where left out, of which a
            server takes several times as many where no other program writes.
        shared: Whether other workers take the same step: they would be taken for company, and the throttle is kept by
            all of them together, not here.
        sleep: Waits so many seconds; `time.sleep` where left out.

    Attributes:
        size: How much this transaction does.
        in_company: Whether others wrote since the transaction before.
    """

    def __init__(
        self,
        reading: Transactions,
        most: int | None = None,
        *,
        shared: bool = False,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._reading = replace(reading, read_only=True)
        self._shared = shared
        self._sleep = sleep or time.sleep
        self._lag = Lag()
        self._control = control.FREE
        self._most = most
        self._next = most or 0
        self.size = 0
        self._ended = 0
        self.in_company = self._behind = False
        self._begun = self._free_until = 0.0
        self._before: tuple[int, float] | None = None

    def begin(self, uow: UnitOfWork, *, behind: bool = False) -> None:
        """Start the clock of a transaction that has just taken its lock.

        Args:
            uow: It writes.
            behind: Whether writers have added as much as the transaction before has done. Then this one does twice as
                much, however long it takes, and no rest follows: otherwise the step would never finish.
        """
        self._uow, self._behind = uow, behind
        self.in_company = not self._shared and uow._connected.others_wrote()
        self._control = control.read(uow)
        self.size = (self._next or uow.settings.chunk_rows) * (2 if behind else 1)
        if self._control.throttle is not None:
            self.size = max(min(self.size, self._control.throttle), 1)  # at most a second's rows at once
        if uow.settings.max_lag is not None:
            self._lag.look(uow)
        self._begun = time.monotonic()

    @property
    def throttle(self) -> int | None:
        """How many rows a second an operator allows."""
        return self._control.throttle

    def end(self) -> None:
        """Fit the size of the next transaction to how long this one took, which is committed."""
        now = time.monotonic()
        held, uow = now - self._begun, self._uow
        self._next = self.size if self._behind else self._fitting(held)
        self._ended += 1
        # A writer that has waited since before the step began has not written yet, and so is not noticed.
        expected = self.in_company or self._ended <= UNKNOWN
        # On a server writers do not wait for this lock.
        shares = expected and not self._behind and not uow.catalog.others_write_meanwhile
        self._free_until = now + held if shares else now

    def rest(self) -> None:
        """Leave the database to writers; the time since `end` counts."""
        pause = self._uow.settings.chunk_pause.total_seconds()
        throttled = self.size / self._control.throttle if self._control.throttle and not self._shared else 0.0
        # Alone a little, too: a writer that never got the lock is not noticed.
        free_until = max(self._free_until, self._begun + throttled)
        self._sleep(max(pause if self.in_company else pause / 4, free_until - time.monotonic()))
        most = self._uow.settings.max_lag
        told = None
        while self._control.paused_at is not None or (most is not None and self._lag.seconds > most.total_seconds()):
            if (since := self._control.paused_at) is not None and since != told:
                told = since
                paused = f"long steps are paused since {moment(since)}, and this one waits; run: consensus-orm resume"
                self._reading.units.telemetry.tell(WaitingEvent(paused))
            self._sleep(LOOK_AGAIN)
            self._reading.run(self._look)

    def _look(self, uow: UnitOfWork) -> None:
        """Read again what an operator asks for, and how far the replicas are behind."""
        self._control = control.read(uow)
        if uow.settings.max_lag is not None:
            self._lag.look(uow)

    def _fitting(self, held: float) -> int:
        goal, times = self._uow.catalog.longest_chunk
        rows = self._uow.settings.chunk_rows
        limit = self._most or (max(rows // 2, 1) if self.in_company else rows * times)
        now, before = (self.size, held), self._before
        self._before = now
        if held > 2 * goal:
            if before is not None and before[0] != self.size:
                less, more = sorted((before, now))
                if less[1] > NO_USE * more[1]:
                    return min(more[0] * 2, limit)
            return max(min(self.size // 2, limit), 1)
        return min(self.size * 2 if held < goal / 2 else self.size, limit)


def in_chunks(
    writing: Transactions,
    tally: Tally,
    work: Callable[[UnitOfWork, int], tuple[T, int] | None],
) -> Iterator[T]:
    """Do some work in a chain of short transactions, until none is left.

    Args:
        writing: Opens a writing unit of work.
        tally: Reports the progress.
        work: Does at most so many rows; returns its result and the number of rows, or None where there is none left.

    Yields:
        The result of each transaction, after its commit.
    """
    pace = Pace(writing)

    def chunk(uow: UnitOfWork) -> tuple[T, int] | None:
        pace.begin(uow)
        return work(uow, pace.size)

    while (done := writing.run(chunk)) is not None:
        pace.end()
        result, rows = done
        yield result
        tally.add(rows)
        pace.rest()


def catch_up(writing: Transactions, drain: Callable[[UnitOfWork, int], Drained], progress: Watch = None) -> int:
    """Carry what only one side was written with, until little is left; writers go on meanwhile.

    Args:
        writing: Opens a writing unit of work.
        drain: Carries at most so many changes in one of them, and returns how many there were.
        progress: Called after each of them.

    Returns:
        How many changes were carried; those that wait for a choice are not among them.
    """
    tally, pace = Tally(progress, "changes", "changes"), Pace(writing, CHANGES_IN_ONE_TRANSACTION)
    total, drained = 0, Drained(0, 0)
    mark: int | None = None

    def chunk(uow: UnitOfWork) -> tuple[Drained, int]:
        last = uow.catalog.last_change(uow)
        pace.begin(uow, behind=mark is not None and last - mark >= drained.looked_at)
        tally.expect(lambda: changes.count(uow, unseen=True))
        return drain(uow, pace.size), last

    while True:
        drained, mark = writing.run(chunk)
        total += drained.carried
        tally.add(drained.looked_at)
        if drained.looked_at < pace.size:
            return total
        pace.end()
        pace.rest()
