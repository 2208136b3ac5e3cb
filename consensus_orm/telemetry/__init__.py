"""What happened: events for whoever listens, totals, and one call each to switch a listener on."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from consensus_orm.errors import ConfigurationError
from consensus_orm.telemetry.events import CallEvent, Event, Outcome, RetryEvent
from consensus_orm.telemetry.hub import Hook, Telemetry, Totals, log_event

__all__ = [
    "CallEvent",
    "Event",
    "Hook",
    "Outcome",
    "RetryEvent",
    "Telemetry",
    "Totals",
    "log_event",
    "report_to_opentelemetry",
    "report_to_prometheus",
    "structlog_hook",
]


def structlog_hook(log: Any = None) -> Hook:
    """Make a hook that logs with structlog.

    Args:
        log: A logger of structlog; its default one where not given.

    Returns:
        The hook, for `Telemetry(hooks=[structlog_hook()])` or `add_hook`.

    Raises:
        ConfigurationError: structlog is not installed.
    """
    structlog = _library("structlog", package="structlog")
    log = structlog.get_logger("consensus_orm") if log is None else log

    def hook(event: Event) -> None:
        log.log(
            event.level,
            event.title,
            **event.fields(),
        )

    return hook


def report_to_prometheus(telemetry: Telemetry, *, registry: Any = None) -> None:
    """Publish totals and retries as prometheus metrics.

    They are `consensus_orm_calls_total{outcome}`, `consensus_orm_retries_total{reason}` and
    `consensus_orm_retry_wait_seconds`. The totals are read when they are scraped, so that a call that
    succeeds at once costs nothing more.

    Args:
        telemetry: Where they come from.
        registry: Where they go; prometheus_client's default registry where not given. One registry takes one
            telemetry.

    Raises:
        ConfigurationError: prometheus-client is not installed, or the registry has these metrics already.
    """
    prometheus = _library("prometheus_client", package="prometheus-client")
    core = importlib.import_module("prometheus_client.core")
    registry = prometheus.REGISTRY if registry is None else registry

    class Calls:
        def collect(self) -> Iterator[Any]:
            family = core.CounterMetricFamily("consensus_orm_calls", "Calls by outcome.", labels=["outcome"])
            for outcome, count in _by_outcome(telemetry):
                family.add_metric([outcome], count)
            yield family

    try:
        retries = prometheus.Counter("consensus_orm_retries", "Retries by reason.", ["reason"], registry=registry)
    except ValueError:
        raise ConfigurationError(
            "this prometheus registry has the metrics of consensus_orm already",
            hint="give each telemetry a registry of its own, or share one telemetry",
        ) from None
    waits = prometheus.Histogram("consensus_orm_retry_wait_seconds", "Waits before retries.", registry=registry)
    registry.register(Calls())

    def hook(event: Event) -> None:
        if isinstance(event, RetryEvent):
            retries.labels(event.classification.reason).inc()
            waits.observe(event.wait.total_seconds())

    telemetry.add_hook(hook)


def report_to_opentelemetry(telemetry: Telemetry, *, meter: Any = None) -> None:
    """Publish totals and retries as OpenTelemetry metrics, and retries as events of the current span.

    The metrics are `consensus_orm.calls` (by outcome), `consensus_orm.retries` (by reason) and
    `consensus_orm.retry.wait` in seconds; the events are `consensus_orm.retry`.

    Args:
        telemetry: Where they come from.
        meter: Where they go; the global provider's meter `consensus_orm` where not given.

    Raises:
        ConfigurationError: opentelemetry-api is not installed.
    """
    metrics = _library("opentelemetry.metrics", package="opentelemetry-api")
    trace = _library("opentelemetry.trace", package="opentelemetry-api")
    meter = metrics.get_meter("consensus_orm") if meter is None else meter

    def calls(_options: Any) -> Iterator[Any]:
        for outcome, count in _by_outcome(telemetry):
            yield metrics.Observation(count, {"outcome": outcome})

    meter.create_observable_counter("consensus_orm.calls", callbacks=[calls], description="Calls by outcome.")
    retries = meter.create_counter("consensus_orm.retries", description="Retries by reason.")
    waits = meter.create_histogram("consensus_orm.retry.wait", unit="s", description="Waits before retries.")

    def hook(event: Event) -> None:
        if isinstance(event, RetryEvent):
            retries.add(1, {"reason": event.classification.reason})
            waits.record(event.wait.total_seconds())
            trace.get_current_span().add_event("consensus_orm.retry", event.fields())

    telemetry.add_hook(hook)


def _by_outcome(telemetry: Telemetry) -> list[tuple[str, int]]:
    totals = telemetry.totals
    return [(outcome.value, getattr(totals, outcome.value)) for outcome in Outcome]


def _library(module: str, *, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigurationError(
            f"{package} is not installed", hint=f"install it: pip install {package}", package=package
        ) from None
