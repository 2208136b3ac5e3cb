"""The outboxes of external stores, as they are looked at: what waits, for how long, and how long the rest took."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Integer, and_, bindparam, func, literal_column, select

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.formats import count, duration
from consensus_orm.models.external import MIRROR, OutboxEntry, SinkState
from consensus_orm.times import when

__all__ = ["IS_WAITING", "Backlog", "Lag", "OutboxStatus", "backlog", "lag", "look", "of"]

IS_WAITING = and_(OutboxEntry.sink == bindparam("of_sink"), OutboxEntry.settled_at.is_(None))
"""An entry that a relay has yet to send."""


class Backlog(NamedTuple):
    """What waits in the outbox: how many entries, and when the oldest was written, in ms since 1970 UTC."""

    entries: int
    oldest: int | None


class Lag(NamedTuple):
    """The time from commit to read-back, in ms: how many entries were sent, and the 99th percentile."""

    sent: int
    p99: int | None


class OutboxStatus(BaseModel):
    """How far an external store is behind.

    Attributes:
        sink: The name of the external store.
        waiting: Entries that wait to be sent.
        oldest: How long the oldest of them has waited; None where none waits.
        late: Whether more wait, or for longer, than the settings allow without an alarm.
        paused: Whether an operator has stopped the relay.
        sent: Entries that were sent and read back at this stage; 0 where that was not counted.
        lag_p99: The 99th percentile of the time from commit to read-back; None where it is not known.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    sink: str
    waiting: int
    oldest: timedelta | None
    late: bool
    paused: bool
    sent: int = 0
    lag_p99: timedelta | None = None

    @property
    def told(self) -> str:
        """The same in words."""
        wait = count(self.waiting, "entry waits", "entries wait")
        oldest = "" if self.oldest is None else f", the oldest for {duration(self.oldest)}"
        p99 = "" if self.lag_p99 is None else f", p99 of the lag {duration(self.lag_p99)}"
        return f"{self.sink}: {wait}{oldest}{p99}{', the relay is paused' if self.paused else ''}"


_BACKLOG = select(func.count(), func.min(OutboxEntry.at)).where(IS_WAITING)
_BACKLOG_UP_TO = _BACKLOG.where(OutboxEntry.id <= bindparam("sequence"))
_TOOK = OutboxEntry.settled_at - OutboxEntry.at
_SENT = and_(
    OutboxEntry.sink == bindparam("of_sink"),
    OutboxEntry.outcome == "sent",
    OutboxEntry.op != "export",
    OutboxEntry.settled_at >= bindparam("since"),
)
_COUNT_SENT = select(func.count()).where(_SENT)
_RANKED = select(_TOOK).where(_SENT).order_by(_TOOK).limit(1).offset(bindparam("rank", type_=Integer))
_MIRRORED = (
    select(SinkState.name, SinkState.since, SinkState.paused)
    .where(SinkState.stage == literal_column(str(MIRROR), Integer))
    .order_by(SinkState.name)
)


def backlog(uow: Transaction, sink: str, *, up_to: int | None = None) -> Backlog:
    """What waits in the outbox of an external store, up to an entry if one is given."""
    statement = _BACKLOG if up_to is None else _BACKLOG_UP_TO
    return Backlog(*uow._rows(statement, {"of_sink": sink, "sequence": up_to})[0])


def lag(uow: Transaction, sink: str, since: int) -> Lag:
    """How long entries took that were sent since a time in ms; exported rows do not count."""
    facts: dict[str, Any] = {"of_sink": sink, "since": since}
    sent = int(uow._rows(_COUNT_SENT, facts)[0][0])
    if not sent:
        return Lag(0, None)
    rank = min(sent - 1, (sent * 99) // 100)
    return Lag(sent, int(uow._rows(_RANKED, {**facts, "rank": rank})[0][0]))


def of(uow: Transaction, sink: str, since: int | None, *, paused: bool) -> OutboxStatus:
    """How far an external store is behind.

    Args:
        uow: A unit of work.
        sink: The name of the external store.
        since: From when on the lag counts, in ms; None leaves it out, since all that was sent is read for it.
        paused: Whether its relay is paused.
    """
    settings, waiting = uow.settings, backlog(uow, sink)
    oldest = None if waiting.oldest is None else max(uow.now - when(waiting.oldest), timedelta())
    sent = Lag(0, None) if since is None else lag(uow, sink, since)
    return OutboxStatus(
        sink=sink,
        waiting=waiting.entries,
        oldest=oldest,
        late=waiting.entries > settings.relay_alarm_entries
        or (oldest is not None and oldest > settings.relay_alarm_age),
        paused=paused,
        sent=sent.sent,
        lag_p99=None if sent.p99 is None else timedelta(milliseconds=sent.p99),
    )


def look(uow: Transaction, *, lag: bool = True) -> list[OutboxStatus]:
    """How far each external store is behind that is mirrored now.

    Args:
        uow: A unit of work.
        lag: Whether to read the lag, too.
    """
    if not {table_of(SinkState).name, table_of(OutboxEntry).name} <= uow.catalog.tables(uow):
        return []
    return [of(uow, sink, since if lag else None, paused=bool(paused)) for sink, since, paused in uow._rows(_MIRRORED)]
