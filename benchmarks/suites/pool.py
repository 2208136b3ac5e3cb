"""Against the founding design: one connection behind a mutex, default pragmas, every statement its own commit."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.data import artifact, filled, raw_connection, store_in
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.raw import RawSides
from benchmarks.suites.concurrency import in_threads
from consensus_orm import Phase

COUNT = 100
GROUP = Group(
    "artifacts stored on both sides",
    unit="write",
    count=COUNT,
    baseline="founding_1",
    targets=(
        Target("stored per second, compared, to the founding design, 1 thread", "ours_1", 5, "founding_1", None, True),
        Target("stored per second, compared, 10 threads each", "ours_10", 5, "founding_10", None, True),
    ),
)
GROUPS = (GROUP,)


def _together(threads: int, write: Callable[[int], None]) -> None:
    every = [threading.Thread(target=write, args=(number,)) for number in range(threads)]
    for thread in every:
        thread.start()
    for thread in every:
        thread.join()


def _mutexed(connection: sqlite3.Connection, bench: Bench, threads: int) -> Work:
    raw, mutex = RawSides(connection), threading.Lock()
    count = bench.times(COUNT)

    def work(round_: int) -> None:
        def write(thread: int) -> None:
            for number in range(thread, count, threads):
                with mutex:
                    raw.artifact(artifact((round_ + 1) * count + number))

        _together(threads, write)

    return work


def _file(bench: Bench, journal: str) -> Path:
    path = filled(bench.file("founding"), Phase.EXPAND, 0)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.close()
    return path


@GROUP.case(1, 10)
def founding(bench: Bench, threads: int) -> Iterator[Work]:
    """the founding design, uncompared, threads: {}"""
    connection: Any = sqlite3.connect(_file(bench, "DELETE"), isolation_level=None, check_same_thread=False)
    yield _mutexed(connection, bench, threads)
    connection.close()


@GROUP.case(1, 10)
def founding_tuned(bench: Bench, threads: int) -> Iterator[Work]:
    """the founding design with WAL and our pragmas, uncompared, threads: {}"""
    connection = raw_connection(_file(bench, "WAL"))
    yield _mutexed(connection, bench, threads)
    connection.close()


@GROUP.case(1, 10)
def ours(bench: Bench, threads: int) -> Iterator[Work]:
    """consensus_orm, dual_write, compared, threads: {}"""
    with store_in(bench.file("pool"), Phase.DUAL_WRITE) as store:
        # Ten times as many writes as the founding design gets: its fsyncs are what takes long.
        def work(_: int) -> dict[str, float]:
            extras = in_threads(store, threads, max(1, bench.times(COUNT * 10) // threads))
            return {"seconds": extras["seconds"] * bench.times(COUNT)}

        yield work


@GROUP.case("FULL", "OFF")
def ours_synchronous(bench: Bench, synchronous: str) -> Iterator[Work]:
    """consensus_orm, dual_write, synchronous {}"""
    with store_in(bench.file("synchronous"), Phase.DUAL_WRITE, synchronous=synchronous) as store:

        def work(_: int) -> dict[str, float]:
            return {"seconds": in_threads(store, 1, bench.times(COUNT))["seconds"] * bench.times(COUNT)}

        yield work
