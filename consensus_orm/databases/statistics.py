"""Statistics of a database: the settings in force, its size on disk, and the result of a vacuum."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BackupReport", "DatabaseStats", "DiskUse", "PoolUse", "VacuumReport"]


class DiskUse(BaseModel):
    """Bytes on disk, as the file system counts them; 0 for a file that does not exist."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    database: int = 0
    wal: int = 0
    shm: int = 0

    @property
    def total(self) -> int:
        """The total in bytes."""
        return self.database + self.wal + self.shm


class PoolUse(BaseModel):
    """The connections of an engine of this process.

    `size` is the limit, `open` counts the open ones, `lent` those in use, `waiting` the threads that wait for one.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    size: int
    open: int
    lent: int
    waiting: int


class DatabaseStats(BaseModel):
    """The settings that are in force on a SQLite database, and its size.

    `busy_timeout` is in milliseconds, `mmap_size` and `page_size` in bytes, `cache_size` in pages or, if negative, in
    KiB. `notes` are sentences about what is not as it should be, each with its remedy.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

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


class BackupReport(BaseModel):
    """A verified backup.

    `bytes` is the size of the copy, `rows` has the number of rows of each table. Of a SQLite file, `pages` and
    `user_version` are those of the copy, and the original has the same `foreign_key_violations`.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    path: Path
    bytes: int
    rows: dict[str, int]
    seconds: float
    pages: int | None = None
    user_version: int | None = None
    foreign_key_violations: int | None = None


class VacuumReport(BaseModel):
    """The result of a vacuum.

    Times are in seconds. `longest_lock` is the longest time for which a step, the conversion or the checkpoint held the
    write lock. `notes` say what was not done, and why.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    path: Path | None = None
    before: DiskUse = Field(default_factory=DiskUse)
    after: DiskUse = Field(default_factory=DiskUse)
    pages_freed: int = 0
    steps: int = 0
    converted: bool = False
    longest_lock: float = 0.0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
