"""Statistics: what is in force on a database, read back from it, and what it takes on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine

from consensus_orm.databases.engine import DriverConnection, checkout, database_path, driver, source_of, translated
from consensus_orm.databases.pool import Pool
from consensus_orm.databases.sqlite import write_ahead_log

__all__ = ["DatabaseStats", "DiskUse", "PoolUse", "collect", "disk_use"]

_NAMES = {
    "synchronous": ("OFF", "NORMAL", "FULL", "EXTRA"),
    "temp_store": ("DEFAULT", "FILE", "MEMORY"),
    "auto_vacuum": ("NONE", "FULL", "INCREMENTAL"),
}
"""What the numbers of these pragmas mean (sqlite.org/pragma.html)."""

_NUMBERS = (
    *("busy_timeout", "cache_size", "mmap_size", "page_size", "page_count", "freelist_count"),
    *("user_version", "wal_autocheckpoint"),
)


class DiskUse(BaseModel):
    """Bytes on disk, as the file system counts them; 0 for a file that is not there."""

    model_config = ConfigDict(frozen=True)

    database: int = 0
    wal: int = 0
    shm: int = 0

    @property
    def total(self) -> int:
        """All of it together, in bytes."""
        return self.database + self.wal + self.shm


class PoolUse(BaseModel):
    """The connections of this process's engine.

    `size` is how many there may be, `open` how many there are, `lent` how many are in use, `waiting` how
    many threads wait for one.
    """

    model_config = ConfigDict(frozen=True)

    size: int
    open: int
    lent: int
    waiting: int


class DatabaseStats(BaseModel):
    """What is in force on a database now, not what was asked for.

    `busy_timeout` is in milliseconds, `mmap_size` and `page_size` in bytes, `cache_size` in pages or, where
    negative, in KiB. `notes` says in words what is not as it should be, and what would help.
    """

    model_config = ConfigDict(frozen=True)

    path: Path | None
    sqlite_version: str
    journal_mode: str
    synchronous: str
    foreign_keys: bool
    busy_timeout: int
    cache_size: int
    mmap_size: int
    temp_store: str
    wal_autocheckpoint: int
    auto_vacuum: str
    page_size: int
    page_count: int
    freelist_count: int
    user_version: int
    encoding: str
    disk: DiskUse
    pool: PoolUse
    notes: tuple[str, ...] = ()


def collect(engine: Engine, tables: Collection[str] = ()) -> DatabaseStats:
    """Read what is in force, from a connection of the pool; writes nothing.

    Args:
        engine: The engine of a store.
        tables: The names of the tables of a server that are counted, beside the control tables.

    Returns:
        The statistics; of a server `consensus_orm.databases.postgresql.vacuum.ServerStats`.

    Raises:
        PoolExhaustedError: All connections stayed lent.
        StorageError: The database cannot be read.
    """
    if engine.dialect.name == "postgresql":
        from consensus_orm.databases.postgresql import vacuum

        return cast("DatabaseStats", vacuum.collect(engine, tables))  # as far as a server has what a file has
    pool = cast("Pool", engine.pool)
    with checkout(engine) as pooled, translated(engine):
        found = _in_force(driver(pooled))
        use = PoolUse(
            size=pool.size(),
            open=len(pool.source.connections),
            lent=pool.checkedout() - 1,  # this one goes back at once
            waiting=pool.waiting,
        )
    path = database_path(engine)
    stats = DatabaseStats.model_validate(
        {**found, "path": path, "sqlite_version": sqlite3.sqlite_version, "disk": disk_use(path), "pool": use}
    )
    return stats.model_copy(update={"notes": _notes(engine, stats)})


def disk_use(path: Path | None) -> DiskUse:
    """Measure a database on disk.

    Args:
        path: The database file; None for one in memory.

    Returns:
        The bytes of the file and of the two beside it.
    """
    if path is None:
        return DiskUse()
    return DiskUse(database=_size(path), wal=_size(Path(f"{path}-wal")), shm=_size(Path(f"{path}-shm")))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _in_force(connection: DriverConnection) -> dict[str, object]:
    # A database in memory has no mmap_size: the pragma gives no row.
    found: dict[str, object] = {name: connection.pragma(name) or 0 for name in _NUMBERS}
    for name, words in _NAMES.items():
        found[name] = words[int(connection.pragma(name))]
    found["journal_mode"] = connection.pragma("journal_mode")
    found["foreign_keys"] = connection.pragma("foreign_keys")
    found["encoding"] = connection.pragma("encoding")
    return found


def _notes(engine: Engine, stats: DatabaseStats) -> tuple[str, ...]:
    notes = []
    if stats.path is not None and stats.journal_mode != "wal":
        notes.append(f"journal mode is {stats.journal_mode}, not WAL: {_why_not_wal(engine, stats.path)}")
    if stats.path is not None and stats.auto_vacuum == "NONE" and stats.page_count:
        notes.append("the file cannot shrink in small steps; `consensus-orm vacuum --full` converts it")
    if stats.freelist_count * 2 > stats.page_count:
        free = stats.freelist_count * stats.page_size
        notes.append(f"{free:,} of {stats.disk.database:,} bytes are free; `consensus-orm vacuum` returns them")
    return tuple(notes)


def _why_not_wal(engine: Engine, path: Path) -> str:
    source = source_of(engine)
    if source.journal is not None and source.journal.refused:
        return source.journal.refused
    if others := write_ahead_log.occupants(path, own=len(source.connections)):
        return f"{others[0]} has the file open"
    return "nothing of this release has written to it yet; `consensus-orm upgrade` switches it"
