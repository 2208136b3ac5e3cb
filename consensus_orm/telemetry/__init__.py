"""What happens inside a store: told as events, and published by one call each.

    from consensus_orm import telemetry

    telemetry.report_to_prometheus(store)

Until then nothing is measured, and no optional library is imported; retries, mismatches and rejects are logged
by the standard library in any case. Metrics are declared in `telemetry.instruments` and `telemetry.readings`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from consensus_orm import events
from consensus_orm.errors import ConfigurationError
from consensus_orm.events import *  # noqa: F403 - all events, by their own list
from consensus_orm.events import Event
from consensus_orm.hub import Hook, Telemetry, Totals, log_event

if TYPE_CHECKING:
    from consensus_orm.store import Store

__all__ = [
    "Hook",
    "Telemetry",
    "Totals",
    "listen",
    "log_event",
    "report_to_opentelemetry",
    "report_to_prometheus",
    "report_to_structlog",
]
__all__ += events.__all__


def listen(store: Store, *hooks: Hook) -> None:
    """Tell hooks of everything that happens in a store from now on, and log units of work at DEBUG.

    Args:
        store: Its units of work that are open already are left alone.
        *hooks: Called with each event, in the thread in which it happens; they should be quick.
    """
    from consensus_orm.telemetry.observed import observing

    for hook in hooks:
        store.telemetry.add_hook(hook)
    store._units.new_unit = observing(store._units.unit_type, store.telemetry)


def report_to_structlog(store: Store, *, log: Any = None) -> None:
    """Log with structlog what the standard library would log: events by their titles, with their fields.

    Args:
        store: Whose events are logged.
        log: A logger of structlog; its default one where not given.

    Raises:
        ConfigurationError: structlog is not installed.
    """
    structlog = _library("structlog", "structlog")
    known = structlog.get_logger("consensus_orm") if log is None else log

    def hook(event: Event) -> None:
        if event.level:
            known.log(event.level, event.title, **event.fields())

    store.telemetry.add_hook(hook, instead_of=log_event)
    listen(store)


def report_to_prometheus(store: Store, *, registry: Any = None) -> None:
    """Publish everything as prometheus metrics.

    Args:
        store: Whose events are measured.
        registry: Where they go; prometheus_client's default registry where not given. One registry takes one
            store.

    Raises:
        ConfigurationError: prometheus-client is not installed, or the registry has metrics of these names.
    """
    library = _library("prometheus_client", "prometheus-client")
    from consensus_orm.telemetry.prometheus import Metrics

    metrics = Metrics(store)
    try:
        (library.REGISTRY if registry is None else registry).register(metrics)
    except ValueError:
        raise ConfigurationError(
            "this prometheus registry has metrics of these names already", hint="give each store a registry of its own"
        ) from None
    listen(store, metrics)


def report_to_opentelemetry(
    store: Store, *, meter_provider: Any = None, tracer_provider: Any = None, statements: bool = False
) -> None:
    """Publish everything as OpenTelemetry metrics, and units of work as spans.

    Args:
        store: Whose events are measured and traced.
        meter_provider: Where the metrics go; the global one where not given.
        tracer_provider: Where the spans go; the global one where not given.
        statements: Make a span of each statement, too. Their texts are not told.

    Raises:
        ConfigurationError: opentelemetry-api is not installed.
    """
    _library("opentelemetry.metrics", "opentelemetry-api")
    from consensus_orm.telemetry.opentelemetry import Metrics, Spans

    # The span is still the current one when what it measures is recorded.
    listen(store, Metrics(store, meter_provider), Spans(store, tracer_provider, statements=statements))


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigurationError(
            f"{package} is not installed", hint="run: pip install 'consensus-orm[observability]'", package=package
        ) from None
