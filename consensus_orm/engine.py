"""Pool, pragmas and BEGIN: the one place that knows how a database is opened and a transaction begun.

Transactions are begun here and nowhere else: with the driver's own transaction control, a unit of work that
reads before it writes loses updates without an error. Writing units of work take the write lock with their
first statement (BEGIN IMMEDIATE), because a deferred transaction that read first fails at once with
SQLITE_BUSY_SNAPSHOT, whatever the busy timeout. Read-only ones begin deferred and cannot write.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, exc, make_url
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from consensus_orm import errors
from consensus_orm.settings import Settings

__all__ = ["DEFAULT_PATH", "DriverConnection", "begin", "checkout", "create", "database_path", "translated"]

DEFAULT_PATH = "~/.code/consensus_artifacts.db"
"""Where the tool keeps its file, and so where a store opens without a URL."""

FILE_MODE = 0o600
"""Mode of a new database file: what agents say is nobody else's to read."""


class DriverConnection(sqlite3.Connection):
    """The driver's connection, which remembers whether it may write."""

    query_only = False

    def allow_writes(self, allowed: bool) -> None:
        """Let SQLite itself refuse writes, or accept them; sends a pragma only when that changes."""
        if self.query_only is allowed:
            self.execute(f"PRAGMA query_only = {'OFF' if allowed else 'ON'}")
            self.query_only = not allowed


def parse_url(url: str | Path | URL | None) -> URL:
    """Read a SQLAlchemy URL or a path.

    Args:
        url: A URL, a path, `:memory:`, or None for the tool's own file.

    Returns:
        The URL; of a SQLite file, with an absolute path.

    Raises:
        ConfigurationError: It is no URL, or its database is not supported.
    """
    if url is None:
        url = DEFAULT_PATH
    if not isinstance(url, URL):
        text = str(url)
        if not text:
            raise errors.ConfigurationError("the URL is empty", hint="give a path or sqlite:///PATH")
        try:
            url = make_url(text) if "://" in text else URL.create("sqlite", database=text)
        except exc.ArgumentError:
            # The text is not repeated: it may hold a password.
            raise errors.ConfigurationError(
                "the URL cannot be read", hint="give a path or sqlite:///PATH"
            ) from None
    if url.get_backend_name() != "sqlite":
        raise errors.ConfigurationError(
            f"databases of type {url.get_backend_name()!r} are not supported by this release",
            hint="give a path or sqlite:///PATH",
        )
    if url.database in (None, "", ":memory:"):
        return url.set(database=":memory:")
    return url.set(database=str(Path(str(url.database)).expanduser().absolute()))


def database_path(engine: Engine) -> Path | None:
    """The file behind an engine; None for a database in memory."""
    name = engine.url.database
    return None if name in (None, "", ":memory:") else Path(str(name))


def create(url: str | Path | URL | None, settings: Settings, *, echo: bool = False) -> Engine:
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
    path = None if parsed.database == ":memory:" else Path(str(parsed.database))
    engine = create_engine(
        parsed,
        echo=echo,
        # Errors of SQLAlchemy would repeat the parameters, which are contents of rows.
        hide_parameters=True,
        creator=lambda: _connect(path, settings),
        poolclass=QueuePool,
        # A database in memory lives as long as its one connection; the pool makes the others wait for it.
        pool_size=settings.pool_size if path else 1,
        max_overflow=0,
        pool_timeout=settings.pool_timeout.total_seconds(),
        pool_use_lifo=True,
    )
    # An event listener would cost 26 us a transaction, this costs 2 (both measured). Sessions and alembic get
    # the write lock at once; a unit of work has begun already, in its own mode, and is left alone.
    engine.dialect.do_begin = _begin_if_needed  # type: ignore[method-assign]
    _forget_connections_after_fork(engine)
    return engine


def _connect(path: Path | None, settings: Settings) -> DriverConnection:
    if path is not None and not path.exists():
        _make_file(path)
    connection = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=settings.busy_timeout.total_seconds(),
        isolation_level=None,
        check_same_thread=False,
        cached_statements=512,
        factory=DriverConnection,
    )
    for pragma, value in pragmas(settings).items():
        connection.execute(f"PRAGMA {pragma} = {value}").close()
    connection.create_function("consensus_is_utf8", 1, _is_utf8, deterministic=True)
    return connection


def pragmas(settings: Settings) -> dict[str, int | str]:
    """The pragmas asked for on every connection; none of them writes to the file."""
    return {
        "busy_timeout": milliseconds(settings.busy_timeout),
        "foreign_keys": "ON",
        "synchronous": settings.synchronous,
        "cache_size": settings.cache_size,
        "mmap_size": settings.mmap_size,
        "temp_store": settings.temp_store,
        "wal_autocheckpoint": settings.wal_autocheckpoint,
    }


def milliseconds(duration: timedelta) -> int:
    """A duration in whole milliseconds, rounded up so that a short one does not become none."""
    return -(-duration // timedelta(milliseconds=1))


def _make_file(path: Path) -> None:
    """Create a new database file that only its owner reads; a race with another process is no error."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))


def _is_utf8(value: object) -> bool:
    """Whether the bytes of a value are UTF-8; SQL has no word for it."""
    try:
        bytes(value).decode() if isinstance(value, bytes) else None
    except UnicodeDecodeError:
        return False
    return True


def _begin_if_needed(connection: Any) -> None:
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")


def begin(connection: DriverConnection, *, write: bool) -> None:
    """Begin a transaction.

    Args:
        connection: A connection without a transaction.
        write: True takes the write lock now, waiting at most the busy timeout; False sees one snapshot, takes
            no lock and cannot write.
    """
    connection.allow_writes(write)
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")


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
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    kind = errors.StorageError if code is None else _BY_CODE.get(code & 0xFF, errors.StorageError)
    return kind(f"{engine.url.database}: {error}", sqlite_errorcode=code)


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


def _forget_connections_after_fork(engine: Engine) -> None:
    """Give a forked child a pool of its own: a SQLite connection must not cross a fork."""
    if hasattr(os, "register_at_fork"):
        reference = weakref.ref(engine)

        def forget() -> None:
            if (alive := reference()) is not None:
                alive.dispose(close=False)

        os.register_at_fork(after_in_child=forget)
