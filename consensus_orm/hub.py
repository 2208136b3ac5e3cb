"""Telemetry: counts events and passes them to hooks."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from consensus_orm.events import CallEvent, Event, RetryEvent

__all__ = ["Hook", "Telemetry", "Totals", "log_event"]

logger = logging.getLogger("consensus_orm.telemetry")
# Without it, Python would print warnings of this package to stderr in a program that does not configure logging.
logging.getLogger("consensus_orm").addHandler(logging.NullHandler())

Hook: TypeAlias = Callable[[Event], object]


def log_event(event: Event) -> None:
    """Log an event with the standard library; the default hook of a `Telemetry`.

    The message is the event as text, the level is the event's own, and its fields are attributes of the record,
    prefixed with `consensus_orm.`.
    """
    level = event.level
    if level and logger.isEnabledFor(level):
        logger.log(level, "%s", event, extra=event.attributes())


@dataclass(frozen=True, slots=True)
class Totals:
    """The number of calls by outcome, and of retries."""

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
    """Counts calls and passes events to hooks. Thread-safe.

    Args:
        hooks: Called with each event, in order, in the thread in which it happened. An error of a hook is logged and
            does not affect the work.
    """

    def __init__(self, hooks: Iterable[Hook] = (log_event,)) -> None:
        self._hooks = tuple(hooks)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def totals(self) -> Totals:
        """The counts so far."""
        with self._lock:
            return Totals(**self._counts)

    def add_hook(self, hook: Hook, *, instead_of: Hook | None = None) -> None:
        """Pass later events to this hook, too, or instead of another one."""
        with self._lock:
            self._hooks = (*(known for known in self._hooks if known is not instead_of), hook)

    def first_try(self) -> None:
        """Count a call that succeeded at once."""
        with self._lock:
            self._counts["first_try"] += 1

    def tell(self, event: Event) -> None:
        """Count a retry or the end of a call, then pass the event to the hooks."""
        if isinstance(event, RetryEvent | CallEvent):
            with self._lock:
                self._counts["retries" if isinstance(event, RetryEvent) else event.outcome.value] += 1
        for hook in self._hooks:
            try:
                hook(event)
            except Exception as error:
                # Without traceback, which would print the message of the error that is being handled.
                logger.error("a telemetry hook failed with %s", type(error).__name__)
