"""The event loop: never held up by a lock, a statement or a wait, and any loop serves."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import time
import weakref
from datetime import timedelta

import pytest

from consensus_orm import (
    AsyncConsensusStore,
    ConsensusUnitOfWork,
    Settings,
    errors,
)
from tests.asyncio.tasks import ROW, SLOW, eventually, opened, ours, pool_of, stored, until
from tests.support.databases import Database
from tests.support.timing import assert_typical

pytestmark = pytest.mark.long


async def measure_lag(stop: asyncio.Event) -> float:
    """The longest time in seconds that the loop came late to something that was due."""
    longest = 0.0
    while not stop.is_set():
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - due)
    return longest


class TestTheLoop:
    def test_a_hundred_tasks_write(self, database: Database) -> None:
        """100 tasks write 1000 rows; the loop is never late by 20 ms, and at most pool_size units are at work."""
        lags, at_work = [], []
        others = set(ours())  # of a store that another test did not close

        async def write(store: AsyncConsensusStore, number: int) -> None:
            for _ in range(10):
                async with store.unit_of_work() as uow:
                    at_work.append(pool_of(store).checkedout())
                    await uow.artifacts.add(**ROW | {"spec_id": f"S{number}"})

        async def work() -> None:
            async with opened(database, pool_size=5, busy_timeout=timedelta(seconds=60)) as store:
                stop = asyncio.Event()
                lag = asyncio.create_task(measure_lag(stop))
                await asyncio.gather(*(write(store, number) for number in range(100)))
                await until(lambda: len(set(ours()) - others) <= 5)  # that of the opening may be about to end
                stop.set()
                lags.append(await lag)

        def measure() -> float:
            asyncio.run(work())
            assert len(stored(database)) == 1000 * len(lags)
            return lags[-1]

        assert_typical(measure, below=0.02)
        assert max(at_work) <= 5

    def test_the_loop_goes_on_while_the_lock_is_held(self, database: Database) -> None:
        """A unit of work that waits for another process, a retry and a long statement block nobody else."""
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        async def work() -> None:
            settings = {"busy_timeout": timedelta(seconds=0.2), "retry_attempts": 2}
            async with opened(database, **settings) as store:
                ticking = asyncio.create_task(tick())
                with database.writers_waiting(), pytest.raises(errors.DatabaseBusyError):
                    await store.run(lambda uow: uow.artifacts.add(**ROW))
                waited, before = ticks, ticks
                async with store.unit_of_work(read_only=True) as uow:
                    await uow.run_sync(lambda uow: uow._execute(SLOW).fetchone())
                ticking.cancel()
                assert waited > 20
                assert ticks > before + 5

        asyncio.run(work())

    def test_waiting_takes_turns(self, database: Database) -> None:
        """Units of work begin in the order in which they were asked for, and those that wait have no thread."""
        order: list[int] = []
        others = set(ours())

        async def one(store: AsyncConsensusStore, number: int) -> None:
            async with store.unit_of_work() as uow:
                order.append(number)
                await uow.artifacts.specs()

        async def work() -> None:
            async with opened(database, pool_size=1) as store, asyncio.TaskGroup() as tasks, store.unit_of_work():
                for number in range(50):
                    tasks.create_task(one(store, number))
                await asyncio.sleep(0.01)
                await until(lambda: len(set(ours()) - others) == 1)  # that of the opening may be about to end

        asyncio.run(work())
        assert order == list(range(50))

    def test_context_variables(self, database: Database) -> None:
        """A call sees the context variables of whoever made it; begin and end share one context."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
        seen: list[str] = []

        async def work() -> None:
            async with opened(database) as store:
                variable.set("outside")
                async with store.unit_of_work() as uow:
                    await uow.run_sync(lambda uow: uow.on_commit(lambda: seen.append(variable.get())))
                    variable.set("inside")
                    uow.on_commit(lambda: seen.append(variable.get()))
                    await uow.run_sync(lambda uow: seen.append(variable.get()))

        asyncio.run(work())
        assert seen == ["inside", "outside", "inside"]

    def test_one_loop_after_the_other(self, database: Database) -> None:
        """A store goes on in the next event loop."""
        store = asyncio.run(AsyncConsensusStore.open(database.where, settings=Settings(pool_size=1)))

        async def work() -> None:
            await asyncio.gather(*(store.run(lambda uow: uow.artifacts.add(**ROW)) for _ in range(5)))

        for _ in range(2):
            asyncio.run(work())
        asyncio.run(store.close())
        assert len(stored(database)) == 10

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_a_forked_child_has_threads_of_its_own(self, database: Database) -> None:
        """A store that was used before a fork can be used in the child, as the synchronous one can."""
        store = asyncio.run(AsyncConsensusStore.open(database.where))

        def write(spec: str) -> None:
            asyncio.run(store.run(lambda uow: uow.artifacts.add(**ROW | {"spec_id": spec})))

        write("before")
        pid = os.fork()
        if pid == 0:
            try:
                write("child")
            finally:
                os._exit(0)
        if not eventually(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None, 20):
            os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == 0, "the child hung"
        write("after")
        asyncio.run(store.close())
        assert stored(database) == ["before", "child", "after"]

    def test_frames_are_let_go(self, database: Database) -> None:
        """Who drops an error drops what the work had open; no garbage collection is needed."""
        alive: list[weakref.ref[object]] = []

        class Resource:
            pass

        def fail(uow: ConsensusUnitOfWork) -> None:
            resource = Resource()
            alive.append(weakref.ref(resource))
            raise KeyError

        async def work() -> None:
            async with opened(database) as store:
                with contextlib.suppress(KeyError):
                    async with store.unit_of_work() as uow:
                        await uow.run_sync(fail)
                await asyncio.sleep(0.01)
                assert alive[0]() is None

        gc.disable()
        try:
            asyncio.run(work())
        finally:
            gc.enable()
