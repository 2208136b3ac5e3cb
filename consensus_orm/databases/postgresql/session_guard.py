"""The guard of a session on PostgreSQL: triggers on the mapped tables refuse what a session writes.

They know whose statement it is by a setting of the transaction. It says `session` all the time but for the moment of
a statement of ours, so whatever the session sends, by whichever way, is refused. What triggers cannot see, changes of
the tables themselves (ALTER, DROP), the server refuses to whoever does not own them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, TypeVar

import psycopg
from sqlalchemy import Connection, event

from consensus_orm import errors
from consensus_orm.databases.postgresql.errors import UNMIRRORED
from consensus_orm.databases.session_guard import SessionGuard

__all__ = ["PostgresSessionGuard"]

T = TypeVar("T")


class _Server(Protocol):
    """What the guard asks of a connection."""

    @property
    def in_transaction(self) -> bool: ...
    def order(self, sql: str, parameters: Any = ..., /) -> Any: ...


class PostgresSessionGuard(SessionGuard):
    """Tells the server whose statements it gets while the session of a unit of work is in use.

    Args:
        driver: The connection to guard.
        read_only: Whether nothing may be written at all.
    """

    def __init__(self, driver: _Server, *, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        self._connection = driver
        self._ours = self._say("session")

    def watch(self, connection: Connection) -> None:
        """Explain the errors of a session's connection, and follow its savepoints."""
        super().watch(connection)
        # SQLAlchemy tells of a savepoint before it has a name, and numbers those of a connection from 1 on.
        numbers = count(1)
        event.listen(
            connection, "savepoint", lambda _, name: self.follow("BEGIN", name or f"sa_savepoint_{next(numbers)}")
        )
        event.listen(connection, "rollback_savepoint", lambda _, name, __: self.follow("ROLLBACK", name))
        event.listen(connection, "release_savepoint", lambda _, name, __: self.follow("RELEASE", name))

    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call of this package, whose writes are the mapping's own."""
        self._say(self._ours)
        try:
            return call()
        finally:
            if self._connection.in_transaction:  # after an error nothing more is taken from anybody
                self._say("session")
            self.wrote(writes)

    def lift(self) -> None:
        """Let everything through again: the unit of work ends its transaction, and the setting with it."""
        self.forget()

    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """What a refusal by the server means, if it was one of ours."""
        state = getattr(original, "sqlstate", None)
        if state == UNMIRRORED and isinstance(original, psycopg.Error):
            table = original.diag.table_name
            return errors.UnmirroredWriteError(
                f"a statement of the session would write {table} past the repositories", table=table
            )
        read_only = state == psycopg.errors.ReadOnlySqlTransaction.sqlstate
        return errors.ReadOnlyUnitOfWorkError() if self.read_only and read_only else None

    def _say(self, by: str) -> str:
        """Set whose statements follow; gives whose they were."""
        row: Any = self._connection.order(
            "SELECT current_setting('consensus_orm.by', true), set_config('consensus_orm.by', ?, true)", (by,)
        ).fetchone()
        return row[0] or ""
