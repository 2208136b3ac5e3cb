"""The units of work of a migration: each is one short step, which is repeated as a whole after a transient error.

On a server a transaction may lose a deadlock or wait too long for a lock, or the server may restart; a step that fails
so has changed nothing. A long step is a chain of short ones, so that it never starts over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Engine

from consensus_orm.databases.engine import pool_of
from consensus_orm.databases.lock import Lock
from consensus_orm.statements.pairs import Statements
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Transactions", "connections"]

T = TypeVar("T")


@dataclass(frozen=True)
class Transactions:
    """Opens units of work of one kind.

    Args:
        units: The units of work of the database.
        read_only: Whether they only read; they may read a database, too, whose rows cannot be read yet.
        lock: Which lock those take that write.
        durable: Whether their commits, and all before them, reach the disk, whatever the settings say.
        whole: Whether they fail where the row security of a server would leave rows out of an answer.
    """

    units: UnitOfWorkFactory[UnitOfWork]
    read_only: bool = False
    lock: Lock = Lock.WRITE
    durable: bool = False
    whole: bool = True

    @property
    def statements(self) -> Statements:
        """The statements of the moves."""
        return self.units.statements

    def __call__(self) -> UnitOfWork:
        """Open a unit of work that is not repeated by itself: it is part of a step that is."""
        return self.units.on_primary(
            read_only=self.read_only,
            readable=self.read_only,
            lock=self.lock,
            durable=self.durable,
            whole=self.whole,
        )

    def run(self, work: Callable[[UnitOfWork], T]) -> T:
        """Run some work in a unit of work, and repeat all of it after a transient error."""

        def once() -> T:
            with self() as uow:
                return work(uow)

        return self.repeat(once)

    def repeat(self, step: Callable[[], T]) -> T:
        """Run a step that opens units of work of its own, and repeat it after a transient error."""
        return self.units.retrier.call(step, name="migration", read_only=self.read_only)


def connections(engine: Engine) -> int:
    """How many connections the pool of an engine lends at a time."""
    return pool_of(engine).size()
