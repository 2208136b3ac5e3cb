"""Maintenance: statistics, vacuum and backup of one store, in one place."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from consensus_orm import validation as check
from consensus_orm.databases import opening
from consensus_orm.databases.engine import database_path
from consensus_orm.databases.sqlite.vacuum import VacuumScheduler
from consensus_orm.databases.statistics import BackupReport, DatabaseStats, VacuumReport
from consensus_orm.files import Leftover, leftovers
from consensus_orm.retrying.repetition import Repeat, once
from consensus_orm.settings import Settings

__all__ = ["Maintenance"]


@check.checked
class Maintenance:
    """Statistics, vacuum and backup of a database.

    Args:
        engine: The engine of a store.
        settings: The settings of the store.
        tables: The names of the tables of a server to be maintained and backed up, besides the control tables.
        repeat: Repeats a step after a transient error, as the retrier of the store does; by default never.
    """

    def __init__(
        self, engine: Engine, settings: Settings, *, tables: Collection[str] = (), repeat: Repeat = once
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.tables = tables
        self._repeat = repeat
        self._scheduler: VacuumScheduler | None = None
        self._lock = threading.Lock()

    def stats(self) -> DatabaseStats:
        """Read the settings in force, the bytes on disk and the use of the pool, without writing.

        Raises:
            PoolExhaustedError: No connection came free in time.
            StorageError: The database cannot be read.
        """
        return self._repeat(lambda: opening.collect(self.engine, self.tables))

    def vacuum(self, *, full: bool = False, progress: Callable[[int, int], object] | None = None) -> VacuumReport:
        """Return free space to the file system, in small steps.

        Args:
            full: Rewrite the whole file, which converts one that cannot shrink in steps.
            progress: Called with the pages freed so far and the pages there were to free.

        Returns:
            What was done, with bytes on disk before and after.

        Raises:
            DatabaseBusyError: Another vacuum is running, or another connection kept the write lock.
            StorageError: The file cannot be written.
        """
        return opening.vacuum(self.engine, self.tables, full=full, progress=progress, repeat=self._repeat)

    def schedule_vacuum(self, interval: timedelta = timedelta(days=1)) -> VacuumScheduler:
        """Vacuum from time to time on a daemon thread, which replaces an earlier schedule.

        Args:
            interval: Approximate time between two vacuums.

        Returns:
            The running scheduler; `close` ends it too.
        """
        with self._lock:
            self._stop()
            work = partial(opening.vacuum, tables=self.tables)
            self._scheduler = VacuumScheduler(self.engine, interval, work=work).start()
            return self._scheduler

    def backup(
        self,
        path: Path | str,
        *,
        overwrite: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> BackupReport:
        """Copy the database as of one moment, and verify the copy, while writers continue.

        Args:
            path: The path of the backup: a file, or of a server a folder with a file for each table.
            overwrite: Replace a backup that exists.
            progress: Called with the pages copied so far and all pages, on a server about so many.

        Returns:
            What was copied.

        Raises:
            BackupError: The target cannot be used, or the copy could not be made or did not verify.
        """
        how = {"overwrite": overwrite, "progress": progress}
        return self._repeat(lambda: opening.backup(self.engine, path, self.tables, **how))

    def leftovers(self) -> list[Leftover]:
        """Find copies that killed processes left behind and no process uses.

        Copies for backups are beside the database and in `backup_dir`, those for rehearsals in the system's folder for
        temporary files, and on a server beside the database. The lock of its process marks a copy that is in use.

        Returns:
            The copies, each with the command that removes it; on a server also those that `--keep` kept.

        Raises:
            StorageError: The server cannot be asked.
        """
        path = database_path(self.engine)
        folders = [Path() if path is None else path.parent, self.settings.backup_dir, Path(tempfile.gettempdir())]
        found = leftovers(folder for folder in folders if folder is not None)
        if self.engine.dialect.name == "postgresql":
            from consensus_orm.databases.postgresql import vacuum

            found += vacuum.rehearsals(self.engine)
        return found

    def close(self) -> None:
        """End the schedule; call it before disposing of the engine."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._scheduler is not None:
            self._scheduler.stop()
            self._scheduler = None
