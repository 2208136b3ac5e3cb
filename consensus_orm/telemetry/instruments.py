"""What is measured: every instrument once, whatever it is published with.

Names, units and attributes follow the OpenTelemetry semantic conventions for databases where these have one
(`db.*`, `error.type`); what only this package knows is called `consensus_orm.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from consensus_orm.breaker import CircuitState
from consensus_orm.engine import database_path
from consensus_orm.telemetry.events import (
    AlarmEvent,
    BackfillEvent,
    ComparisonEvent,
    ConnectionEvent,
    Event,
    LockEvent,
    MismatchEvent,
    Outcome,
    RejectEvent,
    RetryEvent,
    StatementEvent,
    UnitEvent,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from consensus_orm.store import ConsensusStore

__all__ = ["INSTRUMENTS", "READINGS", "SECONDS", "Attributes", "Instrument", "Kind", "Reading", "constants", "measure"]

SECONDS = (0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Bounds of the buckets of durations: those of the conventions, and finer ones, since a statement takes 20 us."""

Attributes: TypeAlias = dict[str, str]

FIELDS = {"db.operation.name": "operation", "error.type": "error_type"}
"""Fields of events that the conventions have a name for; the others are called `consensus_orm.` and their name."""


class Kind(StrEnum):
    """How values add up."""

    COUNTER = "counter"
    """It only grows."""
    UPDOWN = "updown"
    """A sum that also falls; of several processes it can be added."""
    HISTOGRAM = "histogram"
    """A distribution."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """Something measured when an event happens.

    Args:
        name: By OpenTelemetry's rules.
        kind: COUNTER or HISTOGRAM.
        unit: By UCUM: `s`, or what is counted in braces.
        description: One sentence.
        of: The event it measures.
        attributes: The names of its attributes; their values are fields of the event, or `constants`.
        amount: How much an event adds; None where it says nothing to this instrument.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    of: type[Event]
    attributes: tuple[str, ...] = ()
    amount: Callable[[Any], float | None] = lambda event: 1


@dataclass(frozen=True, slots=True)
class Reading:
    """Something read when somebody looks.

    Args:
        name: As of an instrument.
        kind: COUNTER or UPDOWN.
        unit: As of an instrument.
        description: One sentence.
        attributes: The names of its attributes: `constants`, and one whose values the reading tells.
        read: The values, each with that one attribute's value; empty where there is no such attribute.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...]
    read: Callable[[ConsensusStore], Iterable[tuple[str, float]]]

    def observe(self, store: ConsensusStore) -> Iterator[tuple[Attributes, float]]:
        """The values now, with their attributes."""
        known = constants(store.engine)
        for told, value in self.read(store):
            yield {name: known.get(name) or told for name in self.attributes}, value


def constants(engine: Engine) -> Attributes:
    """The attributes that stay the same as long as a database is open; no password, no whole URL."""
    path = database_path(engine)
    name = path.name if path else f"{engine.url.host or ''}/{engine.url.database}"
    return {"db.system.name": engine.dialect.name, "db.client.connection.pool.name": name}


# The instruments ------------------------------------------------------------------------------------------

SYSTEM, POOL, ERROR = "db.system.name", "db.client.connection.pool.name", "error.type"
PAIR, FOUND_BY = "consensus_orm.pair", "consensus_orm.found_by"


def _seconds(event: Any) -> float | None:
    return event.seconds  # type: ignore[no-any-return]


INSTRUMENTS = (
    Instrument(
        "consensus_orm.unit_of_work.duration",
        Kind.HISTOGRAM,
        "s",
        "Duration of units of work, from asking for a connection to giving it back.",
        UnitEvent,
        ("consensus_orm.phase", "consensus_orm.outcome", "consensus_orm.read_only", ERROR),
        _seconds,
    ),
    Instrument(
        "db.client.operation.duration",
        Kind.HISTOGRAM,
        "s",
        "Duration of statements.",
        StatementEvent,
        (SYSTEM, "db.operation.name", ERROR),
        _seconds,
    ),
    Instrument(
        "db.client.connection.wait_time",
        Kind.HISTOGRAM,
        "s",
        "The time it took to obtain an open connection from the pool.",
        ConnectionEvent,
        (POOL,),
        lambda event: None if event.error_type else event.seconds,
    ),
    Instrument(
        "db.client.connection.use_time",
        Kind.HISTOGRAM,
        "s",
        "The time between borrowing a connection and returning it to the pool.",
        UnitEvent,
        (POOL,),
        lambda event: event.held_seconds,
    ),
    Instrument(
        "db.client.connection.timeouts",
        Kind.COUNTER,
        "{timeout}",
        "Times that no connection came free in time.",
        ConnectionEvent,
        (POOL,),
        lambda event: 1 if event.error_type == "PoolExhaustedError" else None,
    ),
    Instrument(
        "consensus_orm.lock.wait_time",
        Kind.HISTOGRAM,
        "s",
        "The time it took to obtain the write lock, or to give up.",
        LockEvent,
        (SYSTEM, ERROR),
        _seconds,
    ),
    Instrument(
        "consensus_orm.comparisons",
        Kind.COUNTER,
        "{row}",
        "Rows compared on both sides.",
        ComparisonEvent,
        (PAIR, FOUND_BY),
        lambda event: event.rows,
    ),
    Instrument(
        "consensus_orm.mismatches",
        Kind.COUNTER,
        "{mismatch}",
        "Differences found between the sides, whether or not they were known.",
        MismatchEvent,
        (PAIR, "consensus_orm.column", "consensus_orm.kind", FOUND_BY),
    ),
    Instrument(
        "consensus_orm.alarms", Kind.COUNTER, "{alarm}", "Times that mismatches passed the rate of alarm.", AlarmEvent
    ),
    Instrument(
        "consensus_orm.rejects", Kind.COUNTER, "{row}", "Rows found that cannot be carried.", RejectEvent, (PAIR,)
    ),
    Instrument(
        "consensus_orm.backfill.rows",
        Kind.COUNTER,
        "{row}",
        "Legacy rows that the backfill has been through.",
        BackfillEvent,
        (PAIR,),
        lambda event: event.rows,
    ),
    Instrument("consensus_orm.retries", Kind.COUNTER, "{retry}", "Retries.", RetryEvent, ("consensus_orm.reason",)),
    Instrument(
        "consensus_orm.retry.wait_time",
        Kind.HISTOGRAM,
        "s",
        "Waits before retries.",
        RetryEvent,
        (),
        lambda event: event.wait.total_seconds(),
    ),
)


def _calls(store: ConsensusStore) -> Iterator[tuple[str, float]]:
    totals = store.telemetry.totals
    return ((outcome.value, getattr(totals, outcome.value)) for outcome in Outcome)


def _breaker(store: ConsensusStore) -> Iterator[tuple[str, float]]:
    breaker = store.retrier.breaker
    if breaker is not None:
        state = breaker.state
        yield from ((each.value, float(each is state)) for each in CircuitState)


def _connections(store: ConsensusStore) -> Iterator[tuple[str, float]]:
    pool: Any = store.engine.pool
    yield "used", pool.checkedout()
    yield "idle", pool.checkedin()


def _size(store: ConsensusStore) -> Iterator[tuple[str, float]]:
    pool: Any = store.engine.pool
    yield "", pool.size()


def _pending(store: ConsensusStore) -> Iterator[tuple[str, float]]:
    pool: Any = store.engine.pool
    yield "", pool.waiting


READINGS = (
    Reading(
        "consensus_orm.calls",
        Kind.COUNTER,
        "{call}",
        "Calls of `store.run`, by how they ended.",
        ("consensus_orm.outcome",),
        _calls,
    ),
    Reading(
        "consensus_orm.breaker.state",
        Kind.UPDOWN,
        "{breaker}",
        "1 for the state the circuit breaker is in, 0 for the others.",
        ("consensus_orm.state",),
        _breaker,
    ),
    Reading(
        "db.client.connection.count",
        Kind.UPDOWN,
        "{connection}",
        "The number of connections that are currently in the state.",
        (POOL, "db.client.connection.state"),
        _connections,
    ),
    Reading(
        "db.client.connection.max",
        Kind.UPDOWN,
        "{connection}",
        "The maximum number of open connections allowed.",
        (POOL,),
        _size,
    ),
    Reading(
        "db.client.connection.pending_requests",
        Kind.UPDOWN,
        "{request}",
        "The number of current pending requests for an open connection.",
        (POOL,),
        _pending,
    ),
)


_OF: dict[type[Event], list[Instrument]] = {}
for _instrument in INSTRUMENTS:
    _OF.setdefault(_instrument.of, []).append(_instrument)


def measure(event: Event, known: Attributes) -> Iterator[tuple[str, float, Attributes]]:
    """What an event says to the instruments.

    Args:
        event: What happened.
        known: The `constants` of the database.

    Yields:
        The name of an instrument, how much is added to it, and all of its attributes; one without a value is
        empty.
    """
    for instrument in _OF.get(type(event), ()):
        amount = instrument.amount(event)
        if amount is not None:
            yield instrument.name, amount, {n: known.get(n) or _field(event, n) for n in instrument.attributes}


def _field(event: Event, attribute: str) -> str:
    value = getattr(event, FIELDS.get(attribute) or attribute.removeprefix("consensus_orm."))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
