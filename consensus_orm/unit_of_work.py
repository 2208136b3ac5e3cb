"""The unit of work: one session, one transaction, one phase.

It reads the phase inside its own transaction and keeps it to its end. A writing one holds the write lock from
its first statement, and a change of phase needs that lock too: this is the fence. No write is ever made under
a phase that is over, in any process.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection

from consensus_orm import errors, phase_guards
from consensus_orm import validation as check
from consensus_orm.catalog import Catalog, catalog
from consensus_orm.driver import Cursor, Driver, Parameters
from consensus_orm.engine import borrow, translate, translated
from consensus_orm.expressions import time_text
from consensus_orm.guard import Guard, require_transaction
from consensus_orm.lock import Lock
from consensus_orm.mapping import Pair
from consensus_orm.phase import Phase
from consensus_orm.settings import Settings
from consensus_orm.statements import Statements
from consensus_orm.telemetry.events import Event
from consensus_orm.telemetry.hub import log_event

__all__ = ["UnitOfWork"]

log = logging.getLogger("consensus_orm")

WRITES = ("INSERT", "UPDATE", "DELETE", "ALTER")
"""How statements of ours begin that write rows."""

_lent: set[PoolProxiedConnection] = set()
"""Connections of units at work, kept from garbage collection: from a generator that is garbage it would first take the
connection, which the pool lends to somebody else, and then end the generator, which takes that one's writes back."""


class UnitOfWork:
    """Everything done between a begin and a commit; commits on success, rolls back on any exception.

    Args:
        engine: Where connections come from.
        statements: The statements of the mapping.
        settings: Policies and the clock.
        read_only: See one snapshot, take no lock, and let the database refuse writes.
        prepare: Called before a writing unit begins; brings the schema up to date where it is not.
        readable: Whether a database without our tables may be read as it is: it holds legacy rows or nothing.
    """

    _pooled: PoolProxiedConnection | None = None

    def __init__(
        self,
        engine: Engine,
        statements: Statements,
        settings: Settings,
        *,
        read_only: bool = False,
        prepare: Callable[[], object] | None = None,
        readable: bool = True,
    ) -> None:
        self.engine = engine
        self.statements = statements
        self.settings = settings
        self.read_only = read_only
        self.lock = Lock.NONE if read_only else Lock.WRITE
        self.durable = False
        self._prepare = prepare
        self._readable = readable
        self._entered = False
        self._elsewhere: Callable[[UnitOfWork], bool] | None = None
        self._driver: Driver | None = None
        self._phase: Phase | None = None
        self._epoch = 0
        self._guard: Guard | None = None
        self._doomed: BaseException | None = None
        self._after_commit: list[Callable[[], object]] = []
        self._alarm: str | None = None
        self._on_alarm: Callable[[str], object] | None = None
        self._doubtful: dict[str, set[Any]] = {}
        self._on_doubt: Callable[[dict[str, set[Any]]], object] | None = None

    # Begin and end --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._entered:  # its session and callbacks are those of the first time
            raise errors.UnitOfWorkClosedError("a unit of work is entered once")
        self._entered = True
        self.started = self.settings.clock()
        if not self.read_only and self._prepare is not None:
            self._prepare()
        if self._elsewhere is None or not self._elsewhere(self):
            self._open()
        return self

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
        self._pooled = borrow(self.engine, write=not self.read_only)
        _lent.add(self._pooled)

    def _begin(self) -> None:
        assert self._pooled is not None
        driver: Any = self._pooled.driver_connection
        assert driver is not None
        try:
            driver.begin_unit(self.lock, durable=self.durable or self.lock is Lock.FLIP)
        except BaseException:
            self._release()
            raise
        self._driver = driver

    def _read_phase(self) -> None:
        """Read the phase within this transaction; there is none where the database does not have our tables."""
        with translated(self.engine):
            row = self._connected.read_phase()
        if row is not None:
            self._phase, self._epoch = Phase(row[0]), row[1]
            if len(row) > 2 and row[2] != row[3]:
                phase_guards.notice(self)
        elif not (self.read_only and self._readable):
            self.phase  # noqa: B018 - raises

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        committed = False
        try:
            if error is None:
                self._commit()
                committed = True
        finally:
            self._release()
            # A unit that failed for a reason the database gave says so in our words; files are others' to speak of.
            mine = None if error is None or isinstance(error, OSError) else translate(error, self.engine)
            if mine is not None:
                raise mine from error
        self._run(self._after_commit if committed else [])
        if committed and self._alarm is not None and self._on_alarm is not None:
            reason, answer = self._alarm, self._on_alarm
            self._run([lambda: answer(reason)])
        if self._doubtful and self._on_doubt is not None:
            doubted, confirm = self._doubtful, self._on_doubt
            self._run([lambda: confirm(doubted)])

    def _commit(self) -> None:
        if self._doomed is not None:
            raise self._doomed  # somebody caught it; committing now would keep half of a write
        if self._guard is not None:
            self._commit_session(self._guard)
        driver = self._connected
        require_transaction(driver)
        with translated(self.engine):
            self._commit_transaction(driver)

    def _commit_transaction(self, driver: Driver) -> None:
        driver.commit()

    def _commit_session(self, guard: Guard) -> None:
        self.session.commit()
        guard.lift()
        if guard.undone:
            raise errors.StorageError(
                "a rollback of the session took back rows that the repositories had written",
                hint="nothing of this unit of work was kept; call session.commit() before writing with a repository",
            )

    def _release(self) -> None:
        pooled, self._pooled = self._pooled, None
        driver, self._driver = self._driver, None
        try:
            if (session := self.__dict__.get("session")) is not None:
                with contextlib.suppress(DBAPIError):  # what it had not committed goes with the transaction
                    session.close()
            if self._guard is not None and driver is not None:
                self._guard.lift()
        finally:
            if pooled is not None:
                _lent.discard(pooled)
                pooled.close()  # rolls back whatever is still open

    def __del__(self) -> None:
        if self._pooled is not None:  # nobody ended it
            self._release()

    def _run(self, callbacks: list[Callable[[], object]]) -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                # The unit of work is over; an error raised now would say that it failed.
                log.exception("a callback failed after the unit of work had ended")

    # What a unit of work knows --------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The phase of this unit of work, the same from its begin to its end.

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

    def on_commit(self, callback: Callable[[], object]) -> None:
        """Call something after the commit, and only then: the database first, memory second.

        Args:
            callback: Called without arguments, in the order of registration, outside the transaction. An
                error it raises is logged: the unit of work has succeeded by then.
        """
        self._after_commit.append(check.callback("callback", callback))

    def _doom(self, error: BaseException) -> None:
        """Refuse to commit, for the reason given: one side may have taken what the other did not."""
        self._doomed = self._doomed or error

    def _doubt(self, pair: Pair, keys: set[Any]) -> None:
        """Have rows compared again, under the lock, after this unit of work."""
        self._doubtful.setdefault(pair.name, set()).update(keys)

    def _tell(self, event: Event) -> None:
        """Tell what happened: to the log alone, where nobody else listens (`consensus_orm.telemetry`)."""
        log_event(event)

    @property
    def catalog(self) -> Catalog:
        """What only the catalog of this kind of database knows."""
        return catalog(self.statements.words.name)

    # The session ----------------------------------------------------------------------------------------

    @cached_property
    def session(self) -> Session:
        """The SQLAlchemy session of this unit of work, in its transaction.

        Mapped entities can be queried with it, and tables of your own written. Writes to a mapped side are
        refused by the database with `UnmirroredWriteError`, however they are sent. Its commit and rollback
        reach as far as a savepoint; the unit of work itself ends with its block.
        """
        connection = Connection(self.engine, connection=self._pooled)
        connection.begin()
        self._guard = self._connected.guard(self.statements.mapping, read_only=self.read_only)
        self._guard.watch(connection)
        return Session(bind=connection, join_transaction_mode="create_savepoint")

    # Statements of this package -------------------------------------------------------------------------

    @property
    def _connected(self) -> Driver:
        if self._driver is None:
            raise errors.UnitOfWorkClosedError
        return self._driver

    def _execute(self, sql: str, parameters: Parameters = ()) -> Cursor:
        """Run one of our own statements; text that is no UTF-8 is bound as its bytes."""
        driver = self._connected
        if sql.startswith(WRITES):
            self._refuse_to_read_only()
        if self._guard is not None:
            call = partial(self._execute_on, driver, sql, parameters)
            return self._guard.let(call, writes=not sql.startswith("SELECT"))
        return self._execute_on(driver, sql, parameters)

    def _refuse_to_read_only(self) -> None:
        """Say that this unit cannot write: the database would, but after that a server lets nobody read on."""
        if self.read_only and self._driver is not None:
            raise errors.ReadOnlyUnitOfWorkError

    def _execute_on(self, driver: Driver, sql: str, parameters: Parameters) -> Cursor:
        require_transaction(driver)
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
        if self._phase is None or not self._connected.is_missing_table(error):
            return None
        return phase_guards.missing_table(self, error)

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

    def _rows(self, sql: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement, as stored: text that is no UTF-8 comes with its bytes escaped."""
        driver = self._connected
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
