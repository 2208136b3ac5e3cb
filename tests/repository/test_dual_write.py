"""The dual write: each write is compared as stored (rule 5), and outlives a shadow side that fails (rule 6)."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import MismatchError, StorageError
from consensus_orm.ledgers.entries import MismatchEntry
from consensus_orm.settings import OnMismatch, Settings
from consensus_orm.testing import take_to
from consensus_orm.testing.plugin import History
from tests.consensus.test_artifacts import all_artifacts
from tests.field import builders
from tests.support.databases import FAIL, IGNORE, REFUSE, behind

both_sides = pytest.mark.parametrize("every_phase", ["DUAL_WRITE", "CUTOVER"], indirect=True)


def reopened(store: ConsensusStore, **settings: Any) -> ConsensusStore:
    return ConsensusStore.open(store.engine.url, settings=Settings(**settings))


def both(store: ConsensusStore) -> tuple[object, object]:
    database = behind(store)
    return database.legacy(), database.normalized()


# The comparison (rule 5) ------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "spec_id": "SPEC-NEW",
    "stage": "spec-plan",
    "agent_name": "gemini",
    "content_json": "before and after",
    "response_text": "007",
    "run_id": None,
    "model_version": "opus",
    "created_at": datetime(2025, 11, 4, 2, 23, 58, 123456, tzinfo=UTC),
}

Fault = tuple[str, str | None, str]
"""What a trigger does after an insert, and what is said of it: the column and the kind."""


def change(table: str, what: str) -> str:
    return f"UPDATE {table} SET {what} WHERE id = NEW.id"


LEGACY_FAULTS: dict[str, Fault] = {
    "rewritten": (change("consensus_artifacts", "content_json = content_json || ' '"), "content", "different"),
    "cut_short": (change("consensus_artifacts", "content_json = 'before'"), "content", "different"),
    "other_type": (
        change("consensus_artifacts", "content_json = CAST(content_json AS BLOB)"),
        "content",
        "different",
    ),
    "other_case": (change("consensus_artifacts", "agent_name = upper(agent_name)"), "agent_name", "different"),
    "shorter_number": (change("consensus_artifacts", "response_text = '7'"), "response_text", "different"),
    "null_to_empty": (change("consensus_artifacts", "run_id = ''"), "consensus_runs.run_id", "different"),
    "truncated_time": (
        change("consensus_artifacts", "created_at = substr(created_at, 1, 19)"),
        "created_at",
        "different",
    ),
    "time_to_null": (change("consensus_artifacts", "created_at = NULL"), "created_at", "different"),
    "deleted": ("DELETE FROM consensus_artifacts WHERE id = NEW.id", None, "missing_legacy"),
}

NORMALIZED_FAULTS: dict[str, Fault] = {
    "rewritten": (change("agent_outputs", "content = content || ' '"), "content", "different"),
    "other_type": (change("agent_outputs", "content = CAST(content AS BLOB)"), "content", "different"),
    "other_case": (change("agent_outputs", "agent_name = upper(agent_name)"), "agent_name", "different"),
    "response_to_null": (change("agent_outputs", "response_text = NULL"), "response_text", "different"),
    "truncated_time": (change("agent_outputs", "created_at = substr(created_at, 1, 19)"), "created_at", "different"),
    "other_milliseconds": (
        change("agent_outputs", "output_timestamp = output_timestamp / 1000 * 1000"),
        "output_timestamp",
        "different",
    ),
    "other_model": (change("agent_outputs", "model_version = 'sonnet'"), None, "not_as_meant"),
    "other_run": (
        change("agent_outputs", "run_id = (SELECT min(id) FROM consensus_runs)"),
        "consensus_runs.spec_id",
        "different",
    ),
    "deleted": ("DELETE FROM agent_outputs WHERE id = NEW.id", None, "missing_normalized"),
    "run_rewritten": (
        "UPDATE consensus_runs SET run_id = '' WHERE id = NEW.run_id",
        "consensus_runs.run_id",
        "different",
    ),
    "run_deleted": ("DELETE FROM consensus_runs WHERE id = NEW.run_id", None, "missing_normalized"),
}

FAULTS = [("consensus_artifacts", name, fault) for name, fault in LEGACY_FAULTS.items()]
FAULTS += [("agent_outputs", name, fault) for name, fault in NORMALIZED_FAULTS.items()]
faults = pytest.mark.parametrize(
    ("table", "fault"),
    [
        # A column of PostgreSQL has one type.
        pytest.param(table, fault, id=f"{table}_{name}", marks=[pytest.mark.sqlite] if name == "other_type" else [])
        for table, name, fault in FAULTS
    ],
)


@pytest.fixture
def consensus_history(request: pytest.FixtureRequest) -> History:
    """The faults are tried on a tame history; everything else on the odd one."""
    from consensus_orm.testing import legacy_history
    from tests.support.databases import odd_history

    return legacy_history if "fault" in request.fixturenames or request.node.get_closest_marker("tame") else odd_history


def install(store: ConsensusStore, table: str, does: str) -> None:
    behind(store).fault("AFTER INSERT", table, does)


def heal(store: ConsensusStore) -> None:
    """Take the fault away and repair what it did."""
    behind(store).heal()
    store.migration.reconcile()


@both_sides
@faults
def test_every_fault_of_a_write_is_seen_and_recorded(every_phase: ConsensusStore, table: str, fault: Fault) -> None:
    """RECORD: the write stands, the mismatch names row and column, and reconcile makes both sides equal again."""
    does, column, kind = fault
    install(every_phase, table, does)

    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add(**VALUES)

    found = every_phase.migration.mismatches()
    assert {entry.key for entry in found} == {added.id}
    assert (column, kind) in {(entry.column, entry.kind) for entry in found}
    assert {(entry.state, entry.found_by) for entry in found} == {("confirmed", "write")}
    heal(every_phase)
    assert every_phase.migration.mismatches() == []
    assert every_phase.migration.verify().clean
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(added.id) is not None


@both_sides
@faults
def test_every_fault_of_a_write_is_seen_and_raised(every_phase: ConsensusStore, table: str, fault: Fault) -> None:
    """RAISE: the unit of work fails, nothing of it is kept, and no mismatch is left behind."""
    install(every_phase, table, fault[0])
    before = all_artifacts(every_phase)

    with reopened(every_phase, on_mismatch=OnMismatch.RAISE) as store:
        with pytest.raises(MismatchError) as raised, store.unit_of_work() as uow:
            uow.artifacts.add(**VALUES)
        assert raised.value.facts["pair"] == "artifacts"
        assert "before" not in str(raised.value)

    assert all_artifacts(every_phase) == before
    assert every_phase.migration.mismatches() == []
    behind(every_phase).heal()
    assert every_phase.migration.verify().clean


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER])
@pytest.mark.parametrize(
    ("declared", "trigger", "column"),
    [
        (("response_text TEXT", "response_text NUMERIC"), "SELECT 1", "response_text"),
        (("run_id TEXT", "run_id INTEGER"), "SELECT 1", "consensus_runs.run_id"),
        (
            ("agent_name TEXT NOT NULL", "agent_name TEXT COLLATE NOCASE NOT NULL"),
            change("consensus_artifacts", "agent_name = 'GEMINI'"),
            "agent_name",
        ),
    ],
    ids=["numeric", "integer", "nocase"],
)
def test_affinity_and_collation_hide_nothing(
    tmp_path: Path, phase: Phase, declared: tuple[str, str], trigger: str, column: str
) -> None:
    """A column that turns '007' into 7, or takes 'GEMINI' for 'gemini', is seen although `=` would not tell.

    On PostgreSQL no column turns a text into a number, and collations that take two texts for one need ICU, which
    the server of these tests was built without; `same` names the collation "C" there.
    """
    path = tmp_path / "declared.db"
    with builders.writing(path) as connection:
        connection.executescript(builders.ARTIFACTS.replace(*declared) + builders.SYNTHESIS)
        connection.execute(f"CREATE TRIGGER fault AFTER INSERT ON consensus_artifacts BEGIN {trigger}; END")
    with ConsensusStore.open(path) as store:
        take_to(store, phase)
        with store.unit_of_work() as uow:
            uow.artifacts.add(**VALUES | {"run_id": "007"})
        assert column in {entry.column for entry in store.migration.mismatches()}


@both_sides
def test_a_clean_write_leaves_no_trace(every_phase: ConsensusStore) -> None:
    """Without a fault there is no mismatch, and no write to be adopted; also where a trigger draws an id of its own."""
    database = behind(every_phase)
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**VALUES)
        uow.artifacts.add(**VALUES)
    key = "BIGSERIAL PRIMARY KEY" if database.kind == "postgresql" else "INTEGER PRIMARY KEY AUTOINCREMENT"
    database.script(f"CREATE TABLE tickets (id {key}, of BIGINT)")
    install(every_phase, "consensus_artifacts", "INSERT INTO tickets (of) VALUES (NEW.id)")
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**VALUES)

    assert database.scalar("SELECT count(*) FROM tickets") == 1
    assert every_phase.migration.mismatches() == []
    assert every_phase.migration.status().foreign_writes == 0


# A failing shadow side (rule 6) -----------------------------------------------------------------------------

SHADOW = {Phase.DUAL_WRITE: ("agent_outputs", "consensus_runs"), Phase.CUTOVER: ("consensus_artifacts",)}
TRUTH = {Phase.DUAL_WRITE: ("consensus_artifacts",), Phase.CUTOVER: ("agent_outputs", "consensus_runs")}

FAILURES = {
    "abort": ("BEFORE INSERT", REFUSE),
    "fail": ("AFTER INSERT", FAIL),
    "ignore": ("BEFORE INSERT", IGNORE),
    "no_such_column": ("AFTER INSERT", "UPDATE {table} SET nonsense = 1"),
    "constraint": ("AFTER INSERT", "INSERT INTO taken VALUES (1)"),
}


def fail(store: ConsensusStore, table: str, fault: str) -> None:
    database, (event, does) = behind(store), FAILURES[fault]
    database.script("CREATE TABLE taken (a INTEGER UNIQUE); INSERT INTO taken VALUES (1)")
    database.fault(event, table, does.format(table=table))


CASES = [(p.name, table, f) for p, tables in SHADOW.items() for table in tables for f in FAILURES]
failing_shadow = pytest.mark.parametrize(("every_phase", "table", "fault"), CASES, indirect=["every_phase"])


@failing_shadow
def test_a_failing_shadow_side_never_loses_the_write(
    every_phase: ConsensusStore, table: str, fault: str, kind: str
) -> None:
    """However the shadow side fails, the write stands and is read; its failure is a mismatch, which heals."""
    fail(every_phase, table, fault)
    with every_phase.unit_of_work() as uow:
        added = [uow.artifacts.add(**VALUES), *uow.artifacts.add_many([VALUES, VALUES])]

    with every_phase.unit_of_work(read_only=True) as uow:
        assert [uow.artifacts.get(artifact.id) for artifact in added] == added
    failed = {entry.key for entry in every_phase.migration.mismatches()}
    assert failed <= {artifact.id for artifact in added}
    assert added[0].id in failed
    if (kind, table, fault) != (
        "sqlite",
        "consensus_runs",
        "fail",
    ):  # RAISE(FAIL) lets the run stand, and the next output with it
        assert len(failed) == 3
    assert every_phase.migration.verify().certificate is not None
    assert every_phase.migration.status().gate
    heal(every_phase)
    assert every_phase.migration.mismatches() == []
    assert every_phase.migration.verify().clean
    with every_phase.unit_of_work(read_only=True) as uow:
        healed = [uow.artifacts.get(artifact.id) for artifact in added]
    assert [a and a.content_json for a in healed] == [VALUES["content_json"]] * 3
    legacy, normalized = both(every_phase)
    assert legacy == normalized


@failing_shadow
def test_a_failing_shadow_side_can_be_made_to_matter(every_phase: ConsensusStore, table: str, fault: str) -> None:
    """With RAISE, a failing shadow side takes the unit of work with it; neither side keeps anything."""
    fail(every_phase, table, fault)
    before = both(every_phase)

    with (
        reopened(every_phase, on_mismatch=OnMismatch.RAISE) as store,
        pytest.raises(MismatchError),
        store.unit_of_work() as uow,
    ):
        uow.artifacts.add(**VALUES)

    assert both(every_phase) == before


@pytest.mark.parametrize(
    ("every_phase", "table", "fault"),
    [(p.name, table, f) for p, tables in TRUTH.items() for table in tables for f in FAILURES],
    indirect=["every_phase"],
)
def test_a_failing_source_of_truth_fails_the_write(every_phase: ConsensusStore, table: str, fault: str) -> None:
    """What the truth does not take is an error, whatever the policy, and the shadow side does not keep it either."""
    fail(every_phase, table, fault)
    before = both(every_phase)

    with pytest.raises(StorageError), every_phase.unit_of_work() as uow:
        uow.artifacts.add(**VALUES)

    assert both(every_phase) == before
    assert every_phase.migration.mismatches() == []


@both_sides
def test_half_a_write_is_never_committed(every_phase: ConsensusStore) -> None:
    """Catching the error of a failed write within its unit of work does not keep what the other side took."""
    table = TRUTH[every_phase.migration.phase][0]
    fail(every_phase, table, "abort")
    before = both(every_phase)

    with pytest.raises(StorageError), every_phase.unit_of_work() as uow:
        with pytest.raises(StorageError):
            uow.artifacts.add(**VALUES)
        uow.executions.cleanup(timedelta(0))

    assert both(every_phase) == before


@both_sides
def test_a_raised_mismatch_cannot_be_caught_and_committed(every_phase: ConsensusStore) -> None:
    """With RAISE, a mismatch rolls the unit of work back, also where somebody catches the error within it."""
    install(every_phase, *("agent_outputs", NORMALIZED_FAULTS["rewritten"][0]))
    before = all_artifacts(every_phase)

    with (
        reopened(every_phase, on_mismatch=OnMismatch.RAISE) as store,
        pytest.raises(MismatchError),
        store.unit_of_work() as uow,
        contextlib.suppress(MismatchError),
    ):
        uow.artifacts.add(**VALUES)

    assert all_artifacts(every_phase) == before


@pytest.mark.parametrize("every_phase", ["DUAL_WRITE", "NORMALIZED", "CONTRACT"], indirect=True)
def test_a_row_that_was_not_taken_leaves_no_run_behind(every_phase: ConsensusStore) -> None:
    """A run lives as long as it has a row: one that was made for a row that failed goes, whoever caught the error."""
    database = behind(every_phase)
    database.fault("BEFORE INSERT", "agent_outputs", REFUSE)
    runs = database.rows_of("SELECT id FROM consensus_runs ORDER BY id")
    ended_by_it = database.kind == "postgresql" and not every_phase.migration.phase.compares
    with pytest.raises(StorageError) if ended_by_it else contextlib.nullcontext(), every_phase.unit_of_work() as uow:
        with contextlib.suppress(StorageError):
            uow.artifacts.add(**{**VALUES, "run_id": "run of nobody"})
        if not ended_by_it:
            uow.executions.record_spawn(
                agent_id="goes on", spec_id="S", stage="plan", phase_type="stage", agent_name="gemini"
            )
    database.heal()
    assert database.scalar("SELECT count(*) FROM agent_executions WHERE agent_id = 'goes on'") == (not ended_by_it)
    assert database.rows_of("SELECT id FROM consensus_runs ORDER BY id") == runs


@pytest.mark.sqlite  # a trigger of PostgreSQL can end the transaction by an error only, which "abort" is
@pytest.mark.parametrize("caught", [False, True])
@both_sides
def test_a_trigger_that_ends_the_transaction_ends_the_unit(every_phase: ConsensusStore, caught: bool) -> None:
    """RAISE(ROLLBACK) on the shadow side undoes the transaction, so the unit fails instead of seeming to succeed."""
    table = SHADOW[every_phase.migration.phase][0]
    behind(every_phase).fault("BEFORE INSERT", table, "SELECT RAISE(ROLLBACK, 'no')")
    before = all_artifacts(every_phase)

    with pytest.raises(StorageError), every_phase.unit_of_work() as uow:
        try:
            uow.artifacts.add(**VALUES)
        except StorageError:
            if not caught:
                raise

    assert all_artifacts(every_phase) == before


@pytest.mark.sqlite
@pytest.mark.parametrize("by", ["repository", "session"])
@both_sides
def test_nothing_is_written_after_the_transaction_has_ended(every_phase: ConsensusStore, by: str) -> None:
    """A unit whose transaction the database has undone writes nothing more, which would commit by itself."""
    table = SHADOW[every_phase.migration.phase][0]
    behind(every_phase).fault("BEFORE INSERT", table, "SELECT RAISE(ROLLBACK, 'no')")
    before = all_artifacts(every_phase)

    with pytest.raises(StorageError), every_phase.unit_of_work() as uow:
        session = uow.session if by == "session" else None
        with contextlib.suppress(StorageError):
            uow.artifacts.add(**VALUES)
        with pytest.raises(StorageError, match="ended the transaction"):
            if session is None:
                uow.executions.record_spawn(
                    agent_id="late", spec_id="S", stage="plan", phase_type="stage", agent_name="gemini"
                )
            else:
                session.execute(text("CREATE TABLE late (a)"))

    assert all_artifacts(every_phase) == before
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.executions.get("late") is None
        assert "late" not in uow.catalog.tables(uow)


@both_sides
def test_a_shadow_side_that_keeps_what_was_deleted(every_phase: ConsensusStore) -> None:
    """Where the shadow side refuses a delete, the artifacts are gone all the same, and reconcile brings none back."""
    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add(**VALUES)
    table = SHADOW[every_phase.migration.phase][0]
    behind(every_phase).fault("BEFORE DELETE", table, REFUSE)

    with every_phase.unit_of_work() as uow:
        assert uow.artifacts.delete(spec_id="SPEC-NEW") == 1

    found: list[MismatchEntry] = every_phase.migration.mismatches()
    assert added.id in {entry.key for entry in found}
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(added.id) is None
    heal(every_phase)
    assert every_phase.migration.verify().clean
    assert every_phase.migration.mismatches() == []
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(added.id) is None


@both_sides
def test_a_failing_shadow_read_fails_nothing(every_phase: ConsensusStore) -> None:
    """Shadow reads compare both sides and answer from the truth; what differs is confirmed and recorded."""
    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add(**VALUES)
    table = SHADOW[every_phase.migration.phase][0]
    behind(every_phase).script(
        f"UPDATE {table} SET agent_name = 'other' WHERE id = {added.id}; DELETE FROM consensus_orm_changes"
    )

    with reopened(every_phase, shadow_reads=1.0) as store:
        with store.unit_of_work(read_only=True) as uow:
            found = uow.artifacts.list(spec_id="SPEC-NEW")
        assert [artifact.agent_name for artifact in found] == ["gemini"]
        (entry,) = store.migration.mismatches()
    assert (entry.key, entry.column, entry.found_by) == (added.id, "agent_name", "shadow_read")
