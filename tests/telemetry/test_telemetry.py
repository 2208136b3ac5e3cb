"""Telemetry: listeners are told of calls and retries, and none of them fails a call."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest

from consensus_orm.retrying.classification import Classification, ErrorKind
from consensus_orm.retrying.retrier import Retrier, RetryPolicy
from consensus_orm.telemetry import (
    CallEvent,
    Event,
    Outcome,
    RetryEvent,
    Telemetry,
    Totals,
    log_event,
)

BUSY = Classification(ErrorKind.RETRYABLE, "SQLITE_BUSY")
RETRY = RetryEvent("load", 1, timedelta(seconds=0.1), BUSY, "OperationalError", timedelta(seconds=2))
EXHAUSTED = CallEvent("load", Outcome.EXHAUSTED, 6, timedelta(seconds=3), BUSY, "OperationalError")


def work(telemetry: Telemetry, *failures: Exception) -> None:
    """Make a call with real retries whose tries fail like this."""
    left = list(failures)

    def once() -> None:
        if left:
            raise left.pop(0)

    policy = RetryPolicy(initial=timedelta(milliseconds=1), attempts=3)
    with suppress(TimeoutError, ValueError):
        Retrier(policy, telemetry=telemetry).call(once)


class TestCounting:
    def test_outcomes(self) -> None:
        """Each way to end is counted by itself, and each retry."""
        telemetry = Telemetry(hooks=())
        work(telemetry)
        work(telemetry)
        work(telemetry, TimeoutError())
        work(telemetry, ValueError())
        work(telemetry, *[TimeoutError()] * 3)
        assert telemetry.totals == Totals(first_try=2, recovered=1, exhausted=1, permanent=1, retries=3)

    def test_recovered_share(self) -> None:
        """The share that recovered is among the calls that met transient errors; there may be none."""
        assert Totals(first_try=50, recovered=9, exhausted=1, permanent=50).recovered_share == 0.9
        assert Totals(first_try=50, permanent=50).recovered_share == 1.0

    def test_threads(self) -> None:
        """Nothing is lost between threads."""
        telemetry = Telemetry(hooks=())

        def count(_: int) -> None:
            for _ in range(2000):
                telemetry.first_try()
                telemetry.tell(RETRY)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(8)))
        assert telemetry.totals == Totals(first_try=16000, retries=16000)


class TestHooks:
    def test_retry_event(self) -> None:
        """A retry is told with its try, wait, verdict and elapsed time, and with no message."""
        events: list[Event] = []
        work(Telemetry([events.append]), TimeoutError("secret"))
        retry, call = events
        assert isinstance(retry, RetryEvent)
        assert (retry.name, retry.attempt, retry.error_type) == ("work", 1, "TimeoutError")
        assert retry.classification == Classification(ErrorKind.RETRYABLE, "TimeoutError")
        assert timedelta() < retry.wait <= timedelta(milliseconds=1)
        assert isinstance(call, CallEvent)
        assert (call.outcome, call.attempts) == (Outcome.RECOVERED, 2)
        assert call.elapsed >= retry.elapsed + retry.wait
        assert "secret" not in repr(events)

    def test_first_tries_are_not_told(self) -> None:
        """A call that succeeds at once is only counted."""
        events: list[Event] = []
        work(Telemetry([events.append]))
        assert events == []

    def test_events_are_frozen(self) -> None:
        """No hook can change what the next one gets."""
        with pytest.raises(FrozenInstanceError):
            RETRY.attempt = 2  # type: ignore[misc]

    def test_failing_hook(self, caplog: pytest.LogCaptureFixture) -> None:
        """A hook that fails disturbs neither the call nor the other hooks, and is told of without contents."""
        events: list[Event] = []

        def broken(event: Event) -> None:
            raise RuntimeError("secret")

        telemetry = Telemetry([broken, events.append])
        work(telemetry, TimeoutError("secret"))
        assert telemetry.totals.recovered == 1
        assert len(events) == 2
        assert "RuntimeError" in caplog.text
        assert "secret" not in caplog.text

    def test_added_hook(self) -> None:
        """A hook that is added later gets what happens later, beside the others."""
        events: list[Event] = []
        before: list[Event] = []
        telemetry = Telemetry([before.append])
        telemetry.tell(RETRY)
        telemetry.add_hook(events.append)
        telemetry.tell(EXHAUSTED)
        assert (before, events) == ([RETRY, EXHAUSTED], [EXHAUSTED])


class TestLogging:
    def test_is_the_default(self, caplog: pytest.LogCaptureFixture) -> None:
        """Without hooks of its own, a telemetry logs."""
        Telemetry().tell(EXHAUSTED)
        assert [record.name for record in caplog.records] == ["consensus_orm.telemetry"]

    def test_fields(self, caplog: pytest.LogCaptureFixture) -> None:
        """The facts are attributes of the record, as plain values."""
        caplog.set_level(logging.INFO)
        log_event(RETRY)
        fields = {
            name.removeprefix("consensus_orm."): value
            for name, value in vars(caplog.records[0]).items()
            if name.startswith("consensus_orm.")
        }
        assert fields == {
            "work": "load",
            "attempt": 1,
            "wait": 0.1,
            "kind": "retryable",
            "reason": "SQLITE_BUSY",
            "error_type": "OperationalError",
            "elapsed": 2.0,
        }
        assert caplog.messages == ["load: SQLITE_BUSY, trying again in 0.100 s"]

    @pytest.mark.parametrize(
        ("outcome", "level"),
        [
            (Outcome.EXHAUSTED, logging.WARNING),
            (Outcome.RECOVERED, logging.INFO),
            (Outcome.PERMANENT, logging.DEBUG),
        ],
    )
    def test_levels(self, caplog: pytest.LogCaptureFixture, outcome: Outcome, level: int) -> None:
        """Only a call for which nothing helped is a warning."""
        caplog.set_level(logging.DEBUG)
        log_event(CallEvent("load", outcome, 6, timedelta(seconds=3)))
        assert [record.levelno for record in caplog.records] == [level]


class TestLibraries:
    def test_are_not_loaded(self) -> None:
        """None of the optional libraries is imported before it is asked for."""
        program = (
            "import sys, consensus_orm.telemetry as t; t.Telemetry();"
            "sys.exit(any(name in sys.modules for name in ('structlog', 'prometheus_client', 'opentelemetry')))"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("library", "package"),
        [
            ("structlog", "structlog"),
            ("prometheus", "prometheus-client"),
            ("opentelemetry", "opentelemetry-api"),
        ],
    )
    def test_missing(self, library: str, package: str) -> None:
        """A library that is not installed is named, with the command that installs it, and nothing is switched on."""
        # None in sys.modules makes an import fail, whether the library is installed or not.
        program = (
            "import sys;"
            "sys.modules.update(dict.fromkeys(['structlog', 'prometheus_client', 'opentelemetry.metrics']));"
            "from consensus_orm import ConsensusStore, errors, telemetry;"
            "store = ConsensusStore.open(':memory:'); plain = type(store.unit_of_work())\n"
            f"try: telemetry.report_to_{library}(store)\n"
            "except errors.ConfigurationError as error: print(error, type(store.unit_of_work()) is plain)"
        )
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert done.stdout == (f"{package} is not installed: run: pip install 'consensus-orm[observability]' True\n")
