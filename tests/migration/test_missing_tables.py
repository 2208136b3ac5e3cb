"""Tables that another program drops or renames: writes go on where the truth is whole, and every step names them.

A side that is not the truth is a shadow: its failure takes no write with it (rule 6). Where the truth itself is gone,
an error names it, and what stands on the other side stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from consensus_orm import ConsensusStore, Phase, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import GateClosedError, GuardsBrokenError, TableMissingError, UnknownSchemaError
from consensus_orm.phase import Side
from consensus_orm.settings import Settings
from tests.support import shop
from tests.support.databases import Database, build_legacy

pytestmark = pytest.mark.long

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0, synchronous="OFF")
GUARDED = (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
ROW: dict[str, Any] = {"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "c"}
TABLES = {
    "consensus_artifacts": Side.LEGACY,
    "consensus_synthesis": Side.LEGACY,
    "agent_outputs": Side.NORMALIZED,
    "consensus_syntheses": Side.NORMALIZED,
    "consensus_runs": Side.NORMALIZED,
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


def in_phase(store: ConsensusStore, phase: Phase) -> None:
    store.migration.migrate(phase)
    if phase.compares:
        store.migration.backfill()
        assert store.migration.verify().clean


def take_away(database: Database, table: str, how: str) -> None:
    """Drop a table, or rename it, as another program does."""
    if how == "rename":
        database.script(f"ALTER TABLE {table} RENAME TO elsewhere")
    elif database.kind == "sqlite":
        database.script(f"PRAGMA foreign_keys = OFF; DROP TABLE {table}")
    else:
        database.script(f"DROP TABLE {table} CASCADE")


def write(store: ConsensusStore, label: str) -> int:
    """An artifact and a synthesis of a run, and another artifact that is deleted again; gives the id of the first."""
    row = ROW | {"spec_id": label}
    with store.unit_of_work() as uow:
        kept = uow.artifacts.add(**row)
        uow.artifacts.add(**row | {"spec_id": f"gone {label}"})
        uow.syntheses.add(spec_id=label, stage="s", output_markdown="m", status="ok")
    with store.unit_of_work() as uow:
        assert uow.artifacts.delete(spec_id=f"gone {label}") == 1
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(kept.id) == kept
        assert uow.artifacts.count(spec_id=f"gone {label}") == 0
        assert [s.output_markdown for s in uow.syntheses.list(spec_id=label)] == ["m"]
        assert [run.spec_id for run in uow.runs.list(spec_id=label)] == [label]
    return kept.id


@pytest.mark.parametrize("how", ["drop", "rename"])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("phase", GUARDED, ids=lambda p: p.name)
def test_a_table_that_is_gone(store: ConsensusStore, database: Database, phase: Phase, table: str, how: str) -> None:
    """Writes, deletes and reads go on where the truth is whole, else they name the table; every step names it."""
    in_phase(store, phase)
    highest = write(store, "before")
    side = TABLES[table]
    take_away(database, table, how)
    left = {name: database.rows(name) for name in TABLES if name != table}

    if side is not phase.truth:
        assert write(store, "meanwhile") > highest
        kinds = {m.kind for m in store.migration.mismatches()}
        assert kinds <= {"shadow_failed", "not_deleted"}
        assert bool(kinds) is phase.compares
    else:
        with pytest.raises(TableMissingError, match=f"table {table} was dropped or renamed") as gone:
            write(store, "meanwhile")
        assert gone.value.table == table
        assert f"run: consensus-orm reconcile --rebuild {side}" in str(gone.value)
        with pytest.raises(TableMissingError, match=table), store.unit_of_work(read_only=True) as uow:
            _ = uow.artifacts.list(), uow.syntheses.list()
        assert {name: database.rows(name) for name in left} == left

    found = f"table {table} was dropped or renamed by another program"
    command = f"consensus-orm reconcile --rebuild {side}"
    with ConsensusStore.open(database.where, settings=SETTINGS) as again:
        for status in (store.migration.status(), again.migration.status()):
            assert status.phase is phase
            assert status.guards[0] == found
            assert status.next_command == command
    steps: list[Callable[[], object]] = [store.migration.verify, store.migration.reconcile, store.migration.rollback]
    for step in steps + [store.migration.backfill] * phase.compares:
        with pytest.raises(GuardsBrokenError, match=found) as refused:
            step()
        assert command in str(refused.value)
    with pytest.raises(GateClosedError, match=found):
        store.migration.advance(force=True, reason="in a hurry")
    assert store.migration.phase is phase


@pytest.mark.parametrize("phase", [Phase.EXPAND, Phase.DUAL_WRITE], ids=lambda p: p.name)
def test_programs_that_know_legacy_alone_go_on(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Their writes fire our triggers, which look into tables that are gone, until a unit of work has noticed it."""
    in_phase(store, Phase.DUAL_WRITE)
    if phase is Phase.EXPAND:
        store.migration.rollback()
    for table in ("agent_outputs", "consensus_syntheses", "consensus_runs"):
        take_away(database, table, "drop")
    write(store, "noticed")
    database.script(
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('F', 'p', 'a', 'c');"
        " UPDATE consensus_artifacts SET content_json = 'changed' WHERE spec_id = 'F' OR id = 1;"
        " DELETE FROM consensus_artifacts WHERE spec_id = 'F'; DELETE FROM consensus_synthesis"
    )
    assert store.migration.status().phase is phase


def test_a_control_table_that_is_gone_is_one_clear_error(store: ConsensusStore, database: Database) -> None:
    """It is named, with the command that helps, by a store that is open and by the next one that opens."""
    in_phase(store, Phase.CUTOVER)
    database.script("DROP TABLE consensus_orm_mismatches")
    with pytest.raises(TableMissingError, match=r"consensus_orm_mismatches .* run: consensus-orm restore BACKUP"):
        store.migration.status()
    with (
        pytest.raises(UnknownSchemaError, match=r"consensus_orm_mismatches .* run: consensus-orm restore BACKUP"),
        ConsensusStore.open(database.where, settings=SETTINGS),
    ):
        pass
    write(store, "goes on")


def test_executions_that_are_gone_leave_the_rest_alone(store: ConsensusStore, database: Database) -> None:
    """The status works, artifacts are written, and what asks for executions says that they are gone."""
    in_phase(store, Phase.CUTOVER)
    database.script("DROP TABLE agent_executions")
    with ConsensusStore.open(database.where, settings=SETTINGS) as again:
        assert again.migration.status().gate == []
        write(again, "goes on")
        with pytest.raises(TableMissingError, match="agent_executions"), again.unit_of_work(read_only=True) as uow:
            uow.executions.in_flight()


def as_view(database: Database, table: str) -> None:
    """Rename a table and put a view in its place that takes inserts, as an application does that renames its tables."""
    body = "INSERT INTO elsewhere (id) VALUES (NEW.id)"
    instead = (
        f"CREATE TRIGGER takes INSTEAD OF INSERT ON {table} BEGIN {body}; END"
        if database.kind == "sqlite"
        else f"CREATE FUNCTION takes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$;"
        f" CREATE TRIGGER takes INSTEAD OF INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION takes()"
    )
    database.script(
        f"ALTER TABLE {table} RENAME TO elsewhere; CREATE VIEW {table} AS SELECT * FROM elsewhere; {instead}"
    )


@pytest.mark.parametrize("table", ["Orders_Old", "addresses"])
def test_a_view_in_place_of_a_table_of_ones_own_is_refused_at_the_first_step(
    new_database: Database, table: str
) -> None:
    """Of any declaration, a legacy table or a parent: no step begins, the view is named, and nothing is made."""
    engine = create_engine(parse_url(new_database.where))
    shop.Base.metadata.create_all(engine)
    engine.dispose()
    as_view(new_database, f'"{table}"')
    for _ in range(2):
        with pytest.raises(UnknownSchemaError, match=f"{table.lower()} is a view, not a table"):
            Store.open(new_database.where, moves=shop.MOVES)
    catalog = "sqlite_master" if new_database.kind == "sqlite" else "information_schema.tables"
    name = "name" if new_database.kind == "sqlite" else "table_name"
    assert new_database.rows_of(f"SELECT 1 FROM {catalog} WHERE {name} LIKE ?", "consensus_orm_%") == []


def test_a_check_names_a_view_that_came_later(store: ConsensusStore, database: Database) -> None:
    """What has taken the name of a table since the upgrade is named by the command that knows all gates, too."""
    store.migration.upgrade()
    assert store.migration.check() == []
    as_view(database, "consensus_artifacts")
    (told,) = store.migration.check()
    assert "a view has its name: drop or rename that view" in told
