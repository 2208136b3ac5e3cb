"""The ten rules of correctness, one small test each: the ones that `test_mutations` breaks on purpose.

The large proofs stand elsewhere (races, kills, the state machine); here each rule can be read in ten lines.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from consensus_orm import ConsensusStore, Phase, Settings
from consensus_orm.consensus.models.normalized import AgentOutput
from consensus_orm.errors import DatabaseBusyError, GateClosedError, StorageError, WrongPhaseError
from tests.support.databases import REFUSE, Database, build_legacy

NOW = timedelta(0)
SETTINGS = Settings(soak_dual_write=NOW, soak_cutover=NOW, soak_normalized=NOW, busy_timeout=timedelta(seconds=1))
ROW: dict[str, Any] = {"spec_id": "S", "stage": "plan", "agent_name": "gemini", "content_json": "007"}
BOTH = (Phase.DUAL_WRITE, Phase.CUTOVER)
FOREIGN = (
    "INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json) VALUES (900, 'F', 'p', 'a', '')"
)
FOUNDING = (
    "INSERT INTO consensus_runs (id, spec_id, stage, run_timestamp, consensus_ok) VALUES (900, 'F', 'p', 0, TRUE)",
    "INSERT INTO agent_outputs (id, run_id, agent_name, content, output_timestamp) VALUES (900, 900, 'a', '', 0)",
)


@pytest.fixture
def database(new_database: Database) -> Database:
    """A legacy database with the common rows."""
    build_legacy(new_database.where, columns=10, altered=True)
    return new_database


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[ConsensusStore]:
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(database.where, settings=settings) as store:
        store.upgrade()
        yield store


def raw(database: Database, *statements: str) -> None:
    """What a program does that knows nothing of us."""
    for statement in statements:
        database.script(statement)


def column(database: Database, sql: str) -> list[object]:
    return [value for (value,) in database.rows_of(sql)]


def test_rule_1_every_column_comes_back(store: ConsensusStore, database: Database) -> None:
    """A row with a value in every column is the same on both sides, and after the way there and back."""
    raw(database, "UPDATE consensus_artifacts SET response_text = 'said', run_id = 'r' WHERE id = 1")
    before = database.rows("consensus_artifacts"), database.rows("consensus_synthesis")
    store.migration.migrate(Phase.CONTRACT)
    store.migration.rollback(Phase.EXPAND)
    assert (database.rows("consensus_artifacts"), database.rows("consensus_synthesis")) == before


@pytest.mark.parametrize("phase", BOTH)
def test_rule_3_no_id_is_given_twice(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Ids are above whatever either side has ever given, and so after deletes and flips."""
    store.migration.migrate(phase)
    # Programs of a server draw their ids from the sequence, as we do; in a file they may give any.
    given = "id, " if database.kind == "sqlite" else ""
    values = f"{'900, ' if given else ''}'F', 'p', 'a', ''"
    raw(
        database, f"INSERT INTO consensus_artifacts ({given}spec_id, stage, agent_name, content_json) VALUES ({values})"
    )
    theirs = database.scalar("SELECT max(id) FROM consensus_artifacts")
    with store.unit_of_work() as uow:
        first = uow.artifacts.add(**ROW)
        uow.artifacts.delete(spec_id="S")
    store.migration.reconcile()
    store.migration.migrate(Phase.NORMALIZED)
    with store.unit_of_work() as uow:
        second = uow.artifacts.add(**ROW)
    assert theirs < first.id < second.id


def test_rule_4_null_and_empty_run_ids_are_two_runs(store: ConsensusStore) -> None:
    """NULL and '' are two run ids, in every phase."""
    for phase in Phase:
        store.migration.migrate(phase)
        with store.unit_of_work() as uow:
            uow.artifacts.delete(spec_id="S")
            uow.artifacts.add(**ROW)
            uow.artifacts.add(**ROW, run_id="")
            assert {run.run_id for run in uow.runs.list(spec_id="S")} == {None, ""}, phase


@pytest.mark.parametrize("phase", BOTH)
@pytest.mark.parametrize("table", ["consensus_artifacts", "agent_outputs"])
def test_rule_5_a_write_is_compared_as_stored(
    store: ConsensusStore, database: Database, phase: Phase, table: str
) -> None:
    """What somebody's trigger makes of a row is seen on either side, though only its type or its case changes."""
    store.migration.migrate(phase)
    content = "content_json" if table == "consensus_artifacts" else "content"
    changed = f"CAST({content} AS BLOB)" if database.kind == "sqlite" else f"lower({content})"
    database.fault("AFTER INSERT", table, f"UPDATE {table} SET {content} = {changed} WHERE id = NEW.id")
    with store.unit_of_work() as uow:
        key = uow.artifacts.add(**ROW | {"content_json": "A"}).id
    assert [(m.key, m.column, m.found_by) for m in store.migration.mismatches()] == [(key, "content", "write")]


@pytest.mark.parametrize("phase", BOTH)
def test_rule_6_a_failing_shadow_loses_no_write(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """The write stands on the side that is read, the failure is a mismatch, and reconcile repairs it."""
    store.migration.migrate(phase)
    shadow = "agent_outputs" if phase is Phase.DUAL_WRITE else "consensus_artifacts"
    database.fault("BEFORE INSERT", shadow, REFUSE)
    with store.unit_of_work() as uow:
        artifact = uow.artifacts.add(**ROW)
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(artifact.id) == artifact
    assert [m.kind for m in store.migration.mismatches()] == ["shadow_failed"]
    database.heal()
    store.migration.reconcile()
    assert store.migration.verify().clean
    assert not store.migration.mismatches()


@pytest.mark.parametrize("phase", BOTH)
def test_rule_6_a_row_of_somebody_else_is_adopted(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """A row on the shadow side alone is carried to the truth, even where no trigger noticed it."""
    store.migration.migrate(phase)
    database.unnoticed("; ".join((FOREIGN,) if phase is Phase.CUTOVER else FOUNDING))
    store.migration.reconcile()
    with store.unit_of_work(read_only=True) as uow:
        assert [a.id for a in uow.artifacts.list(spec_id="F")] == [900]
    assert store.migration.verify().clean


@pytest.mark.sqlite  # a column of PostgreSQL has one type
def test_rule_7_what_cannot_be_carried_is_a_reject(store: ConsensusStore, database: Database) -> None:
    """A number in a text column cannot come out as it is: it is listed, and the gate stays shut."""
    sql = column(database, "SELECT sql FROM sqlite_master WHERE name = 'consensus_artifacts'")[0]
    assert isinstance(sql, str)
    with contextlib.closing(sqlite3.connect(database.where, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        loose = sql.replace("agent_name TEXT", "agent_name BLOB")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'consensus_artifacts'", (loose,))
    raw(database, "UPDATE consensus_artifacts SET agent_name = 42 WHERE id = 1")
    with contextlib.closing(sqlite3.connect(database.where, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'consensus_artifacts'", (sql,))
    assert column(database, "SELECT typeof(agent_name) FROM consensus_artifacts WHERE id = 1") == ["integer"]
    with pytest.raises(GateClosedError, match="rejects"):
        store.migration.migrate(Phase.CUTOVER)
    assert [(r.key, r.state) for r in store.migration.rejects()] == [(1, "open")]


def test_rule_8_the_whole_unit_of_work_is_repeated(store: ConsensusStore) -> None:
    """After a transient error the work is done again from its beginning, and its first half is stored once."""
    tries: list[int] = []

    def work(uow: object) -> None:
        tries.append(1)
        uow.artifacts.add(**ROW)  # type: ignore[attr-defined]
        if len(tries) == 1:
            raise DatabaseBusyError

    store.run(work)
    with store.unit_of_work(read_only=True) as uow:
        assert (len(tries), uow.artifacts.count(spec_id="S")) == (2, 1)


def test_rule_9_the_database_first_memory_second(store: ConsensusStore) -> None:
    """What is registered for the commit is not called before it, and never without it."""
    memory: list[str] = []
    with store.unit_of_work() as uow:
        uow.on_commit(lambda: memory.append("committed"))
        assert memory == []
    assert memory == ["committed"]
    with pytest.raises(ZeroDivisionError), store.unit_of_work() as uow:
        uow.on_commit(lambda: memory.append("never"))
        raise ZeroDivisionError
    assert memory == ["committed"]


def test_rule_10_a_session_cannot_write_one_side(store: ConsensusStore, database: Database) -> None:
    """What a session writes to one side is on both where both are written; one that is written no more is refused."""
    from consensus_orm.consensus.models.legacy import ConsensusArtifact

    with store.unit_of_work() as uow:
        uow.artifacts.add(**ROW)
    with pytest.raises(WrongPhaseError), store.unit_of_work() as uow:
        uow.session.execute(text(FOUNDING[0]))
    store.migration.migrate(Phase.CUTOVER)
    with store.unit_of_work() as uow:
        uow.session.scalars(
            select(AgentOutput).where(AgentOutput.content == ROW["content_json"])
        ).one().content = "changed"
    assert column(database, "SELECT content_json FROM consensus_artifacts WHERE spec_id = 'S'") == ["changed"]
    store.migration.migrate(Phase.NORMALIZED)
    with pytest.raises(WrongPhaseError), store.unit_of_work() as uow:
        uow.session.get(ConsensusArtifact, 1)


@pytest.mark.sqlite  # on a server it takes SERIALIZABLE isolation: test_unit_of_work
def test_fence_a_reader_who_writes_does_not_lose_updates(store: ConsensusStore) -> None:
    """Two units of work that count and then write do not both see the same count."""
    with store.unit_of_work() as uow:
        uow.artifacts.add(**ROW)
    seen: list[int] = []
    together = threading.Barrier(2, timeout=10)

    def work() -> None:
        together.wait()
        with store.unit_of_work() as uow:
            seen.append(uow.artifacts.count(spec_id="S"))
            uow.artifacts.add(**ROW)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [1, 2]


def test_fence_a_writer_excludes_other_processes_from_its_begin(store: ConsensusStore, database: Database) -> None:
    """A unit of work holds its lock before it has written anything: a flip elsewhere waits for it."""
    with store.unit_of_work():
        pass  # the first one writes down the state of the schema
    with store.unit_of_work(), pytest.raises(database.Error, match="lock"):
        flip_at_once(database)
    flip_at_once(database)


def flip_at_once(database: Database) -> None:
    """Take what a flip takes, or fail."""
    if database.kind == "sqlite":
        with contextlib.closing(sqlite3.connect(database.where, timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")
    else:
        database.script("LOCK TABLE consensus_orm_state IN EXCLUSIVE MODE NOWAIT")


def test_fence_the_phase_is_read_in_every_unit_of_work(store: ConsensusStore, database: Database) -> None:
    """A store writes under the phase that another process has set meanwhile."""
    store.migration.upgrade()
    with store.unit_of_work() as uow:
        assert uow.phase is Phase.EXPAND
    with ConsensusStore.open(database.where, settings=SETTINGS) as other:
        other.migration.advance()
    with store.unit_of_work() as uow:
        assert uow.phase is Phase.DUAL_WRITE


def test_backfill_a_chunk_and_its_checkpoint_are_one(store: ConsensusStore, database: Database) -> None:
    """Where the checkpoint cannot be written, the rows of its chunk are not there either."""
    store.migration.advance()
    database.fault("BEFORE INSERT", "consensus_orm_backfill", REFUSE)
    with pytest.raises(StorageError):
        store.migration.backfill()
    assert column(database, "SELECT count(*) FROM agent_outputs") == [0]


def test_backfill_what_was_not_compared_is_carried_again(store: ConsensusStore, database: Database) -> None:
    """A backfill that ends before it has settled what came out unequal leaves that to the next one."""
    store.migration.advance()
    database.fault(
        "AFTER INSERT", "agent_outputs", "UPDATE agent_outputs SET content = content || '!' WHERE id = NEW.id"
    )
    by_row = SETTINGS.model_copy(update={"chunk_rows": 1})
    with ConsensusStore.open(database.where, settings=by_row) as other, pytest.raises(KeyboardInterrupt):
        other.migration.backfill(_interrupt)
    store.migration.backfill()
    assert store.migration.verify().clean


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_gate_a_foreign_write_voids_the_certificate(store: ConsensusStore, database: Database) -> None:
    """A row written around the repositories after the verify shuts the gate, even once it is gone again."""
    store.migration.migrate(Phase.CUTOVER)
    store.migration.verify()
    raw(
        database,
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('F', 'p', 'a', 'x')",
    )
    store.migration.reconcile()
    with pytest.raises(GateClosedError, match="around the repositories"):
        store.migration.advance()


def test_freeze_a_legacy_program_is_told(store: ConsensusStore, database: Database) -> None:
    """From NORMALIZED on a program that writes the legacy tables gets an error instead of losing data."""
    store.migration.migrate(Phase.NORMALIZED)
    with pytest.raises(database.Error, match="frozen"):
        raw(database, "DELETE FROM consensus_artifacts")
