"""Rule 11: what guards a phase is looked at again, whatever another program did to it between two looks.

Triggers and tables are told by what was recorded when they were put in place. What is missing or changed voids the
certificate, shuts the gate and is named; the work at hand goes on.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import (
    GateClosedError,
    GuardsBrokenError,
    MigrationError,
    SchemaOutdatedError,
    StorageError,
    TableMissingError,
)
from consensus_orm.ledgers import guards
from consensus_orm.phase import Side
from consensus_orm.settings import Settings
from consensus_orm.testing.plugin import QueryCounter
from tests.field import builders
from tests.migration.guarding import GUARDED, REMADE, broken, drop, mended, ready, triggers, write
from tests.support import oracle
from tests.support.databases import Database, build_legacy

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0, synchronous="OFF")


@pytest.fixture
def store(new_database: Database, tmp_path: Path) -> Iterator[ConsensusStore]:
    build_legacy(new_database.where)
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        yield store


@pytest.fixture
def database(new_database: Database) -> Database:
    return new_database


# Triggers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", GUARDED, ids=lambda p: p.name)
@pytest.mark.parametrize("table", ["consensus_artifacts", "agent_outputs", "consensus_runs"])
def test_a_trigger_that_was_dropped_is_named_and_mended(
    store: ConsensusStore, database: Database, phase: Phase, table: str
) -> None:
    """On either side, and on the parents; what was written meanwhile has to be verified anew."""
    ready(store, phase)
    before = triggers(database, table)
    drop(database, before[0], table)
    broken(store, f"trigger {before[0]} on {table} is missing")
    mended(store)
    if phase is not Phase.NORMALIZED:
        store.migration.rollback(phase)
        assert triggers(database, table) == before


@pytest.mark.parametrize("phase", GUARDED, ids=lambda p: p.name)
def test_a_trigger_that_was_changed_is_named_and_mended(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """One of the same name that does nothing is none of ours; its text is kept in the audit."""
    ready(store, phase)
    name = triggers(database, "consensus_artifacts")[0]
    if database.kind == "sqlite":
        drop(database, name, "consensus_artifacts")
        database.script(f"CREATE TRIGGER {name} AFTER INSERT ON consensus_artifacts WHEN 0 BEGIN SELECT 1; END")
    else:
        database.script(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$"
        )
    broken(store, f"trigger {name} on consensus_artifacts was changed")
    mended(store)
    audit = next(entry for entry in store.migration.history() if entry.action == "mend guards")
    assert audit.detail is not None
    assert list(audit.detail["replaced"]) == [name]


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("ALTER TABLE consensus_artifacts DISABLE TRIGGER USER", "consensus_artifacts is disabled"),
        ("ALTER TABLE agent_outputs DISABLE TRIGGER ALL", "agent_outputs is disabled"),
        ("ALTER TABLE consensus_artifacts ENABLE REPLICA TRIGGER consensus_orm_artifacts_legacy", "is disabled"),
        ("ALTER TABLE consensus_artifacts ENABLE TRIGGER USER", "which is of another phase, was enabled"),
    ],
)
def test_a_trigger_that_is_switched_off_is_named_and_mended(
    store: ConsensusStore, database: Database, script: str, found: str
) -> None:
    """On a server triggers can be disabled, and those of phases that are over be enabled."""
    ready(store, Phase.CUTOVER)
    if "another phase" in found:
        store.migration.advance()
        store.migration.rollback()
        assert store.migration.verify().clean
    database.script(script)
    assert any(found in text for text in store.migration.status().guards)
    with pytest.raises(GateClosedError, match="run: consensus-orm reconcile"):
        store.migration.advance()
    mended(store)


@pytest.mark.postgresql
def test_a_role_for_which_no_trigger_fires_is_named(store: ConsensusStore, database: Database) -> None:
    """session_replication_role = replica, set for the database or a role, silences every trigger."""
    ready(store, Phase.DUAL_WRITE)
    name = database.scalar("SELECT current_database()")
    database.script(f'ALTER DATABASE "{name}" SET session_replication_role = replica')
    assert "session_replication_role is replica for all roles" in store.migration.status().guards[0]
    with pytest.raises(GateClosedError, match="reset it with ALTER ROLE or ALTER DATABASE"):
        store.migration.advance()
    database.script(f'ALTER DATABASE "{name}" RESET session_replication_role')
    assert store.migration.advance() is Phase.CUTOVER


@pytest.mark.long
def test_triggers_of_expand_are_looked_after_too(store: ConsensusStore, database: Database) -> None:
    """After a way back they notice changes of rows that were carried before."""
    ready(store, Phase.DUAL_WRITE)
    store.migration.rollback()
    name = triggers(database, "consensus_artifacts")[0]
    drop(database, name, "consensus_artifacts")
    with pytest.raises(GateClosedError, match=f"trigger {name} on consensus_artifacts is missing"):
        store.migration.advance()
    store.migration.reconcile()
    assert store.migration.advance() is Phase.DUAL_WRITE


# Tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", GUARDED, ids=lambda p: p.name)
def test_a_table_that_was_made_again_is_another_table(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """The certificate of the old one says nothing of it, and reconcile wants to be told which rows count."""
    ready(store, phase)
    before = database.normalized()
    database.script(REMADE[database.kind])
    for _ in range(14):
        database.script(
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('N', 'n', 'n', 'n')"
        )
    found = "table consensus_artifacts was dropped and made again by another program"
    broken(store, found, "consensus-orm reconcile --rebuild legacy")
    for dry_run in (True, False):
        with pytest.raises(GuardsBrokenError, match=found):
            store.migration.reconcile(dry_run=dry_run)
    assert database.normalized() == before


@pytest.mark.sqlite
@pytest.mark.parametrize("how", ["VACUUM", "backup"])
def test_a_table_stays_the_same_however_its_file_is_rewritten(
    store: ConsensusStore, database: Database, how: str, tmp_path: Path
) -> None:
    """VACUUM and a backup move its pages, and change nothing that is guarded; a table made again shows still."""
    ready(store, Phase.CUTOVER)
    write(store)
    path = Path(database.where)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if how == "VACUUM":
            connection.execute("VACUUM")
        else:
            path = tmp_path / "other.db"
            with contextlib.closing(sqlite3.connect(path)) as other:
                connection.backup(other)
    with ConsensusStore.open(path, settings=SETTINGS) as rewritten:
        write(rewritten)
        assert rewritten.migration.status().guards == []
        assert rewritten.migration.status().gate == []
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.executescript(REMADE["sqlite"])
            connection.execute("VACUUM")
        broken(
            rewritten,
            "table consensus_artifacts was dropped and made again by another program",
            "consensus-orm reconcile --rebuild legacy",
        )


@pytest.mark.sqlite
def test_a_table_that_another_program_replaced_faithfully_is_verified_again(
    store: ConsensusStore, database: Database
) -> None:
    """ALTER as SQLite's manual has it: a new table, the rows, the name, the triggers. Reconcile takes it as it is."""
    ready(store, Phase.CUTOVER)
    with contextlib.closing(sqlite3.connect(database.where, isolation_level=None)) as connection:
        texts = [
            sql
            for (sql,) in connection.execute(
                "SELECT sql FROM sqlite_master WHERE tbl_name = 'consensus_artifacts' AND type <> 'table'"
                " AND sql IS NOT NULL"
            )
        ]
        new = builders.ARTIFACTS.partition(";")[0].replace("consensus_artifacts", "replacement")
        connection.executescript(
            f"BEGIN; {new}; INSERT INTO replacement SELECT * FROM consensus_artifacts; DROP TABLE consensus_artifacts;"
            " PRAGMA legacy_alter_table = ON; ALTER TABLE replacement RENAME TO consensus_artifacts; COMMIT;"
        )
        for sql in texts:
            connection.execute(sql)
    broken(store, "table consensus_artifacts was replaced by another program")
    mended(store)


def test_a_table_that_was_renamed_and_named_back_is_the_same(store: ConsensusStore, database: Database) -> None:
    """In between it is gone, and afterwards everything is in place, though SQLite wrote the triggers anew."""
    ready(store, Phase.DUAL_WRITE)
    database.script("ALTER TABLE consensus_artifacts RENAME TO elsewhere")
    gone = "table consensus_artifacts was dropped or renamed by another program"
    assert gone in store.migration.status().guards
    database.script("ALTER TABLE elsewhere RENAME TO consensus_artifacts")
    assert store.migration.status().guards == []
    assert store.migration.advance() is Phase.CUTOVER


VIEWS = "ALTER TABLE {0} RENAME TO elsewhere; CREATE VIEW {0} AS SELECT * FROM elsewhere"
BACK = "DROP VIEW {0}; ALTER TABLE elsewhere RENAME TO {0}"
ALONE = "PRAGMA legacy_alter_table = ON; "
"""Renames a table as SQLite did before 3.25: triggers and views of others do not follow it."""


@pytest.mark.sqlite  # a server stores what is inserted into such a view
@pytest.mark.parametrize("reopened", [True, False])
def test_a_view_in_the_place_of_a_table(store: ConsensusStore, database: Database, reopened: bool) -> None:
    """SQLite takes INSERT ... RETURNING into a view and stores nothing: a write to the truth is refused, not lost.

    In the place of the other side it takes no write with it, and that side is made again once the view is gone.
    """
    ready(store, Phase.CUTOVER)
    for table, is_read in (("agent_outputs", True), ("consensus_artifacts", False)):
        database.script(ALONE + VIEWS.format(table))
        before = database.rows("elsewhere")
        with ConsensusStore.open(database.where, settings=SETTINGS) if reopened else contextlib.nullcontext(store) as s:
            for _ in range(2):
                with pytest.raises(TableMissingError) if is_read else contextlib.nullcontext():
                    write(s)
            assert any(f"{table} was dropped or renamed" in text for text in s.migration.status().guards)
            assert s.migration.status().next_command == ""
            with pytest.raises(GuardsBrokenError, match=f"{table} was dropped .* a view has its name"):
                s.migration.verify()
            with pytest.raises((TableMissingError, MigrationError), match=table):
                s.migration.reconcile(rebuild="normalized" if is_read else "legacy")
            assert database.rows("elsewhere") == before
            if is_read:
                database.script(ALONE + BACK.format(table))
            else:
                database.script(f"DROP VIEW {table}")
                assert s.migration.status().next_command == "consensus-orm reconcile --rebuild legacy"
                s.migration.reconcile(rebuild="legacy")
            assert s.migration.verify().clean
            write(s)
    legacy, normalized = database.legacy()["artifacts"], database.normalized()["artifacts"]
    assert len(legacy) == len(normalized) == len(before) + 3


@pytest.mark.sqlite
def test_other_things_in_the_place_of_a_table(store: ConsensusStore, database: Database) -> None:
    """A virtual table holds no triggers; something in the place of our mark, or of the views at CONTRACT, is named."""
    ready(store, Phase.CUTOVER)
    database.script("DROP TABLE consensus_artifacts; CREATE VIRTUAL TABLE consensus_artifacts USING fts5(id)")
    write(store)
    assert "and a virtual table has its name" in store.migration.status().guards[0]
    database.script(
        "DROP TABLE consensus_artifacts; DROP VIEW consensus_orm_guarded; CREATE TABLE consensus_orm_guarded(n)"
    )
    with pytest.raises(MigrationError, match="has the name consensus_orm_guarded"):
        store.migration.reconcile(rebuild="legacy")
    database.script("DROP TABLE consensus_orm_guarded")
    store.migration.reconcile(rebuild="legacy")
    assert store.migration.status().guards == []


def test_a_column_of_the_normalized_side_that_is_gone(store: ConsensusStore, database: Database) -> None:
    """While the other side is read it takes no write with it; status names it in every phase, also when opened anew."""
    for phase in (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.CONTRACT):
        store.migration.migrate(phase)
        if phase.compares:
            store.migration.backfill()
            store.migration.verify()
        database.script("ALTER TABLE agent_outputs RENAME COLUMN content TO text")
        with ConsensusStore.open(database.where, settings=SETTINGS) as anew:
            for each in (anew, store):
                with contextlib.nullcontext() if phase.truth is Side.LEGACY else pytest.raises(StorageError):
                    write(each)
            found = "column content of table agent_outputs was dropped or renamed"
            assert found in anew.migration.status().guards[0]
            assert anew.migration.status().next_command in ("", "consensus-orm restore BACKUP")
        database.script("ALTER TABLE agent_outputs RENAME COLUMN text TO content")
        store.migration.reconcile()
        assert store.migration.status().guards == []


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CONTRACT], ids=lambda p: p.name)
def test_control_tables_that_were_emptied(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Status names it, with a command that helps; without the record there is still a way back, and the signs go."""
    store.migration.migrate(phase)
    database.script("DELETE FROM consensus_orm_guards")
    with ConsensusStore.open(database.where, settings=SETTINGS) as anew:
        write(anew)
        anew.migration.upgrade()
        assert anew.migration.status().guards == []
        anew.migration.rollback(Phase.EXPAND)
        assert database.legacy()["artifacts"][-1][4] == ("text", b"c".hex())
    database.script("DELETE FROM consensus_orm_state")
    with ConsensusStore.open(database.where, settings=SETTINGS) as anew:
        status = anew.migration.status()
        assert status.guards == ["consensus_orm_state is empty: a copy is not finished, or a program deleted its row"]
        assert status.next_command == "consensus-orm restore BACKUP"
        for step in (lambda: write(anew), anew.migration.upgrade):
            with pytest.raises(SchemaOutdatedError, match="restore BACKUP"):
                step()


# Units of work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", GUARDED, ids=lambda p: p.name)
def test_a_unit_of_work_that_writes_notices_and_goes_on(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """What it finds is kept: the certificate is void also after somebody has put everything back as it was."""
    ready(store, phase)
    table = "consensus_artifacts"
    name = triggers(database, table)[0]
    if database.kind == "sqlite":
        text = database.scalar(f"SELECT sql FROM sqlite_master WHERE name = '{name}'")
    else:
        text = database.scalar(f"SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = '{name}'")
    drop(database, name, table)
    key = write(store)
    database.script(text)

    assert store.migration.status().guards == [
        f"trigger {name} on {table} was dropped and made again by another program"
    ]
    with pytest.raises(GateClosedError, match="nothing was verified in this phase"):
        store.migration.advance()
    found = [entry for entry in store.migration.history() if entry.action == "guards"]
    assert [entry.detail for entry in found] == [{"found": [f"trigger {name} on {table} is missing"]}]
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(key) is not None


@pytest.mark.parametrize("phase", list(Phase), ids=lambda p: p.name)
def test_tables_of_others_cost_one_look(
    store: ConsensusStore, database: Database, phase: Phase, query_counter: QueryCounter
) -> None:
    """DDL that leaves the guards alone voids nothing; the next write looks once, the one after it asks no more."""
    if phase in GUARDED:
        ready(store, phase)
    else:
        store.migration.migrate(phase)
    write(store)
    with query_counter(store) as usual:
        write(store)
    database.script("CREATE TABLE theirs (n INTEGER); CREATE INDEX by_n ON theirs(n); DROP TABLE theirs")
    with query_counter(store) as first:
        write(store)
    with query_counter(store) as second:
        write(store)
    assert len(second) == len(usual)
    if database.kind == "sqlite":
        assert len(first) > len(second)
    else:  # the server's cookie is of the guarded tables alone
        assert len(first) == len(second)
    assert store.migration.history()[-1].action != "guards"
    if phase in GUARDED:
        assert store.migration.status().gate == []


def test_a_verify_during_which_a_guard_vanished_certifies_nothing(store: ConsensusStore, database: Database) -> None:
    """It is looked at again under the lock, where the certificate is written."""
    ready(store, Phase.DUAL_WRITE)
    name = triggers(database, "consensus_artifacts")[0]
    done = False

    def meanwhile(_: object) -> None:
        nonlocal done
        if not done and database.kind == "sqlite":
            drop(database, name, "consensus_artifacts")
        elif not done:  # to drop it would wait for who reads the table
            database.script(f"ALTER TABLE consensus_artifacts DISABLE TRIGGER {name}")
        done = True

    certificates = database.scalar("SELECT count(*) FROM consensus_orm_certificates")
    with pytest.raises(GuardsBrokenError, match=f"trigger {name} on consensus_artifacts is"):
        store.migration.verify(progress=meanwhile)
    assert done
    assert database.scalar("SELECT count(*) FROM consensus_orm_certificates") == certificates


def test_the_backfill_carries_nothing_from_a_table_that_was_made_again(
    store: ConsensusStore, database: Database
) -> None:
    """It would overwrite what was carried from the table before it."""
    ready(store, Phase.DUAL_WRITE)
    before = database.normalized()
    database.script(REMADE[database.kind])
    database.script(
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('N', 'n', 'n', 'n');"
        " DELETE FROM consensus_orm_backfill"
    )
    with pytest.raises(GuardsBrokenError, match="dropped and made again"):
        store.migration.backfill()
    assert database.normalized() == before


def test_a_unit_that_voids_certificates_knows_its_epoch(store: ConsensusStore) -> None:
    """What it records from then on counts for the epoch that is stored."""
    ready(store, Phase.DUAL_WRITE)
    with store.unit_of_work() as uow:
        guards.void(uow)
        assert uow._rows("SELECT epoch FROM consensus_orm_state") == [(uow.epoch,)]


@pytest.mark.sqlite
def test_a_file_from_before_the_record_gets_one(store: ConsensusStore, database: Database) -> None:
    """Its triggers are known by the declaration; where one is missing by then, what was certified counts no more."""
    ready(store, Phase.DUAL_WRITE)
    name = triggers(database, "consensus_artifacts")[0]
    for missing in (False, True):
        database.script("DELETE FROM consensus_orm_guards; UPDATE consensus_orm_state SET schema_version = NULL")
        if missing:
            drop(database, name, "consensus_artifacts")
        assert store.migration.status().guards == ["what guards DUAL_WRITE was never recorded"]
        assert store.migration.status().next_command == "consensus-orm upgrade"
        store.migration.upgrade()
        assert store.migration.status().guards == []
        assert (store.migration.status().gate == []) is not missing
    assert len(triggers(database, "consensus_artifacts")) == 3
    assert oracle.definitions(Path(database.where), "consensus_artifacts")
