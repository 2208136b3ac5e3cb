"""Vacuum: returns the space of deleted rows to the file system, while writers continue.

Free pages are removed in small steps. Each holds the write lock for some milliseconds and is followed by a pause
several times as long, so that a writer, which tries again after 1, 2, 5, 10 ... ms, finds the lock free at one of its
first tries. The file itself shrinks at a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Engine

from consensus_orm import errors, files
from consensus_orm.databases.engine import (
    DriverConnection,
    checkout,
    database_path,
    driver,
    pool_of,
    source_of,
    translated,
)
from consensus_orm.databases.sqlite import write_ahead_log
from consensus_orm.databases.sqlite.statistics import disk_use
from consensus_orm.databases.statistics import VacuumReport
from consensus_orm.retrying.repetition import Repeat, once

__all__ = ["VacuumScheduler", "vacuum"]

SLICE = 0.008
"""Seconds for which a step frees pages before its commit. Both together may take 50 ms: in WAL a commit adds some 2 ms,
in a rollback mode three fsyncs, 15 to 20 ms on an idle disk (measured)."""

PAUSE = 4
"""The pause after a step, as a multiple of the time for which the step held the lock."""

SHRINK_PATIENCE = 5.0
"""Seconds for which the checkpoint is tried again while readers block it."""

CHECKPOINT_AGAIN = 0.005
"""Seconds between two of these tries."""

_log = logging.getLogger(__name__)


def vacuum(
    engine: Engine,
    *,
    full: bool = False,
    progress: Callable[[int, int], object] | None = None,
    cancelled: threading.Event | None = None,
    repeat: Repeat = once,
) -> VacuumReport:
    """Return free pages to the file system; see `Maintenance.vacuum`.

    A file that was created without auto_vacuum cannot shrink in steps. A full VACUUM converts it, and holds the write
    lock while it copies all rows: if `full` asks for it, or if no other program has the file open.

    Args:
        engine: The engine of a store.
        full: Rewrite the whole file, and convert it if necessary.
        progress: Called after each step with the pages freed so far and the pages that were free.
        cancelled: When set, ends the work after the current step.
        repeat: Repeats a step after a transient error; by default never.
    """
    path = database_path(engine)
    if path is None:
        return VacuumReport(notes=("the database is in memory",))
    with translated(engine), _only_one(path), checkout(engine) as pooled:
        work = _Vacuum(engine, driver(pooled), path, cancelled or threading.Event(), repeat)
        return work.run(full=full, progress=progress or (lambda _done, _total: None))


@dataclass
class _Vacuum:
    """One vacuum of one file."""

    engine: Engine
    connection: DriverConnection
    path: Path
    cancelled: threading.Event
    repeat: Repeat
    longest_lock: float = 0.0
    pages_freed: int = 0
    steps: int = 0
    notes: list[str] = field(default_factory=list)

    def run(self, *, full: bool, progress: Callable[[int, int], object]) -> VacuumReport:
        started, before = time.monotonic(), disk_use(self.path)
        self.connection.allow_writes(True)
        converted = self.repeat(partial(self._rewrite, full=full))
        if not converted and self.connection.pragma("auto_vacuum") == 2:
            self._free(progress)
        if self.connection.pragma("journal_mode") == "wal":
            self._shrink()
        return VacuumReport(
            path=self.path,
            before=before,
            after=disk_use(self.path),
            pages_freed=self.pages_freed,
            steps=self.steps,
            converted=converted,
            longest_lock=self.longest_lock,
            seconds=time.monotonic() - started,
            notes=tuple(self.notes),
        )

    def _rewrite(self, *, full: bool) -> bool:
        """Rewrite the file if that was asked for, or if it is necessary and no other program has the file open."""
        if not full and self.connection.pragma("auto_vacuum") != 0:
            return False
        if not full and (who := self._in_use_by()):
            self.notes.append(
                f"the file was made without auto_vacuum and {who}; "
                "`consensus-orm vacuum --full` converts it all the same"
            )
            return False
        pages = self.connection.pragma("page_count")
        self.connection.take_turn()
        try:
            with self._locked():
                self.connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                self.connection.execute("VACUUM")
        finally:
            self.connection.end_turn()
        self.pages_freed = max(0, pages - self.connection.pragma("page_count"))
        return True

    def _in_use_by(self) -> str | None:
        if pool_of(self.engine).checkedout() > 1:
            return "this store is in use"
        others = write_ahead_log.occupants(self.path, own=len(source_of(self.engine).connections))
        return f"{others[0]} has it open" if others else None

    def _free(self, progress: Callable[[int, int], object]) -> None:
        """Free, in steps, as many pages as are free now; pages freed meanwhile are left to the next vacuum."""
        total = self.connection.pragma("freelist_count")
        # With a short log, no commit of a writer has to take the checkpoint, with its fsyncs and the truncation.
        wal = self.connection.pragma("journal_mode") == "wal"
        while self.pages_freed < total and not self.cancelled.is_set():
            started = time.monotonic()
            freed = self.repeat(partial(self._step, at_most=total - self.pages_freed))
            held = time.monotonic() - started
            self.pages_freed += freed
            self.steps += 1
            progress(self.pages_freed, total)
            if not freed:
                break
            if wal:
                self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self.cancelled.wait(PAUSE * held)
        if self.cancelled.is_set():
            self.notes.append("it was cancelled")

    def _step(self, *, at_most: int) -> int:
        """Free pages for some time, in one transaction.

        One page at a time: the driver of Python 3.11 stops after the first page of `incremental_vacuum(N)`, even with
        fetchall; and so the clock decides when the lock is released, not a guess at N.
        """
        connection = self.connection
        connection.begin(write=True)
        with self._locked():
            try:
                before = connection.pragma("freelist_count")
                until = time.perf_counter() + SLICE
                for _ in range(min(at_most, before)):
                    connection.execute("PRAGMA incremental_vacuum(1)").fetchall()
                    if time.perf_counter() > until:
                        break
                freed: int = before - connection.pragma("freelist_count")
                connection.commit()
            finally:
                connection.rollback()
        return freed

    def _shrink(self) -> None:
        """Take checkpoints until the file is truncated and the log is empty, or patience ends.

        With a busy timeout SQLite would hold the write lock while it waits for readers; so it does not wait, and the
        checkpoint is tried again. PASSIVE copies the log without the write lock, TRUNCATE only its rest.
        """
        deadline = time.monotonic() + SHRINK_PATIENCE
        connection = self.connection
        with connection.without_waiting():
            while True:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                if not self.repeat(self._truncate):
                    return
                if time.monotonic() > deadline or self.cancelled.wait(CHECKPOINT_AGAIN):
                    self.notes.append("an open reader keeps the log from being emptied; vacuum again later")
                    return

    def _truncate(self) -> bool:
        """Empty the log; returns whether another connection prevented it."""
        self.connection.take_turn()
        try:
            with self._locked():
                row = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return bool(row[0])
        finally:
            self.connection.end_turn()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.longest_lock = max(self.longest_lock, time.perf_counter() - started)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Exclude other vacuums of a file, in this process and in others.

    The lock is on a file of its own: opening and closing the database would drop SQLite's locks on it. Windows has no
    such lock; two vacuums at once are slow and harmless.
    """
    with files.exclusively(files.derived(path, ".vacuum", prefix=".")) as alone:
        if not alone:
            raise errors.DatabaseBusyError(f"another vacuum of {path} is running", hint="wait for it to end", path=path)
        yield


class VacuumScheduler:
    """Vacuums a database from time to time, on a daemon thread, until it is stopped.

    The time of the first vacuum and the times between are random within the jitter, so that processes started together
    do not vacuum together. A failure is logged; the next vacuum comes at its time.

    Args:
        engine: The engine of a store.
        interval: Time between two vacuums.
        jitter: Share of the interval, from 0 to 1, by which it is randomly shortened or lengthened.
        work: Vacuums; called with the engine and `cancelled`, an event that ends it.

    Attributes:
        last: The report of the last vacuum that succeeded; None before that.
    """

    def __init__(
        self,
        engine: Engine,
        interval: timedelta = timedelta(days=1),
        *,
        jitter: float = 0.1,
        work: Callable[..., VacuumReport] = vacuum,
    ) -> None:
        if interval <= timedelta(0):
            raise errors.InvalidValueError("the interval must be longer than nothing", field="interval")
        self.interval = interval.total_seconds()
        self.jitter = jitter
        self.last: VacuumReport | None = None
        self._engine = engine
        self._work = work
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consensus_orm vacuum", daemon=True)

    def start(self) -> Self:
        """Start the thread; call it once."""
        self._thread.start()
        return self

    def stop(self, timeout: float | None = 5.0) -> bool:
        """End the thread; a running vacuum ends after its step.

        Args:
            timeout: Longest wait for it in seconds.

        Returns:
            Whether it has ended.
        """
        self._stopped.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    close = stop

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        wait = self.interval * random.uniform(0, self.jitter)
        while not self._stopped.wait(wait):
            self._vacuum()
            wait = self.interval * random.uniform(1 - self.jitter, 1 + self.jitter)

    def _vacuum(self) -> None:
        try:
            self.last = self._work(self._engine, cancelled=self._stopped)
        except errors.DatabaseBusyError as error:
            _log.info("scheduled vacuum left out: %s", error)
        except (errors.ConsensusError, sqlite3.Error, OSError) as error:
            _log.warning("scheduled vacuum failed: %s", error)
        except Exception:
            _log.exception("scheduled vacuum failed")
        else:
            freed = self.last.before.total - self.last.after.total
            _log.info("scheduled vacuum of %s gave back %d bytes", self.last.path, freed)
