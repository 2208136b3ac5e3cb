"""Pool, pragmas and BEGIN: the one place that knows how a database is opened and a transaction begun.

Transactions are begun here and nowhere else: with the driver's own transaction control, a unit of work that
reads before it writes loses updates without an error. Writing units of work take the write lock with their
first statement (BEGIN IMMEDIATE), because a deferred transaction that read first fails at once with
SQLITE_BUSY_SNAPSHOT, whatever the busy timeout. Read-only ones begin deferred and cannot write.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from sqlalchemy import Engine, exc
from sqlalchemy.pool import PoolProxiedConnection

from consensus_orm import errors
from consensus_orm.databases.pool import Pool
from consensus_orm.databases.sqlite import write_ahead_log
from consensus_orm.databases.sqlite.connection import DriverConnection, Source
from consensus_orm.databases.sqlite.write_ahead_log import Journal
from consensus_orm.files import FILE_MODE
from consensus_orm.settings import Settings

__all__ = [
    "FILE_MODE",
    "DriverConnection",
    "begin",
    "borrow",
    "checkout",
    "database_path",
    "driver",
    "prepare",
    "source_of",
    "translated",
]


MEMORY = ":memory:"
"""The database that is gone with its connection."""


_log = logging.getLogger(__name__)


def source_of(engine: Engine) -> Source:
    """The source of an engine's connections."""
    source: Source = cast("Pool", engine.pool).source
    return source


def database_path(engine: Engine) -> Path | None:
    """The file behind an engine; None for a database in memory."""
    name = engine.url.database
    if engine.dialect.name != "sqlite":
        return None
    return None if name in (None, "", MEMORY) else Path(str(name))


def prepare(engine: Engine, settings: Settings) -> Journal:
    """Give a new file incremental auto_vacuum, and a file that nobody else has open WAL.

    This writes into the file: it is for `upgrade` and for the first unit of work that writes, never for
    opening. What cannot be had is logged, and the store works in the mode found.

    Args:
        engine: The engine; no transaction may be open on this thread.
        settings: Unused by SQLite today; the settings of the store.

    Returns:
        What is in force, and why not WAL where it is not.

    Raises:
        DatabaseBusyError: Somebody was writing for longer than the busy timeout.
        StorageError: The file cannot be written.
    """
    source = source_of(engine)
    if source.path is None:  # a server takes care of itself
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


def begin(connection: DriverConnection, *, write: bool) -> None:
    """Begin a transaction.

    Args:
        connection: A connection without a transaction.
        write: True takes the write lock now, waiting at most the busy timeout: first for the writers of the
            same engine in the order of asking, then for other processes. False sees one snapshot, takes no
            lock and cannot write.

    Raises:
        DatabaseBusyError: The write lock did not come in time.
    """
    connection.begin(write=write)


def borrow(engine: Engine, *, write: bool) -> PoolProxiedConnection:
    """Take a connection out of the pool for a transaction that `begin` begins; `close` gives it back.

    Args:
        engine: The engine.
        write: Whether the transaction writes.
    """
    return engine.pool.borrow(write=write) if isinstance(engine.pool, Pool) else engine.raw_connection()


@contextlib.contextmanager
def checkout(engine: Engine) -> Iterator[PoolProxiedConnection]:
    """Borrow a connection from the pool.

    Yields:
        The pooled connection; given back at the end, rolled back where a transaction is still open.

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
    """Say in our words what the driver or SQLAlchemy said in theirs.

    Args:
        error: The error as it was raised.
        engine: Names the database in the message, without password.

    Returns:
        The error to raise instead, or None where this is none of the database's. Its code stays
        readable in an attribute: `sqlite_errorcode` or `sqlstate`.
    """
    if isinstance(error, exc.TimeoutError):
        return errors.PoolExhaustedError(pool_size=engine.pool.size())  # type: ignore[attr-defined]
    if isinstance(error, exc.DBAPIError) and isinstance(error.orig, Exception):
        error = error.orig
    if isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError):
        return errors.ReadOnlyDatabaseError(f"{engine.url.database}: {error.strerror}", path=error.filename)
    return source_of(engine).translate(error, engine.url.database)


@contextlib.contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Raise errors of the database as errors of this package, with the original as their cause."""
    try:
        yield
    except errors.ConsensusError:
        raise
    except Exception as error:
        mine = translate(error, engine)
        if mine is None:
            raise
        raise mine from error
