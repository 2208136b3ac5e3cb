"""What the database knows of an external store: its stage, its pause, and which relay holds its lease."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Update, bindparam, insert, select, update

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.external.stage import Stage
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.models.external import SinkState
from consensus_orm.times import when

__all__ = ["State", "every", "get", "put"]


class State(NamedTuple):
    """The columns of `models.external.SinkState`."""

    name: str
    stage: int
    epoch: int
    since: int
    soak: int | None = None
    imported_at: int | None = None
    exported_at: int | None = None
    paused: bool = False
    holder: str | None = None
    lease_until: int | None = None
    alarmed_at: int | None = None

    @property
    def at(self) -> Stage:
        """The stage."""
        return Stage(self.stage)

    @property
    def begun(self) -> datetime:
        """When the stage began."""
        return when(self.since)


_COLUMNS = [table_of(SinkState).c[name] for name in State._fields]
_EVERY = select(*_COLUMNS).order_by(SinkState.name)
_GET = select(*_COLUMNS).where(SinkState.name == bindparam("of_sink"))
_ADD = insert(SinkState).inline().values({name: bindparam(name) for name in ("name", "stage", "epoch", "since")})


def every(uow: Transaction) -> list[State]:
    """All external stores that the database knows."""
    return [State(*row) for row in uow._rows(_EVERY)]


def get(uow: Transaction, sink: str) -> State:
    """What the database knows of an external store; at OFF where it knows nothing."""
    rows = uow._rows(_GET, {"of_sink": sink})
    return State(*rows[0]) if rows else State(sink, Stage.OFF.value, 0, 0)


def put(uow: Transaction, sink: str, **values: Any) -> None:
    """Change what the database knows of an external store.

    Args:
        uow: Holds the write lock.
        sink: Its name.
        **values: The columns.
    """
    if not uow._rows(_GET, {"of_sink": sink}):
        uow._execute(_ADD, {"name": sink, "stage": Stage.OFF.value, "epoch": 0, "since": milliseconds(uow)})
    uow._execute(_written(tuple(values)), {**values, "of_sink": sink})


@cache
def _written(names: tuple[str, ...]) -> Update:
    return update(SinkState).where(SinkState.name == bindparam("of_sink")).values({n: bindparam(n) for n in names})
