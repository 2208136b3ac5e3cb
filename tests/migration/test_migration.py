"""The way back: there is one from every phase, with nothing lost, and one from a step that was interrupted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.databases import saved_rows
from consensus_orm.databases.opening import catalog
from tests.field import builders
from tests.migration.steps import BASE, BOTH, _raise, forward, image, write
from tests.support import oracle
from tests.support.databases import Database, odd_history, odd_rows
from tests.support.dependencies import accept_dependencies

# The way back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", list(Phase)[1:], ids=lambda p: p.name)
def test_there_is_a_way_back_from_every_phase(store: ConsensusStore, database: Database, top: Phase) -> None:
    """Writes of each phase forth and back all stand in the legacy tables at the end, with the ids they were given.

    The newest row is deleted each time, and no id is given twice.
    """
    before = database.legacy()["artifacts"]
    ids, labels = [], []
    store.upgrade()

    def step(label: str) -> None:
        ids.append(write(store, label))
        labels.append(label)

    for phase in list(Phase)[: top.value]:
        forward(store, phase)
        step(f"forth {phase.name}")
    while store.migration.phase.previous:
        store.migration.rollback()
        step(f"back {store.migration.phase.name}")
        assert store.migration.mismatches(everything=True) == []
    after = database.legacy()["artifacts"]
    assert after[: len(before)] == before
    assert [int(bytes.fromhex(row[0][1])) for row in after[len(before) :]] == ids
    assert [bytes.fromhex(row[3][1]).decode() for row in after[len(before) :]] == labels
    # Each of them gave two ids, one of which was deleted; the first id after the file's own is 12.
    assert ids == list(range(12, 12 + 2 * len(ids), 2))


OBJECTS_OF_OTHERS = {
    "sqlite": """
        CREATE INDEX "their ""index" ON consensus_artifacts(length(content_json)) WHERE run_id IS NULL;
        CREATE TABLE their_log (what TEXT DEFAULT ':x');
        CREATE TRIGGER their_trigger AFTER DELETE ON consensus_artifacts BEGIN
          INSERT INTO their_log VALUES ('deleted: ' || OLD.id || ':y'); END;
        CREATE TRIGGER their_update BEFORE UPDATE OF stage ON Consensus_Synthesis BEGIN SELECT 1; END;
        CREATE VIEW their_view AS SELECT spec_id FROM consensus_artifacts;
        UPDATE sqlite_sequence SET seq = 5000 WHERE name = 'consensus_artifacts';
        """,
    "postgresql": """
        CREATE INDEX "their ""index" ON consensus_artifacts(length(content_json)) WHERE run_id IS NULL;
        CREATE TABLE their_log (what TEXT DEFAULT ':x');
        CREATE FUNCTION their_function() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO their_log VALUES ('deleted: ' || OLD.id || ':y'); RETURN NULL; END $$;
        CREATE TRIGGER their_trigger AFTER DELETE ON consensus_artifacts
          FOR EACH ROW EXECUTE FUNCTION their_function();
        CREATE VIEW their_view AS SELECT spec_id FROM consensus_artifacts;
        ALTER TABLE consensus_artifacts ADD CONSTRAINT their_check CHECK (id <> 7000), ALTER spec_id SET STATISTICS 50;
        SELECT setval('consensus_artifacts_id_seq', 5000);
        """,
}


@pytest.mark.long
def test_legacy_objects_of_others_come_back_as_they_were(store: ConsensusStore, database: Database) -> None:
    """DDL with its comments, indexes, triggers and views of others, column order and sequence: all as before."""
    database.script(OBJECTS_OF_OTHERS[database.kind])
    theirs = ("their_view", "their_log")
    before, view = image(database), database.judge.definitions(database.where, *theirs)
    forward(store, Phase.NORMALIZED)
    accept_dependencies(store)
    forward(store, Phase.CONTRACT)
    assert not set(oracle.LEGACY) & set(database.tables())
    store.migration.rollback("expand")
    assert image(database) == before
    assert database.judge.definitions(database.where, *theirs) == view
    assert database.scalar("SELECT count(*) FROM their_log") == 0
    assert database.scalar("SELECT count(*) FROM their_view") == 8
    assert write(store, "next") == 5002


@pytest.mark.long
def test_every_odd_row_goes_through_all_phases_and_back(new_database: Database, tmp_path: Path) -> None:
    """LEGACY section 4: reads equal in all five phases, no reject, and the legacy tables byte for byte."""
    odd_history(new_database.where)
    before = image(new_database)

    def read(store: ConsensusStore) -> list[Any]:
        with store.unit_of_work(read_only=True) as uow:
            runs = [run for spec in uow.artifacts.specs() if isinstance(spec, str) and spec.isprintable() and spec
                    for run in uow.runs.list(spec_id=spec)]  # fmt: skip
            return [uow.artifacts.list(), uow.syntheses.list(), runs, uow.artifacts.count()]

    settings = BASE.model_copy(update={"chunk_rows": 10, "backup_dir": tmp_path})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        reads = read(store)
        for phase in list(Phase)[1:]:
            forward(store, phase)
            assert read(store) == reads, phase
            if phase is Phase.DUAL_WRITE:
                assert store.migration.backfill().rejects == 0
        assert store.migration.rejects(everything=True) == []
        for phase in reversed(list(Phase)[:-1]):
            assert store.migration.rollback() is phase
            assert read(store) == reads, phase
    assert image(new_database) == before


def test_the_frozen_tables_say_so(store: ConsensusStore, database: Database) -> None:
    """In NORMALIZED a program that still writes there gets a clear error, and its transaction nothing."""
    forward(store, Phase.NORMALIZED)
    before = image(database)[:2]  # a sequence of a server takes no number back
    for script in (
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', 'c')",
        "UPDATE consensus_synthesis SET status = 'x'",
        "DELETE FROM consensus_artifacts",
    ):
        with pytest.raises(database.Error, match="the legacy tables are frozen since phase NORMALIZED"):
            database.script(script)
    assert image(database)[:2] == before
    store.migration.rollback()
    database.script("DELETE FROM consensus_artifacts WHERE id = 1")


@pytest.mark.long
def test_changes_since_the_freeze_are_carried_back(store: ConsensusStore, database: Database) -> None:
    """In NORMALIZED legacy rows stand still.

    The rollback makes them what they are by then, rows of a program of the founding schema included.
    """
    forward(store, Phase.NORMALIZED)
    frozen = image(database)[:2]  # on a server both sides draw from the legacy sequence
    kept = write(store, "since")
    with store.unit_of_work() as uow:
        uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-plan")
    database.script("UPDATE agent_outputs SET content = 'changed' WHERE id = 5")
    database.script("DELETE FROM agent_outputs WHERE id = 6")
    database.script(
        "INSERT INTO consensus_runs (id, spec_id, stage, run_timestamp, consensus_ok)"
        " VALUES (900, 'F', 'f', 1500, TRUE);"
        "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp) VALUES (900, 'a', 'c', 1500)",
    )
    assert image(database)[:2] == frozen
    assert store.migration.verify().clean, "what is recorded as changed is no difference"
    assert store.migration.rollback() is Phase.CUTOVER
    assert database.legacy() == database.normalized()
    found = "SELECT id, content_json, created_at FROM consensus_artifacts WHERE id > 4 ORDER BY id"
    assert database.rows_of(found) == [
        (5, "changed", "2025-11-04 02:31:07"),
        *((n, *_given(database, n)) for n in (7, 8, 9)),
        (kept, "x", database.scalar(f"SELECT created_at FROM agent_outputs WHERE id = {kept}")),
        (kept + 1, "c", "1970-01-01 00:00:01.500"),
    ]


def _given(database: Database, key: int) -> tuple[Any, ...]:
    return database.rows_of("SELECT content, created_at FROM agent_outputs WHERE id = ?", key)[0]


# Interrupted steps ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_an_interrupted_rebuild_goes_on(store: ConsensusStore, database: Database) -> None:
    """A rollback from CONTRACT that stops after a chunk changes no phase.

    The next call fills the rest, with what was written meanwhile.
    """
    before = image(database)
    forward(store, Phase.CONTRACT)
    with pytest.raises(RuntimeError, match="enough"):
        store.migration.rollback(progress=_raise)
    assert store.migration.phase is Phase.CONTRACT
    assert store.migration.status().next_command == "consensus-orm rollback normalized"
    with store.unit_of_work() as uow:
        added = uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="meanwhile")
        assert uow.artifacts.delete(spec_id="S") == 1
    assert database.scalar(f"SELECT count(*) FROM consensus_artifacts WHERE id = {added.id}") == 0
    store.migration.rollback("expand")
    _, found, sequences = image(database)
    assert found == before[1]
    assert sequences["consensus_artifacts"] == added.id


def test_an_interrupted_rebuild_is_undone_by_going_forward(store: ConsensusStore, database: Database) -> None:
    """Advance to CONTRACT after it drops the half-made tables; nothing of them is left, and the way back works."""
    before = image(database)
    forward(store, Phase.CONTRACT)
    with pytest.raises(RuntimeError, match="enough"):
        store.migration.rollback(progress=_raise)
    assert store.migration.advance("contract") is Phase.CONTRACT
    assert not set(oracle.LEGACY) & set(database.tables())
    store.migration.rollback("expand")
    assert image(database) == before


def on_their_way_out(database: Database) -> list[str]:
    """Legacy tables that were put away and hold rows still; on a server the empty table stays."""
    away = [table for table in database.tables() if table.startswith(saved_rows.DROPPED)]
    return [table for table in away if database.kind == "sqlite" or database.scalar(f'SELECT count(*) FROM "{table}"')]


@pytest.mark.long
@pytest.mark.parametrize("then", ["advance", "rollback"])
def test_an_interrupted_emptying_is_finished(
    store: ConsensusStore, database: Database, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The phase is CONTRACT with the flip; tables on their way out are finished by whatever is called next."""
    before = image(database)
    forward(store, Phase.NORMALIZED)
    store.migration.verify()
    with monkeypatch.context() as patch:
        patch.setattr(type(catalog(database.kind).legacy), "empty", _raise)
        with pytest.raises(RuntimeError, match="enough"):
            store.migration.advance()
    assert store.migration.phase is Phase.CONTRACT
    assert len(on_their_way_out(database)) == 2
    if then == "advance":
        store.migration.advance("contract")
        assert not on_their_way_out(database)
    store.migration.rollback("expand")
    assert image(database) == before
    assert not on_their_way_out(database)


# Ids ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_no_id_is_given_twice_after_deletes_and_flips(store: ConsensusStore, database: Database) -> None:
    """The newest row is deleted before each flip, so only the sequence knows its id; the next one is higher."""
    highest = 0
    store.upgrade()
    for _ in range(2):
        forth: list[Callable[[], object]] = [functools.partial(forward, store, phase) for phase in list(Phase)[1:]]
        for move in [*forth, *[store.migration.rollback] * 4]:
            with store.unit_of_work() as uow:
                artifact = uow.artifacts.add(spec_id="I", stage="s", agent_name="a", content_json="x")
                uow.artifacts.delete(spec_id="I")
            assert artifact.id > highest
            highest = artifact.id
            move()
    database.script(
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', 'c')"
    )
    assert database.scalar("SELECT max(id) FROM consensus_artifacts") == highest + 1


# Programs that know one side ------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("phase", list(Phase)[:3], ids=lambda p: p.name)
def test_triggers_leave_a_foreign_program_of_a_server_alone(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """RETURNING, counts of rows, and privileges: a program with rights on the legacy tables alone notices nothing."""
    forward(store, phase)
    if phase.compares:
        store.migration.backfill()
    tables = "consensus_artifacts, consensus_artifacts_id_seq"
    with psycopg.connect(str(database.where)) as connection:
        connection.execute("CREATE ROLE somebody")
        connection.execute(f"GRANT ALL ON {tables} TO somebody".encode())
        connection.execute("SET ROLE somebody")
        legacy = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', %s)"
        given = [connection.execute(legacy + " RETURNING id", (str(n),)).fetchone() for n in range(3)]
        assert connection.execute("SELECT id FROM consensus_artifacts WHERE spec_id = 'S'").fetchall() == given
        assert connection.execute("UPDATE consensus_artifacts SET stage = 't' WHERE spec_id = 'S'").rowcount == 3
        assert connection.execute("DELETE FROM consensus_artifacts WHERE id <= 2").rowcount == 2
        connection.execute("RESET ROLE")
        connection.execute(f"REVOKE ALL ON {tables} FROM somebody; DROP ROLE somebody".encode())
    if phase.compares:
        assert store.migration.status().foreign_writes >= 5
        store.migration.reconcile(foreign="adopt")
        assert database.legacy() == database.normalized()


@pytest.mark.sqlite
@pytest.mark.parametrize("phase", list(Phase)[:3], ids=lambda p: p.name)
def test_triggers_leave_a_foreign_program_alone(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """last_insert_rowid(), changes() and RETURNING tell a plain program what they would without us."""
    forward(store, phase)
    if phase.compares:
        store.migration.backfill()
    with builders.writing(Path(database.where)) as connection:
        legacy = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', ?)"
        for n in range(3):
            cursor = connection.execute(legacy, (str(n),))
            assert connection.execute("SELECT last_insert_rowid(), changes()").fetchone() == (cursor.lastrowid, 1)
            assert cursor.lastrowid == connection.execute("SELECT max(id) FROM consensus_artifacts").fetchone()[0]
        assert connection.execute("UPDATE consensus_artifacts SET stage = 't' WHERE spec_id = 'S'").rowcount == 3
        assert connection.execute("SELECT changes()").fetchone() == (3,)
        assert connection.execute("DELETE FROM consensus_artifacts WHERE spec_id = 'S'").rowcount == 3
        assert connection.execute(legacy + " RETURNING content_json", ("r",)).fetchall() == [("r",)]
        if phase.compares:
            assert connection.execute("DELETE FROM agent_outputs WHERE id <= 2").rowcount == 2
            assert connection.execute("SELECT changes()").fetchone() == (2,)
    if phase.compares:
        store.migration.reconcile(foreign="adopt")
        assert database.legacy() == database.normalized()
        assert database.scalar("SELECT count(*) FROM consensus_artifacts WHERE id <= 2") == 0


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_rows_of_odd_values_are_adopted_from_both_sides(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """All odd rows, written by a plain legacy program while both sides are in use, are carried exactly."""
    forward(store, phase)
    store.migration.backfill()
    odd_rows(database.where)
    before = database.legacy()
    store.migration.reconcile()
    assert database.legacy() == database.normalized() == before
    assert store.migration.rejects() == []
    assert store.migration.verify().clean
