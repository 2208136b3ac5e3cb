"""The guard of a session on SQLite: an authorizer, which SQLite calls for each action of a statement it prepares.

So the guard depends on the tables that a statement would write, not on how it was made: by the ORM, Core or text.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

from consensus_orm import errors
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side

__all__ = ["SQLiteSessionGuard"]

T = TypeVar("T")

OURS = "consensus_orm_"
"""The prefix of the names of the package's own tables and triggers."""

_WRITES = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
_NAMED_FIRST = {
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_DROP_TABLE,
    sqlite3.SQLITE_DROP_VIEW,
    # A table or view, above all a temporary one, with the name of one of the package's would take its place.
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
"""Actions on a table, by the argument with its name."""

_TRIGGERS = "SELECT name FROM consensus_orm_guards WHERE kind = 'trigger'"
"""Names of the package's own triggers, which may write what a session may not."""

_PRAGMAS = {"query_only", "writable_schema", "foreign_keys", "ignore_check_constraints", "recursive_triggers"}
"""Pragmas on whose values the unit of work depends."""


class _Authorized(Protocol):
    """What the guard needs of a connection."""

    def execute(self, sql: str, /) -> Any: ...
    def set_authorizer(self, authorizer: Callable[..., int] | None, /) -> None: ...


class SQLiteSessionGuard(SessionGuard):
    """SQLite's authorizer while the session of a unit of work is in use.

    Args:
        mapping: The moves, whose tables are guarded.
        driver: The connection to guard.
        sides: The sides whose tables the session may write, because they are carried; it must not read the other one.
        read_only: Whether the unit of work refuses every write.
    """

    def __init__(self, mapping: Moves, driver: _Authorized, sides: Collection[Side], *, read_only: bool) -> None:
        super().__init__(mapping, sides, read_only=read_only)
        # A row in sqlite_sequence that a session changes could let an id be assigned twice.
        self._tables = {*mapping.tables(Side.LEGACY), *mapping.tables(Side.NORMALIZED), "sqlite_sequence"}
        self._driver = driver
        prepared = driver.execute("SELECT 1 FROM sqlite_master WHERE name = 'consensus_orm_guards'").fetchone()
        self._triggers = {name for (name,) in driver.execute(_TRIGGERS)} if prepared else set()
        self._ours = False
        self._refused: str | None = None
        self._refused_rows = False
        driver.set_authorizer(self._authorize)

    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call that executes a statement of this package."""
        self._ours = True
        try:
            return call()
        finally:
            self._ours = False
            self.wrote(writes)

    def lift(self) -> None:
        """Accept every statement again."""
        self._driver.set_authorizer(None)
        self.forget()

    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """The error of this package for a refused statement; None for any other error."""
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_AUTH:
            return self.refusal(str(self._refused), of_rows=self._refused_rows)
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
        self._refused, self._refused_rows = refused, action in {*_WRITES, sqlite3.SQLITE_READ}
        return sqlite3.SQLITE_DENY

    def _forbidden(self, action: int, first: str | None, second: str | None) -> str | None:
        """The name of what an action must not write; None if the action is allowed."""
        if action == sqlite3.SQLITE_TRANSACTION:
            return "the transaction"
        if action == sqlite3.SQLITE_PRAGMA:
            return f"PRAGMA {first}" if second is not None and (first or "").lower() in _PRAGMAS else None
        if action == sqlite3.SQLITE_READ:
            return first if (first or "").lower() in self.hidden else None
        if action in _WRITES and (first or "").lower() in self.written:
            return None
        table = first if action in _NAMED_FIRST else second if action in _NAMED_SECOND else None
        name = (table or "").lower()
        return table if name in self._tables or name.startswith(OURS) else None
