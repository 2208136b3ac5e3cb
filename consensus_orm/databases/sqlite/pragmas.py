"""The pragmas of a connection to a SQLite file, as the settings ask for them and while a unit of work changes them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from consensus_orm.databases.sqlite import parameters
from consensus_orm.settings import Settings

__all__ = ["ConfiguredConnection", "milliseconds"]

_NAMES = 2**16
"""Bytes for the names of columns in the image of a row, which holds two hexadecimal digits for each byte of it."""


class ConfiguredConnection(sqlite3.Connection):
    """A connection with the pragmas of the settings."""

    settings: Settings
    query_only = False
    """Whether SQLite refuses writes."""
    _leaves_log = False
    _durable = False

    def configure(self, settings: Settings, *, trusted_schema: bool) -> None:
        """Set the pragmas, none of which writes to the file, and add the functions of the package's own statements."""
        self.settings = settings
        asked = {
            "busy_timeout": milliseconds(settings.busy_timeout),
            "foreign_keys": "ON",
            "synchronous": settings.synchronous,
            "cache_size": settings.cache_size,
            "mmap_size": settings.mmap_size,
            "temp_store": settings.temp_store,
            "wal_autocheckpoint": settings.wal_autocheckpoint,
        }
        for name, value in asked.items():
            self.execute(f"PRAGMA {name} = {value}").close()
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * settings.max_row_bytes + _NAMES)
        self.trust_schema(trusted_schema)
        self.create_function("consensus_is_text", 2, parameters.is_text, deterministic=True)
        self.create_collation("consensus_code_points", parameters.by_code_points)

    def trust_schema(self, trusted: bool) -> None:
        """Allow triggers, views and constraints of the file to use any function and virtual table."""
        self.execute(f"PRAGMA trusted_schema = {'ON' if trusted else 'OFF'}").close()

    def allow_writes(self, allowed: bool) -> None:
        """Have SQLite accept or refuse writes; sends a pragma only if that changes."""
        if self.query_only is allowed:
            self.execute(f"PRAGMA query_only = {'OFF' if allowed else 'ON'}")
            self.query_only = not allowed

    def leave_log(self) -> None:
        """Commit without checkpoints, which another thread takes, until the return to the pool."""
        self.execute("PRAGMA wal_autocheckpoint = 0")
        self._leaves_log = True

    def be_durable(self) -> None:
        """Have each commit, and all before it, reach the disk, until the return to the pool.

        EXTRA also waits for the removal of a rollback journal, which would else be rolled back after a power cut.
        """
        if not self._durable:
            self.execute("PRAGMA synchronous = EXTRA")
            self._durable = True

    def be_as_configured(self) -> None:
        """Undo `be_durable` and `leave_log`; the pool calls it."""
        if self._durable:
            self.execute(f"PRAGMA synchronous = {self.settings.synchronous}")
            self._durable = False
        if self._leaves_log:
            self.execute(f"PRAGMA wal_autocheckpoint = {self.settings.wal_autocheckpoint}")
            self._leaves_log = False

    def pragma(self, name: str) -> Any:
        """Read a pragma; None if it returns no row."""
        row = self.execute(f"PRAGMA {name}").fetchone()
        return row and row[0]

    def checkpoint(self, mode: str) -> int:
        """Take a checkpoint as far as no other connection prevents it, without waiting for one that does.

        Args:
            mode: PASSIVE, or RESTART to have the log begin anew, which keeps writers out until it is copied.

        Returns:
            How many pages the log has; -1 if there is no log, or another connection is taking a checkpoint.
        """
        with self.without_waiting():
            _, pages, _ = self.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        return int(pages)

    @contextlib.contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Have SQLite fail at once for a lock that another connection holds, within a block."""
        self.execute("PRAGMA busy_timeout = 0")
        try:
            yield
        finally:
            self.wait_as_configured()

    def wait_as_configured(self) -> None:
        """Have SQLite wait for locks as long as the settings say."""
        self.execute(f"PRAGMA busy_timeout = {milliseconds(self.settings.busy_timeout)}")


def milliseconds(duration: timedelta) -> int:
    """A duration in whole milliseconds, rounded up so that a short one does not become 0."""
    return -(-duration // timedelta(milliseconds=1))
