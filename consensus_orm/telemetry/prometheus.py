"""Publishes the instruments as prometheus metrics, named by OpenTelemetry's rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from consensus_orm.events import Event
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
    from consensus_orm.store import Store

__all__ = ["Metrics"]


class Metrics:
    """The metrics of one store: a hook for its events, and a collector for a registry."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._constants = constants(store.engine)
        self._metrics = {instrument.name: _metric(instrument) for instrument in INSTRUMENTS}
        self._children: dict[tuple[str, ...], Callable[[float], object]] = {}
        """What adds an amount, by instrument and values of attributes: `labels` checks them at each call."""

    def __call__(self, event: Event) -> None:
        """Measure an event."""
        for name, amount, attributes in measure(event, self._constants):
            key = (name, *attributes.values())
            add = self._children.get(key) or self._children.setdefault(key, self._adding(*key))
            add(amount)

    def _adding(self, name: str, *values: str) -> Callable[[float], object]:
        metric = self._metrics[name]
        child = metric.labels(*values) if values else metric
        return child.observe if isinstance(child, Histogram) else child.inc

    def describe(self) -> Iterator[Metric]:
        """List the metrics without reading any, so that a registry refuses two of the same name."""
        for metric in self._metrics.values():
            yield from metric.collect()
        yield from (_family(reading) for reading in READINGS)

    def collect(self) -> Iterator[Metric]:
        """The metrics so far, and those that are read now."""
        for metric in self._metrics.values():
            yield from metric.collect()
        for reading in READINGS:
            family = _family(reading)
            for attributes, value in reading.observe(self._store):
                family.add_metric(list(attributes.values()), value)
            yield family


def _metric(instrument: Instrument) -> Counter | Histogram:
    # Without a registry of its own: the collector is registered as a whole or not at all.
    name, labels = _name(instrument), _labels(instrument)
    if instrument.kind is Shape.HISTOGRAM:
        return Histogram(name, instrument.description, labels, buckets=SECONDS, registry=None)
    return Counter(name, instrument.description, labels, registry=None)


def _family(reading: Reading) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if reading.kind is Shape.COUNTER else GaugeMetricFamily
    return kind(_name(reading), reading.description, labels=_labels(reading))


def _name(of: Instrument | Reading) -> str:
    return of.name.replace(".", "_") + ("_seconds" if of.unit == "s" else "")


def _labels(of: Instrument | Reading) -> list[str]:
    return [name.replace(".", "_") for name in of.attributes]
