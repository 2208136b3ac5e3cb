"""Guards that another program dropped and made again, the very same: what it wrote in between was noticed by nobody.

The state alone shows no flaw, so triggers are also told by when they were made. Tables of ours that it dropped, and
that hold nothing irreplaceable, are named by the status and made again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import GateClosedError, GuardsBrokenError, SchemaOutdatedError, TableMissingError
from consensus_orm.ledgers import guards
from consensus_orm.settings import Settings
from tests.support.databases import Database, File, build_legacy

pytestmark = pytest.mark.long

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0, synchronous="OFF")
ROW: dict[str, Any] = {"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "c"}
AGAIN = "was dropped and made again by another program"
CHANGES = {
    "consensus_artifacts": "UPDATE consensus_artifacts SET content_json = 'NEW' WHERE id <= 2",
    "agent_outputs": "UPDATE agent_outputs SET content = 'NEW' WHERE id <= 2",
}
CONTENTS = {"consensus_artifacts": "content_json", "agent_outputs": "content"}
REPLACEABLE = (
    "consensus_orm_guards",
    "consensus_orm_images",
    "consensus_orm_certificates",
    "consensus_orm_backfill",
    "consensus_orm_ranges",
    "consensus_orm_control",
    "consensus_orm_samples",
    "consensus_orm_keeper",
)


@pytest.fixture
def database(new_database: Database) -> Database:
    build_legacy(new_database.where)
    return new_database


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[ConsensusStore]:
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(database.where, settings=settings) as store:
        yield store


def ready(store: ConsensusStore, phase: Phase) -> None:
    """In a phase, with the gate to the next one open."""
    store.migration.migrate(phase)
    if phase.compares:
        store.migration.backfill()
    if phase.has_legacy:
        assert store.migration.verify().clean
    assert store.migration.status().gate == []


def write(store: ConsensusStore) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(**ROW).id


def definitions(database: Database, table: str | None) -> dict[tuple[str, str], str]:
    """The text of our triggers by name and table; of all tables where none is given."""
    sql = {
        "sqlite": "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY rowid",
        "postgresql": "SELECT tgname, CAST(tgrelid AS regclass)::text, pg_get_triggerdef(oid) FROM pg_trigger"
        " WHERE NOT tgisinternal AND tgenabled <> 'D' ORDER BY oid",
    }[database.kind]
    return {(name, on): text for name, on, text in database.rows_of(sql) if table in (None, on)}


def make_again(database: Database, table: str, *, all_tables: bool = False) -> int:
    """Drop triggers, change two rows of a table, and make the same triggers again; gives how many rows have it."""
    texts = definitions(database, None if all_tables else table)
    assert texts
    for name, on in texts:
        database.script(f"DROP TRIGGER {name}" + (f" ON {on}" if database.kind == "postgresql" else ""))
    database.script(CHANGES[table])
    for text in texts.values():
        database.script(text)
    assert definitions(database, None if all_tables else table) == texts
    return new(database, table)


def new(database: Database, table: str) -> int:
    """How many rows of a table have what another program wrote."""
    return int(database.scalar(f"SELECT count(*) FROM {table} WHERE {CONTENTS[table]} = 'NEW'"))


def is_refused(store: ConsensusStore, found: str) -> None:
    """It is named, the gate is shut, and neither the next phase nor the one before is reached."""
    phase = store.migration.phase
    status = store.migration.status()
    assert any(found in text for text in status.guards), status.guards
    assert status.next_command == "consensus-orm reconcile"
    with pytest.raises(GateClosedError, match=found):
        store.migration.advance(force=True, reason="in a hurry")
    for step in (store.migration.verify, store.migration.rollback):
        with pytest.raises(GuardsBrokenError, match=f"{found}.*run: consensus-orm reconcile"):
            step()
    assert store.migration.phase is phase


@pytest.mark.parametrize("all_tables", [False, True], ids=["one table", "all tables"])
@pytest.mark.parametrize("table", CHANGES)
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER], ids=lambda p: p.name)
def test_what_was_written_between_is_looked_for(
    store: ConsensusStore, database: Database, phase: Phase, table: str, *, all_tables: bool
) -> None:
    """The old certificate opens no gate, whoever writes meanwhile; after reconcile the truth is on both sides."""
    ready(store, phase)
    assert make_again(database, table, all_tables=all_tables) == 2
    is_refused(store, AGAIN)
    write(store)
    is_refused(store, AGAIN)
    store.migration.reconcile()
    assert store.migration.status().guards == []
    truth = {Phase.DUAL_WRITE: "consensus_artifacts", Phase.CUTOVER: "agent_outputs"}[phase]
    assert {name: new(database, name) for name in CHANGES} == dict.fromkeys(CHANGES, 2 * (table == truth))
    with pytest.raises(GateClosedError, match="nothing was verified in this phase"):
        store.migration.advance()
    assert store.migration.verify().clean
    assert store.migration.advance() is phase.next


def test_the_way_back_gives_up_no_row_of_the_truth(store: ConsensusStore, database: Database) -> None:
    """At NORMALIZED it trusts what was recorded, so it asks first for what was not."""
    ready(store, Phase.NORMALIZED)
    assert make_again(database, "agent_outputs") == 2
    is_refused(store, AGAIN)
    store.migration.reconcile()
    assert store.migration.rollback(Phase.EXPAND) is Phase.EXPAND
    assert new(database, "consensus_artifacts") == 2


@pytest.mark.parametrize("phase", [Phase.CUTOVER, Phase.NORMALIZED], ids=lambda p: p.name)
def test_guards_that_were_mended_and_nothing_else(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """A reconcile that was interrupted behind its first step: the way back wants both sides compared."""
    ready(store, phase)
    make_again(database, "agent_outputs")
    store.migration._flipping.run(guards.mend)
    assert store.migration.status().guards == []
    with pytest.raises(GuardsBrokenError, match=r"nobody noticed what was written.*run: consensus-orm verify"):
        store.migration.rollback()
    assert len(store.migration.verify().differences) == 2
    with pytest.raises(GateClosedError):
        store.migration.advance()
    store.migration.reconcile()
    assert store.migration.rollback(Phase.EXPAND) is Phase.EXPAND
    assert new(database, "consensus_artifacts") == 2


@pytest.mark.postgresql
@pytest.mark.parametrize("phase", [Phase.CUTOVER, Phase.NORMALIZED], ids=lambda p: p.name)
def test_triggers_that_were_switched_off_and_on(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """As pg_restore and many loaders of rows do."""
    ready(store, phase)
    names = [name for name, on in definitions(database, "agent_outputs")]
    for name in names:
        database.script(f"ALTER TABLE agent_outputs DISABLE TRIGGER {name}")
    database.script(CHANGES["agent_outputs"])
    for name in names:
        database.script(f"ALTER TABLE agent_outputs ENABLE TRIGGER {name}")
    is_refused(store, "was replaced, or switched off and on again, by another program")
    store.migration.reconcile()
    assert store.migration.rollback(Phase.DUAL_WRITE) is Phase.DUAL_WRITE
    assert new(database, "consensus_artifacts") == 2


@pytest.mark.sqlite
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["VACUUM", "VACUUM INTO", "backup"])
def test_it_shows_however_the_file_is_rewritten(
    store: ConsensusStore, database: Database, how: str, when: str, tmp_path: Path
) -> None:
    """Rewriting voids nothing, and hides nothing."""
    ready(store, Phase.CUTOVER)
    write(store)
    if when == "after":
        make_again(database, "consensus_artifacts", all_tables=True)
    path = Path(database.where)
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if how == "VACUUM":
            connection.execute("VACUUM")
            other = path
        elif how == "VACUUM INTO":
            connection.execute("VACUUM INTO ?", (str(other),))
        else:
            with contextlib.closing(sqlite3.connect(other)) as target:
                connection.backup(target)
    with ConsensusStore.open(other, settings=SETTINGS) as rewritten:
        if when == "before":
            write(rewritten)
            assert rewritten.migration.status().guards == []
            assert rewritten.migration.status().gate == []
            make_again(File(other), "consensus_artifacts", all_tables=True)
        is_refused(rewritten, AGAIN)


@pytest.mark.sqlite
@pytest.mark.parametrize("phase", list(Phase), ids=lambda p: p.name)
def test_our_own_steps_void_nothing(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Vacuum, backup, another opening and a table of somebody else leave the guards in place and the gate open."""
    if phase in (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED):
        ready(store, phase)
    else:
        store.migration.migrate(phase)
    database.script("CREATE TABLE theirs (n INTEGER); CREATE INDEX theirs_n ON theirs (n)")
    store.maintenance.vacuum(full=True)
    store.maintenance.backup(Path(database.where).with_name("copy.db"))
    for where in (database.where, Path(database.where).with_name("copy.db")):
        with ConsensusStore.open(where, settings=SETTINGS) as again:
            again.migration.upgrade()
            write(again)
            assert again.migration.status().guards == []
            if phase.writes_normalized:
                assert again.migration.status().gate == []


# Tables of ours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["upgrade", "reconcile"])
@pytest.mark.parametrize("table", REPLACEABLE)
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.NORMALIZED, Phase.CONTRACT], ids=lambda p: p.name)
def test_a_table_of_ours_that_is_gone_is_made_again(
    store: ConsensusStore, database: Database, phase: Phase, table: str, command: str
) -> None:
    """Status names it in every store, writes go on, and the certificate is void; then everything is as it was."""
    ready(store, phase)
    before = definitions(database, None)
    database.script(f"DROP TABLE {table}")
    found = f"table {table} was dropped or renamed by another program"
    with ConsensusStore.open(database.where, settings=SETTINGS) as again:
        for each in (store, again):
            status = each.migration.status()
            assert status.guards == [found]
            if phase.next is not None:
                assert f"{found}; run: consensus-orm upgrade" in status.gate
                assert status.next_command == "consensus-orm upgrade"
        assert write(store)
        if phase.next is not None:
            with pytest.raises(GuardsBrokenError, match=f"{found}.*run: consensus-orm upgrade"):
                again.migration.verify()
        getattr(again.migration, command)()
        assert again.migration.status().guards == []
    assert store.migration.status().guards == []
    assert definitions(database, None) == before
    assert write(store)
    if phase.next is not None:
        assert any("verified in this phase" in text for text in store.migration.status().gate)
    if phase.compares:
        store.migration.backfill()
    if phase.has_legacy:
        assert store.migration.verify().clean
    assert store.migration.rollback() is phase.previous


def test_at_contract_a_normalized_table_is_in_a_backup_alone(store: ConsensusStore, database: Database) -> None:
    """There is no other side to make it from, so no hint leads there."""
    store.migration.migrate(Phase.CONTRACT)
    cascade = " CASCADE" if database.kind == "postgresql" else ""
    database.script(("PRAGMA foreign_keys = OFF; " if not cascade else "") + f"DROP TABLE consensus_runs{cascade}")
    for step in (store.migration.rollback, lambda: store.migration.reconcile(rebuild="normalized")):
        with pytest.raises(
            (TableMissingError, GuardsBrokenError), match="run: consensus-orm restore BACKUP"
        ) as refused:
            step()
        assert "consensus_runs" in str(refused.value)
        assert "rebuild" not in str(refused.value)


@pytest.mark.postgresql
def test_what_lets_roles_write_is_made_again(store: ConsensusStore, database: Database) -> None:
    """The view of the fence, and the triggers on ledgers: status names the command, and `upgrade` makes them again."""
    ready(store, Phase.DUAL_WRITE)
    database.script("CREATE ROLE fenced; GRANT SELECT, INSERT ON consensus_artifacts TO fenced")
    store.migration.upgrade()
    may_lock = "SELECT has_table_privilege('fenced', 'consensus_orm_fence', 'UPDATE')"
    triggers = "SELECT count(*) FROM pg_trigger WHERE tgname = 'consensus_orm_allowed'"
    defined = (
        "SELECT pg_get_viewdef('consensus_orm_fence'::regclass)",
        "SELECT pg_get_functiondef(oid), proacl::text FROM pg_proc WHERE proname = 'consensus_orm_allow'",
        "SELECT pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE tgname = 'consensus_orm_allowed' ORDER BY 1",
    )
    by_revision = [database.rows_of(sql) for sql in defined]
    try:
        for loss in (
            "DROP VIEW consensus_orm_fence",
            "DROP FUNCTION consensus_orm_allow() CASCADE",
            "ALTER TABLE consensus_orm_history DISABLE TRIGGER consensus_orm_allowed",
        ):
            database.script(loss)
            with ConsensusStore.open(database.where, settings=SETTINGS) as again:
                assert again.migration.status().next_command == "consensus-orm upgrade"
                if "VIEW" in loss:
                    with pytest.raises(SchemaOutdatedError, match="run: consensus-orm upgrade"):
                        write(again)
                else:
                    assert write(again)
                again.migration.upgrade()
                assert write(again)
                assert again.migration.status().guards == []
                assert any("verified in this phase" in text for text in again.migration.status().gate)
                assert again.migration.verify().clean
            assert write(store)
            assert (database.scalar(may_lock), database.scalar(triggers)) == (True, 3)
            assert [database.rows_of(sql) for sql in defined] == by_revision
    finally:
        database.script("DROP OWNED BY fenced; DROP ROLE fenced")
    assert store.migration.rollback() is Phase.EXPAND
