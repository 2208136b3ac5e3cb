"""The file of a database: created for its owner alone, and told from any other file that takes its place."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from consensus_orm import errors, files

__all__ = ["FileId", "find", "forked", "inherited", "log_of"]

FileId = tuple[int, int]
"""Device and inode of a file."""

inherited: set[FileId] = set()
"""Files that this process cannot use, because it inherited open connections to them."""


def find(path: Path, known: FileId | None) -> FileId:
    """Find the file of a database, which stays the same for as long as its engine lives.

    Args:
        path: Its path; a file that does not exist is created, unless it was known before.
        known: The file that was found the first time.

    Raises:
        StorageError: The file was removed or replaced since then, has another name besides, or was open across a fork.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if known is not None:
            raise errors.StorageError(
                f"{path} was removed while it was in use",
                hint="put it back, or close the store and open it again to begin a new one",
            ) from None
        _make(path)
        found = path.stat()
    identity = found.st_dev, found.st_ino
    if known is None:
        _require_one_regular_file(path, found)
    elif identity != known:
        raise errors.StorageError(
            f"{path} was replaced by another file while it was in use",
            hint="this store writes to neither of them any more; close it, and open it again",
        )
    if identity in inherited:
        raise forked()
    return identity


def log_of(path: Path | str) -> FileId | None:
    """The write-ahead log beside a file; None if there is none."""
    try:
        return files.identity(f"{path}-wal")
    except FileNotFoundError:
        return None


def forked() -> errors.StorageError:
    """The error for a connection, or a file, that a forked process inherited."""
    return errors.StorageError(
        "this process was forked while a unit of work was open in the process it comes from",
        hint="fork between units of work, or start processes with the method 'spawn'",
    )


def _require_one_regular_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise errors.NotADatabaseError(f"{path} is not a regular file")
    if found.st_nlink > 1:
        raise errors.StorageError(
            f"{path} has {found.st_nlink} names (hard links), and SQLite keeps a log for each name: what is written by"
            " one name is lost to the others",
            hint="close all programs that use it, and leave it one name (find -samefile lists them), or use a copy",
            path=path,
        )


def _make(path: Path) -> None:
    """Create a database file that only its owner can read; another process may have created it meanwhile.

    Its name is written through to the disk, without which no commit would survive a power cut.
    """
    made = [path, *(folder for folder in path.parents if not folder.exists())]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, files.FILE_MODE))
    for each in made:
        files.write_names_through(each.parent)
