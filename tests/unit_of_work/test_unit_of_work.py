"""The unit of work: one session, one transaction, one phase; memory after the database; and nothing by halves."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase
from consensus_orm.errors import (
    DatabaseBusyError,
    InvalidValueError,
    ReadOnlyUnitOfWorkError,
    SchemaOutdatedError,
    StorageError,
    UnitOfWorkClosedError,
)
from consensus_orm.settings import Isolation, Settings
from consensus_orm.testing import artifact_values, spawn_values, synthesis_values, take_to
from consensus_orm.testing.plugin import Flip
from tests.field import builders
from tests.support import oracle
from tests.support.databases import Database, behind, build_legacy


def contents(store: ConsensusStore) -> tuple[object, ...]:
    with store.unit_of_work(read_only=True) as uow:
        return uow.artifacts.list(), uow.syntheses.list(), uow.executions.list()


# Commit and rollback ----------------------------------------------------------------------------------------


def test_everything_or_nothing(every_phase: ConsensusStore) -> None:
    """An exception in the block undoes whatever the unit wrote, on both sides, and reaches the caller as it is."""
    before = contents(every_phase)
    database = behind(every_phase)
    sides = [database.rows(table) for table in ("agent_outputs", "consensus_runs")]

    with pytest.raises(KeyError, match="mine"), every_phase.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW"))
        uow.syntheses.add(**synthesis_values(spec_id="SPEC-NEW"))
        uow.executions.record_spawn(**spawn_values())
        uow.artifacts.delete(spec_id="SPEC-ODD")
        raise KeyError("mine")

    assert contents(every_phase) == before
    assert [database.rows(table) for table in ("agent_outputs", "consensus_runs")] == sides


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_rolls_back_too(consensus_store: ConsensusStore, error: type[BaseException]) -> None:
    """Ctrl-C within a unit of work keeps nothing and locks nothing."""
    with pytest.raises(error), consensus_store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values())
        raise error

    with consensus_store.unit_of_work() as uow:
        assert uow.artifacts.count() == 0


def test_others_see_it_after_the_commit(consensus_store: ConsensusStore) -> None:
    """What a unit writes is seen by itself at once, by others after its block."""
    with consensus_store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values())
        assert uow.artifacts.count() == 1
        with consensus_store.unit_of_work(read_only=True) as other:
            assert other.artifacts.count() == 0

    with consensus_store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.count() == 1


def test_a_reader_sees_one_snapshot(every_phase: ConsensusStore) -> None:
    """A read-only unit sees phase and rows as of its beginning, whatever others write meanwhile."""
    with every_phase.unit_of_work(read_only=True) as uow:
        before = uow.phase, uow.artifacts.list()
        with every_phase.unit_of_work() as other:
            other.artifacts.add(**artifact_values())
        assert (uow.phase, uow.artifacts.list()) == before


def test_the_phase_is_kept_to_the_end(every_flip: Flip) -> None:
    """A reader that began before a flip goes on in its phase; the next unit has the new one."""
    with every_flip.store.unit_of_work(read_only=True) as uow:
        rows = uow.artifacts.list()
        epoch = uow.epoch
        if every_flip.after is not Phase.CONTRACT:  # a backup waits for nobody, but dropping tables needs a checkpoint
            every_flip.flip()
            assert uow.phase is every_flip.before
            assert uow.artifacts.list() == rows
    if every_flip.after is Phase.CONTRACT:
        every_flip.flip()

    with every_flip.store.unit_of_work(read_only=True) as uow:
        assert uow.phase is every_flip.after
        assert uow.epoch == epoch + 1
        assert uow.artifacts.list() == rows


# Once, and not after its end --------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_it_is_used_once(consensus_store: ConsensusStore, read_only: bool) -> None:
    """Entering a unit again, while it lasts or after its end, is an error that says what to do."""
    unit = consensus_store.unit_of_work(read_only=read_only)
    with unit, pytest.raises(UnitOfWorkClosedError):
        unit.__enter__()
    with pytest.raises(UnitOfWorkClosedError, match="unit_of_work"), unit:
        raise AssertionError("it was entered again")


@pytest.mark.parametrize("read_only", [False, True])
def test_nothing_works_after_its_end(consensus_store: ConsensusStore, read_only: bool) -> None:
    """Each repository of a unit that is over refuses to work, and so does its session."""
    with consensus_store.unit_of_work(read_only=read_only) as uow:
        artifacts = uow.artifacts
    for call in (
        artifacts.list,
        artifacts.count,
        artifacts.specs,
        lambda: artifacts.add(**artifact_values()),
        lambda: artifacts.delete(spec_id="x"),
        lambda: uow.syntheses.latest(spec_id="x", stage="y"),
        lambda: uow.runs.list(spec_id="x"),
        uow.executions.in_flight,
        lambda: uow.executions.record_spawn(**spawn_values()),
        lambda: uow.session,
    ):
        with pytest.raises(UnitOfWorkClosedError):
            call()


def test_nothing_works_before_its_beginning(consensus_store: ConsensusStore) -> None:
    """A unit of work that was never entered has no transaction to write in."""
    with pytest.raises(UnitOfWorkClosedError):
        consensus_store.unit_of_work().executions.list()


def test_a_failed_beginning_gives_the_connection_back(new_database: Database) -> None:
    """Where no lock comes, the unit fails and the next one still gets a connection."""
    settings = Settings(busy_timeout="0.05", pool_size=1, pool_timeout="0.2")
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        store.upgrade()
        with store.unit_of_work():  # whatever there is to prepare
            pass
        with new_database.writers_waiting():
            for _ in range(3):
                with pytest.raises(DatabaseBusyError), store.unit_of_work():
                    raise AssertionError("the lock is taken")
        with store.unit_of_work() as uow:
            uow.artifacts.add(**artifact_values())


# Read-only --------------------------------------------------------------------------------------------------


def test_a_read_only_unit_cannot_write(every_phase: ConsensusStore) -> None:
    """Each way of writing is refused by the database itself, with our words, in every phase; reading goes on."""
    before = contents(every_phase)
    writes: list[Callable[[ConsensusUnitOfWork], object]] = [
        lambda uow: uow.artifacts.add(**artifact_values()),
        lambda uow: uow.artifacts.add_many([artifact_values()]),
        lambda uow: uow.artifacts.delete(spec_id="SPEC-ODD"),
        lambda uow: uow.syntheses.add(**synthesis_values()),
        lambda uow: uow.syntheses.delete(spec_id="SPEC-ODD"),
        lambda uow: uow.executions.record_spawn(**spawn_values()),
        lambda uow: uow.executions.record_completion("a2", "x"),
        lambda uow: uow.executions.cleanup(timedelta(0)),
    ]
    for write in writes:
        with every_phase.unit_of_work(read_only=True) as uow:
            with pytest.raises(ReadOnlyUnitOfWorkError, match="unit_of_work"):
                write(uow)
            assert uow.artifacts.list() == before[0]

    assert contents(every_phase) == before


def test_a_writer_after_a_reader_can_write(new_database: Database) -> None:
    """The one connection of the pool goes from reader to writer and back."""
    with ConsensusStore.open(new_database.where, settings=Settings(pool_size=1)) as store:
        store.upgrade()
        for count in range(3):
            with store.unit_of_work() as uow:
                uow.artifacts.add(**artifact_values())
            with store.unit_of_work(read_only=True) as uow:
                assert uow.artifacts.count() == count + 1
                with pytest.raises(ReadOnlyUnitOfWorkError):
                    uow.artifacts.add(**artifact_values())


# Files that are not there, or not prepared ------------------------------------------------------------------


def test_a_missing_file_is_empty_and_stays_away(tmp_path: Path) -> None:
    """Reading a file that does not exist gives nothing and does not create it, nor its folder."""
    path = tmp_path / "folder" / "missing.db"
    with ConsensusStore.open(path) as store:
        with store.unit_of_work(read_only=True) as uow:
            assert [*uow.artifacts.list(), *uow.syntheses.list(), *uow.executions.list()] == []
            assert uow.artifacts.get(1) is None
            assert uow.artifacts.count() == 0
            assert uow.artifacts.specs() == []
            assert uow.syntheses.latest(spec_id="x", stage="y") is None
            assert uow.runs.latest(spec_id="x", stage="y") is None
            assert uow.executions.in_flight() == []
            assert not uow.prepared
            with pytest.raises(InvalidValueError):
                uow.artifacts.list(limit=-1)
        assert store.migration.phase is Phase.CONTRACT
    assert list(tmp_path.iterdir()) == []


def test_the_first_write_makes_the_file(tmp_path: Path) -> None:
    """The first unit of work that writes makes file and schema; reads that came before change nothing."""
    path = tmp_path / "folder" / "new.db"
    with ConsensusStore.open(path) as store:
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.list() == []
        with store.unit_of_work() as uow:
            added = uow.artifacts.add(**artifact_values())
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.list() == [added]

    assert path.stat().st_mode & 0o777 == 0o600
    assert oracle.tables(path).count("consensus_orm_state") == 1


@pytest.mark.parametrize("build", [lambda where: None, build_legacy], ids=["new", "legacy"])
@pytest.mark.postgresql
def test_the_schema_of_a_server_changes_only_by_upgrade(
    new_database: Database, build: Callable[[object], object]
) -> None:
    """A database nobody upgraded is read as it is; a unit that would write says what to run, and writes nothing."""
    build(new_database.where)
    tables = new_database.tables()
    with ConsensusStore.open(new_database.where) as store:
        with store.unit_of_work(read_only=True) as uow:
            found = uow.artifacts.list(), uow.runs.list(spec_id="SPEC-KIT-900"), uow.executions.list()
            assert len(found[0]) == (8 if tables else 0)
            assert not uow.prepared
            with pytest.raises(SchemaOutdatedError, match="upgrade"):
                uow.phase  # noqa: B018
        with pytest.raises(SchemaOutdatedError, match="upgrade"), store.unit_of_work():
            raise AssertionError("it was entered")
        assert new_database.tables() == tables
        store.upgrade()
        with store.unit_of_work() as uow:
            assert uow.phase is (Phase.EXPAND if tables else Phase.CONTRACT)
            assert (uow.artifacts.list(), uow.runs.list(spec_id="SPEC-KIT-900"), uow.executions.list()) == found


def test_an_unprepared_legacy_file_is_read_as_it_is(tmp_path: Path) -> None:
    """A legacy file nobody prepared is read without being touched, and prepared by the first write."""
    path = tmp_path / "legacy.db"
    builders.build_legacy(path)
    before = oracle.sha256(path)
    with ConsensusStore.open(path) as store:
        with store.unit_of_work(read_only=True) as uow:
            found = uow.artifacts.list(), uow.runs.list(spec_id="SPEC-KIT-900"), uow.executions.list()
            assert len(found[0]) == 8
            with pytest.raises(SchemaOutdatedError, match="upgrade"):
                uow.phase  # noqa: B018
        assert oracle.sha256(path) == before
        with store.unit_of_work() as uow:
            assert uow.phase is Phase.EXPAND
            assert (uow.artifacts.list(), uow.runs.list(spec_id="SPEC-KIT-900"), uow.executions.list()) == found


# After the commit -------------------------------------------------------------------------------------------


def test_callbacks_come_after_the_commit_in_order(consensus_store: ConsensusStore) -> None:
    """on_commit callbacks run after the rows are committed, in their order, free to open units of their own."""
    seen: list[Any] = []

    def look() -> None:
        with consensus_store.unit_of_work() as uow:
            seen.append(uow.artifacts.count())

    with consensus_store.unit_of_work() as uow:
        uow.on_commit(look)
        uow.on_commit(lambda: seen.append("second"))
        uow.artifacts.add(**artifact_values())
        assert seen == []

    assert seen == [1, "second"]


@pytest.mark.parametrize("reason", ["exception", "refused", "commit"])
def test_callbacks_never_come_without_a_commit(consensus_store: ConsensusStore, reason: str) -> None:
    """No callback runs where the unit failed: in its block, in a write, or in the commit itself."""
    seen: list[int] = []
    with consensus_store.unit_of_work() as uow:
        uow.session.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
        deferred = "INTEGER REFERENCES parents(id) DEFERRABLE INITIALLY DEFERRED"
        uow.session.execute(text(f"CREATE TABLE children (p {deferred})"))

    with pytest.raises((ZeroDivisionError, InvalidValueError, StorageError)), consensus_store.unit_of_work() as uow:
        uow.on_commit(lambda: seen.append(1))
        uow.artifacts.add(**artifact_values())
        if reason == "exception":
            raise ZeroDivisionError
        if reason == "refused":
            uow.artifacts.add(**artifact_values(agent_name=""))
        uow.session.execute(text("INSERT INTO children VALUES (1)"))  # found by the database at COMMIT

    assert seen == []
    assert contents(consensus_store)[0] == []


def test_a_failing_callback_does_not_unsay_the_commit(
    consensus_store: ConsensusStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of a callback is logged; the unit has succeeded, and the other callbacks run."""
    seen: list[int] = []
    with caplog.at_level(logging.ERROR), consensus_store.unit_of_work() as uow:
        uow.on_commit(lambda: 1 / 0)
        uow.on_commit(lambda: seen.append(1))
        uow.artifacts.add(**artifact_values())

    assert seen == [1]
    assert len(contents(consensus_store)[0]) == 1  # type: ignore[arg-type]
    assert "callback failed" in caplog.text


def test_a_read_only_unit_has_callbacks_too(consensus_store: ConsensusStore) -> None:
    """The end of a reader is a commit like any other."""
    seen: list[int] = []
    with consensus_store.unit_of_work(read_only=True) as uow:
        uow.on_commit(lambda: seen.append(1))

    assert seen == [1]


# The clock --------------------------------------------------------------------------------------------------


def test_time_comes_from_one_clock(consensus_store: ConsensusStore) -> None:
    """created_at, spawned_at and completed_at are the start of the unit by the clock of the settings."""
    at = datetime(2025, 11, 4, 2, 23, 58, 250000, tzinfo=UTC)
    settings = Settings(clock=lambda: at)
    with ConsensusStore.open(consensus_store.engine.url, settings=settings) as store, store.unit_of_work() as uow:
        made = (
            uow.artifacts.add(**artifact_values()).created_at,
            uow.syntheses.add(**synthesis_values()).created_at,
            uow.executions.record_spawn(**spawn_values(agent_id="a")).spawned_at,
            uow.executions.record_completion("a", "x").completed_at,
        )
        assert uow.now == at
    assert made == (at, at, at, at)


# Threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_phase", ["DUAL_WRITE", "CUTOVER"], indirect=True)
def test_threads_lose_no_write(every_phase: ConsensusStore) -> None:
    """Read-modify-write in units of many threads loses nothing: each sees what the one before it committed.

    On a server that takes SERIALIZABLE isolation, and the retries that come with it.
    """
    # Each of six threads may be refused by all the others before it has its turn.
    settings = Settings(isolation=Isolation.SERIALIZABLE, retry_attempts=30, retry_max=timedelta(milliseconds=200))

    def count(uow: ConsensusUnitOfWork) -> None:
        seen = uow.artifacts.count(spec_id="SPEC-COUNT")
        uow.artifacts.add(**artifact_values(spec_id="SPEC-COUNT", content_json=str(seen)))

    with ConsensusStore.open(every_phase.engine.url, settings=settings) as store, ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: store.run(count), range(30)))

    with every_phase.unit_of_work(read_only=True) as uow:
        found = uow.artifacts.list(spec_id="SPEC-COUNT")
    assert sorted(int(artifact.content_json) for artifact in found) == list(range(30))
    assert every_phase.migration.verify().clean


# At CONTRACT ------------------------------------------------------------------------------------------------

AT_CONTRACT = """
import sys

from consensus_orm import ConsensusStore, ExecutionTracker
from consensus_orm.testing.queries import count_queries

with ConsensusStore.open(sys.argv[1]) as store, count_queries(store) as sent:
    with store.unit_of_work() as uow:
        one = dict(spec_id="SPEC-KIT-900", stage="spec-plan", agent_name="gemini", content_json="{}")
        added = uow.artifacts.add(**one)
        uow.artifacts.add_many([one, one])
        uow.syntheses.add(spec_id="SPEC-KIT-900", stage="spec-plan", output_markdown="#", status="ok")
        uow.executions.record_spawn(agent_id="n", spec_id="s", stage="p", phase_type="t", agent_name="n")
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(added.id) == added
        assert len(uow.artifacts.list(spec_id="SPEC-KIT-900")) == 11
        uow.artifacts.specs(), uow.artifacts.count(), uow.syntheses.list()
        assert uow.runs.latest(spec_id="SPEC-KIT-900", stage="spec-plan").outputs
        uow.executions.in_flight()
        ExecutionTracker(spec_id="s", stage="p").resync(uow)
        from sqlalchemy import select
        from consensus_orm.consensus.models import ConsensusRun
        uow.session.scalars(select(ConsensusRun)).all()
    with store.unit_of_work() as uow:
        assert uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-plan") == 6
        uow.syntheses.delete(spec_id="SPEC-KIT-900")
modules = [name for name in sys.modules if name.startswith("consensus_orm") and name.endswith("models.legacy")]
assert not modules, modules
assert len(sent) > 30
touching = [sql for sql in sent if "consensus_artifacts" in sql.lower() or "consensus_synthesis" in sql.lower()]
assert not touching, touching
assert "alembic" not in sys.modules
"""


@pytest.mark.long
def test_at_contract_nothing_touches_legacy(new_database: Database, tmp_path: Path) -> None:
    """Writes, reads and deletes at CONTRACT send no statement to a legacy table and import no legacy module."""
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where, settings=Settings(backup_dir=tmp_path)) as store:
        take_to(store, Phase.CONTRACT)

    done = subprocess.run([sys.executable, "-c", AT_CONTRACT, str(new_database.where)], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_an_error_of_the_body_about_a_file_is_its_own(consensus_store: ConsensusStore, tmp_path: Path) -> None:
    """A file that the body of a unit of work cannot open is none of the database's: the error stays what it is."""
    with pytest.raises(FileNotFoundError), consensus_store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="plan", agent_name="gemini", content_json="{}")
        (tmp_path / "nowhere").open()

    with consensus_store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.count(spec_id="S") == 0
