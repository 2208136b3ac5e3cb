"""Pool, pragmas and BEGIN: the one place that knows how a database is opened and a transaction begun.

Transactions are begun here and nowhere else: with the driver's own transaction control, a unit of work that
reads before it writes loses updates without an error. Writing units of work take the write lock with their
first statement (BEGIN IMMEDIATE), because a deferred transaction that read first fails at once with
SQLITE_BUSY_SNAPSHOT, whatever the busy timeout. Read-only ones begin deferred and cannot write.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Engine, create_engine, exc, make_url
from sqlalchemy.pool import PoolProxiedConnection

from consensus_orm import errors, files
from consensus_orm.databases.pool import Pool, close_before_fork
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
    "create",
    "database_path",
    "driver",
    "prepare",
    "source_of",
    "translated",
]


"""Where the tool keeps its file, and so where a store opens without a URL."""


MEMORY = ":memory:"
"""The database that is gone with its connection."""

FILE_URI = "file:"
"""How a URI begins that SQLite would read itself."""

HONOURED = frozenset({("uri", "true"), ("uri", "1"), ("mode", "rwc")})
"""Parameters of a URL that say what is done anyway."""

BROKEN_DISK = (
    "nothing of this unit of work was kept; look at the disk, and whether somebody removed the -wal file"
    " (then close every program that has the database open: the last one saves what the log held)"
)


UNTRUSTED = (
    "a trigger, view or constraint of the file uses what its schema is not trusted with: open the store again where"
    " another program has made a virtual table meanwhile, or set CONSENSUS_ORM_TRUSTED_SCHEMA=true"
)


_log = logging.getLogger(__name__)


def source_of(engine: Engine) -> Source:
    """The source of an engine's connections."""
    source: Source = cast("Pool", engine.pool).source
    return source


def parse_url(url: str | Path | URL) -> URL:
    """Read a SQLAlchemy URL or a path.

    Args:
        url: A URL, a path, or `:memory:`.

    Returns:
        The URL; of a SQLite file, with the one path that is left when every link is followed.

    Raises:
        ConfigurationError: It is no URL, or its database is not supported.
    """
    if isinstance(url, Path) and str(url) != MEMORY:
        url = URL.create("sqlite", database=str(files.resolved(url)))
    if not isinstance(url, str | Path | URL):
        raise errors.ConfigurationError(f"{type(url).__name__} is no URL", hint="give a path or sqlite:///PATH")
    if not isinstance(url, URL):
        text = str(url)
        if not text:
            raise errors.ConfigurationError("the URL is empty", hint="give a path or sqlite:///PATH")
        try:
            is_url = "://" in text and not text.startswith(FILE_URI)
            url = make_url(text) if is_url else URL.create("sqlite", database=text)
        except (exc.ArgumentError, ValueError):
            # The text is not repeated: it may hold a password.
            raise errors.ConfigurationError("the URL cannot be read", hint="give a path or sqlite:///PATH") from None
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite":
        raise errors.ConfigurationError(
            f"databases of type {url.get_backend_name()!r} are not supported",
            hint="give a path, sqlite:///PATH or postgresql://USER@HOST/DATABASE",
        )
    return _file_url(url)


def _file_url(url: URL) -> URL:
    """The URL of a SQLite file by its one name, however it was spelled."""
    path, query = url.database or MEMORY, dict(url.query)
    if path.startswith(FILE_URI):
        path, more = files.of_uri(path)
        query |= more
    # A parameter that is passed over in silence might have been the one that keeps the file from being written.
    if refused := sorted(name for name, value in query.items() if (name, value) not in HONOURED):
        raise errors.ConfigurationError(
            f"the URL sets {', '.join(refused)}, which this package does not support",
            hint="leave it out; pragmas are settings, and reading alone is unit_of_work(read_only=True)",
        )
    return url.set(database=path if path == MEMORY else str(files.resolved(path)), query={})


def database_path(engine: Engine) -> Path | None:
    """The file behind an engine; None for a database in memory."""
    name = engine.url.database
    if engine.dialect.name != "sqlite":
        return None
    return None if name in (None, "", MEMORY) else Path(str(name))


def create(url: str | Path | URL, settings: Settings, *, echo: bool = False) -> Engine:
    """Make the pooled engine of a store; nothing is opened or created yet.

    Args:
        url: What `parse_url` reads.
        settings: Pool and pragma settings.
        echo: Log each statement that goes through SQLAlchemy.

    Returns:
        The engine.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    parsed = parse_url(url)
    pool = _server_pool(parsed, settings) if parsed.get_backend_name() == "postgresql" else _pool(parsed, settings)
    # Errors of SQLAlchemy would repeat the parameters, which are contents of rows.
    engine = create_engine(parsed, echo=echo, hide_parameters=True, pool=pool)
    # An event listener would cost 26 us a transaction, this costs 2 (both measured). Sessions and alembic get
    # the write lock at once; a unit of work has begun already, in its own mode, and is left alone.
    engine.dialect.do_begin = _begin_if_needed  # type: ignore[assignment, method-assign]
    close_before_fork(engine)
    return engine


def _pool(url: URL, settings: Settings) -> Pool:
    path = None if url.database == MEMORY else Path(str(url.database))
    if path is not None:
        files.require_usable(path)
    # A database in memory lives as long as its one connection; the pool makes the others wait for it.
    size = settings.pool_size if path else 1
    return Pool(Source(path, settings), size, settings.pool_timeout.total_seconds())


def _server_pool(url: URL, settings: Settings) -> Pool:
    try:
        from consensus_orm.databases.postgresql.connection import ServerPool, ServerSource
    except ImportError as error:
        raise errors.ConfigurationError(
            "a PostgreSQL URL needs psycopg", hint="pip install 'consensus-orm[postgres]'"
        ) from error
    return ServerPool(ServerSource(url, settings), settings.pool_size, settings.pool_timeout.total_seconds())


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


def _begin_if_needed(connection: Any) -> None:
    if not connection.in_transaction:
        begin(connection, write=True)


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


_BY_CODE: dict[int, type[errors.StorageError]] = {
    sqlite3.SQLITE_BUSY: errors.DatabaseBusyError,
    sqlite3.SQLITE_LOCKED: errors.DatabaseBusyError,
    sqlite3.SQLITE_PROTOCOL: errors.DatabaseBusyError,
    sqlite3.SQLITE_FULL: errors.DatabaseFullError,
    sqlite3.SQLITE_CORRUPT: errors.CorruptDatabaseError,
    sqlite3.SQLITE_NOTADB: errors.NotADatabaseError,
    sqlite3.SQLITE_READONLY: errors.ReadOnlyDatabaseError,
    sqlite3.SQLITE_PERM: errors.ReadOnlyDatabaseError,
    sqlite3.SQLITE_CANTOPEN: errors.ReadOnlyDatabaseError,
}
"""Primary result codes of SQLite (sqlite.org/rescode.html) and what they are to a user."""


def translate(error: BaseException, engine: Engine) -> errors.ConsensusError | None:
    """Say in our words what the driver or SQLAlchemy said in theirs.

    Args:
        error: The error as it was raised.
        engine: Names the database in the message, without password.

    Returns:
        The error to raise instead, or None where this is none of the database's. The code of SQLite stays
        readable in its attribute `sqlite_errorcode`.
    """
    if isinstance(error, exc.TimeoutError):
        return errors.PoolExhaustedError(pool_size=engine.pool.size())  # type: ignore[attr-defined]
    if isinstance(error, exc.DBAPIError) and isinstance(error.orig, Exception):
        error = error.orig
    if isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError):
        return errors.ReadOnlyDatabaseError(f"{engine.url.database}: {error.strerror}", path=error.filename)
    psycopg = sys.modules.get("psycopg")  # who has not loaded it has none of its errors
    of_psycopg: Any = error
    if psycopg is not None and isinstance(of_psycopg, psycopg.Error):
        from consensus_orm.databases.postgresql import errors as of_server

        return of_server.translate(of_psycopg, engine.url.database)
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    kind = errors.StorageError if code is None else _BY_CODE.get(code & 0xFF, errors.StorageError)
    hint = BROKEN_DISK if code is not None and code & 0xFF == sqlite3.SQLITE_IOERR else None
    if "unsafe use of" in str(error):  # SQLite has no code for it
        hint = UNTRUSTED
    return kind(f"{engine.url.database}: {error}", hint=hint, sqlite_errorcode=code)


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
