"""Connections to a server: how one is opened, how it begins a transaction, and how it is known to have committed.

Transactions are begun here, as on SQLite: one message begins the transaction, takes the lock of the unit of work
(`consensus_orm.databases.postgresql.fence`), and reads the phase.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from sqlalchemy import URL, make_url
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from consensus_orm import errors
from consensus_orm.databases.driver import Parameters
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.pool import ConnectionSource
from consensus_orm.databases.postgresql.errors import translate
from consensus_orm.databases.postgresql.fence import REFUSALS, ROWS, TABLES, Entry, Fence
from consensus_orm.databases.postgresql.parameters import bindable, spelled
from consensus_orm.databases.postgresql.session_guard import PostgresSessionGuard
from consensus_orm.databases.postgresql.triggers import INSTALLED
from consensus_orm.declaration.pairs import Mapping as Declaration
from consensus_orm.settings import Settings

__all__ = ["ServerConnection", "ServerSource", "arguments_of"]

PREPARED = 500
"""Statements a connection keeps prepared; all of ours are fewer."""

FLIP_PATIENCE = 250
"""Longest wait in ms of a flip for its lock, while which writers wait behind it; it is tried again after that."""

MOST_PATIENCE = 2000
"""That of its later tries, each twice as long as the one before: an autovacuum gives way only to who waits for
deadlock_timeout (1 s)."""

LESS = (
    psycopg.errors.InvalidSqlStatementName,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InsufficientPrivilege,
)
"""Why a unit of work has to ask for less at its begin: a pooler forgets what is prepared, or the role may not look."""

AS_WRITTEN = "; ".join(
    f"SET {name} = {value}"
    for name, value in {
        "client_encoding": "'UTF8'",
        "datestyle": "'ISO'",
        "standard_conforming_strings": "on",
        "extra_float_digits": "1",
        "bytea_output": "'hex'",
    }.items()
)
"""Settings that decide how values are written and read, which a database or a role may have of its own."""

_READ = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT phase, epoch FROM consensus_orm_state WHERE id = 1"


DURABLE = (
    b"SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit', true) = 'off'"
)
"""Has a commit, and all before it, reach the disk of the server; what is set to wait for more stays."""


def arguments_of(url: URL | str) -> dict[str, Any]:
    """What the driver is given to connect to a URL of SQLAlchemy's."""
    (_, arguments) = PGDialect_psycopg().create_connect_args(make_url(url))  # type: ignore[no-untyped-call]
    return dict(arguments)


class ServerConnection(psycopg.Connection[Any]):
    """The driver's connection; what `consensus_orm.databases.driver.Driver` says of one holds here."""

    Error = psycopg.Error
    source: ServerSource
    last_used = 0.0
    server_since: Any = None
    """When the server last began without knowing what it had not written down: at a crash, or at first."""
    _phase: tuple[Any, ...] | None = None
    _transaction: str | None = None
    """The number of the transaction of a unit of work that writes, by which the server knows how it ended; '' where
    it knows none."""
    _lock = Lock.NONE
    _flipping: float | None = None
    """Since when it keeps writers waiting."""
    _entering: Fence | None = None
    """The fence whose statement that reads the phase is prepared."""
    _durable = False
    _fresh = False
    """Whether a unit of work has begun and nothing else was sent."""

    @property
    def in_transaction(self) -> bool:
        """Whether there is a transaction that can be committed; one in which a statement failed cannot."""
        return self.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.ACTIVE)

    def execute(self, query: Any, params: Any = None, **options: Any) -> psycopg.Cursor[Any]:
        """Run a statement whose values are named as on SQLite."""
        self._fresh = False
        if params:
            query = cast("Any", spelled(query))  # psycopg wants text that a program was written with
            # Who carries looks at ranges, for which there is no plan to keep.
            return super().execute(query, params, prepare=False if self._lock >= Lock.CARRY else None, **options)
        return super().execute(query, None, **options)

    def order(self, statement: str, params: Any = None) -> psycopg.Cursor[Any]:
        """Run a statement of the transaction itself; what goes wrong is an error of ours, whoever asked for it.

        Raises:
            StorageError: What the server said.
        """
        try:
            return self.execute(statement, params)
        except psycopg.Error as error:
            raise translate(error, self.source.database) from error

    def begin(self, *, write: bool) -> None:
        """Begin a transaction, without any lock."""
        self._transaction, self._fresh = None, False
        self.order("BEGIN" if write else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def begin_unit(self, lock: Lock, *, durable: bool = False) -> None:
        """Begin the transaction of a unit of work: lock and phase come with the same message.

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
        try:
            result = self._send(self.source.begin_with(lock, entry))
        except psycopg.errors.UndefinedTable:
            self.rollback()
            if entry is not Entry.BARE:  # it may be the record of the guards alone
                self._begin_locked(lock, Entry.BARE)
                return
            self.begin(write=lock is not Lock.NONE)
            return
        except LESS:
            self.rollback()
            if entry is Entry.BARE:
                raise
            self.source.entry = entry.next
            self._begin_locked(lock)
            return
        except REFUSALS as refused:
            self.rollback()
            if entry is not Entry.BARE:  # it may be the catalog that is not there
                self.source.entry = Entry.BARE
                self._begin_locked(lock)
                return
            if fence is ROWS:
                raise
            self.source.lock_rows(self, refused)
            self._begin_locked(lock)
            return
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
        """How a unit of work reads the phase: those that write rows ask on the way whether a trigger was touched."""
        if lock is not Lock.WRITE:
            return Entry.BARE
        if self.source.entry is Entry.PREPARED and self._entering is not self.source.fence:
            try:
                self._send(self.source.fence.prepare())
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                return Entry.BARE  # nobody has upgraded the database yet
            except psycopg.Error as error:
                if error.sqlstate is None:
                    raise
                self.source.entry = Entry.TEXT
            else:
                self._entering = self.source.fence
        return self.source.entry

    def _end(self) -> None:
        self._transaction = None
        if self._flipping is not None:
            self.source.longest_flip = max(self.source.longest_flip, time.monotonic() - self._flipping)
            self._flipping = None

    def others_wrote(self) -> bool:
        """Whether the server gave numbers of transactions to others since this was asked last; yes without numbers."""
        if not self._transaction:
            return True
        before, self.source.seen = self.source.seen, int(self._transaction)
        return before is not None and self.source.seen > before + 1

    def _send(self, commands: bytes) -> PGresult:
        """Send commands without values as they are, in one message; gives the result of the last.

        A cursor for each of the three that every unit of work sends costs 35 us more (measured).
        """
        result = self.pgconn.exec_(commands)
        if result.status == ExecStatus.FATAL_ERROR:
            error: psycopg.Error = psycopg.errors.error_from_result(result, encoding="utf-8")
            # Without a SQLSTATE it is libpq's own word, as of a server that was killed.
            raise error if error.sqlstate else psycopg.OperationalError(str(error))
        return result

    def read_phase(self) -> tuple[Any, ...] | None:
        """Phase and epoch, and the cookies of the guards, as they came with the begin."""
        return self._phase

    def hold(self, lock: Lock) -> None:
        """Take a stronger lock within the transaction."""
        self.order(self.source.fence.hold(lock))

    def keep_out(self, tables: Collection[str]) -> None:
        """Keep writers, also those of other programs, out of tables until the transaction ends."""
        if tables:
            ours = self.execute(INSTALLED).fetchall()
            for statement in self.source.fence.keep_out(tables, ours):
                self.execute(statement)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Let a statement fail without taking the transaction with it."""
        self.order("SAVEPOINT consensus_orm")
        try:
            yield
        except errors.StorageError:
            if not self.closed:
                self.order("ROLLBACK TO SAVEPOINT consensus_orm")
            raise
        self.order("RELEASE SAVEPOINT consensus_orm")

    def together(self, *statements: tuple[str, Parameters]) -> list[Any]:
        """Run several statements with one trip to the server, or none of them; the first row of each."""
        # What is the first of its unit of work needs no savepoint (45 us): the unit begins again.
        kept = contextlib.nullcontext() if self._fresh else _Savepoint(self)
        fresh = self._fresh
        try:
            with self.pipeline(), kept:
                cursors = [self.execute(*statement) for statement in statements]
            return [cursor.fetchone() for cursor in cursors]
        except psycopg.Error:
            if not self.closed:
                self._undo(fresh=fresh)
            raise

    def _undo(self, *, fresh: bool) -> None:
        """Take back what `together` did."""
        self._prepared.clear()  # psycopg takes for prepared what it had sent when the others failed
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
        """Go on reading after a statement failed, which ended the transaction."""
        self.rollback()
        self.begin(write=False)

    @staticmethod
    def is_missing_table(error: BaseException) -> bool:
        """Whether a statement of ours failed because its table is not there."""
        return getattr(error, "sqlstate", None) == psycopg.errors.UndefinedTable.sqlstate

    def what_is_missing(self, error: BaseException) -> str:
        """Text that names the table which a statement did not find."""
        return error.diag.message_primary or "" if isinstance(error, psycopg.Error) else ""

    @staticmethod
    def is_read_only(error: BaseException) -> bool:
        """Whether a statement failed because the transaction may not write."""
        return isinstance(error, psycopg.errors.ReadOnlySqlTransaction)

    @staticmethod
    def cannot_decode(error: BaseException) -> bool:
        """Whether a read failed because a text is no UTF-8; the server holds none."""
        return False

    def escaping(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: the server holds UTF-8 only."""
        return contextlib.nullcontext()

    @staticmethod
    def storable(value: Any) -> Any:
        """A value as it can be bound.

        Raises:
            InvalidValueError: A text that UTF-8 cannot say, or with a NUL in it.
        """
        return bindable(value)

    def guard(self, mapping: Declaration, *, read_only: bool) -> PostgresSessionGuard:
        """Let nothing that a session sends reach a mapped table around the mapping; its triggers know the tables."""
        return PostgresSessionGuard(self, read_only=read_only)

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse values that the server cannot hold.

        Raises:
            InvalidValueError: There is one.
        """
        for value in values.values():
            bindable(value)

    def commit(self) -> None:
        """Commit; where the connection is lost meanwhile, ask the server how the transaction ended.

        Raises:
            CommitUncertainError: It could not be asked in time, or cannot know.
        """
        try:
            self._send(b"COMMIT")
        except psycopg.OperationalError as error:
            # Without a SQLSTATE it is no answer, and libpq may yet call the connection good (an immediate shutdown).
            unsaid = error.sqlstate is None or isinstance(error, psycopg.errors.StatementCompletionUnknown)
            if self._transaction is None or not (unsaid or self.pgconn.status != ConnStatus.OK):
                raise
            if not self.source.has_committed(self._transaction, self.server_since, error):
                raise
        finally:
            self._end()
        if self._lock is Lock.FLIP:
            self.source.flips = 0

    def rollback(self) -> None:
        """Roll back; a connection that is lost has done so."""
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
                self.close()  # libpq may yet call it good


class _Savepoint(contextlib.AbstractContextManager[None]):
    """A savepoint around the statements of a pipeline, sent along with them."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("SAVEPOINT consensus_orm")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._connection.execute("RELEASE SAVEPOINT consensus_orm")


class ServerSource(ConnectionSource):
    """Where the connections of one engine come from.

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
        self.entry = Entry.PREPARED
        """How units of work read the phase."""
        self.flips = 0
        """How many flips were begun since one was committed."""
        self.longest_flip = 0.0
        """The longest that one kept writers waiting once it had its lock, s."""
        self.seen: int | None = None
        """The number of the transaction in which it was asked last whether others wrote."""
        self._keep_apart(TABLES)
        self._arguments = arguments_of(url)

    def _keep_apart(self, fence: Fence) -> None:
        isolation = self.settings.isolation
        self._begin = {(lock, e): fence.begin(lock, isolation, None, e) for lock in Lock if lock for e in Entry}
        self.fence = fence  # last: who sees it has what goes with it

    def begin_with(self, lock: Lock, entry: Entry) -> bytes:
        """What begins a unit of work; each flip is more patient than the one before that did not come through."""
        if lock is Lock.NONE:
            return _READ
        if lock is not Lock.FLIP:
            return self._begin[lock, entry]
        self.flips += 1
        patience = min(FLIP_PATIENCE * 2 ** (self.flips - 1), MOST_PATIENCE)
        return self.fence.begin(lock, self.settings.isolation, patience)

    def lock_rows(self, connection: ServerConnection, refused: psycopg.Error) -> None:
        """Let the fence be a lock on a row from now on, where the server has no locks on tables.

        Args:
            connection: In no transaction.
            refused: What it said to a lock on a table.

        Raises:
            MigrationError: It takes some of the locks on tables. Programs would then use different fences.
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
        self.entry = Entry.PREPARED

    def connect(self) -> Any:
        """Open a connection.

        Raises:
            psycopg.OperationalError: The server cannot be reached, or refuses.
        """
        arguments: dict[str, Any] = {"application_name": "consensus_orm", "connect_timeout": 10, **self._arguments}
        connection = ServerConnection.connect(**arguments, autocommit=True)
        connection.source = self
        connection.prepared_max = PREPARED
        connection.last_used = time.monotonic()
        milliseconds = int(self.patience * 1000)
        # A plan made for the values at hand costs more than it brings: ours find their rows by keys.
        # What looks at ranges of keys says otherwise for its transaction.
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute(f"SET lock_timeout = {milliseconds}; {AS_WRITTEN}")
        # A temporary table of one of our names would take the place of ours.
        path = "set_config('search_path', current_setting('search_path') || ', pg_temp', false)"
        with contextlib.suppress(psycopg.errors.UndefinedTable):
            began: Any = connection.execute("SELECT stats_reset FROM pg_stat_bgwriter")
            connection.server_since = began.fetchone()[0]
        connection.execute(f"SELECT {path}")
        self.connections.add(connection)
        return connection

    def is_healthy(self, connection: ServerConnection) -> bool:
        """Whether a connection is open and idle; one that the server has closed has something to say."""
        if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return not poll.poll(0)

    def translate(self, error: BaseException, database: str | None) -> errors.ConsensusError | None:
        """Say in our words what the server said in its; None where it did not raise the error."""
        return translate(error, database) if isinstance(error, psycopg.Error) else None

    def take_back(self, connection: ServerConnection) -> None:
        """Nothing: a connection that is idle and healthy can be lent."""

    def has_committed(self, transaction: str, since: Any, cause: BaseException) -> bool:
        """Ask the server how a transaction ended whose connection was lost at its commit.

        A server that crashed gives the numbers again that were lost with it. So "committed" may then be said of
        another transaction, while what was not committed under a number never was.

        Args:
            transaction: Its number; '' where it had none.
            since: The `server_since` of its connection.
            cause: How the connection was lost.

        Returns:
            Whether it was committed.

        Raises:
            CommitUncertainError: Nobody could say in time, or the server has crashed and says "committed", or does
                not tell.
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

    def _status(self, transaction: str, since: Any) -> tuple[str | None, bool]:
        connection = self.connect()
        try:
            (status,) = connection.execute("SELECT pg_xact_status(CAST(? AS xid8))", (transaction,)).fetchone()
        except psycopg.errors.InvalidParameterValue:  # a number still to come: it was lost, and with it all of it
            status = "aborted"
        finally:
            connection.close()
        return status, since is not None and connection.server_since == since
