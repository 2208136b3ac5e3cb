"""`--on-event`: a command of the operator hears what happens, and no step depends on it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from tests.migration.steps import BASE
from tests.support.commands import without_settings
from tests.support.databases import Database, build_legacy

pytestmark = pytest.mark.long

KEEP = "import os, sys; open(sys.argv[1], 'a').write(os.environ['CONSENSUS_ORM_EVENT'] + ' ' + sys.stdin.read())"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_settings(monkeypatch)
    monkeypatch.setenv("CONSENSUS_ORM_BACKUP_DIR", str(tmp_path))


@pytest.fixture
def database(new_database: Database) -> Database:
    build_legacy(new_database.where)
    return new_database


def call(database: Database, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["--url", str(database.where), *words])
    assert result.exit_code == code, result.output
    return result


def heard(log: Path) -> list[dict[str, Any]]:
    events = []
    for line in log.read_text().splitlines():
        name, _, document = line.partition(" ")
        events.append(json.loads(document))
        assert events[-1]["event"] == name
    return events


def keeping(log: Path) -> list[str]:
    return ["--on-event", shlex.join([sys.executable, "-c", KEEP, str(log)])]


def test_changes_of_phase_steps_and_mismatches_are_heard(database: Database, tmp_path: Path) -> None:
    """In order, each as one document, without contents of rows; the document of the command stays whole."""
    log = tmp_path / "events"
    told = call(database, "migrate", "--to", "cutover", "--no-soak", "--json", *keeping(log))
    assert json.loads(told.stdout)["phase"] == "CUTOVER"
    events = heard(log)
    assert all(event["database"] and event["at"].endswith("+00:00") for event in events)
    assert [event["action"] for event in events if event["event"] == "step_done"] == ["upgrade", "backfill", "verify"]
    changes = [(event["before"], event["phase"]) for event in events if event["event"] == "phase_changed"]
    assert changes == [("EXPAND", "DUAL_WRITE"), ("DUAL_WRITE", "CUTOVER")]
    database.unnoticed("UPDATE consensus_artifacts SET content_json = 'damaged' WHERE id = 1")
    log.unlink()
    call(database, "verify", *keeping(log), code=1)
    events = heard(log)
    (mismatch,) = [event for event in events if event["event"] == "mismatch"]
    assert (mismatch["pair"], mismatch["key"], mismatch["kind"]) == ("artifacts", 1, "different")
    assert "damaged" not in log.read_text()
    assert events[-1]["clean"] is False


@pytest.mark.parametrize("command", ["/nowhere/at/all", f"{sys.executable} -c 'raise SystemExit(3)'"])
def test_a_command_that_fails_stops_nothing(command: str, database: Database) -> None:
    """The step is taken, with its exit code, and a warning counts the commands that failed."""
    done = call(database, "advance", "dual_write", "--on-event", command)
    assert "the phase is DUAL_WRITE" in done.stdout
    assert "commands of --on-event failed: 1" in done.stderr
    with ConsensusStore.open(database.where, settings=BASE) as store:
        assert store.migration.phase is Phase.DUAL_WRITE


@pytest.mark.parametrize("command", ["", "echo 'not closed"])
def test_a_command_that_is_none_is_wrong_usage(command: str, database: Database) -> None:
    """Nothing is done."""
    before = database.everything()
    call(database, "advance", "--on-event", command, code=2)
    assert database.everything() == before
