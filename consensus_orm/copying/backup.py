"""The backup of a database on a server: a verified copy of one snapshot of it in a SQLite file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from consensus_orm import errors
from consensus_orm.copying import copy
from consensus_orm.files import own_folder, put_in_place
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory

__all__ = ["backup_of_server"]


def backup_of_server(
    units: UnitOfWorkFactory[Any],
    path: Path,
    opened: Callable[[Path], AbstractContextManager[UnitOfWorkFactory[Any]]],
    progress: Watch = None,
) -> dict[str, Any]:
    """Copy a database to a SQLite file, which gets its name when it is complete.

    Args:
        units: The units of work of the database; writers go on.
        path: The file.
        opened: Opens a file of the same tables.
        progress: Called after each chunk.

    Returns:
        Facts for the audit.

    Raises:
        BackupError: The file could not be made, or its verification failed.
    """
    try:
        with own_folder(path.parent, "backup") as folder:
            with opened(folder / path.name) as target:
                # A value that SQLite would store as another type goes into a reject: a backup must not fail for it.
                report = copy(units, target, reject=True, lock=False, progress=progress)
            put_in_place(folder / path.name, path)
    except (errors.ConsensusError, OSError) as error:
        raise errors.BackupError(f"{path} could not be made: {error}", path=path) from error
    return {"backup": str(path), "rows": report.rows, "rejects": len(report.unfit)}
