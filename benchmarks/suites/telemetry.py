"""What telemetry costs: compared writes that are measured and traced, and writes that are not."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.data import store_in, writes_to
from benchmarks.harness import Bench, Group, Target, Work
from consensus_orm import Phase
from consensus_orm.telemetry import report_to_opentelemetry, report_to_prometheus

COUNT = 200

PRICE = Group(
    "one artifact in phase 2, its own transaction, measured and traced",
    unit="write",
    count=COUNT,
    baseline="off",
    targets=(
        Target("compared write with prometheus and OpenTelemetry, to one without", "telemetry_both", 1.15, "off"),
    ),
)
GROUPS = (PRICE,)


@PRICE.case()
def off(bench: Bench) -> Iterator[Work]:
    """no telemetry"""
    with store_in(bench.file("off"), Phase.DUAL_WRITE) as store:
        yield writes_to(store, bench.times(COUNT))


@PRICE.case("prometheus", "opentelemetry", "both")
def telemetry(bench: Bench, kind: str) -> Iterator[Work]:
    """telemetry: {}"""
    with store_in(bench.file(kind), Phase.DUAL_WRITE) as store:
        if kind != "opentelemetry":
            from prometheus_client import CollectorRegistry

            report_to_prometheus(store, registry=CollectorRegistry())
        if kind != "prometheus":
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.trace import TracerProvider

            report_to_opentelemetry(store, meter_provider=MeterProvider(), tracer_provider=TracerProvider())
        yield writes_to(store, bench.times(COUNT))
