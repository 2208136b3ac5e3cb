"""Compared units of work of coroutines, beside those of threads; and how late the event loop came meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from benchmarks.data import artifact, store_in
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.suites.concurrency import in_threads
from consensus_orm import AsyncConsensusStore, AsyncConsensusUnitOfWork, ConsensusStore, Phase

WRITES = 1000
READS = 2000

WRITE = Group(
    "compared writes of coroutines, phase 2, each in a unit of work",
    unit="write",
    count=WRITES,
    baseline="threads_1",
    targets=(
        Target("one task that writes, to one thread", "tasks_1", 1.8, than="threads_1"),
        Target("longest the event loop came late while 100 tasks write, ms", "tasks_100", 20, extra="longest lag ms"),
    ),
)
READ = Group(
    "reads of coroutines by id, phase 2, each in a unit of work",
    unit="read",
    count=READS,
    baseline="one_thread",
    targets=(Target("one task that reads, to one thread", "reading_tasks_1", 3.5, than="one_thread"),),
)
GROUPS = (WRITE, READ)


async def _lag(stop: asyncio.Event) -> float:
    longest = 0.0
    while not stop.is_set():
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - due)
    return longest


async def _in_tasks(
    store: AsyncConsensusStore,
    tasks: int,
    count: int,
    work: Callable[[AsyncConsensusUnitOfWork, int], Awaitable[object]],
    *,
    read_only: bool = False,
) -> dict[str, float]:
    async def one(task: int) -> None:
        for number in range(task, count, tasks):
            async with store.unit_of_work(read_only=read_only) as uow:
                await work(uow, number)

    stop = asyncio.Event()
    lag = asyncio.create_task(_lag(stop))
    started = time.perf_counter()
    await asyncio.gather(*(one(task) for task in range(tasks)))
    seconds = time.perf_counter() - started
    stop.set()
    return {"seconds": seconds, "longest lag ms": await lag * 1000}


async def _write(uow: AsyncConsensusUnitOfWork, number: int) -> None:
    await uow.artifacts.add(**artifact(number))


async def _read(uow: AsyncConsensusUnitOfWork, number: int) -> None:
    assert await uow.artifacts.get(number % WRITES + 1) is not None


@WRITE.case(1, 10)
def threads(bench: Bench, count: int) -> Iterator[Work]:
    """consensus_orm, {} threads"""
    with store_in(bench.file("threads"), Phase.DUAL_WRITE) as store:

        def work(_: int) -> dict[str, float]:
            times = bench.times(WRITES)
            return {"seconds": in_threads(store, count, -(-times // count))["seconds"] * times}

        yield work


@WRITE.case(1, 10, 100)
def tasks(bench: Bench, count: int) -> Iterator[Work]:
    """consensus_orm, {} tasks of one event loop"""
    with store_in(bench.file("tasks"), Phase.DUAL_WRITE) as store:
        yield lambda _: asyncio.run(_in_tasks(AsyncConsensusStore(store), count, bench.times(WRITES), _write))


def _readable(bench: Bench) -> Iterator[ConsensusStore]:
    with store_in(bench.file("reads"), Phase.DUAL_WRITE) as store:
        with store.unit_of_work() as uow:
            uow.artifacts.add_many([artifact(number) for number in range(WRITES)])
        yield store


@READ.case()
def one_thread(bench: Bench) -> Iterator[Work]:
    """consensus_orm, one thread"""
    for store in _readable(bench):

        def work(_: int, store: ConsensusStore = store) -> None:
            for number in range(bench.times(READS)):
                with store.unit_of_work(read_only=True) as uow:
                    assert uow.artifacts.get(number % WRITES + 1) is not None

        yield work


@READ.case(1, 100)
def reading_tasks(bench: Bench, count: int) -> Iterator[Work]:
    """consensus_orm, {} tasks of one event loop"""
    for store in _readable(bench):

        def work(_: int, store: ConsensusStore = store) -> dict[str, float]:
            fronted = AsyncConsensusStore(store)
            return asyncio.run(_in_tasks(fronted, count, bench.times(READS), _read, read_only=True))

        yield work
