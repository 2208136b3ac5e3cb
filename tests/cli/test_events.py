"""`--on-event`: a command of the operator hears what happens, and no step depends on it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import consensus_orm
from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.cli.events import Notifier
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


def test_a_command_that_fails_stops_nothing(database: Database) -> None:
    """The step is taken, with its exit code; the first failure is told at once, and the end has their number."""
    done = call(database, "advance", "dual_write", "--on-event", f"{sys.executable} -c 'raise SystemExit(3)'")
    assert "the phase is DUAL_WRITE" in done.stdout
    assert "the command of --on-event failed for phase_changed: exit code 3" in done.stderr
    assert "commands of --on-event failed: 1" in done.stderr
    with ConsensusStore.open(database.where, settings=BASE) as store:
        assert store.migration.phase is Phase.DUAL_WRITE


def test_a_failure_is_told_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    """Not for each event, and again after a command that succeeded: a keeper runs for weeks."""
    succeeds = "import os; raise SystemExit(os.environ['CONSENSUS_ORM_EVENT'] != 'alarm')"
    with Notifier([sys.executable, "-c", succeeds], "a.db") as notifier:
        for event in ("reject", "mismatch", "alarm", "reject"):
            notifier.tell(event)
    told = capsys.readouterr().err
    assert (told.count("--on-event failed for reject: exit code 1"), told.count("failed for mismatch")) == (2, 0)
    assert "commands of --on-event failed: 3" in told


@pytest.mark.skipif(shutil.which("curl") is None, reason="the documentation shows curl")
def test_the_webhook_of_the_documentation(database: Database) -> None:
    """The server gets the document of each event as its own request."""
    page = (Path(consensus_orm.__file__).parent / "docs" / "operate.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"--on-event \"(curl .*?)\"", page)
    got: list[tuple[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((str(self.headers["Content-Type"]), json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        done = call(database, "advance", "dual_write", "--on-event", re.sub(r"https://\S+", url, command))
        server.shutdown()
    assert [(kind, event["event"], event["phase"]) for kind, event in got] == [
        ("application/json", "phase_changed", "DUAL_WRITE")
    ]
    assert "warning" not in done.stderr


@pytest.mark.parametrize("command", ["", "echo 'not closed", "/nowhere/at/all"])
def test_a_command_that_is_none_is_wrong_usage(command: str, database: Database) -> None:
    """Nothing is done."""
    before = database.everything()
    call(database, "advance", "--on-event", command, code=2)
    assert database.everything() == before
