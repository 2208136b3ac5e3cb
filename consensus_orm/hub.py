"""Where events come together: counted, and told to whoever listens."""

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
# Without a handler, Python would print warnings of this package to stderr in a program that configures no logging.
logging.getLogger("consensus_orm").addHandler(logging.NullHandler())

Hook: TypeAlias = Callable[[Event], object]


def log_event(event: Event) -> None:
    """Log an event with the standard library: the hook of a `Telemetry` that was given none.

    The line is the event as text, the level is the event's own, and its fields are attributes of the record,
    prefixed with `consensus_orm.`.

    Args:
        event: What happened.
    """
    level = event.level
    if level and logger.isEnabledFor(level):
        logger.log(level, "%s", event, extra=event.attributes())


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
    """Counts calls and tells events to hooks. Thread-safe.

    Args:
        hooks: Called with each event, in order, in the thread in which it happened. One that raises is logged
            and does not disturb the work.
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

    def add_hook(self, hook: Hook, *, instead_of: Hook | None = None) -> None:
        """Tell later events to this hook, too.

        Args:
            hook: Called with each event.
            instead_of: A hook that is told no more.
        """
        with self._lock:
            self._hooks = (*(known for known in self._hooks if known is not instead_of), hook)

    def first_try(self) -> None:
        """Count a call that succeeded at once."""
        with self._lock:
            self._counts["first_try"] += 1

    def tell(self, event: Event) -> None:
        """Count a retry or the end of a call, then pass the event to the hooks.

        Args:
            event: What happened.
        """
        if isinstance(event, RetryEvent | CallEvent):
            with self._lock:
                self._counts["retries" if isinstance(event, RetryEvent) else event.outcome.value] += 1
        for hook in self._hooks:
            try:
                hook(event)
            except Exception as error:
                # Without traceback: it would print the error that is being handled, with its message.
                logger.error("a telemetry hook failed with %s", type(error).__name__)
