"""The artifacts: read, added and deleted, the same in every phase."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.records import Artifact
from consensus_orm.errors import InvalidValueError
from consensus_orm.phase import Side
from consensus_orm.testing import CONTENTS, artifact_values
from consensus_orm.testing.plugin import Flip
from tests.support import reading
from tests.support.databases import Database, behind, holds
from tests.support.reading import Row

Raw = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def field(in_the_field: Database) -> list[Row]:
    """What the history of every_phase holds, newest first, by raw SQL."""
    return reading.artifacts(in_the_field.where)


def plain(records: list[Artifact]) -> list[Row]:
    return [record.model_dump(warnings=False) for record in records]


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
