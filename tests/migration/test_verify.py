"""Verify beside writers: where there is no WAL, and where the backfill has not come to its end."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase, Settings
from consensus_orm.progress import Progress
from tests.support.databases import Database, build_legacy

SETTINGS = Settings(soak_dual_write=timedelta(0), soak_cutover=timedelta(0))
FOREIGN = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('F', 'p', 'a', '')"


@pytest.fixture
def database(new_database: Database) -> Database:
    build_legacy(new_database.where)
    return new_database


@pytest.mark.sqlite
def test_without_wal_a_verify_keeps_no_writer_waiting(tmp_path: Path) -> None:
    """A program that has the file open in journal mode DELETE commits in the middle of a verify, at once."""
    path = tmp_path / "legacy.db"
    build_legacy(path)
    with (
        contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as legacy_program,
        ConsensusStore.open(path, settings=SETTINGS) as store,
    ):
        legacy_program.execute("SELECT count(*) FROM consensus_artifacts").fetchall()
        store.migration.migrate(Phase.CUTOVER)
        assert legacy_program.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        writes = 0

        def meanwhile(_: object) -> None:
            nonlocal writes
            if not writes:
                legacy_program.execute(FOREIGN)
            writes += 1

        assert store.migration.verify(progress=meanwhile).certificate is not None
        assert writes > 0


def test_progress_of_a_verify_is_that_of_each_pair(database: Database) -> None:
    """Each pair is counted for itself, both sides together, and ends at its total."""
    told: list[Progress] = []
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.migrate(Phase.CUTOVER)
        report = store.migration.verify(progress=told.append)
    last = {seen.pair: seen for seen in told}
    assert list(last) == ["artifacts", "syntheses"]
    assert all(seen.done <= seen.total for seen in told)
    assert sum(seen.done for seen in last.values()) == sum(seen.total for seen in last.values())
    assert sum(seen.total for seen in last.values()) == report.legacy_rows + report.normalized_rows


def test_what_a_verify_finds_is_recorded_as_its_own(database: Database) -> None:
    """A mismatch says what found it, so that an operator can tell a write that went wrong from one past the package."""
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.migrate(Phase.DUAL_WRITE)
        store.migration.backfill()
        database.unnoticed("UPDATE agent_outputs SET content = 'damaged' WHERE id = 1")
        assert not store.migration.verify().clean
    found = database.rows_of("SELECT column_name, state, found_by FROM consensus_orm_mismatches")
    assert found == [("content", "confirmed", "verify")]


def test_the_largest_number_there_is_shuts_the_gate(database: Database) -> None:
    """No row could be added after such an id, whatever the phase: the gate names the column before a step is taken."""
    database.script(FOREIGN.replace("(spec_id", "(id, spec_id").replace("('F'", f"({2**63 - 1}, 'F'"))
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.upgrade()
        (why,) = [text for text in store.migration.status().gate if str(2**63 - 1) in text]
    assert why.startswith("column id of consensus_artifacts has reached")


def test_what_the_backfill_has_not_come_to_is_nobodys_mistake(database: Database) -> None:
    """A verify before the backfill is not clean, opens no gate, and leaves no mismatch behind."""
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.advance(Phase.DUAL_WRITE)
        assert not store.migration.verify().clean
        assert store.migration.mismatches() == []
        store.migration.backfill()
        assert store.migration.verify().clean
