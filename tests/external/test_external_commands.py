"""The commands relay and external, as operators and programs call them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from starlette.testclient import TestClient

from consensus_orm import ConsensusStore
from consensus_orm.cli import main
from consensus_orm.external import FileSink, attach
from consensus_orm.report.dashboard import Dashboard
from consensus_orm.testing.sinks import MemorySink
from tests.external.conftest import add
from tests.support.commands import one_line_of, without_settings
from tests.support.databases import Database

SINK = MemorySink("of a module")
NO_SINK = object()


@pytest.fixture
def call(new_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a command on the database, with a folder as its external store."""
    without_settings(monkeypatch)
    monkeypatch.setenv("CONSENSUS_ORM_SINK", f"file:{tmp_path / 'sink'}")
    monkeypatch.setenv("CONSENSUS_ORM_SOAK_MIRROR", "0")
    with ConsensusStore.open(new_database.where) as store:
        store.upgrade()

    def run(words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["--url", str(new_database.where), *words.split()])
        assert result.exit_code == code, result.output
        return result

    return run


def written(database: Database, count: int) -> list[int]:
    with ConsensusStore.open(database.where) as store:
        attach(store)
        return add(store, count)


@pytest.mark.long
def test_the_whole_way(call: Any, new_database: Database, tmp_path: Path) -> None:
    """From OFF to DETACHED and back by commands alone, a difference on the way; exit codes say what was found."""
    sink = FileSink(tmp_path / "sink")
    sink.put("note", "no artifact")
    assert json.loads(call("external status --json").stdout)["stage"] == "OFF"
    call("external advance import")
    call("external import", 1)
    assert "unreadable" in call("external findings", 1).stdout
    assert json.loads(call("external findings show 1").stdout) == {"name": "note", "content": "no artifact"}
    refused = call("external advance mirror --json", 1)
    assert json.loads(refused.stdout)["refused"] == ["1 finding is open; see: " + _spelled(new_database, "findings")]
    assert "no open findings 7, 8" in call("external findings accept 8 1 7 --reason note", 2).stderr
    call("external findings", 1)
    call("external findings accept 1 --reason note")
    assert "the stage is MIRROR" in call("external advance mirror").stdout
    key, *_ = written(new_database, 3)
    assert json.loads(call("relay status --json").stdout)["waiting"] == 3
    call("relay pause --reason upkeep")
    assert "paused" in one_line_of(call("relay run --until-empty", 1))
    call("relay resume")
    assert json.loads(call("relay run --until-empty --json").stdout)["sent"] == 3
    assert "0 mismatches" in call("external verify").stdout
    sink.put(f"artifacts:{key}", "{}")
    assert [each["kind"] for each in json.loads(call("external verify --json", 1).stdout)["differences"]] == [
        "different"
    ]
    call("external repair --reason mine")
    call("relay run --until-empty")
    call("external verify")
    assert "the stage is DETACHED" in call("external advance --reason done").stdout
    assert json.loads(call("external rollback off --json").stdout) == {"stage": "OFF"}
    assert "sink repair" in call("history").stdout


def _spelled(database: Database, command: str) -> str:
    from consensus_orm.cli.app import App

    return App(str(database.where), None).spelled(f"consensus-orm external {command}")


def test_other_commands_write_the_outbox(call: Any, new_database: Database) -> None:
    """A command that writes rows is attached, too."""
    from consensus_orm.cli.app import App

    call("external advance import")
    call("external import")
    call("external advance mirror")
    with App(str(new_database.where), None).store() as store:
        add(store)
    assert json.loads(call("relay status --json").stdout)["waiting"] == 1


@pytest.mark.parametrize(
    "sink",
    ["", "nowhere", "file:", "nosuch.module:SINK", "json:nonesuch", f"{__name__}:NO_SINK", "graph:'", "json:loads"],
)
def test_a_sink_that_cannot_be_made_is_wrong_usage(call: Any, monkeypatch: pytest.MonkeyPatch, sink: str) -> None:
    """One line says how a sink is named; nothing is changed."""
    monkeypatch.setenv("CONSENSUS_ORM_SINK", sink)
    result = call("external status", 2 if sink != "json:loads" else 1)
    assert one_line_of(result)


def test_a_sink_of_a_module(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink of your own is named as module and attribute."""
    monkeypatch.setenv("CONSENSUS_ORM_SINK", f"{__name__}:SINK")
    assert json.loads(call("external advance --json import").stdout) == {"stage": "IMPORT"}
    assert "of a module" in call("external status").stdout


@pytest.mark.long  # for the import of the client
def test_a_program_that_is_missing_is_told(call: Any) -> None:
    """A server that does not start is one line with the command's name."""
    pytest.importorskip("mcp")
    assert "no program" in one_line_of(call("external advance import --sink graph:/no/such/program", 1))


@pytest.mark.long
def test_the_lag_is_shown_everywhere(
    call: Any, new_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status, health, report and dashboard tell how far an external store is behind; at OFF nothing is told."""
    assert (
        json.loads(call("status --json").stdout)["outboxes"]
        == json.loads(call("health --json").stdout)["outboxes"]
        == []
    )
    call("external advance import")
    call("external import")
    call("external advance mirror")
    written(new_database, 1)
    call("relay run --until-empty")
    written(new_database, 2)

    (outbox,) = json.loads(call("status --json").stdout)["outboxes"]
    assert (outbox["waiting"], outbox["sent"], outbox["late"]) == (2, 1, False)
    assert outbox["lag_p99"] is not None
    (cheap,) = json.loads(call("health --json").stdout)["outboxes"]
    assert (cheap["waiting"], cheap["lag_p99"]) == (2, None)
    for command in ("status", "health"):
        assert f"{outbox['sink']}: 2 entries wait, the oldest for" in " ".join(call(command).stdout.split())

    monkeypatch.setenv("CONSENSUS_ORM_RELAY_ALARM_ENTRIES", "1")
    assert "relay run" in json.loads(call("health --json", 1).stdout)["problems"][0]
    call(f"report {tmp_path / 'page.html'}")
    with ConsensusStore.open(new_database.where) as store:
        dashboard = Dashboard(store)
        dashboard.read()
        live = TestClient(dashboard.application(), base_url="http://127.0.0.1").get("/").text
    for page in ((tmp_path / "page.html").read_text(encoding="utf-8"), live):
        assert re.search(r"2 entries wait, the oldest for [^<]*\(ALARM\)", page)
