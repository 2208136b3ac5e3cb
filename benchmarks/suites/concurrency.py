"""Compared units of work of several threads and processes on one file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data import artifact, store_in
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import processes, waits
from consensus_orm import ConsensusStore, Phase

EACH = 100
"""Units of work of each thread."""

GROUP = Group(
    "compared writes of several threads or processes, phase 2",
    unit="write",
    count=1,
    baseline="threads_1",
    targets=(
        Target("throughput of 10 threads, to one thread", "threads_10", 1.0, "threads_1", None, True),
        Target("p99 of a unit of work with 10 threads, ms", "threads_10", 25, None, "p99 ms"),
        Target("longest wait with 10 threads, ms", "threads_10", 100, None, "longest ms"),
        Target("errors that reach a caller with 10 threads", "threads_10", 0, None, "errors"),
        Target("errors that reach a caller with 4 processes", "in_processes_4", 0, None, "errors"),
    ),
)
GROUPS = (GROUP,)


def write(store: ConsensusStore, count: int, writer: int) -> tuple[list[float], int]:
    """Write artifacts, each in its own unit of work; seconds of each, and errors."""
    seconds, failed = [], 0
    for number in range(count):
        started = time.perf_counter()
        try:
            with store.unit_of_work() as uow:
                uow.artifacts.add(**artifact(writer * 10**6 + number))
        except Exception:
            failed += 1
        seconds.append(time.perf_counter() - started)
    return seconds, failed


def _extras(results: list[tuple[list[float], int]], seconds: float) -> dict[str, float]:
    every = [second for each, _ in results for second in each]
    extras = {**waits(every), "errors": float(sum(failed for _, failed in results)), "writes/s": len(every) / seconds}
    return {"seconds": seconds / len(every), **extras}


def in_threads(store: ConsensusStore, threads: int, count: int) -> dict[str, float]:
    """Write from several threads of this process."""
    results: list[tuple[list[float], int]] = []
    barrier = threading.Barrier(threads + 1)

    def one(writer: int) -> None:
        barrier.wait()
        results.append(write(store, count, writer))

    started_threads = [threading.Thread(target=one, args=(writer,)) for writer in range(threads)]
    for thread in started_threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in started_threads:
        thread.join()
    return _extras(results, time.perf_counter() - started)


@GROUP.case(1, 2, 4, 10)
def threads(bench: Bench, count: int) -> Iterator[Work]:
    """consensus_orm, {} threads of one process"""
    with store_in(bench.file("threads"), Phase.DUAL_WRITE) as store:
        # One thread writes as many as ten do, so that both see the same checkpoints.
        yield lambda _: in_threads(store, count, max(1, bench.times(EACH * 10) // count))


def _in_process(barrier: Any, path: str, count: int, writer: int) -> tuple[list[float], int, float, float]:
    with ConsensusStore.open(path) as store:
        write(store, 1, writer)
        barrier.wait()
        started = time.monotonic()
        return *write(store, count, writer), started, time.monotonic()


@GROUP.case(2, 4)
def in_processes(bench: Bench, count: int) -> Iterator[Work]:
    """consensus_orm, {} processes"""
    path: Path = bench.file("processes")
    with store_in(path, Phase.DUAL_WRITE):
        pass

    def work(round_: int) -> dict[str, float]:
        each = max(1, max(1, bench.times(EACH * 10) // count))
        results = processes(_in_process, [(str(path), each, writer) for writer in range(count)])
        seconds = max(end for *_, end in results) - min(start for *_, start, _ in results)
        return _extras([(waited, failed) for waited, failed, *_ in results], seconds)

    yield work
