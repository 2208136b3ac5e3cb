"""The syntheses: the same in every phase, the newest speaks for its run, and a failing shadow side loses none."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.records import Synthesis
from consensus_orm.errors import InvalidValueError, MismatchError, StorageError
from consensus_orm.settings import OnMismatch, Settings
from consensus_orm.testing import CONTENTS, artifact_values, synthesis_values
from tests.support import reading
from tests.support.databases import REFUSE, Database, behind, holds
from tests.support.reading import Row

Raw = Callable[..., list[tuple[Any, ...]]]

both_sides = pytest.mark.parametrize("every_phase", ["DUAL_WRITE", "CUTOVER"], indirect=True)
SECOND = datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)


@pytest.fixture(scope="module")
def field(in_the_field: Database) -> list[Row]:
    """What the history of every_phase holds, newest first, by raw SQL."""
    return reading.syntheses(in_the_field.where)


def plain(records: list[Synthesis]) -> list[Row]:
    return [record.model_dump(warnings=False) for record in records]


def all_syntheses(store: ConsensusStore) -> list[Synthesis]:
    with store.unit_of_work(read_only=True) as uow:
        return uow.syntheses.list()


def both(store: ConsensusStore) -> tuple[object, object]:
    database = behind(store)
    return database.legacy(), database.normalized()


# Reading ----------------------------------------------------------------------------------------------------


def test_reads_are_the_same_in_every_phase(every_phase: ConsensusStore, field: list[Row]) -> None:
    """Every odd synthesis comes back as stored (degraded 2, '', NULL; blobs; odd times), in the same order."""
    assert plain(all_syntheses(every_phase)) == field


def test_filters_and_limits(every_phase: ConsensusStore, field: list[Row]) -> None:
    """Filters find what is equal and nothing else; latest is the first of the list."""
    with every_phase.unit_of_work(read_only=True) as uow:
        for filters in (
            {"spec_id": "SPEC-ODD"},
            {"spec_id": "SPEC-T", "stage": "spec-plan"},
            {"run_id": ""},
            {"run_id": "run_SPEC-ODD_1762222238_aaaaaaaa"},
            {"spec_id": "nobody"},
        ):
            expected = [row for row in field if all(row[name] == value for name, value in filters.items())]
            given: dict[str, Any] = dict(filters)
            assert plain(uow.syntheses.list(**given)) == expected
            assert plain(uow.syntheses.list(**given, limit=3)) == expected[:3]
        newest = uow.syntheses.latest(spec_id="SPEC-T", stage="spec-plan")
        assert newest == uow.syntheses.list(spec_id="SPEC-T", stage="spec-plan")[0]
        assert uow.syntheses.latest(spec_id="SPEC-T", stage="nowhere") is None


def test_a_later_round_without_synthesis_hides_none(every_phase: ConsensusStore) -> None:
    """The latest synthesis is found though artifacts of a later round have come since."""
    with every_phase.unit_of_work() as uow:
        made = uow.syntheses.add(**synthesis_values(spec_id="SPEC-NEW", created_at=SECOND))
        uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW"))

    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.syntheses.latest(spec_id="SPEC-NEW", stage="spec-plan") == made


# Writing ----------------------------------------------------------------------------------------------------


def test_what_was_added_is_read_back(every_phase: ConsensusStore) -> None:
    """Add returns the record of every later read, defaults and given values alike."""
    with every_phase.unit_of_work() as uow:
        short = uow.syntheses.add(spec_id="SPEC-NEW", stage="plan", output_markdown="", status="ok")
        full = uow.syntheses.add(
            spec_id="SPEC-NEW",
            stage="plan",
            output_markdown="# Synthesis \U0001f600",
            output_path="/tmp/x.md",
            status="degraded",
            artifacts_count=0,
            agreements='["a"]',
            conflicts="",
            degraded=True,
            run_id="",
            created_at=SECOND,
        )
        start, phase = uow.now, uow.phase

    assert (short.degraded, short.artifacts_count, short.created_at) == (False, None, start)
    assert (full.degraded, full.created_at_raw) == (True, "2025-11-04 02:23:58")
    assert full.id == short.id + 1
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.syntheses.list(spec_id="SPEC-NEW") == [short, full]
    if phase.compares:
        assert every_phase.migration.mismatches() == []
        assert every_phase.migration.verify().clean


def test_two_of_one_run_are_both_kept(every_phase: ConsensusStore, raw: Raw) -> None:
    """A run may have several syntheses, twins included; the newest speaks for it, a later id among equals."""
    with every_phase.unit_of_work() as uow:
        values = synthesis_values(spec_id="SPEC-NEW", run_id="r", created_at=SECOND)
        first = uow.syntheses.add(**values | {"status": "failed"})
        twins = [uow.syntheses.add(**values) for _ in range(2)]
        phase = uow.phase

    with every_phase.unit_of_work(read_only=True) as uow:
        (run,) = uow.runs.list(spec_id="SPEC-NEW")
        assert uow.syntheses.latest(spec_id="SPEC-NEW", stage="spec-plan") == twins[1]
    assert list(run.syntheses) == [*reversed(twins), first]
    assert run.consensus_ok
    if phase.writes_normalized:
        sql = "SELECT consensus_ok, degraded, synthesis_json FROM consensus_runs WHERE spec_id = 'SPEC-NEW'"
        ((ok, degraded, synthesis),) = raw(every_phase, sql)
        assert (ok, degraded) == (True, False)
        assert json.loads(synthesis) == {
            "output_markdown": twins[1].output_markdown,
            "output_path": None,
            "status": "ok",
            "artifacts_count": 4,
            "agreements": None,
            "conflicts": None,
        }


def test_an_older_one_added_later_does_not_speak(every_phase: ConsensusStore, raw: Raw) -> None:
    """What follows from the newest synthesis does not depend on the order in which they arrive."""
    with every_phase.unit_of_work() as uow:
        values = synthesis_values(spec_id="SPEC-NEW", run_id="r")
        uow.syntheses.add(**values | {"status": "failed", "created_at": SECOND.replace(hour=5)})
        uow.syntheses.add(**values | {"created_at": SECOND})
        phase = uow.phase

    with every_phase.unit_of_work(read_only=True) as uow:
        (run,) = uow.runs.list(spec_id="SPEC-NEW")
    assert not run.consensus_ok
    assert run.started_at == SECOND
    if phase.writes_normalized:
        sql = "SELECT consensus_ok, run_timestamp FROM consensus_runs WHERE spec_id = 'SPEC-NEW'"
        assert raw(every_phase, sql) == [(False, int(SECOND.timestamp() * 1000))]


def test_content_is_stored_verbatim(every_phase: ConsensusStore, kind: str) -> None:
    """Every text of a synthesis is carried as the bytes it stands for: NULs, lone surrogates, 5 MB."""
    for shape, content in CONTENTS.items():
        if isinstance(content, str) and holds(kind, content):
            with every_phase.unit_of_work() as uow:
                uow.syntheses.add(
                    spec_id=shape, stage="plan", output_markdown=content, status="ok", agreements=content,
                    conflicts=content, output_path=content,
                )  # fmt: skip
            meant = content.encode("utf-8", "surrogatepass" if "\ud800" in content else "surrogateescape")
            with every_phase.unit_of_work(read_only=True) as uow:
                found = uow.syntheses.latest(spec_id=shape, stage="plan")
            assert found is not None
            for text in (found.output_markdown, found.agreements, found.conflicts, found.output_path):
                assert text is not None
                assert text.encode("utf-8", "surrogateescape") == meant
    assert every_phase.migration.mismatches() == []


def test_deleting_removes_from_every_side(every_phase: ConsensusStore, field: list[Row]) -> None:
    """Delete removes the syntheses of a spec, on both sides; artifacts stay, and with them the run."""
    mine = [row for row in field if (row["spec_id"], row["stage"]) == ("SPEC-ODD", "spec-plan")]
    with every_phase.unit_of_work() as uow:
        artifacts = uow.artifacts.list()
        assert uow.syntheses.delete(spec_id="SPEC-ODD", stage="nowhere") == 0
        assert uow.syntheses.delete(spec_id="SPEC-ODD", stage="spec-plan") == len(mine)

    assert plain(all_syntheses(every_phase)) == [row for row in field if row not in mine]
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list() == artifacts
        runs = uow.runs.list(spec_id="SPEC-ODD", stage="spec-plan")
        assert runs
        assert all(run.consensus_ok and not run.degraded for run in runs)
    if every_phase.migration.phase.compares:
        assert every_phase.migration.verify().clean


def test_a_run_lives_as_long_as_it_has_a_row(every_phase: ConsensusStore, raw: Raw) -> None:
    """Artifacts and syntheses of a run can go in any order; the run goes with the last of them, and not before."""
    with every_phase.unit_of_work() as uow:
        for spec in ("SPEC-A", "SPEC-B"):
            uow.artifacts.add(**artifact_values(spec_id=spec))
            uow.syntheses.add(**synthesis_values(spec_id=spec, failed=True))
        phase = uow.phase

    def runs(spec: str) -> list[tuple[Any, ...]]:
        with every_phase.unit_of_work(read_only=True) as uow:
            seen = [(run.consensus_ok,) for run in uow.runs.list(spec_id=spec)]
        if phase.writes_normalized:
            sql = "SELECT consensus_ok FROM consensus_runs WHERE spec_id = ?"
            assert [(bool(ok),) for (ok,) in raw(every_phase, sql, spec)] == seen
        return seen

    assert runs("SPEC-A") == runs("SPEC-B") == [(False,)]
    with every_phase.unit_of_work() as uow:
        uow.artifacts.delete(spec_id="SPEC-A")
        uow.syntheses.delete(spec_id="SPEC-B")
    assert (runs("SPEC-A"), runs("SPEC-B")) == ([(False,)], [(True,)])
    with every_phase.unit_of_work() as uow:
        uow.syntheses.delete(spec_id="SPEC-A")
        uow.artifacts.delete(spec_id="SPEC-B")
    assert runs("SPEC-A") == runs("SPEC-B") == []


@pytest.mark.parametrize(
    "wrong", [{"status": ""}, {"artifacts_count": -1}, {"output_markdown": None}, {"artifacts_count": 2**63}]
)
def test_a_wrong_value_writes_nothing(consensus_store: ConsensusStore, wrong: dict[str, Any]) -> None:
    """A value that cannot be accepted is refused before anything is written."""
    with consensus_store.unit_of_work() as uow, pytest.raises(InvalidValueError) as raised:
        uow.syntheses.add(**synthesis_values() | wrong)

    assert raised.value.field == next(iter(wrong))
    assert all_syntheses(consensus_store) == []


# Comparison and failing sides -------------------------------------------------------------------------------

FAULTS = {
    "consensus_synthesis": {
        "rewritten": ("UPDATE consensus_synthesis SET output_markdown = 'x' WHERE id = NEW.id", "output_markdown"),
        "flag": ("UPDATE consensus_synthesis SET degraded = 2 WHERE id = NEW.id", "degraded"),
        "count": ("UPDATE consensus_synthesis SET artifacts_count = NULL WHERE id = NEW.id", "artifacts_count"),
        "deleted": ("DELETE FROM consensus_synthesis WHERE id = NEW.id", None),
    },
    "consensus_syntheses": {
        "rewritten": ("UPDATE consensus_syntheses SET conflicts = NULL WHERE id = NEW.id", "conflicts"),
        "flag": ("UPDATE consensus_syntheses SET degraded = 7 WHERE id = NEW.id", "degraded"),
        "time": ("UPDATE consensus_syntheses SET created_at = NULL WHERE id = NEW.id", "created_at"),
        "deleted": ("DELETE FROM consensus_syntheses WHERE id = NEW.id", None),
    },
}
faults = pytest.mark.parametrize(
    ("table", "fault"), [(table, fault) for table, mine in FAULTS.items() for fault in mine]
)
VALUES: dict[str, Any] = synthesis_values(
    spec_id="SPEC-NEW", output_markdown="# Synthesis", agreements="", conflicts="[]", created_at=SECOND
)


def lost_by_the_truth(store: ConsensusStore, table: str, fault: str) -> bool:
    """A synthesis that the truth loses at once leaves its run without a row, which is an error, not a mismatch."""
    return store.migration.phase is Phase.CUTOVER and (table, fault) == ("consensus_syntheses", "deleted")


@both_sides
@faults
def test_every_fault_of_a_write_is_seen(every_phase: ConsensusStore, table: str, fault: str) -> None:
    """Triggers that rewrite or delete on either side are seen by the write itself, named, and repaired."""
    does, column = FAULTS[table][fault]
    behind(every_phase).fault("AFTER INSERT", table, does)
    before = both(every_phase)
    if lost_by_the_truth(every_phase, table, fault):
        with pytest.raises(StorageError), every_phase.unit_of_work() as uow:
            uow.syntheses.add(**VALUES)
        assert both(every_phase) == before
        return
    with every_phase.unit_of_work() as uow:
        added = uow.syntheses.add(**VALUES)

    found = every_phase.migration.mismatches()
    assert {(entry.pair, entry.key, entry.found_by) for entry in found} == {("syntheses", added.id, "write")}
    assert column in {entry.column for entry in found}
    behind(every_phase).heal()
    every_phase.migration.reconcile()
    assert every_phase.migration.mismatches() == []
    assert every_phase.migration.verify().clean


@both_sides
@faults
def test_a_fault_can_be_made_to_fail_the_write(every_phase: ConsensusStore, table: str, fault: str) -> None:
    """With RAISE, a fault takes the whole unit of work with it."""
    behind(every_phase).fault("AFTER INSERT", table, FAULTS[table][fault][0])
    before = both(every_phase)
    settings = Settings(on_mismatch=OnMismatch.RAISE)

    with (
        ConsensusStore.open(every_phase.engine.url, settings=settings) as store,
        pytest.raises(StorageError if lost_by_the_truth(every_phase, table, fault) else MismatchError),
        store.unit_of_work() as uow,
    ):
        uow.artifacts.add(**artifact_values())
        uow.syntheses.add(**VALUES)

    assert both(every_phase) == before


SIDES = {Phase.DUAL_WRITE: ("consensus_synthesis", "consensus_syntheses")}
SIDES[Phase.CUTOVER] = (SIDES[Phase.DUAL_WRITE][1], SIDES[Phase.DUAL_WRITE][0])


@both_sides
def test_a_failing_shadow_side_never_loses_the_write(every_phase: ConsensusStore) -> None:
    """The synthesis stands and is read, its artifacts too; reconcile gives the shadow side what it missed."""
    _, shadow = SIDES[every_phase.migration.phase]
    behind(every_phase).fault("BEFORE INSERT", shadow, REFUSE)
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW", created_at=SECOND))
        added = uow.syntheses.add(**VALUES)

    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.syntheses.latest(spec_id="SPEC-NEW", stage="spec-plan") == added
        before = uow.runs.list(spec_id="SPEC-NEW")
    assert [(e.key, e.kind) for e in every_phase.migration.mismatches()] == [(added.id, "shadow_failed")]
    behind(every_phase).heal()
    every_phase.migration.reconcile()
    assert every_phase.migration.verify().clean
    legacy, normalized = both(every_phase)
    assert legacy == normalized
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.runs.list(spec_id="SPEC-NEW") == before


@both_sides
def test_a_failing_source_of_truth_fails_the_write(every_phase: ConsensusStore) -> None:
    """What the truth refuses is refused, and neither side keeps it."""
    truth, _ = SIDES[every_phase.migration.phase]
    behind(every_phase).fault("BEFORE INSERT", truth, REFUSE)
    before = both(every_phase)

    with pytest.raises(StorageError), every_phase.unit_of_work() as uow:
        uow.syntheses.add(**VALUES)

    assert both(every_phase) == before
