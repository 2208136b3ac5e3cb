"""The units of work of a migration: each step is one, and is taken again as a whole after a transient error.

On a server another transaction may win a deadlock, a lock may not come in time, or the server may be restarted. A
step that failed so has left nothing behind. Long steps are chains of short ones, so none is repeated from its start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from consensus_orm.unit_of_work.unit import UnitOfWork

if TYPE_CHECKING:
    from consensus_orm.store import Store

__all__ = ["Units"]

T = TypeVar("T")


@dataclass(frozen=True)
class Units:
    """Opens units of work of one kind.

    Args:
        store: Whose retry policy counts.
        open: Opens one.
        read_only: Whether they only read.
    """

    store: Store
    open: Callable[[], UnitOfWork]
    read_only: bool = False

    def __call__(self) -> UnitOfWork:
        """Open a unit of work, which is tried once: within a step that is repeated."""
        return self.open()

    def run(self, work: Callable[[UnitOfWork], T]) -> T:
        """Do a piece of work in a unit of work, and all of it again after a transient error."""

        def once() -> T:
            with self.open() as uow:
                return work(uow)

        return self.repeat(once)

    def repeat(self, step: Callable[[], T]) -> T:
        """Take a step that opens its own units of work, and take it again after a transient error.

        Args:
            step: May be taken twice: what it had not committed is gone.
        """
        return self.store.retrier.call(step, name="migration", read_only=self.read_only)
