"""The evidence of a rehearsal, and the command that makes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.cli import main
from consensus_orm.cli import status as look
from consensus_orm.rehearsal import RehearsalReport, find
from consensus_orm.testing.phases import take_to
from tests.rehearsal.test_rehearsal import FAULTS
from tests.support.databases import Database

pytestmark = pytest.mark.long


def run(database: Database, *words: str) -> Result:
    return CliRunner().invoke(main, ["--url", str(database.where), *words])


# Evidence -------------------------------------------------------------------------------------------------


def test_evidence_holds_in_every_phase(legacy: Database) -> None:
    """A rehearsal counts for its file with its mapping through the whole migration, and new rows do not end it."""
    with ConsensusStore.open(legacy.where) as store:
        assert find(store._units) is None
        store.migration.rehearse()
        for phase in Phase:
            take_to(store, phase)
            with store.unit_of_work() as uow:
                uow.artifacts.add(spec_id="S", stage="plan", agent_name="new", content_json="{}")
            evidence = find(store._units)
            assert evidence is not None
            assert evidence.holds, (phase, evidence.stale)
        assert evidence is not None
        assert evidence.rows_now == evidence.report.rows + len(Phase)


def test_evidence_of_another_mapping(legacy: Database) -> None:
    """A rehearsal made with another mapping does not count."""
    with ConsensusStore.open(legacy.where) as store:
        (place,) = store.migration.rehearse().evidence
        place.write_text(json.dumps({**json.loads(place.read_text()), "mapping": "another"}))
        evidence = find(store._units)

    assert evidence is not None
    assert not evidence.holds
    assert "mapping" in (evidence.stale or "")


def test_evidence_of_another_file(legacy: Database) -> None:
    """A rehearsal does not count once the legacy tables are declared otherwise."""
    with ConsensusStore.open(legacy.where) as store:
        store.migration.rehearse()
    legacy.script("CREATE INDEX more ON consensus_artifacts (agent_name)")
    with ConsensusStore.open(legacy.where) as store:
        evidence = find(store._units)

    assert evidence is not None
    assert "declared otherwise" in (evidence.stale or "")


def test_evidence_that_cannot_be_read(path: Path) -> None:
    """Damaged evidence is no evidence, and no error."""
    path.with_name(path.name + ".rehearsal.json").write_bytes(b'{"at": \xff')
    with ConsensusStore.open(path) as store:
        assert find(store._units) is None


def test_evidence_is_the_report(store: ConsensusStore) -> None:
    """What is kept is what was returned: read back from JSON, it is equal; and it holds no content of a row."""
    report = store.migration.rehearse()
    text = report.evidence[0].read_text()

    assert RehearsalReport.model_validate_json(text) == report.model_copy(update={"evidence": ()})
    with store.unit_of_work(read_only=True) as uow:
        found = {a.content_json for a in uow.artifacts.list() if isinstance(a.content_json, str)}
    assert not [content for content in found if len(content) > 5 and json.dumps(content)[1:-1] in text]


def test_keep(path: Path, tmp_path: Path) -> None:
    """With a folder, copy and evidence are kept there; a copy that is there already is not replaced."""
    folder = tmp_path / "kept" / "here"
    with ConsensusStore.open(path) as store:
        report = store.migration.rehearse(keep=folder)
        with pytest.raises(errors.BackupError, match="exists already"):
            store.migration.rehearse(keep=folder)

    assert report.kept == folder / "artifacts.db.rehearsed"
    assert report.evidence == (
        tmp_path / "artifacts.db.rehearsal.json",
        folder / "artifacts.db.rehearsal.json",
    )
    with ConsensusStore.open(report.kept) as copy:
        assert copy.migration.phase is Phase.EXPAND


# Command line ---------------------------------------------------------------------------------------------


def test_command(legacy: Database) -> None:
    """The command tells each step, the verdict and where the evidence is; status and advance then speak of it."""
    assert "rehearsal       none of this database" in run(legacy, "status").output
    result = run(legacy, "rehearse")

    assert result.exit_code == 0, result.output
    for word in ("backfill", "CONTRACT -> NORMALIZED", "DUAL_WRITE -> EXPAND", "evidence: ", "\npassed\n"):
        assert word in result.output
    assert "rehearsal       passed " in run(legacy, "status").output
    assert json.loads(run(legacy, "status", "--json").output)["rehearsal"]["passed"] is True
    assert "rehearsal: passed " in run(legacy, "advance").output


def test_command_that_does_not_pass(legacy: Database, at_the_end: Callable[[str], None]) -> None:
    """A row that is not what it was makes exit code 1, in text and in JSON; status says so afterwards."""
    at_the_end(FAULTS["a byte"])
    result = run(legacy, "rehearse", "--json")

    assert result.exit_code == 1
    told = json.loads(result.output)
    assert told["passed"] is told["equal"] is False
    assert "NOT passed" in run(legacy, "status").output
    assert json.loads(run(legacy, "advance", "--json").output)["rehearsed"] is False


def test_watch(legacy: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status --watch` looks anew each time, and Ctrl-C ends it with the exit code of the last look."""
    looks = iter((Phase.DUAL_WRITE, Phase.CUTOVER))

    def between(_seconds: float) -> None:
        phase = next(looks, None)
        if phase is None:
            raise KeyboardInterrupt
        with ConsensusStore.open(legacy.where) as store:
            take_to(store, phase)

    monkeypatch.setattr(look, "time", SimpleNamespace(sleep=between))  # others sleep, too, while a phase changes
    result = run(legacy, "status", "--watch")

    assert result.exit_code == 0, result.output
    shown = [line.split()[1] for line in result.output.splitlines() if line.startswith("phase ")]
    assert shown == ["EXPAND,", "DUAL_WRITE,", "CUTOVER,"]
    assert run(legacy, "status", "--watch", "--json").exit_code == 2
