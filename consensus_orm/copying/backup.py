"""The backup of a database on a server: a verified copy of one moment of it, in a SQLite file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consensus_orm import errors
from consensus_orm.copying import copy
from consensus_orm.files import own_folder, put_in_place
from consensus_orm.migration.progress import Watch
from consensus_orm.store import Store

__all__ = ["backup_of_server"]


def backup_of_server(store: Store, path: Path, progress: Watch = None) -> dict[str, Any]:
    """Copy a store to a SQLite file, which gets its name when it is whole.

    Args:
        store: The store; its writers go on.
        path: Where to.
        progress: Called after each chunk.

    Returns:
        Facts for the audit.

    Raises:
        BackupError: It could not be made, or did not verify.
    """
    try:
        with own_folder(path.parent, "backup") as folder:
            mapping = store._statements.mapping
            settings = store.settings.model_copy(update={"read_url": None})  # the file has no replica
            with type(store).open(folder / path.name, settings=settings, mapping=mapping) as target:
                # What SQLite would store as another type is kept as it is in a reject: a backup must not fail for it.
                report = copy(store, target, reject=True, lock=False, progress=progress)
            put_in_place(folder / path.name, path)
    except (errors.ConsensusError, OSError) as error:
        raise errors.BackupError(f"{path} could not be made: {error}", path=path) from error
    return {"backup": str(path), "rows": report.rows, "rejects": len(report.unfit)}
