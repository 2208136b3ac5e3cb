"""The rehearsal: the way there and back on a copy, with proofs that fail when a row is not what it was."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from consensus_orm import ConsensusStore, Phase, Settings, Side, errors
from consensus_orm.consensus.declaration import ARTIFACTS, CONSENSUS
from consensus_orm.ledgers import audit
from consensus_orm.rehearsal import RehearsalReport, RehearsalStep, digest
from consensus_orm.rehearsal.raw_sql import FileLook
from consensus_orm.testing.phases import take_to
from tests.field import builders
from tests.support.databases import Database, at

SAMPLE = "consensus_artifacts", "consensus_synthesis"


def contents(folder: Path) -> dict[str, str]:
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}


# What it proves -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_from_every_phase(every_phase: ConsensusStore) -> None:
    """From whatever phase it begins in, the copy goes to both ends, and every row comes out as it went in."""
    began = every_phase.migration.phase

    report = every_phase.migration.rehearse()

    assert report.passed, (report.refused, report.proofs)
    ends = [Phase.EXPAND, Phase.CONTRACT] if began is Phase.CONTRACT else [Phase.CONTRACT, Phase.EXPAND]
    assert [proof.phase for proof in report.proofs] == [ends[0]] * 2 + [ends[1]] * 2
    assert (report.began, report.reached, report.ended) == (began, Phase.CONTRACT, ends[1])
    assert all(p.rows == report.identity.rows[p.table] for p in report.proofs if p.phase is began)
    assert every_phase.migration.phase is began


@pytest.mark.long
def test_rows_of_the_kept_copy_by_another_sql(legacy: Database, tmp_path: Path) -> None:
    """What the proof calls equal is equal for a judge that shares no code with it."""
    before = legacy.legacy()
    with ConsensusStore.open(legacy.where) as store:
        report = store.migration.rehearse(keep=tmp_path / "kept")

    with kept_copy(legacy, report) as copy:
        assert copy.legacy() == before != {}


@pytest.mark.long
@pytest.mark.postgresql
def test_copies_that_stayed_on_a_server_are_named(legacy: Database, tmp_path: Path) -> None:
    """A rehearsal that was killed leaves a database there, of which the next one tells; so does one that is kept."""
    with ConsensusStore.open(legacy.where) as store:
        first = store.migration.rehearse(keep=tmp_path / "kept")
        assert not [note for note in first.notes if "other rehearsals" in note]
        with kept_copy(legacy, first) as copy:
            (told,) = (note for note in store.migration.rehearse().notes if "other rehearsals" in note)
            assert told.split()[-1] == make_url(str(copy.where)).database
        assert not [note for note in store.migration.rehearse().notes if "other rehearsals" in note]


@contextlib.contextmanager
def kept_copy(original: Database, report: RehearsalReport) -> Iterator[Database]:
    """The copy that was kept; on a server it is gone when the block ends."""
    if original.kind == "sqlite":
        assert report.kept is not None
        yield at(report.kept)
        return
    (name,) = (note.split()[-1] for note in report.notes if note.startswith("the copy stays"))
    try:
        yield at(make_url(str(original.where)).set(database=name).render_as_string(hide_password=False))
    finally:
        with psycopg.connect(str(original.where), autocommit=True) as admin:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


FAULTS = {
    "a byte": "UPDATE consensus_artifacts SET content_json = content_json || ' ' WHERE id = 1",
    "a type": "UPDATE consensus_artifacts SET content_json = CAST(content_json AS BLOB) WHERE id = 1",
    "NULL to empty": "UPDATE consensus_artifacts SET run_id = '' WHERE id = (SELECT min(id) FROM consensus_artifacts"
    " WHERE run_id IS NULL)",
    "a real's last digits": "UPDATE consensus_artifacts SET created_at = 0.1 + 0.2 WHERE id = 1",
    "a row less": "DELETE FROM consensus_artifacts WHERE id = 1",
    "the last row less": "DELETE FROM consensus_synthesis WHERE id = (SELECT max(id) FROM consensus_synthesis)",
    "two ids exchanged": "UPDATE consensus_artifacts SET id = CASE id WHEN -1 THEN 1 ELSE -1 END WHERE id = 1",
    "an index": "DROP INDEX idx_spec_stage",
    "a row more": "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('', '', '', '')",
}


ONLY_FILES = ("a type", "a real's last digits")
"""A column of a server has one type."""


@pytest.mark.long
@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[pytest.mark.sqlite] if f in ONLY_FILES else []) for f in FAULTS]
)
def test_notices(fault: str, legacy: Database, at_the_end: Callable[[str], None]) -> None:
    """A copy that comes back with anything else than it went with does not pass, and the table is named."""
    if fault.startswith("a real"):
        legacy.script("UPDATE consensus_artifacts SET created_at = 0.3 WHERE id = 1")
    at_the_end(FAULTS[fault])

    with ConsensusStore.open(legacy.where) as store:
        report = store.migration.rehearse()

    assert not report.passed
    assert not report.equal
    wrong = [proof.table for proof in report.proofs if not proof.equal]
    expected = {"an index": [], "a row more": [], "the last row less": ["consensus_synthesis"]}
    assert wrong == expected.get(fault, ["consensus_artifacts"])


def test_image_is_of_types_and_bytes() -> None:
    """Values that compare equal in SQL, or print alike, give different images; equal rows give equal ones."""
    values = [1, 1.0, "1", b"1", "", b"", None, 0.1 + 0.2, 0.3, "a\0b", "a"]
    digests = set()
    for value in values:
        connection = sqlite3.connect(":memory:")
        connection.execute(
            "CREATE TABLE consensus_artifacts (id INTEGER PRIMARY KEY, spec_id, stage, agent_name,"
            " content_json, response_text, run_id, created_at)"
        )
        connection.execute("INSERT INTO consensus_artifacts (id, content_json) VALUES (1, ?)", (value,))
        taken = digest.take(FileLook.by(connection), ARTIFACTS, Side.LEGACY)
        assert taken == digest.take(FileLook.by(connection), ARTIFACTS, Side.LEGACY)
        digests.add(taken.digest)
        connection.close()
    assert len(digests) == len(values)


# Writers --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_writers(store: ConsensusStore) -> None:
    """With writers, the original rows are as they were, and each row a writer was told of is there at the end."""
    report = store.migration.rehearse(writers=3)

    assert report.passed, (report.refused, report.writers, report.proofs)
    assert report.writers is not None
    assert report.writers.rows > 0
    assert {"DUAL_WRITE", "CONTRACT"} <= set(report.writers.latency)
    assert all(0 < each.median <= each.p99 <= each.longest for each in report.writers.latency.values())


@pytest.mark.long
def test_writers_in_empty_tables(empty: Database) -> None:
    """Rows of writers in a table that was empty are theirs, not a difference; a row of nobody is one."""
    with ConsensusStore.open(empty.where) as store:
        report = store.migration.rehearse(writers=1)

    assert report.passed, report
    assert report.writers is not None
    assert report.writers.rows > 0


@pytest.mark.long
def test_notices_a_row_of_nobody(empty: Database, at_the_end: Callable[[str], None]) -> None:
    """A row in a table that was empty, and that no writer wrote, does not pass."""
    at_the_end(FAULTS["a row more"])
    with ConsensusStore.open(empty.where) as store:
        report = store.migration.rehearse()

    assert report.unexplained == 1
    assert not report.passed


@pytest.mark.long
def test_notices_a_lost_write(store: ConsensusStore, at_the_end: Callable[[str], None]) -> None:
    """A row that a writer was told of and that is gone at the end, is missing, and the rehearsal does not pass."""
    at_the_end("DELETE FROM consensus_artifacts WHERE id = (SELECT max(id) FROM consensus_artifacts) - 1")

    report = store.migration.rehearse(writers=1)

    assert report.writers is not None
    assert report.writers.missing == 1
    assert not report.passed


@pytest.mark.long
def test_writers_of_another_mapping(new_database: Database) -> None:
    """Writers know the consensus tables; with another mapping they are refused before anything is copied."""
    other = type(CONSENSUS)(*CONSENSUS)
    with (
        ConsensusStore.open(new_database.where, moves=other) as store,
        pytest.raises(errors.InvalidValueError, match="without writers"),
    ):
        store.migration.rehearse(writers=1)


# What it leaves alone -------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_writes_nothing_into_the_original(mode: str, path: Path, tmp_path: Path, scratch: Path) -> None:
    """The file is the same, byte for byte; beside it stands the evidence and nothing else, and no copy is left."""
    with builders.writing(path) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
    before = contents(tmp_path)

    with ConsensusStore.open(path) as store:
        store.migration.rehearse(writers=1)

    after = contents(tmp_path)
    assert after.pop("artifacts.db.rehearsal.json")
    assert after == before
    assert list(scratch.iterdir()) == []


@pytest.mark.long
def test_writes_nothing_into_a_server(legacy: Database, scratch: Path) -> None:
    """Every table is what it was, no database is left beside it, and no file but the evidence."""
    if legacy.kind == "sqlite":
        return
    databases = "SELECT datname FROM pg_database WHERE starts_with(datname, current_database() || '_rehearsal')"
    before = legacy.everything()

    with ConsensusStore.open(legacy.where) as store:
        (evidence,) = store.migration.rehearse(writers=1).evidence

    assert legacy.everything() == before
    assert legacy.rows_of(databases) == []
    assert list(scratch.iterdir()) == []
    assert list(Path.cwd().iterdir()) == [evidence]


@pytest.mark.long
@pytest.mark.postgresql
def test_a_role_that_may_not_make_a_database(legacy: Database) -> None:
    """It is told what to allow, or what to do instead; nothing is written."""
    role = f"plain_{uuid.uuid4().hex[:8]}"
    legacy.script(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    url = make_url(str(legacy.where)).set(username=role)
    try:
        with (
            ConsensusStore.open(url) as store,
            pytest.raises(errors.ReadOnlyDatabaseError, match="CREATEDB") as refused,
        ):
            store.migration.rehearse()
    finally:
        legacy.script(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert "command copy" in str(refused.value)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.long
def test_backups_of_the_copy_stay_with_the_copy(legacy: Database, tmp_path: Path) -> None:
    """The backup before CONTRACT is the copy's, so it does not go to where backups of the database go."""
    backups = tmp_path / "backups"
    backups.mkdir()
    with ConsensusStore.open(legacy.where, settings=Settings(backup_dir=backups)) as store:
        report = store.migration.rehearse()

    assert report.backup_bytes > 0
    assert [each.suffix for each in backups.iterdir()] == ([".json"] if legacy.kind == "postgresql" else [])


@pytest.mark.long
def test_interrupted(store: ConsensusStore, legacy: Database, tmp_path: Path, scratch: Path) -> None:
    """Ctrl-C leaves no copy, no thread, no evidence, and the database as it was."""
    before = legacy.everything()

    def interrupt(step: RehearsalStep) -> None:
        if step.action == "backfill":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.migration.rehearse(writers=2, tell=interrupt)

    assert list(scratch.iterdir()) == []
    assert not [each for each in threading.enumerate() if each.name.startswith("consensus-orm-writer")]
    assert not list(tmp_path.glob("*.json"))
    assert legacy.everything() == before


@pytest.mark.long
def test_interrupted_while_writers_start(store: ConsensusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the start of two writers stops the first, so that the program ends."""
    real = threading.Thread.start
    started: list[threading.Thread] = []

    def start(self: threading.Thread) -> None:
        if self.name.startswith("consensus-orm-writer"):
            if started:
                raise KeyboardInterrupt
            started.append(self)
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        store.migration.rehearse(writers=2)

    assert [thread.is_alive() for thread in started] == [False]


@pytest.mark.long
def test_no_room(store: ConsensusStore, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the copy would not fit, nothing is copied, and the error says what would help."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**6, 10**6, 1000))

    with pytest.raises(errors.DatabaseFullError, match="--keep DIR"):
        store.migration.rehearse()

    assert list(scratch.iterdir()) == []


# Where it stops -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_gate_that_refuses(path: Path) -> None:
    """A gate that refuses on the copy ends the way forward; its reasons are told, and the rows still come back."""
    with builders.writing(path) as connection:
        connection.execute("ALTER TABLE consensus_artifacts ADD COLUMN mood TEXT DEFAULT 'glad'")
    with ConsensusStore.open(path) as store:
        report = store.migration.rehearse()

    assert not report.passed
    assert report.equal
    assert report.reached is Phase.NORMALIZED
    assert report.ended is Phase.EXPAND
    assert any("mood" in reason for reason in report.refused)


@pytest.mark.long
def test_the_first_gate_refuses(path: Path) -> None:
    """Then no step was taken, so that there is nothing to estimate, and the report says why."""
    with builders.writing(path) as connection:
        connection.execute(f"UPDATE consensus_artifacts SET id = {2**63 - 1} WHERE id = 1")
    with ConsensusStore.open(path) as store:
        store.migration.upgrade()
        report = store.migration.rehearse()

    assert (report.steps, report.passed, report.equal) == ((), False, True)
    assert any(str(2**63 - 1) in reason for reason in report.refused), report.refused
    estimate = report.estimate()
    assert (estimate.seconds, estimate.longest_lock) == (0, 0)


@pytest.mark.long
def test_undeclared_columns_are_proved_too(path: Path, at_the_end: Callable[[str], None]) -> None:
    """A value in a legacy column that no mapping knows is part of the row that has to come back."""
    with builders.writing(path) as connection:
        connection.execute("ALTER TABLE consensus_artifacts ADD COLUMN mood TEXT DEFAULT 'glad'")
    at_the_end("UPDATE consensus_artifacts SET mood = 'sad' WHERE id = 1")
    with ConsensusStore.open(path) as store:
        assert not store.migration.rehearse().equal


@pytest.mark.long
def test_pending_writes_of_other_programs_are_adopted_first(legacy: Database) -> None:
    """In DUAL_WRITE, what another program wrote to one side is adopted, as the gate asks; then all is proved."""
    with ConsensusStore.open(legacy.where) as store:
        take_to(store, Phase.DUAL_WRITE)
        store.migration.backfill()
        legacy.script("UPDATE consensus_artifacts SET agent_name = 'other' WHERE id = 1")
        report = store.migration.rehearse()

    assert report.steps[0].action == "reconcile"
    assert report.passed, report


@pytest.mark.long
def test_what_waits_for_a_choice_stops_a_rehearsal_too(legacy: Database) -> None:
    """What another program changed where nobody reads stops the real migration, so it does not pass; and says why."""
    with ConsensusStore.open(legacy.where) as store:
        take_to(store, Phase.DUAL_WRITE)
        store.migration.backfill()
        legacy.script("UPDATE agent_outputs SET agent_name = 'other' WHERE id = 1")
        report = store.migration.rehearse()

    assert not report.passed
    assert any("reconcile --adopt" in reason for reason in report.refused), report.refused
    assert report.reached is Phase.DUAL_WRITE


def test_nothing_to_rehearse(consensus_store: ConsensusStore) -> None:
    """A file that never had legacy tables says so."""
    with pytest.raises(errors.MigrationError, match="never had legacy tables"):
        consensus_store.migration.rehearse()


@pytest.mark.long
def test_no_rows(empty: Database) -> None:
    """A rehearsal without rows says that it proved nothing about rows."""
    with ConsensusStore.open(empty.where) as store:
        report = store.migration.rehearse()

    assert report.passed
    assert any("no row" in note for note in report.notes)


# What it measures -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_longest_lock(store: ConsensusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that keeps the write lock is seen to, and no other step is blamed for it."""
    import time

    real = audit.add

    def slow(uow: Any, action: str, **facts: Any) -> None:
        if facts.get("to") is Phase.CUTOVER and action == "advance":
            time.sleep(3)  # no step of a busy machine takes as long
        real(uow, action, **facts)

    monkeypatch.setattr(audit, "add", slow)
    steps = store.migration.rehearse().steps

    slow_ones = [step for step in steps if step.longest_lock >= 3]
    assert [(step.action, step.before, step.after) for step in slow_ones] == [
        ("advance", Phase.DUAL_WRITE, Phase.CUTOVER)
    ]
    assert all(step.longest_lock <= step.seconds for step in steps)


@pytest.mark.long
def test_estimate(store: ConsensusStore) -> None:
    """Work and room grow with the rows there are by then, locks do not; soak times are as set."""
    report = store.migration.rehearse()
    same, tenfold = report.estimate(), report.estimate(rows=10 * report.rows)

    assert same.rows == report.rows == sum(report.identity.rows.values())
    assert tenfold.seconds == pytest.approx(10 * same.seconds)
    assert tenfold.disk == pytest.approx(10 * same.disk, abs=10)
    assert tenfold.longest_lock == same.longest_lock
    assert same.soak == timedelta(days=28)
    assert same.disk >= same.backup > 0
    assert report.peak_bytes == report.bytes + same.disk
