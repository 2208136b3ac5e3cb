"""What a unit of work needs of a connection, whichever its driver."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from consensus_orm.databases.lock import Lock
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side

__all__ = ["Cursor", "Driver", "Parameters"]

Parameters = Mapping[str, Any] | Sequence[Any]
"""Bound values: by name (`:name`) or in order (`?`)."""


class Cursor(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows were written."""
        ...

    @property
    def description(self) -> Any:
        """The columns of the rows; None if the statement returns no rows."""
        ...

    def fetchone(self) -> Any:
        """The next row; None if there is none."""
        ...

    def fetchall(self) -> list[Any]:
        """The remaining rows."""
        ...


class Driver(Protocol):
    """A connection that is lent to one unit of work at a time."""

    @property
    def Error(self) -> type[Exception]:
        """The base class of the driver's errors."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open and can be committed."""
        ...

    def execute(self, sql: str, parameters: Parameters = ..., /) -> Cursor:
        """Run a statement with parameters spelled as for SQLite."""
        ...

    def begin(self, *, write: bool) -> None:
        """Begin a transaction that writes, or one that sees one snapshot and cannot write."""
        ...

    def begin_unit(self, lock: Lock, *, durable: bool = False) -> None:
        """Begin the transaction of a unit of work, with its lock.

        Args:
            lock: Its lock.
            durable: Have the commit, and all commits before it, reach the disk, whatever the settings say.
        """
        ...

    def read_phase(self) -> tuple[Any, ...] | None:
        """Phase and epoch within the transaction; None if the database has no control tables.

        In a transaction that writes also two cookies of the guards of the phase: as recorded, and now.
        """
        ...

    def hold(self, lock: Lock) -> None:
        """Take a stronger lock within the transaction."""
        ...

    def others_wrote(self) -> bool:
        """Whether another connection wrote since the last call, asked in a unit of work that writes."""
        ...

    def attempt(self) -> AbstractContextManager[None]:
        """A block in which a statement can fail without ending the transaction."""
        ...

    def together(self, *statements: tuple[str, Parameters]) -> list[Any]:
        """Run several statements with one round trip, or none of them; the first row of each, None without rows."""
        ...

    def read_on(self) -> None:
        """Make the transaction usable for reads after a statement failed."""
        ...

    def refers_to_missing(self, error: BaseException | None) -> bool:
        """Whether a row refers to one that does not exist."""
        ...

    def is_missing_table(self, error: BaseException) -> bool:
        """Whether one of the package's own statements failed because its table does not exist."""
        ...

    def what_is_missing(self, error: BaseException) -> str:
        """Text with the name of the table that a statement did not find."""
        ...

    def is_read_only(self, error: BaseException) -> bool:
        """Whether a statement failed because the transaction may not write."""
        ...

    def cannot_decode(self, error: BaseException) -> bool:
        """Whether a read failed because a text is not valid UTF-8."""
        ...

    def escaping(self) -> AbstractContextManager[None]:
        """A block in which texts that are not valid UTF-8 are returned with their bytes escaped."""
        ...

    def storable(self, value: object) -> object:
        """A value as it can be bound."""
        ...

    def check(self, values: Mapping[str, object]) -> None:
        """Refuse values that the database cannot store, before anything is written.

        Raises:
            InvalidValueError: There is one.
        """
        ...

    def guard(self, moves: Moves, sides: Collection[Side], *, read_only: bool) -> SessionGuard:
        """Refuse statements of a session that would write a mapped table, until the guard is lifted."""
        ...

    def savepoint(self, sql: str) -> None:
        """Run a command on a savepoint."""
        ...

    def commit(self, *last: tuple[str, Parameters]) -> None:
        """Commit the transaction.

        Args:
            *last: Statements to run before, with no trip to a server of their own.
        """
        ...

    def rollback(self) -> None:
        """Roll back the transaction."""
        ...
