"""The artifacts: the same in every phase, compared on every write, and never lost with a failing shadow side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.records import Artifact
from consensus_orm.errors import InvalidValueError, MismatchError, StorageError
from consensus_orm.ledgers.entries import MismatchEntry
from consensus_orm.phase import Side
from consensus_orm.settings import OnMismatch, Settings
from consensus_orm.testing import CONTENTS, artifact_values, take_to
from consensus_orm.testing.plugin import Flip, History
from tests import reading
from tests.databases import FAIL, IGNORE, REFUSE, Database, behind, holds
from tests.field import builders
from tests.reading import Row

Raw = Callable[..., list[tuple[Any, ...]]]

both_sides = pytest.mark.parametrize("every_phase", ["DUAL_WRITE", "CUTOVER"], indirect=True)


@pytest.fixture(scope="module")
def field(in_the_field: Database) -> list[Row]:
    """What the history of every_phase holds, newest first, by raw SQL."""
    return reading.artifacts(in_the_field.where)


def plain(records: list[Artifact]) -> list[Row]:
    return [record.model_dump(warnings=False) for record in records]


def reopened(store: ConsensusStore, **settings: Any) -> ConsensusStore:
    return ConsensusStore.open(store.engine.url, settings=Settings(**settings))


def both(store: ConsensusStore) -> tuple[object, object]:
    database = behind(store)
    return database.legacy(), database.normalized()


def all_artifacts(store: ConsensusStore) -> list[Artifact]:
    with store.unit_of_work(read_only=True) as uow:
        return uow.artifacts.list()


# Reading ----------------------------------------------------------------------------------------------------


def test_reads_are_the_same_in_every_phase(every_phase: ConsensusStore, field: list[Row]) -> None:
    """Every odd row comes back as stored, ids included, newest first with ties by id, in each phase."""
    assert plain(all_artifacts(every_phase)) == field


FILTERS: list[dict[str, Any]] = [
    {"spec_id": "SPEC-ODD"},
    {"spec_id": "spec-odd"},
    {"spec_id": ""},
    {"spec_id": "SPEC\0ODD"},
    {"stage": "spec-plan "},
    {"spec_id": "SPEC-KIT-900", "stage": "spec-plan"},
    {"agent_name": "gemini"},
    {"agent_name": "\udcff"},
    {"run_id": ""},
    {"run_id": "007"},
    {"run_id": "7"},
    {"run_id": "run\0a"},
    {"run_id": "run\udcff"},
    {"run_id": "run_SPEC-ODD_1762222238_aaaaaaaa", "stage": "speckit.specify"},
    {"spec_id": "nobody"},
]


def test_filters_find_the_same_in_every_phase(every_phase: ConsensusStore, field: list[Row], kind: str) -> None:
    """A filter finds the rows whose text is equal, and only these; count and limit agree with the list."""
    with every_phase.unit_of_work(read_only=True) as uow:
        for filters in FILTERS:
            if not all(holds(kind, value) for value in filters.values()):
                with pytest.raises(InvalidValueError, match="PostgreSQL cannot hold"):
                    uow.artifacts.list(**filters)
                continue
            expected = [row for row in field if all(row[name] == value for name, value in filters.items())]
            assert plain(uow.artifacts.list(**filters)) == expected, filters
            assert uow.artifacts.count(**filters) == len(expected), filters
            assert plain(uow.artifacts.list(**filters, limit=2)) == expected[:2], filters
        assert uow.artifacts.list(limit=0) == []


def test_each_id_gets_its_artifact(every_phase: ConsensusStore, field: list[Row]) -> None:
    """Get gives the row of an id in every phase, ids 0 and above 2^53 included; None for an id that is not there."""
    with every_phase.unit_of_work(read_only=True) as uow:
        for row in field:
            if row["id"] >= 0:
                found = uow.artifacts.get(row["id"])
                assert found is not None
                assert found.model_dump(warnings=False) == row
        assert uow.artifacts.get(99_999) is None


def test_specs_are_listed_once(every_phase: ConsensusStore, field: list[Row]) -> None:
    """Specs gives each spec once, in the order of their bytes, the odd ones included."""
    texts = sorted({row["spec_id"] for row in field if isinstance(row["spec_id"], str)})
    blobs = sorted({row["spec_id"] for row in field if isinstance(row["spec_id"], bytes)})

    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.specs() == [*texts, *blobs]


def test_created_at_is_a_time_only_where_one_is_stored(every_phase: ConsensusStore, field: list[Row]) -> None:
    """created_at is an aware UTC time or None; created_at_raw is the stored value, whatever it is."""
    found = {artifact.id: artifact for artifact in all_artifacts(every_phase)}
    times = {row["created_at_raw"]: found[row["id"]].created_at for row in field}

    assert times["2025-11-04 02:23:58.123456"] == datetime(2025, 11, 4, 2, 23, 58, 123456, tzinfo=UTC)
    for odd in (None, "", "not a date", "2025-11-04T02:23:58Z", "2025-02-30 00:00:00", "now"):
        assert times[odd] is None
    assert times.get(1762743600) is None  # a number, which SQLite holds
    assert {time.utcoffset() for time in times.values() if time} == {timedelta(0)}


# Adding -----------------------------------------------------------------------------------------------------


def test_what_was_added_is_read_back(every_phase: ConsensusStore, raw: Raw) -> None:
    """Add returns the record that every later read gives, with an id above all before; both sides hold it."""
    highest = max(artifact.id for artifact in all_artifacts(every_phase))
    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add(
            spec_id="SPEC-NEW",
            stage="spec-plan",
            agent_name="gemini",
            content_json='{"ok": "–"}',
            response_text="",
            run_id="",
            created_at=datetime(2025, 11, 4, 2, 23, 58, 5, tzinfo=UTC),
        )
        assert uow.artifacts.get(added.id) == added  # within the unit already
        phase = uow.phase

    assert added.id > highest
    assert added.created_at_raw == "2025-11-04 02:23:58.000005"
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list(spec_id="SPEC-NEW") == [added]
    if phase.writes_legacy:
        sql = "SELECT response_text, run_id, created_at FROM consensus_artifacts WHERE id = ?"
        assert raw(every_phase, sql, added.id) == [("", "", "2025-11-04 02:23:58.000005")]
    if phase.writes_normalized:
        sql = "SELECT r.run_id, r.run_key, mirrored FROM agent_outputs o JOIN consensus_runs r ON r.id = o.run_id"
        assert raw(every_phase, f"{sql} WHERE o.id = ?", added.id) == [("", "run:", True)]
    if phase.compares:
        assert every_phase.migration.verify().clean


def test_content_is_stored_verbatim(every_phase: ConsensusStore, kind: str) -> None:
    """JSON or not, NULs, lone surrogates, invalid UTF-8 and 5 MB: the bytes meant are the bytes stored and read.

    What PostgreSQL cannot hold it is never given: test_validation.
    """
    for shape, content in CONTENTS.items():
        if isinstance(content, str) and holds(kind, content):
            check_content(every_phase, shape, content)
    assert every_phase.migration.mismatches() == []


def check_content(store: ConsensusStore, spec_id: str, content: str) -> None:
    meant = content.encode("utf-8", "surrogatepass" if "\ud800" in content else "surrogateescape")
    with store.unit_of_work() as uow:
        added = uow.artifacts.add(**artifact_values(spec_id=spec_id, content_json=content, response_text=content))
        phase = uow.phase

    with store.unit_of_work(read_only=True) as uow:
        (found,) = uow.artifacts.list(spec_id=spec_id)
        assert found == uow.artifacts.get(added.id)
    assert found.response_text is not None
    for said in (found.content_json, found.response_text):
        assert said.encode("utf-8", "surrogateescape") == meant
    database = behind(store)
    for side, column, table in (
        (Side.LEGACY, "content_json", "consensus_artifacts"),
        (Side.NORMALIZED, "content", "agent_outputs"),
    ):
        if writes(phase, side):
            with database.judge.reading(database.where) as connection:
                found_there = database.judge.query(connection, [column], f"FROM {table} WHERE id = {added.id}")
            assert found_there == [(("text", meant.hex().upper()),)]


def writes(phase: Phase, side: Side) -> bool:
    return phase.writes_legacy if side is Side.LEGACY else phase.writes_normalized


def test_a_round_never_splits(every_phase: ConsensusStore) -> None:
    """What is added in one unit of work without a time shares the start of the unit."""
    with every_phase.unit_of_work() as uow:
        added = [uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW")) for _ in range(3)]
        added += uow.artifacts.add_many([artifact_values(spec_id="SPEC-NEW")] * 2)
        start = uow.now

    assert {artifact.created_at for artifact in added} == {start}
    with every_phase.unit_of_work(read_only=True) as uow:
        (run,) = uow.runs.list(spec_id="SPEC-NEW")
    assert [output.id for output in run.outputs] == [artifact.id for artifact in reversed(added)]


def test_times_of_other_zones_are_stored_in_utc(every_phase: ConsensusStore) -> None:
    """An aware time of any zone is written as UTC text, so that order and rounds hold."""
    zone = timezone(timedelta(hours=5, minutes=30))
    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add(**artifact_values(created_at=datetime(2025, 11, 4, 1, 0, tzinfo=zone)))

    assert added.created_at_raw == "2025-11-03 19:30:00"


def test_many_are_added_in_order(every_phase: ConsensusStore) -> None:
    """add_many keeps the order: ids grow with it, twins included; an empty batch adds nothing."""
    rows = [artifact_values(content_json=str(n % 3)) for n in range(7)]
    with every_phase.unit_of_work() as uow:
        assert uow.artifacts.add_many([]) == []
        added = uow.artifacts.add_many(iter(rows))

    assert [artifact.content_json for artifact in added] == [row["content_json"] for row in rows]
    assert [artifact.id for artifact in added] == sorted({artifact.id for artifact in added})


@pytest.mark.parametrize("wrong", [{"agent_name": ""}, {"nonsense": 1}, {"created_at": datetime(2025, 1, 1)}])
def test_one_wrong_row_and_none_is_written(every_phase: ConsensusStore, wrong: dict[str, Any]) -> None:
    """A batch is checked whole before its first row is written, also where the caller catches the error."""
    before = all_artifacts(every_phase)
    with every_phase.unit_of_work() as uow, pytest.raises(InvalidValueError):
        uow.artifacts.add_many([artifact_values(), artifact_values() | wrong])

    assert all_artifacts(every_phase) == before


def test_the_model_is_kept_from_the_dual_write_on(every_flip: Flip) -> None:
    """model_version has no legacy column: reads of legacy give None, reads of normalized what was kept."""
    store = every_flip.store
    with store.unit_of_work() as uow:
        added = uow.artifacts.add(**artifact_values(model_version="opus-4"))

    def expected(phase: Phase) -> str | None:
        return "opus-4" if phase.truth is Side.NORMALIZED and every_flip.before.writes_normalized else None

    assert added.model_version == expected(every_flip.before)
    every_flip.flip()
    with store.unit_of_work(read_only=True) as uow:
        found = uow.artifacts.get(added.id)
    assert found is not None
    assert found.model_version == expected(every_flip.after)


# Deleting ---------------------------------------------------------------------------------------------------


def test_deleting_removes_from_every_side(every_phase: ConsensusStore, field: list[Row], raw: Raw) -> None:
    """Delete removes the artifacts of a spec from both sides and nothing else; runs go with their last row."""
    mine = [row for row in field if row["spec_id"] == "SPEC-ODD" and isinstance(row["spec_id"], str)]
    with every_phase.unit_of_work() as uow:
        assert uow.artifacts.delete(spec_id="SPEC-ODD") == len(mine)
        assert uow.artifacts.delete(spec_id="SPEC-ODD") == 0
        phase = uow.phase

    assert plain(all_artifacts(every_phase)) == [row for row in field if row not in mine]
    with every_phase.unit_of_work(read_only=True) as uow:
        assert all(not run.outputs for run in uow.runs.list(spec_id="SPEC-ODD"))
    if phase.writes_legacy:
        sql = "SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'SPEC-ODD'"
        assert raw(every_phase, sql) == [(0,)]
    if phase.writes_normalized:
        orphans = (
            "SELECT count(*) FROM consensus_runs r WHERE NOT EXISTS (SELECT 1 FROM agent_outputs WHERE run_id = r.id)"
            " AND NOT EXISTS (SELECT 1 FROM consensus_syntheses WHERE run_id = r.id)"
        )
        assert raw(every_phase, orphans) == [(0,)]
    if phase.compares:
        assert every_phase.migration.verify().clean
        assert every_phase.migration.status().foreign_writes == 0


def test_deleting_a_stage_leaves_the_others(every_phase: ConsensusStore) -> None:
    """With a stage, only its artifacts go, and the other stages of the run id stay."""
    with every_phase.unit_of_work() as uow:
        before = uow.artifacts.list(spec_id="SPEC-KIT-900")
        gone = uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-tasks")

    assert gone == 3
    with every_phase.unit_of_work(read_only=True) as uow:
        left = uow.artifacts.list(spec_id="SPEC-KIT-900")
    assert left == [artifact for artifact in before if artifact.stage != "spec-tasks"]


def test_no_id_is_given_twice_after_deletes(every_phase: ConsensusStore) -> None:
    """The id of a deleted artifact is never given again."""
    with every_phase.unit_of_work() as uow:
        first = uow.artifacts.add(**artifact_values(spec_id="SPEC-GONE"))
        uow.artifacts.delete(spec_id="SPEC-GONE")
        second = uow.artifacts.add(**artifact_values())

    assert second.id > first.id


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
    from tests.databases import odd_history

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
    """Without a fault there is no mismatch, and no write that would have to be adopted."""
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**VALUES)
        uow.artifacts.add(**VALUES)

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
