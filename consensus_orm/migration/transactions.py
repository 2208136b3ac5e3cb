"""The units of work of a migration: each step is one, and is taken again as a whole after a transient error.

On a server another transaction may win a deadlock, a lock may not come in time, or the server may be restarted. A
step that failed so has left nothing behind. Long steps are chains of short ones, so none is repeated from its start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from consensus_orm.databases.lock import Lock
from consensus_orm.statements.pairs import Statements
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Transactions"]

T = TypeVar("T")


@dataclass(frozen=True)
class Transactions:
    """Opens units of work of one kind.

    Args:
        units: The units of work of the database.
        read_only: Whether they only read; a database is looked at, too, whose rows cannot be read yet.
        lock: Which lock those take that write.
        durable: Whether their commits, and all before them, reach the disk, whatever the settings say.
    """

    units: UnitOfWorkFactory[UnitOfWork]
    read_only: bool = False
    lock: Lock = Lock.WRITE
    durable: bool = False

    @property
    def statements(self) -> Statements:
        """The statements of the mapping."""
        return self.units.statements

    def __call__(self) -> UnitOfWork:
        """Open a unit of work, which is tried once: within a step that is repeated."""
        return self.units.on_primary(
            read_only=self.read_only, readable=self.read_only, lock=self.lock, durable=self.durable
        )

    def run(self, work: Callable[[UnitOfWork], T]) -> T:
        """Do a piece of work in a unit of work, and all of it again after a transient error."""

        def once() -> T:
            with self() as uow:
                return work(uow)

        return self.repeat(once)

    def repeat(self, step: Callable[[], T]) -> T:
        """Take a step that opens its own units of work, and take it again after a transient error.

        Args:
            step: May be taken twice: what it had not committed is gone.
        """
        return self.units.retrier.call(step, name="migration", read_only=self.read_only)
