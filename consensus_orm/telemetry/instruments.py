"""The instruments that measure events, declared once for every library.

Names, units and attributes follow the OpenTelemetry semantic conventions for databases (`db.*`, `error.type`); what
they do not name is called `consensus_orm.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from consensus_orm.databases.engine import database_path
from consensus_orm.events import (
    AlarmEvent,
    BackfillEvent,
    ComparisonEvent,
    ConnectionEvent,
    Event,
    LockEvent,
    MismatchEvent,
    RejectEvent,
    RelayEvent,
    ReplicaEvent,
    RetryEvent,
    StatementEvent,
    UnitEvent,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["INSTRUMENTS", "SECONDS", "Attributes", "Instrument", "Shape", "constants", "measure"]

SECONDS = (0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Bounds of the buckets of durations: those of the conventions, and finer ones for statements on SQLite."""

Attributes: TypeAlias = dict[str, str]

FIELDS = {"db.operation.name": "operation", "error.type": "error_type"}
"""Fields of events that the conventions name; the others have the prefix `consensus_orm.`."""


class Shape(StrEnum):
    """The kind of a metric."""

    COUNTER = "counter"
    """A sum that only grows."""
    UPDOWN = "updown"
    """A sum that also falls; those of several processes can be added."""
    HISTOGRAM = "histogram"
    """A distribution."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """Something measured when an event happens.

    Args:
        name: By OpenTelemetry's rules.
        unit: By UCUM: `s`, or what is counted in braces.
        description: One sentence.
        of: The event that it measures.
        attributes: The names of its attributes; their values are fields of the event, or `constants`.
        amount: The value of an event; None if it has none.
    """

    name: str
    unit: str
    description: str
    of: type[Event]
    attributes: tuple[str, ...] = ()
    amount: Callable[[Any], float | None] = lambda event: 1

    @property
    def kind(self) -> Shape:
        """HISTOGRAM for a duration, else COUNTER."""
        return Shape.HISTOGRAM if self.unit == "s" else Shape.COUNTER


def constants(engine: Engine) -> Attributes:
    """The constant attributes of an open database, without password and URL."""
    path = database_path(engine)
    host = engine.url.host or engine.url.query.get("host")
    name = path.name if path else "/".join(str(part) for part in (host, engine.url.database) if part) or ":memory:"
    return {"db.system.name": engine.dialect.name, "db.client.connection.pool.name": name}


# The instruments ------------------------------------------------------------------------------------------

SYSTEM, POOL, ERROR = "db.system.name", "db.client.connection.pool.name", "error.type"
PAIR, FOUND_BY = "consensus_orm.pair", "consensus_orm.found_by"


def _seconds(event: Any) -> float | None:
    seconds: float | None = event.seconds
    return seconds


INSTRUMENTS = (
    Instrument(
        "consensus_orm.unit_of_work.duration",
        "s",
        "Duration of units of work, from asking for a connection to giving it back.",
        UnitEvent,
        ("consensus_orm.phase", "consensus_orm.outcome", "consensus_orm.read_only", ERROR),
        _seconds,
    ),
    Instrument(
        "db.client.operation.duration",
        "s",
        "Duration of statements.",
        StatementEvent,
        (SYSTEM, "db.operation.name", ERROR),
        _seconds,
    ),
    Instrument(
        "db.client.connection.wait_time",
        "s",
        "The time it took to obtain an open connection from the pool.",
        ConnectionEvent,
        (POOL,),
        lambda event: None if event.error_type else event.seconds,
    ),
    Instrument(
        "db.client.connection.use_time",
        "s",
        "The time between borrowing a connection and returning it to the pool.",
        UnitEvent,
        (POOL,),
        lambda event: event.held_seconds,
    ),
    Instrument(
        "db.client.connection.timeouts",
        "{timeout}",
        "Times that no connection came free in time.",
        ConnectionEvent,
        (POOL,),
        lambda event: 1 if event.error_type == "PoolExhaustedError" else None,
    ),
    Instrument(
        "consensus_orm.lock.wait_time",
        "s",
        "The time it took to obtain the write lock, or to give up.",
        LockEvent,
        (SYSTEM, ERROR),
        _seconds,
    ),
    Instrument(
        "consensus_orm.comparisons",
        "{row}",
        "Rows compared on both sides.",
        ComparisonEvent,
        (PAIR, FOUND_BY),
        lambda event: event.rows,
    ),
    Instrument(
        "consensus_orm.mismatches",
        "{mismatch}",
        "Differences found between the sides, whether or not they were known.",
        MismatchEvent,
        (PAIR, "consensus_orm.column", "consensus_orm.kind", FOUND_BY),
    ),
    Instrument(
        "consensus_orm.alarms",
        "{alarm}",
        "Times that mismatches passed their rate, or that a relay or keeper found what an operator must see.",
        AlarmEvent,
    ),
    Instrument("consensus_orm.rejects", "{row}", "Rows found that cannot be carried.", RejectEvent, (PAIR,)),
    Instrument(
        "consensus_orm.replica.fallbacks",
        "{unit}",
        "Read-only units of work that began on the primary, because the replica was behind or unreachable.",
        ReplicaEvent,
        ("consensus_orm.reason",),
    ),
    Instrument(
        "consensus_orm.backfill.rows",
        "{row}",
        "Legacy rows that the backfill has been through.",
        BackfillEvent,
        (PAIR,),
        lambda event: event.rows,
    ),
    Instrument(
        "consensus_orm.relay.entries",
        "{entry}",
        "Entries of the outbox that a relay sent, postponed or rejected.",
        RelayEvent,
        ("consensus_orm.sink", "consensus_orm.outcome"),
    ),
    Instrument(
        "consensus_orm.relay.lag",
        "s",
        "The time from the commit of a row until an external store gave it back.",
        RelayEvent,
        ("consensus_orm.sink", "consensus_orm.outcome"),
        lambda event: event.lag_seconds,
    ),
    Instrument("consensus_orm.retries", "{retry}", "Retries.", RetryEvent, ("consensus_orm.reason",)),
    Instrument(
        "consensus_orm.retry.wait_time",
        "s",
        "Waits before retries.",
        RetryEvent,
        (),
        lambda event: event.wait.total_seconds(),
    ),
)

_OF: dict[type[Event], list[Instrument]] = {}
for _instrument in INSTRUMENTS:
    _OF.setdefault(_instrument.of, []).append(_instrument)

_FIELD_OF = {
    name: FIELDS.get(name) or name.removeprefix("consensus_orm.") for i in INSTRUMENTS for name in i.attributes
}


def measure(event: Event, known: Attributes) -> Iterator[tuple[str, float, Attributes]]:
    """Measure an event.

    Args:
        event: The event.
        known: The `constants` of the database.

    Yields:
        The name of an instrument, its value, and its attributes, empty where they have no value.
    """
    for instrument in _OF.get(type(event), ()):
        amount = instrument.amount(event)
        if amount is not None:
            yield instrument.name, amount, {n: known.get(n) or _field(event, n) for n in instrument.attributes}


def _field(event: Event, attribute: str) -> str:
    value = getattr(event, _FIELD_OF[attribute])
    if type(value) is str:
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
