"""The backup before a step that drops or rewrites tables: its folder and its name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from consensus_orm import files
from consensus_orm.databases.engine import database_path
from consensus_orm.progress import Watch
from consensus_orm.settings import Settings

__all__ = ["StepBackups"]


class StepBackups:
    """Backs up a database before a step.

    Args:
        engine: The engine of the database.
        settings: With `backup_dir`, the folder of backups.
        back_up: Backs the database up to a path, verifies it, and returns facts for the audit.
    """

    def __init__(self, engine: Engine, settings: Settings, back_up: Callable[[Path, Watch], dict[str, Any]]) -> None:
        self._engine = engine
        self._settings = settings
        self._back_up = back_up

    def place(self, step: str, time: str) -> Path:
        """The path of the backup before a step: beside the file, or for a server in the current folder.

        Args:
            step: The step.
            time: The time of the backup, for its name.
        """
        return self.path(f".before-{step}-{time}")

    def path(self, suffix: str) -> Path:
        """The path of a backup whose name ends so."""
        path = database_path(self._engine)
        folder = files.resolved(self._settings.backup_dir or (Path.cwd() if path is None else path.parent))
        database = path or Path(str(self._engine.url.database).replace("/", "_"))
        return files.derived(database, suffix, folder=folder)

    def take(self, step: str, progress: Watch = None) -> dict[str, Any]:
        """Back up the database before a step.

        Args:
            step: The step.
            progress: Called after each chunk.

        Returns:
            Facts for the audit; none for a database in memory.

        Raises:
            BackupError: The backup failed, so the step must not be taken.
        """
        if database_path(self._engine) is None and self._engine.dialect.name == "sqlite":
            return {}
        return self._back_up(self.place(step, f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"), progress)
