"""The guard of a session: nothing it sends reaches a mapped side around the mapping (rule 10).

SQLite itself asks the guard, whenever a statement is prepared: the ORM's, Core's, or text. So no way of
writing has to be known here, only what a statement would touch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine, ExceptionContext, event

from consensus_orm import errors
from consensus_orm.declaration.pairs import Mapping

if TYPE_CHECKING:
    from consensus_orm.databases.sqlite.connection import DriverConnection

__all__ = ["FileGuard", "Guard", "require_transaction"]

T = TypeVar("T")

OURS = "consensus_orm_"
"""How the names of our own tables and triggers begin."""

_NAMED_FIRST = {
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_DROP_TABLE,
    sqlite3.SQLITE_DROP_VIEW,
    # A table or view of one of our names, temporary ones first of all, would take the place of ours.
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_TEMP_TABLE,
    sqlite3.SQLITE_CREATE_VIEW,
    sqlite3.SQLITE_CREATE_TEMP_VIEW,
}
_NAMED_SECOND = {
    sqlite3.SQLITE_ALTER_TABLE,
    sqlite3.SQLITE_CREATE_TRIGGER,
    sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
    sqlite3.SQLITE_DROP_TRIGGER,
    sqlite3.SQLITE_DROP_TEMP_TRIGGER,
    sqlite3.SQLITE_DROP_INDEX,
}
"""Actions on a table, by the argument that names it."""

_EXPLAINED: WeakSet[Engine] = WeakSet()
"""Engines whose errors are explained. `event.contains` knows them by their id, which a later engine may have again."""

_TRIGGERS = "SELECT name FROM consensus_orm_guards WHERE kind = 'trigger'"
"""Names of our own triggers: they may write what a session may not."""

_PRAGMAS = {"query_only", "writable_schema", "foreign_keys", "ignore_check_constraints", "recursive_triggers"}
"""Pragmas by which a statement would get past what the unit of work relies on."""


def require_transaction(driver: Any) -> None:
    """Refuse to go on where the database has ended the transaction: what is written then would stay by itself.

    Args:
        driver: The connection of a unit of work.

    Raises:
        StorageError: It has none any more, or one that can only be rolled back.
    """
    if not driver.in_transaction:
        raise errors.StorageError(
            "the database ended the transaction of this unit of work",
            hint="nothing of it was kept; RAISE(ROLLBACK) or a full disk does that, on a server any error",
        )


class Guard:
    """Keeps account of a session's savepoints, and explains what was refused.

    Args:
        read_only: Whether nothing may be written at all.
    """

    def __init__(self, *, read_only: bool) -> None:
        self.read_only = read_only
        self.undone = False
        """Whether the session rolled back rows that the repositories had written."""
        self._info: dict[Any, Any] = {}
        self._savepoints: list[str | None] = []
        self._dirty: set[str | None] = set()

    def watch(self, connection: Connection) -> None:
        """Explain the errors of a session's connection."""
        self._info = connection.info
        self._info[__name__] = self
        driver: Any = connection.connection.driver_connection

        def require(connection: Connection, _: Any, statement: str, *__: Any) -> None:
            # On a server a statement that failed ends the transaction, until the session goes back to its savepoint.
            if not (statement.startswith("ROLLBACK TO") and connection.dialect.name == "postgresql"):
                require_transaction(driver)

        event.listen(connection, "before_cursor_execute", require)
        if connection.engine not in _EXPLAINED:
            _EXPLAINED.add(connection.engine)
            event.listen(connection.engine, "handle_error", _explain, retval=True)

    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call of this package, whose writes are the mapping's own.

        Args:
            call: Executes one statement.
            writes: Whether it may change rows; the database counts changes too late to be asked.
        """
        raise NotImplementedError

    def lift(self) -> None:
        """Let everything through again: the unit of work ends its transaction."""
        raise NotImplementedError

    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """What a refusal by the database means, if it was one of ours."""
        raise NotImplementedError

    def forget(self) -> None:
        """Explain no more errors."""
        self._info.pop(__name__, None)

    def wrote(self, writes: bool) -> None:
        """Remember that the repositories may have written within the innermost savepoint."""
        if writes and self._savepoints:
            self._dirty.add(self._savepoints[-1])

    def follow(self, what: str | None, name: str | None) -> None:
        """Keep account of which savepoints hold rows that the repositories wrote.

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


class FileGuard(Guard):
    """SQLite's authorizer while the session of a unit of work is in use.

    Args:
        mapping: Its tables are written by the repositories alone.
        driver: The connection to guard.
        read_only: Whether nothing may be written at all.
    """

    def __init__(self, mapping: Mapping, driver: DriverConnection, *, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        tables = [*(pair.table.name for pair in mapping.pairs), *(parent.table.name for parent in mapping.parents)]
        tables += [pair.legacy_name for pair in mapping.pairs]
        self._tables = {*map(str.lower, tables), "sqlite_sequence"}  # the sequences keep ids from being given twice
        self._driver = driver
        prepared = driver.execute("SELECT 1 FROM sqlite_master WHERE name = 'consensus_orm_guards'").fetchone()
        self._triggers = {name for (name,) in driver.execute(_TRIGGERS)} if prepared else set()
        self._ours = False
        self._refused: str | None = None
        driver.set_authorizer(self._authorize)

    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call of this package, whose writes are the mapping's own."""
        self._ours = True
        try:
            return call()
        finally:
            self._ours = False
            self.wrote(writes)

    def lift(self) -> None:
        """Let everything through again."""
        self._driver.set_authorizer(None)
        self.forget()

    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """What a refusal by SQLite means, if it was one of ours."""
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_AUTH:
            return errors.UnmirroredWriteError(
                f"a statement of the session would write {self._refused} past the repositories", table=self._refused
            )
        return errors.ReadOnlyUnitOfWorkError() if self.read_only and code == sqlite3.SQLITE_READONLY else None

    def _authorize(
        self, action: int, first: str | None, second: str | None, _database: str | None, trigger: str | None
    ) -> int:
        if self._ours or trigger in self._triggers:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_SAVEPOINT:
            self.follow(first, second)
        refused = self._forbidden(action, first, second)
        if refused is None:
            return sqlite3.SQLITE_OK
        self._refused = refused
        return sqlite3.SQLITE_DENY

    def _forbidden(self, action: int, first: str | None, second: str | None) -> str | None:
        """The name of what an action would write and must not; None where it may go on."""
        if action == sqlite3.SQLITE_TRANSACTION:
            return "the transaction"
        if action == sqlite3.SQLITE_PRAGMA:
            return f"PRAGMA {first}" if second is not None and (first or "").lower() in _PRAGMAS else None
        table = first if action in _NAMED_FIRST else second if action in _NAMED_SECOND else None
        name = (table or "").lower()
        return table if name in self._tables or name.startswith(OURS) else None


def _explain(context: ExceptionContext) -> BaseException | None:
    """Say what a refusal means; any other error stays what it is."""
    guard = context.connection.info.get(__name__) if context.connection is not None else None
    return guard.error(context.original_exception) if isinstance(guard, Guard) else None
