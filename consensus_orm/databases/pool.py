"""The pool: connections lent in the order of asking, looked at before they are lent, and kept out of forks.

SQLite keeps its locks per process and file. A child that inherits an open connection believes it holds
locks that only its parent has; when the parent then closes, the child's committed rows are deleted with the
write-ahead log (tried). So idle connections are closed before a fork, and a file that could not be let go
of is refused in the child.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool
from sqlalchemy.util.queue import Empty, Queue

from consensus_orm.databases.fair_queue import Turns
from consensus_orm.databases.sqlite.connection import DriverConnection, Source, leak

if TYPE_CHECKING:
    from sqlalchemy import Engine


__all__ = ["Pool", "close_before_fork"]

FORK_PATIENCE = 0.25
"""Seconds a fork waits for units of work in other threads to end; they take milliseconds."""


class Pool(QueuePool):
    """A QueuePool that serves waiting threads in their order, and whose connections are healthy.

    With 100 threads on 10 connections QueuePool's own waiting starves the unlucky: see tests/databases/test_engine.py.

    Args:
        source: Where connections come from: a `Source`, or the `ServerSource` of PostgreSQL.
        size: Connections at most.
        timeout: Longest wait for one, in seconds.
        **options: What QueuePool takes besides.
    """

    def __init__(self, source: Any, size: int, timeout: float, **options: Any) -> None:
        super().__init__(source.connect, pool_size=size, max_overflow=0, timeout=timeout, use_lifo=True, **options)
        self.source = source
        self._slots = Turns(size)
        self._wanted = threading.local()
        self._held = 0
        self._disposed = False

    @property
    def waiting(self) -> int:
        """Threads waiting for a connection now."""
        return self._slots.waiting

    def borrow(self, *, write: bool) -> PoolProxiedConnection:
        """Lend a connection that was last lent for the same, or a new one, before one that was not.

        SQLite prepares every statement of a connection again once it may write and may not any more: a read
        and a write by turns on one connection took 4 times as long as on two (measured). And who writes waits for
        its turn before a connection is chosen, so that all get the one that the last writer used: any other would
        have to read again what was committed since, 75 us a write (measured).

        Args:
            write: Whether it is for a transaction that writes.

        Raises:
            DatabaseBusyError: The turn to write did not come in time.
        """
        wanted = self._wanted
        wanted.query_only, wanted.turn = not write, None
        try:
            pooled = self.connect()
            if wanted.turn is not None:
                cast("DriverConnection", pooled.driver_connection).accept(wanted.turn)
        except BaseException:
            if wanted.turn is not None:
                self.source.writers.release()
            raise
        finally:
            wanted.query_only = None
        return pooled

    def recreate(self) -> Pool:
        """Make the pool that follows this one after `Engine.dispose`."""
        return type(self)(
            self.source,
            self.size(),
            self.timeout(),
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close what is idle now, and what is lent when it comes back."""
        self._disposed = True
        super().dispose()

    def hold(self, patience: float) -> None:
        """Stop lending, wait for what is lent, and close what is idle; `resume` ends it.

        Args:
            patience: Longest wait in seconds.
        """
        deadline = time.monotonic() + patience
        while self._held < self.size() and self._slots.acquire(max(0.0, deadline - time.monotonic())):
            self._held += 1
        if not self.source.in_memory:
            self._close_idle()

    def resume(self) -> None:
        """Lend again."""
        while self._held:
            self._held -= 1
            self._slots.release()

    def _close_idle(self) -> None:
        idle = []
        try:
            while True:
                idle.append(self._pool.get(block=False))
        except Empty:
            pass
        for record in idle:
            record.close()
            self._pool.put(record, block=False)

    def _do_get(self) -> ConnectionPoolEntry:
        if not self._slots.acquire(self._timeout):
            raise exc.TimeoutError(f"none of {self.size()} connections came free in {self._timeout:g} s")
        try:
            if getattr(self._wanted, "query_only", None) is False and isinstance(self.source, Source):
                self._wanted.turn = self.source.wait_for_turn()
            record = self._suited() or super()._do_get()
            connection: Any = record.dbapi_connection
            if connection is not None and not self.source.is_healthy(connection):
                record.invalidate()
                self._close_idle()  # they are of the same file and the same log
        except BaseException:
            self._slots.release()
            raise
        return record

    def _suited(self) -> ConnectionPoolEntry | None:
        """An idle connection of the wanted kind, or a new one; None where it does not matter, or none is left."""
        query_only = getattr(self._wanted, "query_only", None)
        if query_only is None:
            return None
        stack = cast("Queue[ConnectionPoolEntry]", self._pool)
        with stack.mutex:
            idle = stack.queue
            for place in reversed(range(len(idle))):
                record = idle[place]
                # Of another driver than SQLite's, one is as good as any other.
                if getattr(record.dbapi_connection, "query_only", query_only) is query_only:
                    del idle[place]
                    return record
        if not self._inc_overflow():
            return None
        try:
            return self._create_connection()
        except BaseException:
            self._dec_overflow()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        connection = record.dbapi_connection
        had_turn = isinstance(connection, DriverConnection) and connection.give_up_turn()
        try:
            if self._disposed:
                record.close()
            elif record.dbapi_connection is not None:
                try:
                    self.source.note_use(record.dbapi_connection)
                except Exception:  # its work is done; what cannot be set back is not lent again
                    record.invalidate()
            super()._do_return_conn(record)
        finally:
            self._slots.release()
            if had_turn:  # only now, when the connection is there for whose turn is next
                self.source.writers.release()


_engines: weakref.WeakValueDictionary[int, Engine] = weakref.WeakValueDictionary()


def close_before_fork(engine: Engine) -> None:
    """Keep the connections of an engine out of the children of this process."""
    _engines[id(engine)] = engine


def _pools() -> list[tuple[Engine, Pool]]:
    alive = (reference() for reference in _engines.valuerefs())
    return [(engine, engine.pool) for engine in alive if engine and isinstance(engine.pool, Pool)]


def _before_fork() -> None:
    for _, pool in _pools():
        pool.hold(FORK_PATIENCE)


def _after_fork_in_parent() -> None:
    for _, pool in _pools():
        pool.resume()


def _after_fork_in_child() -> None:
    for engine, pool in _pools():
        if pool.source.in_memory:  # memory is copied by the fork, locks and files are not involved
            pool.resume()
            continue
        leak(pool.source.forget())
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
