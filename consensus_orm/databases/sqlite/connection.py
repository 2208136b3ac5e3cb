"""Connections to a SQLite file: their transactions, and their turns to write."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from consensus_orm import errors, files, validation
from consensus_orm.databases.driver import Parameters
from consensus_orm.databases.fair_queue import Turn, Turns
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.pool import ConnectionSource, leak
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.databases.sqlite import errors as of_sqlite
from consensus_orm.databases.sqlite import file, parameters
from consensus_orm.databases.sqlite.file import FileId, forked
from consensus_orm.databases.sqlite.pragmas import ConfiguredConnection, milliseconds
from consensus_orm.databases.sqlite.session_guard import SQLiteSessionGuard
from consensus_orm.databases.sqlite.write_ahead_log import Journal
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side
from consensus_orm.settings import Settings

__all__ = ["DriverConnection", "Source"]

READ_PHASE = "SELECT phase, epoch FROM consensus_orm_state WHERE id = 1"

ENTER = (
    "SELECT phase, epoch, schema_version, (SELECT schema_version FROM pragma_schema_version)"
    " FROM consensus_orm_state WHERE id = 1"
)
"""Reads the phase, and whether the schema is the one whose guards were last found in place (4 us more; measured)."""

ASK_AGAIN = 0.001
"""Seconds between two tries for a lock that another process holds. SQLite's own handler sleeps up to 100 ms."""

IDLE = 1.0
"""Seconds without use after which a connection is tested with a statement (3 us) before it is lent."""

STINT = 0.0015
"""Seconds for which a thread that keeps writing may keep other threads waiting: some 5 units of work. With that, 10
threads write 0.8 as much as one, instead of 0.6 to 0.7 with a handover after every unit, and wait 22 ms (measured)."""


class DriverConnection(ConfiguredConnection):
    """The driver's connection, with a turn among the writers of its engine while it writes.

    `begin_writing` takes the turn. It ends with the transaction: by `commit`, `rollback`, `close`, the return to the
    pool (which rolls back) or garbage collection. A turn that the pool gave (`Turn.kept`) ends with the return to the
    pool alone, so that the next writer gets this connection too.
    """

    source: Source
    last_used = 0.0
    identity: FileId | None = None
    log_identity: FileId | None = None
    turn: Turn | None = None
    session_guard: SessionGuard | None = None
    """The guard of the session that uses it."""
    authorizer: Callable[..., int] | None = None
    """The authorizer that is set."""
    cookie: int | None = None
    """SQLite's counter of changes of the schema as this transaction has read it, if it writes."""
    _inherited = False
    _seen: tuple[int, int] | None = None

    is_missing_table = staticmethod(of_sqlite.is_missing_table)
    refers_to_missing = staticmethod(of_sqlite.refers_to_missing)
    is_read_only = staticmethod(of_sqlite.is_read_only)
    cannot_decode = staticmethod(of_sqlite.cannot_decode)

    # Transactions ---------------------------------------------------------------------------------------

    def begin(self, *, write: bool) -> None:
        """Begin a transaction.

        Args:
            write: True takes the write lock now, and waits for it at most the busy timeout: first for the writers of
                the same engine in the order of asking, then for other processes. False sees one snapshot, takes no
                lock and cannot write.

        Raises:
            DatabaseBusyError: The write lock did not come in time.
        """
        self.allow_writes(write)
        self.cookie = None
        if write:
            self.begin_writing()
        else:
            self.execute("BEGIN")

    def begin_unit(self, lock: Lock, *, durable: bool = False) -> None:
        """Begin the transaction of a unit of work; every lock is the write lock here.

        Args:
            lock: Its lock.
            durable: Have the commit reach the disk, whatever the settings say.

        Raises:
            DatabaseBusyError: The write lock did not come in time.
        """
        if durable:
            self.be_durable()
        self.begin(write=lock is not Lock.NONE)

    def begin_writing(self) -> None:
        """Wait for this connection's turn, then for the write lock; at most the busy timeout for both.

        Raises:
            DatabaseBusyError: They did not come in time.
        """
        turn = self.take_turn()
        deadline = time.monotonic() + self.source.patience - turn.waited
        try:
            try:
                # One call of three statements costs 2 us more than the middle one alone (measured).
                self.executescript(self.source.begin_script)
            except sqlite3.OperationalError as error:
                self.wait_as_configured()
                if not of_sqlite.is_busy(error):
                    raise
                self.insist("BEGIN IMMEDIATE", deadline)
        except BaseException:
            self.end_turn()
            raise

    def insist(self, statement: str, deadline: float) -> sqlite3.Cursor:
        """Execute a statement that needs a lock, and try again every millisecond while another process holds it.

        Args:
            statement: SQL without parameters.
            deadline: When to give up, in seconds of `time.monotonic`.

        Raises:
            DatabaseBusyError: The lock was not free in time.
        """
        with self.without_waiting():
            while True:
                try:
                    return self.execute(statement)
                except sqlite3.OperationalError as error:
                    if not of_sqlite.is_busy(error):
                        raise
                    if time.monotonic() >= deadline:
                        raise errors.DatabaseBusyError(
                            f"another process held the lock for {self.source.patience:g} s",
                            sqlite_errorcode=error.sqlite_errorcode,
                        ) from error
                time.sleep(ASK_AGAIN)

    def take_turn(self) -> Turn:
        """Wait for this connection's turn among the writers of its engine, unless it has it already.

        Raises:
            DatabaseBusyError: It did not come within the busy timeout.
        """
        if self._inherited:
            raise forked()
        if self.turn is None:
            self.turn = self.source.wait_for_turn()
        return self.turn

    def end_turn(self) -> None:
        """Let the next writer of the engine begin, unless a transaction is open or the pool gave the turn."""
        if self.turn is not None and not self.in_transaction and not self.turn.kept:
            self._release_turn()

    def _release_turn(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.end()

    def commit(self, *last: tuple[str, Parameters]) -> None:
        """Run the last statements, commit, and end the turn; if SQLite refuses, the transaction and the turn stay."""
        if self._inherited:
            raise forked()
        for statement in last:
            self.execute(*statement)
        super().commit()
        self.end_turn()

    def rollback(self) -> None:
        """Roll back, and end the turn."""
        if not self._inherited:
            super().rollback()
            self.end_turn()

    def close(self) -> None:
        """Close, and end the turn."""
        if not self._inherited:
            try:
                if self.source.log_is_of_another_file(self):
                    self.abandon()
                    leak([self])  # SQLite removes the log by its name when the last connection is closed
                else:
                    super().close()
            finally:
                self.source.connections.discard(self)
                self._release_turn()

    def abandon(self) -> None:
        """Never touch the file again: this process was forked from the one whose transaction this is."""
        self._inherited = True

    # What a unit of work asks of it ---------------------------------------------------------------------

    def read_phase(self) -> tuple[Any, ...] | None:
        """Phase and epoch, and in a transaction that writes the cookies of the guards."""
        try:
            row: tuple[Any, ...] | None = self.execute(READ_PHASE if self.query_only else ENTER).fetchone()
        except sqlite3.OperationalError as error:
            if not self.is_missing_table(error):
                raise
            return None
        if row is not None and not self.query_only:
            self.cookie = row[3]
        return row

    def hold(self, lock: Lock) -> None:
        """Nothing: the transaction has the write lock already."""

    def others_wrote(self) -> bool:
        """Whether another thread or process wrote since the last call."""
        before, self._seen = self._seen, (int(self.pragma("data_version")), self.source.turns)
        version, turns = self._seen
        return before is not None and (version != before[0] or turns > before[1] + 1)

    def attempt(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: a statement that fails leaves the transaction usable."""
        return contextlib.nullcontext()

    def together(self, *statements: tuple[str, Parameters]) -> list[Any]:
        """Run several statements, and give the first row of each."""
        return [self.execute(*statement).fetchone() for statement in statements]

    def read_on(self) -> None:
        """Nothing: a read that fails leaves the transaction usable."""

    def what_is_missing(self, error: BaseException) -> str:
        """The name of the table that a statement did not find; empty if every table that it names exists."""
        there = {name for (name,) in self.execute("SELECT lower(name) FROM sqlite_master").fetchall()}
        _, no_table, name = str(error).rpartition("no such table: ")  # which may be main.NAME; else a column is missing
        missing = name if no_table else ""
        return "" if missing.removeprefix("main.").lower() in there else missing

    @contextlib.contextmanager
    def escaping(self) -> Iterator[None]:
        """Return texts that are not valid UTF-8 with their bytes escaped.

        Only a read that the driver cannot decode asks for it: decoding every text in Python would slow down each read.
        """
        self.text_factory = parameters.decode
        try:
            yield
        finally:
            self.text_factory = str

    def guard(self, moves: Moves, sides: Collection[Side], *, read_only: bool) -> SessionGuard:
        """Refuse statements of a session that would write a mapped table, until the guard is lifted."""
        self.session_guard = SQLiteSessionGuard(moves, self, sides, read_only=read_only)
        return self.session_guard

    def set_authorizer(self, authorizer_callback: Callable[..., int] | None) -> None:
        """Set an authorizer, or none; SQLite prepares every statement again after one was set."""
        super().set_authorizer(authorizer_callback)
        self.authorizer = authorizer_callback

    def savepoint(self, sql: str) -> None:
        """Execute a command on a savepoint of SQLAlchemy, of which its events tell a guard."""
        if self.session_guard is None:
            self.execute(sql)
        else:
            self.session_guard.let(partial(self.execute, sql), writes=False)

    @cached_property
    def writes_utf16(self) -> bool:
        """Whether the file stores text in UTF-16; SQLite never changes that once there is a table."""
        return bool(self.pragma("encoding") != "UTF-8")

    def check(self, values: Mapping[str, object]) -> None:
        """Refuse texts that the file cannot store: in UTF-8 it stores any text, in UTF-16 only valid ones.

        Raises:
            InvalidValueError: There is one, or they are a row that is too long.
        """
        validation.length(values, self.settings.max_row_bytes)
        if self.writes_utf16:
            for value in values.values():
                self.storable(value)

    def storable(self, value: object) -> object:
        """A value as it can be bound: the bytes of a text that UTF-8 cannot encode.

        Raises:
            InvalidValueError: SQLite would store another text, because the file is in UTF-16.
        """
        if self.writes_utf16 and not parameters.is_kept_by_utf16(value):
            raise errors.InvalidValueError(
                "a database in UTF-16 cannot hold a text with a lone surrogate, U+FFFE, U+FFFF, or bytes that are no"
                " UTF-8 in it",
                hint="nothing was written; take it out, or copy the store to a file in UTF-8: consensus-orm copy",
            )
        return parameters.storable(value)


class Source(ConnectionSource[DriverConnection]):
    """The source of an engine's connections to a SQLite database.

    Args:
        path: The file; None for a database in memory.
        settings: Pool and pragma settings.
    """

    one_writer = True

    def __init__(self, path: Path | None, settings: Settings) -> None:
        super().__init__()
        self.path = path
        self._file = str(path)  # to print a path takes as long as to look for the file
        self.in_memory = path is None
        self.settings = settings
        self.patience = settings.busy_timeout.total_seconds()
        waiting = milliseconds(settings.busy_timeout)
        self.begin_script = f"PRAGMA busy_timeout = 0; BEGIN IMMEDIATE; PRAGMA busy_timeout = {waiting}"
        self.writers = Turns(1, STINT)
        self.writing_thread: int | None = None
        self.turns = 0
        self.journal: Journal | None = None
        self.trusts_schema = settings.trusted_schema
        self._identity: FileId | None = None

    def wait_for_turn(self) -> Turn:
        """Wait for the caller's turn among the writers.

        Raises:
            DatabaseBusyError: It did not come within the busy timeout.
        """
        since = time.monotonic()
        if not self.writers.acquire(self.patience):
            if self.writing_thread == threading.get_ident():
                raise errors.DatabaseBusyError(
                    "this thread already has a unit of work that writes",
                    hint="end it before opening another, or open the other with read_only=True",
                )
            raise errors.DatabaseBusyError(
                f"other threads of this process were writing for {self.patience:g} s",
                sqlite_errorcode=sqlite3.SQLITE_BUSY,
            )
        self.writing_thread = threading.get_ident()
        self.turns += 1
        return Turn(self.writers, time.monotonic() - since)

    def give_turn(self, connection: DriverConnection, turn: Turn) -> None:
        """Let a connection keep a turn until it returns to the pool."""
        connection.turn, turn.kept = turn, True

    def connect(self) -> DriverConnection:
        """Open a connection and set its pragmas; a file that does not exist is created.

        Raises:
            StorageError: The file was removed or replaced since it was first opened, has another name besides, or
                was open across a fork.
        """
        if self.path is not None:
            self._identity = file.find(self.path, self._identity)
        connection = sqlite3.connect(
            self._name,
            uri=self.reads_only,
            timeout=self.patience,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
            factory=DriverConnection,
        )
        connection.source, connection.identity = self, self._identity
        connection.last_used = time.monotonic()
        self.connections.add(connection)
        try:
            connection.configure(self.settings, trusted_schema=self.trusts_schema)
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def _name(self) -> str | Path:
        """What SQLite opens: a path, or a URI of it where connections cannot write."""
        if self.path is None:
            return ":memory:"
        return f"{self.path.as_uri()}?mode=ro" if self.reads_only else self.path

    def is_healthy(self, connection: DriverConnection) -> bool:
        """Whether a connection is open, is of the file at its path, and answers."""
        if self.path is None:
            return True
        try:
            same = files.identity(self._file) == connection.identity
            if not same or connection.in_transaction or self._lost_log(connection):
                return False
            if time.monotonic() - connection.last_used > IDLE:
                connection.execute("PRAGMA schema_version").fetchone()
        except (OSError, sqlite3.Error) as error:
            return of_sqlite.is_busy(error)
        return True

    def translate(self, error: BaseException, database: str | None) -> errors.ConsensusError | None:
        """The error of this package for an error of SQLite; None for any other error."""
        return of_sqlite.translate(error, database)

    def take_back(self, connection: DriverConnection) -> Turn | None:
        """Restore the settings of a connection, and remember when it came back and which log it used."""
        if connection.in_transaction:
            connection.rollback()
        connection.last_used = time.monotonic()
        connection.be_as_configured()
        if connection.log_identity is None and self.path is not None:
            connection.log_identity = file.log_of(self.path)
        turn, connection.turn = connection.turn, None
        return turn

    def _lost_log(self, connection: DriverConnection) -> bool:
        """Whether the log that this connection writes to was removed: no other process would see what it commits.

        While a connection is open, SQLite never removes the log itself. The last connection to be closed still copies
        the log into the database (tried), so closing is all that helps, and loses nothing.
        """
        known = connection.log_identity
        return known is not None and self.path is not None and file.log_of(self._file) != known

    def log_is_of_another_file(self, connection: DriverConnection) -> bool:
        """Whether another file is at the path now, and the log beside it is one that this connection never used."""
        if self.path is None or connection.identity is None:
            return False
        with contextlib.suppress(OSError):
            replaced = files.identity(self.path) != connection.identity
            return replaced and file.log_of(self.path) not in (None, connection.log_identity)
        return False

    def forget(self) -> list[DriverConnection]:
        """Abandon, in a forked child, the connections of its parent; this process cannot use their files.

        Returns:
            Those connections.
        """
        self.writers = Turns(1, STINT)
        inherited = super().forget()
        for connection in inherited:
            connection.abandon()
            if connection.identity is not None:
                file.inherited.add(connection.identity)
        return inherited
