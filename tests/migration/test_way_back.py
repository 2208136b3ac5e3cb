"""The way back loses nothing that nobody decided on, whatever another program has done to the legacy side meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.phase import Side
from consensus_orm.progress import Progress
from consensus_orm.settings import Settings
from tests.field import builders
from tests.support.databases import IGNORE, Database, at, build_legacy

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0, synchronous="OFF")
BACK = [Phase.CUTOVER, Phase.NORMALIZED]
SPOILING = {
    "deleted": (
        "AFTER INSERT",
        {
            "sqlite": "DELETE FROM consensus_artifacts WHERE id = NEW.id",
            "postgresql": "DELETE FROM consensus_artifacts WHERE id = NEW.id",
        },
    ),
    "changed": (
        "AFTER INSERT",
        {
            "sqlite": "UPDATE consensus_artifacts SET content_json = upper(content_json) WHERE id = NEW.id",
            "postgresql": "UPDATE consensus_artifacts SET content_json = upper(content_json) WHERE id = NEW.id",
        },
    ),
    "ignored": ("BEFORE INSERT", {"sqlite": IGNORE, "postgresql": IGNORE}),
    "kept": ("BEFORE DELETE", {"sqlite": IGNORE, "postgresql": IGNORE}),
}


@pytest.fixture
def database(new_database: Database) -> Database:
    build_legacy(new_database.where)
    return new_database


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[ConsensusStore]:
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path, "shadow_reads": 1.0})
    with ConsensusStore.open(database.where, settings=settings) as store:
        yield store


def write(store: ConsensusStore, label: str) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(spec_id=label, stage="s", agent_name="a", content_json="new").id


def legacy_of(database: Database, key: int) -> list[tuple[Any, ...]]:
    return database.rows_of("SELECT spec_id, content_json FROM consensus_artifacts WHERE id = ?", key)


def spoiled(store: ConsensusStore, database: Database, phase: Phase, how: str) -> int:
    """A row of the truth that the legacy side does not hold equal, since another program's trigger stands there."""
    store.migration.migrate(Phase.CUTOVER)
    key = write(store, "S") if how == "kept" else 0
    store.migration.migrate(phase)
    event, does = SPOILING[how]
    database.fault(event, "consensus_artifacts", does[database.kind])
    if how != "kept":
        return write(store, "S")
    with store.unit_of_work() as uow:
        uow.artifacts.delete(spec_id="S")
    return key


@pytest.mark.parametrize("how", SPOILING)
@pytest.mark.parametrize("phase", BACK, ids=lambda p: p.name)
def test_the_way_back_is_shut_while_a_row_is_left_behind(
    store: ConsensusStore, database: Database, phase: Phase, how: str
) -> None:
    """It names table, rows and command, and keeps the phase; nothing that is read is lost by it."""
    key = spoiled(store, database, phase, how)
    truth = database.rows("agent_outputs")
    if phase.compares:
        store.migration.reconcile()
        if how == "changed":  # the second time it is an update
            assert legacy_of(database, key) == [("S", "new")]
            return
        report = store.migration.verify()
        assert (report.clean, report.rejects > 0) == (False, True)
    for _ in range(2):
        with pytest.raises(errors.GateClosedError, match=r"1 row of agent_outputs .* consensus_artifacts") as shut:
            store.migration.rollback(Phase.EXPAND)
        assert "run: consensus-orm rejects" in str(shut.value)
        assert shut.value.reasons
        assert store.migration.phase is phase
    assert not store.migration.verify().clean
    assert database.rows("agent_outputs") == truth

    database.heal()
    (reject,) = store.migration.rejects()
    assert reject.key == key
    if how == "kept":
        store.migration.accept_reject(reject.id, reason="a test")
        for mismatch in store.migration.mismatches():
            store.migration.accept_mismatch(mismatch.id, reason="a test")
    else:
        assert store.migration.resolve_reject(reject.id)
        assert legacy_of(database, key) == [("S", "new")]
    store.migration.rollback(Phase.EXPAND)
    assert store.migration.phase is Phase.EXPAND


@pytest.mark.parametrize("phase", BACK, ids=lambda p: p.name)
def test_an_accepted_row_is_in_nobodys_way(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """An operator has decided, with a reason: the phase goes back, and the row stays on the side that has it."""
    key = spoiled(store, database, phase, "deleted")
    if phase.compares:
        store.migration.reconcile()
    with pytest.raises(errors.GateClosedError):
        store.migration.rollback(Phase.EXPAND)
    (reject,) = store.migration.rejects()
    store.migration.accept_reject(reject.id, reason="a test")
    store.migration.rollback(Phase.EXPAND)
    assert store.migration.phase is Phase.EXPAND
    assert legacy_of(database, key) == []
    assert database.scalar(f"SELECT count(*) FROM agent_outputs WHERE id = {key}") == 1


# Columns ----------------------------------------------------------------------------------------------------

ALTERED = {
    "dropped": ("response_text", "ALTER TABLE consensus_artifacts DROP COLUMN response_text"),
    "renamed": ("content_json", "ALTER TABLE consensus_artifacts RENAME COLUMN content_json TO cj"),
    "the key": ("id", "ALTER TABLE consensus_artifacts RENAME COLUMN id TO nr"),
}


def alter(database: Database, sql: str) -> None:
    """As another program does, which drops triggers that are in the way."""
    if database.kind == "sqlite":
        for (name,) in database.rows_of(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%response_text%'"
        ):
            database.script(f'DROP TRIGGER "{name}"')
    database.script(sql)


@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize("phase", BACK, ids=lambda p: p.name)
def test_a_column_that_is_gone(store: ConsensusStore, database: Database, phase: Phase, how: str) -> None:
    """Every step names table and column and one command, which sets the table aside and makes the side again."""
    store.migration.migrate(phase)
    before = database.legacy()
    column, sql = ALTERED[how]
    alter(database, sql)
    broken = database.rows("consensus_artifacts")
    key = write(store, "meanwhile")

    found = f"column {column} of table consensus_artifacts was dropped or renamed by another program"
    command = "consensus-orm reconcile --rebuild legacy"
    with ConsensusStore.open(database.where, settings=SETTINGS) as again:
        status = again.migration.status()
    assert (status.guards[0], status.gate[0], status.next_command) == (found, f"{found}; run: {command}", command)
    for step in (store.migration.verify, store.migration.reconcile, store.migration.rollback):
        with pytest.raises(errors.GuardsBrokenError, match=found) as refused:
            step()
        assert command in str(refused.value)
    with pytest.raises(errors.GateClosedError, match=found):
        store.migration.advance(force=True, reason="in a hurry")
    with pytest.raises(errors.MigrationError, match=f"consensus_artifacts, which has no column '{column}'"):
        store.migration.reconcile(rebuild="normalized")

    assert store.migration.reconcile(rebuild="legacy").rebuilt is not None
    assert store.migration.status().guards == []
    assert store.migration.verify().clean
    store.migration.rollback(Phase.EXPAND)
    after = database.legacy()
    assert [row for row in after["artifacts"] if row in before["artifacts"]] == before["artifacts"]
    assert after["syntheses"] == before["syntheses"]
    assert legacy_of(database, key) == [("meanwhile", "new")]
    assert database.rows("consensus_orm_aside_1_consensus_artifacts") == broken


@pytest.mark.parametrize("phase", [Phase.EXPAND, Phase.DUAL_WRITE], ids=lambda p: p.name)
def test_the_truth_is_not_set_aside(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Where the legacy side is read nobody else has its rows: the column is named, and the table stays."""
    store.migration.migrate(Phase.DUAL_WRITE)
    if phase is Phase.EXPAND:
        store.migration.rollback()
    database.script("ALTER TABLE consensus_artifacts RENAME COLUMN content_json TO cj")
    before = database.rows("consensus_artifacts")
    status = store.migration.status()
    assert status.guards[0].startswith("column content_json of table consensus_artifacts")
    with pytest.raises(errors.StorageError, match=r"content_json|42703"):
        write(store, "S")
    with pytest.raises(errors.MigrationError, match="has no column 'content_json'"):
        store.migration.reconcile(rebuild=Side.LEGACY)
    assert database.rows("consensus_artifacts") == before
    database.script("ALTER TABLE consensus_artifacts RENAME COLUMN cj TO content_json")
    assert write(store, "S")


# What was saved ----------------------------------------------------------------------------------------------

SAVED = "consensus_orm_saved_schema"
OF_ARTIFACTS = "WHERE type = 'table' AND table_name = 'consensus_artifacts'"
HARM = {
    "a sequence of words": f"UPDATE {SAVED} SET sequence = 'abc' {OF_ARTIFACTS}",
    "a sequence of bytes": f"UPDATE {SAVED} SET sequence = x'00' {OF_ARTIFACTS}",
    "a broken number": f"UPDATE {SAVED} SET sequence = 1.5 {OF_ARTIFACTS}",
    "a column less": f"UPDATE {SAVED} SET sql = replace(sql, 'response_text TEXT,', '') {OF_ARTIFACTS}",
    "another column": f"UPDATE {SAVED} SET sql = replace(sql, 'response_text', 'said') {OF_ARTIFACTS}",
    "load_extension": (
        f"UPDATE {SAVED} SET sql = replace(sql, 'spec_id TEXT NOT NULL',"
        f" 'spec_id TEXT NOT NULL CHECK (load_extension(''x'') IS NULL)') {OF_ARTIFACTS}"
    ),
    "a call that fails": (
        f"UPDATE {SAVED} SET sql = replace(sql, 'spec_id TEXT NOT NULL',"
        f" 'spec_id TEXT NOT NULL CHECK (abs(-9223372036854775807 - 1) IS NULL)') {OF_ARTIFACTS}"
    ),
}


@pytest.fixture(scope="module")
def contracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file at CONTRACT."""
    path = tmp_path_factory.mktemp("contracted") / "original.db"
    builders.build_legacy(path, columns=11)
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        store.migration.migrate(soak=False)
    return path


@pytest.fixture
def file(contracted: Path, tmp_path: Path) -> Database:
    """A copy of it."""
    return at(Path(shutil.copyfile(contracted, tmp_path / "copy.db")))


@pytest.mark.sqlite
@pytest.mark.parametrize("name", HARM)
def test_what_was_saved_is_checked_before_anything_is_made(name: str, file: Database) -> None:
    """Whatever else than its own definition and number stands there is refused, and the view stays in its place."""
    saved = file.rows_of(f"SELECT position, sql, sequence FROM {SAVED}")
    file.script(HARM[name])
    assert file.rows_of(f"SELECT position, sql, sequence FROM {SAVED}") != saved
    with ConsensusStore.open(file.where, settings=SETTINGS) as store:
        with pytest.raises(errors.UnsafeDefinitionError, match="a table of consensus_artifacts says something else"):
            store.migration.rollback()
        assert store.migration.phase is Phase.CONTRACT
    assert file.rows_of("SELECT type FROM sqlite_master WHERE name = 'consensus_artifacts'") == [("view",)]
    assert file.rows_of("SELECT step FROM consensus_orm_state") == [(None,)]
    with builders.writing(Path(str(file.where))) as connection:
        connection.executemany(f"UPDATE {SAVED} SET sql = ?2, sequence = ?3 WHERE position = ?1", saved)
    back(file)


def back(file: Database) -> None:
    """The way back is free, and every row comes out equal."""
    with ConsensusStore.open(file.where, settings=SETTINGS) as store:
        store.migration.rollback(Phase.NORMALIZED)
        assert file.legacy() == file.normalized()
        store.migration.rollback(Phase.EXPAND)


@pytest.mark.sqlite
def test_a_way_back_that_failed_half_way_is_taken_again(file: Database) -> None:
    """What is written into the saved number meanwhile is refused at the end; mended, the same call ends it."""

    def spoil(_: object) -> None:
        file.script(HARM["a sequence of words"])

    with ConsensusStore.open(file.where, settings=SETTINGS) as store:
        with pytest.raises(errors.UnsafeDefinitionError):
            store.migration.rollback(progress=spoil)
        assert store.migration.phase is Phase.CONTRACT
    assert file.rows_of("SELECT step FROM consensus_orm_state") == [("rebuild",)]
    file.script(f"UPDATE {SAVED} SET sequence = 7 {OF_ARTIFACTS}")
    back(file)


@pytest.mark.sqlite
def test_a_table_that_stores_otherwise_shuts_the_way_back(file: Database) -> None:
    """A saved type that makes numbers of texts: the rows that come out different are rejects, and the phase stays."""
    file.script("UPDATE agent_outputs SET content = '007' WHERE id = 1")
    file.script(f"UPDATE {SAVED} SET sql = replace(sql, 'content_json TEXT', 'content_json INTEGER') {OF_ARTIFACTS}")
    with ConsensusStore.open(file.where, settings=SETTINGS) as store:
        with pytest.raises(errors.GateClosedError, match=r"1 row of agent_outputs .* consensus_artifacts"):
            store.migration.rollback()
        assert store.migration.phase is Phase.CONTRACT
        assert [reject.key for reject in store.migration.rejects()] == [1]
        store.migration.advance(Phase.CONTRACT)
    assert file.rows_of("SELECT type FROM sqlite_master WHERE name = 'consensus_artifacts'") == [("view",)]


@pytest.mark.sqlite
def test_a_way_back_ends_where_a_table_refuses_the_last_rows(file: Database) -> None:
    """A constraint of the legacy table that the newest rows do not meet: they are rejects, and no chunk comes twice."""
    end = "DEFAULT CURRENT_TIMESTAMP)"
    file.script(f"UPDATE {SAVED} SET sql = replace(sql, '{end}', '{end[:-1]}, CHECK (spec_id <> ''new''))')")
    with ConsensusStore.open(file.where, settings=SETTINGS) as store:
        before = file.normalized()["artifacts"]
        new = [write(store, "new") for _ in range(3)]
        seen: list[int] = []

        def watch(progress: Progress) -> None:
            seen.append(progress.done)
            assert len(seen) < 50, "the same chunk again and again"

        with pytest.raises(errors.GateClosedError, match="3 rows of agent_outputs could not be carried back"):
            store.migration.rollback(progress=watch)
        assert [reject.key for reject in store.migration.rejects()] == new
        assert file.legacy()["artifacts"] == before
        store.migration.accept_rejects([range(1, 4)], reason="new ones stay")
        store.migration.rollback(Phase.NORMALIZED)
        assert file.legacy()["artifacts"] == before


# Images ------------------------------------------------------------------------------------------------------


def test_what_follows_from_others_is_told(store: ConsensusStore, database: Database) -> None:
    """A value that is derived is derived again; the columns that are not as in the image are named, and no others."""
    store.migration.migrate(Phase.DUAL_WRITE)
    store.migration.backfill()
    database.script("UPDATE agent_outputs SET output_timestamp = 5 WHERE id = 1")
    database.script("UPDATE agent_outputs SET content = 'theirs' WHERE id = 2")
    store.migration.reconcile(foreign="repair")
    numbers = {image.key: image.id for image in store.migration.images() if image.pair == "artifacts"}
    left = {key: store.migration.restore_image(number).not_put_back for key, number in numbers.items()}
    assert left == {1: ("agent_outputs.output_timestamp",), 2: ()}
    assert database.scalar("SELECT output_timestamp FROM agent_outputs WHERE id = 1") != 5
    assert database.scalar("SELECT content FROM agent_outputs WHERE id = 2") == "theirs"
    told = [entry.detail for entry in store.migration.history() if entry.action == "restore image"]
    assert ["agent_outputs.output_timestamp"] in [json.loads(json.dumps(detail))["left"] for detail in told]


def test_a_value_that_an_adoption_replaces_on_the_way_back_is_kept(store: ConsensusStore, database: Database) -> None:
    """At CONTRACT another program writes a row whose time contradicts another column: what is replaced is an image."""
    store.migration.migrate(Phase.CONTRACT)
    before = {entry.id for entry in store.migration.images(everything=True)}
    database.script(
        "INSERT INTO consensus_runs (spec_id, stage, run_timestamp, consensus_ok) VALUES ('N', 's', 5, TRUE);"
        " INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp, created_at)"
        " SELECT id, 'a', 'c', 5, '2025-11-04 02:23:58' FROM consensus_runs WHERE spec_id = 'N'"
    )
    key = database.scalar(
        "SELECT o.id FROM agent_outputs AS o JOIN consensus_runs AS r ON r.id = o.run_id AND r.spec_id = 'N'"
    )
    store.migration.rollback(Phase.NORMALIZED)
    assert database.rows_of("SELECT output_timestamp FROM agent_outputs WHERE id = ?", key) == [(1762223038000,)]
    kept = [e for e in store.migration.images() if e.id not in before and (e.pair, e.key) == ("artifacts", key)]
    assert [(e.side, e.cause) for e in kept] == [(Side.NORMALIZED, "adopted on the way back")]
    ((image,),) = database.rows_of("SELECT image FROM consensus_orm_images WHERE id = ?", kept[0].id)
    assert json.loads(image)["agent_outputs.output_timestamp"] == ["integer", b"5".hex().upper()]
