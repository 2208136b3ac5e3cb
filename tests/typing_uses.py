"""How the public face is used and what it gives, for type checkers: mypy and pyright read this, nobody runs it.

An error here is a promise of the annotations that was broken: a method that gives something else than it
says, or that a reader's editor could not complete any more.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

import pytest
from sqlalchemy import Engine, column, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consensus_orm import (
    AgentOutput,
    Artifact,
    AsyncConsensusStore,
    AsyncConsensusUnitOfWork,
    ConsensusError,
    ConsensusStore,
    ConsensusUnitOfWork,
    Execution,
    ExecutionTracker,
    Latest,
    Move,
    Moves,
    OnMismatch,
    Parent,
    Phase,
    Run,
    Settings,
    Side,
    Store,
    Synthesis,
)
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.databases.sqlite.vacuum import VacuumScheduler
from consensus_orm.databases.statistics import BackupReport, DatabaseStats, VacuumReport
from consensus_orm.errors import DatabaseBusyError, GateClosedError
from consensus_orm.ledgers.dependencies import DependencyEntry
from consensus_orm.ledgers.entries import HistoryEntry, MismatchEntry, RejectEntry
from consensus_orm.migration import Migration
from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.migration.reconcile import ReconcileReport
from consensus_orm.migration.status import MigrationStatus
from consensus_orm.migration.steps import Step
from consensus_orm.migration.verify import VerifyReport
from consensus_orm.progress import Progress
from consensus_orm.rehearsal import RehearsalReport
from consensus_orm.repository.repository import Repository
from consensus_orm.retrying.retrier import Retrier
from consensus_orm.store import RepositoryUnitOfWork
from consensus_orm.testing import ArtifactFactory, artifact_values, take_to
from consensus_orm.testing.plugin import Flip, QueryCounter


def stores(path: Path) -> None:
    settings = Settings(pool_size=3, on_mismatch=OnMismatch.RAISE, soak_dual_write=timedelta(days=2))
    with ConsensusStore.open(path, settings=settings, echo=True) as store:
        assert_type(store, ConsensusStore)
        assert_type(store.engine, Engine)
        assert_type(store.settings, Settings)
        assert_type(store.path, Path | None)
        assert_type(store.migration, Migration)
        assert_type(store.maintenance, Maintenance)
        assert_type(store.retrier, Retrier)
        assert_type(store.upgrade(), list[str])
        with store.unit_of_work(read_only=True) as uow:
            assert_type(uow, ConsensusUnitOfWork)
            assert_type(uow.phase, Phase)
            assert_type(uow.session, Session)


def retried(store: ConsensusStore) -> None:
    def count(uow: ConsensusUnitOfWork) -> int:
        return uow.artifacts.count(spec_id="S")

    @store.in_unit_of_work
    def save(uow: ConsensusUnitOfWork, content: str, *, stage: str = "plan") -> Artifact:
        return uow.artifacts.add(spec_id="S", stage=stage, agent_name="a", content_json=content)

    assert_type(store.run(count), int)
    assert_type(store.run(lambda uow: uow.artifacts.get(1), read_only=True), Artifact | None)
    assert_type(save("{}", stage="tasks"), Artifact)


def artifacts(uow: ConsensusUnitOfWork) -> None:
    added = uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="{}", model_version="1")
    assert_type(added, Artifact)
    assert_type(added.id, int)
    assert_type(added.run_id, str | None)
    assert_type(added.created_at, datetime | None)
    assert_type(uow.artifacts.add_many([artifact_values()]), list[Artifact])
    assert_type(uow.artifacts.get(added.id), Artifact | None)
    assert_type(uow.artifacts.list(spec_id="S", limit=3), list[Artifact])
    assert_type(uow.artifacts.count(agent_name="a"), int)
    assert_type(uow.artifacts.delete(spec_id="S"), int)
    assert_type(uow.artifacts.specs(), list[str])


def syntheses_and_runs(uow: ConsensusUnitOfWork) -> None:
    added = uow.syntheses.add(spec_id="S", stage="plan", output_markdown="#", output_path=None, status="ok")
    assert_type(added, Synthesis)
    assert_type(added.artifacts_count, int | None)
    assert_type(uow.syntheses.latest(spec_id="S", stage="plan"), Synthesis | None)
    assert_type(uow.syntheses.list(run_id="r"), list[Synthesis])
    assert_type(uow.syntheses.delete(spec_id="S", stage="plan"), int)
    assert_type(uow.runs.list(spec_id="S"), list[Run])
    run = uow.runs.latest(spec_id="S", stage="plan")
    assert_type(run, Run | None)
    if run is not None:
        assert_type(run.outputs, tuple[AgentOutput, ...])
        assert_type(run.syntheses, tuple[Synthesis, ...])
        assert_type(run.consensus_ok, bool)


def executions(uow: ConsensusUnitOfWork) -> None:
    spawned = uow.executions.record_spawn(
        agent_id="1", spec_id="S", stage="plan", phase_type="consensus", agent_name="a", branch_id="b"
    )
    assert_type(spawned, Execution)
    assert_type(spawned.spawned_at, datetime | None)
    assert_type(uow.executions.record_completion("1", "{}"), Execution)
    assert_type(uow.executions.record_extraction_failure("1", "raw", "no JSON"), Execution)
    assert_type(uow.executions.get("1"), Execution | None)
    assert_type(uow.executions.list(spec_id="S"), list[Execution])
    assert_type(uow.executions.in_flight(), list[Execution])
    assert_type(uow.executions.extraction_failures("S"), list[Execution])
    assert_type(uow.executions.for_branch(spec_id="S", stage="plan", branch_id="b"), list[Execution])
    assert_type(uow.executions.cleanup(timedelta(days=30)), int)
    tracker = ExecutionTracker(spec_id="S", stage="plan")
    tracker.spawn(uow, agent_id="2", phase_type="consensus", agent_name="b")
    tracker.complete(uow, "2", "{}")
    tracker.resync(uow)
    assert_type(tracker.in_flight, frozenset[str])
    assert_type(tracker.is_complete, bool)


def sessions(uow: ConsensusUnitOfWork) -> None:
    assert_type(uow.session.scalars(select(Customer.name)).all(), Sequence[str])
    assert_type(uow.session.get(Customer, 1), Customer | None)
    uow.on_commit(lambda: None)


def migrations(store: ConsensusStore) -> None:
    def watch(progress: Progress) -> None:
        assert_type(progress.seconds_left, float | None)

    migration = store.migration
    assert_type(migration.phase, Phase)
    assert_type(migration.status(), MigrationStatus)
    assert_type(migration.history(), list[HistoryEntry])
    assert_type(migration.mismatches(everything=True), list[MismatchEntry])
    assert_type(migration.rejects(), list[RejectEntry])
    assert_type(migration.upgrade(), list[str])
    assert_type(migration.backfill(watch), BackfillReport)
    assert_type(migration.verify(progress=watch), VerifyReport)
    assert_type(migration.verify().clean, bool)
    assert_type(migration.reconcile(dry_run=True), ReconcileReport)
    assert_type(migration.advance("cutover", reason="why", force=True), Phase)
    assert_type(migration.rollback(Phase.EXPAND), Phase)
    assert_type(migration.migrate(3, soak=False, tell=lambda step: print(step.action)), list[Step])
    assert_type(migration.rehearse(writers=2), RehearsalReport)
    assert_type(migration.resolve_reject(1), bool)
    assert_type(migration.resolve_rejects([1, range(3, 8)]), dict[int, bool])
    migration.accept_reject(1, reason="why")
    assert_type(migration.accept_rejects([1], all_of="reason", reason="why"), list[int])
    migration.upgrade(rewrite=True, protect=False)
    migration.accept_mismatch(1, reason="why")
    assert_type(migration.accept_mismatches([1, range(3, 8)], reason="why"), list[int])
    assert_type(migration.check(), list[str])
    assert_type(migration.dependencies(), list[DependencyEntry])
    assert_type(migration.accept_dependencies(["view"], reason="why"), list[DependencyEntry])


def maintenance(store: ConsensusStore) -> None:
    assert_type(store.maintenance.stats(), DatabaseStats)
    assert_type(store.maintenance.vacuum(full=True), VacuumReport)
    assert_type(store.maintenance.schedule_vacuum(timedelta(hours=1)), VacuumScheduler)
    assert_type(store.maintenance.backup("copy.db", overwrite=True), BackupReport)


def phases(phase: Phase) -> None:
    assert_type(phase.next, Phase | None)
    assert_type(phase.truth, Side)
    assert_type(phase.writes_legacy, bool)
    assert_type(Phase.parse("cutover"), Phase)


def failures(store: ConsensusStore) -> None:
    try:
        store.migration.advance()
    except GateClosedError as error:
        assert_type(list(error.reasons), list[str])
    except DatabaseBusyError as error:
        assert_type(error.retry_after, timedelta | None)
    except ConsensusError as error:
        assert_type(error.hint, str)


# A pair of one's own --------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Address(Base):
    __tablename__ = "addresses"
    id: Mapped[int] = mapped_column(primary_key=True)
    street: Mapped[str]
    latest_name: Mapped[str]


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    address_id: Mapped[int]
    name: Mapped[str]
    mirrored: Mapped[bool]


def declaration() -> Moves:
    addresses = Parent(
        Address,
        link=Customer.address_id,
        by={Address.street: "street"},
        derived={Address.latest_name: Latest("customers", column("name"), otherwise="")},
    )
    customers = Move(
        "customers_flat=shop.legacy:CustomerFlat",
        Customer,
        name="customers",
        key={"id": Customer.id},
        columns={Customer.name: "name"},
        parts=[addresses],
    )
    return Moves(customers)


def own_store(path: Path) -> None:
    def count(uow: RepositoryUnitOfWork) -> int:
        return uow.repository("customers").count({})

    with Store.open(path, moves=declaration()) as store:
        assert_type(store, Store[RepositoryUnitOfWork])
        assert_type(store.run(count), int)
        assert_type(store.in_unit_of_work(count)(), int)
        with store.unit_of_work() as uow:
            assert_type(uow, RepositoryUnitOfWork)
    with ConsensusStore.open(path) as consensus:
        plain: Store = consensus  # whatever takes a store takes that of the consensus data
        assert_type(plain.run(count), int)


@dataclass(frozen=True)
class CustomerRecord:
    id: int
    name: str


def typed_records(uow: ConsensusUnitOfWork) -> None:
    move = Move("shop.legacy:CustomerFlat", Customer, key={"id": Customer.id}, columns={}, record=CustomerRecord)
    customers = uow.repository(move)
    assert_type(customers, Repository[CustomerRecord])
    assert_type(customers.get(1), CustomerRecord | None)
    assert_type(customers.rows(limit=1), list[CustomerRecord])
    assert_type(customers.get_many([1, 2]), list[CustomerRecord])
    assert_type(customers.update(1, {"name": "Ada"}), bool)


def own_pair(uow: ConsensusUnitOfWork) -> None:
    customers = uow.repository("customers")
    customers.add({"name": "Ada", "street": "1 Main St"})
    assert_type(customers, Repository[Any])
    assert_type(customers.rows({"name": "Ada"}, limit=1), list[Any])
    assert_type(customers.count({}), int)
    assert_type(customers.delete({"name": "Ada"}), int)


# Coroutines -----------------------------------------------------------------------------------------------


async def coroutines(path: Path, tracker: ExecutionTracker) -> None:
    async with await AsyncConsensusStore.open(path) as store:
        async with store.unit_of_work() as uow:
            added = await uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="{}")
            assert_type(added, Artifact)
            assert_type(await uow.artifacts.get(added.id), Artifact | None)
            assert_type(await uow.syntheses.latest(spec_id="S", stage="plan"), Synthesis | None)
            assert_type(await uow.runs.list(spec_id="S"), list[Run])
            assert_type([each async for each in uow.artifacts.iterate(spec_id="S")], list[Artifact])
            assert_type(await uow.artifacts.update(added.id, agent_name="b"), bool)
            assert_type(await uow.syntheses.list_and_count(limit=1), tuple[list[Synthesis], int])
            assert_type(await uow.executions.get("a"), Execution | None)
            assert_type(await uow.run_sync(tracker.complete, "a", "said"), None)
            assert_type(await uow.run_sync(lambda uow: uow.artifacts.count()), int)
        assert_type(await store.migration.phase, Phase)
        assert_type(await store.migration.verify(progress=print), VerifyReport)
        assert_type(await store.maintenance.stats(), DatabaseStats)
        assert_type(await store.run(lambda uow: uow.artifacts.specs()), list[str])

        @store.in_unit_of_work
        async def count(uow: AsyncConsensusUnitOfWork, spec: str) -> int:
            return await uow.artifacts.count(spec_id=spec)

        assert_type(await count("S"), int)


# The testing kit ------------------------------------------------------------------------------------------


@pytest.fixture
def at_cutover(consensus_store: ConsensusStore) -> ConsensusStore:
    take_to(consensus_store, Phase.CUTOVER)
    return consensus_store


def a_test(every_phase: ConsensusStore, every_flip: Flip, query_counter: QueryCounter) -> None:
    assert_type(every_flip.store, ConsensusStore)
    assert_type(every_flip.after, Phase)
    # pyright: ignore for arguments that factory-boy gives no type
    assert_type(ArtifactFactory.build(agent_name="a"), Artifact)  # pyright: ignore[reportUnknownMemberType]
    assert_type(ArtifactFactory.build_batch(2), list[Artifact])  # pyright: ignore[reportUnknownMemberType]
    with query_counter(every_phase) as sent, every_phase.unit_of_work() as uow:
        assert_type(uow.artifacts.add(**artifact_values(agent_name="a")), Artifact)
    assert_type(sent.verbs, list[str])
