"""The backup of a server: the rows of this package's tables as of one snapshot, in files that COPY has written.

A backup is a folder: a file for each table, in the text format of COPY, and a manifest with the number of rows, the
size and the digest of each file. COPY writes values of every type as PostgreSQL itself reads them again, so that no
type has to be known here; and without this package psql loads a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Engine

from consensus_orm import errors, files
from consensus_orm._version import __version__
from consensus_orm.databases.base import Transaction
from consensus_orm.databases.engine import checkout, driver, translated
from consensus_orm.databases.postgresql.own_reads import INSUFFICIENT_PRIVILEGE, expected, tell
from consensus_orm.databases.saved_rows import dropped
from consensus_orm.databases.statistics import BackupReport
from consensus_orm.declaration.attributes import table_of
from consensus_orm.models.control import ReadCount
from consensus_orm.phase import Phase
from consensus_orm.statements.rendering import quoted

__all__ = ["MANIFEST", "Manifest", "TableFile", "backup", "is_backup", "load", "read"]

MANIFEST = "manifest.json"
"""The name of the manifest in the folder of a backup."""

FORMAT = 1
"""The version of the format of backups."""

AS_COPIED = (
    "SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'postgres'; SET LOCAL timezone = 'UTC';"
    " SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C';"
    " SET LOCAL xmloption = 'content'; SET LOCAL row_security = off;"
    " SET LOCAL synchronize_seqscans = off; SET LOCAL statement_timeout = 0;"
    " SET LOCAL max_parallel_workers_per_gather = 0"
)
"""How values are written, which is how they are read again, and that tables are read from their beginning; a table of
which the role may not see each row is refused. Workers would count reads that are not those of this transaction."""

BLOCK = 1 << 20
"""Bytes of a file that are read at once."""

PAGE = 8192
"""Bytes of a page, by which the progress is told."""

STATE = "consensus_orm_state"
"""The table with the phase."""

_TABLES = (
    "SELECT c.relname, c.relkind = 'p', pg_table_size(c.oid), ARRAY(SELECT a.attname::text"
    " FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
    " ORDER BY a.attnum), (SELECT max(pg_sequence_last_value(s.oid)) FROM pg_class AS s WHERE s.relkind = 'S'"
    " AND s.oid IN (SELECT d.objid FROM pg_depend AS d WHERE d.refobjid = c.oid AND d.deptype IN ('a', 'i')"
    " UNION ALL SELECT d.refobjid FROM pg_depend AS d JOIN pg_attrdef AS e ON d.objid = e.oid"
    " AND d.classid = 'pg_attrdef'::regclass WHERE e.adrelid = c.oid))"
    " FROM pg_class AS c WHERE c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid)"
    " AND (c.relname = ANY (?) OR c.relname ^@ 'consensus_orm_') ORDER BY c.relname"
)
"""The tables with their columns, except those that are computed from others, and the highest id that each has given."""


class TableFile(BaseModel):
    """A table in a backup: its columns, its file with its digest, and the highest id it had given, if any."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    columns: tuple[str, ...]
    is_partitioned: bool = False
    sequence: int | None
    file: str
    rows: int
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The manifest of a backup.

    `phase` is None where the database was not prepared; `reversible` whether the legacy tables are put away in it.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    format: int = FORMAT
    build: str = __version__
    database: str
    server: str
    phase: Phase | None
    reversible: bool
    tables: tuple[TableFile, ...]


def backup(
    engine: Engine,
    path: Path | str,
    tables: Collection[str],
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> BackupReport:
    """Write the tables of a server to a folder, as of one moment, and verify the files; writers continue.

    The files are made in a folder of their own beside the target, read again and compared with what the server sent,
    flushed to the disk and then moved: the path never has a partial backup. Only their owner may read them.

    Args:
        engine: The engine of a store.
        path: The path of the folder.
        tables: The names of the tables, besides the control tables.
        overwrite: Replace another backup of a server.
        progress: Called with the pages written so far, and about how many there are.

    Returns:
        What was written.

    Raises:
        BackupError: The target cannot be used, the role may not read a table, or a file did not verify.
        StorageError: The server failed.
    """
    target, started = files.resolved(path), time.monotonic()
    files.require_usable(target)
    _refuse_target(target, overwrite=overwrite)
    try:
        with files.own_folder(target.parent, "backup") as folder:
            new = folder / "backup"
            new.mkdir(mode=0o700)
            manifest = _write(engine, new, tables, progress or (lambda _done, _total: None))
            for table in manifest.tables:
                _verify(new, table)
            _put_in_place(new, target, folder / "replaced")
    except OSError as error:
        raise errors.BackupError(f"{target} could not be made: {error.strerror}", path=target) from error
    return BackupReport(
        path=target,
        bytes=sum(table.bytes for table in manifest.tables),
        rows={table.name: table.rows for table in manifest.tables},
        seconds=time.monotonic() - started,
    )


def _refuse_target(target: Path, *, overwrite: bool) -> None:
    def refuse(reason: str, hint: str) -> None:
        raise errors.BackupError(f"{target} {reason}", hint=hint, path=target)

    if not target.parent.is_dir():
        refuse("is in a folder that does not exist", "make the folder first")
    if os.path.lexists(target) and not overwrite:
        refuse("exists already", "give another path, or ask to overwrite it")
    if os.path.lexists(target) and not is_backup(target):
        refuse("is not a backup of a server", "give another path: such a backup is a folder")


def _put_in_place(new: Path, target: Path, replaced: Path) -> None:
    files.write_names_through(new)
    if target.exists():
        target.rename(replaced)  # removed with the folder that it goes to
    new.rename(target)
    files.write_names_through(target.parent)


def _write(engine: Engine, folder: Path, tables: Collection[str], progress: Callable[[int, int], object]) -> Manifest:
    with checkout(engine) as pooled, translated(engine):
        connection: Any = driver(pooled)
        connection.begin(write=False)
        connection.execute(AS_COPIED)
        found = connection.execute(_TABLES, ([*tables, *map(dropped, tables)],)).fetchall()
        there = {name for name, *_ in found}
        manifest = Manifest(
            database=str(engine.url.database),
            server=connection.execute("SELECT current_setting('server_version')").fetchone()[0],
            phase=Phase(_phase(connection)) if STATE in there else None,
            reversible=any(dropped(name) in there for name in tables),
            tables=tuple(_copied(engine, connection, folder, found, progress)),
        )
        connection.rollback()
    tell(engine)
    with files.created(folder / MANIFEST) as out:
        out.write(manifest.model_dump_json(indent=1).encode())
    return manifest


def _phase(connection: Any) -> int:
    found = connection.execute(f"SELECT phase FROM {STATE}").fetchone()
    if found is None:
        raise errors.BackupError("the database is an unfinished copy of another one", hint="finish the copy first")
    return int(found[0])


def _copied(
    engine: Engine,
    connection: Any,
    folder: Path,
    found: list[tuple[Any, ...]],
    progress: Callable[[int, int], object],
) -> Iterator[TableFile]:
    total, done = sum(size for _, _, size, *_ in found), 0
    counted = table_of(ReadCount).name in {name for name, *_ in found}
    for number, (name, is_partitioned, _, columns, sequence) in enumerate(found, 1):
        tally, file = _Tally(), folder / f"{number:02}.copy"
        told = expected(engine, connection, name) if counted else contextlib.nullcontext()
        with files.created(file) as out, _readable(connection, name), told:
            for rows, block in connection.copy_out(_copy_out(name, columns, is_partitioned=is_partitioned)):
                out.write(block)
                tally.add(rows, block)
                done += len(block)
                progress(done // PAGE, max(total, done) // PAGE)
        yield TableFile(
            name=name,
            columns=tuple(columns),
            is_partitioned=is_partitioned,
            sequence=sequence,
            file=file.name,
            rows=tally.rows,
            bytes=tally.bytes,
            sha256=tally.digest.hexdigest(),
        )


@contextlib.contextmanager
def _readable(connection: Any, table: str) -> Iterator[None]:
    try:
        yield
    except connection.Error as error:
        if error.sqlstate != INSUFFICIENT_PRIVILEGE:
            raise
        raise errors.BackupError(
            f"the role {connection.info.user} may not read each row of {table}",
            hint=f"GRANT SELECT ON {quoted(table)}; where it has row security, its owner may, or a role with BYPASSRLS;"
            " or keep the legacy tables instead: consensus-orm advance contract --keep-tables --reason TEXT",
        ) from error


def _copy_out(name: str, columns: Iterable[str], *, is_partitioned: bool) -> str:
    names = ", ".join(map(quoted, columns))
    source = f"(SELECT {names} FROM {quoted(name)})" if is_partitioned else f"{quoted(name)} ({names})"
    return f"COPY {source} TO STDOUT WITH (ENCODING 'UTF8')"


class _Tally:
    """Counts rows and bytes, and takes their digest."""

    def __init__(self) -> None:
        self.rows = self.bytes = 0
        self.digest = hashlib.sha256()

    def add(self, rows: int, block: bytes) -> None:
        self.rows += rows
        self.bytes += len(block)
        self.digest.update(block)

    def is_of(self, table: TableFile) -> bool:
        return (self.rows, self.bytes, self.digest.hexdigest()) == (table.rows, table.bytes, table.sha256)


# What was written -----------------------------------------------------------------------------------------


def is_backup(path: Path) -> bool:
    """Whether a path is the backup of a server: a folder with a manifest."""
    return (path / MANIFEST).is_file()


def read(folder: Path) -> Manifest:
    """Read the manifest of a backup, and compare each of its files with it.

    Raises:
        RestoreError: It is not a backup of a server, is of a later version, or a file is not what was written.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        if manifest.format > FORMAT:
            raise errors.RestoreError(
                f"{folder} was made by {manifest.build}, in a later format", hint="install that version", path=folder
            )
        for table in manifest.tables:
            _verify(folder, table)
    except (OSError, ValidationError, errors.BackupError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise errors.RestoreError(
            f"the backup {folder} cannot be used: {reason}", hint="give another backup", path=folder
        ) from error
    return manifest


def _verify(folder: Path, table: TableFile) -> None:
    """Read a file again: its rows, which have a line each, its bytes and its digest."""
    if table.file != Path(table.file).name:
        raise errors.BackupError(f"the manifest names {table.file!r:.60}, which is not a file of its folder")
    tally = _Tally()
    for block in _blocks(folder / table.file):
        tally.add(block.count(b"\n"), block)
    if not tally.is_of(table):
        raise errors.BackupError(f"{table.file}, of {table.name}, is not what the server sent", path=folder)


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as read:
        while block := read.read(BLOCK):
            yield block


def load(uow: Transaction, folder: Path, table: TableFile) -> None:
    """Add the rows of a file to its table, which is empty, and compare what the table holds then with the file.

    Args:
        uow: May write the table.
        folder: The folder of a backup that `read` has compared.
        table: The table.

    Raises:
        RestoreError: The table holds something else, because a trigger or a default has changed it.
    """
    connection: Any = uow._connected
    names = ", ".join(map(quoted, table.columns))
    uow._execute(AS_COPIED)
    with translated(uow.engine), connection.cursor() as cursor:
        with cursor.copy(f"COPY {quoted(table.name)} ({names}) FROM STDIN WITH (ENCODING 'UTF8')") as stream:
            for block in _blocks(folder / table.file):
                stream.write(block)
        if table.is_partitioned:
            return  # rows come back partition by partition
        tally = _Tally()
        for rows, block in connection.copy_out(_copy_out(table.name, table.columns, is_partitioned=False)):
            tally.add(rows, block)
    if not tally.is_of(table):
        raise errors.RestoreError(
            f"{table.name} does not hold the rows of the backup after they were loaded",
            hint="nothing was restored; disable its triggers meanwhile, and compare the types of its columns",
            path=folder,
        )
