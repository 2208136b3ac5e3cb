"""The driver's connections: how one is opened, what it remembers, and how it begins to write.

`engine` is the way in; here stand the parts that a connection itself has to know.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from consensus_orm import errors, files
from consensus_orm.databases.driver import Parameters
from consensus_orm.databases.fair_queue import Turn, Turns
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.pool import ConnectionSource, leak
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.databases.sqlite.errors import translate
from consensus_orm.databases.sqlite.session_guard import SQLiteSessionGuard
from consensus_orm.databases.sqlite.write_ahead_log import Journal
from consensus_orm.declaration.pairs import Mapping as Declaration
from consensus_orm.settings import Settings

__all__ = ["ENTER", "READ_PHASE", "DriverConnection", "Source", "codec", "pragmas", "storable"]

READ_PHASE = "SELECT phase, epoch FROM consensus_orm_state WHERE id = 1"

ENTER = (
    "SELECT phase, epoch, schema_version, (SELECT schema_version FROM pragma_schema_version)"
    " FROM consensus_orm_state WHERE id = 1"
)
"""The phase, and whether the schema is the one whose guards were last found in place (4 us more; measured)."""

ASK_AGAIN = 0.001
"""Seconds between two tries for a lock another process holds. SQLite's handler sleeps up to 100 ms."""


IDLE = 1.0
"""Seconds unused after which a connection is asked a question (3 us) before it is lent."""


STINT = 0.0015
"""Seconds for which a thread that writes on and on may keep others waiting: some 5 units of work. By that 10 threads
write 0.8 as much as one, instead of 0.6 to 0.7 where each hands over after every unit, and wait 22 ms (measured)."""


class DriverConnection(sqlite3.Connection):
    """The driver's connection, which remembers whether it may write and keeps its turn among the writers.

    A turn is taken by `begin_writing` and ends with the transaction: by `commit`, `rollback`, `close`, the
    return to the pool (which rolls back) or the garbage collector. One that the pool waited for before it chose
    this connection ends with the return to the pool alone: whose turn is next gets this connection too.
    """

    Error = sqlite3.Error  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    query_only = False
    last_used = 0.0
    identity: tuple[int, int] | None = None
    log_identity: tuple[int, int] | None = None
    source: Source
    turn: Turn | None = None
    _inherited = False
    _leaves_log = False
    _durable = False
    _seen: tuple[int, int] | None = None

    def allow_writes(self, allowed: bool) -> None:
        """Let SQLite itself refuse writes, or accept them; sends a pragma only when that changes."""
        if self.query_only is allowed:
            self.execute(f"PRAGMA query_only = {'OFF' if allowed else 'ON'}")
            self.query_only = not allowed

    def leave_log(self) -> None:
        """Leave what is committed in the write-ahead log: somebody else copies it, until `be_as_configured`."""
        self.execute("PRAGMA wal_autocheckpoint = 0")
        self._leaves_log = True

    def be_durable(self) -> None:
        """Have each commit, and all before it, reach the disk, whatever the settings say, until `be_as_configured`.

        EXTRA also waits for the removal of a rollback journal, which would else be rolled back after a power cut.
        """
        if not self._durable:
            self.execute("PRAGMA synchronous = EXTRA")
            self._durable = True

    def be_as_configured(self) -> None:
        """Sync commits, and keep the write-ahead log short, as the settings say again; the pool calls it."""
        if self._durable:
            self.execute(f"PRAGMA synchronous = {self.source.settings.synchronous}")
            self._durable = False
        if self._leaves_log:
            self.execute(f"PRAGMA wal_autocheckpoint = {self.source.settings.wal_autocheckpoint}")
            self._leaves_log = False

    def checkpoint(self, mode: str) -> int:
        """Copy the write-ahead log into the database, as far as nobody is in the way; waits for none of them.

        Args:
            mode: PASSIVE, or RESTART to have the log begin anew, which keeps writers out until it is copied.

        Returns:
            How many pages the log has; -1 where there is none, or somebody else copies it just now.
        """
        self.execute("PRAGMA busy_timeout = 0")
        try:
            _, pages, _ = self.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        finally:
            self._wait_as_configured()
        return int(pages)

    def others_wrote(self) -> bool:
        """Whether somebody else wrote since this was asked last, in this process or in another."""
        before, self._seen = self._seen, (int(self.pragma("data_version")), self.source.turns)
        version, turns = self._seen
        return before is not None and (version != before[0] or turns > before[1] + 1)

    def pragma(self, name: str) -> Any:
        """Read a pragma; None where it gives no row."""
        row = self.execute(f"PRAGMA {name}").fetchone()
        return row and row[0]

    def add_functions(self) -> None:
        """Add what our own statements ask of a value and SQL has no word for."""
        self.create_function("consensus_is_text", 2, _is_text, deterministic=True)
        self.create_collation("consensus_code_points", _by_code_points)

    def trust_schema(self, trusted: bool) -> None:
        """Let triggers, views and constraints of the file use whatever functions and virtual tables there are."""
        self.execute(f"PRAGMA trusted_schema = {'ON' if trusted else 'OFF'}").close()

    def begin(self, *, write: bool) -> None:
        """Begin a transaction; `engine.begin` says how.

        Raises:
            DatabaseBusyError: The write lock did not come in time.
        """
        self.allow_writes(write)
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

    def read_phase(self) -> tuple[Any, ...] | None:
        """Phase and epoch, and where rows will be written the cookies of the guards, within the transaction."""
        try:
            row: tuple[Any, ...] = self.execute(READ_PHASE if self.query_only else ENTER).fetchone()
        except sqlite3.OperationalError as error:
            if not self.is_missing_table(error):
                raise
            return None
        return row

    def hold(self, lock: Lock) -> None:
        """Take a stronger lock within the transaction; there is none here that it does not have already."""

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Let a statement fail without taking the transaction with it; here that is how statements fail."""
        yield

    def together(self, *statements: tuple[str, Parameters]) -> list[Any]:
        """Run several statements; there are no trips to save here, so nobody asks for it."""
        return [self.execute(*statement).fetchone() for statement in statements]

    def read_on(self) -> None:
        """Go on reading after a statement failed; here that needs nothing."""

    @staticmethod
    def is_missing_table(error: BaseException) -> bool:
        """Whether a statement of ours failed because its table is not there."""
        # SQLite has no code of its own for it; of our own statements nothing else can be wrong.
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR

    def what_is_missing(self, error: BaseException) -> str:
        """Text that names the table which a statement did not find; empty where each table it names is there."""
        there = {name for (name,) in self.execute("SELECT lower(name) FROM sqlite_master").fetchall()}
        _, no_table, name = str(error).rpartition("no such table: ")  # and then main.NAME; else it is a column
        missing = name if no_table else ""
        return "" if missing.removeprefix("main.").lower() in there else missing

    @staticmethod
    def is_read_only(error: BaseException) -> bool:
        """Whether a statement failed because the transaction may not write."""
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY

    @staticmethod
    def cannot_decode(error: BaseException) -> bool:
        """Whether a read failed because a text is no UTF-8."""
        return isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode")

    @contextlib.contextmanager
    def escaping(self) -> Iterator[None]:
        """Give texts that are no UTF-8 with their bytes escaped.

        Decoding every text in Python would cost each read; so only a read that the driver cannot decode does.
        """
        self.text_factory = _decode
        try:
            yield
        finally:
            self.text_factory = str

    def guard(self, mapping: Declaration, *, read_only: bool) -> SessionGuard:
        """Let nothing that a session sends reach a mapped table around the mapping, until the guard is lifted."""
        return SQLiteSessionGuard(mapping, self, read_only=read_only)

    @cached_property
    def writes_utf16(self) -> bool:
        """Whether the file writes its texts in UTF-16; SQLite lets nobody change that once there is a table."""
        return bool(self.pragma("encoding") != "UTF-8")

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse texts that the file cannot hold: of UTF-8 it holds any, of UTF-16 those that UTF-8 can say.

        Raises:
            InvalidValueError: There is one.
        """
        if self.writes_utf16:
            for value in values.values():
                self.storable(value)

    def storable(self, value: Any) -> Any:
        """A value as it can be bound: the bytes of a text that UTF-8 cannot say, lone surrogates included.

        Raises:
            InvalidValueError: SQLite would make another text of it, because the file writes UTF-16.
        """
        bound = storable(value)
        if self.writes_utf16 and (bound is not value or (isinstance(value, str) and not _NEVER_KEPT.isdisjoint(value))):
            raise errors.InvalidValueError(
                "a database in UTF-16 cannot hold a text with a lone surrogate, U+FFFE, U+FFFF, or bytes that are no"
                " UTF-8 in it",
                hint="nothing was written; take it out, or copy the store to a file in UTF-8: consensus-orm copy",
            )
        return bound

    def begin_writing(self) -> None:
        """Wait for this connection's turn, then for the write lock; at most the busy timeout for both.

        Raises:
            DatabaseBusyError: They did not come in time.
        """
        deadline = self.take_turn().since + self.source.patience
        try:
            try:
                # One call of three statements costs 2 us more than the middle one alone (measured).
                self.executescript(self.source.begin_script)
            except sqlite3.OperationalError as error:
                self._wait_as_configured()
                if not _is_busy(error):
                    raise
                self.insist("BEGIN IMMEDIATE", deadline)
        except BaseException:
            self.end_turn()
            raise

    def insist(self, statement: str, deadline: float) -> sqlite3.Cursor:
        """Execute a statement that somebody else's lock may refuse, asking again every millisecond.

        Args:
            statement: SQL without parameters.
            deadline: When to give up, in seconds of `time.monotonic`.

        Returns:
            The cursor.

        Raises:
            DatabaseBusyError: The lock was not free in time.
        """
        self.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    return self.execute(statement)
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise
                    if time.monotonic() >= deadline:
                        raise self._others_are_busy(error) from error
                time.sleep(ASK_AGAIN)
        finally:
            self._wait_as_configured()

    def take_turn(self) -> Turn:
        """Wait for this connection's turn among the writers of its engine, unless it has it already.

        Raises:
            DatabaseBusyError: It did not come within the busy timeout.
        """
        if self._inherited:
            raise _forked()
        if self.turn is None:
            self.turn = self.source.wait_for_turn()
        return self.turn

    def end_turn(self) -> None:
        """Let the next writer of the engine begin, unless a transaction is open or the pool gave the turn."""
        if self.turn is not None and not self.in_transaction and not self.turn.kept:
            self._release_turn()

    def commit(self) -> None:
        """Commit, and end the turn; where SQLite refuses, the transaction and the turn stay."""
        if self._inherited:
            raise _forked()
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

    def _wait_as_configured(self) -> None:
        self.execute(f"PRAGMA busy_timeout = {self.source.busy_timeout}")

    def _others_are_busy(self, error: sqlite3.OperationalError) -> errors.DatabaseBusyError:
        return errors.DatabaseBusyError(
            f"another process held the lock for {self.source.patience:g} s",
            sqlite_errorcode=error.sqlite_errorcode,
        )

    def _release_turn(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.end()


_NEVER_KEPT = frozenset("\ufffe\uffff")
"""Characters that SQLite replaces when it turns UTF-8 into UTF-16 (READ_UTF8 in its utf.c)."""


def storable(value: Any) -> Any:
    """The bytes of a text that UTF-8 cannot say, lone surrogates included; anything else as it is.

    Text that it can say stays text: some expressions, as the key of a run, depend on the type.
    """
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        pass
    else:
        return value
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _is_busy(error: BaseException) -> bool:
    return (
        isinstance(error, sqlite3.OperationalError)
        and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    )


def _forked() -> errors.StorageError:
    return errors.StorageError(
        "this process was forked while a unit of work was open in the process it comes from",
        hint="fork between units of work, or start processes with the method 'spawn'",
    )


_inherited_files: set[tuple[int, int]] = set()
"""Device and inode of the files this process cannot use, because it inherited open connections to them."""


class Source(ConnectionSource):
    """Where the connections of one engine come from, and what they share.

    Args:
        path: The file; None for a database in memory.
        settings: Pool and pragma settings.
    """

    one_writer = True

    def __init__(self, path: Path | None, settings: Settings) -> None:
        super().__init__()
        self.path = path
        self.in_memory = path is None
        self.settings = settings
        self.patience = settings.busy_timeout.total_seconds()
        self.busy_timeout = milliseconds(settings.busy_timeout)
        self.begin_script = f"PRAGMA busy_timeout = 0; BEGIN IMMEDIATE; PRAGMA busy_timeout = {self.busy_timeout}"
        self.writers = Turns(1, STINT)
        self.writing_thread: int | None = None
        self.turns = 0
        self.journal: Journal | None = None
        self.trusts_schema = settings.trusted_schema
        self._identity: tuple[int, int] | None = None

    def wait_for_turn(self) -> Turn:
        """Wait for the caller's turn among the writers.

        Raises:
            DatabaseBusyError: It did not come within the busy timeout.
        """
        since = time.monotonic()
        if not self.writers.acquire(self.patience):
            raise self.writer_is_busy()
        self.writing_thread = threading.get_ident()
        self.turns += 1
        return Turn(self.writers, since)

    def give_turn(self, connection: DriverConnection, turn: Turn) -> None:
        """Let a connection keep a turn until it returns to the pool."""
        connection.turn, turn.kept = turn, True

    def connect(self) -> Any:  # a DriverConnection; SQLAlchemy's own protocol is narrower than the driver
        """Open a connection, with its pragmas; a file that is not there yet is created.

        Raises:
            StorageError: The file was removed or replaced since it was first opened, has another name besides, or
                was open across a fork.
        """
        identity = None if self.path is None else self._find_file(self.path)
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path,
            timeout=self.patience,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
            factory=DriverConnection,
        )
        connection.source, connection.identity = self, identity
        connection.last_used = time.monotonic()
        self.connections.add(connection)
        try:
            for pragma, value in pragmas(self.settings).items():
                connection.execute(f"PRAGMA {pragma} = {value}").close()
            connection.trust_schema(self.trusts_schema)
            connection.add_functions()
        except BaseException:
            connection.close()
            raise
        return connection

    def is_healthy(self, connection: DriverConnection) -> bool:
        """Whether a connection is open, still speaks of the file at its path, and answers."""
        if self.path is None:
            return True
        try:
            same = files.identity(self.path) == connection.identity
            if not same or connection.in_transaction or self._lost_log(connection):
                return False
            if time.monotonic() - connection.last_used > IDLE:
                connection.execute("PRAGMA schema_version").fetchone()
        except (OSError, sqlite3.Error) as error:
            return _is_busy(error)
        return True

    def translate(self, error: BaseException, database: str | None) -> errors.ConsensusError | None:
        """Say in our words what the driver said in its; None where it did not raise the error."""
        return translate(error, database)

    def take_back(self, connection: DriverConnection) -> Turn | None:
        """Remember when a connection came back, and which write-ahead log it used; its settings hold again."""
        connection.last_used = time.monotonic()
        connection.be_as_configured()
        if connection.log_identity is None and self.path is not None:
            connection.log_identity = self._log()
        turn, connection.turn = connection.turn, None
        return turn

    def _lost_log(self, connection: DriverConnection) -> bool:
        """Whether the log this connection writes to was removed: nobody else would ever see what it commits.

        While a connection is open SQLite never removes the log itself. The last one to be closed still
        carries what it holds into the database (tried), so closing is all that helps, and loses nothing.
        """
        return connection.log_identity is not None and self._log() != connection.log_identity

    def _log(self) -> tuple[int, int] | None:
        try:
            return files.identity(f"{self.path}-wal")
        except FileNotFoundError:
            return None

    def log_is_of_another_file(self, connection: DriverConnection) -> bool:
        """Whether another file is at the path now, and the log beside it is one that this connection never used."""
        if self.path is None or connection.identity is None:
            return False
        with contextlib.suppress(OSError):
            return files.identity(self.path) != connection.identity and self._log() not in (
                None,
                connection.log_identity,
            )
        return False

    def forget(self) -> list[DriverConnection]:
        """Abandon, in a forked child, the connections that were open in its parent.

        Returns:
            Those connections; their files cannot be used by this process.
        """
        self.writers = Turns(1, STINT)
        inherited: list[DriverConnection] = super().forget()
        for connection in inherited:
            connection.abandon()
            if connection.identity is not None:
                _inherited_files.add(connection.identity)
        return inherited

    def writer_is_busy(self) -> errors.DatabaseBusyError:
        """Say that no turn to write came in time, and whether the caller itself is in the way."""
        if self.writing_thread == threading.get_ident():
            return errors.DatabaseBusyError(
                "this thread already has a unit of work that writes",
                hint="end it before opening another, or open the other with read_only=True",
            )
        return errors.DatabaseBusyError(
            f"other threads of this process were writing for {self.patience:g} s",
            sqlite_errorcode=sqlite3.SQLITE_BUSY,
        )

    def _find_file(self, path: Path) -> tuple[int, int]:
        """The identity of the file, which stays the same for as long as the engine lives."""
        try:
            found = path.stat()
        except FileNotFoundError:
            if self._identity is not None:
                raise errors.StorageError(
                    f"{path} was removed while it was in use",
                    hint="put it back, or close the store and open it again to begin a new one",
                ) from None
            _make_file(path)
            found = path.stat()
        identity = found.st_dev, found.st_ino
        if self._identity is None:
            _require_one_regular_file(path, found)
        elif identity != self._identity:
            raise errors.StorageError(
                f"{path} was replaced by another file while it was in use",
                hint="this store writes to neither of them any more; close it, and open it again",
            )
        if identity in _inherited_files:
            raise _forked()
        self._identity = identity
        return identity


def _require_one_regular_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise errors.NotADatabaseError(f"{path} is not a regular file")
    if found.st_nlink > 1:
        raise errors.StorageError(
            f"{path} has {found.st_nlink} names (hard links), and SQLite keeps a log for each name: what is written by"
            " one name is lost to the others",
            hint="close all programs that use it, and leave it one name (find -samefile lists them), or use a copy",
            path=path,
        )


def pragmas(settings: Settings) -> dict[str, int | str]:
    """The pragmas asked for on every connection; none of them writes to the file."""
    return {
        "busy_timeout": milliseconds(settings.busy_timeout),
        "foreign_keys": "ON",
        "synchronous": settings.synchronous,
        "cache_size": settings.cache_size,
        "mmap_size": settings.mmap_size,
        "temp_store": settings.temp_store,
        "wal_autocheckpoint": settings.wal_autocheckpoint,
    }


def milliseconds(duration: timedelta) -> int:
    """A duration in whole milliseconds, rounded up so that a short one does not become none."""
    return -(-duration // timedelta(milliseconds=1))


def _make_file(path: Path) -> None:
    """Create a new database file that only its owner reads; a race with another process is no error.

    Its name is written through to the disk, without which nothing that is committed would be.
    """
    made = [path, *(folder for folder in path.parents if not folder.exists())]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, files.FILE_MODE))
    for each in made:
        files.write_names_through(each.parent)


def _is_text(value: object, encoding: str) -> bool:
    """Whether the bytes of a text are what the encoding of the file allows; SQL has no word for it."""
    try:
        value.decode(codec(encoding)) if isinstance(value, bytes) else None
    except UnicodeDecodeError:
        return False
    return True


def _by_code_points(a: str, b: str) -> int:
    """Order texts as their bytes in UTF-8 do, in a file that writes them otherwise."""
    return (a > b) - (a < b)


def codec(encoding: str) -> str:
    """How Python calls an encoding of SQLite's."""
    return encoding.lower().replace("utf-16", "utf-16-")
