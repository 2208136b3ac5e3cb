"""Publishes the instruments as OpenTelemetry metrics, and units of work and their statements as spans."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry import context, trace
from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

from consensus_orm._version import __version__
from consensus_orm.events import Event, StatementEvent, UnitBegun, UnitEvent
from consensus_orm.telemetry.instruments import (
    INSTRUMENTS,
    SECONDS,
    Instrument,
    Shape,
    constants,
    measure,
)
from consensus_orm.telemetry.readings import READINGS, Reading

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from consensus_orm.store import Store

__all__ = ["Metrics", "Spans"]

SCOPE = "consensus_orm"


class Metrics:
    """The metrics of one store: a hook for its events.

    Args:
        store: The store.
        provider: The provider of meters; None is the global one.
    """

    def __init__(self, store: Store, provider: MeterProvider | None) -> None:
        meter = get_meter(SCOPE, __version__, provider)
        self._constants = constants(store.engine)
        self._add = {instrument.name: _adding(meter, instrument) for instrument in INSTRUMENTS}
        for reading in READINGS:
            _observe(meter, reading, store)

    def __call__(self, event: Event) -> None:
        """Measure an event."""
        for name, amount, attributes in measure(event, self._constants):
            self._add[name](amount, _present(attributes))


def _adding(meter: Meter, instrument: Instrument) -> Callable[[float, dict[str, str]], None]:
    name, facts = instrument.name, {"unit": instrument.unit, "description": instrument.description}
    if instrument.kind is Shape.HISTOGRAM:
        return meter.create_histogram(name, **facts, explicit_bucket_boundaries_advisory=SECONDS).record
    return meter.create_counter(name, **facts).add


def _observe(meter: Meter, reading: Reading, store: Store) -> None:
    def read(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, _present(attributes)) for attributes, value in reading.observe(store)]

    counting = reading.kind is Shape.COUNTER
    create = meter.create_observable_counter if counting else meter.create_observable_up_down_counter
    create(reading.name, callbacks=[read], unit=reading.unit, description=reading.description)


def _present(attributes: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if value}


class Spans:
    """A span for each unit of work, current while that lasts: a hook for its events.

    Other events (mismatches, rejects, chunks of the backfill, retries) are added to the current span.

    Args:
        store: The store.
        provider: The provider of tracers; None is the global one.
        statements: Whether each statement is a span, too.
    """

    def __init__(self, store: Store, provider: TracerProvider | None, *, statements: bool) -> None:
        self._tracer = trace.get_tracer(SCOPE, __version__, provider)
        self._system = {"db.system.name": constants(store.engine)["db.system.name"]}
        self._statements = statements
        self._open: WeakKeyDictionary[Any, _Current] = WeakKeyDictionary()

    def __call__(self, event: Event) -> None:
        """Begin or end a span, or add an event to the current one."""
        if isinstance(event, UnitBegun):
            span = self._tracer.start_span(UnitEvent.title, attributes=self._system)
            self._open[event.unit] = _Current(span)
        elif isinstance(event, UnitEvent):
            self._end(event)
        elif isinstance(event, StatementEvent):
            if self._statements:
                self._statement(event)
        elif event.level != logging.NOTSET:
            trace.get_current_span().add_event(event.title, event.attributes())

    def _end(self, event: UnitEvent) -> None:
        current = self._open.pop(event.unit, None)
        if current is not None:
            names = ("phase", "outcome", "read_only")
            attributes = {f"consensus_orm.{name}": value for name, value in event.fields().items() if name in names}
            _fail(current.span, event.error_type)
            current.span.set_attributes(attributes)
            current.end()

    def _statement(self, event: StatementEvent) -> None:
        unit, now = self._open.get(event.unit), time.time_ns()
        span = self._tracer.start_span(
            event.operation,
            context=None if unit is None else trace.set_span_in_context(unit.span),
            kind=trace.SpanKind.CLIENT,
            attributes={**self._system, "db.operation.name": event.operation},
            start_time=now - int(event.seconds * 1e9),
        )
        _fail(span, event.error_type)
        span.end(now)


class _Current:
    """A span that is current in the thread that made it."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._thread = threading.get_ident()
        self._token = context.attach(trace.set_span_in_context(span))

    def end(self) -> None:
        # OpenTelemetry would log an error for a context of another thread.
        if threading.get_ident() == self._thread and trace.get_current_span() is self.span:
            context.detach(self._token)
        self.span.end()


def _fail(span: Span, error_type: str | None) -> None:
    if error_type is not None:  # the type alone: a message may hold contents
        span.set_attribute("error.type", error_type)
        span.set_status(trace.StatusCode.ERROR)
