"""The guard of a session on SQLite, which itself asks the guard whenever a statement is prepared.

So no way of writing has to be known here, the ORM's, Core's, or text, only what a statement would touch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from consensus_orm import errors
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.declaration.moves import Moves

__all__ = ["SQLiteSessionGuard"]

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

_TRIGGERS = "SELECT name FROM consensus_orm_guards WHERE kind = 'trigger'"
"""Names of our own triggers: they may write what a session may not."""

_PRAGMAS = {"query_only", "writable_schema", "foreign_keys", "ignore_check_constraints", "recursive_triggers"}
"""Pragmas by which a statement would get past what the unit of work relies on."""


class _Authorized(Protocol):
    """What the guard asks of a connection."""

    def execute(self, sql: str, /) -> Any: ...
    def set_authorizer(self, authorizer: Callable[..., int] | None, /) -> None: ...


class SQLiteSessionGuard(SessionGuard):
    """SQLite's authorizer while the session of a unit of work is in use.

    Args:
        mapping: Its tables are written by the repositories alone.
        driver: The connection to guard.
        read_only: Whether nothing may be written at all.
    """

    def __init__(self, mapping: Moves, driver: _Authorized, *, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        tables = [*(pair.table.name for pair in mapping), *(parent.table.name for parent in mapping.parents)]
        tables += [pair.legacy_name for pair in mapping]
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
