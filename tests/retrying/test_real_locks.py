"""Retries against a lock that another process really holds."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from consensus_orm.retrying.retrier import Retrier, RetryPolicy
from consensus_orm.telemetry import CallEvent, Event, RetryEvent, Telemetry, Totals
from tests.retrying.test_retry import EAGER, ms

LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
print("free", flush=True)
"""

LOCK_AT_RANDOM = """
import random, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
print("ready", flush=True)
while True:
    connection.execute("BEGIN IMMEDIATE")
    time.sleep(random.uniform(0, 0.02))
    connection.execute("COMMIT")
    time.sleep(random.uniform(0, 0.01))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.db"
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
    return path


@pytest.fixture
def other_process(path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts programs that open the file, and waits for their first line."""
    running: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=0)


def insert(path: Path, value: int) -> None:
    """A whole unit of work, without any patience of its own."""
    with closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES (?)", [value])
        connection.execute("COMMIT")


def stored(path: Path) -> list[int]:
    with closing(connect(path)) as connection:
        return sorted(value for (value,) in connection.execute("SELECT x FROM t"))


class TestRealLocks:
    def test_recovers(self, path: Path, other_process: Callable[[str], subprocess.Popen[str]]) -> None:
        """Work that meets the lock of another process is committed, once, when that lets go."""
        process = other_process(LOCK)
        events: list[Event] = []

        def let_go(event: Event) -> None:
            events.append(event)
            if isinstance(event, RetryEvent) and event.attempt == 3:
                process.communicate("\n")

        Retrier(RetryPolicy(initial=ms(1)), telemetry=Telemetry([let_go])).call(lambda: insert(path, 1))
        reasons = [event.classification.reason for event in events if isinstance(event, RetryEvent)]
        assert reasons == ["SQLITE_BUSY"] * 3
        assert isinstance(events[-1], CallEvent)
        assert (events[-1].outcome, events[-1].attempts) == ("recovered", 4)
        assert stored(path) == [1]

    def test_gives_up(self, path: Path, other_process: Callable[[str], subprocess.Popen[str]]) -> None:
        """A lock that is never let go ends with SQLite's own error, and nothing is written."""
        other_process(LOCK)
        with pytest.raises(sqlite3.OperationalError) as caught:
            Retrier(RetryPolicy(initial=ms(1))).call(lambda: insert(path, 1))
        assert caught.value.sqlite_errorcode == sqlite3.SQLITE_BUSY
        assert stored(path) == []

    def test_exactly_once(self, path: Path, other_process: Callable[[str], subprocess.Popen[str]]) -> None:
        """Under locks at random, every unit of work of every thread is committed exactly once."""
        other_process(LOCK_AT_RANDOM)
        policy = RetryPolicy(attempts=100, initial=ms(2), maximum=ms(16), jitter=1)
        retrier = Retrier(policy)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda value: retrier.call(lambda: insert(path, value)), range(60)))
        assert stored(path) == list(range(60))
        totals = retrier.telemetry.totals
        assert totals.first_try + totals.recovered == 60
        assert totals.recovered > 0
        assert totals.retries >= totals.recovered

    def test_constraint_is_tried_once(self, path: Path) -> None:
        """A real permanent error is tried once, while transient ones go on."""
        with closing(connect(path)) as connection:
            connection.execute("CREATE UNIQUE INDEX i ON t (x)")
        retrier, tries = Retrier(EAGER), []

        def work() -> None:
            tries.append(1)
            insert(path, 7)

        retrier.call(work)
        with pytest.raises(sqlite3.IntegrityError):
            retrier.call(work)
        assert (len(tries), retrier.telemetry.totals) == (2, Totals(first_try=1, permanent=1))
