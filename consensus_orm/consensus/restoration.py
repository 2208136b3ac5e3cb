"""Restore: replaces a SQLite database that no process has open with a backup, atomically; fills an empty server.

SQLite writes the backup into the existing file, in one transaction, under a lock that keeps every other connection out:
a process that is killed at any moment leaves either the old database with its log, or the backup. A rename is atomic,
too, but does not include the log, and an unnoticed connection (of another user or machine) would continue with the old
file and the log of the new one. Only a file that SQLite cannot write is replaced by a rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from sqlalchemy import URL

from consensus_orm import errors, files
from consensus_orm import validation as check
from consensus_orm.consensus.application import application_of, place
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.consensus.store import ConsensusStore
from consensus_orm.databases import engine, opening
from consensus_orm.databases.sqlite import write_ahead_log
from consensus_orm.databases.sqlite.backup import connected, row_counts
from consensus_orm.declaration.moves import Moves
from consensus_orm.files import BESIDE
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings, from_environment

__all__ = ["RestoreReport", "restore"]

LOCK_BYTES = 0x40000000, 512
"""Where SQLite keeps its locks on a file, and how many bytes they take (sqlite.org/fileformat.html, lock-byte page)."""

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""SQLite's error codes for a file that it cannot write."""


class RestoreReport(BaseModel):
    """A database that was replaced by a backup.

    `path` is its file, or the URL of a database on a server, without password. `aside` are the replaced files under
    their new names: the first can be restored, or opened, with the others beside it. `rows` counts the rows of the
    restored database by table.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    path: Path | str
    backup: Path
    aside: tuple[Path, ...]
    bytes: int
    rows: dict[str, int]
    seconds: float


def restore(
    backup: Path | str,
    url: str | Path | URL | None = None,
    *,
    create: bool = False,
    settings: Settings | None = None,
    moves: Moves = CONSENSUS,
) -> RestoreReport:
    """Replace a SQLite database that no process has open with a backup, or fill an empty database of a server.

    The backup of a file is copied, with the log beside it, and the copy is verified; the backup itself is not changed.
    The replaced file and its log are kept under the name `NAME.before-restore-TIME`. That of a server is loaded in one
    transaction into an empty database, or into tables that are there, and empty.

    Args:
        backup: A SQLite database: made by `backup`, by the migration, or by copying a file and its log. For a server
            the folder that `backup` or the migration has made of one.
        url: The database to replace, or to fill; the one of the settings where left out.
        create: Restore even if there is no database yet.
        settings: The settings; read from the environment where left out.
        moves: The declaration of what is moved; the consensus tables where left out.

    Returns:
        What was restored, and the new names of the replaced files.

    Raises:
        DatabaseBusyError: A process has the database or the backup open.
        RestoreError: The backup cannot be used, or there is no database to replace. Nothing was changed.
        SchemaError: The backup holds tables with an unknown schema. Nothing was changed.
        ConfigurationError: The URL or a setting cannot be used.
    """
    started = time.monotonic()
    chosen = from_environment() if settings is None else check.instance("settings", settings, Settings)
    check.instance("moves", moves, Moves)
    check.flag("create", create)
    parsed, source = opening.parse_url(place(url, chosen)), files.resolved(check.path("backup", backup))
    if parsed.get_backend_name() == "postgresql":
        return _to_server(parsed, source, chosen, moves, started)
    target = _target(parsed)
    files.require_usable(source)
    _refuse(source, target, create=create)
    with _failures(target):
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.own_folder(target.parent, "restore") as folder:
            new = folder / "new.db"
            files.require_usable(new)
            with _alone_with(source):
                _copy(source, new)
            rows = _verify(new, source, chosen, moves)
            aside = _replace(target, new, folder)
        return RestoreReport(
            path=target,
            backup=source,
            aside=aside,
            bytes=target.stat().st_size,
            rows=rows,
            seconds=time.monotonic() - started,
        )


def _to_server(url: URL, source: Path, settings: Settings, moves: Moves, started: float) -> RestoreReport:
    if source.is_file():
        raise errors.RestoreError(
            f"the backup {source} is a file, and the database is on a server",
            hint="copy it into an empty database of the server: copy BACKUP URL",
            path=source,
        )
    from consensus_orm.copying.restoring import restore_to_server

    with ConsensusStore.open(url, settings=settings, moves=moves) as store:
        rows = restore_to_server(store._units, source)
        size = sum(path.stat().st_size for path in source.iterdir())
        return RestoreReport(
            path=store.name, backup=source, aside=(), bytes=size, rows=rows, seconds=time.monotonic() - started
        )


def _target(parsed: URL) -> Path:
    if parsed.database == engine.MEMORY:
        raise errors.RestoreError("a database in memory cannot be replaced", hint="open the backup itself")
    path = Path(str(parsed.database))
    files.require_usable(path)
    return path


def _refuse(source: Path, target: Path, *, create: bool) -> None:
    if source.is_dir():
        raise errors.RestoreError(
            f"the backup {source} is a folder, and the database is a file",
            hint="a backup of a server is restored there: --url postgresql://USER@HOST/DATABASE",
            path=source,
        )
    if not source.is_file():
        what = "is not a regular file" if os.path.lexists(source) else "does not exist"
        raise errors.RestoreError(f"the backup {source} {what}", hint="give the path of a backup", path=source)
    if files.is_part_of(source, target):
        raise errors.RestoreError(f"{source} is the database itself", hint="give the path of a backup", path=source)
    if os.path.lexists(target) and not target.is_file():
        raise errors.RestoreError(f"{target} is not a regular file", hint="check the URL", path=target)
    if not create and not target.exists():
        raise errors.RestoreError(
            f"{target} does not exist", hint="check the URL; --create restores where there is no database", path=target
        )


# The copy -------------------------------------------------------------------------------------------------


def _copy(source: Path, copy: Path) -> list[Path]:
    """Copy a database with the files beside it, except the index of the log, which SQLite recreates."""
    made = []
    for suffix in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            made.append(Path(shutil.copyfile(f"{source}{suffix}", f"{copy}{suffix}")))
            made[-1].chmod(files.FILE_MODE)
    return made


def _verify(copy: Path, source: Path, settings: Settings, moves: Moves) -> dict[str, int]:
    """Check a copy after SQLite has applied its log: it must be intact and hold tables of the moves."""

    def refuse(reason: str) -> errors.RestoreError:
        return errors.RestoreError(f"the backup {source} {reason}", hint="give another backup", path=source)

    try:
        with connected(copy) as connection:
            said = connection.execute("PRAGMA integrity_check").fetchone()[0]
            rows = row_counts(connection) if said == "ok" else {}
    except sqlite3.DatabaseError as error:
        raise refuse(f"cannot be read: {error}") from error
    if said != "ok":
        raise refuse(f"is damaged: integrity_check says: {said.splitlines()[0]}")
    looked_at = opening.create(copy, settings)
    try:
        found = revisions.inspect(looked_at, application_of(moves))
    finally:
        looked_at.dispose()
    if found.is_new and not found.legacy_tables:
        raise refuse("holds none of the tables of this package")
    if beside := [suffix for suffix in BESIDE if os.path.lexists(f"{copy}{suffix}")]:
        raise refuse(f"has a {beside[0]} file that cannot be carried into it")
    return rows


# The step -------------------------------------------------------------------------------------------------


def _replace(target: Path, new: Path, folder: Path) -> tuple[Path, ...]:
    """Keep the target under another name, and replace it with the new file."""
    if not target.exists():
        aside = _set_aside(target, folder)  # a log without its database
        _remove_beside(target)
        files.put_in_place(new, target)
        return aside
    with _alone_with(target) as lock_again, contextlib.ExitStack() as undo:
        _resemble(new, target)
        aside = _set_aside(target, folder)
        undo.callback(_remove, aside)
        if not _overwrite(target, new):
            lock_again()
            undo.pop_all()  # from here on, the files aside hold the only copy of the log
            _remove_beside(target)
            files.put_in_place(new, target, overwrite=True)
        undo.pop_all()
    return aside


def _overwrite(target: Path, new: Path) -> bool:
    """Have SQLite checkpoint a database and overwrite it with another one; False for a file that is damaged."""
    with (
        contextlib.closing(sqlite3.connect(target, timeout=0, isolation_level=None)) as connection,
        contextlib.closing(sqlite3.connect(new, isolation_level=None)) as source,
    ):
        try:
            # The lock is kept from the first statement to the end.
            for pragma in ("locking_mode = EXCLUSIVE", "synchronous = EXTRA", "journal_mode = DELETE"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            connection.executescript("BEGIN EXCLUSIVE; COMMIT")
            source.backup(connection)
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                raise _in_use(target, "another process") from error
            if code in DAMAGED:
                return False
            raise
        _remove_beside(target)  # an empty journal, and the index of the old log
    return True


def _set_aside(target: Path, folder: Path) -> tuple[Path, ...]:
    """Copy the target to a new name; its log first, so that the database never stands without it."""
    kept = files.derived(target, f".before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    made = []
    for part in reversed(_copy(target, folder / kept.name)):
        original = Path(f"{target}{part.name.removeprefix(kept.name)}")
        _resemble(part, original)
        shutil.copystat(original, part)
        made.append(kept.with_name(part.name))
        files.put_in_place(part, made[-1])
    return tuple(reversed(made))


def _resemble(copy: Path, original: Path) -> None:
    """Give a copy the owner and the mode of the original."""
    shutil.copymode(original, copy)
    with contextlib.suppress(PermissionError):  # only root gives files to others
        found = original.stat()
        os.chown(copy, found.st_uid, found.st_gid)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _remove_beside(target: Path) -> None:
    _remove(Path(f"{target}{suffix}") for suffix in BESIDE)


@contextlib.contextmanager
def _alone_with(path: Path) -> Iterator[Callable[[], None]]:
    """Keep every SQLite connection out of a file until the block ends.

    The locks are SQLite's own, taken without SQLite, so that they work on a damaged file, too. The file stays open to
    the end, since closing it would drop them.

    Yields:
        Takes the lock again, after SQLite has dropped it by closing a connection of this process.

    Raises:
        DatabaseBusyError: A process has the file open, as far as locks and /proc tell.
    """
    if others := write_ahead_log.occupants(path, own=0):
        raise _in_use(path, others[0])
    try:
        import fcntl
    except ImportError:  # Windows, where no file is replaced that is open
        yield lambda: None
        return
    writable = os.access(path, os.W_OK)
    handle = os.open(path, os.O_RDWR if writable else os.O_RDONLY)

    def lock() -> None:
        start, length = LOCK_BYTES
        try:
            fcntl.lockf(handle, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB, length, start)
        except BlockingIOError as error:
            raise _in_use(path, "another process") from error
        if not os.path.samestat(os.fstat(handle), path.stat()):
            raise _in_use(path, "another process")

    try:
        lock()
        yield lock
    finally:
        os.close(handle)


def _in_use(path: Path, who: str) -> errors.DatabaseBusyError:
    return errors.DatabaseBusyError(
        f"{who} has {path} open", hint="nothing was changed; end every program that uses it, then try again", path=path
    )


@contextlib.contextmanager
def _failures(target: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise errors.RestoreError(f"{target} could not be replaced: {reason}", path=target) from error
