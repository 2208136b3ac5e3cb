"""Every file in the field is told apart by inspection and adopted whole, or refused and left untouched."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.consensus import programs
from consensus_orm.consensus.application import APPLICATION
from consensus_orm.schema import inspection, revisions
from consensus_orm.schema.application import Identity
from consensus_orm.settings import Settings
from tests.concurrency.files import bring
from tests.conftest import Open
from tests.field import builders
from tests.support import oracle

SETTINGS = Settings()
FIELD_TABLES = (*oracle.LEGACY, "agent_executions")
CONTROL = "consensus_orm_"


def read(path: Path, sql: str) -> list[tuple[object, ...]]:
    with oracle.reading(path) as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize("name", builders.KINDS)
def test_kinds_are_told_apart_without_a_write(name: str, path: Path, open_engine: Open) -> None:
    """Looking at a file says which program made it, whatever its user_version, and changes not one byte."""
    kind, _, build = builders.KINDS[name]
    build(path)
    before = oracle.sha256(path)

    identity = revisions.inspect(open_engine(path), APPLICATION)

    assert identity.kind == kind
    assert identity.needs_upgrade
    assert identity.version is None
    assert oracle.sha256(path) == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", builders.KINDS)
def test_tables_of_the_field_stay_byte_for_byte(name: str, path: Path, open_engine: Open) -> None:
    """An upgrade changes no DDL, row or sequence of the legacy tables and executions."""
    _, _, build = builders.KINDS[name]
    build(path)
    tables = [table for table in FIELD_TABLES if table in oracle.tables(path)]
    before = oracle.image(path, *tables)

    revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)

    assert oracle.image(path, *tables) == before


@pytest.mark.long
@pytest.mark.parametrize("name", builders.KINDS)
def test_upgrade_reaches_the_head_once(name: str, path: Path, open_engine: Open) -> None:
    """Every kind of file reaches the newest revision in its phase, and a second upgrade does nothing."""
    _, phase, build = builders.KINDS[name]
    build(path)
    engine = open_engine(path)

    assert revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True) == list(inspection.REVISIONS)
    once = {table: oracle.image(path, table) for table in oracle.tables(path)}
    assert revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True) == []

    assert {table: oracle.image(path, table) for table in oracle.tables(path)} == once
    assert revisions.inspect(engine, APPLICATION).kind is programs.Program.MANAGED
    assert not revisions.inspect(engine, APPLICATION).needs_upgrade
    assert read(path, "SELECT phase, epoch, carrying FROM consensus_orm_state") == [(phase, 0, 0)]
    assert read(path, "SELECT action, from_phase, to_phase FROM consensus_orm_history") == [("adopt", None, phase)]
    assert set(oracle.LEGACY) <= set(oracle.tables(path)) or phase == 5
    assert not [table for table in oracle.tables(path) if "founding" in table]


WRONG = {
    "damaged": "consensus_runs has not",
    "damaged_outputs": "agent_outputs has a column .* 'score'",
    "damaged_artifacts": "consensus_artifacts has not",
    "damaged_key": "key of table consensus_artifacts",
    "damaged_required": "consensus_artifacts has a column .* 'tenant'",
    "damaged_view": "consensus_artifacts is a view",
    "damaged_executions": "agent_executions has not",
    "damaged_control": "consensus_orm_state is there",
}


@pytest.mark.parametrize("name", builders.DAMAGED)
def test_what_cannot_be_adopted_is_refused_untouched(name: str, path: Path, open_engine: Open) -> None:
    """A table of our name that is not ours makes one clear error, and the file keeps every byte."""
    builders.DAMAGED[name](path)
    before = oracle.sha256(path)

    with pytest.raises(errors.UnknownSchemaError, match=WRONG[name]) as raised:
        revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)

    assert raised.value.hint
    assert "\n" not in str(raised.value)
    assert oracle.sha256(path) == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_no_database_is_refused_untouched(path: Path, open_engine: Open) -> None:
    """Text of whatever length is no database, and is left as it is."""
    path.write_bytes(b"consensus " * 1000)

    with pytest.raises(errors.NotADatabaseError):
        revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)

    assert path.read_bytes() == b"consensus " * 1000


def test_a_newer_schema_is_refused_untouched(path: Path, open_engine: Open) -> None:
    """A revision of a later release is not guessed at."""
    engine = open_engine(path)
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    engine.dispose()
    with builders.writing(path) as connection:
        connection.execute(f"UPDATE {inspection.VERSION_TABLE} SET version_num = '9999'")
    before = oracle.sha256(path)

    with pytest.raises(errors.SchemaTooNewError) as raised:
        revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    with pytest.raises(errors.SchemaTooNewError):
        revisions.downgrade(engine, "base", APPLICATION)

    assert raised.value.facts["version"] == "9999"
    engine.dispose()
    assert oracle.sha256(path) == before


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE consensus_orm_history",
        "ALTER TABLE consensus_orm_history DROP COLUMN reason",
    ],
)
def test_damage_to_a_managed_file_is_noticed(damage: str, path: Path, open_engine: Open) -> None:
    """A file at the newest revision that lacks a control table, or a column of one, is refused when it is looked at."""
    builders.build_legacy(path)
    engine = open_engine(path)
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    with builders.writing(path) as connection:
        connection.execute(damage)

    with pytest.raises(errors.UnknownSchemaError):
        revisions.inspect(engine, APPLICATION)


def test_tables_of_another_application_are_left_alone(path: Path, open_engine: Open) -> None:
    """What another program keeps in the file (tables, views, triggers, its own alembic) stays as it is."""
    builders.shared(path)
    others = ("customers", "alembic_version", "broken", "good_runs")
    before = oracle.definitions(path, *others), oracle.image(path, "customers", "alembic_version")

    revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)

    assert (oracle.definitions(path, *others), oracle.image(path, "customers", "alembic_version")) == before
    # Its view reads the founding columns, which the new table has.
    assert read(path, "SELECT * FROM good_runs") == []


def test_the_missing_half_of_the_legacy_side_is_made(path: Path, open_engine: Open) -> None:
    """A file with one of the two legacy tables gets the other as the programs in the field made it."""
    builders.artifacts_only(path)
    revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)
    whole = path.with_name("whole")
    builders.first_version(whole)

    def made(file: Path) -> list[tuple[str, str, str, str]]:
        return [
            (type_, name, table, " ".join((sql or "").split()))
            for type_, name, table, sql in oracle.definitions(file, "consensus_synthesis")
        ]

    assert made(path) == made(whole)


def test_names_are_compared_as_sqlite_does(path: Path, open_engine: Open) -> None:
    """A legacy table spelled in other letters is the same table, and so starts at EXPAND."""
    with builders.writing(path) as connection:
        connection.executescript(builders.ARTIFACTS.replace("consensus_artifacts", "Consensus_Artifacts"))

    engine = open_engine(path)
    assert revisions.inspect(engine, APPLICATION).legacy_tables == {"consensus_artifacts"}
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)

    assert read(path, "SELECT phase FROM consensus_orm_state") == [(1,)]


def test_columns_in_other_letters_are_the_same(path: Path) -> None:
    """Columns spelled in other letters are in no way of CONTRACT and of completions, and come back so spelled."""
    with builders.writing(path) as connection:
        connection.executescript(builders.ARTIFACTS.replace("spec_id", "Spec_Id").replace("run_id", "RUN_ID"))
        connection.executescript(builders.SYNTHESIS)
        connection.execute(f"CREATE TABLE agent_executions ({builders.EXECUTIONS_CREATED[11].upper()})")
        connection.execute(
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 'p', 'a', 'x')"
        )
    before, rows = oracle.definitions(path, *oracle.LEGACY), oracle.legacy(path)
    with ConsensusStore.open(path) as store:
        bring(store, Phase.CONTRACT)
        with store.unit_of_work() as uow:
            uow.executions.record_spawn(
                agent_id="a", spec_id="S", stage="p", phase_type="x", agent_name="a", branch_id="b"
            )
            assert [found.branch_id for found in uow.executions.in_flight()] == ["b"]
        store.migration.rollback(Phase.EXPAND)
    assert [entry for entry in oracle.definitions(path, *oracle.LEGACY) if entry[0] != "trigger"] == before
    assert oracle.legacy(path) == rows


def test_ids_of_a_table_in_other_letters_are_given_once(path: Path) -> None:
    """SQLite counts the ids of a table under the letters of its name: none is given twice, on the way and back."""
    insert = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 'p', 'a', 'x')"
    with builders.writing(path) as connection:
        connection.executescript(builders.ARTIFACTS.replace("consensus_artifacts", "Consensus_Artifacts"))
        connection.executescript(builders.SYNTHESIS)
        connection.execute(insert)
    given = [1]
    with ConsensusStore.open(path) as store:
        for phase in (*Phase, Phase.EXPAND):
            bring(store, phase) if phase >= store.migration.phase else store.migration.rollback(phase)
            with store.unit_of_work() as uow:
                given.append(uow.artifacts.add(spec_id="T", stage="p", agent_name="a", content_json="x").id)
            with store.unit_of_work() as uow:
                assert uow.artifacts.delete(spec_id="T") == 1
    with builders.writing(path) as connection:
        connection.execute(insert)
    assert given == sorted(set(given))
    assert read(path, f"SELECT max(id) > {given[-1]} FROM consensus_artifacts") == [(1,)]
    counted = "SELECT name FROM sqlite_sequence WHERE name LIKE 'consensus_artifacts'"
    assert read(path, counted) == [("Consensus_Artifacts",)]


def test_adoption_works_on_a_database_in_memory(open_engine: Open) -> None:
    """A database in memory, which has one connection, is upgraded like any other."""
    engine = open_engine(Path(":memory:"))

    assert revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True) == list(inspection.REVISIONS)
    assert revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True) == []


def test_identify_needs_only_a_connection_of_the_driver() -> None:
    """The pure part of adoption works with plain sqlite3."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        assert programs.identify(connection) == Identity(programs.Program.NEW, frozenset(), None)
        connection.executescript(builders.ARTIFACTS)
        assert programs.identify(connection).kind is programs.Program.LEGACY
