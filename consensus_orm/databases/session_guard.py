"""The guard of a session: a statement that would write a mapped table is refused (rule 10).

Each kind of database refuses it by its own means. Common to both are the record of a session's savepoints, and the
errors for what was refused.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from functools import cache, partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, ExceptionContext, event

from consensus_orm import errors
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side

__all__ = ["SessionGuard", "listen", "transaction_ended"]

T = TypeVar("T")

SESSION = "consensus_orm_session"
"""The savepoint that is the transaction of a session."""

CARRYING = "consensus_orm_carrying"
"""The savepoint before what a session has written is carried."""

_SAVEPOINTS = {
    "do_savepoint": ("BEGIN", "SAVEPOINT"),
    "do_rollback_to_savepoint": ("ROLLBACK", "ROLLBACK TO SAVEPOINT"),
    "do_release_savepoint": ("RELEASE", "RELEASE SAVEPOINT"),
}
"""What a dialect does with savepoints: what `SessionGuard.follow` calls it, and its command."""

_TRANSACTIONS = {
    "do_begin": ("do_savepoint",),
    "do_rollback": ("do_rollback_to_savepoint", "do_release_savepoint"),
    "do_commit": ("do_release_savepoint",),
}
"""What a dialect does with transactions, and what that is for a session."""


def transaction_ended() -> errors.StorageError:
    """The error for a unit of work whose transaction the database has ended, or can only roll back.

    Later statements would be committed one by one.
    """
    return errors.StorageError(
        "the database ended the transaction of this unit of work",
        hint="nothing of it was kept; RAISE(ROLLBACK) or a full disk does that, on a server any error",
    )


class SessionGuard(ABC):
    """Records the savepoints of a session, and gives the errors for refused statements.

    Args:
        moves: The moves, whose tables are guarded.
        driver: The connection to guard.
        sides: The sides whose tables the session may write, because they are carried; it must not read the other one.
        read_only: Whether the unit of work refuses every write.
    """

    def __init__(self, moves: Moves, driver: Any, sides: Collection[Side], *, read_only: bool) -> None:
        self.read_only = read_only
        self.written, self.hidden = _open_and_hidden(moves, tuple(sides))
        """The tables that the session may write, in small letters, and those that it must not even read, because
        nothing writes them any more, or not yet."""
        self._instead = [*sides]
        self.carries = False
        """Whether statements of this package complete what the session itself has written."""
        self.before: Callable[[Any], object] = _nothing
        """Called with the context of a statement of the session before it is executed."""
        self.after: Callable[[Any], object] = _nothing
        """Called with it afterwards."""
        self.ends = False
        """Whether the unit of work commits next, which releases the savepoint of the session, too."""
        self.undone = False
        """Whether the session rolled back rows that the repositories had written."""
        self._savepoints: list[str | None] = []
        self._dirty: set[str | None] = set()
        self._driver = driver

    @contextlib.contextmanager
    def carrying(self, *, undoable: bool = False) -> Iterator[None]:
        """Execute statements of this package in a block that completes what the session itself has written.

        A rollback of the session takes them back together with its own statements, and nothing is lost by that.

        Args:
            undoable: Whether `undo_carrying` may be called in the block.
        """
        self.carries = True
        try:
            yield
        finally:
            self.carries = False

    @abstractmethod
    def undo_carrying(self) -> bool:
        """Take back what the block has done so far, after a statement of it failed; whether that is possible."""

    def attempt(self) -> contextlib.AbstractContextManager[None]:
        """Take back what a block has done if one of its statements fails."""
        attempt: contextlib.AbstractContextManager[None] = self._driver.attempt()
        return attempt

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

    def execute(self, execute: Callable[..., None], cursor: Any, statement: str, *others: Any) -> None:
        """Execute a statement of the session.

        Args:
            execute: The method of the dialect that does it.
            cursor: The first argument of the method.
            statement: The second one.
            *others: The other ones.
        """
        execute(cursor, statement, *others)

    @abstractmethod
    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call that executes a statement of this package, which may write mapped tables.

        Args:
            call: Executes one statement.
            writes: Whether it may change rows.
        """

    def lift(self) -> None:
        """Accept every statement again, because the unit of work ends its transaction."""
        self._driver.session_guard = None
        self.before = self.after = _nothing  # they are methods of the session, which refers to its guard

    @abstractmethod
    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """The error of this package for a refused statement; None for any other error."""

    def wrote(self, writes: bool) -> None:
        """Remember that the repositories may have written within the innermost savepoint."""
        if writes and self._savepoints:
            self._dirty.add(self._savepoints[-1])

    def follow(self, what: str | None, name: str | None) -> None:
        """Record which savepoints contain rows that the repositories wrote.

        Args:
            what: BEGIN, ROLLBACK or RELEASE.
            name: The savepoint.
        """
        if what == "BEGIN":
            self._savepoints.append(name)
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


@cache
def _open_and_hidden(moves: Moves, sides: tuple[Side, ...]) -> tuple[frozenset[str], frozenset[str]]:
    written = frozenset[str]().union(*(moves.tables(side) for side in sides))
    hidden = frozenset[str]().union(*(moves.tables(side) for side in Side if sides and side not in sides))
    return written, hidden


def _nothing(_: Any) -> None:
    """Nothing is to be done."""


def listen(engine: Engine) -> None:
    """Tell the guards of an engine's connections of the statements, savepoints and errors of a session.

    The transaction of a session is a savepoint in that of its unit of work. Listeners of the engine itself would cost
    60 us a transaction, and SQLAlchemy's own savepoints, which are compiled each time, 100 us (measured).
    """
    dialect: Any = engine.dialect  # this one, not its class
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        event.listen(engine, name, partial(_execute, getattr(dialect, name)))
    event.listen(engine, "handle_error", _explain, retval=True)
    for name, what in _SAVEPOINTS.items():
        setattr(dialect, name, partial(_on_savepoint, getattr(dialect, name), *what))
    for name, of_session in _TRANSACTIONS.items():
        setattr(dialect, name, partial(_on_transaction, getattr(dialect, name), of_session))


def _execute(execute: Callable[..., None], cursor: Any, *what: Any) -> bool:
    """Execute a statement of a session; False leaves any other one to SQLAlchemy."""
    guard: SessionGuard | None = cursor.connection.session_guard
    if guard is None:
        return False
    statement, context = what[0], what[-1]
    # On a server a failed statement ends the transaction until the session rolls back to a savepoint.
    ends_failure = statement.startswith("ROLLBACK TO") and context.dialect.name == "postgresql"
    if not (ends_failure or cursor.connection.in_transaction):
        raise transaction_ended()
    guard.before(context)
    guard.execute(execute, cursor, *what)
    guard.after(context)
    return True


def _on_savepoint(
    compiled: Callable[[Connection, str], object], what: str, command: str, connection: Connection, name: str
) -> None:
    """Send a command on a savepoint; where it fails SQLAlchemy sends it, and explains the error."""
    driver: Any = connection.connection.driver_connection
    if driver.session_guard is not None:
        driver.session_guard.follow(what, name)
    if driver.in_transaction:
        with contextlib.suppress(driver.Error):
            driver.savepoint(f"{command} {name}")
            return
    compiled(connection, name)


def _on_transaction(of_driver: Callable[[Any], object], of_session: tuple[str, ...], connection: Any) -> None:
    """Begin, commit or roll back the transaction of a session, or any other one."""
    driver = connection.driver_connection
    guard: SessionGuard | None = driver.session_guard
    if guard is None:
        of_driver(connection)
        return
    for name in of_session:
        what, command = _SAVEPOINTS[name]
        if what == "RELEASE" and guard.ends:
            continue  # the commit of the unit of work does it
        if what != "ROLLBACK" and not driver.in_transaction:
            raise transaction_ended()
        guard.follow(what, SESSION)
        driver.savepoint(f"{command} {SESSION}")


def _explain(context: ExceptionContext) -> BaseException | None:
    """Replace the error of a refused statement; None leaves any other error as it is."""
    connection = context.connection
    if connection is None or connection.invalidated:
        return None
    driver: Any = connection.connection.driver_connection
    return None if driver.session_guard is None else driver.session_guard.error(context.original_exception)
