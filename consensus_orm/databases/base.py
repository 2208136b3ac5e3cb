"""What a database can do, whatever its kind: the classes that each kind implements.

`databases.sqlite` and `databases.postgresql` have modules of the same names that do; `databases.opening` chooses.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any, NamedTuple

from sqlalchemy import Column, Dialect, Engine, MetaData, Table
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.expression import ClauseElement

from consensus_orm import errors
from consensus_orm.databases.driver import Cursor, Driver, Parameters
from consensus_orm.databases.engine import pool_of, translate, translated
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.session_guard import SessionGuard, require_transaction
from consensus_orm.declaration.pairs import Pair
from consensus_orm.events import Event
from consensus_orm.hub import log_event
from consensus_orm.phase import Phase, Side
from consensus_orm.settings import Settings
from consensus_orm.statements.pairs import Statements
from consensus_orm.statements.rendering import Statement
from consensus_orm.times import time_text

__all__ = [
    "FROZEN",
    "PREFIX",
    "Catalog",
    "Cells",
    "ColumnFacts",
    "LegacyTables",
    "SavedRow",
    "Standing",
    "Transaction",
    "Trigger",
]

PREFIX = "consensus_orm_"
"""How the names of all our triggers begin."""

MARK = f"{PREFIX}guarded"
"""A view that a file has since its triggers were recorded: those made again later are younger than it."""

SIGN = "moved"
"""The one column of a view that stands where a legacy table was."""


FROZEN = "consensus_orm: the legacy tables are frozen since phase NORMALIZED; write through consensus_orm"
"""What a program is told that still writes a legacy table after they were frozen."""

_lent: set[PoolProxiedConnection] = set()
"""Connections of units at work, kept from garbage collection: from a generator that is garbage it would first take the
connection, which the pool lends to somebody else, and then end the generator, which takes that one's writes back."""


Cells = Mapping[str, tuple[str, str]]
"""A row by its columns: SQLite's name of the type of each value, and its bytes in hexadecimal digits."""


class Trigger(NamedTuple):
    """A trigger of a phase.

    Attributes:
        name: Its name.
        table: Its table.
        statements: What creates it.
    """

    name: str
    table: str
    statements: tuple[str, ...]


class Standing(NamedTuple):
    """Something that guards a phase, as it stands in the catalog or as it was recorded.

    Attributes:
        kind: trigger, table or view.
        name: Its name.
        table: The table it belongs to.
        definition: The text of a trigger or a view; of a table, what tells it from another one made under its name.
        made: Of a trigger, what tells it from another one of the same text that was made in its place.
        enabled: Whether a trigger fires.
    """

    kind: str
    name: str
    table: str
    definition: str
    made: str = ""
    enabled: bool = True

    @property
    def place(self) -> tuple[str, str, str]:
        """What it is found by: on a server tables may have triggers of the same name."""
        return self.kind, self.name.lower(), self.table.lower()


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """What a column of a table is, as far as it tells one program's table from another's."""

    type: str
    required: bool
    """NOT NULL without a default: whoever does not know the column cannot insert a row."""
    primary: bool


class SavedRow(NamedTuple):
    """A row that stands on the legacy side alone: its table, its cells, and its values as they are bound."""

    table: str
    cells: Cells
    values: list[Any]


class Transaction(ABC):
    """One transaction on one connection, under one phase: what every statement of this package runs in.

    Args:
        engine: Where connections come from.
        statements: The statements of the mapping.
        settings: Policies and the clock.
        read_only: See one snapshot, take no lock, and let the database refuse writes.
        lock: Which lock a writing one takes when it begins.
        durable: Have its commit, and all before it, reach the disk, whatever the settings say.
        readable: Whether a database without our tables may be read as it is: it holds legacy rows or nothing.
    """

    started: datetime
    """When it began, UTC."""

    _pooled: PoolProxiedConnection | None = None

    def __init__(
        self,
        engine: Engine,
        statements: Statements,
        settings: Settings,
        *,
        read_only: bool = False,
        lock: Lock = Lock.WRITE,
        durable: bool = False,
        readable: bool = True,
    ) -> None:
        self.engine = engine
        self.statements = statements
        self.settings = settings
        self.read_only = read_only
        self.lock = Lock.NONE if read_only else lock
        self.durable = durable or self.lock is Lock.FLIP
        self._readable = readable
        self._driver: Driver | None = None
        self._phase: Phase | None = None
        self._epoch = 0
        self._guard: SessionGuard | None = None
        self._doomed: BaseException | None = None
        self._doubtful: dict[str, set[Any]] = {}
        self._alarm: str | None = None

    # Begin and end --------------------------------------------------------------------------------------

    def _open(self) -> None:
        with translated(self.engine):
            self._borrow()
            self._begin()
            try:
                self._read_phase()
            except BaseException:
                self._release()
                raise

    def _close(self) -> None:
        """Leave what was opened, to open it again with another engine."""
        self._release()
        self._phase, self._epoch = None, 0

    def _borrow(self) -> None:
        self._pooled = pool_of(self.engine).borrow(write=not self.read_only)
        _lent.add(self._pooled)

    def _begin(self) -> None:
        assert self._pooled is not None
        driver: Any = self._pooled.driver_connection
        assert driver is not None
        try:
            driver.begin_unit(self.lock, durable=self.durable)
        except BaseException:
            self._release()
            raise
        self._driver = driver

    def _read_phase(self) -> None:
        """Read the phase within this transaction; there is none where the database does not have our tables."""
        row = self._connected.read_phase()
        if row is not None:
            self._phase, self._epoch = Phase(row[0]), row[1]
            if len(row) > 2 and row[2] != row[3]:
                self._notice_schema()
        elif not (self.read_only and self._readable):
            self.phase  # noqa: B018 - raises

    def _notice_schema(self) -> None:
        """Another program has changed the schema since what guards the phase was looked at last."""
        return

    def _release(self) -> None:
        """Give the connection back; whatever is still open is rolled back."""
        pooled, self._pooled = self._pooled, None
        self._driver = None
        if pooled is not None:
            _lent.discard(pooled)
            pooled.close()

    # What it knows --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def catalog(self) -> Catalog:
        """What only the catalog of this kind of database knows."""

    @property
    def phase(self) -> Phase:
        """The phase of this transaction, the same from its begin to its end.

        Raises:
            SchemaOutdatedError: The database does not have our tables yet.
        """
        if self._phase is None:
            raise errors.SchemaOutdatedError(
                f"{self.engine.url.database} has not been prepared yet, or is a copy that is not finished",
                hint="run: consensus-orm upgrade, or finish the copy",
            )
        return self._phase

    @property
    def prepared(self) -> bool:
        """Whether the database has our tables."""
        return self._phase is not None

    @property
    def epoch(self) -> int:
        """How often the phase had changed when this unit of work began."""
        return self._epoch

    @property
    def now(self) -> datetime:
        """When this unit of work began, UTC: the created_at of what it adds."""
        return self.started

    @cached_property
    def now_text(self) -> str:
        """`now` as the tables hold it."""
        return time_text(self.started)

    def _doom(self, error: BaseException) -> None:
        """Refuse to commit, for the reason given: one side may have taken what the other did not."""
        self._doomed = self._doomed or error

    def _doubt(self, pair: Pair, keys: set[Any]) -> None:
        """Have rows compared again, under the lock, after this unit of work."""
        self._doubtful.setdefault(pair.name, set()).update(keys)

    def _sound_alarm(self, reason: str) -> None:
        """Have the alarm answered after the commit: the settings may take reads back to the legacy side."""
        self._alarm = reason

    def _tell(self, event: Event) -> None:
        """Tell what happened: to the log alone, where nobody else listens (`consensus_orm.telemetry`)."""
        log_event(event)

    # Statements -----------------------------------------------------------------------------------------

    @property
    def _connected(self) -> Driver:
        if self._driver is None:
            raise errors.UnitOfWorkClosedError
        return self._driver

    def _execute(self, statement: str | ClauseElement, parameters: Parameters = ()) -> Cursor:
        """Run one of our own statements; text that is no UTF-8 is bound as its bytes.

        Args:
            statement: A statement that is made once, at import, or one that is printed. Bare text is a command of
                this kind of database: a pragma, a savepoint, DDL.
            parameters: Its parameters.
        """
        sql, driver = self._printed(statement), self._connected
        writes = sql.writes if isinstance(sql, Statement) else None
        if writes:
            self._refuse_to_read_only()
        if self._guard is not None:
            return self._guard.let(partial(self._execute_on, driver, sql, parameters), writes=writes is not False)
        return self._execute_on(driver, sql, parameters)

    def _printed(self, statement: str | ClauseElement) -> str:
        return statement if isinstance(statement, str) else self.statements.rendering.printed(statement)

    def _refuse_to_read_only(self) -> None:
        """Say that this unit cannot write: the database would, but after that a server lets nobody read on."""
        if self.read_only and self._driver is not None:
            raise errors.ReadOnlyUnitOfWorkError

    def _execute_on(self, driver: Driver, sql: str, parameters: Parameters) -> Cursor:
        if not driver.in_transaction:
            require_transaction(driver)  # raises
        try:
            return driver.execute(sql, parameters)
        except UnicodeEncodeError:
            if isinstance(parameters, Mapping):
                return self._execute_on(driver, sql, {name: driver.storable(v) for name, v in parameters.items()})
            return self._execute_on(driver, sql, [driver.storable(value) for value in parameters])
        except OverflowError:
            raise errors.InvalidValueError("a number does not fit 64 bits, so that no database can hold it") from None
        except driver.Error as error:
            if self.read_only and driver.is_read_only(error):
                raise errors.ReadOnlyUnitOfWorkError from error
            raise (self._missing(error) or translate(error, self.engine) or error) from error

    def _missing(self, error: Exception) -> errors.TableMissingError | None:
        """What a statement that failed says of a table of ours that another program has dropped."""
        return None

    def _together(self, *statements: tuple[str, Parameters]) -> list[Any] | None:
        """Run several statements of our own with one trip to the server, or none of them; the first row of each.

        Returns:
            The rows; None where a statement failed, which left the transaction as it was before.
        """
        require_transaction(self._connected)
        if self._guard is not None:
            return None  # each statement has to be announced to the guard
        try:
            return self._connected.together(*statements)
        except self._connected.Error as error:
            if self._connected.in_transaction:
                return None
            raise (translate(error, self.engine) or error) from error

    def _rows(self, statement: str | ClauseElement, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement, as stored: text that is no UTF-8 comes with its bytes escaped.

        Args:
            statement: As for `_execute`; bare text asks a catalog.
            parameters: Its parameters.
        """
        sql, driver = self._printed(statement), self._connected
        if not isinstance(sql, Statement):
            sql = Statement(sql, writes=False)
        try:
            return self._execute(sql, parameters).fetchall()
        except errors.StorageError as error:
            if self._phase is None and driver.is_missing_table(error):
                driver.read_on()
                return []  # a read of a database that nobody prepared: what is not there is empty
            raise
        except driver.Error as error:
            if not driver.cannot_decode(error):
                raise (translate(error, self.engine) or error) from error
        with driver.escaping():
            return self._execute(sql, parameters).fetchall()


class Catalog(ABC):
    """What only the catalog of a database knows, and what only its own means can do, seen from within a transaction."""

    needs_triggers: bool
    """Whether there are triggers in every phase, also in one that nobody has flipped to."""
    leaves_triggers: bool
    """Whether triggers of phases that are over stay behind, disabled."""
    others_write_meanwhile: bool
    """Whether other programs can write while a unit of work of ours holds its lock."""
    longest_chunk: tuple[float, int]
    """Seconds a chunk of the backfill aims to take, half of what a writer should ever wait for the lock; and how often
    CHUNK_ROWS fits into it at most, where nobody else writes."""

    @property
    @abstractmethod
    def legacy(self) -> LegacyTables:
        """What becomes of the legacy tables at CONTRACT, and on the way back."""

    @abstractmethod
    def tables(self, uow: Transaction) -> set[str]:
        """Names of the tables, in small letters."""

    @abstractmethod
    def sizes(self, uow: Transaction) -> dict[str, int]:
        """Bytes of the tables with their indexes; none where SQLite was built without dbstat."""

    @abstractmethod
    def columns(self, uow: Transaction, table: str) -> set[str]:
        """Names of the columns of a table."""

    @abstractmethod
    def referring(self, uow: Transaction, table: str) -> list[str]:
        """Names of the tables that refer to a table by a foreign key."""

    @abstractmethod
    def key_faults(self, uow: Transaction, table: str, key: Column[Any]) -> Iterator[str]:
        """What is wrong with a column as the key of a move, and what to do about it."""

    @abstractmethod
    def keeps_writers_waiting(self, uow: Transaction) -> bool:
        """Whether nobody can commit while a read is going on: that is so without a write-ahead log."""

    @abstractmethod
    def keep_out(self, uow: Transaction) -> None:
        """Keep every writer out of the mapped tables until the end of this unit of work: the write lock does."""

    @abstractmethod
    def begin_scan(self, uow: Transaction, others: Sequence[Transaction] = ()) -> None:
        """Prepare read-only units of work for looking at many rows, if possible all of them in one snapshot."""

    @abstractmethod
    def analyze(self, uow: Transaction, pair: Pair) -> None:
        """Let plans follow how many rows the normalized side has by now; SQLite's do not depend on it."""

    @abstractmethod
    def text_encoding(self, uow: Transaction) -> str:
        """How the file writes its texts, in Python's words."""

    def create(self, uow: Transaction, tables: Collection[Table]) -> None:
        """Make tables as their models have them; an index whose name is taken by another one is left out."""
        for statement in definitions(tables, uow.statements.rendering.dialect):
            if not isinstance(statement, CreateIndex) or not self.has_relation(uow, str(statement.element.name)):
                uow._execute(str(statement.compile(dialect=uow.statements.rendering.dialect)))

    @abstractmethod
    def has_relation(self, uow: Transaction, name: str) -> bool:
        """Whether something has a name that an index would need."""

    @abstractmethod
    def triggers(self, phase: Phase, statements: Statements) -> Iterator[Trigger]:
        """The triggers of a phase."""

    @abstractmethod
    def before_triggers(self, uow: Transaction) -> None:
        """Make sure that triggers can be installed, and keep out whoever would write meanwhile."""

    @abstractmethod
    def silence(self, uow: Transaction, trigger: Standing) -> None:
        """Let a trigger of ours do nothing any more."""

    @abstractmethod
    def standing(self, uow: Transaction) -> list[Standing]:
        """All triggers, tables and views there are.

        What tells a table from another one made under its name later: it is older than the record, which is made
        anew whenever something is recorded. SQLite keeps the order of tables, also through VACUUM and a backup.
        """

    @abstractmethod
    def cookie(self, uow: Transaction) -> int:
        """What differs after any change of the schema: SQLite counts them."""

    @abstractmethod
    def muted(self, uow: Transaction) -> list[str]:
        """What keeps triggers from firing that are in place; nothing does here."""

    @abstractmethod
    def go_on_without(self, uow: Transaction, tables: Collection[str]) -> None:
        """Drop our triggers that look into tables which are gone: each write of another table would fail."""

    @abstractmethod
    def name_taken(self, uow: Transaction, trigger: Trigger) -> str | None:
        """The table on which another program has a trigger of this name; asked when there is none of ours."""

    @abstractmethod
    def forget_guards(self, uow: Transaction) -> None:
        """Make the record anew, empty and younger than every table."""

    @abstractmethod
    def level_sequences(self, uow: Transaction) -> None:
        """Let both sides go on above the highest id that either has given (rule 3)."""

    @abstractmethod
    def next_key_of(self, uow: Transaction, pair: Pair, side: Side) -> int:
        """The next id where the table of the other side is gone: above whatever one side has, or has ever given."""

    @abstractmethod
    def free_key(self, uow: Transaction, pair: Pair) -> Any:
        """An id above whatever either side has, or has ever given, whoever made the legacy table."""

    @abstractmethod
    def go_on_above(self, uow: Transaction, pair: Pair) -> None:
        """Let ids be given above those that the normalized side has; SQLite sees to that by itself."""

    @abstractmethod
    def sequence(self, uow: Transaction, table: str) -> int | None:
        """The highest id a table has given; None where it never gave one."""

    @abstractmethod
    def set_sequence(self, uow: Transaction, table: str, value: int) -> None:
        """Let a table go on above an id."""

    @abstractmethod
    def used_up(self, uow: Transaction) -> str | None:
        """A mapped table that has given its last id, where there is one: SQLite calls that a full disk.

        It may be asked after the failure, which has ended the transaction.
        """

    def last_change(self, uow: Transaction) -> int:
        """The counter of writes that went around the repositories; it never falls."""
        return self.sequence(uow, "consensus_orm_changes") or 0

    @abstractmethod
    def forget_changes(self, uow: Transaction, *, after: int) -> None:
        """Forget what the triggers noted since a mark: this unit of work holds the lock, so it was its own doing.

        The counter goes back to the mark too, or a delete of ours would void a certificate.
        """

    @abstractmethod
    def forget_row(self, uow: Transaction, pair: Pair, key: Any) -> None:
        """Forget what the triggers noted of one row that this unit of work wrote."""

    @abstractmethod
    def legacy_unfrozen(self, uow: Transaction) -> contextlib.AbstractContextManager[None]:
        """Let this transaction alone write frozen legacy tables; nobody else ever sees the flag set."""


class LegacyTables(ABC):
    """What becomes of the legacy tables at CONTRACT, and how they come back exactly as they were."""

    @abstractmethod
    def save(self, uow: Transaction, pair: Pair) -> list[tuple[str, str, str, int | None]]:
        """What it takes to make a table again: type, name, definition and sequence of each of its objects."""

    @abstractmethod
    def put_away(self, uow: Transaction, pair: Pair) -> None:
        """Take a table out of the way, which takes milliseconds whatever it holds."""

    @abstractmethod
    def away(self, uow: Transaction) -> list[str]:
        """Names of the tables that were put away and are not done with."""

    @abstractmethod
    def empty(self, uow: Transaction, name: str, rows: int) -> int:
        """Delete at most so many rows of a table that was put away; drop it where it is empty.

        Returns:
            How many were deleted.
        """

    @abstractmethod
    def bring_back(self, uow: Transaction) -> None:
        """Make the tables again, empty, with their indexes.

        Raises:
            UnsafeDefinitionError: One of the definitions, those of triggers included, says something else.
        """

    @abstractmethod
    def remember(self, uow: Transaction) -> None:
        """Keep the definitions of the legacy tables as they are now: another program may drop them."""

    @abstractmethod
    def make_again(self, uow: Transaction, pair: Pair) -> None:
        """Make a legacy table that another program dropped: from its saved definition, else from its model.

        An index whose name another table has taken by now is left out.
        """

    @abstractmethod
    def set_aside(self, uow: Transaction, pair: Pair) -> str:
        """Take a table that cannot be used any more out of the way, with its rows, for good.

        Returns:
            Its new name.
        """

    @abstractmethod
    def complete_again(self, uow: Transaction, pair: Pair) -> None:
        """Bring the sequence back, and the triggers of other programs, once the rows are there."""

    @abstractmethod
    def drop_again(self, uow: Transaction, pair: Pair) -> None:
        """Undo `bring_back`, whatever the table holds by now."""

    @abstractmethod
    def complete(self, uow: Transaction, kind: str, name: str, table: str, sql: str, sequence: int | None) -> None:
        """Bring one of the saved objects back that must wait until the rows are there: triggers, and sequences."""

    @abstractmethod
    def values(self, table: str, row: Cells) -> list[Any]:
        """The values of a saved row as they are bound.

        Raises:
            UnsafeDefinitionError: One of them is no value.
        """

    @abstractmethod
    def put_back(self, uow: Transaction, saved: SavedRow) -> None:
        """Insert a row again that was saved, where there is none under its key.

        Args:
            uow: May write the legacy tables.
            saved: The row.
        """


def definitions(tables: Collection[Table], dialect: Dialect) -> Iterator[CreateTable | CreateIndex]:
    """What makes tables as their models have them, less the names of constraints, which others may have taken."""
    unnamed = MetaData()
    for table in tables:
        for other in table.metadata.tables.values():  # those that it refers to, too
            if other.key not in unnamed.tables:
                other.to_metadata(unnamed)
        copy = unnamed.tables[table.key]
        yield CreateTable(copy)
        yield from (CreateIndex(index) for index in sorted(copy.indexes, key=lambda index: str(index.name)))
