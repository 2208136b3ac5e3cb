"""What happened to the calls that were made: totals, and events for whoever listens.

Nothing here ever holds an error's message or an argument of the work: both may be contents of rows.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from consensus_orm.classification import Classification
from consensus_orm.errors import ConfigurationError

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

logger = logging.getLogger("consensus_orm.telemetry")


class Outcome(StrEnum):
    """How a call ended."""

    FIRST_TRY = "first_try"
    """It succeeded at once."""
    RECOVERED = "recovered"
    """It succeeded after at least one retry."""
    EXHAUSTED = "exhausted"
    """Its last error was transient, and no try or no time was left."""
    PERMANENT = "permanent"
    """It failed with an error that another try would not change."""
    DEGRADED = "degraded"
    """A part of it succeeded."""
    CANCELLED = "cancelled"
    """It was cancelled before it succeeded."""


@dataclass(frozen=True, slots=True)
class RetryEvent:
    """A try failed, and another one follows.

    Args:
        name: What the work is called.
        attempt: The try that failed; the first is 1.
        wait: How long until the next try.
        classification: Why it may be tried again.
        error_type: The name of the error's class.
        elapsed: Time since the call began.
    """

    name: str
    attempt: int
    wait: timedelta
    classification: Classification
    error_type: str
    elapsed: timedelta

    def fields(self) -> dict[str, str | int | float]:
        """The facts as plain values, for a log line or a span; durations in seconds."""
        return {
            "work": self.name,
            "attempt": self.attempt,
            "wait": self.wait.total_seconds(),
            "kind": self.classification.kind.value,
            "reason": self.classification.reason,
            "error_type": self.error_type,
            "elapsed": self.elapsed.total_seconds(),
        }


@dataclass(frozen=True, slots=True)
class CallEvent:
    """A call ended otherwise than by succeeding at once, which is counted but not told.

    Args:
        name: What the work is called.
        outcome: How it ended.
        attempts: How many tries were made.
        elapsed: Time from its beginning to its end.
        classification: The verdict on its last error; None where it never failed.
        error_type: The name of the class of its last error; empty where it never failed.
    """

    name: str
    outcome: Outcome
    attempts: int
    elapsed: timedelta
    classification: Classification | None = None
    error_type: str = ""

    def fields(self) -> dict[str, str | int | float]:
        """The facts as plain values, for a log line or a span; durations in seconds."""
        return {
            "work": self.name,
            "outcome": self.outcome.value,
            "attempts": self.attempts,
            "reason": self.classification.reason if self.classification else "",
            "error_type": self.error_type,
            "elapsed": self.elapsed.total_seconds(),
        }


Event: TypeAlias = RetryEvent | CallEvent
Hook: TypeAlias = Callable[[Event], object]


def log_event(event: Event) -> None:
    """Log an event with the standard library: the hook of a `Telemetry` that was given none.

    Retries and recoveries are INFO, exhausted calls WARNING, and permanent errors, which their caller gets
    anyway, DEBUG. The fields are attributes of the record, prefixed with `consensus_orm.`.

    Args:
        event: What happened.
    """
    extra = {f"consensus_orm.{name}": value for name, value in event.fields().items()}
    if isinstance(event, RetryEvent):
        reason, wait = event.classification.reason, event.wait.total_seconds()
        logger.info("%s: %s, trying again in %.3f s", event.name, reason, wait, extra=extra)
    else:
        details = (event.name, event.outcome.value, event.attempts)
        logger.log(_level(event), "%s: %s after %d tries", *details, extra=extra)


def _level(event: Event) -> int:
    if isinstance(event, CallEvent) and event.outcome is Outcome.EXHAUSTED:
        return logging.WARNING
    if isinstance(event, CallEvent) and event.outcome is Outcome.PERMANENT:
        return logging.DEBUG
    return logging.INFO


@dataclass(frozen=True, slots=True)
class Totals:
    """How many calls ended in which way, and how many retries they took."""

    first_try: int = 0
    recovered: int = 0
    exhausted: int = 0
    permanent: int = 0
    degraded: int = 0
    cancelled: int = 0
    retries: int = 0

    @property
    def recovered_share(self) -> float:
        """Share of the calls with transient errors that succeeded in the end; 1.0 where there was none."""
        transient = self.recovered + self.exhausted
        return self.recovered / transient if transient else 1.0


class Telemetry:
    """Counts what happened and tells it to hooks. Thread-safe.

    Args:
        hooks: Called with each event, in order, in the thread in which it happened. One that raises is logged
            and does not disturb the call.
    """

    def __init__(self, hooks: Iterable[Hook] = (log_event,)) -> None:
        self._hooks = tuple(hooks)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def totals(self) -> Totals:
        """What was counted until now."""
        with self._lock:
            return Totals(**self._counts)

    def add_hook(self, hook: Hook) -> None:
        """Tell later events to this hook, too.

        Args:
            hook: Called with each event.
        """
        with self._lock:
            self._hooks = (*self._hooks, hook)

    def first_try(self) -> None:
        """Count a call that succeeded at once."""
        with self._lock:
            self._counts["first_try"] += 1

    def tell(self, event: Event) -> None:
        """Count an event, then pass it to the hooks.

        Args:
            event: What happened.
        """
        with self._lock:
            self._counts["retries" if isinstance(event, RetryEvent) else event.outcome.value] += 1
        for hook in self._hooks:
            try:
                hook(event)
            except Exception as error:
                # Without traceback: it would print the error that is being handled, with its message.
                logger.error("a telemetry hook failed with %s", type(error).__name__)


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
            _level(event),
            "consensus_orm.retry" if isinstance(event, RetryEvent) else "consensus_orm.call",
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
