"""The store for coroutines: the same answers as the synchronous one, and nothing left behind by a cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import os
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, assert_type

import pytest
from sqlalchemy import Engine, event, text

from consensus_orm import (
    Artifact,
    AsyncConsensusStore,
    AsyncConsensusUnitOfWork,
    ConsensusStore,
    ConsensusUnitOfWork,
    ExecutionTracker,
    Phase,
    Settings,
    errors,
)
from consensus_orm.asyncio import store
from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.executions import Executions
from consensus_orm.consensus.runs import Runs
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.databases.engine import source_of
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.databases.pool import Pool
from consensus_orm.migration import Migration
from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.progress import Progress
from consensus_orm.repository.dual_write import Repository
from consensus_orm.unit_of_work.unit import UnitOfWork
from tests.databases import Database, build_legacy
from tests.timing import assert_typical

T = TypeVar("T")

ROW: dict[str, Any] = {"spec_id": "S", "stage": "plan", "agent_name": "gemini", "content_json": "{}", "run_id": "r"}
SYNTHESIS: dict[str, Any] = {"spec_id": "S", "stage": "plan", "output_markdown": "#", "status": "ok", "run_id": "r"}
SLOW = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3000000) SELECT count(*) FROM n"
"""Some tenths of a second."""


@pytest.fixture
def database(new_database: Database) -> Database:
    """A prepared database at DUAL_WRITE."""
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where) as store:
        store.migration.migrate(Phase.DUAL_WRITE, soak=False)
    return new_database


@contextlib.asynccontextmanager
async def opened(database: Database, **settings: Any) -> AsyncIterator[AsyncConsensusStore]:
    """A store that is proved to leave nothing behind: no connection lent, no lock, no thread."""
    before = set(ours())
    async with await AsyncConsensusStore.open(database.where, settings=Settings(**settings)) as store:
        yield store
        await store._threads.close()
        assert pool_of(store).checkedout() == 0
        with database.writers_waiting():  # nobody has a lock
            pass
    assert eventually(lambda: before >= set(ours())), "threads are left"


def pool_of(store: AsyncConsensusStore) -> Pool:
    assert isinstance(store.engine.pool, Pool)
    return store.engine.pool


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "consensus_orm asyncio"]


def eventually(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


async def until(condition: Callable[[], bool]) -> None:
    """Wait on the loop for something that another task or a thread does."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def stored(database: Database) -> list[str]:
    """The specs of the artifacts written by a test."""
    query = "SELECT spec_id FROM consensus_artifacts WHERE agent_name = 'gemini' AND run_id = 'r' ORDER BY id"
    return [spec for (spec,) in database.rows_of(query)]


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and see it end so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class TestSameAsTheSynchronousStore:
    def test_records_and_order_in_every_phase(self, every_phase: ConsensusStore) -> None:
        """What coroutines write and read is what the synchronous store reads, in every phase."""

        async def work() -> list[Any]:
            store = AsyncConsensusStore(every_phase)
            async with store.unit_of_work() as uow:
                added = [await uow.artifacts.add(**ROW), *await uow.artifacts.add_many([ROW, ROW])]
                await uow.syntheses.add(**SYNTHESIS)
                await uow.executions.record_spawn(
                    agent_id="a", spec_id="S", stage="plan", phase_type="quality_gate", agent_name="gemini"
                )
                assert (uow.phase, uow.prepared) == (every_phase.migration.phase, True)
            async with store.unit_of_work(read_only=True) as uow:
                return [
                    added,
                    await uow.artifacts.get(added[0].id),
                    await uow.artifacts.list(),
                    await uow.artifacts.count(spec_id="S"),
                    await uow.artifacts.specs(),
                    await uow.syntheses.latest(spec_id="S", stage="plan"),
                    await uow.runs.list(spec_id="S"),
                    await uow.executions.in_flight(),
                    await uow.repository("artifacts").rows({"spec_id": "S"}),
                ]

        found = asyncio.run(work())
        with every_phase.unit_of_work(read_only=True) as uow:
            keys = [artifact.id for artifact in found[0]]
            assert found == [
                [uow.artifacts.get(key) for key in keys],
                uow.artifacts.get(keys[0]),
                uow.artifacts.list(),
                uow.artifacts.count(spec_id="S"),
                uow.artifacts.specs(),
                uow.syntheses.latest(spec_id="S", stage="plan"),
                uow.runs.list(spec_id="S"),
                uow.executions.in_flight(),
                uow.repository("artifacts").rows({"spec_id": "S"}),
            ]

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (store.AsyncArtifacts, Artifacts),
            (store.AsyncSyntheses, Syntheses),
            (store.AsyncRuns, Runs),
            (store.AsyncExecutions, Executions),
            (store.AsyncRepository, Repository),
            (store.AsyncMigration, Migration),
            (store.AsyncMaintenance, Maintenance),
        ],
        ids=lambda owner: owner.__name__,
    )
    def test_no_method_is_missing(self, ours: type, theirs: type) -> None:
        """Each public method has its counterpart under the same name, to be awaited, with the same arguments."""
        names = {name for name in dir(theirs) if not name.startswith("_")}
        assert {name for name in vars(ours) if not name.startswith("_")} == names
        for name in names - {"phase"}:  # a property of the migration: `await store.migration.phase`
            assert inspect.iscoroutinefunction(getattr(ours, name)), name
            assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(theirs, name))
            assert getattr(ours, name).__doc__ == getattr(theirs, name).__doc__

    @pytest.mark.parametrize(
        ("ours", "theirs", "otherwise"),
        [
            # A coroutine is cancelled, not told by an event; `run_sync` lends the session.
            (AsyncConsensusStore, ConsensusStore, set()),
            (AsyncConsensusUnitOfWork, ConsensusUnitOfWork, {"session", "catalog", "engine", "statements", "settings"}),
        ],
        ids=lambda owner: getattr(owner, "__name__", ""),
    )
    def test_no_name_is_missing(self, database: Database, ours: type, theirs: type, otherwise: set[str]) -> None:
        """The store and the unit of work have the names of the synchronous ones."""

        async def names() -> set[str]:
            async with opened(database) as store, store.unit_of_work() as uow:
                return set(dir(store if ours is AsyncConsensusStore else uow))

        public = {name for name in dir(theirs) if not name.startswith("_")}
        assert public - otherwise <= asyncio.run(names())

    def test_types(self, database: Database) -> None:
        """A type checker knows what an awaited call gives (mypy reads this), and so it is."""

        async def work() -> None:
            async with opened(database) as store:
                async with store.unit_of_work() as uow:
                    assert_type(await uow.artifacts.add(**ROW), Artifact)
                    assert_type(await uow.artifacts.list(spec_id="S", limit=1), list[Artifact])
                    assert_type(await uow.artifacts.delete(spec_id="S"), int)
                    assert_type(await uow.run_sync(lambda uow: uow.artifacts.count()), int)
                    with contextlib.suppress(TypeError):
                        await uow.artifacts.add(spec_id="S")  # type: ignore[call-arg]
                assert_type(await store.migration.phase, Phase)
                assert_type(await store.migration.backfill(), BackfillReport)
                assert_type(await store.run(lambda uow: uow.artifacts.specs()), list[str])

        asyncio.run(work())

    def test_errors(self, database: Database) -> None:
        """The same errors come out, each rolling back what was written before it."""

        async def work() -> None:
            async with opened(database, pool_size=1, pool_timeout=0.05) as store:
                failing: dict[type[Exception], Callable[[AsyncConsensusUnitOfWork], Awaitable[object]]] = {
                    errors.UnknownAgentError: lambda uow: uow.executions.record_completion("nobody", ""),
                    errors.InvalidValueError: lambda uow: uow.artifacts.add(**ROW | {"spec_id": ""}),
                    errors.StorageError: lambda uow: uow.run_sync(lambda uow: uow._execute("SELECT nonsense")),
                    ZeroDivisionError: lambda uow: uow.run_sync(lambda uow: 1 // 0),
                }
                for error, fail in failing.items():
                    with pytest.raises(error):
                        async with store.unit_of_work() as uow:
                            await uow.artifacts.add(**ROW)
                            await fail(uow)
                with pytest.raises(errors.ReadOnlyUnitOfWorkError):
                    async with store.unit_of_work(read_only=True) as uow:
                        await uow.artifacts.add(**ROW)
                with pytest.raises(errors.PoolExhaustedError):
                    async with store.unit_of_work(read_only=True), store.unit_of_work(read_only=True):
                        pass
                with pytest.raises(RuntimeError, match="StopIteration"):
                    async with store.unit_of_work() as uow:
                        await uow.run_sync(lambda uow: next(iter(())))

        asyncio.run(work())
        assert stored(database) == []

    def test_an_error_of_the_body_rolls_back(self, database: Database) -> None:
        """Whatever the body raises comes out of the block as it was raised, and nothing is kept."""
        mine = ValueError()

        async def work() -> None:
            async with opened(database) as store, store.unit_of_work() as uow:
                await uow.artifacts.add(**ROW)
                raise mine

        with pytest.raises(ValueError, match=r"^$") as caught:
            asyncio.run(work())
        assert caught.value is mine
        assert stored(database) == []

    def test_closed_and_unopened_units(self, database: Database) -> None:
        """A unit of work is used in its block, once."""

        async def work() -> None:
            async with opened(database) as store:
                unit = store.unit_of_work()
                with pytest.raises(errors.UnitOfWorkClosedError, match="has not begun"):
                    _ = unit.phase
                with pytest.raises(errors.UnitOfWorkClosedError):
                    await unit.artifacts.specs()
                async with unit:
                    pass
                with pytest.raises(errors.UnitOfWorkClosedError, match="over"):
                    await unit.artifacts.specs()
                with pytest.raises(errors.UnitOfWorkClosedError, match="once"):
                    async with unit:
                        pass

        asyncio.run(work())

    def test_opening(self, tmp_path: Path) -> None:
        """Opening writes nothing and fails as the synchronous store does; a read of nothing is empty."""

        async def work() -> None:
            path = tmp_path / "new.db"
            async with await AsyncConsensusStore.open(path) as store:
                async with store.unit_of_work(read_only=True) as uow:
                    assert await uow.artifacts.list() == []
                assert store.initial_phase is await store.migration.phase is Phase.CONTRACT
            assert not path.exists()
            with pytest.raises(errors.ConfigurationError):
                await AsyncConsensusStore.open("nonsense://")

        asyncio.run(work())

    def test_memory(self) -> None:
        """A database in memory has one connection, so its units of work take turns."""

        async def work() -> list[Artifact]:
            async with await AsyncConsensusStore.open(":memory:") as store:
                await asyncio.gather(*(store.run(lambda uow: uow.artifacts.add(**ROW)) for _ in range(20)))
                return await store.run(lambda uow: uow.artifacts.list(), read_only=True)

        assert len(asyncio.run(work())) == 20

    def test_calls_at_once_in_one_unit(self, database: Database) -> None:
        """Calls that one unit of work is given at once are done one after the other."""

        async def work() -> list[Artifact]:
            async with opened(database) as store, store.unit_of_work() as uow:
                return list(await asyncio.gather(*(uow.artifacts.add(**ROW) for _ in range(20))))

        ids = [artifact.id for artifact in asyncio.run(work())]
        assert ids == sorted(ids)
        assert len(stored(database)) == 20


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


async def write_and_wait(store: AsyncConsensusStore, written: asyncio.Event) -> None:
    """Write a row, and never come to the end."""
    async with store.unit_of_work() as uow:
        await uow.artifacts.add(**ROW)
        written.set()
        await asyncio.Event().wait()


class TestCancel:
    def test_waiting_for_a_thread(self, database: Database) -> None:
        """A task that waits for its turn takes nothing with it."""

        async def work() -> None:
            async with opened(database, pool_size=1) as store:
                async with store.unit_of_work() as uow:
                    waiting = asyncio.create_task(store.run(lambda uow: uow.artifacts.add(**ROW)))
                    await asyncio.sleep(0.01)
                    await cancelled(waiting)
                    await uow.artifacts.add(**ROW | {"spec_id": "first"})
                await store.run(lambda uow: uow.artifacts.add(**ROW | {"spec_id": "second"}))

        asyncio.run(work())
        assert stored(database) == ["first", "second"]

    def test_waiting_for_the_lock_of_another_process(self, database: Database) -> None:
        """The task ends at once; its begin gives up by itself, and a store that closes waits for that."""

        async def work() -> None:
            async with opened(database, busy_timeout=timedelta(seconds=20)) as store:
                with database.writers_waiting():
                    waiting = asyncio.create_task(store.run(lambda uow: uow.artifacts.add(**ROW)))
                    await until(lambda: pool_of(store).checkedout() == 1)
                    await asyncio.sleep(0.05)
                    started = time.monotonic()
                    await cancelled(waiting)
                    assert time.monotonic() - started < 10  # of the 20 s that the lock is waited for
                    assert pool_of(store).checkedout() == 1
                await store.run(lambda uow: uow.artifacts.add(**ROW | {"spec_id": "next"}))

        asyncio.run(work())
        assert stored(database) == ["next"]

    def test_time_limits_while_the_lock_is_held(self, database: Database) -> None:
        """asyncio.timeout holds, whatever the busy timeout is."""

        async def work() -> None:
            async with opened(database, busy_timeout=timedelta(seconds=20)) as store:
                with database.writers_waiting():
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05), store.unit_of_work():
                            pass
                    async with store.unit_of_work(read_only=True) as uow:
                        await uow.artifacts.count()

        asyncio.run(work())

    @pytest.mark.sqlite  # elsewhere writers do not wait for each other
    def test_waiting_for_another_task_of_the_store(self, database: Database) -> None:
        """A begin that waits for a writer of the same store gives up its turn when it comes."""

        async def work() -> None:
            async with opened(database) as store:
                async with store.unit_of_work() as uow:
                    waiting = [asyncio.create_task(store.run(lambda uow: uow.artifacts.add(**ROW))) for _ in range(3)]
                    await until(lambda: source_of(store.engine).writers.waiting == 3)
                    for task in waiting:
                        await cancelled(task)
                    await uow.artifacts.add(**ROW | {"spec_id": "first"})
                await store.run(lambda uow: uow.artifacts.add(**ROW | {"spec_id": "second"}))

        asyncio.run(work())
        assert stored(database) == ["first", "second"]

    def test_between_statements(self, database: Database) -> None:
        """A task that is cancelled while it waits for something else rolls back before it ends."""

        async def work() -> None:
            async with opened(database) as store:
                written = asyncio.Event()
                task = asyncio.create_task(write_and_wait(store, written))
                await written.wait()
                await cancelled(task)
                assert pool_of(store).checkedout() == 0

        asyncio.run(work())
        assert stored(database) == []

    def test_while_a_statement_runs(self, database: Database) -> None:
        """A cancelled statement is waited for, and what the unit of work had written is taken back."""
        began = threading.Event()

        def slow(uow: ConsensusUnitOfWork) -> None:
            began.set()
            uow._execute(SLOW).fetchone()
            uow.artifacts.add(**ROW)

        async def write(store: AsyncConsensusStore) -> None:
            async with store.unit_of_work() as uow:
                await uow.artifacts.add(**ROW)
                await uow.run_sync(slow)

        async def work() -> None:
            async with opened(database) as store:
                task = asyncio.create_task(write(store))
                await until(began.is_set)
                await cancelled(task)
                assert pool_of(store).checkedout() == 0

        asyncio.run(work())
        assert stored(database) == []

    def test_again_and_again(self, database: Database) -> None:
        """Impatience changes nothing: a task that is cancelled while it rolls back rolls back."""
        began = threading.Event()

        def slow(uow: ConsensusUnitOfWork) -> None:
            began.set()
            uow._execute(SLOW).fetchone()

        async def write(store: AsyncConsensusStore) -> None:
            async with store.unit_of_work() as uow:
                await uow.artifacts.add(**ROW)
                await uow.run_sync(slow)

        async def work() -> None:
            async with opened(database) as store:
                task = asyncio.create_task(write(store))
                await until(began.is_set)
                for _ in range(5):
                    task.cancel()
                    await asyncio.sleep(0.002)
                await cancelled(task)
                assert pool_of(store).checkedout() == 0

        asyncio.run(work())
        assert stored(database) == []

    def test_a_body_that_goes_on(self, database: Database) -> None:
        """Nobody knows how far a cancelled call came, so a unit of work that had one can neither go on nor commit."""

        async def work() -> None:
            async with opened(database) as store:
                with pytest.raises(errors.UnitOfWorkClosedError, match="cancelled"):
                    async with store.unit_of_work() as uow:
                        await uow.artifacts.add(**ROW)
                        with pytest.raises(TimeoutError):
                            async with asyncio.timeout(0.02):
                                await uow.run_sync(lambda uow: uow._execute(SLOW).fetchone())
                        with pytest.raises(errors.UnitOfWorkClosedError, match="cancelled"):
                            await uow.artifacts.add(**ROW)

        asyncio.run(work())
        assert stored(database) == []

    def test_in_the_commit(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """A commit that has begun is finished: the rows stand, callbacks are called, and then the task is cancelled."""
        committing, go_on, called = threading.Event(), threading.Event(), []
        commit = UnitOfWork._commit

        def slow_commit(self: UnitOfWork) -> None:
            committing.set()
            assert go_on.wait(20)
            commit(self)

        async def write(store: AsyncConsensusStore) -> None:
            async with store.unit_of_work() as uow:
                await uow.artifacts.add(**ROW)
                uow.on_commit(lambda: called.append("loop"))
                await uow.run_sync(lambda uow: uow.on_commit(lambda: called.append("thread")))

        async def work() -> None:
            async with opened(database) as store:
                async with store.unit_of_work():  # the first one looks at the schema, with units of its own
                    pass
                monkeypatch.setattr(UnitOfWork, "_commit", slow_commit)
                task = asyncio.create_task(write(store))
                await until(committing.is_set)
                task.cancel()
                await asyncio.sleep(0.01)
                assert not task.done()
                go_on.set()
                await cancelled(task)

        asyncio.run(work())
        assert stored(database) == ["S"]
        assert called in (["loop", "thread"], ["thread", "loop"])

    def test_just_before_the_commit(self, database: Database) -> None:
        """A cancellation that was asked for before the commit began takes everything back."""

        async def write(store: AsyncConsensusStore) -> None:
            async with store.unit_of_work() as uow:
                await uow.artifacts.add(**ROW)
                task = asyncio.current_task()
                assert task is not None
                task.cancel()

        async def work() -> None:
            async with opened(database) as store:
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.create_task(write(store))

        asyncio.run(work())
        assert stored(database) == []

    def test_anywhere(self, consensus_store: ConsensusStore) -> None:
        """Cancelled at any moment, a unit of two rows is there whole or not at all, and nothing of it is left open."""

        async def write(store: AsyncConsensusStore, number: int) -> None:
            async with store.unit_of_work() as uow:
                for _ in range(2):
                    await uow.artifacts.add(**ROW | {"spec_id": f"S{number}"})

        async def work() -> None:
            store = AsyncConsensusStore(consensus_store)
            for number in range(150):
                task = asyncio.create_task(write(store, number))
                for _ in range(number % 15):
                    await asyncio.sleep(0)
                await asyncio.sleep((number % 10) * 0.0005)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                assert pool_of(store).checkedout() <= len(store._threads._last)
            await store._threads.close()
            assert pool_of(store).checkedout() == 0

        asyncio.run(work())
        with consensus_store.unit_of_work(read_only=True) as uow:
            assert {uow.artifacts.count(spec_id=f"S{number}") for number in range(150)} == {0, 2}

    def test_a_hundred_tasks(self, consensus_store: ConsensusStore) -> None:
        """Whatever the database, no write of 100 tasks is lost."""

        async def work() -> int:
            store = AsyncConsensusStore(consensus_store)
            await asyncio.gather(*(store.run(lambda uow: uow.artifacts.add(**ROW)) for _ in range(100)))
            count = await store.run(lambda uow: uow.artifacts.count(), read_only=True)
            await store._threads.close()
            return count

        assert asyncio.run(work()) == 100

    def test_the_whole_program(self, database: Database) -> None:
        """When the loop ends under tasks at work, each rolls back and every thread ends."""

        async def write(store: AsyncConsensusStore) -> None:
            async with store.unit_of_work() as uow:
                await uow.artifacts.add(**ROW)
                await asyncio.Event().wait()

        async def work() -> Engine:
            store = await AsyncConsensusStore.open(database.where)
            for _ in range(5):
                asyncio.get_running_loop().create_task(write(store)).add_done_callback(lambda _: None)
            if database.kind == "sqlite":
                await until(lambda: source_of(store.engine).writers.waiting == 4)
            else:
                await until(lambda: pool_of(store).checkedout() == 5)
            return store.engine

        engine = asyncio.run(work())
        assert eventually(lambda: gc.collect() >= 0 and not ours())
        with database.writers_waiting():  # nobody has a lock
            pass
        assert stored(database) == []
        engine.dispose()

    def test_a_task_that_nobody_refers_to(self, database: Database, caplog: pytest.LogCaptureFixture) -> None:
        """One that is collected as garbage, which asyncio only logs, rolls back and keeps no lock."""

        async def work() -> None:
            async with opened(database, pool_size=1) as store:
                written = asyncio.Event()
                asyncio.get_running_loop().create_task(write_and_wait(store, written))
                await written.wait()
                await asyncio.sleep(0.01)
                gc.collect()
                assert "Task was destroyed" in caplog.text
                await store.run(lambda uow: uow.artifacts.add(**ROW | {"spec_id": "next"}))

        asyncio.run(work())
        assert stored(database) == ["next"]

    def test_garbage_does_not_end_the_unit_of_somebody_else(self, database: Database) -> None:
        """While tasks that nobody refers to are collected, others lose nothing and see no error."""
        rounds, acknowledged = 20, [0, 0]

        async def write(store: AsyncConsensusStore, number: int, stop: asyncio.Event) -> None:
            while not stop.is_set():
                async with store.unit_of_work() as uow:
                    await uow.artifacts.add(**ROW | {"spec_id": "kept"})
                    await uow.artifacts.add(**ROW | {"spec_id": "kept"})
                acknowledged[number] += 2

        async def work() -> None:
            async with opened(database, pool_size=2, busy_timeout=timedelta(seconds=60)) as store:
                asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # "Task was destroyed"
                stop = asyncio.Event()
                async with asyncio.TaskGroup() as tasks:
                    for number in range(2):
                        tasks.create_task(write(store, number, stop))
                    for _ in range(rounds):
                        written = asyncio.Event()
                        asyncio.get_running_loop().create_task(write_and_wait(store, written))
                        await written.wait()
                        del written
                        await asyncio.sleep(0.01)
                        gc.collect()
                    stop.set()

        asyncio.run(work())
        assert stored(database) == ["kept"] * sum(acknowledged)

    def test_garbage_does_not_hold_up_the_loop(self, database: Database, caplog: pytest.LogCaptureFixture) -> None:
        """What a task that is collected had open is rolled back on its own thread, not where the collector ran."""
        names: list[str] = []

        def begin(uow: ConsensusUnitOfWork) -> None:
            event.listen(uow.session, "after_transaction_end", lambda *_: names.append(threading.current_thread().name))
            uow.session.execute(text("SELECT 1"))

        async def begin_and_wait(store: AsyncConsensusStore, begun: asyncio.Event) -> None:
            async with store.unit_of_work() as uow:
                await uow.run_sync(begin)
                begun.set()
                await asyncio.Event().wait()

        async def work() -> None:
            async with opened(database, pool_size=1) as store:
                begun = asyncio.Event()
                asyncio.get_running_loop().create_task(begin_and_wait(store, begun))
                await begun.wait()
                await asyncio.sleep(0.01)
                gc.collect()
                assert "Task was destroyed" in caplog.text
                await store.run(lambda uow: uow.artifacts.add(**ROW))

        asyncio.run(work())
        assert set(names) == {"consensus_orm asyncio"}

    def test_a_coroutine_that_is_closed_while_it_begins(self, database: Database) -> None:
        """Driven by hand, and closed elsewhere before its begin is over, it rolls back and keeps no thread."""

        async def work() -> None:
            async with opened(database, pool_size=1) as store:
                with database.writers_waiting():
                    begin = store.unit_of_work().__aenter__()
                    begin.send(None)
                    await asyncio.sleep(0.05)
                    await asyncio.to_thread(begin.close)
                await store.run(lambda uow: uow.artifacts.add(**ROW | {"spec_id": "next"}))

        asyncio.run(work())
        assert stored(database) == ["next"]

    def test_between_two_tries(self, database: Database) -> None:
        """A cancellation ends the waiting of a retry."""
        tried = asyncio.Event()

        async def fail(uow: AsyncConsensusUnitOfWork) -> None:
            await uow.artifacts.add(**ROW)
            tried.set()
            raise errors.DatabaseBusyError

        async def work() -> None:
            minute = timedelta(minutes=1)
            async with opened(database, retry_initial=minute, retry_max=minute, retry_budget=minute) as store:
                task = asyncio.create_task(store.run(fail))
                await tried.wait()
                await asyncio.sleep(0.02)
                assert pool_of(store).checkedout() == 0
                await cancelled(task)

        asyncio.run(work())
        assert stored(database) == []

    def test_opening(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """An open that is cancelled closes what it had opened."""
        opened: list[ConsensusStore] = []
        plain = ConsensusStore.open

        def seen(*args: Any, **kwargs: Any) -> ConsensusStore:
            opened.append(plain(*args, **kwargs))
            return opened[-1]

        monkeypatch.setattr(ConsensusStore, "open", seen)

        async def work() -> None:
            for wait in (0.0, 0.0, 0.001, 0.002, 0.005):
                task = asyncio.create_task(AsyncConsensusStore.open(database.where))
                await asyncio.sleep(wait)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await (await task).close()

        asyncio.run(work())
        assert eventually(lambda: gc.collect() >= 0 and not ours())
        assert opened
        assert [store.engine.pool.checkedin() for store in opened if isinstance(store.engine.pool, Pool)] == [0] * len(
            opened
        )

    def test_a_long_step(self, new_database: Database) -> None:
        """A backfill that is cancelled stops at its next report, and goes on where it stopped."""
        build_legacy(new_database.where)
        new_database.script(
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)"
            " WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200)"
            " SELECT 'S' || x, 'p', 'a', '' FROM n"
        )

        async def work() -> None:
            async with opened(new_database, chunk_rows=10) as store:
                await store.migration.upgrade()
                await store.migration.advance(Phase.DUAL_WRITE, soak=False)
                reports: list[Progress] = []
                task = asyncio.create_task(store.migration.backfill(reports.append))
                await until(lambda: len(reports) >= 2)
                await cancelled(task)
                assert not (await store.migration.verify()).clean
                seen = len(reports)
                await store.migration.backfill()
                assert len(reports) == seen
                assert (await store.migration.verify()).clean

        asyncio.run(work())


class TestCallbacks:
    def test_on_commit(self, database: Database, caplog: pytest.LogCaptureFixture) -> None:
        """Callbacks are called on the loop, in order, after the commit, before the block is left; errors are logged."""
        told: list[tuple[str, bool, list[str]]] = []

        def tell(name: str) -> None:
            told.append((name, threading.current_thread() is threading.main_thread(), stored(database)))

        def fail() -> None:
            raise ZeroDivisionError

        async def work() -> None:
            async with opened(database) as store:
                async with store.unit_of_work() as uow:
                    for callback in (partial(tell, "first"), fail, partial(tell, "second")):
                        uow.on_commit(callback)
                    await uow.artifacts.add(**ROW)
                    assert told == []
                assert told == [("first", True, ["S"]), ("second", True, ["S"])]
                with pytest.raises(KeyError):
                    async with store.unit_of_work() as uow:
                        uow.on_commit(partial(tell, "never"))
                        raise KeyError
                async with store.unit_of_work() as uow:
                    with pytest.raises(errors.InvalidValueError, match="plain function"):
                        uow.on_commit(work)
                assert len(told) == 2

        asyncio.run(work())
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]

    def test_tracker(self, database: Database) -> None:
        """A tracker follows the commits of coroutines, and only those."""
        tracker = ExecutionTracker(spec_id="S", stage="plan", run_id="r")

        async def work() -> None:
            async with opened(database) as store:
                async with store.unit_of_work() as uow:
                    await uow.run_sync(tracker.spawn, agent_id="a", phase_type="regular_stage", agent_name="gemini")
                    assert tracker.expected == frozenset()
                assert tracker.in_flight == {"a"}
                with pytest.raises(KeyError):
                    async with store.unit_of_work() as uow:
                        await uow.run_sync(tracker.complete, "a", "said")
                        raise KeyError
                assert tracker.in_flight == {"a"}
                await store.run(lambda uow: uow.run_sync(tracker.complete, "a", "said"))
                assert tracker.is_complete
                again = ExecutionTracker(spec_id="S", stage="plan")
                await store.run(lambda uow: uow.run_sync(again.resync), read_only=True)
                assert again.is_complete

        asyncio.run(work())

    def test_progress(self, database: Database) -> None:
        """Progress is reported on the loop, and an error of the callback ends the step and comes out."""

        async def work() -> None:
            async with opened(database) as store:
                threads: list[threading.Thread] = []
                steps: list[str] = []
                await store.migration.migrate(
                    Phase.CUTOVER,
                    soak=False,
                    progress=lambda _: threads.append(threading.current_thread()),
                    tell=lambda step: steps.append(step.action),
                )
                assert set(threads) == {threading.main_thread()}
                assert steps
                with pytest.raises(ZeroDivisionError):
                    await store.migration.verify(lambda _: 1 // 0)
                assert await store.migration.phase is Phase.CUTOVER
                if database.kind == "sqlite":
                    copy = Path(database.where).with_name("copy.db")
                    assert (await store.maintenance.backup(copy)).path == copy
                assert (await store.maintenance.stats()).disk.total > 0
                assert isinstance(await store.maintenance.leftovers(), list)
                (await store.maintenance.schedule_vacuum()).stop()

        asyncio.run(work())


class TestRun:
    def test_retries_restart_the_whole_unit(self, database: Database) -> None:
        """Each try has a unit of work and a transaction of its own; what a failed one wrote is not kept."""
        units: list[AsyncConsensusUnitOfWork] = []

        async def work(uow: AsyncConsensusUnitOfWork) -> int:
            units.append(uow)
            await uow.artifacts.add(**ROW | {"spec_id": f"try {len(units)}"})
            uow.on_commit(lambda: units.clear())
            if len(units) < 3:
                raise errors.DatabaseBusyError
            assert len({id(unit) for unit in units}) == 3
            return await uow.artifacts.count(spec_id="try 3")

        async def main() -> int:
            async with opened(database, retry_initial=timedelta(milliseconds=1)) as store:
                found = await store.run(work)
                assert store.retrier.telemetry.totals.retries == 2
                return found

        assert asyncio.run(main()) == 1
        assert stored(database) == ["try 3"]
        assert units == []

    def test_a_lock_that_is_given_up(self, database: Database) -> None:
        """Work that found another process writing succeeds on a later try."""

        async def main() -> None:
            async with opened(database, busy_timeout=timedelta(milliseconds=20)) as store:
                with database.writers_waiting():
                    task = asyncio.create_task(store.run(lambda uow: uow.artifacts.add(**ROW)))
                    await until(lambda: store.retrier.telemetry.totals.retries >= 1)
                await task

        asyncio.run(main())
        assert stored(database) == ["S"]

    def test_permanent_errors_come_at_once(self, database: Database) -> None:
        """An error that is not transient is not tried again."""
        tries = []

        async def work(uow: AsyncConsensusUnitOfWork) -> None:
            tries.append(await uow.artifacts.add(**ROW))
            raise KeyError

        async def main() -> None:
            async with opened(database) as store:
                with pytest.raises(KeyError):
                    await store.run(work)

        asyncio.run(main())
        assert len(tries) == 1
        assert stored(database) == []

    def test_decorator(self, database: Database) -> None:
        """A decorated coroutine function is a unit of work of its own, with its own arguments and name."""

        async def main() -> None:
            async with opened(database) as store:

                @store.in_unit_of_work
                async def save(uow: AsyncConsensusUnitOfWork, spec: str, *, times: int) -> int:
                    """Save."""
                    for _ in range(times):
                        await uow.artifacts.add(**ROW | {"spec_id": spec})
                    return times

                assert assert_type(await save("D", times=2), int) == 2
                assert save.__doc__ == "Save."

        asyncio.run(main())
        assert stored(database) == ["D", "D"]
