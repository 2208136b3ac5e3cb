"""What time alone does not tell: memory, how long the write lock is held, and how long a writer waits.

The functions that run in processes of their own import nothing but what they measure.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from consensus_orm import ConsensusStore
from consensus_orm.databases.engine import DriverConnection

__all__ = ["Waits", "live_writer", "lock_times", "peak_memory", "percentile", "processes", "waits"]

Waits = dict[str, float]
"""`p99 ms` and `longest ms` of some operations."""

_SPAWN = multiprocessing.get_context("spawn")


def percentile(values: list[float], share: float) -> float:
    """The value that a share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def waits(seconds: list[float]) -> Waits:
    """The waits as the targets speak of them, in ms."""
    return {"p99 ms": percentile(seconds, 0.99) * 1000, "longest ms": max(seconds) * 1000}


@contextmanager
def lock_times() -> Iterator[list[float]]:
    """How long, in seconds, units of work of this process held the write lock, and checkpoints that take it."""
    held: list[float] = []
    begin, commit = DriverConnection.begin_writing, DriverConnection.commit
    checkpoint = DriverConnection.checkpoint
    since: dict[int, float] = {}

    def begin_writing(self: DriverConnection) -> None:
        begin(self)
        since[id(self)] = time.perf_counter()

    def timed_commit(self: DriverConnection, *last: Any) -> None:
        commit(self, *last)
        if (started := since.pop(id(self), None)) is not None:
            held.append(time.perf_counter() - started)

    def timed_checkpoint(self: DriverConnection, mode: str) -> int:
        started = time.perf_counter()
        pages = checkpoint(self, mode)
        if mode != "PASSIVE":
            held.append(time.perf_counter() - started)
        return pages

    DriverConnection.begin_writing, DriverConnection.commit = begin_writing, timed_commit  # type: ignore[method-assign]
    DriverConnection.checkpoint = timed_checkpoint  # type: ignore[assignment, method-assign]
    try:
        yield held
    finally:
        DriverConnection.begin_writing, DriverConnection.commit = begin, commit  # type: ignore[method-assign]
        DriverConnection.checkpoint = checkpoint  # type: ignore[method-assign]


def processes(target: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Run a function in several processes that begin together, and gather what it returns.

    Args:
        target: Called with a barrier and its arguments; importable.
        arguments: One tuple for each process.
    """
    barrier = _SPAWN.Barrier(len(arguments))
    pipes = [_SPAWN.Pipe() for _ in arguments]
    children = [
        _SPAWN.Process(target=_answer, args=(there, target, barrier, *given))
        for (_, there), given in zip(pipes, arguments, strict=True)
    ]
    for child in children:
        child.start()
    for _, there in pipes:
        there.close()
    results = [here.recv() for here, _ in pipes]
    for child in children:
        child.join()
    return results


def _answer(pipe: Connection, target: Callable[..., Any], *arguments: Any) -> None:
    pipe.send(target(*arguments))


@contextmanager
def live_writer(path: Path | str) -> Iterator[Waits]:
    """Another process that writes an artifact every 2 ms; its waits are there when the block has ended."""
    found: Waits = {}
    here, there = _SPAWN.Pipe()
    child = _SPAWN.Process(target=_write_on, args=(there, str(path)))
    child.start()
    here.recv()  # it is writing
    try:
        yield found
    finally:
        here.send("stop")
        found.update(here.recv())
        child.join()


def _write_on(pipe: Connection, path: str) -> None:
    from benchmarks.data import artifact

    seconds: list[float] = []
    with ConsensusStore.open(path) as store:
        while not pipe.poll():
            started = time.perf_counter()
            with store.unit_of_work() as uow:
                uow.artifacts.add(**artifact(10**9 + len(seconds)))
            seconds.append(time.perf_counter() - started)
            if len(seconds) == 1:
                pipe.send("writing")
            time.sleep(0.002)
    pipe.send(waits(seconds[1:] or seconds) | {"median ms": statistics.median(seconds) * 1000})


def peak_memory(step: str, path: Path) -> float:
    """Anonymous memory in MB, at its peak, of a process that does nothing but a step of the migration."""
    (megabytes,) = processes(_watch_memory, [(step, str(path))])
    return float(megabytes)


def _watch_memory(_barrier: Any, step: str, path: str) -> float:
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ConsensusStore.open(path) as store:
        getattr(store.migration, step)()
    done.set()
    watcher.join()
    return max(peak[0], _anonymous_mb())


def _anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0
