"""Checkpoints: what the write-ahead log holds is copied into the database, beside the work that fills it.

Left to SQLite, the commit that finds 1000 pages in the log copies them, and waits for the disk twice: with the
chunks of a backfill this was a third of the time (measured). It needs no lock, and is mostly waiting. So a
thread of its own does it, while the next chunk is carried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy import Engine

from consensus_orm.databases.base import Transaction
from consensus_orm.databases.engine import driver, pool_of, translated
from consensus_orm.databases.pool import Pool
from consensus_orm.databases.sqlite.connection import DriverConnection

__all__ = ["Checkpoints", "beside"]

CHUNKS = 3
"""Commits between two checkpoints: about the 1000 pages that SQLite waits for, which writes no page too often."""

LONG = 4000
"""Pages in the log above which it has to begin anew before the work goes on (16 MB)."""


class Checkpoints:
    """Checkpoints beside the work of one thread; none at all where there is no connection for them.

    Alone, they are taken by another thread while the work goes on, so that the log never quite ends. Beside others
    who write, each of them would find a log that is long enough for it to copy: there the work waits, and the log
    begins anew before they notice.

    Args:
        engine: The engine of the work; None where checkpoints are left to the database.
        thread: The other thread.
    """

    def __init__(self, engine: Engine | None, thread: ThreadPoolExecutor) -> None:
        self._in_company = self._is_long = False
        self._engine = engine
        self._thread = thread
        self._commits = 0
        self._copying: Future[int] | None = None

    def relieve(self, uow: Transaction, *, in_company: bool) -> None:
        """Let a unit of work commit without a checkpoint of its own; `after_commit` follows it.

        Args:
            uow: It writes.
            in_company: Whether others wrote since the one before.
        """
        self._in_company = in_company
        if self._engine is not None and isinstance(uow._connected, DriverConnection):
            uow._connected.leave_log()

    def after_commit(self) -> None:
        """Begin to copy what is committed by now, where it is time and nobody else writes.

        Raises:
            StorageError: The copying that was begun the last time failed. What was committed is safe in the log.
        """
        self._commits += 1
        if self._engine is None or self._commits % CHUNKS:
            return
        begun, self._copying = self._copying, None
        pages = 0 if begun is None else begun.result()
        self._is_long = self._in_company or pages > LONG
        if not self._is_long:
            self._copying = self._thread.submit(_checkpoint, self._engine, "PASSIVE")

    def before_next(self) -> None:
        """Have the log begin anew, where it is long; no unit of work of the caller may be open.

        Raises:
            StorageError: The log could not be copied. What was committed is safe in it.
        """
        if self._is_long and self._engine is not None:
            self._is_long, self._copying = False, None
            _checkpoint(self._engine, "PASSIVE")  # or all of it would be copied under the lock, 50 ms and more
            _checkpoint(self._engine, "RESTART")


def _checkpoint(engine: Engine, mode: str) -> int:
    """Take a checkpoint; the number of pages the log has.

    The connection is one of those that read, so that the work keeps its own and what that has cached. It is not
    kept: a fork waits for all of them.
    """
    with translated(engine), contextlib.closing(pool_of(engine).borrow(write=False)) as connection:
        return driver(connection).checkpoint(mode)


@contextlib.contextmanager
def beside(engine: Engine) -> Iterator[Checkpoints]:
    """Take checkpoints beside the work of a block.

    Args:
        engine: The engine of the work. Where it is not SQLite's, or has no second connection, checkpoints are
            left to the database.
    """
    is_ours = engine.dialect.name == "sqlite" and isinstance(engine.pool, Pool) and engine.pool.size() > 1
    with ThreadPoolExecutor(1, "consensus_orm-checkpoints") as thread:
        yield Checkpoints(engine if is_ours else None, thread)
