"""What a unit of work asks of a connection, whichever driver it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from consensus_orm.databases.lock import Lock
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.declaration.moves import Moves

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
        """What the rows consist of; None where the statement gives none."""
        ...

    def fetchone(self) -> Any:
        """The next row; None where there is none."""
        ...

    def fetchall(self) -> list[Any]:
        """The rows that are left."""
        ...


class Driver(Protocol):
    """A connection that is lent to one unit of work at a time."""

    @property
    def Error(self) -> type[Exception]:
        """What the driver raises."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether there is a transaction that can be committed."""
        ...

    def execute(self, sql: str, parameters: Parameters = ..., /) -> Cursor:
        """Run a statement, its values named as in `Parameters`."""
        ...

    def begin(self, *, write: bool) -> None:
        """Begin a transaction; `engine.begin` says how."""
        ...

    def begin_unit(self, lock: Lock, *, durable: bool = False) -> None:
        """Begin the transaction of a unit of work, with its lock.

        Args:
            lock: Its lock.
            durable: Have the commit, and all commits before it, reach the disk, whatever the settings say.
        """
        ...

    def read_phase(self) -> tuple[Any, ...] | None:
        """Phase and epoch, within the transaction; None where the database does not have our tables.

        Where rows will be written also two cookies of what guards the phase: as recorded, and now.
        """
        ...

    def hold(self, lock: Lock) -> None:
        """Take a stronger lock within the transaction."""
        ...

    def others_wrote(self) -> bool:
        """Whether somebody else wrote since this was asked last, in a writing unit of work of this connection."""
        ...

    def attempt(self) -> AbstractContextManager[None]:
        """Let a statement fail without taking the transaction with it."""
        ...

    def together(self, *statements: tuple[str, Parameters]) -> list[Any]:
        """Run several statements with one trip to the server, or none of them; the first row of each."""
        ...

    def read_on(self) -> None:
        """Go on reading after a statement failed."""
        ...

    def is_missing_table(self, error: BaseException) -> bool:
        """Whether a statement of ours failed because its table is not there."""
        ...

    def what_is_missing(self, error: BaseException) -> str:
        """Text that names the table which a statement of ours did not find."""
        ...

    def is_read_only(self, error: BaseException) -> bool:
        """Whether a statement failed because the transaction may not write."""
        ...

    def cannot_decode(self, error: BaseException) -> bool:
        """Whether a read failed because a text is no UTF-8."""
        ...

    def escaping(self) -> AbstractContextManager[None]:
        """Give texts that are no UTF-8 with their bytes escaped."""
        ...

    def storable(self, value: Any) -> Any:
        """A value as it can be bound."""
        ...

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse values that the database cannot hold, before anything is written.

        Raises:
            InvalidValueError: There is one.
        """
        ...

    def guard(self, mapping: Moves, *, read_only: bool) -> SessionGuard:
        """Let nothing that a session sends reach a mapped table around the mapping, until the guard is lifted."""
        ...

    def commit(self) -> None:
        """End the transaction, and keep what it wrote."""
        ...

    def rollback(self) -> None:
        """End the transaction, and keep nothing of it."""
        ...
