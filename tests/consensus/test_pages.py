"""What the repositories do by keys and in pages: the same in every phase, on both sides, judged by raw SQL."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consensus_orm import Artifact, ConsensusStore, Phase, Run, Settings
from consensus_orm.consensus.expressions import run_key_of
from consensus_orm.errors import DatabaseBusyError, InvalidValueError
from consensus_orm.repository import routed_reads
from consensus_orm.testing import artifact_values, spawn_values, synthesis_values, take_to
from tests.support import databases
from tests.support.databases import Database

SECOND = datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)
NEW: dict[str, Any] = {"spec_id": "SPEC-NEW", "stage": "plan"}


def paged(page: Any, of: Any = lambda row: row.id) -> list[Any]:
    """All rows, by pages of three."""
    rows: list[Any] = []
    while found := page(limit=3, after=of(rows[-1]) if rows else None):
        rows += found
    return rows


def test_pages_and_iterators_give_what_a_list_gives(
    every_phase: ConsensusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page and one by one, newest or oldest first, over all odd rows of the field: the very list."""
    monkeypatch.setattr(routed_reads, "STREAMED", 2)
    with every_phase.unit_of_work(read_only=True) as uow:
        for rows in (uow.artifacts, uow.syntheses):
            everything: list[Any] = list(rows.list())
            assert len(everything) > 3
            for oldest_first, expected in ((False, everything), (True, everything[::-1])):
                assert rows.list(oldest_first=oldest_first) == expected
                assert paged(lambda rows=rows, old=oldest_first, **p: rows.list(oldest_first=old, **p)) == expected
                assert [*rows.iterate(oldest_first=oldest_first)] == expected
            assert rows.list_and_count(limit=2) == (everything[:2], rows.count()) == (everything[:2], len(everything))
            keys = [row.id for row in everything]
            assert rows.get_many([*keys[::-1], keys[0], 10**15]) == everything[::-1]
            assert [rows.exists(key) for key in (keys[0], 10**15)] == [True, False]
        with pytest.raises(InvalidValueError, match="key of no row"):
            uow.artifacts.list(after=10**15)


def test_runs_in_pages(every_phase: ConsensusStore) -> None:
    """Pages and the iterator of runs, of a spec, of all, and of those with a synthesis: the very list."""
    with every_phase.unit_of_work(read_only=True) as uow:
        everything = uow.runs.list()
        assert {run.spec_id for run in everything} > {"SPEC-ODD"}
        for given in ({}, {"spec_id": "SPEC-ODD"}, {"with_synthesis": True}):
            runs = [run for run in everything if given.get("spec_id", run.spec_id) == run.spec_id]
            runs = [run for run in runs if run.syntheses or not given.get("with_synthesis")]
            assert len(runs) > 1
            for oldest_first, expected in ((False, runs), (True, runs[::-1])):
                options: dict[str, Any] = {**given, "oldest_first": oldest_first}
                assert uow.runs.list(**options) == expected
                assert [*uow.runs.iterate(**options)] == expected
                assert paged(lambda o=options, **page: uow.runs.list(**o, **page), lambda run: run) == expected
        gone: Run = everything[0].model_copy(update={"outputs": (), "syntheses": ()})
        with pytest.raises(InvalidValueError, match="a run that is gone"):
            uow.runs.list(after=gone)


def test_a_verdict_is_not_the_latest_run_with_a_synthesis(every_phase: ConsensusStore) -> None:
    """The gate's verdict, stored after the synthesis without a run id, is the latest run unless told otherwise."""
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(**NEW, run_id="round", created_at=SECOND))
        uow.syntheses.add(**synthesis_values(**NEW, run_id="round", created_at=SECOND))
        verdict = {"agent_name": "consensus-verdict", "created_at": SECOND + timedelta(seconds=1)}
        uow.artifacts.add(**artifact_values(**NEW, **verdict))
        latest = uow.runs.latest(**NEW)
        judged = uow.runs.latest(**NEW, with_synthesis=True)
        assert latest is not None
        assert judged is not None
        assert (latest.run_id, judged.run_id, len(judged.syntheses)) == (None, "round", 1)
        assert uow.runs.latest(spec_id="SPEC-NEW", stage="none", with_synthesis=True) is None


def test_rows_may_be_deleted_as_they_come(every_phase: ConsensusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An iterator whose rows its caller deletes leaves none out, wherever its portions end."""
    monkeypatch.setattr(routed_reads, "STREAMED", 2)
    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add_many([artifact_values(**NEW) for _ in range(7)])
        seen = [(artifact.id, uow.artifacts.delete(artifact.id)) for artifact in uow.artifacts.iterate(**NEW)]
        assert seen == [(artifact.id, 1) for artifact in reversed(added)]
        assert uow.artifacts.count(**NEW) == 0


def test_a_change_is_on_both_sides(every_phase: ConsensusStore) -> None:
    """A field of an artifact or a synthesis changes, a run id moves it to another run, and verify is content."""
    with every_phase.unit_of_work() as uow:
        artifact = uow.artifacts.add(**artifact_values(**NEW, run_id="a"))
        synthesis = uow.syntheses.add(**synthesis_values(**NEW, run_id="a"))
        assert uow.artifacts.update(artifact.id, agent_name="other", run_id="b")
        assert uow.syntheses.update(synthesis.id, status="failed", degraded=True)
        assert not uow.artifacts.update(10**15, agent_name="other")
        for wrong in ({"agnt_name": "x"}, {"key": 1}, {"agent_name": ""}, {"created_at": None}):
            with pytest.raises(InvalidValueError):
                uow.artifacts.update(artifact.id, **wrong)
    with every_phase.unit_of_work(read_only=True) as uow:
        changed = artifact.model_copy(update={"agent_name": "other", "run_id": "b"})
        assert uow.artifacts.get(artifact.id) == changed
        assert uow.syntheses.get(synthesis.id) == synthesis.model_copy(update={"status": "failed", "degraded": True})
        runs = {run.run_id: (len(run.outputs), run.consensus_ok, run.degraded) for run in uow.runs.list(**NEW)}
    assert runs == {"a": (0, False, True), "b": (1, True, False)}
    if every_phase.migration.phase.compares:
        assert every_phase.migration.verify().clean


@pytest.mark.parametrize("every_phase", ["EXPAND", "DUAL_WRITE", "CUTOVER", "CONTRACT"], indirect=True)
def test_a_change_keeps_what_it_does_not_name(every_phase: ConsensusStore) -> None:
    """A change of one field of an odd row leaves type and bytes of all others as they are."""

    def others() -> list[Any]:
        """What both sides hold of artifacts, without the column that changes: the fourth, as type and bytes."""
        database, phase = databases.behind(every_phase), every_phase.migration.phase
        sides = [database.legacy] * phase.writes_legacy + [database.normalized] * phase.writes_normalized
        return [row[:3] + row[4:] for side in sides for row in side()["artifacts"]]

    before = others()
    with every_phase.unit_of_work() as uow:
        odd = uow.artifacts.list()
        assert len(odd) > 10
        for artifact in odd:
            assert uow.artifacts.update(artifact.id, agent_name="changed")
            assert uow.artifacts.get(artifact.id) == artifact.model_copy(update={"agent_name": "changed"})
    assert others() == before
    if every_phase.migration.phase.compares:
        assert every_phase.migration.verify().clean


def test_one_row_is_deleted_by_its_id(every_phase: ConsensusStore) -> None:
    """By its id alone, or only where it is of the spec that is named, too; with neither, nothing is deleted."""
    with every_phase.unit_of_work() as uow:
        first, second = uow.artifacts.add_many([artifact_values(**NEW)] * 2)
        assert uow.artifacts.delete(first.id, spec_id="SPEC-OTHER") == 0
        assert uow.artifacts.delete(first.id) == 1
        with pytest.raises(InvalidValueError):
            uow.artifacts.delete()
        assert uow.artifacts.list(**NEW) == [second]


@pytest.mark.parametrize("run_id", [None, "", "a"], ids=repr)
def test_a_run_has_the_one_synthesis_that_was_put(every_phase: ConsensusStore, run_id: str | None) -> None:
    """`put` replaces all syntheses of the run and no other, keeps the newest id, and may be repeated."""
    with every_phase.unit_of_work() as uow:
        others = [
            uow.syntheses.add(**synthesis_values(**NEW, run_id=other, created_at=SECOND + timedelta(seconds=later)))
            for other, later in ((None, 1), ("", 0), ("a", 0), (None, 0))
            if (other, later) != (run_id, 0)
        ]
        _, newest = (uow.syntheses.add(**synthesis_values(**NEW, run_id=run_id, created_at=SECOND)) for _ in range(2))
        for status in ("ok", "failed"):
            at = SECOND + timedelta(microseconds=5)
            put = uow.syntheses.put(**synthesis_values(**NEW, run_id=run_id, created_at=at) | {"status": status})
            assert (put.id, put.status) == (newest.id, status)
            assert uow.syntheses.get(put.id) == put
        left = uow.syntheses.list(**NEW)
        assert sorted(left, key=lambda each: each.id) == sorted([*others, put], key=lambda each: each.id)
        fresh = uow.syntheses.put(**synthesis_values(spec_id="SPEC-FRESH"))
        assert uow.syntheses.list(spec_id="SPEC-FRESH") == [fresh]
        with pytest.raises(InvalidValueError):
            uow.syntheses.put(**synthesis_values(**NEW) | {"status": ""})


def test_the_key_of_a_run_is_the_same_in_sql(consensus_store: ConsensusStore) -> None:
    """What `put` looks for is what the database computes."""
    with consensus_store.unit_of_work() as uow:
        for run_id in (None, "", "a", "run:a", "caf\u00e9"):
            for at in (SECOND, SECOND + timedelta(microseconds=1)):
                added = uow.syntheses.add(**synthesis_values(**NEW, run_id=run_id, created_at=at))
                (key,) = uow._rows(
                    "SELECT run_key FROM consensus_runs WHERE id ="
                    f" (SELECT run_id FROM consensus_syntheses WHERE id = {added.id})"
                )[0]
                assert key == run_key_of(run_id, added.created_at_raw)


def test_two_that_put_at_once_leave_one(new_database: Database, consensus_settings: Settings) -> None:
    """Two threads that put the synthesis of one run, each in a unit of work of its own, leave one."""
    with ConsensusStore.open(new_database.where, settings=consensus_settings) as store:
        store.upgrade()
        together = threading.Barrier(2)

        def put(status: str) -> None:
            together.wait()
            values = synthesis_values(**NEW, run_id="a") | {"status": status}
            store.run(lambda uow: uow.syntheses.put(**values))

        for _ in range(10):
            threads = [threading.Thread(target=put, args=(status,)) for status in ("one", "two")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with store.unit_of_work() as uow:
                assert uow.syntheses.count(**NEW) == 1
                uow.syntheses.delete(spec_id="SPEC-NEW")


def test_an_exclusive_unit_is_alone(new_database: Database, consensus_settings: Settings) -> None:
    """While it lasts, no other unit of work writes; readers go on; what it writes is compared like any other."""
    settings = consensus_settings.model_copy(update={"busy_timeout": timedelta(milliseconds=100)})
    databases.build_legacy(new_database.where)
    with (
        ConsensusStore.open(new_database.where, settings=settings) as store,
        ConsensusStore.open(new_database.where, settings=settings) as other,
    ):
        take_to(store, Phase.DUAL_WRITE)
        with store.unit_of_work(exclusive=True) as uow:
            for exclusive in (False, True):
                with pytest.raises(DatabaseBusyError), other.unit_of_work(exclusive=exclusive) as second:
                    second.artifacts.add(**artifact_values())
            if new_database.kind == "postgresql":
                with other.unit_of_work(read_only=True) as reader:
                    assert reader.artifacts.count(**NEW) == 0
            uow.artifacts.add(**artifact_values(**NEW))
        with other.unit_of_work() as uow:
            assert uow.artifacts.count(**NEW) == 1
        assert store.run(lambda uow: uow.artifacts.count(**NEW), exclusive=True) == 1
        assert store.migration.verify().clean
        with pytest.raises(InvalidValueError):
            store.unit_of_work(read_only=True, exclusive=True)


def test_executions_in_pages(consensus_store: ConsensusStore) -> None:
    """Executions by pages and one by one, in both orders, with ties in time; one is deleted by its key."""
    with consensus_store.unit_of_work() as uow:
        values = {"spec_id": "S", "agent_name": "a", "branch_id": "b"}
        for number in (3, 1, 4, 0, 2):
            uow.executions.record_spawn(**spawn_values(agent_id=f"agent_{number}", **values))
        uow.executions.record_extraction_failure("agent_1", "raw", "no JSON")
        uow.executions.record_extraction_failure("agent_2", "raw", "no JSON")
        everything = uow.executions.list()
        assert [each.agent_id for each in everything] == [f"agent_{number}" for number in range(5)]
        for newest_first, expected in ((False, everything), (True, everything[::-1])):
            page = lambda new=newest_first, **page: uow.executions.list(newest_first=new, **page)  # noqa: E731
            assert paged(page, lambda each: each.agent_id) == expected
            assert [*uow.executions.iterate(newest_first=newest_first)] == expected
        assert uow.executions.list_and_count(limit=2, agent_name=everything[0].agent_name) == (everything[:2], 5)
        assert uow.executions.get_many(["agent_4", "none", "agent_0"]) == [everything[4], everything[0]]
        flying = uow.executions.in_flight(limit=2, newest_first=True)
        failed = uow.executions.extraction_failures("S", limit=1, newest_first=True)
        of_branch = uow.executions.for_branch(
            spec_id="S", stage=everything[0].stage, branch_id="b", limit=1, newest_first=True
        )
        assert [e.agent_id for e in [*flying, *failed, *of_branch]] == ["agent_4", "agent_3", "agent_2", "agent_4"]
        assert (uow.executions.delete("agent_4"), uow.executions.delete("agent_4")) == (True, False)
        assert (uow.executions.exists("agent_4"), uow.executions.exists("agent_3")) == (False, True)
        with pytest.raises(InvalidValueError, match="agent_id of no execution"):
            uow.executions.list(after="agent_4")


def test_an_unknown_field_of_a_record_is_an_error() -> None:
    """A misspelled field is refused, and what a record gives of itself makes an equal one again."""
    values: dict[str, Any] = {"id": 1, "spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "{}"}
    artifact = Artifact(**values)
    assert Artifact.model_validate(artifact.model_dump()) == artifact
    assert Artifact.model_validate_json(artifact.model_dump_json()) == artifact
    misspelled = values | {"agnt_name": "b"}
    with pytest.raises(ValueError, match="agnt_name"):
        Artifact(**misspelled)
