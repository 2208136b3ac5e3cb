"""The pool: connections lent in the order of asking, checked before they are lent, and kept out of forked processes.

SQLite keeps its locks per process and file. A child that inherits an open connection believes it holds locks that
only its parent has; when the parent then closes, the child's committed rows are deleted with the write-ahead log
(tried). So idle connections are closed before a fork, and the child refuses a file whose connections could not be
closed in time.
"""

from __future__ import annotations

import copy
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

from sqlalchemy import Engine, exc, pool
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from consensus_orm import errors
from consensus_orm.databases.fair_queue import Turn, Turns
from consensus_orm.databases.statistics import PoolUse
from consensus_orm.events import Event
from consensus_orm.hub import log_event

__all__ = ["ConnectionSource", "Pool", "close_before_fork", "leak"]

C = TypeVar("C")

TRIES = 10_000
"""Passes in which a thread with a permit looks for its place before it takes a new one."""

FORK_PATIENCE = 0.25
"""Seconds a fork waits for units of work in other threads to end; they take milliseconds."""


class ConnectionSource(ABC, Generic[C]):
    """Opens the connections of one engine, and keeps what they share.

    The type of connection is the driver's.
    """

    in_memory = False
    """Whether the database is gone with its last connection, and no file is involved."""
    one_writer = False
    """Whether one transaction at a time can write, and a connection is prepared either for reading or for writing."""

    def __init__(self) -> None:
        self.connections: weakref.WeakSet[C] = weakref.WeakSet()
        """The open connections."""
        self.tell: Callable[[Event], object] = log_event
        """Called with the events of connections."""
        self.own_reads: Counter[str] = Counter()
        """Reads of frozen legacy tables that are not recorded yet, as what made them could not write."""
        self.reads_only = False
        """Whether new connections cannot write."""
        self.schemas: tuple[str, ...] = ()
        """Schemas of a server in which tables are looked for, after those that its role looks in."""

    @abstractmethod
    def connect(self) -> C:
        """Open a connection."""

    @abstractmethod
    def is_healthy(self, connection: C) -> bool:
        """Whether a connection can be lent."""

    @abstractmethod
    def take_back(self, connection: C) -> Turn | None:
        """Make a connection ready for the next loan.

        Returns:
            The turn to write that it still has; the pool ends it once the connection can be lent again.
        """

    @abstractmethod
    def translate(self, error: BaseException, database: str | None) -> errors.ConsensusError | None:
        """The error of this package for an error of the driver; None for any other error."""

    def wait_for_turn(self) -> Turn:
        """Wait for the caller's turn among the writers; asked only where there is one writer at a time."""
        raise NotImplementedError

    def give_turn(self, connection: C, turn: Turn) -> None:
        """Let a connection keep a turn until it returns to the pool."""

    def forget(self) -> list[C]:
        """Forget, in a forked child, the connections of its parent.

        Returns:
            Those connections.
        """
        inherited, self.connections = list(self.connections), weakref.WeakSet()
        return inherited


class Pool(pool.Pool):
    """A pool of a fixed size that serves waiting threads in their order, and whose connections are healthy.

    Every permit stands for one place: an idle connection, or one that was not opened yet. Idle connections that read
    last and those that wrote last are kept apart, because SQLite prepares every statement of a connection again once
    it may write and may not any more: a read and a write in turn on one connection took 4 times as long as on two
    (measured). Places are moved by single operations of a deque, without a lock: the garbage collector may return a
    connection, on a thread that is inside this very class.

    Args:
        source: Where connections come from.
        size: Connections at most.
        timeout: Longest wait for one, in seconds.
    """

    def __init__(self, source: ConnectionSource[Any], size: int, timeout: float) -> None:
        super().__init__(source.connect, reset_on_return=None)  # the source does it, past three layers of SQLAlchemy
        self.source = source
        self._size = size
        self._timeout = timeout
        self._begin()

    def _begin(self) -> None:
        self._permits = Turns(self._size)
        self._unopened: deque[ConnectionPoolEntry | None] = deque([None] * self._size)
        self._readers: deque[ConnectionPoolEntry | None] = deque()
        self._writers: deque[ConnectionPoolEntry | None] = deque()
        self._purpose = threading.local()
        self._held = 0
        self._disposed = False

    def size(self) -> int:
        """Connections at most."""
        return self._size

    @property
    def waiting(self) -> int:
        """Threads waiting for a connection now."""
        return self._permits.waiting

    def checkedin(self) -> int:
        """Connections that are open and idle."""
        return len(self._readers) + len(self._writers)

    def checkedout(self) -> int:
        """Connections that are lent."""
        return self._size - len(self._unopened) - self.checkedin()

    def status(self) -> str:
        """What SQLAlchemy logs of a pool."""
        return f"size: {self._size}, idle: {self.checkedin()}, lent: {self.checkedout()}, waiting: {self.waiting}"

    def use(self) -> PoolUse:
        """How the pool is used, apart from the connection of the caller."""
        lent = self.checkedout() - 1
        return PoolUse(size=self._size, open=len(self.source.connections), lent=lent, waiting=self.waiting)

    def borrow(self, *, write: bool) -> PoolProxiedConnection:
        """Lend a connection that was last lent for the same purpose, or a new one, before one that was not.

        A writer waits for its turn before a connection is chosen, so that all writers get the connection of the writer
        before: any other would have to read again what was committed since, 75 us a write (measured).

        Args:
            write: Whether it is for a transaction that writes.

        Raises:
            DatabaseBusyError: The turn to write did not come in time.
        """
        self._purpose.write = write if self.source.one_writer else None
        try:
            return self.connect()
        finally:
            self._purpose.write = None

    def recreate(self) -> Pool:
        """Make the pool that follows this one after `Engine.dispose`, with the same options and listeners."""
        successor = copy.copy(self)
        successor._begin()
        return successor

    def dispose(self) -> None:
        """Close idle connections now, and lent ones when they come back."""
        self._disposed = True
        self._close_idle()

    def hold(self, patience: float) -> None:
        """Stop lending, wait for lent connections to come back, and close idle ones; `resume` ends it.

        Args:
            patience: Longest wait in seconds.
        """
        deadline = time.monotonic() + patience
        while self._held < self._size and self._permits.acquire(max(0.0, deadline - time.monotonic())):
            self._held += 1
        if not self.source.in_memory:
            self._close_idle()

    def resume(self) -> None:
        """Lend again."""
        while self._held:
            self._held -= 1
            self._permits.release()

    def _close_idle(self) -> None:
        for idle in (self._readers, self._writers):
            while idle:
                try:
                    entry = idle.pop()
                except IndexError:  # another thread took it
                    break
                self._unopened.append(None)
                if entry is not None:
                    entry.close()

    def _do_get(self) -> ConnectionPoolEntry:
        if not self._permits.acquire(self._timeout):
            raise exc.TimeoutError(f"none of {self._size} connections came free in {self._timeout:g} s")
        write, turn = getattr(self._purpose, "write", None), None
        try:
            turn = self.source.wait_for_turn() if write else None
            return self._opened(self._take(write), turn)
        except BaseException:
            self._permits.release()
            if turn is not None:
                turn.end()
            raise

    def _opened(self, entry: ConnectionPoolEntry | None, turn: Turn | None) -> ConnectionPoolEntry:
        """The connection of a place: the one that is there, if it is healthy, or else a new one."""
        try:
            if entry is not None and not self.source.is_healthy(entry.dbapi_connection):
                entry.close()
                self._close_idle()  # they are of the same file and the same log
                entry = None
            if entry is None:
                entry = self._create_connection()
            if turn is not None:
                self.source.give_turn(entry.dbapi_connection, turn)
        except BaseException:
            self._unopened.append(None)
            raise
        return entry

    def _take(self, write: bool | None) -> ConnectionPoolEntry | None:
        """Take a place; None is one without a connection."""
        idle = (self._readers, self._writers) if write is False else (self._writers, self._readers)
        places = (*idle, self._unopened) if write is None else (idle[0], self._unopened, idle[1])
        for _ in range(TRIES):
            for place in places:
                try:
                    return place.pop()
                except IndexError:
                    continue
            time.sleep(0)  # another thread has just moved a place to where this one had already looked
        return None  # the place was lost with a thread that was interrupted here

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        place, entry, turn = self._unopened, None, None
        try:
            if self._disposed:
                record.close()
            elif (connection := record.dbapi_connection) is not None:
                try:
                    turn = self.source.take_back(connection)
                except Exception:  # its work is done; a connection that cannot be set back is not lent again
                    record.close()
                else:
                    entry = record
                    place = self._readers if getattr(connection, "query_only", False) else self._writers
        finally:
            place.append(entry)
            self._permits.release()
            if turn is not None:  # only now, when the next writer finds the connection
                turn.end()


def leak(connections: Collection[object]) -> None:
    """Keep connections open until the process ends: closing one would undo what another process is doing."""
    if connections:
        import ctypes

        for connection in connections:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


_engines: weakref.WeakValueDictionary[int, Engine] = weakref.WeakValueDictionary()


def close_before_fork(engine: Engine) -> None:
    """Keep the connections of an engine out of the children of this process."""
    _engines[id(engine)] = engine


def _pools() -> list[tuple[Engine, Pool]]:
    alive = (reference() for reference in _engines.valuerefs())
    return [(engine, engine.pool) for engine in alive if engine and isinstance(engine.pool, Pool)]


def _before_fork() -> None:
    for _, each in _pools():
        each.hold(FORK_PATIENCE)


def _after_fork_in_parent() -> None:
    for _, each in _pools():
        each.resume()


def _after_fork_in_child() -> None:
    for engine, each in _pools():
        if each.source.in_memory:  # memory is copied by the fork, locks and files are not involved
            each.resume()
            continue
        leak(each.source.forget())
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
