"""Backup: a verified copy of a database as of one moment, made while writers continue.

The copy is made inside one read transaction. SQLite's online backup begins again whenever another process writes
between two of its steps, and so never ends under a steady writer; in a transaction it reads one snapshot to the end. In
WAL mode writers do not wait for it; in a rollback mode they wait for its end, because they cannot commit during a read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from consensus_orm import errors, files
from consensus_orm.databases.engine import checkout, database_path, driver
from consensus_orm.databases.statistics import BackupReport
from consensus_orm.files import BESIDE, own_folder, put_in_place
from consensus_orm.statements.rendering import quoted

__all__ = ["backup", "connected", "row_counts"]

PAGES = 1024
"""Pages copied between two calls of `progress`: 4 MiB at the usual page size."""


@dataclass(frozen=True)
class _Facts:
    """Facts that must be equal in the original and its copy."""

    rows: dict[str, int]
    pragmas: dict[str, int | str]
    foreign_key_violations: int


_KEPT = ("user_version", "application_id", "auto_vacuum", "page_size", "page_count", "encoding")


def backup(
    engine: Engine,
    path: Path | str,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> BackupReport:
    """Copy a database as of one moment, verify the copy, and move it to its path.

    The copy is made in a folder of its own beside the target, verified there (integrity_check, and tables, row counts,
    pragmas and foreign_key_check equal to those of the original in the same snapshot), written through to the disk and
    then moved: the path never has a partial backup. The file has mode 0600.

    Args:
        engine: The engine of a store; also of one in memory.
        path: The path of the backup; a symbolic link is followed.
        overwrite: Replace a file that exists.
        progress: Called with the pages copied so far and all pages.

    Returns:
        What was copied.

    Raises:
        BackupError: The target cannot be used, or the copy failed or did not verify.
        DatabaseBusyError: Another connection kept the lock of a file that is not in WAL.
        PoolExhaustedError: No connection came free in time.
    """
    target = files.resolved(path)
    files.require_usable(target)
    _refuse_target(target, database_path(engine), overwrite=overwrite, there=os.path.lexists(path))
    started = time.monotonic()
    with _failures(target):
        with own_folder(target.parent, "backup") as folder:
            copy = folder / "copy.db"
            files.require_usable(copy)
            wanted = _copy(engine, copy, progress or (lambda _done, _total: None))
            _verify(copy, wanted)
            put_in_place(copy, target, overwrite=overwrite)
        size = target.stat().st_size
    return BackupReport(
        path=target,
        bytes=size,
        pages=int(wanted.pragmas["page_count"]),
        rows=wanted.rows,
        user_version=int(wanted.pragmas["user_version"]),
        foreign_key_violations=wanted.foreign_key_violations,
        seconds=time.monotonic() - started,
    )


def _refuse_target(target: Path, source: Path | None, *, overwrite: bool, there: bool) -> None:
    def refuse(reason: str, hint: str) -> None:
        raise errors.BackupError(f"{target} {reason}", hint=hint, path=target)

    if source is not None and files.is_part_of(target, source):
        refuse("is the database itself, or a file of it", "give another path")
    if target.is_dir():
        refuse("is a folder", "give the path of a file in it")
    if files.is_special(target):
        refuse("is not a regular file", "give the path of a file")
    if not target.parent.is_dir():
        refuse("is in a folder that does not exist", "make the folder first")
    if there and not overwrite:
        refuse("exists already", "give another path, or ask to overwrite it")
    if beside := [suffix for suffix in BESIDE if os.path.lexists(f"{target}{suffix}")]:
        refuse(f"has a {beside[0]} file beside it, as a database in use has", "give another path")


def _copy(engine: Engine, copy: Path, progress: Callable[[int, int], object]) -> _Facts:
    """Copy one snapshot, and give its facts."""
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, files.FILE_MODE))
    with checkout(engine) as pooled, connected(copy) as target:
        source = driver(pooled)
        # The copy is written through at the end, and deleted after any failure before that.
        target.execute("PRAGMA synchronous = OFF")
        target.execute("PRAGMA journal_mode = OFF")
        source.begin(write=False)
        # The first read takes the snapshot; without it, each step of the backup would take one of its own.
        deadline = time.monotonic() + source.source.patience
        source.insist("SELECT count(*) FROM sqlite_master", deadline).fetchone()
        source.backup(target, pages=PAGES, progress=lambda _status, left, total: progress(total - left, total))
        facts = _facts(source)
        source.rollback()
        return facts


def _facts(connection: sqlite3.Connection) -> _Facts:
    return _Facts(
        rows=row_counts(connection),
        pragmas={name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _KEPT},
        foreign_key_violations=len(connection.execute("PRAGMA foreign_key_check").fetchall()),
    )


def row_counts(connection: sqlite3.Connection) -> dict[str, int]:
    """The number of rows of each table of a SQLite database."""
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
    ).fetchall()
    return {name: connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()[0] for (name,) in names}


def _verify(copy: Path, wanted: _Facts) -> None:
    with connected(copy) as connection:
        said = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if said != "ok":
            raise errors.BackupError(
                f"integrity_check of the copy says: {said.splitlines()[-1]}",
                hint=f"the database itself is damaged; {errors.CorruptDatabaseError.hint}",
            )
        if (found := _facts(connection)) != wanted:
            differing = [name for name in wanted.rows if found.rows.get(name) != wanted.rows[name]]
            raise errors.BackupError(f"the copy differs from the original in {', '.join(differing) or 'its settings'}")


@contextlib.contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect to a copy that no other process uses."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # A copy of a file in WAL can then be read without shared memory, as on a network file system.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        yield connection


@contextlib.contextmanager
def _failures(target: Path) -> Iterator[None]:
    """Raise any failure as a failure of the backup."""
    try:
        yield
    except (sqlite3.Error, OSError, errors.ConfigurationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise errors.BackupError(f"{target} could not be made: {reason}", path=target) from error
