"""A lease in the database: one process at a time does a piece of work, and one that was killed loses it by time."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from functools import cache, partial
from typing import Any

from sqlalchemy import BindParameter, ClauseElement, bindparam, or_, select, update

from consensus_orm.declaration.attributes import table_of
from consensus_orm.ledgers import audit
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.models.base import Base
from consensus_orm.times import milliseconds as in_milliseconds
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Lease"]


CREDIBLE = timedelta(days=1)
"""A lease that ends later was taken before the clock was set back: it counts as ended, or it would last as long."""


class Lease:
    """The lease that a row of a control table holds in its columns `holder` and `lease_until`.

    Args:
        model: The class of the table; its key has one column.
        key: The key of the row, which exists when the lease is taken.
        length: How long the lease lasts after it was taken or prolonged.

    Attributes:
        me: The name of this holder: user, host, process, and a random part.
    """

    def __init__(self, model: type[Base], key: int | str, length: timedelta) -> None:
        self._model = model
        self._key = key
        self.length = length
        self.me = f"{audit.whoami()} {uuid.uuid4().hex[:8]}"
        self._held_until = 0.0

    @property
    def left(self) -> timedelta:
        """How long no other process can take the lease."""
        return timedelta(seconds=max(self._held_until - time.monotonic(), 0.0))

    def holder(self, uow: UnitOfWork) -> str | None:
        """Who took the lease last and has not given it back; the lease itself may have ended."""
        rows = uow._rows(_statements(self._model)[0], {"of_row": self._key})
        return rows[0][0] if rows else None

    def take(self, uow: UnitOfWork) -> bool:
        """Take the lease if it is free or has ended, or prolong it; whether that succeeded."""
        now, begun = milliseconds(uow), time.monotonic()
        until, credible = (now + in_milliseconds(each) for each in (self.length, max(self.length, CREDIBLE)))
        facts = {"of_row": self._key, "me": self.me, "now": now, "until": until, "credible": credible}
        taken = bool(uow._execute(_statements(self._model)[1], facts).rowcount)
        if taken:
            uow.on_commit(partial(setattr, self, "_held_until", begun + self.length.total_seconds()))
        return taken

    def prolong(self, uow: UnitOfWork) -> bool:
        """Prolong the lease; False if another process has taken it, or it was given back."""
        return self.holder(uow) == self.me and self.take(uow)

    def release(self, uow: UnitOfWork) -> None:
        """Give the lease back, if this process still holds it."""
        uow._execute(_statements(self._model)[2], {"of_row": self._key, "me": self.me})


@cache
def _statements(model: type[Base]) -> tuple[ClauseElement, ClauseElement, ClauseElement]:
    """Who holds the lease, take it, and give it back."""
    table: Any = table_of(model)
    (key,) = table.primary_key
    row, holder, until = key == bindparam("of_row"), table.c.holder, table.c.lease_until
    me: BindParameter[str] = bindparam("me")
    free = or_(holder.is_(None), holder == me, until < bindparam("now"), until > bindparam("credible"))
    return (
        select(holder).where(row),
        update(table).where(row, free).values(holder=me, lease_until=bindparam("until")),
        update(table).where(row, holder == me).values(holder=None, lease_until=None),
    )
