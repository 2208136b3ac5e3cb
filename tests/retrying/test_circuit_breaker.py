"""The circuit breaker: it opens when calls fail, lets one through to try, and closes again."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus_orm import errors
from consensus_orm.errors import PartialAnswersError
from consensus_orm.retrying.circuit_breaker import CircuitBreaker, CircuitState
from consensus_orm.settings import Settings


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock)


def call(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """Make a call that ends with this error, and expect just that."""

    def work() -> None:
        if error is not None:
            raise error

    if error is None:
        breaker.call(work)
        return
    with pytest.raises(type(error)) as caught:
        breaker.call(work)
    assert caught.value is error


def state(breaker: CircuitBreaker) -> CircuitState:
    """Read the state anew: type checkers take a property for a constant."""
    return breaker.state


def opened(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(clock=clock)
    for _ in range(10):
        call(breaker, TimeoutError())
    assert state(breaker) is CircuitState.OPEN
    return breaker


class TestOpening:
    def test_minimum_of_calls(self, breaker: CircuitBreaker) -> None:
        """It opens at the tenth call, and not at the ninth, though all of them failed."""
        for _ in range(9):
            call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.CLOSED
        call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.OPEN

    def test_success_can_complete_the_minimum(self, breaker: CircuitBreaker) -> None:
        """The rate counts, not who brought it: a success as tenth call opens it after nine failures."""
        for _ in range(9):
            call(breaker, TimeoutError())
        call(breaker)
        assert state(breaker) is CircuitState.OPEN

    def test_half_is_enough(self, breaker: CircuitBreaker) -> None:
        """It opens at 50 % failures, and stays closed below."""
        for _ in range(50):
            call(breaker)
        for _ in range(49):
            call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.CLOSED
        call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.OPEN

    def test_window(self, breaker: CircuitBreaker) -> None:
        """Calls before the last hundred are forgotten."""
        for _ in range(1000):
            call(breaker)
        for _ in range(49):
            call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.CLOSED
        call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.OPEN

    @given(st.lists(st.booleans(), max_size=60))
    def test_rate(self, failures: list[bool]) -> None:
        """It is open after just those calls after which half of the last ones, and enough, had failed."""
        breaker = CircuitBreaker(window=20, clock=Clock())
        for made, failed in enumerate(failures, start=1):
            call(breaker, TimeoutError() if failed else None)
            last = failures[max(0, made - 20) : made]
            expected = len(last) >= 10 and sum(last) / len(last) >= 0.5
            assert (state(breaker) is CircuitState.OPEN) is expected
            if expected:
                break

    def test_what_does_not_count(self, breaker: CircuitBreaker) -> None:
        """What the caller did wrong does not count, neither as a failure nor as a success."""
        for _ in range(1000):
            call(breaker, ValueError())
            call(breaker, errors.InvalidValueError())
            call(breaker, KeyboardInterrupt())
        assert state(breaker) is CircuitState.CLOSED
        for _ in range(10):
            call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.OPEN

    def test_permanent_but_not_the_callers_fault(self, breaker: CircuitBreaker) -> None:
        """A full disk is permanent and counts."""
        for _ in range(10):
            call(breaker, errors.StorageError(sqlite_errorcode=sqlite3.SQLITE_FULL))
        assert state(breaker) is CircuitState.OPEN

    def test_partial_answers_are_answers(self, breaker: CircuitBreaker) -> None:
        """A degraded success counts as a success."""
        for _ in range(11):
            call(breaker, PartialAnswersError(answered=1, asked=2))
        for _ in range(10):
            call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.CLOSED

    def test_real_lock(self, breaker: CircuitBreaker, tmp_path: Path) -> None:
        """A database that somebody keeps locked opens it; then the database is left alone."""
        holder = sqlite3.connect(tmp_path / "rows.db", isolation_level=None)
        waiter = sqlite3.connect(tmp_path / "rows.db", isolation_level=None, timeout=0)
        holder.execute("BEGIN IMMEDIATE")
        statements: list[str] = []
        waiter.set_trace_callback(statements.append)
        for _ in range(10):
            with pytest.raises(sqlite3.OperationalError):
                breaker.call(lambda: waiter.execute("BEGIN IMMEDIATE"))
        with pytest.raises(errors.CircuitOpenError):
            breaker.call(lambda: waiter.execute("BEGIN IMMEDIATE"))
        holder.close()
        waiter.close()
        assert len(statements) == 10


class TestOpen:
    def test_nothing_is_tried(self, clock: Clock) -> None:
        """While it is open no work runs, and the error says how long that goes on."""
        breaker = opened(clock)
        clock.now += 10
        with pytest.raises(errors.CircuitOpenError) as caught:
            breaker.call(lambda: pytest.fail("tried"))
        assert caught.value.retry_after == timedelta(seconds=20)

    def test_half_opens_after_the_pause(self, clock: Clock) -> None:
        """It half-opens 30 s after it opened, and not before."""
        breaker = opened(clock)
        clock.now += 29.9
        assert state(breaker) is CircuitState.OPEN
        clock.now += 0.1
        assert state(breaker) is CircuitState.HALF_OPEN

    def test_calls_of_before_are_no_probe(self, clock: Clock) -> None:
        """A call that began before it opened decides nothing when it ends."""
        breaker = CircuitBreaker(clock=clock)

        def slow() -> None:
            for _ in range(10):
                call(breaker, TimeoutError())
            clock.now += 30
            assert state(breaker) is CircuitState.HALF_OPEN

        breaker.call(slow)
        assert state(breaker) is CircuitState.HALF_OPEN


class TestHalfOpen:
    @pytest.fixture
    def breaker(self, clock: Clock) -> CircuitBreaker:
        breaker = opened(clock)
        clock.now += 30
        return breaker

    def test_probe_succeeds(self, breaker: CircuitBreaker) -> None:
        """A probe that succeeds closes it, and the failures of before are forgotten."""
        call(breaker)
        assert state(breaker) is CircuitState.CLOSED
        for _ in range(8):
            call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.CLOSED

    def test_probe_fails(self, breaker: CircuitBreaker, clock: Clock) -> None:
        """A probe that fails opens it again, for the whole pause."""
        call(breaker, TimeoutError())
        clock.now += 29
        assert state(breaker) is CircuitState.OPEN
        clock.now += 1
        assert state(breaker) is CircuitState.HALF_OPEN

    @pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
    def test_probe_says_nothing(self, breaker: CircuitBreaker, error: BaseException) -> None:
        """A probe that fails through the caller's fault, or is interrupted, leaves the place to the next."""
        call(breaker, error)
        assert state(breaker) is CircuitState.HALF_OPEN
        call(breaker)
        assert state(breaker) is CircuitState.CLOSED

    def test_one_probe(self, breaker: CircuitBreaker) -> None:
        """Of many threads one gets through, and the others are refused while it is under way."""
        refused = threading.Semaphore(0)
        tries: list[int] = []

        def probe() -> None:
            tries.append(1)
            for _ in range(19):
                assert refused.acquire(timeout=10)

        def one(_: int) -> bool:
            try:
                breaker.call(probe)
            except errors.CircuitOpenError:
                refused.release()
                return False
            return True

        with ThreadPoolExecutor(20) as pool:
            through = list(pool.map(one, range(20)))
        assert (sum(through), len(tries)) == (1, 1)
        assert state(breaker) is CircuitState.CLOSED


class TestThreads:
    def test_every_call_is_counted(self) -> None:
        """Calls that end at once in many threads are all counted."""
        breaker = CircuitBreaker(window=5000, minimum_calls=4001, threshold=1.0)

        def fail(_: int) -> None:
            for _ in range(500):
                call(breaker, TimeoutError())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fail, range(8)))
        assert state(breaker) is CircuitState.CLOSED
        call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.OPEN

    def test_work_runs_outside_the_lock(self, breaker: CircuitBreaker) -> None:
        """A call may be made within a call."""
        assert breaker.call(lambda: breaker.call(lambda: 7)) == 7


class TestMaking:
    def test_settings(self, clock: Clock) -> None:
        """Each number can be set."""
        settings = Settings(
            breaker_window=4,
            breaker_threshold=0.75,
            breaker_minimum_calls=4,
            breaker_pause=timedelta(seconds=5),
        )
        breaker = CircuitBreaker.from_settings(settings, clock=clock)
        for error in (TimeoutError(), None, TimeoutError()):
            call(breaker, error)
        assert state(breaker) is CircuitState.CLOSED
        call(breaker, TimeoutError())
        assert state(breaker) is CircuitState.OPEN
        clock.now += 5
        assert state(breaker) is CircuitState.HALF_OPEN

    @pytest.mark.parametrize(
        ("window", "minimum_calls", "threshold"), [(10, 11, 0.5), (10, 0, 0.5), (10, 5, 0.0), (10, 5, 1.1)]
    )
    def test_useless_numbers(self, window: int, minimum_calls: int, threshold: float) -> None:
        """Numbers with which it could never open, or never be closed, are refused."""
        with pytest.raises(errors.ConfigurationError):
            CircuitBreaker(window=window, minimum_calls=minimum_calls, threshold=threshold)
