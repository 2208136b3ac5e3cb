"""Open a database by its URL; the only module that knows both kinds of database.

The modules of PostgreSQL need psycopg, and are imported when a URL names such a database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Engine, create_engine, exc, make_url

from consensus_orm import errors, files
from consensus_orm.databases import session_guard
from consensus_orm.databases.base import Catalog
from consensus_orm.databases.engine import MEMORY, pool_of
from consensus_orm.databases.pool import Pool, close_before_fork
from consensus_orm.databases.sqlite.connection import Source
from consensus_orm.databases.statistics import BackupReport, DatabaseStats, VacuumReport
from consensus_orm.settings import Settings
from consensus_orm.statements.rows import PairRendering

__all__ = [
    "backup", "catalog", "catalog_behind", "collect", "create", "forbid_writing", "has_secret", "look_in", "parse_url",
    "rendering", "vacuum", "without_secrets",
]  # fmt: skip


FILE_URI = "file:"
"""The prefix of a URI that SQLite would read itself."""

SERVERS = frozenset({"postgresql", "postgres"})
"""How a URL names a PostgreSQL server."""

SQLITE_DRIVERS = frozenset({"pysqlite", "aiosqlite"})
"""Drivers that a URL of a file may name; the package uses its own. That of SQLCipher would open another file."""

SECRETS = frozenset({"password", "sslpassword"})
"""Parameters of such a URL that are passwords."""

HONOURED = frozenset({("uri", "true"), ("uri", "1"), ("mode", "rwc")})
"""Parameters of a URL that ask for the default."""


def parse_url(url: str | Path | URL) -> URL:
    """Read a SQLAlchemy URL or a path.

    Args:
        url: A URL, a path, or `:memory:`.

    Returns:
        The URL; of a SQLite file, with its path after every symbolic link was followed.

    Raises:
        ConfigurationError: It is not a URL, or its database is not supported.
    """
    if isinstance(url, Path) and str(url) != MEMORY:
        url = URL.create("sqlite", database=str(files.resolved(url)))
    if not isinstance(url, str | Path | URL):
        raise errors.ConfigurationError(f"{type(url).__name__} is no URL", hint="give a path or sqlite:///PATH")
    if not isinstance(url, URL):
        url = _read(str(url))
    if url.get_backend_name() in SERVERS:
        return _server_url(url)
    if url.get_backend_name() != "sqlite":
        raise errors.ConfigurationError(
            f"databases of type {url.get_backend_name()!r} are not supported",
            hint="give a path, sqlite:///PATH or postgresql://USER@HOST/DATABASE",
        )
    return _file_url(url)


def _read(text: str) -> URL:
    if not text:
        raise errors.ConfigurationError("the URL is empty", hint="give a path or sqlite:///PATH")
    if "://" not in text or text.startswith(FILE_URI):
        return URL.create("sqlite", database=text)
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        # The text is not repeated: it may hold a password.
        raise errors.ConfigurationError("the URL cannot be read", hint="give a path or sqlite:///PATH") from None
    # What follows the first @ would be taken for the host, the database or a parameter, and be repeated in messages.
    if url.get_backend_name() in SERVERS and text.count("@") > 1:
        raise errors.ConfigurationError(
            "the URL has more than one @, so where its password ends is unclear",
            hint="write @ as %40 in the password, and wherever else it does not precede the host",
        )
    return url


def _server_url(url: URL) -> URL:
    """The URL of a server for the driver, with its password where SQLAlchemy hides it."""
    if (password := url.query.get("password")) is not None:
        url = url.difference_update_query(["password"]).set(password=str(password))
    return url.set(drivername="postgresql+psycopg")


def has_secret(url: URL) -> bool:
    """Whether a URL holds a password."""
    return url.password is not None or not SECRETS.isdisjoint(url.query)


def without_secrets(url: URL) -> str:
    """A URL of a server as messages name it."""
    return url.set(drivername="postgresql").difference_update_query(SECRETS).render_as_string(hide_password=True)


def _file_url(url: URL) -> URL:
    """The URL of a SQLite file with its resolved path."""
    path, query = url.database or MEMORY, dict(url.query)
    if path.startswith(FILE_URI):
        path, more = files.of_uri(path)
        query |= more
    # An ignored parameter might have been the one that protects the file from being written.
    if refused := sorted(name for name, value in query.items() if (name, value) not in HONOURED):
        raise errors.ConfigurationError(
            f"the URL sets {', '.join(refused)}, which this package does not support",
            hint="leave it out; pragmas are settings, and reading alone is unit_of_work(read_only=True)",
        )
    if (driver := url.drivername.partition("+")[2]) not in ("", *SQLITE_DRIVERS):
        raise errors.ConfigurationError(
            f"files of {driver!r:.40} are not supported", hint="give a path or sqlite:///PATH"
        )
    path = path if path == MEMORY else str(files.resolved(path))
    return url.set(drivername="sqlite", database=path, query={})


def create(url: str | Path | URL, settings: Settings, *, echo: bool = False) -> Engine:
    """Create the engine of a store, without opening or creating the database.

    Args:
        url: A URL, a path, or `:memory:`.
        settings: Pool and pragma settings.
        echo: Log each statement that goes through SQLAlchemy.

    Returns:
        The engine.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    parsed = parse_url(url)
    pool = _server_pool(parsed, settings) if parsed.get_backend_name() == "postgresql" else _pool(parsed, settings)
    # Errors of SQLAlchemy would contain the parameters, which are contents of rows.
    engine = create_engine(parsed, echo=echo, hide_parameters=True, pool=pool)
    # An event listener would cost 26 us a transaction, this costs 2 (both measured). Sessions and alembic take the
    # write lock at once; a unit of work has begun its transaction already.
    engine.dialect.do_begin = _begin_if_needed  # type: ignore[assignment, method-assign] # one dialect, not its class
    session_guard.listen(engine)
    close_before_fork(engine)
    return engine


def pooled(engine: Engine, settings: Settings) -> Engine:
    """The engine that a store works with, for one of the application's own.

    Args:
        engine: Any engine; one that `create` has made is given back.
        settings: Pool and pragma settings.

    Returns:
        An engine of ours for the same database, with its own connections.

    Raises:
        ConfigurationError: Its URL cannot be used, or its database is in memory, where no other connection sees it.
    """
    if isinstance(engine.pool, Pool):
        return engine
    if engine.dialect.name == "sqlite" and engine.url.database in (None, "", MEMORY):
        raise errors.ConfigurationError(
            "the database of this engine is in memory, where no other connection sees it",
            hint="open a store of its own with Store.open(':memory:', moves=...), or use a file",
        )
    return create(engine.url, settings, echo=bool(engine.echo))


def look_in(engine: Engine, schemas: tuple[str, ...]) -> None:
    """Have the connections of an engine find tables in schemas that moves name, too.

    Args:
        engine: The engine of a store.
        schemas: The schemas; those that it was told before are kept.

    Raises:
        ConfigurationError: It is of a file, which has no schemas.
    """
    if schemas and engine.dialect.name == "sqlite":
        raise errors.ConfigurationError(
            f"a model names the schema {schemas[0]!r:.60}, and a SQLite file has none",
            hint="leave `schema` out of __table_args__, or open a database of a server",
        )
    source = pool_of(engine).source
    source.schemas = tuple(dict.fromkeys([*source.schemas, *schemas]))


def forbid_writing(engine: Engine) -> None:
    """Have the connections of an engine unable to write from now on; those that are open are closed.

    Args:
        engine: The engine of a store.
    """
    pool_of(engine).source.reads_only = True
    engine.dispose()


def _pool(url: URL, settings: Settings) -> Pool:
    path = None if url.database == MEMORY else Path(str(url.database))
    if path is not None:
        files.require_usable(path)
    # A database in memory lives as long as its only connection, for which threads wait at the pool.
    size = settings.pool_size if path else 1
    return Pool(Source(path, settings), size, settings.pool_timeout.total_seconds())


def _server_pool(url: URL, settings: Settings) -> Pool:
    try:
        from consensus_orm.databases.postgresql.connection import ServerSource
    except ImportError as error:
        raise errors.ConfigurationError(
            "a PostgreSQL URL needs psycopg", hint="pip install 'consensus-orm[postgres]'"
        ) from error
    return Pool(ServerSource(url, settings), settings.pool_size, settings.pool_timeout.total_seconds())


def _begin_if_needed(connection: Any) -> None:
    if not connection.in_transaction:
        connection.begin(write=True)


@cache
def rendering(name: str) -> PairRendering:
    """The rendering of statements for a kind of database.

    Args:
        name: `sqlite` or `postgresql`, as SQLAlchemy calls it.
    """
    if name == "postgresql":
        from consensus_orm.databases.postgresql.rendering import PostgresRendering

        return PostgresRendering()
    from consensus_orm.databases.sqlite.rendering import SQLiteRendering

    return SQLiteRendering()


@cache
def catalog(name: str) -> Catalog:
    """The catalog of a kind of database.

    Args:
        name: `sqlite` or `postgresql`, as SQLAlchemy calls it.
    """
    if name == "postgresql":
        from consensus_orm.databases.postgresql.catalog import PostgresCatalog

        return PostgresCatalog()
    from consensus_orm.databases.sqlite.catalog import SQLiteCatalog

    return SQLiteCatalog()


def catalog_behind(connection: Any) -> Catalog:
    """The catalog of the database behind a connection of the driver."""
    return catalog("sqlite" if isinstance(connection, sqlite3.Connection) else "postgresql")


def collect(engine: Engine, tables: Collection[str] = ()) -> DatabaseStats:
    """Read the settings in force on a database, and its size; see `Maintenance.stats`.

    Args:
        engine: The engine of a store.
        tables: The names of the tables of a server to be measured, besides the control tables.

    Returns:
        The statistics; of a server `databases.postgresql.vacuum.ServerStats`.
    """
    if engine.dialect.name == "postgresql":
        from consensus_orm.databases.postgresql import vacuum

        return cast("DatabaseStats", vacuum.collect(engine, tables))  # which has the fields that a server has, too
    from consensus_orm.databases.sqlite import statistics

    return statistics.collect(engine)


def vacuum(engine: Engine, tables: Collection[str] = (), **how: Any) -> VacuumReport:
    """Return free space to the file system; see `Maintenance.vacuum`.

    Args:
        engine: The engine of a store.
        tables: The names of the tables of a server to be vacuumed, besides the control tables.
        **how: As for `databases.sqlite.vacuum.vacuum`.
    """
    if engine.dialect.name == "postgresql":
        from consensus_orm.databases.postgresql import vacuum as of_server

        return of_server.vacuum(engine, tables, **how)
    from consensus_orm.databases.sqlite import vacuum as of_file

    return of_file.vacuum(engine, **how)


def backup(engine: Engine, path: Path | str, tables: Collection[str] = (), **how: Any) -> BackupReport:
    """Copy a database to a file, or the tables of a server to a folder; see `Maintenance.backup`.

    Args:
        engine: The engine of a store.
        path: The path of the backup.
        tables: The names of the tables of a server to be copied, besides the control tables.
        **how: As for `databases.sqlite.backup.backup`.
    """
    if engine.dialect.name == "postgresql":
        from consensus_orm.databases.postgresql import backup as of_server

        return of_server.backup(engine, path, tables, **how)
    from consensus_orm.databases.sqlite import backup as of_file

    return of_file.backup(engine, path, **how)
