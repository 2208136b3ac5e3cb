"""At CONTRACT a view stands where each legacy table was, and tables that come back nevertheless are adopted.

A program of the legacy side makes its tables IF NOT EXISTS and then indexes on them: the view refuses the index, so it
stops before it writes a row that nobody reads. Where somebody has dropped the view, the rows are carried.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.consensus.application import APPLICATION
from consensus_orm.errors import CopyError, GuardsBrokenError, UnknownSchemaError
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings
from tests.field import builders
from tests.migration.guarding import REMADE
from tests.migration.test_rebuild import contents
from tests.support import oracle
from tests.support.databases import Database, File, build_legacy

SETTINGS = Settings(
    soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=4, chunk_pause=0, synchronous="OFF"
)
LEGACY = ("consensus_artifacts", "consensus_synthesis")
THEIRS = [f"written at CONTRACT {number}" for number in range(31)]
MAKE = {kind: sql.partition("; ")[2] for kind, sql in REMADE.items()}


@pytest.fixture
def database(new_database: Database) -> Database:
    build_legacy(new_database.where)
    return new_database


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[ConsensusStore]:
    with ConsensusStore.open(database.where, settings=settings(tmp_path)) as store:
        yield store


def settings(folder: Path) -> Settings:
    return SETTINGS.model_copy(update={"backup_dir": folder})


def write(store: ConsensusStore, label: str) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(spec_id="W", stage="s", agent_name="a", content_json=label).id


def views(database: Database) -> list[str]:
    sql = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'view' AND name <> 'consensus_orm_guarded' ORDER BY 1",
        "postgresql": "SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
        " AND relname <> 'consensus_orm_fence' ORDER BY 1",
    }[database.kind]
    return [name for (name,) in database.rows_of(sql)]


def come_back(database: Database, rows: list[str] = THEIRS) -> None:
    """Drop the view and make the table again, as a program with its own ideas does, and write rows from id 1 on."""
    database.script(f"DROP VIEW IF EXISTS consensus_artifacts; {MAKE[database.kind]}")
    for content in rows:
        database.rows_of(
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('N', 'n', 'n', ?)",
            content,
        )


# The view -------------------------------------------------------------------------------------------------


def test_a_view_says_where_the_rows_are(store: ConsensusStore, database: Database) -> None:
    """It is there with the flip and gone with the way back; nothing can be written to it."""
    store.migration.migrate(Phase.NORMALIZED)
    assert views(database) == []
    store.migration.migrate(Phase.CONTRACT)
    assert views(database) == list(LEGACY)
    (told,) = database.rows_of("SELECT * FROM consensus_artifacts")
    assert told == (
        "consensus_orm: these rows are in agent_outputs and consensus_runs; read and write them through consensus_orm",
    )
    with pytest.raises(database.Error):
        database.script("INSERT INTO consensus_artifacts VALUES ('x')")
    assert store.migration.status().guards == []
    store.migration.rollback()
    assert views(database) == []
    assert store.migration.status().guards == []


@pytest.mark.sqlite
def test_a_first_version_stops_at_its_start(store: ConsensusStore, database: Database) -> None:
    """CREATE TABLE IF NOT EXISTS does nothing, and the index on it fails, as before it writes a row."""
    store.migration.migrate(Phase.CONTRACT)
    before = database.everything()
    program = builders.ARTIFACTS.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS").replace(
        "CREATE INDEX", "CREATE INDEX IF NOT EXISTS"
    )
    with pytest.raises(sqlite3.OperationalError, match="views may not be indexed"):
        database.script(program)
    assert database.everything() == before


def test_a_file_that_begins_at_contract_is_protected_too(new_database: Database) -> None:
    """The first upgrade puts the views up, and a downgrade to the start takes them away again."""
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        store.migration.upgrade()
        assert store.migration.phase is Phase.CONTRACT
        assert views(new_database) == list(LEGACY)
        assert store.migration.status().guards == []
        revisions.downgrade(store.engine, "base", APPLICATION)
    assert views(new_database) == []
    assert new_database.tables() == []


def test_one_that_came_to_contract_before_gets_them_with_the_upgrade(store: ConsensusStore, database: Database) -> None:
    """And one whose view was dropped says so, and gets it back by the same command."""
    store.migration.migrate(Phase.CONTRACT)
    for record in (True, False):
        database.script("DROP VIEW consensus_artifacts; DROP VIEW consensus_synthesis")
        if not record:
            database.script("DELETE FROM consensus_orm_guards")
        status = store.migration.status()
        assert bool(status.guards) is record
        if record:
            assert "the view consensus_artifacts, which says where its rows are, was dropped" in status.guards
            assert status.next_command == "consensus-orm upgrade"
        store.migration.upgrade()
        assert views(database) == list(LEGACY)
        assert store.migration.status().guards == []


def test_a_view_of_somebody_else_is_refused(database: Database, tmp_path: Path) -> None:
    """In a database that was never upgraded no view has the name of a table."""
    database.script(
        "ALTER TABLE consensus_synthesis RENAME TO theirs; CREATE VIEW consensus_synthesis AS SELECT * FROM theirs"
    )
    with pytest.raises(UnknownSchemaError, match="consensus_synthesis is a view, not a table"):
        ConsensusStore.open(database.where, settings=settings(tmp_path))


def test_a_view_of_somebody_else_is_named_at_contract(store: ConsensusStore, database: Database) -> None:
    """Only the very view that we put up is ours; writes go on, in a store that is opened anew, too."""
    store.migration.migrate(Phase.CONTRACT)
    database.script("DROP VIEW consensus_synthesis; CREATE VIEW consensus_synthesis AS SELECT 1 AS moved")
    with ConsensusStore.open(database.where, settings=store.settings) as anew:
        for each in (store, anew):
            found = "consensus_synthesis is a view of another program; drop or rename it"
            assert each.migration.status().guards == [found]
            with pytest.raises(GuardsBrokenError, match=found):
                each.migration.reconcile()
            write(each, "goes on")


@pytest.mark.long
def test_everything_else_copes_with_the_views(store: ConsensusStore, database: Database, tmp_path: Path) -> None:
    """A copy, a backup, a report, a rehearsal, and the check of alembic, at CONTRACT."""
    store.migration.migrate(Phase.CONTRACT)
    write(store, "mine")
    with ConsensusStore.open(tmp_path / "copy.db", settings=settings(tmp_path)) as target:
        assert store.copy_to(target).finished
        assert views(File(tmp_path / "copy.db")) == list(LEGACY)
        assert target.migration.status().guards == []
        assert target.migration.rollback("expand") is Phase.EXPAND
    if database.kind == "sqlite":
        store.maintenance.backup(tmp_path / "backup.db")
        assert views(File(tmp_path / "backup.db")) == list(LEGACY)
    assert store.migration.rehearse().passed
    assert views(database) == list(LEGACY)
    assert store.migration.rollback("expand") is Phase.EXPAND


# Tables that come back ------------------------------------------------------------------------------------


def carried(database: Database, before: dict[str, Any]) -> None:
    """All rows of both programs are on the normalized side, the old ones as they were."""
    after = database.normalized()["artifacts"]
    assert [row for row in after if row in before["artifacts"]] == before["artifacts"]
    assert sorted(text for text in contents(after) if text in THEIRS) == sorted(THEIRS)
    assert len(after) == len(before["artifacts"]) + len(THEIRS)
    ids = [row[0] for row in after]
    assert len(set(ids)) == len(ids)


def test_a_table_that_came_back_is_named_and_adopted(store: ConsensusStore, database: Database) -> None:
    """Status and verify name it; reconcile carries its rows, those with ids given before under new ones."""
    store.migration.migrate(Phase.CONTRACT)
    write(store, "mine")
    before = database.normalized()
    come_back(database)
    write(store, "noticed")
    before = database.normalized()
    found = "table consensus_artifacts was made by another program, and nobody reads its rows"
    status = store.migration.status()
    assert status.guards == [found]
    assert status.next_command == "consensus-orm reconcile"
    with pytest.raises(GuardsBrokenError, match=found):
        store.migration.verify()

    (adopted,) = store.migration.reconcile().adopted_tables

    assert (adopted.table, adopted.rows, adopted.known, adopted.rejects) == ("consensus_artifacts", 31, 0, 0)
    assert 0 < adopted.renumbered <= 31
    carried(database, before)
    for key, cause, image in database.rows_of("SELECT key, cause, image FROM consensus_orm_images"):
        assert json.loads(image)["id"][1] == str(key).encode().hex().upper()
        assert cause.startswith("its id was given before")
    assert views(database) == list(LEGACY)
    told = database.rows_of("SELECT detail FROM consensus_orm_history WHERE action = 'adopt table'")
    assert {json.loads(detail)["table"] for (detail,) in told} == {"consensus_artifacts"}
    assert store.migration.status().guards == []
    assert store.migration.verify().clean
    assert write(store, "next") > max(int(bytes.fromhex(row[0][1])) for row in database.normalized()["artifacts"][:-1])


def test_a_rollback_adopts_what_is_in_its_way(store: ConsensusStore, database: Database) -> None:
    """The legacy tables come back with the rows of both programs, and the way to EXPAND is free."""
    store.migration.migrate(Phase.CONTRACT)
    before = database.normalized()
    come_back(database)
    assert store.migration.rollback(Phase.EXPAND) is Phase.EXPAND
    after = database.legacy()["artifacts"]
    assert [row for row in after if row in before["artifacts"]] == before["artifacts"]
    assert sorted(text for text in contents(after) if text in THEIRS) == sorted(THEIRS)
    assert views(database) == []


def test_rows_that_are_known_are_not_there_twice(store: ConsensusStore, database: Database) -> None:
    """A table that somebody filled from an old backup holds nothing new: it goes, and no row is carried twice."""
    rows = database.rows_of("SELECT id, spec_id, stage, agent_name, content_json, created_at FROM consensus_artifacts")
    whole = [row for row in rows if all(isinstance(value, (str, int)) for value in row) and row[0] > 0]
    store.migration.migrate(Phase.CONTRACT)
    before = database.normalized()
    plain = {row[0] for row in before["artifacts"] if row[5][0] == row[6][0] == "null"}
    come_back(database, [])
    known = 0
    for row in whole:
        if any(cell[1] == str(row[0]).encode().hex().upper() for cell in plain):
            known += 1
            database.rows_of(
                "INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                *row,
            )
    assert known > 1
    (adopted,) = store.migration.reconcile().adopted_tables
    assert (adopted.rows, adopted.known) == (0, known)
    assert database.normalized() == before


def test_a_copy_waits_until_they_are_adopted(store: ConsensusStore, database: Database, tmp_path: Path) -> None:
    """It would leave the rows behind that nobody reads."""
    store.migration.migrate(Phase.CONTRACT)
    come_back(database)
    with (
        ConsensusStore.open(tmp_path / "copy.db", settings=SETTINGS) as target,
        pytest.raises(
            CopyError, match=r"consensus_artifacts was made by another program.*run first: consensus-orm reco"
        ),
    ):
        store.copy_to(target)


def test_the_commands(store: ConsensusStore, database: Database) -> None:
    """Status ends with 1 and names the table; reconcile says what it carried."""
    store.migration.migrate(Phase.CONTRACT)
    come_back(database)
    url = ["--url", str(database.where)]
    status = CliRunner().invoke(main, [*url, "status"])
    assert status.exit_code == 1
    assert "table consensus_artifacts was made by another program" in status.stdout
    done = CliRunner().invoke(main, [*url, "reconcile"])
    assert done.exit_code == 0, done.output
    assert "consensus_artifacts, which another program made: 31 rows carried" in done.stdout
    assert CliRunner().invoke(main, [*url, "status"]).exit_code == 0
    assert oracle.LEGACY == LEGACY
