"""Files: the one name of a database file, the names beside it, and files that are written whole or not at all.

SQLite finds the write-ahead log of a file by its name, so a file has one name here: the one that is left when every
link is followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from consensus_orm import errors

__all__ = [
    "BESIDE",
    "FILE_MODE",
    "Leftover",
    "derived",
    "exclusively",
    "identity",
    "is_part_of",
    "leftovers",
    "of_uri",
    "own_folder",
    "put_in_place",
    "require_usable",
    "resolved",
    "write_names_through",
    "write_through",
    "write_whole",
]

FILE_MODE = 0o600
"""Mode of a new database file: what agents say is nobody else's to read."""

BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database."""

SQLITE_LONGEST = 512
"""Bytes of the longest path that SQLite opens, its own suffixes included (MAX_PATHNAME in its os_unix.c)."""

NAME_LONGEST = 255
"""Bytes of the longest file name, where the file system does not say."""

PREFIX = ".consensus_orm-"
"""How the names of folders begin in which copies are made."""


# Names ----------------------------------------------------------------------------------------------------


def resolved(path: Path | str) -> Path:
    """The one name of a file, whether it exists or not: absolute, with every link followed.

    Args:
        path: A path; `~` is the home folder.

    Returns:
        The path, which stays the same when the current folder or a link changes.

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
    """Take a `file:` URI as SQLite reads it apart.

    Args:
        text: The URI.

    Returns:
        The path, and the parameters.

    Raises:
        ConfigurationError: It names another machine.
    """
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise errors.ConfigurationError("a file: URI names no host", hint="write file:/PATH or file:///PATH")
    pairs = (pair.partition("=") for pair in parts.query.split("&") if pair)
    return unquote(parts.path, errors="surrogateescape"), {unquote(name): unquote(value) for name, _, value in pairs}


def require_usable(path: Path) -> None:
    """Refuse a path that is too long for a database, before anything is made that would fail later.

    Args:
        path: What `resolved` gave.

    Raises:
        ConfigurationError: The name leaves no room for those of the files that SQLite keeps beside it.
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
    """The path of a file that belongs to a database, by its name: `PREFIXnameSUFFIX`.

    A name that would be too long is cut, and a digest of all of it takes the place of what is cut off.

    Args:
        path: The database.
        suffix: What is appended.
        prefix: What stands in front.
        folder: Where the file goes; beside the database where left out.
    """
    folder = folder or path.parent
    # SQLite appends to the names of copies, too.
    room = _longest_name(folder) - len(os.fsencode(prefix + suffix)) - max(map(len, BESIDE))
    name = os.fsencode(path.name)
    if len(name) > room:
        mark = f"~{hashlib.sha256(name).hexdigest()[:8]}"
        name = os.fsencode(name[: room - len(mark)].decode(errors="ignore") + mark)
    return folder / f"{prefix}{os.fsdecode(name)}{suffix}"


def is_part_of(path: Path, database: Path) -> bool:
    """Whether a path is a database by any of its names, or one of the files that SQLite keeps beside it.

    Args:
        path: What `resolved` gave.
        database: What `resolved` gave.
    """
    if path in (database, *(Path(f"{database}{suffix}") for suffix in BESIDE)):
        return True
    return path.exists() and database.exists() and path.samefile(database)


def identity(path: Path | str) -> tuple[int, int]:
    """Device and inode of a file."""
    found = os.stat(path)  # noqa: PTH116 - also for a name that is made for this
    return found.st_dev, found.st_ino


# Writing --------------------------------------------------------------------------------------------------


def write_through(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_names_through(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system knows how."""
    with contextlib.suppress(OSError):
        write_through(folder)


def put_in_place(copy: Path, target: Path, *, overwrite: bool = False) -> None:
    """Move a finished file to where it belongs, written through to the disk.

    Args:
        copy: It is on the same file system.
        target: Where to.
        overwrite: Replace a file that is there.

    Raises:
        FileExistsError: There is one.
    """
    write_through(copy)
    _move(copy, target, overwrite=overwrite)
    write_names_through(target.parent)


def _move(copy: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        copy.replace(target)
        return
    # Unlike a rename, a link never replaces what somebody else has put there meanwhile.
    try:
        os.link(copy, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        copy.rename(target)
    else:
        copy.unlink()  # a database that has two names is refused


def write_whole(path: Path, text: str) -> None:
    """Write a text to a file; a file that is there is replaced, and there is never half of the text at the path.

    Args:
        path: Where.
        text: What.

    Raises:
        OSError: It cannot be written there.
    """
    with own_folder(path.parent, "text") as folder:
        part = folder / "part"
        part.touch(FILE_MODE)
        part.write_text(text, encoding="utf-8")
        put_in_place(part, path, overwrite=True)


# Folders and locks of our own -------------------------------------------------------------------------------


@contextlib.contextmanager
def own_folder(where: Path, purpose: str) -> Iterator[Path]:
    """A folder that no other process uses, locked while the block lasts, and gone with all it holds at its end.

    A process that is killed leaves the folder behind without the lock, by which `leftovers` knows it.

    Args:
        where: The folder it is made in.
        purpose: A word for its name.
    """
    # Also one that is interrupted before the next line is removed, at the end of the process.
    made = tempfile.TemporaryDirectory(dir=where, prefix=f"{PREFIX}{purpose}-", ignore_cleanup_errors=True)
    with _locked_folder(Path(made.name)), made:
        yield Path(made.name)


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[bool | None]:
    """Lock a folder until the block ends; True where that succeeded, False where another process holds the lock."""
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
        except OSError:  # a file system that knows no locks of folders
            got = None
        yield got
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusively(lock: Path) -> Iterator[bool]:
    """Hold a lock on a file that is made for this, and removed at the end.

    The lock goes with its holder, however that ends. The file is never one that somebody else has put there.

    Args:
        lock: The file.

    Yields:
        Whether the lock is held; False where another process holds it.

    Raises:
        StorageError: Something else is there.
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
            # Its last holder may have removed it between our open and our lock.
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
    # Without O_NONBLOCK, opening a FIFO would wait for somebody to read it.
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
    """A copy that a killed process left behind, and that no process uses.

    `name` is its path, or the name of the database of a server; `bytes` what it takes on disk, None where the server
    does not tell; `remove` the command that removes it, of the shell or in SQL.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int | None
    remove: str


def leftovers(folders: Iterable[Path]) -> list[Leftover]:
    """Look for folders of `own_folder` whose process is gone; writes nothing.

    Args:
        folders: Where to look.

    Returns:
        What was found; not what belongs to other users, and nothing where folders cannot be locked.
    """
    found = []
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(OSError):  # the current one may be gone
            folder = folder.absolute()
            found += [_leftover(each) for each in sorted(folder.iterdir()) if _is_left_behind(each)]
    return found


def _is_left_behind(folder: Path) -> bool:
    if not folder.name.startswith(PREFIX) or folder.is_symlink():
        return False
    with contextlib.suppress(OSError):
        # A process locks its folder before it puts anything there, so an empty one may be about to be locked.
        if any(folder.iterdir()):
            with _locked_folder(folder) as got:
                return got is True
    return False


def _leftover(folder: Path) -> Leftover:
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    return Leftover(name=str(folder), bytes=size, remove=f"rm -r -- {shlex.quote(str(folder))}")
