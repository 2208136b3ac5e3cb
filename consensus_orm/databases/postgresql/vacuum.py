"""Statistics and vacuum of the package's tables on a server, not of the server itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, cast

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine

from consensus_orm.databases.engine import checkout, driver, pool_of, translated
from consensus_orm.databases.statistics import DiskUse, PoolUse, VacuumReport
from consensus_orm.files import Leftover
from consensus_orm.retrying.repetition import Repeat, once
from consensus_orm.statements.rendering import quoted

__all__ = ["ServerStats", "TableStats", "collect", "rehearsals", "vacuum"]


class TableStats(BaseModel):
    """The size of a table; `bytes` with its indexes, `rows` and `dead` as the server estimates them."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    rows: int
    dead: int
    bytes: int


class ServerStats(BaseModel):
    """The settings that are in force on a database of a server, and its size.

    `busy_timeout` is in milliseconds; `disk.database` is the whole database in bytes, with tables of other programs.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    path: None = None
    database: str
    server_version: str
    encoding: str
    collation: str
    isolation: str
    synchronous_commit: str
    busy_timeout: int
    tables: dict[str, TableStats]
    disk: DiskUse
    pool: PoolUse
    notes: tuple[str, ...] = ()


_IN_FORCE = (
    "SELECT current_database(), current_setting('server_version'), current_setting('server_encoding'), datcollate,"
    " current_setting('synchronous_commit'), pg_database_size(oid) FROM pg_database WHERE datname = current_database()"
)
_TABLES = (
    "SELECT c.relname, coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0), pg_total_relation_size(c.oid)"
    " FROM pg_class AS c LEFT JOIN pg_stat_user_tables AS s ON s.relid = c.oid"
    " WHERE c.relkind = 'r' AND pg_table_is_visible(c.oid) AND (c.relname = ANY (?) OR c.relname ^@ 'consensus_orm_')"
    " ORDER BY 1"
)


_REHEARSALS = (
    "SELECT datname, CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) END FROM pg_database"
    " WHERE starts_with(datname, ?) AND datname ~ '_rehearsal_[0-9a-f]{8}$'"
    " AND datname NOT IN (SELECT datname FROM pg_stat_activity WHERE datname IS NOT NULL) ORDER BY datname"
)
"""Copies of this database for rehearsals, to which no program is connected."""


def rehearsals(engine: Engine) -> list[Leftover]:
    """Find the databases of rehearsals that ended without removing them, which no longer hold their lock."""
    prefix = rehearsal_of(str(engine.url.database), "")
    with checkout(engine) as pooled, translated(engine):
        connection = cast("Any", driver(pooled))
        connection.begin(write=False)
        try:
            there = connection.execute(_REHEARSALS, (prefix,)).fetchall()
            # The end of the transaction releases the lock.
            free = [
                (name, size)
                for name, size in there
                if connection.execute("SELECT pg_try_advisory_xact_lock(hashtext(?))", (name,)).fetchone()[0]
            ]
        finally:
            connection.rollback()
    return [Leftover(name=name, bytes=size, remove=f"DROP DATABASE {quoted(name)}") for name, size in free]


def rehearsal_of(database: str, mark: str) -> str:
    """The name of the copy of a database for a rehearsal."""
    return f"{database[:40]}_rehearsal_{mark}"


def collect(engine: Engine, tables: Collection[str]) -> ServerStats:
    """Read the settings in force and the sizes; see `Maintenance.stats`.

    Args:
        engine: The engine of a store.
        tables: The names of the tables to be measured, besides the control tables.
    """
    with checkout(engine) as pooled, translated(engine):
        connection: Any = driver(pooled)
        name, version, encoding, collation, synchronous, size = connection.execute(_IN_FORCE).fetchone()
        found = _tables(connection, tables)
        settings = connection.source.settings
        pool_use = pool_of(engine).use()
    return ServerStats(
        database=name,
        server_version=version,
        encoding=encoding,
        collation=collation,
        isolation=settings.isolation.value,
        synchronous_commit=synchronous,
        busy_timeout=int(settings.busy_timeout.total_seconds() * 1000),
        tables=found,
        disk=DiskUse(database=size),
        pool=pool_use,
        notes=tuple(
            f"more than half of the rows of {table} are dead; `consensus-orm vacuum` makes room of them"
            for table, use in found.items()
            if use.dead > max(use.rows, 1000)
        ),
    )


def vacuum(
    engine: Engine,
    tables: Collection[str],
    *,
    full: bool = False,
    progress: Callable[[int, int], object] | None = None,
    cancelled: threading.Event | None = None,
    repeat: Repeat = once,
) -> VacuumReport:
    """Vacuum and analyze tables, while writers continue; see `Maintenance.vacuum`.

    Args:
        engine: The engine of a store.
        tables: The names of the tables to be vacuumed, besides the control tables.
        full: Return the space to the file system; a table can be neither read nor written while it is rewritten.
        progress: Called with the number of tables done so far and of all tables.
        cancelled: When set, ends the work after the current table.
        repeat: Repeats a step, the vacuum of one table, after a transient error.

    Returns:
        What was done, with the bytes of the tables before and after; a step is a table.
    """
    started = time.monotonic()
    with checkout(engine) as pooled, translated(engine):
        connection: Any = driver(pooled)
        before = _tables(connection, tables)
        for done, table in enumerate(before, start=1):
            command = f"VACUUM ({'FULL, ' if full else ''}ANALYZE) {quoted(table)}"
            repeat(partial(connection.execute, command))
            if progress is not None:
                progress(done, len(before))
            if cancelled is not None and cancelled.is_set():
                break
        after = _tables(connection, tables)
    return VacuumReport(
        before=DiskUse(database=sum(table.bytes for table in before.values())),
        after=DiskUse(database=sum(table.bytes for table in after.values())),
        steps=len(before),
        converted=full,
        seconds=time.monotonic() - started,
        notes=() if full else ("the server keeps the room for rows to come; `consensus-orm vacuum --full` returns it",),
    )


def _tables(connection: Any, names: Collection[str]) -> dict[str, TableStats]:
    rows = connection.execute(_TABLES, (list(names),)).fetchall()
    return {name: TableStats(rows=live, dead=dead, bytes=size) for name, live, dead, size in rows}
