"""Connections to a server: how they begin a transaction, and how they find out whether it was committed.

As on SQLite, connections begin their transactions themselves: one message begins the transaction, takes the lock of
the unit of work (`databases.postgresql.fence`), and reads the phase.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, cast

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from sqlalchemy import URL

from consensus_orm import errors, validation
from consensus_orm.databases.driver import Parameters
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.pool import ConnectionSource
from consensus_orm.databases.postgresql import session
from consensus_orm.databases.postgresql.blockers import Watch
from consensus_orm.databases.postgresql.errors import missing_privilege, translate
from consensus_orm.databases.postgresql.fence import REFUSALS, ROWS, TABLES, Entry, Fence
from consensus_orm.databases.postgresql.login import Login
from consensus_orm.databases.postgresql.parameters import bindable, spelled
from consensus_orm.databases.postgresql.session_guard import PostgresSessionGuard
from consensus_orm.databases.postgresql.triggers import INSTALLED
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side
from consensus_orm.settings import Settings
from consensus_orm.statements.rendering import literal

__all__ = ["ServerConnection", "ServerSource"]

PREPARED = 500
"""Statements that a connection keeps prepared; the package has fewer."""

FLIP_PATIENCE = 250
"""Longest wait of a flip for its lock in ms, because writers wait behind it; the flip is tried again after that."""

MOST_PATIENCE = 2000
"""Longest wait of its later tries, each twice as long as the one before: an autovacuum gives way only to a transaction
that has waited for deadlock_timeout (1 s)."""

NOT_READABLE = (
    psycopg.errors.InvalidSqlStatementName,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InsufficientPrivilege,
)
"""Errors after which a unit of work reads less at its begin: a connection pooler does not keep prepared statements, an
older database lacks the column, or the role has no right to read it."""

UNANSWERED = ("08", "57P", "40003")
"""SQLSTATEs after which the outcome of a commit is asked for: the connection was lost, as a connection pooler says; the
server was shut down; or it does not know."""

COPY_BLOCK = 1 << 20
"""Bytes of rows that COPY gives at once; the server sends them one by one."""


_PLACE = (
    "SELECT current_user, (SELECT relnamespace::regnamespace::text FROM pg_class"
    " WHERE relname = %s AND pg_table_is_visible(oid))"
)

_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
_READ = "SELECT phase, epoch FROM consensus_orm_state WHERE id = 1"

DURABLE = (
    b"SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit', true) = 'off'"
)
"""Has the commit, and all before it, reach the disk of the server; a stricter setting stays."""


class ServerConnection(psycopg.Connection[Any]):
    """The driver's connection, as `databases.driver.Driver` describes it."""

    Error = psycopg.Error
    storable = staticmethod(bindable)
    source: ServerSource
    server_since: datetime | None = None
    """When the server last lost the changes that it had not written to disk: at a crash, or at its first start."""
    _phase: tuple[Any, ...] | None = None
    _transaction: str | None = None
    """The transaction id of a unit of work that writes, by which the server knows how it ended; '' on an engine without
    transaction ids."""
    _lock = Lock.NONE
    _flipping: float | None = None
    """Since when this connection keeps writers waiting."""
    _watch: Watch | None = None
    """Asks who keeps a flip waiting."""
    _entering: Fence | None = None
    """The fence whose statement that reads the phase is prepared on this connection."""
    _durable = False
    schemas: tuple[str, ...] = ()
    """The schemas that it was told to look in."""
    session_guard: SessionGuard | None = None
    """The guard of the session that uses it."""
    _fresh = False
    """Whether no statement was sent since the unit of work began."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open and can be committed; after a failed statement it cannot."""
        return self.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.ACTIVE)

    def execute(self, query: Any, params: Any = None, **options: Any) -> psycopg.Cursor[Any]:
        """Run a statement with parameters spelled as on SQLite."""
        self._fresh = False
        try:
            if params:
                query = cast("Any", spelled(query))  # psycopg's type is LiteralString
                # A unit of work that carries rows reads ranges of keys, for which a prepared plan is no use.
                return super().execute(query, params, prepare=False if self._lock.carries else None, **options)
            return super().execute(query, None, **options)
        except psycopg.errors.InsufficientPrivilege as error:
            raise self.source.name_privilege(error, str(query)) from error.__cause__
        except psycopg.errors.LockNotAvailable as error:
            raise self._blamed(error) from error.__cause__

    def order(self, statement: str, params: Any = None) -> psycopg.Cursor[Any]:
        """Run a statement of the transaction itself, and raise errors of this package.

        Raises:
            StorageError: The server refused it.
        """
        try:
            return self.execute(statement, params)
        except psycopg.Error as error:
            raise translate(error, self.source.database) from error

    def begin(self, *, write: bool) -> None:
        """Begin a transaction, without any lock."""
        self._transaction, self._fresh = None, False
        self.order(("BEGIN;" if write else _SNAPSHOT) + self.source.transaction_settings)

    def begin_unit(self, lock: Lock, *, durable: bool = False) -> None:
        """Begin the transaction of a unit of work; the same message takes the lock and reads the phase.

        Args:
            lock: Its lock.
            durable: Have the commit reach the disk, whatever the settings say.
        """
        self._durable = durable
        self._begin_locked(lock)
        if durable:
            self.be_durable()

    def be_durable(self) -> None:
        """Have the commit of this transaction, and all before it, reach the disk, whatever the settings say."""
        self._send(DURABLE)

    def _begin_locked(self, lock: Lock, entry: Entry | None = None) -> None:
        self._phase, self._transaction, self._lock = None, None, lock
        fence, entry = self.source.fence, entry or self._entry(lock)
        if lock is Lock.FLIP:
            self._watch = Watch(self.source.login, self.source.name_flip(), self.source.tell)
        begin = self.source.begin_with(lock, entry)
        try:
            result = self._send(begin)
        except psycopg.errors.UndefinedTable:
            self.rollback()
            if entry is not Entry.BARE:  # only the record of the guards may be missing
                self._begin_locked(lock, Entry.BARE)
                return
            self.begin(write=lock is not Lock.NONE)
            return
        except NOT_READABLE as error:
            self.rollback()
            if entry is Entry.BARE:
                if isinstance(error, psycopg.errors.InsufficientPrivilege):
                    raise self.source.name_privilege(error, begin.decode()) from None
                raise
            self.source.entry = entry.next
            self._begin_locked(lock)
            return
        except REFUSALS as refused:
            self.rollback()
            if entry is not Entry.BARE:  # the engine may lack the catalog alone
                self.source.entry = Entry.BARE
                self._begin_locked(lock)
                return
            if fence is ROWS:
                raise
            self.source.lock_rows(self, refused)
            self._begin_locked(lock)
            return
        except psycopg.errors.ReadOnlySqlTransaction:
            self.close()  # the next one may be to another host of the URL, which is the primary now
            raise
        except BaseException:
            self.rollback()
            raise
        if result.ntuples:
            phase, epoch, *more = (result.get_value(0, column) for column in range(result.nfields))
            cookies = [None if cookie is None else int(cookie) for cookie in more[2:]]
            self._phase = int(phase or 0), int(epoch or 0), *cookies
            self._transaction = (more[0] or b"").decode() if more else None
        self._fresh = True
        self._flipping = time.monotonic() if lock is Lock.FLIP else None

    def _entry(self, lock: Lock) -> Entry:
        """How a unit of work reads the phase; one that writes rows also asks whether the guards were changed."""
        if lock.carries or not lock:
            return Entry.BARE
        if lock is Lock.ALONE:  # it locks more than the prepared statement does
            return Entry.BARE if self.source.entry is Entry.BARE else Entry.TEXT
        if self.source.entry is Entry.PREPARED and self._entering is not self.source.fence:
            try:
                self._send(self.source.fence.prepare())
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                return Entry.BARE  # the database was not upgraded yet
            except psycopg.Error as error:
                if error.sqlstate is None:
                    raise
                self.source.entry = Entry.TEXT
            else:
                self._entering = self.source.fence
        return self.source.entry

    def _blamed(self, error: psycopg.Error) -> psycopg.Error:
        """Add to an error who kept the flip waiting."""
        if self._watch is not None:
            error.blockers = self._watch.found  # type: ignore[attr-defined]  # read by `translate`
        return error

    def _end(self) -> None:
        self._transaction = None
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if self._flipping is not None:
            self.source.longest_flip = max(self.source.longest_flip, time.monotonic() - self._flipping)
            self._flipping = None

    def others_wrote(self) -> bool:
        """Whether the server gave transaction ids to others since the last call; True on an engine without them."""
        if not self._transaction:
            return True
        before, self.source.seen = self.source.seen, int(self._transaction)
        own, self.source.savepoints = 1 + self.source.savepoints, 0  # each that writes takes an id, too
        return before is not None and self.source.seen > before + own

    def _send(self, commands: bytes) -> PGresult:
        """Send commands without parameters in one message, and give the result of the last.

        Cursors for the three messages of every unit of work cost 35 us more (measured).
        """
        result = self.pgconn.exec_(commands)
        if result.status == ExecStatus.FATAL_ERROR:
            error: psycopg.Error = psycopg.errors.error_from_result(result, encoding="utf-8")
            # Without a SQLSTATE it is an error of libpq, as after the server was killed.
            raise self._blamed(error) if error.sqlstate else psycopg.OperationalError(str(error))
        return result

    def copy_out(self, query: str) -> Iterator[tuple[int, bytes]]:
        """Run COPY TO STDOUT; the cursor of the driver takes a quarter longer (measured).

        Args:
            query: The statement.

        Yields:
            Blocks of whole rows, each with their number.

        Raises:
            psycopg.Error: The server refused it, or counts other rows than it sent.
        """
        self._fresh = False
        self._send(query.encode())
        block, rows, total = bytearray(), 0, 0
        try:
            with selectors.DefaultSelector() as arriving:
                arriving.register(self.pgconn.socket, selectors.EVENT_READ)
                # libpq itself would wait with Python's lock held: no thread goes on, and Ctrl-C is not heard.
                while (found := self.pgconn.get_copy_data(1))[0] >= 0:
                    if not found[0]:
                        self._receive(arriving)
                        continue
                    block += found[1]
                    rows += 1
                    if len(block) > COPY_BLOCK:
                        yield rows, bytes(block)
                        block, rows, total = bytearray(), 0, total + rows
                result = self._result(arriving)
                while self._result(arriving) is not None:
                    pass
        except BaseException:
            self.close()  # the rest of the rows would be taken for the answer to the next statement
            raise
        yield rows, bytes(block)
        if result is None or result.status != ExecStatus.COMMAND_OK:
            raise (
                psycopg.OperationalError("COPY was cut short")
                if result is None
                else (psycopg.errors.error_from_result(result, encoding="utf-8"))
            )
        if result.command_tuples != total + rows:
            raise psycopg.DataError(f"COPY counts {result.command_tuples} rows, and sent {total + rows}")

    def _receive(self, arriving: selectors.BaseSelector) -> None:
        arriving.select()
        self.pgconn.consume_input()

    def _result(self, arriving: selectors.BaseSelector) -> PGresult | None:
        while self.pgconn.is_busy():
            self._receive(arriving)
        return self.pgconn.get_result()

    def read_phase(self) -> tuple[Any, ...] | None:
        """Phase and epoch, and the cookies of the guards, as read at the begin."""
        return self._phase

    def hold(self, lock: Lock) -> None:
        """Take a stronger lock within the transaction."""
        self.order(self.source.fence.hold(lock))

    def keep_out(self, tables: Collection[str]) -> None:
        """Block writers, those of other programs too, from tables until the transaction ends."""
        if tables:
            for statement in self.source.fence.keep_out(tables, lambda: self.execute(INSTALLED).fetchall()):
                self.execute(statement)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Let a statement fail without taking the transaction with it."""
        self.source.savepoints += self._lock.carries
        self.order("SAVEPOINT consensus_orm")
        try:
            yield
        except errors.StorageError:
            if not self.closed:
                self.order("ROLLBACK TO SAVEPOINT consensus_orm")
            raise
        self.order("RELEASE SAVEPOINT consensus_orm")

    def together(self, *statements: tuple[str, Parameters]) -> list[Any]:
        """Run several statements with one trip to the server, or none of them; each one's first row."""
        # The first statements of a unit of work need no savepoint (45 us): after an error the unit begins again.
        fresh = self._fresh
        try:
            with self.pipeline(), contextlib.nullcontext() if fresh else self._savepoint():
                cursors = [self.execute(*statement) for statement in statements]
            return [cursor.fetchone() if cursor.description else None for cursor in cursors]
        except psycopg.Error:
            if not self.closed:
                self._undo(fresh=fresh)
            raise

    @contextlib.contextmanager
    def _savepoint(self) -> Iterator[None]:
        """A savepoint around the statements of a pipeline, sent along with them."""
        self.execute("SAVEPOINT consensus_orm")
        yield
        self.execute("RELEASE SAVEPOINT consensus_orm")

    def _undo(self, *, fresh: bool) -> None:
        """Undo what `together` did."""
        self._prepared.clear()  # psycopg believes prepared what it sent before the failure
        if not fresh:
            self._send(b"ROLLBACK TO SAVEPOINT consensus_orm")
            return
        seen = self._phase
        self.rollback()
        self.begin_unit(self._lock, durable=self._durable)
        if self._phase != seen:
            self.rollback()
            raise psycopg.errors.SerializationFailure("the phase changed between two tries")

    def read_on(self) -> None:
        """Begin again, because a failed statement has ended the transaction."""
        self.rollback()
        self.begin(write=False)

    @staticmethod
    def refers_to_missing(error: BaseException | None) -> bool:
        """Whether a row refers to one that does not exist."""
        return isinstance(error, psycopg.errors.ForeignKeyViolation)

    @staticmethod
    def is_missing_table(error: BaseException) -> bool:
        """Whether one of the package's own statements failed because its table does not exist."""
        return getattr(error, "sqlstate", None) == psycopg.errors.UndefinedTable.sqlstate

    def what_is_missing(self, error: BaseException) -> str:
        """The server's message, which names the table that a statement did not find."""
        return error.diag.message_primary or "" if isinstance(error, psycopg.Error) else ""

    @staticmethod
    def is_read_only(error: BaseException) -> bool:
        """Whether a statement failed because the transaction may not write."""
        return isinstance(error, psycopg.errors.ReadOnlySqlTransaction)

    @staticmethod
    def cannot_decode(error: BaseException) -> bool:
        """False: the server stores valid UTF-8 only."""
        return False

    def escaping(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: the server stores valid UTF-8 only."""
        return contextlib.nullcontext()

    def guard(self, moves: Moves, sides: Collection[Side], *, read_only: bool) -> SessionGuard:
        """Refuse statements of a session that would write a mapped table; the triggers of the tables do it."""
        self.session_guard = PostgresSessionGuard(moves, self, sides, read_only=read_only)
        return self.session_guard

    def savepoint(self, sql: str) -> None:
        """Execute a command on a savepoint."""
        self.source.savepoints += self._lock.carries and sql.startswith("SAVEPOINT")
        self.execute(sql)

    def check(self, values: Mapping[str, object]) -> None:
        """Refuse values that the server cannot store.

        Raises:
            InvalidValueError: There is one, or they are a row that is too long.
        """
        validation.length(values, self.source.settings.max_row_bytes)
        for value in values.values():
            bindable(value)

    def commit(self, *last: tuple[str, Parameters]) -> None:
        """Commit; if the connection is lost meanwhile, ask the server how the transaction ended.

        Args:
            *last: Statements that the same message runs before; after an error the server does not commit.

        Raises:
            CommitUncertainError: The server did not answer in time, or does not know.
        """
        printed = psycopg.ClientCursor(self).mogrify if last else str
        before = (printed(cast("Any", spelled(sql)), cast("Any", parameters)) for sql, parameters in last)
        try:
            self._send(";".join((*before, "COMMIT")).encode())
        except psycopg.OperationalError as error:
            # Without a SQLSTATE the server did not answer; libpq may still report the connection as good (an immediate
            # shutdown).
            unanswered = error.sqlstate is None or error.sqlstate.startswith(UNANSWERED)
            if self._transaction is None or not (unanswered or self.pgconn.status != ConnStatus.OK):
                raise
            if not self.source.has_committed(self._transaction, self.server_since, error):
                raise
        finally:
            self._end()
        if self._lock is Lock.FLIP:
            self.source.flips = 0

    def rollback(self) -> None:
        """Roll back; the loss of a connection has done so already."""
        self._transaction = None
        try:
            self._roll_back()
        finally:
            self._end()

    def _roll_back(self) -> None:
        if not self.closed and self.pgconn.transaction_status != TransactionStatus.IDLE:
            try:
                self._send(b"ROLLBACK")
            except psycopg.OperationalError:
                self.close()  # libpq may still report it as good


class ServerSource(ConnectionSource[ServerConnection]):
    """The source of an engine's connections to a server.

    Args:
        url: The server and database.
        settings: Patience and isolation.
    """

    path = None

    def __init__(self, url: URL, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.database = url.database
        self.patience = settings.busy_timeout.total_seconds()
        self.entry: Entry
        """How units of work read the phase."""
        self._flip = "consensus_orm flip"
        self.flips = 0
        """How many flips began since the last one that was committed."""
        self.longest_flip = 0.0
        """The longest time, in seconds, for which a flip that had its lock kept writers waiting."""
        self.seen: int | None = None
        """The transaction id at the last call of `others_wrote`."""
        self.savepoints = 0
        """How many savepoints units that carry rows have set since."""
        self.transaction_settings = ""
        """The settings of each transaction; empty unless a connection pooler is in between."""
        self.login = Login(url, settings)
        self._keep_apart(TABLES)

    def _keep_apart(self, fence: Fence) -> None:
        """Use a fence, in transactions that are set up as the pooler demands."""
        isolation, settings = self.settings.isolation, self.transaction_settings
        self._read = f"{_SNAPSHOT}{settings} {_READ}".encode()
        self._begin = {
            (lock, e): fence.begin(lock, isolation, None, e, settings=settings) for lock in Lock if lock for e in Entry
        }
        self.entry = Entry.TEXT if settings else Entry.PREPARED
        self.fence = fence  # last, because another thread that sees it uses its statements

    def begin_with(self, lock: Lock, entry: Entry) -> bytes:
        """The statements that begin a unit of work; a flip waits longer than the one before it that failed."""
        if lock is Lock.NONE:
            return self._read
        if lock is not Lock.FLIP:
            return self._begin[lock, entry]
        self.flips += 1
        patience = min(FLIP_PATIENCE * 2 ** (self.flips - 1), MOST_PATIENCE)
        named = f"{self.transaction_settings} SET LOCAL application_name = {literal(self._flip)};"
        return self.fence.begin(lock, self.settings.isolation, patience, settings=named)

    def name_flip(self) -> str:
        """Give the session of the next flip a name of its own (application_name)."""
        self._flip = f"consensus_orm flip {uuid.uuid4().hex[:8]}"
        return self._flip

    def lock_rows(self, connection: ServerConnection, refused: psycopg.Error) -> None:
        """Use row locks as the fence from now on, because the server has no table locks.

        Args:
            connection: In no transaction.
            refused: The error with which the server refused a table lock.

        Raises:
            MigrationError: The server accepts some table locks. Programs would then use different fences.
        """
        for lock in (lock for lock in Lock if lock):
            try:
                connection._send(TABLES.begin(lock, self.settings.isolation, FLIP_PATIENCE))
            except REFUSALS:
                continue
            except psycopg.errors.LockNotAvailable:
                pass
            finally:
                connection.rollback()
            raise errors.MigrationError(
                "this server takes some locks on tables and refuses others, so a change of the phase cannot be kept"
                " apart from writers",
                hint="use PostgreSQL, or an engine that takes all of them or none",
            ) from refused
        self._keep_apart(ROWS)

    def connect(self) -> ServerConnection:
        """Open a connection.

        Raises:
            ConfigurationError: The connection pooler in between keeps no transactions.
            psycopg.OperationalError: The server cannot be reached, or refuses.
        """
        connection = self.login.connect(ServerConnection)
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        self.connections.add(connection)
        return connection

    def _set_up(self, connection: ServerConnection) -> None:
        connection.source = self
        connection.schemas = self.schemas
        patience = int(self.patience * 1000)
        with contextlib.suppress(psycopg.errors.UndefinedTable):
            began: Any = connection.execute("SELECT stats_reset FROM pg_stat_bgwriter")
            connection.server_since = began.fetchone()[0]
        if self.login.threshold == 0 or session.is_pooled(connection):
            self._require_transactions(connection)
            connection.prepare_threshold = None
            settings = session.transaction_settings(connection, patience, self.login.options, self.schemas)
            if settings != self.transaction_settings:
                self.transaction_settings = settings
                self._keep_apart(self.fence)
        else:
            connection.prepared_max = PREPARED
            connection.execute(session.session_settings(patience, self.schemas))
            if self.reads_only:
                connection.execute("SET default_transaction_read_only = on")

    def _require_transactions(self, connection: ServerConnection) -> None:
        """Refuse a connection pooler that keeps no transactions, also on a second try: a server may just have crashed.

        Raises:
            ConfigurationError: It is one.
        """
        if not session.keeps_transactions(connection):
            connection.close()
            with self.login.connect(psycopg.Connection) as second:
                if session.is_pooled(second) and not session.keeps_transactions(second):
                    raise session.refusal()
            raise psycopg.OperationalError("the connection to the server was lost by the connection pooler")

    def is_healthy(self, connection: ServerConnection) -> bool:
        """Whether a connection is open and idle; one that the server has closed has data to read."""
        if connection.schemas != self.schemas:  # it was opened before a store named them
            return False
        if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return not poll.poll(0)

    def translate(self, error: BaseException, database: str | None) -> errors.ConsensusError | None:
        """The error of this package for an error of the server; None for any other error."""
        return translate(error, database) if isinstance(error, psycopg.Error) else None

    def name_privilege(self, error: psycopg.Error, statement: str) -> psycopg.Error:
        """Add to an error what the server does not say: the privilege, the schema of the table, and the role."""
        found = missing_privilege(error, statement)
        with contextlib.suppress(psycopg.Error), self.login.connect(psycopg.Connection, connect_timeout=2) as asking:
            row: Any = asking.execute(_PLACE, (found.get("table"),)).fetchone()
            found |= dict(zip(("role", "schema"), row, strict=True))
        error.missing = found  # type: ignore[attr-defined]  # read by `translate`
        return error

    def take_back(self, connection: ServerConnection) -> None:
        """Roll back what was not committed."""
        connection.rollback()

    def has_committed(self, transaction: str, since: datetime | None, cause: BaseException) -> bool:
        """Ask the server whether a transaction was committed whose connection was lost at the commit.

        After a crash the server assigns the transaction ids again that it had not written to disk. So "committed" may
        then be the state of another transaction, while "aborted" is certain.

        Args:
            transaction: Its id; '' if it had none.
            since: The `server_since` of its connection.
            cause: How the connection was lost.

        Returns:
            Whether it was committed.

        Raises:
            CommitUncertainError: The server did not answer in time, or answers "committed" after a crash, or does not
                know.
        """
        if not transaction:
            raise errors.CommitUncertainError from cause
        deadline = time.monotonic() + self.settings.retry_budget.total_seconds()
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                status, same_server = self._status(transaction, since)
                if status == "aborted" or (status == "committed" and same_server):
                    return status == "committed"
                if status in ("committed", None):
                    break
            time.sleep(0.05)
        raise errors.CommitUncertainError from cause

    def _status(self, transaction: str, since: datetime | None) -> tuple[str | None, bool]:
        connection = self.connect()
        try:
            row: Any = connection.execute("SELECT pg_xact_status(CAST(? AS xid8))", (transaction,)).fetchone()
            status = row[0]
        except psycopg.errors.InvalidParameterValue:  # an id not assigned yet: a crash lost the transaction
            status = "aborted"
        finally:
            connection.close()
        return status, since is not None and connection.server_since == since
