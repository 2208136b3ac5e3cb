"""The store for coroutines: the same answers as the synchronous one, the same callbacks, the same retries."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, assert_type

import pytest
from sqlalchemy import create_engine, func, select

from consensus_orm import (
    Artifact,
    AsyncConsensusStore,
    AsyncConsensusUnitOfWork,
    ConsensusStore,
    ConsensusUnitOfWork,
    ExecutionTracker,
    Phase,
    errors,
)
from consensus_orm.asyncio import consensus
from consensus_orm.asyncio.external import AsyncMirror
from consensus_orm.asyncio.store import AsyncMaintenance, AsyncMigration, AsyncStore
from consensus_orm.asyncio.unit_of_work import AsyncRepository
from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.executions import Executions
from consensus_orm.consensus.runs import Runs
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.databases.opening import parse_url
from consensus_orm.external import Mirror
from consensus_orm.migration import Migration
from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.repository.repository import Repository
from consensus_orm.settings import Settings
from consensus_orm.store import RepositoryUnitOfWork
from tests.asyncio.tasks import ROW, SYNTHESIS, opened, stored, until
from tests.declaration.gallery.cases import CASES
from tests.support.databases import Database


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
                    [artifact async for artifact in uow.artifacts.iterate()],
                    [run async for run in uow.runs.iterate(with_synthesis=True)],
                    await uow.artifacts.list_and_count(limit=2),
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
                [*uow.artifacts.iterate()],
                [*uow.runs.iterate(with_synthesis=True)],
                uow.artifacts.list_and_count(limit=2),
                uow.executions.in_flight(),
                uow.repository("artifacts").rows({"spec_id": "S"}),
            ]

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (consensus.AsyncArtifacts, Artifacts),
            (consensus.AsyncSyntheses, Syntheses),
            (consensus.AsyncRuns, Runs),
            (consensus.AsyncExecutions, Executions),
            (AsyncRepository, Repository),
            (AsyncMigration, Migration),
            (AsyncMaintenance, Maintenance),
            (AsyncMirror, Mirror),
        ],
        ids=lambda owner: owner.__name__,
    )
    def test_no_method_is_missing(self, ours: type, theirs: type) -> None:
        """Each public method has its counterpart under the same name, to be awaited, with the same arguments."""
        names = {name for name in dir(theirs) if not name.startswith("_")}
        assert {name for name in vars(ours) if not name.startswith("_")} == names
        for name in names - {"phase", "stage"}:  # properties: `await store.migration.phase`
            awaited = inspect.isasyncgenfunction if name == "iterate" else inspect.iscoroutinefunction
            assert awaited(getattr(ours, name)), name
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


def test_a_store_of_any_moves(new_database: Database) -> None:
    """Repositories, the session and the class of the truth, from coroutines, in the phases of both sides."""
    case = CASES["rename"]()
    (move,) = case.moves
    engine = create_engine(parse_url(new_database.where))
    case.metadata.create_all(engine)
    engine.dispose()

    def counted(uow: RepositoryUnitOfWork, counting: Any) -> Any:
        return uow.session.scalar(counting)

    async def work() -> list[Any]:
        seen: list[Any] = []
        settings = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0)
        async with await AsyncStore.open(new_database.where, moves=case.moves, settings=settings) as store:
            for phase in (Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED):
                await (store.upgrade() if phase is Phase.EXPAND else store.migration.migrate(phase, soak=False))
                async with store.unit_of_work() as uow:
                    key = await uow.repository(move).add({"vorname": phase.name, "ort": None})
                    counting = select(func.count()).select_from(uow.model(move))
                    seen.append(await uow.run_sync(counted, counting))
                    assert await uow.repository(move).exists(key)
            return seen

    assert asyncio.run(work()) == [1, 2, 3, 4]
