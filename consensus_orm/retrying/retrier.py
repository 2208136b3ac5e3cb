"""Retries of whole units of work: how often, how long apart, and when to stop.

stamina decides on retries, and its switches (`stamina.set_active`, `set_testing`) work. Its instrumentation is left
out: where structlog or prometheus-client is installed, its default hooks load them and print. `consensus_orm.telemetry`
reports retries instead.
The first try runs without stamina, which is loaded at the first retry: it costs 9 to 16 us a call (60 us in a
coroutine), and almost every call succeeds at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from consensus_orm.errors import ConfigurationError, InvalidValueError, RetryCancelledError
from consensus_orm.events import CallEvent, Outcome, RetryEvent
from consensus_orm.hub import Telemetry
from consensus_orm.retrying.circuit_breaker import CircuitBreaker
from consensus_orm.retrying.classification import Classification, ErrorKind, classify
from consensus_orm.settings import Settings

__all__ = ["Retrier", "RetryPolicy"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often work is tried, and the waits in between.

    With the defaults the backoffs are 100, 200, 400, 800 and 1600 ms.

    Args:
        attempts: Tries, the first included; at least 1.
        initial: The first backoff; each further one is twice as long.
        maximum: The longest backoff.
        jitter: Random share of a backoff, 0 to 1: a wait lies between (1 - jitter) times the backoff and the
            backoff.
        budget: Time from the beginning of the first try to the beginning of the last one at the latest. A try
            that has begun is not cut short.

    Raises:
        ConfigurationError: A number is out of its range.
    """

    attempts: int = 6
    initial: timedelta = timedelta(milliseconds=100)
    maximum: timedelta = timedelta(milliseconds=1600)
    jitter: float = 0.25
    budget: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.jitter <= 1:
            raise ConfigurationError(
                f"a retry policy cannot have {self.attempts} attempts and a jitter of {self.jitter}",
                hint="give at least 1 attempt, and a jitter from 0 to 1",
            )
        if min(self.initial, self.maximum, self.budget) < timedelta():
            raise ConfigurationError("a duration of the retry policy is negative", hint="give 0 or more")

    @classmethod
    def from_settings(cls, settings: Settings, *, read_only: bool = False) -> RetryPolicy:
        """Make a policy of the settings `retry_*`; with `read_only`, `read_retry_*` override them where set."""
        attempts, budget = settings.retry_attempts, settings.retry_budget
        if read_only:
            attempts = attempts if settings.read_retry_attempts is None else settings.read_retry_attempts
            budget = budget if settings.read_retry_budget is None else settings.read_retry_budget
        return cls(
            attempts=attempts,
            initial=settings.retry_initial,
            maximum=settings.retry_max,
            jitter=settings.retry_jitter,
            budget=budget,
        )

    def backoff(self, attempt: int) -> timedelta:
        """The longest wait after a failed try; the first is 1."""
        # 64 doublings are far above any maximum, and far below the limit of a float.
        doublings = min(attempt - 1, 64)
        seconds = self.initial.total_seconds() * 2.0**doublings
        return timedelta(seconds=min(seconds, self.maximum.total_seconds()))

    def wait(self, attempt: int, chance: float) -> timedelta:
        """The wait after a failed try: between (1 - jitter) times the backoff and the backoff.

        Args:
            attempt: The try; the first is 1.
            chance: A random number from 0 to 1.
        """
        return self.backoff(attempt) * (1 - self.jitter * chance)


class Retrier:
    """Repeats work while its errors are transient (`classification.classify`). Thread-safe.

    The circuit breaker counts calls, not tries: work that succeeds after a retry is a success, since a lock that was
    free a moment later is contention and no outage.

    Args:
        policy: For work that writes, and for all work if there is no `read_policy`.
        read_policy: For work that only reads.
        telemetry: Counts and reports what happens; a new `Telemetry` where left out.
        breaker: Asked before each call.
        clock: A monotonic clock, in seconds.
        chance: Gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        read_policy: RetryPolicy | None = None,
        telemetry: Telemetry | None = None,
        breaker: CircuitBreaker | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy
        self.read_policy = read_policy or policy
        self.telemetry = telemetry or Telemetry()
        self.breaker = breaker
        self._clock = clock
        self._chance = chance

    def call(
        self,
        fn: Callable[[], T],
        *,
        cancel: threading.Event | None = None,
        name: str = "work",
        read_only: bool = False,
    ) -> T:
        """Do a unit of work, and repeat it while its errors are transient.

        Args:
            fn: The work, from its begin to its commit; a failed try must leave nothing behind.
            cancel: Set it to end the waiting at once; a try that has begun is not interrupted.
            name: The name of the work in logs, without contents.
            read_only: Use the policy for work that only reads.

        Returns:
            What the work returned.

        Raises:
            RetryCancelledError: Cancelled before it succeeded; the last error, if any, is the cause.
            CircuitOpenError: The breaker is open; the work was not tried.
            Exception: The work's own last error, if it is not transient, or no try or no time is left.
        """
        calls = self._begin(name, read_only, cancel)
        if self.breaker is None:
            return calls.run(fn)
        return self.breaker.call(lambda: calls.run(fn))

    async def call_async(self, fn: Callable[[], Awaitable[T]], *, name: str = "work", read_only: bool = False) -> T:
        """Do what `call` does with a coroutine function; to give up, cancel the task."""
        calls = self._begin(name, read_only, None)
        with contextlib.nullcontext() if self.breaker is None else self.breaker.watch():
            return await calls.run_async(fn)

    def _begin(self, name: str, read_only: bool, cancel: threading.Event | None) -> _Call:
        return _Call(
            policy=self.read_policy if read_only else self.policy,
            telemetry=self.telemetry,
            clock=self._clock,
            chance=self._chance,
            name=name,
            cancel=cancel,
            started=self._clock(),
        )

    def wrap(
        self,
        fn: Callable[P, T],
        *,
        cancel: threading.Event | None = None,
        name: str | None = None,
        read_only: bool = False,
    ) -> Callable[P, T]:
        """Make a function of the same signature that uses `call` for each of its calls; usable as a decorator.

        Args:
            fn: A plain function; each call of it is a unit of work.
            cancel: As for `call`.
            name: As for `call`; the function's own name where left out.
            read_only: As for `call`.

        Raises:
            InvalidValueError: It is a coroutine or generator function, whose body would run outside the retry.
        """
        if any(kind(fn) for kind in _NOT_PLAIN):
            raise InvalidValueError("only plain functions can be retried", field="fn")
        title = name or str(getattr(fn, "__qualname__", type(fn).__qualname__))

        @functools.wraps(fn)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            work = functools.partial(fn, *args, **kwargs)
            return self.call(work, cancel=cancel, name=title, read_only=read_only)

        return wrapped


_NOT_PLAIN = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)


class _FailedTryError(Exception):
    """Stands for an error before stamina, because the error's message may hold contents."""


def _unobserved(attempt: Any) -> Any:
    """Keep an attempt from calling stamina's hooks, which belong to the application's own retries."""
    attempt._t_attempt.retry_state.retry_object.before_sleep = None
    return attempt


_OUTCOMES = {
    ErrorKind.RETRYABLE: Outcome.EXHAUSTED,
    ErrorKind.PERMANENT: Outcome.PERMANENT,
    ErrorKind.DEGRADED: Outcome.DEGRADED,
}


@dataclass(slots=True, kw_only=True)
class _Call:
    """One call, with all its tries and the last error."""

    policy: RetryPolicy
    telemetry: Telemetry
    clock: Callable[[], float]
    chance: Callable[[], float]
    name: str
    cancel: threading.Event | None
    started: float
    tries: int = 0
    error: Exception | None = None
    error_type: str = ""
    found: Classification | None = None
    blocks: bool = True
    wait: timedelta = timedelta()

    def run(self, fn: Callable[[], T]) -> T:
        for _ in self._tries():
            with self:
                return fn()
        raise self._failure()

    async def run_async(self, fn: Callable[[], Awaitable[T]]) -> T:
        import asyncio  # loaded by now: a coroutine runs

        self.blocks = False
        for _ in self._tries():
            if self.wait:
                await asyncio.sleep(self.wait.total_seconds())
            with self:
                return await fn()
        raise self._failure()

    def _tries(self) -> Iterator[None]:
        """Ask for a try, as long as another one may succeed: the first without stamina, later ones when it says so."""
        if self._cancelled():
            return
        yield
        if self.found is None or not self.found.retryable:
            return
        import stamina

        # Not left to its own `timeout`, which would not count a try that was made without it and could not cut the
        # last wait.
        with contextlib.suppress(_FailedTryError):
            for attempt in stamina.retry_context(on=self._pause, attempts=self.policy.attempts, timeout=None):
                if attempt.num > 1:  # its first is the try that was made without it
                    yield
                with _unobserved(attempt):
                    raise _FailedTryError(self.found.reason)

    # A `with` block of a call is a try: if it fails, the error is kept and execution continues behind the block.

    def __enter__(self) -> None:
        self.tries += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            self._succeed()
        if not isinstance(error, Exception):
            return False
        self.error, self.error_type, self.found = error, type(error).__name__, classify(error)
        return True

    def _pause(self, _error: Exception) -> timedelta | bool:
        """Tell stamina how long to wait before the next try, or False for no further one."""
        elapsed = self._elapsed()
        left = self.policy.budget - elapsed
        if self.found is None or not self.found.retryable:
            return False
        if self.tries >= self.policy.attempts or left <= timedelta() or self._cancelled():
            return False
        wait = max(self.policy.wait(self.tries, self.chance()), self.found.wait or timedelta())
        wait = min(wait, left)
        self.telemetry.tell(RetryEvent(self.name, self.tries, wait, self.found, self.error_type, elapsed))
        return self._waited(wait)

    def _waited(self, wait: timedelta) -> timedelta | bool:
        """Leave the waiting to stamina, unless that would block an event loop or ignore `cancel`."""
        if not self.blocks:
            import stamina

            self.wait = timedelta() if stamina.is_testing() else wait
            return timedelta()
        if self.cancel is None:
            return wait
        return False if self.cancel.wait(wait.total_seconds()) else timedelta()

    def _succeed(self) -> None:
        self.error = None
        if self.tries == 1:
            self.telemetry.first_try()
        else:
            self._end(Outcome.RECOVERED)

    def _failure(self) -> Exception:
        # Not kept: the error's traceback refers to this call, and would keep the frames of the work alive.
        error, self.error = self.error, None
        if error is None or self.found is None or (self.found.retryable and self._cancelled()):
            self._end(Outcome.CANCELLED)
            cancelled = RetryCancelledError()
            cancelled.__cause__ = error
            return cancelled
        self._end(_OUTCOMES[self.found.kind])
        return error

    def _end(self, outcome: Outcome) -> None:
        self.telemetry.tell(CallEvent(self.name, outcome, self.tries, self._elapsed(), self.found, self.error_type))

    def _elapsed(self) -> timedelta:
        return timedelta(seconds=self.clock() - self.started)

    def _cancelled(self) -> bool:
        return self.cancel is not None and self.cancel.is_set()
