"""The copy of a database that a rehearsal migrates: a file, or another database on the server."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Engine, make_url

from consensus_orm import errors, files
from consensus_orm.databases.engine import source_of, translated
from consensus_orm.progress import Watch, of_pages
from consensus_orm.rehearsal.raw_sql import FileLook, Look, ServerLook
from consensus_orm.rehearsal.stopwatch import Stopwatch
from consensus_orm.rehearsal.subject import Subject
from consensus_orm.statements.rendering import quoted

__all__ = ["Copy", "FileCopy", "ServerCopy", "made"]

ROOM = 5
"""A rehearsal takes up to so many times the size of the file: the copy, the normalized side, the log of both, and the
backup of all that before CONTRACT."""

_DIGITS = 8
"""Random digits at the end of the name of a copy on a server."""


class Copy(ABC):
    """A copy of a database.

    Args:
        where: Its path or URL.
        folder: Where its backups go.
        keep: Whether it stays after the rehearsal.
    """

    def __init__(self, where: Path | str, folder: Path, *, keep: bool) -> None:
        self.where = where
        self.folder = folder
        self.keep = keep

    @property
    @abstractmethod
    def path(self) -> Path | None:
        """Its path, where it is a file."""

    @abstractmethod
    def look(self) -> contextlib.AbstractContextManager[Look]:
        """Read it with raw SQL, past the store."""

    @abstractmethod
    def bytes(self) -> int:
        """Bytes on disk, its log and its backups included."""

    @abstractmethod
    def notes(self, subject: Subject) -> Iterator[str]:
        """In what the copy differs from the database itself."""

    @abstractmethod
    def watch(self, subject: Subject) -> Callable[[], float]:
        """Measure how long the calling thread keeps writers of the copy waiting.

        Returns:
            Gives the longest wait since it was called last, in seconds.
        """

    @property
    def backup_bytes(self) -> int:
        """Bytes of the backups made before CONTRACT: files, or the folders of a server."""
        made = [path for path in self.folder.iterdir() if ".before-contract-" in path.name]
        parts = [part for path in made for part in (path, *path.rglob("*"))]
        return sum(part.stat().st_size for part in parts if part.is_file())


class FileCopy(Copy):
    """A copy of a SQLite database, made as a backup is."""

    where: Path

    @property
    def path(self) -> Path:
        """Its path."""
        return self.where

    def look(self) -> contextlib.AbstractContextManager[Look]:
        """Read it with raw SQL."""
        return FileLook.at(self.where)

    def bytes(self) -> int:
        """Bytes on disk."""
        beside = [Path(f"{self.where}{suffix}") for suffix in ("", *files.BESIDE)]
        return sum(path.stat().st_size for path in beside if path.exists()) + self.backup_bytes

    def notes(self, subject: Subject) -> Iterator[str]:
        """In what it differs."""
        mode = subject.maintenance.stats().journal_mode
        if subject.units.path is None:
            return
        if mode != "wal":
            yield f"the copy works in WAL, and the database is in {mode}: there, writers wait for readers too"
        if subject.units.path.stat().st_dev != self.folder.stat().st_dev:
            yield "the copy is on another file system than the database, which may be faster or slower (see --keep)"

    def watch(self, subject: Subject) -> Callable[[], float]:
        """Measure how long writers are kept waiting."""
        stopwatch = source_of(subject.units.engine).writers = Stopwatch()
        return stopwatch.reset


class ServerCopy(Copy):
    """A copy of a database on a server: another database there, with the tables that move and what they hold."""

    where: str

    def __init__(self, where: str, folder: Path, *, keep: bool, connect: Callable[[], Any]) -> None:
        super().__init__(where, folder, keep=keep)
        self._connect = connect

    @property
    def path(self) -> None:
        """It has none."""
        return

    def look(self) -> contextlib.AbstractContextManager[Look]:
        """Read it with raw SQL."""
        return ServerLook.at(self._connect)

    def bytes(self) -> int:
        """Bytes on disk."""
        with self.look() as look:
            size: int = look.rows("SELECT pg_database_size(current_database())")[0][0]
        return size + self.backup_bytes

    def notes(self, subject: Subject) -> Iterator[str]:
        """In what it differs."""
        yield "the copy is a database of its own: privileges, views and triggers of other programs are not in it"
        own = str(make_url(self.where).database)
        if self.keep:
            yield f"the copy stays on the server, as the database {own}"
        with self.look() as look:
            names = look.rows("SELECT datname FROM pg_database ORDER BY datname")
        if others := [name for (name,) in names if name.startswith(own[:-_DIGITS]) and name != own]:
            yield f"the server has copies of other rehearsals, kept, killed or running: {', '.join(others)}"

    def watch(self, subject: Subject) -> Callable[[], float]:
        """Measure how long writers are kept waiting."""
        source: Any = source_of(subject.units.engine)

        def longest() -> float:
            found, source.longest_flip = source.longest_flip, 0.0
            return float(found)

        return longest


@contextlib.contextmanager
def made(subject: Subject, folder: Path, *, keep: bool, progress: Watch) -> Iterator[Copy]:
    """Copy a database; the copy is removed when the block ends, unless `keep` is set.

    Raises:
        DatabaseFullError: There is not enough room.
        BackupError: The copy could not be made.
        ReadOnlyDatabaseError: The role may not make a database on the server.
    """
    if subject.units.engine.dialect.name == "sqlite":
        _require(folder, ROOM * subject.maintenance.stats().disk.total)
        path = files.derived(subject.units.path or Path(":memory:"), ".rehearsed", folder=folder)
        subject.maintenance.backup(path, progress=of_pages(progress, "copy"))
        yield FileCopy(path, folder, keep=keep)
        return
    _require(folder, subject.maintenance.stats().disk.database)
    schemas = subject.units.statements.moves.schemas
    with _database(subject.units.engine, schemas, keep=keep) as (url, connect):
        _fill(subject, url, folder, progress)
        yield ServerCopy(url, folder, keep=keep, connect=connect)


def _require(folder: Path, wanted: int) -> None:
    if (free := shutil.disk_usage(folder).free) < wanted:
        raise errors.DatabaseFullError(
            f"a rehearsal takes up to {wanted:,} bytes, and {folder} has {free:,}",
            hint="give a folder on a disk with more room: --keep DIR, or TMPDIR in the environment",
        )


@contextlib.contextmanager
def _database(engine: Engine, schemas: Iterable[str], *, keep: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A new database on the server of another: its URL, and what connects to it; it looks in the same schemas."""
    import psycopg

    from consensus_orm.databases.postgresql.vacuum import rehearsal_of

    url: URL = engine.url.set(drivername="postgresql")
    login = cast("Any", source_of(engine)).login
    connect = partial(login.connect, psycopg.Connection)
    name = rehearsal_of(str(url.database), uuid.uuid4().hex[:_DIGITS])
    with translated(engine), connect() as admin, connect() as holder:
        schema, path = admin.execute("SELECT current_schema(), current_setting('search_path')").fetchone() or ("", "")
        # So that no look takes it for left behind. A lock of a session would stay with a connection pooler.
        holder.execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0")
        holder.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (name,))
        try:
            # C and UTF8 go with any server; what is compared are bytes.
            admin.execute(f"CREATE DATABASE {quoted(name)} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'".encode())
        except psycopg.errors.InsufficientPrivilege as error:
            raise errors.ReadOnlyDatabaseError(
                f"a rehearsal makes a database beside {url.database}, and the role {admin.info.user} may not",
                hint="allow it (ALTER ROLE ... CREATEDB), or copy the database to a file with the command copy, and"
                " rehearse that",
            ) from error
        inside = partial(connect, dbname=name)
        try:
            with inside() as first:
                for each in filter(None, (schema, *schemas)):
                    first.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(each)}".encode())
                first.execute(
                    "SELECT set_config('search_path', %s, false)", (", ".join([path, *map(quoted, schemas)]),)
                )
                first.execute(f"ALTER DATABASE {quoted(name)} SET search_path FROM CURRENT".encode())
            yield url.set(database=name).render_as_string(hide_password=False), inside
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                admin.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)".encode())


def _fill(subject: Subject, url: str, folder: Path, progress: Watch) -> None:
    """Fill the new database as a restored backup fills it: values of any type go through."""
    from consensus_orm.copying.restoring import restore_to_server

    with files.own_folder(folder, "copy") as own, subject.beside(url, subject.units.settings) as target:
        subject.maintenance.backup(own / "copy", progress=of_pages(progress, "copy"))
        restore_to_server(target.units, own / "copy")
