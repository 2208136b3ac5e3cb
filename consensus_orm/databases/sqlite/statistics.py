"""Statistics of a SQLite file: the settings in force, read from a connection, and its size on disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Engine

from consensus_orm.databases.engine import (
    DriverConnection,
    checkout,
    database_path,
    driver,
    pool_of,
    source_of,
    translated,
)
from consensus_orm.databases.sqlite import write_ahead_log
from consensus_orm.databases.statistics import DatabaseStats, DiskUse

__all__ = ["collect", "disk_use"]

_NAMES = {
    "synchronous": ("OFF", "NORMAL", "FULL", "EXTRA"),
    "temp_store": ("DEFAULT", "FILE", "MEMORY"),
    "auto_vacuum": ("NONE", "FULL", "INCREMENTAL"),
}
"""Names of the numbers of these pragmas (sqlite.org/pragma.html)."""

_NUMBERS = (
    *("busy_timeout", "cache_size", "mmap_size", "page_size", "page_count", "freelist_count"),
    *("user_version", "wal_autocheckpoint"),
)


def collect(engine: Engine) -> DatabaseStats:
    """Read the settings in force and the sizes; see `Maintenance.stats`."""
    with checkout(engine) as pooled, translated(engine):
        found = _in_force(driver(pooled))
        use = pool_of(engine).use()
    path = database_path(engine)
    stats = DatabaseStats.model_validate(
        {**found, "path": path, "sqlite_version": sqlite3.sqlite_version, "disk": disk_use(path), "pool": use}
    )
    return stats.model_copy(update={"notes": _notes(engine, stats)})


def disk_use(path: Path | None) -> DiskUse:
    """The bytes of a database file and of the two files beside it; none for a database in memory."""
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
