"""Statistics: what is in force on a database and what it takes on disk, and what a vacuum did."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

__all__ = ["DatabaseStats", "DiskUse", "PoolUse", "VacuumReport"]


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


class VacuumReport(BaseModel):
    """What a vacuum did.

    Times are in seconds. `longest_lock` is the longest time the write lock was held, by a step, by the
    conversion or by the checkpoint. `notes` says what was not done, and why.
    """

    model_config = ConfigDict(frozen=True)

    path: Path | None
    before: DiskUse
    after: DiskUse
    pages_freed: int
    steps: int
    converted: bool
    longest_lock: float
    seconds: float
    notes: tuple[str, ...] = ()
