"""Files of a database: resolved paths, derived names, atomic writes, locks, and copies left by killed processes.

SQLite finds the write-ahead log of a file by its name, so this package uses only the path with every link resolved.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shlex
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from consensus_orm import errors

__all__ = [
    "BESIDE",
    "FILE_MODE",
    "Leftover",
    "created",
    "derived",
    "exclusively",
    "identity",
    "is_part_of",
    "is_special",
    "leftovers",
    "of_uri",
    "own_folder",
    "put_in_place",
    "remove",
    "require_usable",
    "resolved",
    "write_names_through",
    "write_through",
    "write_whole",
]

FILE_MODE = 0o600
"""Mode of a new database file: only its owner may read it."""

BESIDE = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps beside a database."""

SQLITE_LONGEST = 512
"""Bytes of the longest path that SQLite opens, its own suffixes included (MAX_PATHNAME in its os_unix.c)."""

NAME_LONGEST = 255
"""Bytes of the longest file name, if the file system does not tell."""

PREFIX = ".consensus_orm-"
"""Prefix of the folders in which copies are made."""


# Names ----------------------------------------------------------------------------------------------------


def resolved(path: Path | str) -> Path:
    """The absolute path of a file with every link resolved, whether or not it exists; `~` is the home folder.

    Raises:
        ConfigurationError: It cannot be the path of a file.
    """
    try:
        found = os.path.realpath(os.path.expanduser(path))  # noqa: PTH111 - pathlib raises where there is no home
        circular = os.path.islink(found)  # noqa: PTH114 - pathlib raises what the next lines translate
    except (ValueError, OSError) as error:
        raise errors.ConfigurationError(f"the path cannot be used: {error}", hint="give another path") from error
    if circular:
        raise errors.ConfigurationError(f"{path} is a symbolic link that leads back to itself", hint="correct the link")
    return Path(found)


def of_uri(text: str) -> tuple[str, dict[str, str]]:
    """The path and the parameters of a `file:` URI, as SQLite parses it.

    Raises:
        ConfigurationError: It names another machine.
    """
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise errors.ConfigurationError("a file: URI names no host", hint="write file:/PATH or file:///PATH")
    pairs = (pair.partition("=") for pair in parts.query.split("&") if pair)
    return unquote(parts.path, errors="surrogateescape"), {unquote(name): unquote(value) for name, _, value in pairs}


def require_usable(path: Path) -> None:
    """Refuse a resolved path that is too long for a database.

    Raises:
        ConfigurationError: The name leaves no room for the suffixes of the files that SQLite keeps beside it.
    """
    suffix = max(map(len, BESIDE))
    if (size := len(os.fsencode(path.name)) + suffix) > (longest := _longest_name(path.parent)):
        raise errors.ConfigurationError(
            f"the file name has {size - suffix} bytes: SQLite appends up to {suffix}, and the file system allows"
            f" {longest} in all",
            hint="give the file a shorter name",
        )
    if (size := len(os.fsencode(path)) + suffix) > SQLITE_LONGEST:
        raise errors.ConfigurationError(
            f"the path has {size - suffix} bytes: SQLite appends up to {suffix}, and opens {SQLITE_LONGEST} at most",
            hint="move the file to a folder with a shorter path",
        )


def _longest_name(folder: Path) -> int:
    while folder != folder.parent:
        with contextlib.suppress(OSError, ValueError):
            return os.pathconf(folder, "PC_NAME_MAX")
        folder = folder.parent  # it does not exist yet
    return NAME_LONGEST


def derived(path: Path, suffix: str, *, prefix: str = "", folder: Path | None = None) -> Path:
    """The path of a file that belongs to a database: `PREFIXnameSUFFIX`, beside it or in a folder.

    A name that would be too long is cut, and ends in a digest of the whole name.
    """
    folder = folder or path.parent
    # SQLite appends its suffixes to the names of copies, too.
    room = _longest_name(folder) - len(os.fsencode(prefix + suffix)) - max(map(len, BESIDE))
    name = os.fsencode(path.name)
    if len(name) > room:
        mark = f"~{hashlib.sha256(name).hexdigest()[:8]}"
        name = os.fsencode(name[: room - len(mark)].decode(errors="ignore") + mark)
    return folder / f"{prefix}{os.fsdecode(name)}{suffix}"


def is_part_of(path: Path, database: Path) -> bool:
    """Whether a resolved path is a database, or one of the files that SQLite keeps beside it."""
    if path in (database, *(Path(f"{database}{suffix}") for suffix in BESIDE)):
        return True
    return path.exists() and database.exists() and path.samefile(database)


def is_special(path: Path) -> bool:
    """Whether a path is that of a device, a FIFO, a socket or a folder, which no file must replace."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))


def identity(path: Path | str) -> tuple[int, int]:
    """Device and inode of a file."""
    found = os.stat(path)  # noqa: PTH116 - also for a name that is made for this
    return found.st_dev, found.st_ino


# Writing --------------------------------------------------------------------------------------------------


def write_through(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_names_through(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the file system can."""
    with contextlib.suppress(OSError):
        write_through(folder)


@contextlib.contextmanager
def created(path: Path) -> Iterator[IO[bytes]]:
    """Create a file that only its owner may read, and flush what was written to the disk at the end.

    Raises:
        FileExistsError: There is one.
    """
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def put_in_place(copy: Path, target: Path, *, overwrite: bool = False) -> None:
    """Move a finished file to its place on the same file system, flushed to the disk.

    Raises:
        FileExistsError: There is a file, and `overwrite` is not set; or a device, a FIFO or the like, which as root
            could be replaced, too.
    """
    if is_special(target):
        raise FileExistsError(errno.EEXIST, "it is not a regular file")
    write_through(copy)
    _move(copy, target, overwrite=overwrite)
    write_names_through(target.parent)


def _move(copy: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        copy.replace(target)
        return
    # Unlike a rename, a link never replaces a file that another process has put there meanwhile.
    try:
        os.link(copy, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        copy.rename(target)
    else:
        copy.unlink()  # a database with two names is refused


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically; an existing file is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    with own_folder(path.parent, "text") as folder:
        part = folder / "part"
        part.touch(FILE_MODE)
        part.write_text(text, encoding="utf-8")
        put_in_place(part, path, overwrite=True)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents; the name is gone at once, whatever happens then.

    Raises:
        OSError: It cannot be removed.
    """
    with own_folder(path.parent, "removed") as folder:
        path.rename(folder / "removed")


# Folders and locks of our own -------------------------------------------------------------------------------


@contextlib.contextmanager
def own_folder(where: Path, purpose: str) -> Iterator[Path]:
    """Make a folder for this process alone, locked until the block ends and then removed with its contents.

    A process that is killed leaves the folder without its lock, by which `leftovers` finds it.

    Args:
        where: The folder it is made in.
        purpose: A word for its name.
    """
    # If the process is interrupted before the next line, its exit removes the folder.
    made = tempfile.TemporaryDirectory(dir=where, prefix=f"{PREFIX}{purpose}-", ignore_cleanup_errors=True)
    with _locked_folder(Path(made.name)), made:
        yield Path(made.name)


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[bool | None]:
    """Lock a folder until the block ends; yields whether that succeeded, or None if folders cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            got: bool | None = True
        except BlockingIOError:
            got = False
        except OSError:  # a file system that cannot lock folders
            got = None
        yield got
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusively(lock: Path) -> Iterator[bool]:
    """Hold a lock on a file that is made for this, and removed at the end.

    The lock ends with its process, however that ends.

    Yields:
        Whether the lock is held; False if another process holds it.

    Raises:
        StorageError: Something else than a file is there.
        OSError: The file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with _lock_file(lock) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file after it was opened here.
            current = os.path.samestat(os.fstat(handle), lock.lstat())
        except OSError:
            current = False
        try:
            yield current
        finally:
            if current:
                lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock_file(lock: Path) -> Iterator[int]:
    # Without O_NONBLOCK, opening a FIFO would wait for a reader.
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(lock, flags, FILE_MODE)
    except OSError as error:
        if os.path.lexists(lock) and not stat.S_ISREG(lock.lstat().st_mode):
            raise _no_lock_file(lock) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _no_lock_file(lock)
        yield handle
    finally:
        os.close(handle)


def _no_lock_file(lock: Path) -> errors.StorageError:
    return errors.StorageError(
        f"{lock} is not a regular file, so it cannot be the lock that is taken there",
        hint="nothing was changed; remove it, or move it to another place",
        path=lock,
    )


# What killed processes leave behind ---------------------------------------------------------------------------


class Leftover(BaseModel):
    """A copy that a killed process left, and that no process uses.

    `name` is its path, or the name of the database on a server; `bytes` its size on disk, None if the server does not
    tell; `remove` the command of the shell or in SQL that removes it.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    bytes: int | None
    remove: str


def leftovers(folders: Iterable[Path]) -> list[Leftover]:
    """Find folders of `own_folder` whose process is gone; writes nothing.

    Folders of other users are not found, nor any on a file system that cannot lock folders.
    """
    found = []
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(OSError):  # the current folder may be gone
            folder = folder.absolute()
            found += [_leftover(each) for each in sorted(folder.iterdir()) if _is_left_behind(each)]
    return found


def _is_left_behind(folder: Path) -> bool:
    if not folder.name.startswith(PREFIX) or folder.is_symlink():
        return False
    with contextlib.suppress(OSError):
        # A process locks its folder before it writes to it, so an empty one may be about to be locked.
        if any(folder.iterdir()):
            with _locked_folder(folder) as got:
                return got is True
    return False


def _leftover(folder: Path) -> Leftover:
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return Leftover(name=str(folder), bytes=size, remove=f"rm -r -- {shlex.quote(str(folder))}")
