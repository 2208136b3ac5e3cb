"""What a database can do, whatever its kind: the abstract classes that each kind implements.

`databases.sqlite` and `databases.postgresql` implement them in modules of the same names; `databases.opening` chooses.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Column, Dialect, Engine, MetaData, Table
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.expression import ClauseElement

from consensus_orm import errors
from consensus_orm.databases.driver import Cursor, Driver, Parameters
from consensus_orm.databases.engine import pool_of, translate
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.session_guard import SessionGuard, transaction_ended
from consensus_orm.declaration.move import Move
from consensus_orm.events import Event
from consensus_orm.hub import log_event
from consensus_orm.phase import Phase, Side
from consensus_orm.settings import Settings
from consensus_orm.statements.pairs import Statements
from consensus_orm.statements.rendering import Statement
from consensus_orm.times import time_text

__all__ = [
    "FENCE",
    "FROZEN",
    "PREFIX",
    "Catalog",
    "Cells",
    "ColumnFacts",
    "Dependency",
    "LegacyTables",
    "ReadCounter",
    "Relations",
    "SavedRow",
    "Standing",
    "Transaction",
    "Trigger",
]

PREFIX = "consensus_orm_"
"""The prefix of the names of all triggers of this package."""

MARK = f"{PREFIX}guarded"
"""A view that is created when the triggers of a file are recorded: triggers created again later are younger."""

KIND = "iif(type = 'table' AND ifnull(rootpage, 0) = 0, 'virtual table', type)"
"""SQL: what an entry of the schema of a file is. A virtual table cannot have triggers or hold what a table holds."""

FENCE = f"{PREFIX}fence"
"""A view of a server whose lock is the fence: it locks the table of the phase, on which a role needs no right then."""

SIGN = "moved"
"""The only column of the view that takes the place of a legacy table."""

FROZEN = "consensus_orm: the legacy tables are frozen since phase NORMALIZED; write through consensus_orm"
"""The error that another program gets when it writes a frozen legacy table."""

_lent: set[PoolProxiedConnection] = set()
"""Connections of open units of work, kept from garbage collection. With an abandoned generator the collector would take
the connection first, which the pool lends again, and then the generator, whose end rolls back the next borrower."""

Cells = Mapping[str, tuple[str, str]]
"""A row by column: SQLite's name of the type of each value, and its bytes in hexadecimal digits."""


class Trigger(NamedTuple):
    """A trigger of a phase.

    Attributes:
        name: Its name.
        table: Its table.
        statements: The statements that create it.
    """

    name: str
    table: str
    statements: tuple[str, ...]


class Standing(NamedTuple):
    """A trigger, table or view that guards a phase, as the catalog has it or as it was recorded.

    Attributes:
        kind: trigger, table or view.
        name: Its name.
        table: The table it belongs to.
        definition: The text of a trigger or a view; for a table, a mark that differs if it was created again.
        made: For a trigger, a mark that differs if it was created again with the same text.
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
        """The key by which it is found: on a server, triggers of different tables may have the same name."""
        return self.kind, self.name.lower(), self.table.lower()


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """The properties of a column by which the table of one program is told from that of another."""

    type: str
    required: bool
    """NOT NULL without a default: a program that does not know the column cannot insert a row."""
    primary: bool


Relations: TypeAlias = Mapping[str, tuple[str, Callable[[], Mapping[str, ColumnFacts]]]]
"""By name the kind of each table, view and virtual table, and a function that reads its columns."""


class SavedRow(NamedTuple):
    """A row that exists on the legacy side alone: its table, its cells, and its values as they are bound."""

    table: str
    cells: Cells
    values: list[object]


class Dependency(NamedTuple):
    """An object of the database that uses a legacy table, and that this package neither made nor moves.

    Attributes:
        kind: view, rule, publication, ... as the manual of the database calls it.
        name: Its name, with its schema where it has one.
        table: The legacy table.
        shuts: It keeps the gate to this phase shut, and those to the phases after it.
        remedy: What has to be done about it where it cannot be accepted; empty where it can.
        grants: For a role, the statements that give it the rights that it lacks.
    """

    kind: str
    name: str
    table: str
    shuts: Phase = Phase.CONTRACT
    remedy: str = ""
    grants: tuple[str, ...] = ()


class ReadCounter(NamedTuple):
    """What a server has counted of a table.

    Attributes:
        table: The table.
        scans: The scans of it and of its indexes.
        last: When the last one was, ms; None where the server does not tell.
        now: The time at the server, ms.
    """

    table: str
    scans: int
    last: int | None
    now: int


class Transaction(ABC):
    """One transaction on one connection, under one phase; every statement of this package runs in one.

    Args:
        engine: The engine of the store.
        statements: The statements of the moves.
        settings: Policies and the clock.
        read_only: See one snapshot, take no lock, and let the database refuse writes.
        lock: The lock that a transaction that writes takes when it begins.
        durable: Have its commit, and all before it, reach the disk, whatever the settings say.
        readable: Whether a database without control tables may be read as it is: it has legacy rows or none.
        whole: Whether to fail where the row security of a server would leave rows out of an answer.
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
        whole: bool = False,
    ) -> None:
        self.engine = engine
        self.statements = statements
        self.settings = settings
        self.read_only = read_only
        self.lock = Lock.NONE if read_only else lock
        self.durable = durable or self.lock is Lock.FLIP
        self._readable = readable
        self._whole = whole
        self._driver: Driver | None = None
        self._phase: Phase | None = None
        self._epoch = 0
        self._guard: SessionGuard | None = None
        self._doomed: BaseException | None = None
        self._doubtful: dict[str, set[Any]] = {}
        self._alarm: str | None = None

    # Begin and end --------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._borrow()
            self._begin()
            self._read_phase()
            if self._whole:
                self.catalog.require_whole(self)
        except BaseException as error:
            self._release()
            mine = None if isinstance(error, errors.ConsensusError) else translate(error, self.engine)
            if mine is not None:
                raise mine from error
            raise

    def _close(self) -> None:
        """End the transaction, so that it can be opened again with another engine."""
        self._release()
        self._phase, self._epoch = None, 0

    def _borrow(self) -> None:
        self._pooled = pool_of(self.engine).borrow(write=not self.read_only)
        _lent.add(self._pooled)

    def _begin(self) -> None:
        driver: Driver | None = None if self._pooled is None else self._pooled.driver_connection
        if driver is None:
            raise errors.UnitOfWorkClosedError
        driver.begin_unit(self.lock, durable=self.durable)
        self._driver = driver

    def _read_phase(self) -> None:
        """Read the phase within this transaction; a database without control tables has none."""
        row = self._connected.read_phase()
        if row is not None:
            self._phase, self._epoch = Phase(row[0]), row[1]
            if len(row) > 2 and row[2] != row[3]:
                self._notice_schema()
        elif not (self.read_only and self._readable):
            self.phase  # noqa: B018 - raises

    def _notice_schema(self) -> None:
        """React to a schema that another program has changed since the guards of the phase were last checked."""
        return

    def _release(self) -> None:
        """Return the connection to the pool, which rolls back an open transaction."""
        pooled, self._pooled = self._pooled, None
        self._driver = None
        if pooled is not None:
            _lent.discard(pooled)
            pooled.close()

    # What it knows --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def catalog(self) -> Catalog:
        """The catalog of this kind of database."""

    @property
    def phase(self) -> Phase:
        """The phase of this transaction, the same from its begin to its end.

        Raises:
            SchemaOutdatedError: The database has no control tables yet.
        """
        if self._phase is None:
            raise errors.SchemaOutdatedError(
                f"{self.engine.url.database} has not been prepared yet, or is a copy that is not finished",
                hint="run: consensus-orm upgrade; where that does not help, finish the copy; where another program has"
                " emptied consensus_orm_state, run: consensus-orm restore BACKUP",
            )
        return self._phase

    @property
    def prepared(self) -> bool:
        """Whether the database has the control tables."""
        return self._phase is not None

    @property
    def epoch(self) -> int:
        """How many changes of the phase there were when this unit of work began."""
        return self._epoch

    @property
    def now(self) -> datetime:
        """When this unit of work began, UTC: the created_at of the rows that it adds."""
        return self.started

    @cached_property
    def now_text(self) -> str:
        """`now` as the tables store it."""
        return time_text(self.started)

    def _doom(self, error: BaseException) -> None:
        """Refuse to commit, with the error given: one side may have stored what the other did not."""
        self._doomed = self._doomed or error

    def _doubt(self, pair: Move, keys: set[Any]) -> None:
        """Have rows compared again, under the lock, after this unit of work."""
        self._doubtful.setdefault(pair.name, set()).update(keys)

    def _sound_alarm(self, reason: str) -> None:
        """Raise the alarm after the commit: the settings may take reads back to the legacy side."""
        self._alarm = reason

    def _tell(self, event: Event) -> None:
        """Report an event to the log; with telemetry also to its hooks (`consensus_orm.telemetry`)."""
        log_event(event)

    # Statements -----------------------------------------------------------------------------------------

    @property
    def _connected(self) -> Driver:
        if self._driver is None:
            raise errors.UnitOfWorkClosedError
        return self._driver

    def _execute(self, statement: str | ClauseElement, parameters: Parameters = ()) -> Cursor:
        """Run a statement of this package; text that is not valid UTF-8 is bound as its bytes.

        Args:
            statement: A statement of SQLAlchemy, or a rendered one. Plain text is a command of this kind of database: a
                pragma, a savepoint, DDL.
            parameters: Its parameters.
        """
        sql, driver = self._printed(statement), self._connected
        writes = sql.writes if isinstance(sql, Statement) else None
        if writes:
            self._refuse_to_read_only()
        if self._guard is not None and not self._guard.carries:
            return self._guard.let(partial(self._execute_on, driver, sql, parameters), writes=writes is not False)
        return self._execute_on(driver, sql, parameters)

    def _printed(self, statement: str | ClauseElement) -> str:
        return statement if isinstance(statement, str) else self.statements.rendering.printed(statement)

    def _refuse_to_read_only(self) -> None:
        """Refuse a write before the database does: after its error, a server also refuses to read on."""
        if self.read_only and self._driver is not None:
            raise errors.ReadOnlyUnitOfWorkError

    def _execute_on(self, driver: Driver, sql: str, parameters: Parameters) -> Cursor:
        if not driver.in_transaction:
            raise transaction_ended()
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
        """The error for a statement that failed because another program has dropped one of the package's tables."""
        return None

    def _together(self, *statements: tuple[str, Parameters]) -> list[Any] | None:
        """Run several statements with one round trip, or none of them.

        Returns:
            The first row of each; None if a statement failed, which leaves the transaction as it was before.
        """
        if not self._connected.in_transaction:
            raise transaction_ended()
        if self._guard is not None:
            return None  # the guard must know of each statement
        try:
            return self._connected.together(*statements)
        except self._connected.Error as error:
            if self._connected.in_transaction:
                return None
            raise (translate(error, self.engine) or error) from error

    def _execute_each(self, statement: ClauseElement, rows: Collection[Mapping[str, Any]]) -> None:
        """Run a statement with the parameters of each of several rows, with one round trip if all of them succeed."""
        sql = self._printed(statement)
        if len(rows) < 2 or self._together(*((sql, row) for row in rows)) is None:
            for row in rows:
                self._execute(sql, row)

    def _rows(self, statement: str | ClauseElement, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement as stored, with the bytes of text that is not valid UTF-8 escaped.

        Args:
            statement: As for `_execute`; plain text reads a catalog.
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
                return []  # in a database without control tables, a missing table counts as empty
            raise
        except driver.Error as error:
            if not driver.cannot_decode(error):
                raise (translate(error, self.engine) or error) from error
        with driver.escaping():
            return self._execute(sql, parameters).fetchall()


class Catalog(ABC):
    """The questions that only the catalog of a database answers, and the actions that each kind does by its own means.

    All of them take place in a transaction. Those that identify a database have no unit of work yet: they take a
    connection of the driver.
    """

    needs_triggers: bool
    """Whether a database has triggers in every phase, even in the one it began with."""
    leaves_triggers: bool
    """Whether triggers of earlier phases stay, disabled."""
    others_write_meanwhile: bool
    """Whether other programs can write while a unit of work holds its lock."""
    longest_chunk: tuple[float, int]
    """Seconds that a chunk of the backfill should take, half of the longest wait of a writer for the lock; and the
    largest multiple of CHUNK_ROWS in a chunk, used while no other program writes."""

    counts_reads: bool
    """Whether the database counts how often each table is read."""

    legacy: LegacyTables
    """Drops the legacy tables at CONTRACT, and brings them back."""

    @staticmethod
    @abstractmethod
    def relations(connection: Any) -> Relations:
        """Kind and columns of each table and view, by which the program that made a database is identified.

        Args:
            connection: A connection of the driver, in a transaction: several statements are sent, and another process
                might change the schema between two of them.
        """

    @staticmethod
    def user_version(connection: Any) -> int | None:
        """SQLite's number of that name; None on a server."""
        return None

    @staticmethod
    def missing_objects(connection: Any) -> tuple[str, ...]:
        """What revisions have made besides tables, and another program has dropped or disabled; none of a file.

        Args:
            connection: A connection of the driver, to a database at the newest revision.
        """
        return ()

    @staticmethod
    def restore_objects(connection: Any) -> None:
        """Make again what `missing_objects` finds.

        Args:
            connection: A connection of the driver, in a transaction of the owner of the tables.
        """
        return

    @abstractmethod
    def tables(self, uow: Transaction) -> set[str]:
        """Names of the tables, in lower case."""

    @abstractmethod
    def sizes(self, uow: Transaction) -> dict[str, int]:
        """Bytes of the tables with their indexes; empty if SQLite was built without dbstat."""

    @abstractmethod
    def columns(self, uow: Transaction, table: str, *, computed: bool = False) -> set[str]:
        """Names of the columns of a table.

        Args:
            uow: Whose connection is asked.
            table: The table.
            computed: Columns that SQLite computes, too; a server names them in any case.
        """

    @staticmethod
    @abstractmethod
    def folded(name: str) -> str:
        """A name as the database compares it: SQLite takes `Spec_Id` and `spec_id` for the same column."""

    @staticmethod
    @abstractmethod
    def dependencies(uow: Transaction) -> Iterator[Dependency]:
        """What other programs have made upon the legacy tables, as far as the catalog knows."""

    @abstractmethod
    def reads(self, uow: Transaction) -> list[ReadCounter]:
        """How often each legacy table was read, whoever read it; empty where the database does not count."""

    @abstractmethod
    def own_reads(self, uow: Transaction) -> dict[str, int]:
        """How often this transaction has read each legacy table so far; those of it count at once when it has ended."""

    @abstractmethod
    def expect_reads(self, uow: Transaction, own: Mapping[str, int]) -> None:
        """Have reads of this transaction, before it ends, taken off what the database will count."""

    @abstractmethod
    def tell_reads(self, uow: Transaction) -> None:
        """Do so after its end, where it could not be done before."""

    @abstractmethod
    def readers(self, uow: Transaction, table: str) -> str:
        """The roles of others whose queries name a table; empty where the database does not know."""

    @abstractmethod
    def count_unnoticed(self, uow: Transaction, table: str) -> int:
        """Rows of a table, counted without a read that the database would count."""

    @abstractmethod
    def require_whole(self, uow: Transaction) -> None:
        """Have a statement of this transaction fail where the row security of a server would leave rows out."""

    def replication(self, uow: Transaction) -> tuple[int, int, float] | None:
        """How far the replicas are that follow this database; None where there are none, as of a file.

        Returns:
            The position up to which the write-ahead log was written; that up to which every replica has replayed it;
            and the longest lag that the server reports, in seconds.

        Raises:
            ConfigurationError: The role may not see it.
        """
        return None

    @abstractmethod
    def unseen(self, uow: Transaction) -> Iterator[str]:
        """Why this connection does not see all rows of a table that this package reads, for each such table."""

    @abstractmethod
    def lacking_rights(self, uow: Transaction) -> list[str]:
        """The GRANTs with which each role that may use tables of one side may use this package, too."""

    @abstractmethod
    def give_rights(self, uow: Transaction, tables: Collection[str] | None = None) -> list[str]:
        """Give the rights that roles lack, as far as the role of this connection can.

        Args:
            uow: May write.
            tables: Those whose rights are given; those of all tables where left out.

        Returns:
            The GRANTs that were executed.
        """

    @staticmethod
    @abstractmethod
    def key_faults(uow: Transaction, key: Sequence[Column[Any]], unique: Sequence[str]) -> Iterator[tuple[str, str]]:
        """What makes columns unfit as the key of a move; nothing if they are fit.

        Args:
            uow: Sees the table, which exists.
            key: The columns as they are declared.
            unique: The columns that have to be unique together, those of the key among them.

        Returns:
            The name of a column, and its fault with the remedy.
        """

    @staticmethod
    @abstractmethod
    def references(uow: Transaction, table: str) -> list[tuple[frozenset[str], str]]:
        """The foreign keys of a table to itself: the names of their columns in small letters, and their ON DELETE.

        Args:
            uow: Sees the table.
            table: Its name.
        """

    @abstractmethod
    def keeps_writers_waiting(self, uow: Transaction) -> bool:
        """Whether writers cannot commit during a read, as without a write-ahead log."""

    @abstractmethod
    def keep_out(self, uow: Transaction) -> None:
        """Block every other writer of the mapped tables until the end of this unit of work."""

    @abstractmethod
    def begin_scan(self, uow: Transaction, others: Sequence[Transaction] = ()) -> None:
        """Prepare read-only units of work for reading many rows, on a server all of them in one snapshot."""

    @abstractmethod
    def analyze(self, uow: Transaction, pair: Move) -> None:
        """Update the planner's statistics of the normalized side."""

    @abstractmethod
    def text_encoding(self, uow: Transaction) -> str:
        """Python's name of the encoding in which texts are stored."""

    def create(self, uow: Transaction, tables: Collection[Table]) -> None:
        """Create tables as their models declare them, without indexes whose names are taken."""
        for statement in definitions(tables, uow.statements.rendering.dialect):
            if not isinstance(statement, CreateIndex) or not self.has_relation(uow, str(statement.element.name)):
                uow._execute(str(statement.compile(dialect=uow.statements.rendering.dialect)))

    @abstractmethod
    def has_relation(self, uow: Transaction, name: str) -> bool:
        """Whether a name is taken, so that no index can have it."""

    @abstractmethod
    def triggers(self, phase: Phase, statements: Statements) -> Iterator[Trigger]:
        """The triggers of a phase."""

    def run(self, uow: Transaction, commands: Iterable[str]) -> None:
        """Run commands without parameters, on a server with one round trip."""
        for command in commands:
            uow._execute(command)

    @abstractmethod
    def before_triggers(self, uow: Transaction) -> None:
        """Check that triggers can be installed, and block other writers meanwhile."""

    @abstractmethod
    def silence(self, uow: Transaction, triggers: Iterable[Standing]) -> None:
        """Drop or disable triggers of this package."""

    @abstractmethod
    def standing(self, uow: Transaction) -> list[Standing]:
        """All tables and views of the database, and the triggers that may be this package's."""

    @abstractmethod
    def elsewhere(self, uow: Transaction, table: Standing) -> str | None:
        """The schema of a recorded table that is where it was, and which this connection does not look in."""

    @abstractmethod
    def cookie(self, uow: Transaction) -> int:
        """A number that differs after a change of the guards, on SQLite after any change of the schema."""

    @abstractmethod
    def muted(self, uow: Transaction) -> list[str]:
        """Settings that keep installed triggers from firing."""

    @abstractmethod
    def go_on_without(self, uow: Transaction, tables: Collection[str]) -> None:
        """Repair triggers and sequences after another program has dropped tables that they use."""

    @abstractmethod
    def names_taken(self, uow: Transaction, triggers: Iterable[Trigger]) -> list[tuple[str, str]]:
        """The triggers of other programs that have the name of one of these, with their tables."""

    @abstractmethod
    def forget_guards(self, uow: Transaction) -> None:
        """Empty the record of the guards."""

    @abstractmethod
    def level_sequences(self, uow: Transaction) -> None:
        """Have both sides assign ids above the highest that either has assigned (rule 3)."""

    @abstractmethod
    def next_key_of(self, uow: Transaction, pair: Move, side: Side) -> int:
        """The next id if the table of the other side is gone: above every id that this side has, or ever assigned."""

    @abstractmethod
    def free_key(self, uow: Transaction, pair: Move) -> Any:
        """An id above every id that either side has, or ever assigned."""

    @abstractmethod
    def key_to_give(self, uow: Transaction, pair: Move) -> Any:
        """An id for a row that is written to the normalized side alone, whose table does not give it.

        Args:
            uow: Holds the write lock.
            pair: Its move.
        """

    @abstractmethod
    def go_on_above(self, uow: Transaction, pair: Move) -> None:
        """Have ids assigned above those of the normalized side."""

    @abstractmethod
    def draw_from_own(self, uow: Transaction, pair: Move, *, above: int = 1) -> None:
        """Have the normalized table take its ids from its own sequence, if it has one, above all that were given."""

    @abstractmethod
    def sequence(self, uow: Transaction, table: str) -> int | None:
        """The highest id that a table has assigned; None if it never assigned one."""

    @abstractmethod
    def set_sequence(self, uow: Transaction, table: str, value: int) -> None:
        """Have a table assign ids above an id."""

    @abstractmethod
    def used_up(self, uow: Transaction) -> str | None:
        """A mapped table that has assigned its last id, which SQLite reports as a full disk; None if there is none.

        The failure may have ended the transaction.
        """

    def last_change(self, uow: Transaction) -> int:
        """The counter of writes that went around the repositories."""
        return self.sequence(uow, "consensus_orm_changes") or 0

    @abstractmethod
    def session_mark(self, uow: Transaction) -> tuple[int, bool]:
        """A mark before statements of a session, and whether there may be records of other programs."""

    @abstractmethod
    def written_since(self, uow: Transaction, mark: int) -> list[tuple[Any, ...]]:
        """What the triggers recorded of the session of this unit of work since a mark, oldest first.

        Each record has the name of the move, the key of the row, a number, the side, and what was done. A server has
        forgotten them then; a file forgets them by `forget_changes`, with what is recorded while they are carried.
        """

    @abstractmethod
    def inserted(self, uow: Transaction, side: Side) -> int:
        """A number that this transaction raises by one with each row that it inserts into a side.

        On SQLite it also goes down with each row that is deleted. No other transaction changes it under the lock.
        """

    @abstractmethod
    def triggers_of_others(self, uow: Transaction) -> list[str]:
        """Names of the triggers on mapped tables that this package has not made."""

    @abstractmethod
    def forget_changes(self, uow: Transaction, *, after: int) -> None:
        """Delete what the triggers recorded after a mark: writes of this unit of work itself, which holds the lock."""

    @abstractmethod
    def forget_row(self, uow: Transaction, pair: Move, key: object) -> None:
        """Delete what the triggers recorded of a row that this unit of work wrote."""

    @abstractmethod
    def unnoticed(self, uow: Transaction, pair: Move, side: Side) -> contextlib.AbstractContextManager[None]:
        """Let this transaction insert a row of one side past the triggers; it writes the other side, too."""

    @abstractmethod
    def legacy_unfrozen(self, uow: Transaction) -> contextlib.AbstractContextManager[None]:
        """Allow this transaction to write frozen legacy tables within a block."""


class LegacyTables(ABC):
    """Drops the legacy tables at CONTRACT, and brings them back exactly as they were."""

    @abstractmethod
    def save(self, uow: Transaction, pair: Move) -> list[tuple[str, str, str, int | None]]:
        """What is needed to create a table again: type, name, definition and sequence of each of its objects."""

    @abstractmethod
    def put_away(self, uow: Transaction, pair: Move) -> None:
        """Rename a table out of the way, which takes milliseconds whatever its size."""

    @abstractmethod
    def away(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and still have to be emptied."""

    @abstractmethod
    def empty(self, uow: Transaction, name: str, rows: int) -> int:
        """Delete at most so many rows of a renamed table.

        Returns:
            How many rows were deleted.
        """

    @abstractmethod
    def old_place(self, uow: Transaction, pair: Move) -> str:
        """The quoted name of a table that was put away, with the schema in which it was on a server."""

    def show_sign(self, uow: Transaction, place: str) -> None:
        """Let every role read the view that stands where a legacy table was; a file has no roles."""
        return

    @abstractmethod
    def kept(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and are still there, emptied or not."""

    @abstractmethod
    def dependents(self, uow: Transaction, name: str) -> list[str]:
        """What other programs have made that a renamed table cannot be dropped without."""

    @abstractmethod
    def drop(self, uow: Transaction, name: str) -> None:
        """Drop a renamed table for good."""

    @abstractmethod
    def bring_back(self, uow: Transaction) -> None:
        """Create the tables again, empty, with their indexes.

        Raises:
            UnsafeDefinitionError: One of the definitions, those of triggers included, would do something else.
            MigrationError: A table was dropped for good, or its name is taken.
        """

    @abstractmethod
    def remember(self, uow: Transaction) -> None:
        """Save the definitions of the legacy tables as they are now, because another program may drop them."""

    @abstractmethod
    def make_again(self, uow: Transaction, pair: Move) -> None:
        """Create a legacy table that another program dropped, from its saved definition or else from its model.

        Indexes whose names are taken are left out.
        """

    @abstractmethod
    def set_aside(self, uow: Transaction, pair: Move) -> str:
        """Rename a table that cannot be used any more, with its rows, for good.

        Returns:
            Its new name.
        """

    @abstractmethod
    def complete_again(self, uow: Transaction, pair: Move) -> None:
        """Restore the sequence, and the triggers of other programs, after the rows were inserted."""

    @abstractmethod
    def drop_again(self, uow: Transaction, pair: Move) -> None:
        """Undo `bring_back`, with whatever rows the table has."""

    @abstractmethod
    def complete(self, uow: Transaction, kind: str, name: str, table: str, sql: str, sequence: int | None) -> None:
        """Restore a saved trigger or sequence, after the rows were inserted."""

    @staticmethod
    @abstractmethod
    def values(table: str, row: Cells) -> list[object]:
        """The values of a saved row as they are bound.

        Raises:
            UnsafeDefinitionError: One of them is not a value.
        """

    @abstractmethod
    def put_back(self, uow: Transaction, saved: SavedRow) -> bool:
        """Insert a saved row, unless there is one with its key.

        Args:
            uow: May write the legacy tables.
            saved: The row.

        Returns:
            Whether it was inserted.
        """


def definitions(tables: Collection[Table], dialect: Dialect) -> Iterator[CreateTable | CreateIndex]:
    """The DDL of tables as their models declare them, without names of constraints, which may be taken."""
    unnamed = MetaData()
    for table in tables:
        for other in table.metadata.tables.values():  # also those that it refers to
            if other.key not in unnamed.tables:
                other.to_metadata(unnamed)
        copy = unnamed.tables[table.key]
        yield CreateTable(copy)
        yield from (CreateIndex(index) for index in sorted(copy.indexes, key=lambda index: str(index.name)))
