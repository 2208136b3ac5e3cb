"""Retries: how often, how long apart, within which budget, and what ends them."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st

from consensus_orm import errors
from consensus_orm.errors import PartialAnswersError
from consensus_orm.retrying.circuit_breaker import CircuitBreaker, CircuitState
from consensus_orm.retrying.retrier import Retrier, RetryPolicy
from consensus_orm.settings import Settings
from consensus_orm.telemetry import Event, RetryEvent, Telemetry, Totals

STEPS = [100, 200, 400, 800, 1600]
EAGER = RetryPolicy(initial=timedelta())
"""The default policy without waiting."""


def ms(milliseconds: float) -> timedelta:
    return timedelta(milliseconds=milliseconds)


class Time(threading.Event):
    """A clock, and an event whose waiting makes it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 500.0
        self.waits: list[timedelta] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now += timeout
        self.waits.append(timedelta(seconds=timeout))
        return self.is_set()


class Work:
    """Work that fails with these errors, one after the other, and then succeeds."""

    def __init__(self, *failures: BaseException, takes: float = 0, time: Time | None = None) -> None:
        self.failures = list(failures)
        self.takes = takes
        self.time = time
        self.tries: list[float] = []

    def __call__(self) -> str:
        if self.time is not None:
            self.tries.append(self.time.now)
            self.time.now += self.takes
        else:
            self.tries.append(time.monotonic())
        if self.failures:
            raise self.failures.pop(0)
        return "done"


Call = Callable[..., str]


def call_async(retrier: Retrier, work: Work, *, read_only: bool = False) -> str:
    """Do work as a coroutine function, in an event loop of its own."""

    async def asynchronous() -> str:
        return work()

    return asyncio.run(retrier.call_async(asynchronous, read_only=read_only))


def outage() -> list[TimeoutError]:
    return [TimeoutError() for _ in range(100)]


class TestPolicy:
    def test_default_steps(self) -> None:
        """The backoffs after the first five tries are 100, 200, 400, 800 and 1600 ms."""
        assert [RetryPolicy().backoff(attempt) for attempt in range(1, 6)] == [ms(step) for step in STEPS]
        assert RetryPolicy().attempts == 6

    @given(
        attempt=st.integers(1, 10_000),
        chance=st.floats(0, 1),
        jitter=st.floats(0, 1),
        initial=st.timedeltas(timedelta(), timedelta(days=1000)),
        maximum=st.timedeltas(timedelta(), timedelta(days=1000)),
    )
    def test_waits_stay_in_their_step(
        self, attempt: int, chance: float, jitter: float, initial: timedelta, maximum: timedelta
    ) -> None:
        """A wait is never longer than its step, nor shorter than the step less the share of jitter."""
        policy = RetryPolicy(initial=initial, maximum=maximum, jitter=jitter)
        step, wait = policy.backoff(attempt), policy.wait(attempt, chance)
        rounding = timedelta(microseconds=1)
        assert step <= maximum
        assert step * (1 - jitter) - rounding <= wait <= step

    @given(st.integers(1, 100))
    def test_steps_double(self, attempt: int) -> None:
        """Each step is twice the one before, until the longest."""
        policy = RetryPolicy()
        assert policy.backoff(attempt + 1) == min(policy.backoff(attempt) * 2, policy.maximum)

    def test_jitter_spreads(self) -> None:
        """Chance moves a wait through the whole share of jitter."""
        policy = RetryPolicy(jitter=0.25)
        assert [policy.wait(1, chance) for chance in (0, 0.5, 1)] == [ms(100), ms(87.5), ms(75)]

    def test_from_settings(self) -> None:
        """Each number can be set, and those for reading by themselves."""
        settings = Settings(
            retry_attempts=3,
            retry_initial=ms(1),
            retry_max=ms(2),
            retry_jitter=0.5,
            retry_budget=ms(4),
            read_retry_attempts=9,
            read_retry_budget=ms(8),
        )
        policy = RetryPolicy(attempts=3, initial=ms(1), maximum=ms(2), jitter=0.5, budget=ms(4))
        assert RetryPolicy.from_settings(settings) == policy
        reading = RetryPolicy.from_settings(settings, read_only=True)
        assert (reading.attempts, reading.budget, reading.initial) == (9, ms(8), ms(1))
        assert RetryPolicy.from_settings(Settings(), read_only=True) == RetryPolicy()

    @pytest.mark.parametrize(
        "numbers",
        [{"attempts": 0}, {"jitter": 1.1}, {"jitter": -0.1}, {"budget": ms(-1)}, {"initial": ms(-1)}],
        ids=str,
    )
    def test_useless_numbers(self, numbers: dict[str, int]) -> None:
        """Numbers out of their range are refused."""
        with pytest.raises(errors.ConfigurationError):
            RetryPolicy(**numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [Retrier.call, call_async], ids=["plain", "coroutine"])
class TestTries:
    def test_success_at_once(self, call: Call) -> None:
        """Work that succeeds is done once, and counted so."""
        retrier, work = Retrier(EAGER), Work()
        assert call(retrier, work) == "done"
        assert (len(work.tries), retrier.telemetry.totals) == (1, Totals(first_try=1))

    def test_recovery(self, call: Call) -> None:
        """Work is done again until it succeeds."""
        retrier, work = Retrier(EAGER), Work(TimeoutError(), ConnectionError())
        assert call(retrier, work) == "done"
        assert (len(work.tries), retrier.telemetry.totals) == (3, Totals(recovered=1, retries=2))

    @pytest.mark.parametrize("attempts", [1, 2, 6])
    def test_exhausted(self, call: Call, attempts: int) -> None:
        """After the last try the last error comes as it was raised, without a cause or context of ours."""
        failures = outage()
        retrier, work = Retrier(RetryPolicy(initial=ms(0), attempts=attempts)), Work(*failures)
        with pytest.raises(TimeoutError) as caught:
            call(retrier, work)
        assert caught.value is failures[attempts - 1]
        assert caught.value.__cause__ is caught.value.__context__ is None
        assert len(work.tries) == attempts
        assert retrier.telemetry.totals == Totals(exhausted=1, retries=attempts - 1)

    def test_permanent(self, call: Call) -> None:
        """A permanent error is not tried again, whichever try raises it."""
        retrier = Retrier(EAGER)
        for transient in ([], [TimeoutError()]):
            work = Work(*transient, ValueError())
            with pytest.raises(ValueError, match=r"^$") as caught:
                call(retrier, work)
            assert len(work.tries) == len(transient) + 1
            assert caught.value.__context__ is None
        assert retrier.telemetry.totals == Totals(permanent=2, retries=1)

    def test_degraded(self, call: Call) -> None:
        """A partial success is not tried again."""
        retrier, work = Retrier(EAGER), Work(PartialAnswersError(answered=1, asked=2))
        with pytest.raises(PartialAnswersError):
            call(retrier, work)
        assert (len(work.tries), retrier.telemetry.totals) == (1, Totals(degraded=1))

    @pytest.mark.parametrize("earlier", [[], [TimeoutError()]])
    def test_interrupted(self, call: Call, earlier: list[Exception]) -> None:
        """Ctrl-C is neither swallowed nor tried again."""
        work = Work(*earlier, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            call(Retrier(EAGER), work)
        assert len(work.tries) == len(earlier) + 1

    def test_policy_for_reading(self, call: Call) -> None:
        """Work that only reads has a policy of its own."""
        retrier = Retrier(EAGER, read_policy=RetryPolicy(attempts=2, initial=ms(0)))
        reading, writing = Work(*outage()), Work(*outage())
        with pytest.raises(TimeoutError):
            call(retrier, reading, read_only=True)
        with pytest.raises(TimeoutError):
            call(retrier, writing)
        assert (len(reading.tries), len(writing.tries)) == (2, 6)


class TestFrames:
    def test_frames_of_the_work_are_let_go(self) -> None:
        """Who drops the error drops what the work had open; no garbage collection is needed."""
        alive: list[weakref.ref[Work]] = []

        def attempt(failure: type[Exception] | None) -> None:
            resource = Work()
            alive.append(weakref.ref(resource))
            if failure is not None:
                raise failure

        for failures in ([ValueError], [TimeoutError, ValueError], [TimeoutError, None], [TimeoutError] * 6):
            raised = iter(failures)
            gc.disable()
            try:
                with suppress(TimeoutError, ValueError):
                    Retrier(EAGER).call(lambda raised=raised: attempt(next(raised)))  # type: ignore[misc]
                assert not any(reference() for reference in alive)
            finally:
                gc.enable()


class TestWaits:
    def test_default_backoffs(self) -> None:
        """With the default policy the waits are 100 to 1600 ms, shortened by jitter within their step."""
        for chance in (0.0, 0.5, 1.0):
            clock = Time()
            retrier = Retrier(RetryPolicy(), clock=clock, chance=lambda chance=chance: chance)  # type: ignore[misc]
            with pytest.raises(TimeoutError):
                retrier.call(Work(*outage()), cancel=clock)
            assert clock.waits == [ms(step * (1 - 0.25 * chance)) for step in STEPS]

    def test_waits_are_really_made(self) -> None:
        """Between two tries lies at least the wait that was announced; cancellable or not."""
        for cancel in (None, threading.Event()):
            events: list[Event] = []
            policy = RetryPolicy(initial=ms(5), maximum=ms(40))
            work = Work(*outage()[:5])
            Retrier(policy, telemetry=Telemetry([events.append])).call(work, cancel=cancel)
            waits = [event.wait for event in events if isinstance(event, RetryEvent)]
            gaps = [timedelta(seconds=b - a) for a, b in zip(work.tries, work.tries[1:], strict=False)]
            assert len(waits) == len(gaps) == 5
            for gap, wait, step in zip(gaps, waits, [5, 10, 20, 40, 40], strict=True):
                assert ms(step) * 0.75 <= wait <= ms(step)
                assert wait <= gap + ms(1)
                assert gap < wait + timedelta(seconds=1)

    def test_suggested_wait(self) -> None:
        """A longer wait that the error suggests is kept; a shorter one does not hurry the backoff."""
        clock = Time()
        longer = errors.DatabaseBusyError(retry_after=timedelta(seconds=3))
        shorter = errors.DatabaseBusyError(retry_after=ms(1))
        Retrier(RetryPolicy(jitter=0), clock=clock).call(Work(longer, shorter), cancel=clock)
        assert clock.waits == [timedelta(seconds=3), ms(200)]

    def test_last_wait_is_cut(self) -> None:
        """A wait longer than the budget is cut to what is left, and followed by the last try."""
        clock = Time()
        policy = RetryPolicy(jitter=0, budget=ms(900))
        work = Work(*outage(), takes=0.1, time=clock)
        with pytest.raises(TimeoutError):
            Retrier(policy, clock=clock).call(work, cancel=clock)
        assert clock.waits == [ms(100), ms(200), ms(300)]
        assert work.tries[-1] - work.tries[0] == pytest.approx(0.9)

    def test_suggested_wait_is_cut(self) -> None:
        """A suggested wait is not longer than the budget, either."""
        clock = Time()
        busy = errors.DatabaseBusyError(retry_after=timedelta(hours=1))
        Retrier(RetryPolicy(), clock=clock).call(Work(busy), cancel=clock)
        assert clock.waits == [timedelta(seconds=30)]

    @given(
        budget=st.integers(0, 5000),
        takes=st.integers(0, 2000),
        attempts=st.integers(1, 12),
        suggested=st.integers(0, 5000),
    )
    def test_budget(self, budget: int, takes: int, attempts: int, suggested: int) -> None:
        """No try begins after the budget, and none is given up before both budget and tries are used."""
        clock = Time()
        failures = [errors.DatabaseBusyError(retry_after=ms(suggested)) for _ in range(20)]
        work = Work(*failures, takes=takes / 1000, time=clock)
        policy = RetryPolicy(attempts=attempts, budget=ms(budget))
        with pytest.raises(errors.DatabaseBusyError):
            Retrier(policy, clock=clock).call(work, cancel=clock)
        began, ended = work.tries[-1] - 500.0, clock.now - 500.0
        assert began <= budget / 1000 + 1e-6
        assert len(work.tries) == attempts or ended >= budget / 1000 - 1e-6

    def test_no_budget(self) -> None:
        """Without any time there is one try and no wait."""
        clock = Time()
        work = Work(*outage())
        with pytest.raises(TimeoutError):
            Retrier(RetryPolicy(budget=ms(0)), clock=clock).call(work, cancel=clock)
        assert (len(work.tries), clock.waits) == (1, [])


class TestCancel:
    def test_ends_the_waiting(self) -> None:
        """Setting the event ends a wait at once; the error names the last one as its cause."""
        cancel = threading.Event()
        waiting = threading.Event()
        telemetry = Telemetry([lambda event: waiting.set()])
        retrier = Retrier(
            RetryPolicy(initial=timedelta(minutes=5), maximum=timedelta(minutes=5), budget=timedelta(hours=1)),
            telemetry=telemetry,
        )
        failure = TimeoutError()
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(retrier.call, Work(failure), cancel=cancel)
            assert waiting.wait(timeout=10)
            cancel.set()
            error = call.exception(timeout=10)
        assert isinstance(error, errors.RetryCancelledError)
        assert error.__cause__ is failure
        assert telemetry.totals == Totals(cancelled=1, retries=1)

    def test_before_the_first_try(self) -> None:
        """Nothing is tried where the event is set already."""
        cancel = threading.Event()
        cancel.set()
        retrier, work = Retrier(EAGER), Work()
        with pytest.raises(errors.RetryCancelledError) as caught:
            retrier.call(work, cancel=cancel)
        assert (work.tries, caught.value.__cause__) == ([], None)
        assert retrier.telemetry.totals == Totals(cancelled=1)

    def test_during_a_try(self) -> None:
        """A try is not interrupted: it may succeed, or fail for good; only another try is not made."""
        for failure, expected in (
            (None, None),
            (ValueError(), ValueError),
            (TimeoutError(), errors.RetryCancelledError),
        ):
            retrier, cancel = Retrier(EAGER), threading.Event()
            work = Work(*([failure] if failure else []))

            def cancelled(work: Work = work, cancel: threading.Event = cancel) -> str:
                cancel.set()
                return work()

            if expected is None:
                assert retrier.call(cancelled, cancel=cancel) == "done"
            else:
                with pytest.raises(expected):
                    retrier.call(cancelled, cancel=cancel)
            assert len(work.tries) == 1
            assert retrier.telemetry.totals.retries == 0


class TestBreaker:
    def test_recovered_calls_are_successes(self) -> None:
        """The breaker counts calls, not tries: contention that passes does not open it."""
        breaker = CircuitBreaker()
        retrier = Retrier(EAGER, breaker=breaker)
        for _ in range(20):
            retrier.call(Work(*outage()[:4]))
        assert breaker.state is CircuitState.CLOSED

    def test_open(self) -> None:
        """Calls that end exhausted open it; after that nothing is tried."""
        breaker = CircuitBreaker()
        retrier, work = Retrier(EAGER, breaker=breaker), Work(*outage())
        for _ in range(10):
            assert breaker.state is CircuitState.CLOSED
            with pytest.raises(TimeoutError):
                retrier.call(work)
        with pytest.raises(errors.CircuitOpenError):
            retrier.call(work)
        assert len(work.tries) == 60

    def test_cancelled_calls_do_not_count(self) -> None:
        """Who cancels says nothing about the database."""
        clock = Time()
        clock.set()
        breaker = CircuitBreaker()
        retrier = Retrier(EAGER, breaker=breaker)
        for _ in range(20):
            with pytest.raises(errors.RetryCancelledError):
                retrier.call(Work(), cancel=clock)
        assert breaker.state is CircuitState.CLOSED


class TestWrap:
    def test_decorator(self) -> None:
        """A wrapped function looks the same, gets its arguments, and is done again as a whole."""
        events: list[Event] = []
        retrier = Retrier(EAGER, telemetry=Telemetry([events.append]))
        failures: list[Exception] = [TimeoutError()]

        @retrier.wrap
        def add(a: int, *, b: int) -> int:
            """Add."""
            if failures:
                raise failures.pop()
            return a + b

        assert add(1, b=2) == 3
        assert (add.__name__, add.__doc__, list(inspect.signature(add).parameters)) == (
            "add",
            "Add.",
            ["a", "b"],
        )
        assert [str(event.fields()["work"]).endswith("add") for event in events] == [True, True]

    def test_options(self) -> None:
        """Name, policy and cancellation can be given."""
        events: list[Event] = []
        cancel = threading.Event()
        reading = RetryPolicy(attempts=2, initial=ms(0))
        retrier = Retrier(EAGER, read_policy=reading, telemetry=Telemetry([events.append]))
        wrapped = retrier.wrap(Work(*outage()), name="load", read_only=True, cancel=cancel)
        with pytest.raises(TimeoutError):
            wrapped()
        assert [event.fields()["work"] for event in events] == ["load", "load"]
        cancel.set()
        with pytest.raises(errors.RetryCancelledError):
            wrapped()

    def test_only_plain_functions(self) -> None:
        """Functions whose body would run outside the retry are refused."""

        async def coroutine() -> None: ...

        def generator() -> Iterator[int]:
            yield 1

        for fn in (coroutine, generator):
            with pytest.raises(errors.InvalidValueError):
                Retrier(EAGER).wrap(fn)


class TestStamina:
    def test_loaded_late(self) -> None:
        """Who never retries never loads stamina, though errors may be raised."""
        program = (
            "import sys\n"
            "from consensus_orm.retrying.retrier import *\n"
            "Retrier(RetryPolicy()).call(dict)\n"
            "try: Retrier(RetryPolicy()).call(lambda: 1 / 0)\n"
            "except ZeroDivisionError: sys.exit('stamina' in sys.modules)\n"
            "sys.exit('not raised')"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

    def test_switched_off(self) -> None:
        """An application that switches stamina off switches our retries off."""
        retrier, work = Retrier(EAGER), Work(*outage())
        stamina.set_active(False)
        try:
            with pytest.raises(TimeoutError):
                retrier.call(work)
        finally:
            stamina.set_active(True)
        assert (len(work.tries), retrier.telemetry.totals) == (1, Totals(exhausted=1))

    def test_testing(self) -> None:
        """stamina's test mode takes out the waits and sets the number of tries."""  # noqa: D403
        work = Work(*outage())
        with stamina.set_testing(True, attempts=3), pytest.raises(TimeoutError):
            Retrier(RetryPolicy(initial=timedelta(minutes=1), maximum=timedelta(minutes=1))).call(work)
        assert len(work.tries) == 3

    def test_logs_hold_no_messages(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        """Our log does not repeat an error's message, which may hold contents; nothing else is printed."""
        caplog.set_level(logging.DEBUG)
        with pytest.raises(ValueError, match="secret"):
            Retrier(EAGER).call(Work(TimeoutError("secret"), ValueError("secret")))
        logs = str([vars(record) for record in caplog.records])
        assert "consensus_orm.telemetry" in logs
        assert capfd.readouterr() == ("", "")
        assert "secret" not in logs
