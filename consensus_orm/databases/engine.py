"""Borrow a connection of an engine, and raise errors of the database as errors of this package.

Transactions are begun by the connections themselves (`DriverConnection.begin`), never by the driver: with the driver's
own transaction control, a unit of work that reads before it writes loses updates without an error. Units of work that
write take the write lock with their first statement (BEGIN IMMEDIATE), because a deferred transaction that read first
fails at once with SQLITE_BUSY_SNAPSHOT, whatever the busy timeout. Read-only ones begin deferred and cannot write.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import cast

from sqlalchemy import Engine, exc
from sqlalchemy.pool import PoolProxiedConnection

from consensus_orm import errors
from consensus_orm.databases.pool import Pool
from consensus_orm.databases.sqlite import write_ahead_log
from consensus_orm.databases.sqlite.connection import DriverConnection, Source
from consensus_orm.databases.sqlite.write_ahead_log import Journal

__all__ = [
    "DriverConnection",
    "checkout",
    "database_path",
    "driver",
    "pool_of",
    "prepare",
    "source_of",
    "translated",
]


MEMORY = ":memory:"
"""The path of a database in memory."""

_log = logging.getLogger(__name__)


def pool_of(engine: Engine) -> Pool:
    """The pool of an engine of a store."""
    return cast("Pool", engine.pool)


def source_of(engine: Engine) -> Source:
    """The source of an engine's connections to a SQLite database."""
    return cast("Source", pool_of(engine).source)


def database_path(engine: Engine) -> Path | None:
    """The file of an engine; None for a database in memory, or on a server."""
    name = engine.url.database
    if engine.dialect.name != "sqlite":
        return None
    return None if name in (None, "", MEMORY) else Path(str(name))


def prepare(engine: Engine) -> Journal:
    """Give a new file incremental auto_vacuum, and a file that no other process has open WAL.

    This writes into the file: it is for `upgrade` and for the first unit of work that writes, never for opening. If WAL
    is refused, the reason is logged, and the store works in the mode found.

    Args:
        engine: The engine; no transaction may be open on this thread.

    Returns:
        The modes in force, and why WAL was refused.

    Raises:
        DatabaseBusyError: Another connection was writing for longer than the busy timeout.
        StorageError: The file cannot be written.
    """
    source = source_of(engine)
    if source.path is None:  # in memory, or on a server
        return Journal(mode="memory", auto_vacuum=0, refused="the database is in memory")
    with checkout(engine) as pooled, translated(engine):
        connection = driver(pooled)
        connection.allow_writes(True)
        connection.take_turn()
        try:
            source.journal = write_ahead_log.prepare(connection, source.path, own=len(source.connections))
        finally:
            connection.end_turn()
    if source.journal.refused:
        _log.warning("%s stays in journal mode %s: %s", source.path, source.journal.mode, source.journal.refused)
    return source.journal


def driver(connection: PoolProxiedConnection) -> DriverConnection:
    """The driver's connection behind a pooled one."""
    return cast("DriverConnection", connection.driver_connection)


@contextlib.contextmanager
def checkout(engine: Engine) -> Iterator[PoolProxiedConnection]:
    """Borrow a connection from the pool, for reading or for writing.

    Yields:
        The pooled connection. Its return to the pool rolls back a transaction that is still open.

    Raises:
        PoolExhaustedError: None became free in time.
        StorageError: The database could not be opened.
    """
    with translated(engine):
        connection = engine.raw_connection()
    try:
        yield connection
    finally:
        connection.close()


def translate(error: BaseException, engine: Engine) -> errors.ConsensusError | None:
    """Give the error of this package for an error of the driver or SQLAlchemy.

    Args:
        error: The error as it was raised.
        engine: Names the database in the message, without password.

    Returns:
        The error to raise instead, with the driver's code in its attribute `sqlite_errorcode` or `sqlstate`; None for
        an error that is not the database's.
    """
    if isinstance(error, exc.TimeoutError):
        return errors.PoolExhaustedError(pool_size=pool_of(engine).size())
    if isinstance(error, exc.DBAPIError) and isinstance(error.orig, Exception):
        error = error.orig
    if isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError):
        return errors.ReadOnlyDatabaseError(f"{engine.url.database}: {error.strerror}", path=error.filename)
    return pool_of(engine).source.translate(error, engine.url.database or "the server")


class translated:
    """A block whose errors of the database are raised as errors of this package, with the original as their cause.

    Every unit of work enters two of them; a generator would cost 2 us more each (measured).

    Args:
        engine: As for `translate`.
    """

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        """Nothing is done before the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, errors.ConsensusError):
            mine = translate(error, self._engine)
            if mine is not None:
                raise mine from error
