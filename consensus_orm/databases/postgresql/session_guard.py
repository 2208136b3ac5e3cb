"""The guard of a session on PostgreSQL: triggers on the mapped tables refuse the writes of a session.

A setting of the transaction tells them whose statement it is. It is `session` except during a statement of this
package, so every write of the session is refused, however it was made. Triggers cannot refuse ALTER and DROP, for which
the server requires the owner of the table.
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
    """What the guard needs of a connection."""

    @property
    def in_transaction(self) -> bool: ...
    def order(self, sql: str, parameters: Any = ..., /) -> Any: ...


class PostgresSessionGuard(SessionGuard):
    """Tells the server whose statements follow, while the session of a unit of work is in use.

    Args:
        driver: The connection to guard.
        read_only: Whether the unit of work refuses every write.
    """

    def __init__(self, driver: _Server, *, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        self._connection = driver
        self._ours = self._say("session")

    def watch(self, connection: Connection) -> None:
        """Listen to the errors of a session's connection, and to its savepoints."""
        super().watch(connection)
        # SQLAlchemy tells of a savepoint before it has a name, and numbers those of a connection from 1 on.
        numbers = count(1)
        event.listen(
            connection, "savepoint", lambda _, name: self.follow("BEGIN", name or f"sa_savepoint_{next(numbers)}")
        )
        event.listen(connection, "rollback_savepoint", lambda _, name, __: self.follow("ROLLBACK", name))
        event.listen(connection, "release_savepoint", lambda _, name, __: self.follow("RELEASE", name))

    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call that executes a statement of this package."""
        self._say(self._ours)
        try:
            return call()
        finally:
            if self._connection.in_transaction:  # after an error the server refuses every statement
                self._say("session")
            self.wrote(writes)

    def lift(self) -> None:
        """Nothing but the errors: the setting ends with the transaction."""
        self.forget()

    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """The error of this package for a refused statement; None for any other error."""
        state = getattr(original, "sqlstate", None)
        if state == UNMIRRORED and isinstance(original, psycopg.Error):
            table = original.diag.table_name
            return errors.UnmirroredWriteError(
                f"a statement of the session would write {table} past the repositories", table=table
            )
        read_only = state == psycopg.errors.ReadOnlySqlTransaction.sqlstate
        return errors.ReadOnlyUnitOfWorkError() if self.read_only and read_only else None

    def _say(self, by: str) -> str:
        """Set whose statements follow, and return whose they were before."""
        row: Any = self._connection.order(
            "SELECT current_setting('consensus_orm.by', true), set_config('consensus_orm.by', ?, true)", (by,)
        ).fetchone()
        return row[0] or ""
