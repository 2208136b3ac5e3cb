"""Checkpoints on a thread of their own, beside the work that fills the write-ahead log.

Otherwise the commit after 1000 pages in the log takes the checkpoint, and waits for the disk twice: a third of the time
of a backfill (measured). A checkpoint needs no lock and mostly waits, so another thread takes it meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy import Engine

from consensus_orm.databases.base import Transaction
from consensus_orm.databases.engine import driver, pool_of, translated
from consensus_orm.databases.sqlite.connection import DriverConnection

__all__ = ["Checkpoints", "beside"]

CHUNKS = 3
"""Commits between two checkpoints: about 1000 pages, SQLite's default, so that no page is written too often."""

LONG = 4000
"""Pages in the log above which the work waits until the log has begun anew (16 MB)."""


class Checkpoints:
    """Checkpoints beside the work of one thread.

    While no other program writes, another thread takes them and the work continues. Other writers would find the log
    long enough for a checkpoint of their own: then the work waits until the log has begun anew.

    Args:
        engine: The engine of the work; None if checkpoints are left to the database.
        thread: The other thread.
    """

    def __init__(self, engine: Engine | None, thread: ThreadPoolExecutor) -> None:
        self._in_company = self._is_long = False
        self._engine = engine
        self._thread = thread
        self._commits = 0
        self._copying: Future[int] | None = None

    def relieve(self, uow: Transaction, *, in_company: bool) -> None:
        """Let a unit of work commit without a checkpoint; call `after_commit` after it.

        Args:
            uow: A unit of work that writes.
            in_company: Whether other programs wrote since the one before.
        """
        self._in_company = in_company
        if self._engine is not None and isinstance(uow._connected, DriverConnection):
            uow._connected.leave_log()

    def after_commit(self) -> None:
        """Start a checkpoint, if it is time and no other program writes.

        Raises:
            StorageError: The checkpoint started the last time failed. What was committed is safe in the log.
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
        """Have a long log begin anew; the caller may have no open unit of work.

        Raises:
            StorageError: The checkpoint failed. What was committed is safe in the log.
        """
        if self._is_long and self._engine is not None:
            self._is_long, self._copying = False, None
            _checkpoint(self._engine, "PASSIVE")  # or RESTART would copy all of it under the lock, 50 ms and more
            _checkpoint(self._engine, "RESTART")


def _checkpoint(engine: Engine, mode: str) -> int:
    """Take a checkpoint, and give the number of pages in the log.

    It uses a connection for reading, so that the work keeps its own with its cache; and returns it to the pool, because
    a fork waits for lent connections.
    """
    with translated(engine), contextlib.closing(pool_of(engine).borrow(write=False)) as connection:
        return driver(connection).checkpoint(mode)


@contextlib.contextmanager
def beside(engine: Engine) -> Iterator[Checkpoints]:
    """Take checkpoints beside the work of a block.

    Args:
        engine: The engine of the work. On a server, or without a second connection, they are left to the database.
    """
    possible = engine.dialect.name == "sqlite" and pool_of(engine).size() > 1
    with ThreadPoolExecutor(1, "consensus_orm-checkpoints") as thread:
        yield Checkpoints(engine if possible else None, thread)
