"""The guard of a session on SQLite: an authorizer, which SQLite calls for each action of a statement it prepares.

So the guard depends on the tables that a statement would write, not on how it was made: by the ORM, Core or text.

SQLite keeps prepared statements, and prepares all of them again after an authorizer is set. So a connection keeps its
authorizer from session to session, as long as what it forbids stays the same. A statement that was prepared without a
guard is not used for a session: those of a session begin with a mark, which makes their text another one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol, TypeVar

from consensus_orm import errors
from consensus_orm.databases.session_guard import CARRYING, SessionGuard
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side

__all__ = ["SQLiteSessionGuard"]

T = TypeVar("T")

ATTEMPT = "consensus_orm_attempt"
"""The savepoint before some rows are carried by themselves."""

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


_MARK = "\f"
"""What the text of a session's statement begins with: white space that SQLite leaves out of what it stores."""


class _Authorized(Protocol):
    """What the guard needs of a connection."""

    authorizer: Callable[..., int] | None
    cookie: int | None

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, sql: str, /) -> Any: ...
    def pragma(self, name: str, /) -> Any: ...
    def set_authorizer(self, authorizer: Callable[..., int] | None, /) -> None: ...


class _Authorizer:
    """The authorizer of a connection: it asks the guard of the session in use.

    Args:
        tables: The tables that its guards know; the statements of sessions that are prepared depend on them.
        cookie: SQLite's counter of changes of the schema.
        triggers: The names of the package's own triggers, which may write what a session may not.
    """

    def __init__(self, tables: object, cookie: int, triggers: Collection[str]) -> None:
        self.tables = tables
        self.cookie = cookie
        self.triggers = triggers
        self.guard: SQLiteSessionGuard | None = None

    def __call__(self, action: int, first: str | None, second: str | None, _: str | None, trigger: str | None) -> int:
        guard = self.guard
        if guard is None or guard.ours or trigger in self.triggers:
            return sqlite3.SQLITE_OK
        return guard.authorize(action, first, second)


class SQLiteSessionGuard(SessionGuard):
    """SQLite's authorizer while the session of a unit of work is in use.

    Args:
        moves: The moves, whose tables are guarded.
        driver: The connection to guard.
        sides: The sides whose tables the session may write, because they are carried; it must not read the other one.
        read_only: Whether the unit of work refuses every write.
    """

    def __init__(self, moves: Moves, driver: _Authorized, sides: Collection[Side], *, read_only: bool) -> None:
        super().__init__(moves, driver, sides, read_only=read_only)
        # A row in sqlite_sequence that a session changes could let an id be assigned twice.
        self._tables = {*moves.tables(Side.LEGACY), *moves.tables(Side.NORMALIZED), "sqlite_sequence"}
        self.ours = False
        """Whether a statement of this package is being executed."""
        self._undoable = False
        self._refused: str | None = None
        self._refused_rows = False
        self._names_savepoint = False
        self._authorizer = self._set_authorizer()
        self._authorizer.guard = self

    def _set_authorizer(self) -> _Authorizer:
        """Keep the authorizer of the connection, or set another one, so that SQLite prepares every statement again."""
        driver, tables = self._driver, (self._tables, self.written, self.hidden)
        kept, cookie = driver.authorizer, driver.cookie or driver.pragma("schema_version")
        if isinstance(kept, _Authorizer) and kept.tables == tables and kept.cookie == cookie:
            return kept
        prepared = driver.execute("SELECT 1 FROM sqlite_master WHERE name = 'consensus_orm_guards'").fetchone()
        made = _Authorizer(tables, cookie, {name for (name,) in driver.execute(_TRIGGERS)} if prepared else ())
        driver.set_authorizer(made)
        return made

    @contextlib.contextmanager
    def carrying(self, *, undoable: bool = False) -> Iterator[None]:
        """Execute statements of this package in a block."""
        self.ours = True
        self._undoable = undoable and self._set_savepoint()
        try:
            with super().carrying():
                yield
        finally:
            if self._undoable and self._driver.in_transaction and not self.ends:  # else the commit releases it
                self._driver.execute(f"RELEASE {CARRYING}")
            self.ours = self._undoable = False

    def _set_savepoint(self) -> bool:
        """Set a savepoint; SQLite allows none while a statement with RETURNING has rows that were not fetched."""
        try:
            self._driver.execute(f"SAVEPOINT {CARRYING}")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        return True

    def undo_carrying(self) -> bool:
        """Take back what the block has done so far."""
        if not (self._undoable and self._driver.in_transaction):
            return False
        self._driver.execute(f"ROLLBACK TO {CARRYING}")
        return True

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Take back what a block has done if one of its statements fails: a file takes back the statement alone."""
        self._driver.execute(f"SAVEPOINT {ATTEMPT}")
        try:
            yield
        except errors.StorageError:
            if self._driver.in_transaction:
                self._driver.execute(f"ROLLBACK TO {ATTEMPT}")
            raise
        finally:
            if self._driver.in_transaction:
                self._driver.execute(f"RELEASE {ATTEMPT}")

    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call that executes a statement of this package."""
        self.ours = True
        try:
            return call()
        finally:
            self.ours = False
            self.wrote(writes)

    def execute(self, execute: Callable[..., None], cursor: Any, statement: str, *others: Any) -> None:
        """Execute a statement of the session."""
        try:
            execute(cursor, _MARK + statement, *others)
        finally:
            self._prepare_savepoints()

    def _prepare_savepoints(self) -> None:
        """Have a text that names a savepoint prepared again each time: only then does the guard learn of it."""
        if self._names_savepoint:
            self._names_savepoint = False
            self._driver.set_authorizer(self._authorizer)

    def lift(self) -> None:
        """Accept every statement again."""
        self._prepare_savepoints()
        self._authorizer.guard = None
        super().lift()

    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """The error of this package for a refused statement; None for any other error."""
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_AUTH:
            return self.refusal(str(self._refused), of_rows=self._refused_rows)
        return errors.ReadOnlyUnitOfWorkError() if self.read_only and code == sqlite3.SQLITE_READONLY else None

    def authorize(self, action: int, first: str | None, second: str | None) -> int:
        """Accept or deny an action of a statement of the session that is being prepared."""
        if action == sqlite3.SQLITE_SAVEPOINT:
            self._names_savepoint = True
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
