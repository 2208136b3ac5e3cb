"""Telemetry: publishes the events of a store to logging, structlog, prometheus or OpenTelemetry, by one call each.

    from consensus_orm import telemetry

    telemetry.report_to_prometheus(store)

Without such a call nothing is measured, and no optional library is imported; retries, mismatches and rejects are
always logged by the standard library. Metrics are declared in `telemetry.instruments` and `telemetry.readings`.
"""

from __future__ import annotations

import importlib
from datetime import timedelta
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
    "report_to_dashboard",
    "report_to_opentelemetry",
    "report_to_prometheus",
    "report_to_structlog",
]
__all__ += events.__all__


def listen(store: Store, *hooks: Hook) -> None:
    """Pass all events of a store to hooks from now on, and log units of work at DEBUG.

    Args:
        store: The store; its units of work that have begun are not observed.
        *hooks: Called with each event, in the thread in which it happens; they should be fast.
    """
    from consensus_orm.telemetry.observed import observing

    for hook in hooks:
        store.telemetry.add_hook(hook)
    store._units.new_unit = observing(store._units.unit_type, store.telemetry)


def report_to_dashboard(store: Store, application: str = "", *, interval: timedelta = timedelta(minutes=1)) -> None:
    """Keep samples of the writes of this process in the database, for `consensus-orm dashboard` and `report`.

    A daemon thread adds them up, and writes a row for each phase in a unit of work of its own, so that no write of the
    application waits; it ends with the store. Rows are kept for a day. What was written since the last row is lost when
    the process ends.

    Args:
        store: The store.
        application: The name and version of the application, as they are shown; the name of the program where left out.
        interval: Time between two rows.
    """
    from consensus_orm.telemetry.sampling import Sampler

    sampler = Sampler(store, application, interval)
    listen(store, sampler.hear)
    sampler.start()


def report_to_structlog(store: Store, *, log: Any = None) -> None:
    """Log events with structlog instead of the standard library, by their titles and with their fields.

    Args:
        store: The store.
        log: A logger of structlog; the default one where left out.

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
    """Publish prometheus metrics.

    Args:
        store: The store.
        registry: A registry, which takes one store; prometheus_client's default registry where left out.

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
    """Publish OpenTelemetry metrics, and units of work as spans.

    Args:
        store: The store.
        meter_provider: The provider of meters; the global one where left out.
        tracer_provider: The provider of tracers; the global one where left out.
        statements: Make a span of each statement, too, without its text.

    Raises:
        ConfigurationError: opentelemetry-api is not installed.
    """
    _library("opentelemetry.metrics", "opentelemetry-api")
    from consensus_orm.telemetry.opentelemetry import Metrics, Spans

    # The metrics come first, while the span is the current one.
    listen(store, Metrics(store, meter_provider), Spans(store, tracer_provider, statements=statements))


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigurationError(
            f"{package} is not installed", hint="run: pip install 'consensus-orm[observability]'", package=package
        ) from None
