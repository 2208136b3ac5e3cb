"""A side whose tables another program dropped is made again from the other one, by whoever knows which rows count.

Rows that were written to a table that was dropped and made again are nobody's to throw away: they stay, under new ids
where their own had been given before. What is replaced is kept as an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.errors import (
    GuardsBrokenError,
    InvalidValueError,
    MigrationError,
    UnsafeDefinitionError,
    WrongPhaseError,
)
from consensus_orm.settings import Settings
from tests.field import builders
from tests.migration.guarding import REMADE
from tests.migration.test_missing_tables import take_away
from tests.support import databases
from tests.support.databases import Database
from tests.support.oracle import Row

SETTINGS = Settings(
    soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=4, chunk_pause=0, synchronous="OFF"
)
GUARDED = (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
THEIRS = [f"written since {number}" for number in range(14)]
NORMALIZED = ("agent_outputs", "consensus_syntheses", "consensus_runs")


@pytest.fixture
def database(new_database: Database) -> Database:
    databases.odd_history(new_database.where)
    return new_database


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[ConsensusStore]:
    with ConsensusStore.open(database.where, settings=settings(tmp_path)) as store:
        yield store


def settings(folder: Path) -> Settings:
    return SETTINGS.model_copy(update={"backup_dir": folder})


def in_phase(store: ConsensusStore, phase: Phase) -> None:
    """In a phase, every row on both sides, and the phases before it left behind: EXPAND is that of a way back."""
    store.migration.migrate(max(phase, Phase.DUAL_WRITE))
    if phase <= Phase.CUTOVER:
        store.migration.backfill()
        assert store.migration.verify().clean
    if phase is Phase.EXPAND:
        store.migration.rollback()


def write(store: ConsensusStore, label: str) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(spec_id="W", stage="s", agent_name="a", content_json=label).id


def remake(database: Database) -> None:
    """Drop the artifacts, make their table again, and write rows whose ids begin with 1."""
    database.script(REMADE[database.kind])
    for content in THEIRS:
        database.rows_of(
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('N', 'n', 'n', ?)",
            content,
        )


def contents(rows: list[Row]) -> list[str]:
    """The contents of artifacts that are text."""
    return [bytes.fromhex(row[4][1]).decode("utf-8", "replace") for row in rows]


def whole(store: ConsensusStore, database: Database) -> None:
    """Both sides agree, nothing is open, and the way to the next phase and back to the first is free."""
    status = store.migration.status()
    assert (status.guards, status.mismatches, status.rejects) == ([], 0, 0)
    if status.phase.writes_normalized:
        assert database.legacy() == database.normalized()
        assert store.migration.verify().clean
    before = database.legacy()
    store.migration.advance()
    store.migration.rollback(Phase.EXPAND)
    assert database.legacy() == before


@pytest.mark.long
@pytest.mark.parametrize("how", ["drop", "rename"])
@pytest.mark.parametrize("phase", [Phase.EXPAND, *GUARDED], ids=lambda p: p.name)
def test_a_legacy_table_comes_back_exactly(store: ConsensusStore, database: Database, phase: Phase, how: str) -> None:
    """Every row in type and bytes, also what was written meanwhile; in a file also index, trigger and sequence."""
    database.script("CREATE TABLE counted (n INTEGER)")
    if database.kind == "sqlite":
        database.script(
            "CREATE TRIGGER theirs AFTER INSERT ON consensus_artifacts BEGIN INSERT INTO counted VALUES (1); END"
        )
    in_phase(store, phase)
    before = database.legacy()
    definitions = database.image("consensus_artifacts")[0] if database.kind == "sqlite" else None
    highest = database.sequences()["consensus_artifacts"]
    take_away(database, "consensus_artifacts", how)
    new = write(store, "meanwhile") if phase.truth == "normalized" else None

    report = store.migration.reconcile(rebuild="legacy")

    assert report.rebuilt is not None
    assert (report.rebuilt.tables, report.rebuilt.renumbered) == (("consensus_artifacts",), 0)
    after = database.legacy()
    assert [row for row in after["artifacts"] if row in before["artifacts"]] == before["artifacts"]
    assert len(after["artifacts"]) == len(before["artifacts"]) + (new is not None)
    assert after["syntheses"] == before["syntheses"]
    if definitions is not None and how == "drop":
        assert sorted(database.image("consensus_artifacts")[0]) == sorted(definitions)  # type: ignore[call-overload]
        assert database.scalar("SELECT count(*) FROM counted") == 0
    whole(store, database)
    if how == "drop" and database.kind == "sqlite":
        assert write(store, "next") > highest


@pytest.mark.long
@pytest.mark.parametrize("tables", [("agent_outputs",), ("consensus_runs",), NORMALIZED], ids=len)
@pytest.mark.parametrize("phase", GUARDED, ids=lambda p: p.name)
def test_normalized_tables_come_back(
    store: ConsensusStore, database: Database, phase: Phase, tables: tuple[str, ...]
) -> None:
    """They are made from the models and filled from legacy; rows that were left without a run are kept as images."""
    in_phase(store, phase)
    before = database.legacy()
    for table in tables:
        take_away(database, table, "drop")
    if phase is Phase.DUAL_WRITE:
        write(store, "meanwhile")

    report = store.migration.reconcile(rebuild="normalized")

    assert report.rebuilt is not None
    assert set(report.rebuilt.tables) == set(tables)
    kept = database.scalar("SELECT count(*) FROM consensus_orm_images WHERE side = 'normalized'")
    assert (kept > 0) is (tables == ("consensus_runs",))
    after = database.normalized()["artifacts"]
    assert [row for row in after if row in before["artifacts"]] == before["artifacts"]
    whole(store, database)


@pytest.mark.long
@pytest.mark.parametrize("phase", [Phase.EXPAND, *GUARDED], ids=lambda p: p.name)
def test_rows_of_a_table_that_was_made_again_stay(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """The old rows come back under their ids; those written since have new ids, and an image of what they were."""
    in_phase(store, phase)
    before = database.legacy()
    remake(database)
    mine = write(store, "mine")
    with pytest.raises(GuardsBrokenError):
        store.migration.reconcile()

    report = store.migration.reconcile(rebuild="legacy")

    assert report.rebuilt is not None
    after = database.legacy()["artifacts"]
    assert [row for row in after if row in before["artifacts"]] == before["artifacts"]
    assert sorted(content for content in contents(after) if content in THEIRS) == sorted(THEIRS)
    assert contents(after).count("mine") == 1
    assert len(after) == len(before["artifacts"]) + len(THEIRS) + 1
    assert (phase is Phase.EXPAND) or contents([row for row in after if row[0][1] == str(mine).encode().hex()])
    images = database.rows_of("SELECT key, side, cause, image FROM consensus_orm_images ORDER BY id")
    assert len(images) == report.rebuilt.renumbered > 0
    for key, side, cause, image in images:
        new = int(cause.rpartition(" ")[2])
        assert (side, json.loads(image)["id"][1]) == ("legacy", str(key).encode().hex().upper())
        assert any(row[0][1].lower() == str(new).encode().hex() for row in after)
    whole(store, database)


@pytest.mark.long
@pytest.mark.parametrize("phase", [Phase.EXPAND, *GUARDED], ids=lambda p: p.name)
def test_or_the_rows_of_the_new_table_win(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Then the other side is made again, and each row that goes is kept as an image, whole."""
    in_phase(store, phase)
    before = database.legacy()["artifacts"]
    remake(database)

    report = store.migration.reconcile(rebuild="normalized")

    assert report.rebuilt is not None
    assert (report.rebuilt.carried, report.rebuilt.renumbered) == (0, 0)
    assert [e.detail["lost"] for e in store.migration.history() if e.action == "rebuild"] == [False]
    assert contents(database.legacy()["artifacts"]) == THEIRS
    kept = {key for (key,) in database.rows_of("SELECT key FROM consensus_orm_images WHERE pair = 'artifacts'")}
    assert kept == {
        key for (key,) in database.rows_of(f"SELECT {', '.join(['?'] * 0) or 'key'} FROM consensus_orm_images")
    }
    assert len(kept) == len(before) == report.rebuilt.replaced
    if phase is not Phase.EXPAND:
        whole(store, database)


@pytest.mark.parametrize("phase", [Phase.CUTOVER, Phase.NORMALIZED], ids=lambda p: p.name)
def test_ids_go_on_above_those_given_while_the_table_is_another_one(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """A table made again counts from 1 once more; what the package writes does not."""
    in_phase(store, phase)
    highest = max(database.sequences()["consensus_artifacts"], database.scalar("SELECT max(id) FROM agent_outputs"))
    database.script(REMADE[database.kind])
    assert write(store, "first") > highest
    assert write(store, "second") > highest + 1


@pytest.mark.long
def test_what_was_interrupted_is_taken_up(store: ConsensusStore, database: Database, tmp_path: Path) -> None:
    """After an error in the middle status names the command, and the same call ends it, with every row once."""
    in_phase(store, Phase.CUTOVER)
    before = database.legacy()["artifacts"]
    remake(database)

    def enough(_: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        store.migration.reconcile(rebuild="legacy", progress=enough)
    with ConsensusStore.open(database.where, settings=settings(tmp_path)) as again:
        status = again.migration.status()
        assert status.guards == ["the legacy side is being made again"]
        assert status.next_command == "consensus-orm reconcile --rebuild legacy"
        for step in (again.migration.verify, again.migration.rollback, again.migration.reconcile):
            with pytest.raises(GuardsBrokenError, match="the legacy side is being made again"):
                step()
        with pytest.raises(MigrationError, match="the legacy side is being made again"):
            again.migration.reconcile(rebuild="normalized")
        again.migration.reconcile(rebuild="legacy")
        after = database.legacy()["artifacts"]
        assert [row for row in after if row in before] == before
        assert sorted(content for content in contents(after) if content in THEIRS) == sorted(THEIRS)
        assert len(after) == len(before) + len(THEIRS)
        whole(again, database)


# What is refused ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_nothing_is_made_again_without_need(store: ConsensusStore, database: Database) -> None:
    """Tables that are in place stay, and so do rows of the side that alone has them."""
    in_phase(store, Phase.CUTOVER)
    everything = database.everything()
    for side in ("legacy", "normalized"):
        with pytest.raises(MigrationError, match=f"the tables of the {side} side are in place") as refused:
            store.migration.reconcile(rebuild=side)
        assert refused.value.hint == "run: consensus-orm reconcile"
    assert database.everything() == everything
    take_away(database, "consensus_artifacts", "drop")
    with pytest.raises(MigrationError, match="cannot be made from consensus_artifacts, which is not there") as refused:
        store.migration.reconcile(rebuild="normalized")
    assert "run: consensus-orm reconcile --rebuild legacy" in str(refused.value)
    with pytest.raises(InvalidValueError, match="there is no side 'both'"):
        store.migration.reconcile(rebuild="both")
    with pytest.raises(InvalidValueError, match="no preview"):
        store.migration.reconcile(rebuild="legacy", dry_run=True)
    store.migration.reconcile(rebuild="legacy")
    assert store.migration.verify().clean
    store.migration.migrate(Phase.CONTRACT)
    with pytest.raises(WrongPhaseError, match="there is one side"):
        store.migration.reconcile(rebuild="legacy")


@pytest.mark.long
def test_a_table_of_another_shape_is_refused_by_name(store: ConsensusStore, database: Database) -> None:
    """What cannot hold the rows stays as its program made it, and the columns that it lacks are named."""
    in_phase(store, Phase.DUAL_WRITE)
    take_away(database, "consensus_artifacts", "drop")
    database.script("CREATE TABLE consensus_artifacts (id INTEGER PRIMARY KEY, spec_id TEXT, note TEXT)")
    before = database.rows("consensus_artifacts"), database.normalized()
    with pytest.raises(MigrationError, match=r"consensus_artifacts, which .* has no column 'stage'"):
        store.migration.reconcile(rebuild="legacy")
    assert (database.rows("consensus_artifacts"), database.normalized()) == before
    assert "dropped and made again" in store.migration.status().guards[0]
    first = "PRAGMA legacy_alter_table = ON; " if database.kind == "sqlite" else ""
    database.script(f"{first}ALTER TABLE consensus_artifacts RENAME TO theirs")
    store.migration.reconcile(rebuild="legacy")
    whole(store, database)


@pytest.mark.sqlite
def test_a_definition_that_says_something_else_is_not_run(
    store: ConsensusStore, database: Database, tmp_path: Path
) -> None:
    """What was saved of a table is read by its grammar: it makes that table, or nothing."""
    in_phase(store, Phase.CUTOVER)
    take_away(database, "consensus_artifacts", "drop")
    victim = tmp_path / "victim.db"
    builders.build_legacy(victim)
    database.rows_of(
        "UPDATE consensus_orm_saved_schema SET sql = ? WHERE type = 'table' AND name = 'consensus_artifacts'",
        f"ATTACH '{victim}' AS victim",
    )
    with pytest.raises(UnsafeDefinitionError, match="says something else"):
        store.migration.reconcile(rebuild="legacy")
    assert store.migration.status().guards != []


@pytest.mark.long
def test_the_command(store: ConsensusStore, database: Database) -> None:
    """It says how many rows were carried and renumbered, and ends with 0; without the choice with 1, and names it."""
    in_phase(store, Phase.CUTOVER)
    remake(database)
    url = ["--url", str(database.where)]
    refused = CliRunner().invoke(main, [*url, "reconcile"])
    assert refused.exit_code == 1
    assert "reconcile --rebuild legacy" in refused.stderr
    status = CliRunner().invoke(main, [*url, "status"])
    assert status.exit_code == 1
    assert "table consensus_artifacts was dropped and made again by another program" in status.stdout
    done = CliRunner().invoke(main, [*url, "reconcile", "--rebuild", "legacy"])
    assert done.exit_code == 0, done.output
    assert "the legacy side was made again" in done.stdout
    assert CliRunner().invoke(main, [*url, "reconcile", "--rebuild", "legacy", "--dry-run"]).exit_code == 2
    assert "guards          in place" in CliRunner().invoke(main, [*url, "status"]).stdout
