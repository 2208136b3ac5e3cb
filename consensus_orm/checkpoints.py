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

from consensus_orm.connection import DriverConnection
from consensus_orm.engine import borrow, driver
from consensus_orm.pool import Pool
from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["Checkpoints", "beside"]

CHUNKS = 3
"""Commits between two checkpoints: about the 1000 pages that SQLite waits for, which writes no page too often."""

LONG = 4000
"""Pages in the log above which the work waits until all are copied, so that the log begins anew (16 MB)."""

TRIES = 10
"""Checkpoints in a row that try for that, while others go on writing."""


class Checkpoints:
    """Checkpoints taken by a thread of their own; none at all where it has no connection for them.

    Args:
        engine: The engine of the work; None where checkpoints are left to the database.
        thread: The thread.
    """

    def __init__(self, engine: Engine | None, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread
        self._commits = 0
        self._running: Future[int] | None = None

    def relieve(self, uow: UnitOfWork) -> None:
        """Let a unit of work commit without a checkpoint of its own; `after_commit` follows it."""
        if self._engine is not None and isinstance(uow._connected, DriverConnection):
            uow._connected.leave_log()

    def after_commit(self) -> None:
        """Begin a checkpoint, now and then, of what is committed by now."""
        self._commits += 1
        if self._engine is None or self._commits % CHUNKS:
            return
        long = self._running is not None and self._running.result() > LONG
        self._running = self._thread.submit(_checkpoint, self._engine, TRIES if long else 1)
        if long:
            self._running.result()


def _checkpoint(engine: Engine, tries: int) -> int:
    """Copy the log as far as readers allow, until all of it is copied; the number of pages it has.

    The connection is one of those that read, so that the work keeps its own and what that has cached. It is not
    kept: a fork waits for all of them.
    """
    pages = copied = -1
    with contextlib.closing(borrow(engine, write=False)) as connection:
        for _ in range(tries):
            before = copied
            _, pages, copied = driver(connection).execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if copied in (pages, before):
                break
    return int(pages)


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
