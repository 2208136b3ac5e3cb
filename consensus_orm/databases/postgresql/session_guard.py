"""The guard of a session on PostgreSQL: triggers on the mapped tables refuse the writes of a session.

A setting of the transaction tells them whose statement it is. It is `session` except during a statement of this
package, so every write of the session to a side that is not open to it is refused, however it was made. Triggers cannot
refuse ALTER and DROP, for which the server requires the owner of the table, nor can they see what is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol, TypeVar

import psycopg

from consensus_orm import errors
from consensus_orm.databases.postgresql.errors import UNMIRRORED
from consensus_orm.databases.session_guard import CARRYING, SessionGuard
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side

__all__ = ["PostgresSessionGuard"]

T = TypeVar("T")


class _Server(Protocol):
    """What the guard needs of a connection."""

    @property
    def in_transaction(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def order(self, sql: str, parameters: Any = ..., /) -> Any: ...


class PostgresSessionGuard(SessionGuard):
    """Tells the server whose statements follow, while the session of a unit of work is in use.

    Args:
        moves: The moves, whose tables are guarded.
        driver: The connection to guard.
        sides: The sides whose tables the session may write, because they are carried; it must not read the other one.
        read_only: Whether the unit of work refuses every write.
    """

    def __init__(self, moves: Moves, driver: _Server, sides: Collection[Side], *, read_only: bool) -> None:
        super().__init__(moves, driver, sides, read_only=read_only)
        self._ours = self._say("session")

    @contextlib.contextmanager
    def carrying(self, *, undoable: bool = False) -> Iterator[None]:
        """Execute statements of this package in a block; the triggers record none of their writes."""
        with super().carrying():
            if undoable:  # in one message: a savepoint by itself would cost two more for each flush
                self._driver.order(f"SAVEPOINT {CARRYING}; SELECT set_config('consensus_orm.by', 'carrier', true)")
            else:
                self._say("carrier")
            try:
                yield
            finally:
                if self._driver.in_transaction and undoable:
                    self._driver.order(
                        f"RELEASE SAVEPOINT {CARRYING}; SELECT set_config('consensus_orm.by', 'session', true)"
                    )
                elif self._driver.in_transaction:
                    self._say("session")

    def undo_carrying(self) -> bool:
        """Take back what the block has done so far."""
        if self._driver.closed:
            return False
        self._driver.order(f"ROLLBACK TO SAVEPOINT {CARRYING}; SELECT set_config('consensus_orm.by', 'carrier', true)")
        return True

    def let(self, call: Callable[[], T], *, writes: bool) -> T:
        """Make a call that executes a statement of this package."""
        self._say(self._ours)
        try:
            return call()
        finally:
            if self._driver.in_transaction:  # after an error the server refuses every statement
                self._say("session")
            self.wrote(writes)

    def error(self, original: BaseException) -> errors.ConsensusError | None:
        """The error of this package for a refused statement; None for any other error."""
        state = getattr(original, "sqlstate", None)
        if state == UNMIRRORED and isinstance(original, psycopg.Error):
            return self.refusal(str(original.diag.table_name))
        read_only = state == psycopg.errors.ReadOnlySqlTransaction.sqlstate
        return errors.ReadOnlyUnitOfWorkError() if self.read_only and read_only else None

    def _say(self, by: str) -> str:
        """Set whose statements follow, and return whose they were before."""
        row: Any = self._driver.order(
            "SELECT current_setting('consensus_orm.by', true), set_config('consensus_orm.by', ?, true)", (by,)
        ).fetchone()
        return row[0] or ""
