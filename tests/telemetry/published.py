"""What is published of a store, read with the real libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from consensus_orm import ConsensusStore, Phase, Settings, telemetry
from tests.support.databases import Database

prometheus = pytest.importorskip("prometheus_client")
metrics = pytest.importorskip("opentelemetry.sdk.metrics")
export = pytest.importorskip("opentelemetry.sdk.metrics.export")
tracing = pytest.importorskip("opentelemetry.sdk.trace")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

EVIL = "UPDATE consensus_artifacts SET content_json = 'evil' WHERE id = NEW.id"
ROW: Any = {"spec_id": "S", "stage": "plan", "agent_name": "a", "content_json": "secret"}

Point = tuple[dict[str, str], float]


class Reader(Protocol):
    """What was measured: of a histogram, how many values, and their sum."""

    def points(self, name: str) -> list[Point]: ...
    def sums(self, name: str) -> list[Point]: ...


class Prometheus:
    def __init__(self, store: ConsensusStore) -> None:
        self.registry = prometheus.CollectorRegistry()
        telemetry.report_to_prometheus(store, registry=self.registry)

    def points(self, name: str) -> list[Point]:
        return self._samples(name, "", "_total", "_count", "_seconds_count")

    def sums(self, name: str) -> list[Point]:
        return self._samples(name, "_seconds_sum")

    def _samples(self, name: str, *suffixes: str) -> list[Point]:
        names = {plain(name) + suffix for suffix in suffixes}
        samples = [sample for family in self.registry.collect() for sample in family.samples if sample.name in names]
        return [({k: v for k, v in sample.labels.items() if v}, sample.value) for sample in samples]


class OpenTelemetry:
    def __init__(self, store: ConsensusStore) -> None:
        self.reader = export.InMemoryMetricReader()
        telemetry.report_to_opentelemetry(store, meter_provider=metrics.MeterProvider([self.reader]))

    def points(self, name: str) -> list[Point]:
        return [(labels, point.count if hasattr(point, "count") else point.value) for labels, point in self._of(name)]

    def sums(self, name: str) -> list[Point]:
        return [(labels, point.sum) for labels, point in self._of(name)]

    def _of(self, name: str) -> Iterator[tuple[dict[str, str], Any]]:
        data = self.reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics if data else []
        for metric in found:
            if metric.name == name:
                for point in metric.data.data_points:
                    yield {plain(key): value for key, value in point.attributes.items()}, point


Backend = Callable[[ConsensusStore], Reader]
"""Switches a publisher of metrics on, and reads what it published."""


def plain(name: str) -> str:
    """A name as prometheus spells it."""
    return name.replace(".", "_")


@contextmanager
def dual_writing(legacy: Database, **settings: Any) -> Iterator[ConsensusStore]:
    """A store in DUAL_WRITE."""
    with ConsensusStore.open(legacy.where, settings=Settings(**settings)) as store:
        store.migration.migrate(Phase.DUAL_WRITE, soak=False)
        yield store


def add(store: ConsensusStore) -> None:
    with store.unit_of_work() as uow:
        uow.artifacts.add(**ROW)


def spoil(legacy: Database) -> None:
    """Have every later write differ."""
    legacy.fault("AFTER INSERT", "consensus_artifacts", EVIL)


def name_of(store: ConsensusStore) -> str:
    """What a database is called where it is observed: a file by its name without the folder, others with their host."""
    url = store.engine.url
    return Path(str(url.database)).name if store.path else f"{url.host or url.query['host']}/{url.database}"


class Traces:
    """The spans of a store."""

    def __init__(self, store: ConsensusStore, **options: Any) -> None:
        self.exporter = memory.InMemorySpanExporter()
        provider = tracing.TracerProvider()
        simple = importlib.import_module("opentelemetry.sdk.trace.export").SimpleSpanProcessor
        provider.add_span_processor(simple(self.exporter))
        self.tracer = provider.get_tracer("application")
        telemetry.report_to_opentelemetry(
            store, meter_provider=metrics.MeterProvider(), tracer_provider=provider, **options
        )

    def named(self, name: str) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


UNIT = "consensus_orm.unit_of_work"
