"""The target of a copy, which has no phase, and so cannot be used, until the copy is finished.

A table of its own, dropped at the end, holds the progress: a row without a name says what is copied and what must be
restored at the end; each other row holds the last key of a table that was copied.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.schema import AddConstraint, DropConstraint

from consensus_orm import errors
from consensus_orm.copying import foreign_keys
from consensus_orm.copying.definitions import Definition
from consensus_orm.copying.foreign_keys import ForeignKey
from consensus_orm.copying.reading import compared, parameters_of, rows_between
from consensus_orm.copying.source import State
from consensus_orm.copying.tables import Copied, made_elsewhere, normalized
from consensus_orm.copying.values import Held, Values, is_encodable
from consensus_orm.databases import engine as engines
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.saved_rows import dropped
from consensus_orm.databases.sqlite.saved_schema import make
from consensus_orm.models.base import Verbatim
from consensus_orm.phase import Phase, Side
from consensus_orm.schema import revisions
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["CHECKPOINTS", "Target", "TargetUnit"]

T = TypeVar("T")

CHECKPOINTS = "consensus_orm_copy"

_CREATE = (
    f"CREATE TABLE {CHECKPOINTS} (name TEXT NOT NULL PRIMARY KEY, last_key TEXT, facts TEXT)"  # keys and facts as JSON
)
_TIMES = "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
"""How PostgreSQL writes the default of a time as SQLite does."""


class TargetUnit(UnitOfWork):
    """A transaction on a database that has no phase yet.

    Foreign keys are not enforced in it: while the source is in use, a row may come before the row it refers to.

    Args:
        units: The units of work of the database.
        phase: The phase it will have.
        read_only: Whether it only reads.
        durable: Flush its commit, and all before it, to the disk, whatever the settings say.
    """

    def __init__(
        self, units: UnitOfWorkFactory[Any], phase: Phase, *, read_only: bool = False, durable: bool = False
    ) -> None:
        super().__init__(
            units.engine, units.statements, units.settings, read_only=read_only, lock=Lock.CARRY, durable=durable
        )
        self._to_be = phase

    def _begin(self) -> None:
        driver = self._pooled and self._pooled.driver_connection
        if isinstance(driver, sqlite3.Connection):
            driver.execute("PRAGMA foreign_keys = OFF")
        super()._begin()

    def _read_phase(self) -> None:
        self._phase = self._to_be
        if self.statements.rendering.name == "postgresql":
            self._execute("SELECT set_config('consensus_orm.by', 'carrier', true)")

    def _release(self) -> None:
        driver = self._pooled and self._pooled.driver_connection  # it may not have begun
        try:
            if isinstance(driver, sqlite3.Connection):
                driver.rollback()
                driver.execute("PRAGMA foreign_keys = ON")
        finally:
            super()._release()


class Target:
    """A database that becomes a copy.

    Args:
        units: The units of work of the database.
        source: The name of what is copied.
        state: Where the source stands.
    """

    def __init__(self, units: UnitOfWorkFactory[Any], source: str, state: State) -> None:
        self.units = units
        self.source = source
        self.state = state
        self.kind = units.engine.dialect.name

    def unit(self, *, durable: bool = False) -> TargetUnit:
        """Begin a transaction; see `TargetUnit`."""
        return TargetUnit(self.units, self.state.phase, durable=durable)

    # Before ---------------------------------------------------------------------------------------------

    def is_begun(self, shape: list[Any]) -> bool:
        """Whether the target holds an unfinished copy of the same source, with the same tables (`shape`).

        Raises:
            CopyError: The target holds something else; nothing was written.
        """
        if self.units.path is not None and not self.units.path.exists():
            return False
        is_new = self.again(self.units.inspect).is_new
        return self.again(partial(self._is_begun, shape, is_new=is_new))

    def _is_begun(self, shape: list[Any], *, is_new: bool) -> bool:
        with engines.translated(self.units.engine), self._looking() as uow:
            there = {name.lower() for name in uow.catalog.tables(uow)}
            if CHECKPOINTS in there:
                self._expect(uow, shape)
                return True
            self._require_empty(uow, there, is_new=is_new)
        return False

    def again(self, step: Callable[[], T]) -> T:
        """Take a step, again after a transient error; what it had not committed is gone."""
        return self.units.retrier.call(step, name="copy")

    @contextlib.contextmanager
    def _looking(self) -> Iterator[UnitOfWork]:
        with UnitOfWork(self.units.engine, self.units.statements, self.units.settings, read_only=True) as uow:
            uow._phase = uow._phase or self.state.phase  # what is missing is an error, and no empty answer
            yield uow

    def _expect(self, uow: UnitOfWork, shape: list[Any]) -> None:
        facts = json.loads(uow._rows(f"SELECT facts FROM {CHECKPOINTS} WHERE name = ''")[0][0])
        if facts["source"] != self.source:
            raise self._refusal("holds an unfinished copy of another database")
        if facts["shape"] != shape:
            raise self._refusal("holds an unfinished copy of this database as it was in another phase")

    def _refusal(self, why: str) -> errors.CopyError:
        return errors.CopyError(f"{self.units.name} {why}", hint="nothing was written; give an empty database")

    def _require_empty(self, uow: UnitOfWork, there: set[str], *, is_new: bool) -> None:
        if not is_new:
            raise self._refusal("holds tables of ours already")
        moves = self.units.statements.moves
        for table in (*normalized(moves), *(pair.legacy_table for pair in moves.of_tables(Side.LEGACY))):
            if table.name.lower() in there and uow._rows(f"SELECT 1 FROM {quoted(table.name)} LIMIT 1"):
                raise self._refusal(f"holds rows in {table.name} already")

    def prepare(self, shape: list[Any], made: Sequence[Definition]) -> None:
        """Make the tables, in one transaction, and close the database until the copy is finished.

        Args:
            shape: The tables of the source.
            made: SQLite's definitions of the tables of other programs.
        """
        self.again(partial(engines.prepare, self.units.engine))
        self.again(partial(self._make, shape, made))

    def _make(self, shape: list[Any], made: Sequence[Definition]) -> None:
        engine, application = self.units.engine, self.units.application
        with engines.translated(engine), revisions.changing(engine, application.tables) as connection:
            for schema in self.units.statements.moves.schemas:
                connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
            if self.state.phase.has_legacy or self.state.reversible:
                self._make_legacy(connection, made)
            self._make_others(connection, made)
            self._upgrade(connection)
            if application.protection is not None and self.units.settings.protect:
                revisions.protect(connection, application.protection)
            facts = {"source": self.source, "shape": shape, "foreign_keys": self._drop_foreign_keys(connection)}
            connection.exec_driver_sql(_CREATE)
            mark = "%s" if self.kind == "postgresql" else "?"
            header = f"INSERT INTO {CHECKPOINTS} (name, facts) VALUES ('', {mark})"
            connection.exec_driver_sql(header, (json.dumps(facts),))
            connection.exec_driver_sql("DELETE FROM consensus_orm_state")
            if self.state.prepared:
                connection.exec_driver_sql("DELETE FROM consensus_orm_history")

    def _make_legacy(self, connection: Connection, made: Sequence[Definition]) -> None:
        names = {pair.legacy_name.lower() for pair in self.units.statements.moves}
        if self.kind == "sqlite":
            if self.state.phase.has_legacy:
                _create(connection, made, names)
            return
        for pair in self.units.statements.moves.of_tables(Side.LEGACY):
            pair.legacy_table.create(connection, checkfirst=True)
            for column in pair.legacy_table.columns:
                if (
                    isinstance(column.type, Verbatim)
                    and column.server_default is not None
                    and column.type.name == "TIMESTAMP"
                ):
                    connection.exec_driver_sql(
                        f"ALTER TABLE {quoted(pair.legacy_name)} ALTER COLUMN {quoted(column.name)}"
                        f" SET DEFAULT {_TIMES}"
                    )

    def _make_others(self, connection: Connection, made: Sequence[Definition]) -> None:
        if self.kind == "sqlite":
            others = made_elsewhere(self.units.application, self.units.statements.moves)
            _create(connection, made, {table.name.lower() for table in others})

    def _upgrade(self, connection: Connection) -> None:
        from alembic import command

        config = revisions.configuration(
            self.units.application, connection=connection, applied=[], clock=self.units.settings.clock
        )
        command.upgrade(config, revisions.head())
        moves = self.units.statements.moves
        for table in normalized(moves):
            table.create(connection, checkfirst=True)  # of another mapping: revisions make those of the consensus data
        if self.kind == "postgresql" and not self.state.phase.has_legacy and self.state.reversible:
            for pair in moves.of_tables(Side.LEGACY):
                aside = quoted(dropped(pair.legacy_name))
                connection.exec_driver_sql(f"ALTER TABLE {quoted(pair.legacy_name)} RENAME TO {aside}")

    def _drop_foreign_keys(self, connection: Connection) -> list[ForeignKey]:
        """Drop the foreign keys of a server's tables until the copy is finished; in a file they are not enforced."""
        if self.kind != "postgresql":
            return []
        keys = foreign_keys.of(connection, normalized(self.units.statements.moves))
        for key in keys:
            connection.execute(DropConstraint(foreign_keys.constraint(key)))
        return keys

    # Rows -------------------------------------------------------------------------------------------------

    def settle(self, table: Copied, after: Any, upto: Any, rows: list[Values]) -> tuple[int, int]:
        """Make a range of keys hold exactly these rows, and move the checkpoint, in one transaction.

        Returns:
            The numbers of rows written and deleted.
        """
        return self.again(partial(self._settle, table, after, upto, rows))

    def _settle(self, table: Copied, after: Any, upto: Any, rows: list[Values]) -> tuple[int, int]:
        with self.unit() as uow:
            known = uow._rows(f"SELECT last_key FROM {CHECKPOINTS} WHERE name = ?", (table.name,))
            last = _key(json.loads(known[0][0])) if known and known[0][0] is not None else None
            behind = last is None or last == after
            theirs = {} if behind else {table.key_of(row): row for row in rows_between(uow, table, after, upto)}
            wanted = {table.key_of(row): row for row in rows}
            stale = [key for key, row in theirs.items() if key not in wanted or repr(row) != repr(wanted[key])]
            new = [row for key, row in wanted.items() if key not in theirs or repr(theirs[key]) != repr(row)]
            self._delete(uow, table, stale)
            self._insert(uow, table, new)
            if rows and (last is None or _order(table.key_of(rows[-1])) > _order(last)):
                uow._execute(
                    f"INSERT INTO {CHECKPOINTS} (name, last_key) VALUES (:name, :key)"
                    " ON CONFLICT (name) DO UPDATE SET last_key = :key",
                    {"name": table.name, "key": json.dumps(table.key_of(rows[-1]))},
                )
        return len(new), len(set(stale) - wanted.keys())

    def _delete(self, uow: UnitOfWork, table: Copied, keys: list[Any]) -> None:
        for key in keys:
            where = compared(table, uow, "=", "key")
            uow._execute(f"DELETE FROM {quoted(table.name)} WHERE {where}", parameters_of(table, "key", key))

    def _insert(self, uow: UnitOfWork, table: Copied, rows: list[Values]) -> None:
        driver: Any = uow._connected
        if not rows:
            return
        if self.kind == "postgresql":
            places = [(place, field.held) for place, field in enumerate(table.fields)]
            typed = [(place, _GIVEN[held]) for place, held in places if held in _GIVEN]
            with driver.cursor().copy(f"COPY {quoted(table.name)} ({table.columns}) FROM STDIN") as stream:
                for row in rows:
                    stream.write_row(_with_types(row, typed) if typed else row)
            return
        marks = ", ".join("?" * len(table.fields))
        sql = f"INSERT INTO {quoted(table.name)} ({table.columns}) VALUES ({marks})"
        encodable = [row for row in rows if all(map(is_encodable, row))]
        driver.executemany(sql, encodable)
        for row in rows if len(encodable) < len(rows) else ():
            if not all(map(is_encodable, row)):
                given = ", ".join("?" if is_encodable(value) else "CAST(? AS TEXT)" for value in row)
                driver.execute(
                    f"INSERT INTO {quoted(table.name)} ({table.columns}) VALUES ({given})",
                    tuple(map(driver.storable, row)),
                )

    def rows(self, table: Copied, after: Any, upto: Any) -> list[Values]:
        """The stored rows of a range of keys."""
        return self._read(lambda uow: rows_between(uow, table, after, upto))

    def _read(self, look: Callable[[UnitOfWork], T]) -> T:
        def once() -> T:
            with TargetUnit(self.units, self.state.phase, read_only=True) as uow:
                return look(uow)

        return self.again(once)

    def count(self, table: Copied) -> int:
        """Rows of a table."""
        return int(self._read(lambda uow: uow._rows(f"SELECT count(*) FROM {quoted(table.name)}"))[0][0])

    def restored(self, uow: UnitOfWork) -> list[str]:
        """Statements that restore the foreign keys that were dropped for the copy."""
        if self.kind != "postgresql":
            return []
        facts = json.loads(uow._rows(f"SELECT facts FROM {CHECKPOINTS} WHERE name = ''")[0][0])
        tables = normalized(self.units.statements.moves)
        constraints = [foreign_keys.constraint(foreign_keys.checked(key, tables)) for key in facts["foreign_keys"]]
        return [str(AddConstraint(each).compile(dialect=uow.engine.dialect)) for each in constraints]

    def make_room(self, table: Copied) -> None:
        """Add the columns that the table of the target lacks."""
        self.again(partial(self._add_columns, table))

    def _add_columns(self, table: Copied) -> None:
        with self.unit() as uow:
            there = set(map(uow.catalog.folded, uow.catalog.columns(uow, table.name)))
            for field in table.fields:
                if uow.catalog.folded(field.name) not in there:
                    uow._execute(f"ALTER TABLE {quoted(table.name)} ADD COLUMN {quoted(field.name)} TEXT")


def _create(connection: Connection, made: Sequence[Definition], names: set[str]) -> None:
    """Make the tables of these lower-case names with their indexes."""
    driver = engines.driver(connection.connection)
    there = {name for (name,) in driver.execute("SELECT name FROM sqlite_master")}
    for kind in ("table", "index"):
        for definition in made:
            if definition.type == kind and definition.table.lower() in names and definition.name not in there:
                make(driver, kind, definition.table, definition.sql)


def _key(read: Any) -> Any:
    """A key of a checkpoint: several values are a tuple."""
    return tuple(read) if isinstance(read, list) else read


def _order(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_order, key))
    return key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key


_GIVEN: dict[Held, Callable[[Any], Any]] = {
    Held.BOOLEAN: bool,
    Held.KEY: partial(json.dumps, ensure_ascii=False),
}
"""What a server takes for values that it stores in another form."""


def _with_types(row: Values, places: list[tuple[int, Callable[[Any], Any]]]) -> list[Any]:
    values = list(row)
    for place, given in places:
        values[place] = None if row[place] is None else given(row[place])
    return values
