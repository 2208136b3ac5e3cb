"""WAL and incremental auto_vacuum for a file, where that disturbs no other program.

Both are stored in the file. The first transaction that writes sets them, opening never does.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consensus_orm.databases.sqlite.pragmas import ConfiguredConnection
from consensus_orm.files import own_folder

__all__ = ["Journal", "occupants", "prepare"]

NETWORK = frozenset({"9p", "afs", "ceph", "cifs", "drvfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4"})
NETWORK |= {"smb3", "smbfs", "fuse.sshfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs"}
"""Network file systems, as /proc names them: WAL needs memory that all processes share."""


@dataclass(frozen=True)
class Journal:
    """The journal mode of a file.

    Args:
        mode: journal_mode in force.
        auto_vacuum: auto_vacuum in force: 0 none, 1 full, 2 incremental.
        refused: Why the mode is not WAL; None if it is.
    """

    mode: str
    auto_vacuum: int
    refused: str | None


def prepare(connection: ConfiguredConnection, path: Path, *, own: int) -> Journal:
    """Set incremental auto_vacuum on an empty file, and WAL if no other program has the file open.

    Args:
        connection: A connection to the file, without a transaction.
        path: The file.
        own: How many connections to it the engine has, this one included.

    Returns:
        The modes in force.

    Raises:
        sqlite3.Error: The file cannot be written.
    """
    if connection.pragma("page_count") == 0:
        # This writes the first page. After the first table or WAL, SQLite would ignore it without an error.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    refused = None
    if connection.pragma("journal_mode") != "wal":
        refused = _obstacle(path, own) or _switch_to_wal(connection)
    return Journal(
        mode=str(connection.pragma("journal_mode")),
        auto_vacuum=int(connection.pragma("auto_vacuum")),
        refused=refused,
    )


def _obstacle(path: Path, own: int) -> str | None:
    """The first reason not to try WAL; None if there is none."""
    if others := occupants(path, own=own):
        return f"{others[0]} has the file open"
    if (kind := _file_system(path)) in NETWORK:
        return f"the file is on a network file system ({kind})"
    return _wal_fails_beside(path)


def _switch_to_wal(connection: sqlite3.Connection) -> str | None:
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    except sqlite3.OperationalError as error:
        return f"SQLite says: {error}"
    return None if mode == "wal" else "SQLite cannot use it here"


def _wal_fails_beside(path: Path) -> str | None:
    """Try WAL on a scratch file in the same folder.

    Without shared memory SQLite switches nevertheless, and then the file cannot be opened any more, not even to switch
    back (tried on 3.40 with a full file system).
    """
    try:
        with own_folder(path.parent, "wal") as folder:
            scratch = sqlite3.connect(folder / "wal", isolation_level=None)
            with contextlib.closing(scratch):
                refused = _switch_to_wal(scratch)
                scratch.execute("CREATE TABLE t (a)")
                return refused
    except (OSError, sqlite3.Error) as error:
        return f"a write-ahead log cannot be made in its folder ({type(error).__name__})"


def occupants(path: Path, *, own: int) -> list[str]:
    """The processes that have a file open, as far as this user may see.

    They are found by the open files of all processes, without opening the file: closing it would drop SQLite's locks on
    it. Without /proc none are found, and those of other users never are; SQLite's locks still exclude their reads and
    writes.

    Args:
        path: The file.
        own: How many connections to it the engine has.

    Returns:
        One entry for each process; for this one if it has the file open more than `own` times.
    """
    try:
        wanted = path.stat()
    except OSError:
        return []
    found = []
    for process in _processes():
        count = sum(os.path.samestat(wanted, each) for each in _open_files(process))
        if process == os.getpid():
            if count > own:
                found.append("another connection in this process")
        elif count:
            found.append(f"process {process} ({_name(process)})")
    return found


def _processes() -> list[int]:
    try:
        return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]
    except OSError:
        return []


def _open_files(process: int) -> Iterator[os.stat_result]:
    folder = Path(f"/proc/{process}/fd")
    # The process may end at any moment, or belong to another user.
    with contextlib.suppress(OSError):
        for link in folder.iterdir():
            with contextlib.suppress(OSError):
                if link.readlink().is_absolute():
                    yield link.stat()


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return "gone"


def _file_system(path: Path) -> str | None:
    """The type of the file system of a file, from mountinfo (proc(5)); None if it is unknown."""
    try:
        device = path.stat().st_dev
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    for fields in map(str.split, lines):
        if fields[2] == number:
            return fields[fields.index("-") + 1]
    return None
