"""The guard of a session: a statement that would write a mapped table is refused (rule 10).

Each kind of database refuses it by its own means. Common to both are the record of a session's savepoints, and the
errors for what was refused.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import Any, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine, ExceptionContext, event

from consensus_orm import errors
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side

__all__ = ["SessionGuard", "require_transaction"]

T = TypeVar("T")

_HEARD: WeakSet[Engine] = WeakSet()
"""Engines with the listeners of this module. `event.contains` uses the id of an engine, which a later one may reuse."""


def require_transaction(driver: Any) -> None:
    """Refuse to continue if the database has ended the transaction: later statements would be committed one by one.

    Args:
        driver: The connection of a unit of work.

    Raises:
        StorageError: The transaction has ended, or can only be rolled back.
    """
    if not driver.in_transaction:
        raise errors.StorageError(
            "the database ended the transaction of this unit of work",
            hint="nothing of it was kept; RAISE(ROLLBACK) or a full disk does that, on a server any error",
        )


class SessionGuard(ABC):
    """Records the savepoints of a session, and gives the errors for refused statements.

    Args:
        mapping: The moves, whose tables are guarded.
        sides: The sides whose tables the session may write, because they are carried; it must not read the other one.
        read_only: Whether the unit of work refuses every write.
    """

    def __init__(self, mapping: Moves, sides: Collection[Side], *, read_only: bool) -> None:
        self.read_only = read_only
        self.written = frozenset[str]().union(*(mapping.tables(side) for side in sides))
        """The tables that the session may write, in small letters."""
        self.hidden = frozenset[str]().union(*(mapping.tables(side) for side in Side if sides and side not in sides))
        """The tables that the session must not even read, because nothing writes them any more, or not yet."""
        self._instead = [*sides]
        self._carrying = False
        self.before: Callable[[Any], object] = _nothing
        """Called with the context of a statement of the session before it is executed."""
        self.after: Callable[[Any], object] = _nothing
        """Called with it afterwards."""
        self.undone = False
        """Whether the session rolled back rows that the repositories had written."""
        self._info: dict[Any, Any] = {}
        self._unnamed = count(1)
        self._savepoints: list[str | None] = []
        self._dirty: set[str | None] = set()

    def watch(self, connection: Connection) -> None:
        """Listen to the errors of a session's connection, and to its savepoints."""
        self._info = connection.info
        self._info[__name__] = self
        if connection.engine not in _HEARD:  # once: to listen to each connection costs more than a statement
            _HEARD.add(connection.engine)
            event.listen(connection.engine, "before_cursor_execute", _before)
            event.listen(connection.engine, "after_cursor_execute", _after)
            event.listen(connection.engine, "handle_error", _explain, retval=True)
            event.listen(connection.engine, "savepoint", lambda of, name: _follow(of, "BEGIN", name))
            event.listen(connection.engine, "rollback_savepoint", lambda of, name, _: _follow(of, "ROLLBACK", name))
            event.listen(connection.engine, "release_savepoint", lambda of, name, _: _follow(of, "RELEASE", name))

    @contextlib.contextmanager
    def carrying(self) -> Iterator[None]:
        """Execute statements of this package in a block that completes what the session itself has written.

        A rollback of the session takes them back together with its own statements, and nothing is lost by that.
        """
        self._carrying = True
        try:
            yield
        finally:
            self._carrying = False

    def refusal(self, table: str, *, of_rows: bool = True) -> errors.ConsensusError:
        """The error for a statement that would write a table, or read one that is not written in this phase.

        Args:
            table: Its name.
            of_rows: Whether it would read or write rows, or else change the table itself.
        """
        if of_rows and table.lower() in self.hidden:
            return errors.WrongPhaseError(
                f"{table} is not written in this phase, so it is not read either",
                hint=f"use the class of the {self._instead[0]} side: uow.model(MOVE)",
            )
        return errors.UnmirroredWriteError(
            f"a statement of the session would write {table} past the repositories", table=table
        )

    @abstractmethod
    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call that executes a statement of this package, which may write mapped tables.

        Args:
            call: Executes one statement.
            writes: Whether it may change rows.
        """

    @abstractmethod
    def lift(self) -> None:
        """Accept every statement again, because the unit of work ends its transaction."""

    @abstractmethod
    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """The error of this package for a refused statement; None for any other error."""

    def forget(self) -> None:
        """Listen to errors no more."""
        self._info.pop(__name__, None)

    def wrote(self, writes: bool) -> None:
        """Remember that the repositories may have written within the innermost savepoint."""
        if writes and self._savepoints and not self._carrying:
            self._dirty.add(self._savepoints[-1])

    def follow(self, what: str | None, name: str | None) -> None:
        """Record which savepoints contain rows that the repositories wrote.

        Args:
            what: BEGIN, ROLLBACK or RELEASE.
            name: The savepoint; None for the next one to which SQLAlchemy gives a number.
        """
        if what == "BEGIN":
            self._savepoints.append(name or f"sa_savepoint_{next(self._unnamed)}")
            return
        at = self._savepoints.index(name) if name in self._savepoints else 0
        inner = self._savepoints[at:]
        dirty = not self._dirty.isdisjoint(inner)
        self._dirty.difference_update(inner)
        if what == "ROLLBACK":  # the savepoint itself stays
            self.undone = self.undone or dirty
            at += 1
        del self._savepoints[at:]
        if what == "RELEASE" and dirty and self._savepoints:
            self._dirty.add(self._savepoints[-1])


def _nothing(_: Any) -> None:
    """Nothing is to be done."""


def _before(connection: Connection, _: Any, statement: str, __: Any, context: Any, *___: Any) -> None:
    """Refuse a statement after the end of the transaction, and tell the guard of any other."""
    guard = connection.info.get(__name__)
    if not isinstance(guard, SessionGuard):
        return
    # On a server a failed statement ends the transaction until the session rolls back to a savepoint.
    if not (statement.startswith("ROLLBACK TO") and connection.dialect.name == "postgresql"):
        require_transaction(connection.connection.driver_connection)
    guard.before(context)


def _after(connection: Connection, _: Any, __: Any, ___: Any, context: Any, *____: Any) -> None:
    guard = connection.info.get(__name__)
    if isinstance(guard, SessionGuard):
        guard.after(context)


def _follow(connection: Connection, what: str, name: str | None) -> None:
    guard = connection.info.get(__name__)
    if isinstance(guard, SessionGuard):
        guard.follow(what, name)


def _explain(context: ExceptionContext) -> BaseException | None:
    """Replace the error of a refused statement; None leaves any other error as it is."""
    guard = context.connection.info.get(__name__) if context.connection is not None else None
    return guard.error(context.original_exception) if isinstance(guard, SessionGuard) else None
