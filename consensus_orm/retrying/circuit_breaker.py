"""A circuit breaker, which refuses calls while most recent ones failed, and recovers by itself.

No library was found that uses a rate, is thread-safe, and does not count failures that are the caller's fault:
pybreaker, circuitbreaker and purgatory count failures in a row; fluxgate is not thread-safe; interlock-cb counts such a
call as a success, even as the probe that closes it, keeps the last error with its frames, loads asyncio, and costs 5 us
a call.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import StrEnum
from typing import TypeVar

from consensus_orm.errors import CircuitOpenError, ConfigurationError
from consensus_orm.retrying.classification import ErrorKind, classify
from consensus_orm.settings import Settings

__all__ = ["CircuitBreaker", "CircuitState"]

T = TypeVar("T")


class CircuitState(StrEnum):
    """Whether a breaker lets calls through."""

    CLOSED = "closed"
    """It lets all calls through."""
    OPEN = "open"
    """It refuses all calls."""
    HALF_OPEN = "half_open"
    """It lets one call through as a probe."""


class CircuitBreaker:
    """Refuses calls while most of the recent ones failed.

    A call that failed through the caller's fault does not count, nor does one that was interrupted: neither says
    anything about the called system. A DEGRADED answer is a success. Thread-safe; the work runs outside the lock.

    Args:
        window: The number of recent calls that it considers.
        threshold: The share of failures among them at which it opens, above 0 and up to 1.
        minimum_calls: The number of calls before it may open.
        pause: How long it stays open before it lets one call through as a probe.
        clock: A monotonic clock, in seconds.

    Raises:
        ConfigurationError: With these numbers it could never open, or would always be open.
    """

    def __init__(
        self,
        *,
        window: int = 100,
        threshold: float = 0.5,
        minimum_calls: int = 10,
        pause: timedelta = timedelta(seconds=30),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (1 <= minimum_calls <= window and 0 < threshold <= 1):
            raise ConfigurationError(
                f"a circuit breaker cannot work with a window of {window} calls, at least {minimum_calls} of"
                f" them, and a threshold of {threshold}",
                hint="1 <= minimum_calls <= window and 0 < threshold <= 1",
            )
        self._threshold = threshold
        self._minimum_calls = minimum_calls
        self._pause = pause.total_seconds()
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: deque[bool] = deque(maxlen=window)
        self._state = CircuitState.CLOSED
        self._opened_at = 0.0
        self._probing = False
        # A call belongs to the state in which it began: one that began before the breaker opened is not the probe.
        self._era = 0

    @classmethod
    def from_settings(cls, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> CircuitBreaker:
        """Make a breaker of the settings `breaker_*`; `clock` is a monotonic clock, in seconds.

        Raises:
            ConfigurationError: It could never open.
        """
        return cls(
            window=settings.breaker_window,
            threshold=settings.breaker_threshold,
            minimum_calls=settings.breaker_minimum_calls,
            pause=settings.breaker_pause,
            clock=clock,
        )

    @property
    def state(self) -> CircuitState:
        """The state now."""
        with self._lock:
            self._half_open_when_due()
            return self._state

    def call(self, fn: Callable[[], T]) -> T:
        """Call, unless most recent calls failed.

        Args:
            fn: The work.

        Returns:
            What the work returned.

        Raises:
            CircuitOpenError: The work was not tried; `retry_after` is the time until the next probe.
        """
        with self.watch():
            return fn()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Treat the block as a call; it may await.

        Raises:
            CircuitOpenError: The block was not entered.
        """
        era = self._admit()
        try:
            yield
        except BaseException as error:
            found = classify(error)
            self._settle(era, None if found.caller_fault else found.kind is not ErrorKind.DEGRADED)
            raise
        self._settle(era, False)

    def _admit(self) -> int:
        with self._lock:
            self._half_open_when_due()
            if self._state is CircuitState.OPEN or self._probing:
                left = max(0.0, self._opened_at + self._pause - self._clock())
                raise CircuitOpenError(retry_after=timedelta(seconds=left))
            self._probing = self._state is CircuitState.HALF_OPEN
            return self._era

    def _settle(self, era: int, failed: bool | None) -> None:
        """Count how a call ended; None does not count, and leaves the probe to the next call."""
        with self._lock:
            if era != self._era:
                return
            self._probing = False
            if failed is None:
                return
            if self._state is CircuitState.HALF_OPEN:
                self._enter(CircuitState.OPEN if failed else CircuitState.CLOSED)
                return
            self._failed.append(failed)
            if self._too_many():
                self._enter(CircuitState.OPEN)

    def _too_many(self) -> bool:
        calls = len(self._failed)
        return calls >= self._minimum_calls and sum(self._failed) >= self._threshold * calls

    def _half_open_when_due(self) -> None:
        if self._state is CircuitState.OPEN and self._clock() >= self._opened_at + self._pause:
            self._enter(CircuitState.HALF_OPEN)

    def _enter(self, state: CircuitState) -> None:
        self._state = state
        self._era += 1
        self._failed.clear()
        if state is CircuitState.OPEN:
            self._opened_at = self._clock()
