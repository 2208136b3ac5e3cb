"""The source of a copy, which is only read.

Each read is short, so that no writer waits for a copy that takes hours. A SQLite file is opened read-only: a connection
that can write would checkpoint the log into the file if it were the last one to be closed.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from consensus_orm import errors
from consensus_orm.copying.reading import compared, has_place, parameters_of, rows_of
from consensus_orm.copying.tables import Copied
from consensus_orm.copying.values import cell
from consensus_orm.databases import saved_schema, state
from consensus_orm.databases.driver import Cursor, Driver, Parameters
from consensus_orm.databases.engine import checkout, database_path, driver, source_of, translate, translated
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.sqlite.connection import DriverConnection
from consensus_orm.ledgers import guards, reads
from consensus_orm.phase import Phase
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Lull", "Source", "State", "opened"]

T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """Where the migration of the source stands.

    Attributes:
        prepared: Whether it has our tables.
        phase: Its phase.
        epoch: How often the phase has changed.
        since: When the phase began, ms.
        reversible: Whether the legacy tables were dropped, with what it takes to make them again saved.
        soak: The soak time that the phase demands, ms; None where none is stored.
        certificate_max_age: Likewise.
        user_version: SQLite's user_version as other programs set it; None where unknown.
    """

    prepared: bool
    phase: Phase
    epoch: int = 0
    since: int | None = None
    reversible: bool = False
    soak: int | None = None
    certificate_max_age: int | None = None
    user_version: int | None = None


@dataclass
class Lull:
    """How long writers of the source had to wait, in seconds; None where no lock was taken."""

    locked: float | None = None


class Source(UnitOfWork):
    """A database that is read, without a transaction of its own.

    Args:
        units: The units of work of the database.
    """

    def __init__(self, units: UnitOfWorkFactory[Any]) -> None:
        super().__init__(units.engine, units.statements, units.settings, read_only=True)
        self.started = units.settings.clock()
        self.name = units.name
        self.application = units.application
        self._retrier = units.retrier

    def _execute_on(self, driver: Driver, sql: str, parameters: Parameters) -> Cursor:
        """Execute a statement outside of a transaction, and again after a transient error."""
        if isinstance(parameters, Mapping):  # a key may be text that is not UTF-8
            parameters = {name: driver.storable(value) for name, value in parameters.items()}
        look = partial(self._look_once, driver, sql, parameters)
        try:
            return look()
        except errors.DatabaseBusyError:
            if driver.in_transaction:
                raise
        return self.again(look)

    def _look_once(self, driver: Driver, sql: str, parameters: Parameters) -> Cursor:
        try:
            return driver.execute(sql, parameters)
        except driver.Error as error:
            raise (translate(error, self.engine) or error) from error

    def again(self, step: Callable[[], T]) -> T:
        """Take a step, again after a transient error."""
        return self._retrier.call(step, name="copy")

    @property
    def kind(self) -> str:
        """The kind of database."""
        return self.engine.dialect.name

    def look(self) -> State:
        """Read where the migration stands.

        Raises:
            CopyError: The database is in the middle of a step, or not prepared.
        """
        self._phase = Phase.EXPAND  # a missing table is an error, not an empty result
        identity = self.application.identify(self._connected)
        if identity.version is None and identity.legacy_tables and not identity.rewritten:
            return State(prepared=False, phase=Phase.EXPAND, user_version=identity.user_version)
        if identity.needs_upgrade:
            raise errors.CopyError(f"{self.name} has not been prepared yet", hint="run first: consensus-orm upgrade")
        found = state.get(self, "phase", "epoch", "since", "step", "user_version", "soak", "certificate_max_age")
        if found is None:
            raise errors.CopyError(f"{self.name} is a copy that was not finished", hint="finish it first")
        phase, self._epoch, since, step, version, soak, certificate_max_age = found
        if step is not None:
            raise errors.CopyError(
                f"{self.name} is in the middle of a step",
                hint="run it again until it ends: consensus-orm advance, or consensus-orm rollback",
            )
        self._phase = Phase(phase)
        for flaw in (flaw for flaw in guards.look(self) if flaw.table):
            raise errors.CopyError(f"{self.name} is not whole: {flaw.text}", hint=f"run first: {flaw.command}")
        saved = saved_schema.has_tables(self)
        return State(
            prepared=True,
            phase=self._phase,
            epoch=self._epoch,
            since=since,
            reversible=saved and not self._phase.has_legacy,
            soak=soak,
            certificate_max_age=certificate_max_age,
            user_version=identity.user_version if version is None else version,
        )

    def count(self, table: Copied) -> int:
        """Rows of a table."""
        return int(self._rows(f"SELECT count(*) FROM {quoted(table.name)}")[0][0])

    def strange_keys(self, table: Copied) -> int:
        """Count rows whose key is NULL or of another type, and so without a place in the order of keys."""
        where = f"NOT ({has_place(table, self)})"
        return int(self._rows(f"SELECT count(*) FROM {quoted(table.name)} WHERE {where}")[0][0])

    def orphans(self, table: Copied) -> dict[int, frozenset[Any]]:
        """For each link of a table the keys of missing parents that its rows refer to."""
        return {place: self._orphans(table, place, parent) for place, parent in table.links}

    def _orphans(self, table: Copied, place: int, of: str) -> frozenset[Any]:
        link, parent = quoted(table.fields[place].name), self.statements.parents[of].parent
        sql = (
            f"SELECT DISTINCT {link} FROM {quoted(table.name)} AS t WHERE {link} IS NOT NULL AND NOT EXISTS"
            f" (SELECT 1 FROM {quoted(parent.table.name)} AS p WHERE {quoted('p', parent.key.name)} = t.{link})"
        )
        return frozenset(key for (key,) in self._rows(sql))

    def images(self, table: Copied, key: Any) -> list[str]:
        """The image of a row as JSON, type and bytes of each column; for None, of all rows without a place."""
        parameters: dict[str, Any] = {}
        if key is None:
            where = f"NOT ({has_place(table, self)})"
        else:
            where, parameters = compared(table, self, "=", "_key"), parameters_of(table, "_key", key)
        rows = rows_of(self, table, f"WHERE {where}", parameters)
        names = [field.name for field in table.fields]
        return [json.dumps(dict(zip(names, map(cell, row), strict=True))) for row in rows]

    # Concurrent writes ----------------------------------------------------------------------------

    def mark(self) -> Any:
        """A mark that changes with every write; None where that cannot be told."""
        return None

    @contextlib.contextmanager
    def still(self, *, lock: bool) -> Iterator[Lull]:
        """Read one snapshot until the block ends, taken when no writer is at work.

        Args:
            lock: Whether to wait for writers, and keep them waiting until the snapshot is taken.

        Yields:
            How long they waited, known at the end.
        """
        lull = Lull()
        with contextlib.ExitStack() as stack:
            release = self.again(lambda: self._keep_out(stack)) if lock else None
            since = time.monotonic()
            self._begin_snapshot()
            stack.callback(self._connected.rollback)
            keeps_waiting = self.catalog.keeps_writers_waiting(self)
            if release is not None and not keeps_waiting:
                release()
                lull.locked = time.monotonic() - since
            yield lull
            if release is not None and keeps_waiting:
                lull.locked = time.monotonic() - since

    def _keep_out(self, stack: contextlib.ExitStack) -> Callable[[], object] | None:
        """Keep writers out until the stack is left or the result is called; None where there is no lock."""
        raise NotImplementedError

    def _begin_snapshot(self) -> None:
        raise NotImplementedError


class FileSource(Source):
    """A SQLite database."""

    def mark(self) -> Any:
        """SQLite's counter of the commits of other connections."""
        return self._rows("PRAGMA data_version")[0][0]

    def _keep_out(self, stack: contextlib.ExitStack) -> Callable[[], object] | None:
        path = database_path(self.engine)
        if path is None:
            return None
        # A connection for the lock alone, closed before the one that reads: the last one must be read-only.
        other = stack.enter_context(
            contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None))
        )
        return other.rollback if _locked(other, self.settings.busy_timeout.total_seconds()) else None

    def _begin_snapshot(self) -> None:
        self._execute("BEGIN")
        self._rows("SELECT 1 FROM sqlite_master LIMIT 1")  # the first read takes the snapshot


def _locked(connection: sqlite3.Connection, patience: float) -> bool:
    """Take the write lock without writing; False for a file that is read-only."""
    connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise
        return False
    return True


class ServerSource(Source):
    """A PostgreSQL database."""

    def mark(self) -> Any:
        """The next transaction to write; None while one is under way. Other databases of the server change it, too."""
        first, following, _ = self._rows("SELECT CAST(pg_current_snapshot() AS TEXT)")[0][0].split(":")
        return following if first == following else None

    def _keep_out(self, stack: contextlib.ExitStack) -> Callable[[], object]:
        source: Any = source_of(self.engine)
        other = source.connect()
        stack.callback(other.close)
        other.begin_unit(Lock.WRITE)  # first, as our own writers do
        there = self.catalog.tables(self)
        if "consensus_orm_state" in there:
            other.hold(Lock.FLIP)
        moves = self.statements.moves
        names = {t.name for pair in moves for t in (pair.table, pair.legacy_table)}
        names |= {parent.table.name for parent in moves.parents}
        names |= {table.name for table in self.application.unmapped}
        other.keep_out(names & there)
        release: Callable[[], object] = other.rollback
        return release

    def _begin_snapshot(self) -> None:
        self._connected.begin(write=False)
        self._rows("SELECT 1")  # the first read takes the snapshot


@contextlib.contextmanager
def opened(units: UnitOfWorkFactory[Any]) -> Iterator[Source]:
    """Open the source of a copy with a connection that cannot write."""
    engine = units.engine
    if engine.dialect.name == "postgresql":
        source: Source = ServerSource(units)
        connections: Any = source_of(engine)
        with translated(engine), contextlib.closing(connections.connect()) as connection:
            if not connections.transaction_settings:  # a pooler would keep it for other clients
                connection.execute("SET default_transaction_read_only = on; SET row_security = off; SET jit = off")
            source._driver = connection
            before = _reads(source)
            yield source
            connections.own_reads.update(_reads(source) - before)
        if source._phase is not None and source._phase.freezes_legacy:
            with contextlib.suppress(errors.StorageError), units.bare() as uow:  # a role may have no right to write
                reads.note(uow)
        return
    source = FileSource(units)
    path = units.path
    if path is None:
        with checkout(engine) as pooled:
            source._driver = driver(pooled)
            yield source
        return
    with translated(engine), contextlib.closing(source.again(lambda: _read_only(path, units))) as own:
        source._driver = own
        try:
            yield source
        finally:
            # The last connection to be closed checkpoints the log into the file, unless it cannot write.
            if _has_log(path):
                engine.dispose()


def _reads(source: Source) -> Counter[str]:
    """How often the legacy tables were read: those of a copy are taken off what the reads of others are known by."""
    source.catalog.own_reads(source)  # has the server count them at once
    return Counter({counter.table: counter.scans for counter in source.catalog.reads(source)})


def _has_log(path: Path) -> bool:
    try:
        return Path(f"{path}-wal").stat().st_size > 0
    except FileNotFoundError:
        return False


def _read_only(path: Path, units: UnitOfWorkFactory[Any]) -> DriverConnection:
    settings = units.settings
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=ro",
        uri=True,
        timeout=settings.busy_timeout.total_seconds(),
        isolation_level=None,
        check_same_thread=False,
        factory=DriverConnection,
    )
    connection.source, connection.query_only = source_of(units.engine), True
    connection.configure(settings, trusted_schema=settings.trusted_schema)
    return connection
