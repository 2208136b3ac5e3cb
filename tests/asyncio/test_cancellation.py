"""A task that is cancelled, at any moment, leaves no transaction, no lock, no connection and no thread behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from consensus_orm import (
    AsyncConsensusStore,
    AsyncConsensusUnitOfWork,
    ConsensusStore,
    ConsensusUnitOfWork,
    Phase,
    errors,
)
from consensus_orm.databases.engine import source_of
from consensus_orm.databases.pool import Pool
from consensus_orm.progress import Progress
from consensus_orm.unit_of_work.unit import UnitOfWork
from tests.asyncio.tasks import ROW, SLOW, cancelled, eventually, opened, ours, pool_of, stored, until
from tests.support.databases import Database, build_legacy

pytestmark = pytest.mark.long


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
            # A task that nothing refers to would be collected before its time.
            tasks = [asyncio.create_task(write(store)) for _ in range(5)]
            if database.kind == "sqlite":
                await until(lambda: source_of(store.engine).writers.waiting == 4)
            else:
                await until(lambda: pool_of(store).checkedout() == 5)
            assert not any(task.done() for task in tasks)
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
