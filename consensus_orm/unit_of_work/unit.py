"""The unit of work: one session, one transaction, one phase.

It reads the phase inside its own transaction and keeps it to its end. A writing one holds the write lock from its
first statement, and a change of phase needs that lock too: this is the fence. So no process writes under a phase that
is over.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Self, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases.base import Catalog, Transaction
from consensus_orm.databases.driver import Driver
from consensus_orm.databases.engine import translate
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.opening import catalog
from consensus_orm.databases.session_guard import SessionGuard, transaction_ended
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import guards, reads
from consensus_orm.phase import Side
from consensus_orm.settings import Settings
from consensus_orm.statements.pairs import Statements

__all__ = ["Committing", "UnitHooks", "UnitOfWork", "Written"]

log = logging.getLogger("consensus_orm")


Written: TypeAlias = dict[str, dict[Any, tuple[Any, ...] | None]]
"""Keys of rows in the order in which they were written, each once, by the name of their pair; each with the row as it
is stored under its legacy names, where the write has read it."""

Committing: TypeAlias = "Callable[[UnitOfWork, Written], Sequence[tuple[str, Any]]]"


@dataclass(frozen=True)
class UnitHooks:
    """What a unit of work calls when it begins, before it commits, and when it has ended.

    Attributes:
        committing: Before the commit of a unit that wrote rows through the repositories, with the keys of these rows
            by the name of their pair; what it writes is part of the transaction, and its error rolls all of it back.
            The statements that it returns, with their parameters, are sent with the commit.
        following: Whether that has something to do now, of which a unit asks where finding the rows takes long.
        prepare: Before a writing unit begins; brings the schema up to date where it is not.
        begin_elsewhere: Begins the unit on another server, and returns whether it has.
        released: When the unit has returned its connection, however it ended.
        alarmed: After a commit, with the reason of the alarm that its mismatches set off.
        doubted: After the end, with the keys of rows by the name of their pair that a shadow read found to differ.
    """

    committing: Committing | None = None
    following: Callable[[Transaction], bool] | None = None
    prepare: Callable[[], object] | None = None
    begin_elsewhere: Callable[[Transaction], bool] | None = None
    released: Callable[[], object] | None = None
    alarmed: Callable[[str], object] | None = None
    doubted: Callable[[dict[str, set[Any]]], object] | None = None


NO_HOOKS = UnitHooks()


class UnitOfWork(Transaction):
    """Everything done between a begin and a commit; commits on success, rolls back on any exception.

    Args:
        engine: Where connections come from.
        statements: The statements of the moves.
        settings: Policies and the clock.
        hooks: Called when it begins and when it has ended.
        read_only: See one snapshot, take no lock, and let the database refuse writes.
        lock: Which lock a writing one takes when it begins.
        durable: Make its commit, and all before it, reach the disk, whatever the settings say.
        readable: Whether a database without our tables may be read as it is: it holds legacy rows or nothing.
        whole: Whether to fail where the row security of a server would leave rows out of an answer.
    """

    def __init__(
        self,
        engine: Engine,
        statements: Statements,
        settings: Settings,
        hooks: UnitHooks = NO_HOOKS,
        *,
        read_only: bool = False,
        lock: Lock = Lock.WRITE,
        durable: bool = False,
        readable: bool = True,
        whole: bool = False,
    ) -> None:
        super().__init__(
            engine,
            statements,
            settings,
            read_only=read_only,
            lock=lock,
            durable=durable,
            readable=readable,
            whole=whole,
        )
        self._hooks = hooks
        self._entered = False
        self._after_commit: list[Callable[[], object]] = []
        self._written: Written = {}

    def __repr__(self) -> str:
        state = "ended" if self._entered else "not begun"
        if self._driver is not None:
            state = "not prepared" if self._phase is None else self._phase.name
        return f"<{type(self).__name__} of {self.engine.url.database}: {state}>"

    # Begin and end --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._entered:  # its session and callbacks are those of the first time
            raise errors.UnitOfWorkClosedError("a unit of work is entered once")
        self._entered = True
        self.started = self.settings.clock()
        if not self.read_only and self._hooks.prepare is not None:
            self._hooks.prepare()
        if self._hooks.begin_elsewhere is None or not self._hooks.begin_elsewhere(self):
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        committed = False
        try:
            if error is None:
                self._commit()
                committed = True
            elif self._counts_reads and self._driver is not None and self._driver.in_transaction:
                with contextlib.suppress(errors.StorageError):  # the connection may be what failed
                    reads.expect(self)
        finally:
            self._release()
            if self._counts_reads:
                self.catalog.tell_reads(self)
            if self._hooks.released is not None:
                self._hooks.released()
            # An error of the database is translated; one of a file, which the caller may have opened, is not.
            mine = None if error is None or isinstance(error, OSError) else translate(error, self.engine)
            if mine is not None:
                raise mine from error
        self._run(self._after_commit if committed else [])
        if committed and self._alarm is not None and self._hooks.alarmed is not None:
            self._run([partial(self._hooks.alarmed, self._alarm)])
        if self._doubtful and self._hooks.doubted is not None:
            self._run([partial(self._hooks.doubted, self._doubtful)])

    @property
    def _counts_reads(self) -> bool:
        """Whether it may read frozen tables, in a database that counts who reads them."""
        return self._whole and self.catalog.counts_reads

    def _commit(self) -> None:
        if self._doomed is not None:
            raise self._doomed  # the caller caught it; committing now would keep half of a write
        if self._guard is not None:
            self._commit_session(self._guard)
        driver = self._connected
        if not driver.in_transaction:
            raise transaction_ended()
        last: Sequence[tuple[str, Any]] = ()
        if self._written and self._hooks.committing is not None:
            last = self._hooks.committing(self, self._written)
        if self._counts_reads:
            reads.note(self)
        try:
            self._commit_transaction(driver, *last)
        except driver.Error as error:
            raise (self._missing(error) or translate(error, self.engine) or error) from error

    def _commit_transaction(self, driver: Driver, *last: tuple[str, Any]) -> None:
        driver.commit(*last)

    def _commit_session(self, guard: SessionGuard) -> None:
        self._end_session(self.session)
        guard.lift()
        if guard.undone:
            raise errors.StorageError(
                "a rollback of the session took back rows that the repositories had written",
                hint="nothing of this unit of work was kept; call session.commit() before writing with a repository",
            )

    def _release(self) -> None:
        guard, driver = self._guard, self._driver
        try:
            # The session refers to the unit: without the way back, no cycle waits for the garbage collector.
            if (session := vars(self).pop("session", None)) is not None:
                with contextlib.suppress(DBAPIError):  # what it had not committed goes with the transaction
                    session.close()
            if guard is not None and driver is not None:
                guard.lift()
        finally:
            super()._release()

    def _notice_schema(self) -> None:
        guards.notice(self)

    def _missing(self, error: Exception) -> errors.TableMissingError | None:
        if self._phase is None or not self._connected.is_missing_table(error):
            return None
        return guards.missing_table(self, error)

    def __del__(self) -> None:
        if self._pooled is not None:  # its block was never left
            self._release()

    def _run(self, callbacks: list[Callable[[], object]]) -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                # The unit of work is over; an error raised now would say that it failed.
                log.exception("a callback failed after the unit of work had ended")

    @property
    def _tells_written(self) -> bool:
        """Whether it tells a hook which rows it wrote."""
        return self._hooks.committing is not None

    @cached_property
    def _is_followed(self) -> bool:
        """Whether that hook has something to do with the rows now."""
        return self._hooks.following is not None and self._hooks.following(self)

    def _note_written(self, pair: Move, keys: Iterable[Any], row: tuple[Any, ...] | None = None) -> None:
        """Tell the hook before the commit of rows whose source of truth was written.

        Args:
            pair: Their pair.
            keys: Their keys.
            row: The only one, as it was read after the write.
        """
        if self._tells_written and (written := dict.fromkeys(keys, row)):
            self._written.setdefault(pair.name, {}).update(written)

    # What a unit of work knows --------------------------------------------------------------------------

    def on_commit(self, callback: Callable[[], object]) -> None:
        """Call a function after the commit, and only then: the database first, memory second.

        Args:
            callback: Called without arguments, in the order of registration, outside the transaction. An
                error it raises is logged: the unit of work has succeeded by then.
        """
        self._after_commit.append(check.callback("callback", callback))

    @cached_property
    def catalog(self) -> Catalog:  # pyright: ignore[reportIncompatibleMethodOverride] # never set, only kept
        """The catalog of this kind of database."""
        return catalog(self.statements.rendering.name)

    # The session ----------------------------------------------------------------------------------------

    @cached_property
    def session(self) -> Session:
        """The SQLAlchemy session of this unit of work, in its transaction.

        Tables of your own are read and written with it as ever. Of the mapped tables it may use those of the sides
        that the phase writes, and what it writes there is carried to the other side and compared; the other ones are
        refused. Its commit and rollback reach as far as a savepoint; the unit of work itself ends with its block.
        """
        driver = self._connected
        self._guard = driver.guard(self.statements.moves, self._open_to_session(), read_only=self.read_only)
        return self._new_session(Connection(self.engine, connection=self._pooled), self._guard)

    def _end_session(self, session: Session) -> None:
        session.commit()

    def _open_to_session(self) -> tuple[Side, ...]:
        """The sides whose tables its session may write; it may not read the other, where there is one."""
        return ()

    def _new_session(self, connection: Connection, guard: SessionGuard) -> Session:
        return Session(bind=connection)
