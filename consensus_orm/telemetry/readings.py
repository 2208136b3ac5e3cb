"""The metrics that are read on demand: state of the pool, of the circuit breaker, and counts of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consensus_orm.events import Outcome
from consensus_orm.retrying.circuit_breaker import CircuitState
from consensus_orm.telemetry.instruments import POOL, Attributes, Shape, constants

if TYPE_CHECKING:
    from consensus_orm.store import Store

__all__ = ["READINGS", "Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric that is read on demand.

    Args:
        name: As of an instrument.
        kind: COUNTER or UPDOWN.
        unit: As of an instrument.
        description: One sentence.
        attributes: The names of its attributes: `constants`, and at most one other.
        read: The values, each with the value of that other attribute; empty if there is none.
    """

    name: str
    kind: Shape
    unit: str
    description: str
    attributes: tuple[str, ...]
    read: Callable[[Store], Iterable[tuple[str, float]]]

    def observe(self, store: Store) -> Iterator[tuple[Attributes, float]]:
        """The values now, with their attributes."""
        known = constants(store.engine)
        for told, value in self.read(store):
            yield {name: known.get(name) or told for name in self.attributes}, value


def _calls(store: Store) -> Iterator[tuple[str, float]]:
    totals = store.telemetry.totals
    return ((outcome.value, getattr(totals, outcome.value)) for outcome in Outcome)


def _breaker(store: Store) -> Iterator[tuple[str, float]]:
    breaker = store.retrier.breaker
    if breaker is not None:
        state = breaker.state
        yield from ((each.value, float(each is state)) for each in CircuitState)


def _connections(store: Store) -> Iterator[tuple[str, float]]:
    yield "used", _pool(store).checkedout()
    yield "idle", _pool(store).checkedin()


def _pool(store: Store) -> Any:
    return store.engine.pool


READINGS = (
    Reading(
        "consensus_orm.calls",
        Shape.COUNTER,
        "{call}",
        "Calls of `store.run`, by how they ended.",
        ("consensus_orm.outcome",),
        _calls,
    ),
    Reading(
        "consensus_orm.breaker.state",
        Shape.UPDOWN,
        "{breaker}",
        "1 for the state the circuit breaker is in, 0 for the others.",
        ("consensus_orm.state",),
        _breaker,
    ),
    Reading(
        "db.client.connection.count",
        Shape.UPDOWN,
        "{connection}",
        "The number of connections that are currently in the state.",
        (POOL, "db.client.connection.state"),
        _connections,
    ),
    Reading(
        "db.client.connection.max",
        Shape.UPDOWN,
        "{connection}",
        "The maximum number of open connections allowed.",
        (POOL,),
        lambda store: [("", _pool(store).size())],
    ),
    Reading(
        "db.client.connection.pending_requests",
        Shape.UPDOWN,
        "{request}",
        "The number of current pending requests for an open connection.",
        (POOL,),
        lambda store: [("", _pool(store).waiting)],
    ),
)
