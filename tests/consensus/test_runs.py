"""Rule 4: runs are the same in every phase, and which rows make one is a pure function of each row."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.records import Run
from consensus_orm.errors import InvalidValueError
from consensus_orm.settings import Settings
from consensus_orm.testing import (
    ConsensusArtifactFactory,
    ConsensusSynthesisFactory,
    artifact_values,
    legacy_file,
    synthesis_values,
    take_to,
)
from consensus_orm.testing.plugin import Flip
from tests.support import reading
from tests.support.databases import Database
from tests.support.reading import Row

SECOND = datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)


@pytest.fixture(scope="module")
def field(in_the_field: Database) -> Path | str:
    """Where a legacy database with the history of every_phase is, read with raw SQL."""
    return in_the_field.where


def plain(run: Run) -> Row:
    return {
        **{
            name: getattr(run, name)
            for name in ("spec_id", "stage", "run_id", "started_at", "consensus_ok", "degraded")
        },
        "outputs": [output.id for output in run.outputs],
        "syntheses": [synthesis.id for synthesis in run.syntheses],
    }


def specs(where: Path | str) -> list[str]:
    found = {row["spec_id"] for row in (*reading.artifacts(where), *reading.syntheses(where))}
    return sorted(spec for spec in found if isinstance(spec, str) and spec and "\0" not in spec)


def shape(store: ConsensusStore, spec_id: str = "SPEC-NEW") -> set[tuple[Any, ...]]:
    """Runs by what their outputs say, whatever their ids and order."""
    with store.unit_of_work(read_only=True) as uow:
        return {
            (run.stage, run.run_id, run.started_at, run.consensus_ok, frozenset(o.content for o in run.outputs))
            for run in uow.runs.list(spec_id=spec_id)
        }


def test_runs_of_odd_rows_are_the_same_in_every_phase(every_phase: ConsensusStore, field: Path | str) -> None:
    """For each spec of the field, runs are those that rule 4 says, in order, with their rows newest first."""
    with every_phase.unit_of_work(read_only=True) as uow:
        for spec in specs(field):
            assert [plain(run) for run in uow.runs.list(spec_id=spec)] == reading.runs(field, spec)


def test_the_newest_run_is_the_first_of_all(every_phase: ConsensusStore, field: Path | str) -> None:
    """In every phase, `latest` gives of each stage the very run that `list` gives first, odd times and ids included."""
    with every_phase.unit_of_work(read_only=True) as uow:
        runs = {(spec, run.stage): run for spec in specs(field) for run in reversed(uow.runs.list(spec_id=spec))}
        assert len(runs) > 5
        for (spec, stage), run in runs.items():
            assert uow.runs.latest(spec_id=spec, stage=stage) == run
        assert uow.runs.latest(spec_id="SPEC-NONE", stage="plan") is None


def test_of_runs_that_began_together_the_one_with_the_newest_row_is_the_newest(every_phase: ConsensusStore) -> None:
    """Whichever was there first: by its newest output, and where no output decides, by its newest synthesis."""
    stage: dict[str, Any] = {"spec_id": "SPEC-NEW", "stage": "spec-plan"}
    with every_phase.unit_of_work() as uow:
        for run_id in ("first", "second", "first"):
            uow.artifacts.add(**artifact_values(**stage, run_id=run_id, created_at=SECOND))
        assert (run := uow.runs.latest(**stage)) is not None
        assert (run.run_id, run) == ("first", uow.runs.list(**stage)[0])
        uow.artifacts.delete(spec_id="SPEC-NEW")
        for run_id in ("first", "second", "first"):
            uow.syntheses.add(**synthesis_values(**stage, run_id=run_id, created_at=SECOND))
        assert (run := uow.runs.latest(**stage)) is not None
        assert (run.run_id, run) == ("first", uow.runs.list(**stage)[0])


def test_runs_hold_the_very_rows(every_phase: ConsensusStore) -> None:
    """Outputs and syntheses of runs say what artifacts and syntheses say: nothing is missing, nothing twice."""
    with every_phase.unit_of_work(read_only=True) as uow:
        runs = uow.runs.list(spec_id="SPEC-ODD")
        artifacts = {a.id: a for a in uow.artifacts.list(spec_id="SPEC-ODD")}
        syntheses = uow.syntheses.list(spec_id="SPEC-ODD")

    outputs = [output for run in runs for output in run.outputs]
    assert len(outputs) == len({output.id for output in outputs}) == len(artifacts)
    for output in outputs:
        twin = artifacts[output.id]
        assert (output.content, output.response_text) == (twin.content_json, twin.response_text)
        assert (output.agent_name, output.created_at_raw) == (twin.agent_name, twin.created_at_raw)
    assert sorted(s.id for run in runs for s in run.syntheses) == sorted(s.id for s in syntheses)


def test_runs_of_odd_rows_survive_every_flip(every_flip: Flip, field: Path | str) -> None:
    """A step from a phase to its neighbour changes no run."""
    every_flip.flip()

    with every_flip.store.unit_of_work(read_only=True) as uow:
        assert [plain(run) for run in uow.runs.list(spec_id="SPEC-ODD")] == reading.runs(field, "SPEC-ODD")


def test_a_stage_and_the_latest_run(every_phase: ConsensusStore) -> None:
    """A stage gives its own runs; latest is the first of them, None where there is none."""
    with every_phase.unit_of_work(read_only=True) as uow:
        everything = uow.runs.list(spec_id="SPEC-ODD")
        stage = uow.runs.list(spec_id="SPEC-ODD", stage="spec-plan")
        assert stage == [run for run in everything if run.stage == "spec-plan"]
        assert uow.runs.latest(spec_id="SPEC-ODD", stage="spec-plan") == stage[0]
        assert uow.runs.latest(spec_id="SPEC-ODD", stage="nowhere") is None
        assert uow.runs.list(spec_id="nobody") == []


def test_null_and_empty_are_two_runs(every_phase: ConsensusStore) -> None:
    """Rows of one second with run id NULL, '' and two others are four runs; a run id holds across seconds."""
    with every_phase.unit_of_work() as uow:
        for run_id in (None, "", "a", "b", None, "", "a"):
            uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW", run_id=run_id, created_at=SECOND))
        uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW", run_id="a", created_at=SECOND + timedelta(hours=1)))
        uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW", run_id="a", stage="other", created_at=SECOND))

    with every_phase.unit_of_work(read_only=True) as uow:
        found = [(run.stage, run.run_id, len(run.outputs)) for run in uow.runs.list(spec_id="SPEC-NEW")]
    assert sorted(found, key=str) == sorted(
        [("spec-plan", None, 2), ("spec-plan", "", 2), ("spec-plan", "a", 3), ("spec-plan", "b", 1), ("other", "a", 1)],
        key=str,
    )


def test_a_second_is_cut_not_rounded(every_phase: ConsensusStore) -> None:
    """58.0 and 58.999999 are one run, 59.0 is the next: the second is lexical."""
    with every_phase.unit_of_work() as uow:
        for microseconds in (0, 999_999, 1_000_000):
            at = SECOND + timedelta(microseconds=microseconds)
            uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW", created_at=at))

    with every_phase.unit_of_work(read_only=True) as uow:
        runs = uow.runs.list(spec_id="SPEC-NEW")
    assert [(len(run.outputs), run.started_at) for run in runs] == [
        (1, SECOND + timedelta(seconds=1)),
        (2, SECOND),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_order_of_arrival_does_not_matter(every_phase: ConsensusStore, seed: int) -> None:
    """The same rows in another order give the same runs: their identity depends on no other row."""
    rows = [
        artifact_values(content_json=f"{n}", run_id=run_id, created_at=SECOND + timedelta(seconds=n % 3))
        for n, run_id in enumerate([None, "", "a", "b"] * 3)
    ]
    with every_phase.unit_of_work() as uow:
        for spec in ("SPEC-NEW", "SPEC-SHUFFLED"):
            random.Random(seed).shuffle(rows)
            for number, row in enumerate(rows):
                uow.artifacts.add(**row | {"spec_id": spec})
                if row["run_id"] == "a" and number % 2:
                    uow.syntheses.add(
                        **synthesis_values(spec_id=spec, run_id="a", created_at=row["created_at"], failed=True)
                    )

    assert {run[:3] + run[4:] for run in shape(every_phase)} == {
        run[:3] + run[4:] for run in shape(every_phase, "SPEC-SHUFFLED")
    }


@pytest.mark.parametrize("written", [0, 3, 6])
def test_backfill_and_dual_write_agree(new_database: Database, tmp_path: Path, written: int) -> None:
    """Rows of one run, some carried by the backfill and some by the dual write, in any order, are one run."""
    with legacy_file(new_database.where):
        for number in range(6):
            ConsensusArtifactFactory.create(
                spec_id="SPEC-NEW", content_json=f"{number}", run_id="a" if number % 2 else None,
                created_at=f"2025-11-04 02:23:58.{number}",
            )  # fmt: skip
        ConsensusSynthesisFactory.create(spec_id="SPEC-NEW", run_id="a", failed=True)
    with ConsensusStore.open(new_database.where, settings=Settings(backup_dir=tmp_path)) as store:
        store.upgrade()
        store.migration.advance(Phase.DUAL_WRITE, soak=False)
        with store.unit_of_work() as uow:
            for number in range(written):
                at = SECOND + timedelta(milliseconds=100 * number - 50)
                values = artifact_values(spec_id="SPEC-NEW", run_id=(None, "a")[number % 2], created_at=at)
                uow.artifacts.add(**values | {"content_json": f"new {number}"})
        before = shape(store)
        store.migration.backfill()
        assert store.migration.verify().clean
        take_to(store, Phase.CONTRACT)
        assert shape(store) == before


@pytest.mark.parametrize(
    ("newest", "ok", "degraded"),
    [
        ({}, True, False),
        ({"degraded": True}, True, True),
        ({"status": "degraded"}, True, True),
        ({"status": "Partially FAILED"}, False, False),
        ({"status": "failed, degraded"}, False, True),
    ],
    ids=str,
)
def test_the_newest_synthesis_says_how_it_went(
    every_phase: ConsensusStore, newest: dict[str, Any], ok: bool, degraded: bool
) -> None:
    """consensus_ok and degraded follow from the newest synthesis: by its flag or its status, never by an older one."""
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW", created_at=SECOND))
        old = {"status": "failed" if ok else "ok", "degraded": not degraded}
        values = synthesis_values(spec_id="SPEC-NEW", created_at=SECOND)
        uow.syntheses.add(**values | old)
        uow.syntheses.add(**values | newest)

    with every_phase.unit_of_work(read_only=True) as uow:
        (run,) = uow.runs.list(spec_id="SPEC-NEW")
    assert (run.consensus_ok, run.degraded) == (ok, degraded)


def test_without_a_synthesis_a_run_is_ok(every_phase: ConsensusStore) -> None:
    """A run without synthesis is ok and not degraded; one without outputs is a run all the same."""
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-A"))
        uow.syntheses.add(**synthesis_values(spec_id="SPEC-B"))

    with every_phase.unit_of_work(read_only=True) as uow:
        (alone,) = uow.runs.list(spec_id="SPEC-A")
        (without,) = uow.runs.list(spec_id="SPEC-B")
    assert (alone.consensus_ok, alone.degraded, alone.syntheses) == (True, False, ())
    assert (without.outputs, len(without.syntheses)) == ((), 1)


@pytest.mark.parametrize("spec_id", ["", "a\0b", "\ud800", "x" * 1001, 1])
def test_a_wrong_spec_is_refused(consensus_store: ConsensusStore, spec_id: Any) -> None:
    """A spec that cannot be one is an error, not an empty answer."""
    with consensus_store.unit_of_work(read_only=True) as uow, pytest.raises(InvalidValueError):
        uow.runs.list(spec_id=spec_id)
