"""The main job, end to end, as an operator does it: the command line on a database, judged by raw SQL.

It is shaped like the best-known file of the field: five rounds without a run id, one run id over three stages, four
syntheses, executions in ten columns; made by frozen SQL.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from tests.field import builders, server
from tests.support import oracle
from tests.support.databases import Database
from tests.support.engines import lacking

ROUNDS = {
    "2025-11-03 19:33:48": 12,
    "2025-11-03 23:25:13": 12,
    "2025-11-04 00:29:08": 6,
    "2025-11-04 01:39:31": 6,
    "2025-11-04 02:23:58": 23,
}
RUN = "run_SPEC-KIT-900_1762744939_2c1010ad"
STAGES = {"spec-plan": ("2025-11-10 03:26:38", 3), "spec-tasks": ("2025-11-10 03:32:23", 3)}
STAGES["spec-implement"] = ("2025-11-10 03:41:09", 4)

DDL = """
CREATE TABLE consensus_artifacts (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
 agent_name TEXT NOT NULL, content_json TEXT NOT NULL, response_text TEXT, run_id TEXT,
 created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE consensus_synthesis (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
 output_markdown TEXT NOT NULL, output_path TEXT, status TEXT NOT NULL, artifacts_count INTEGER, agreements TEXT,
 conflicts TEXT, degraded BOOLEAN DEFAULT 0, run_id TEXT, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_spec_stage ON consensus_artifacts(spec_id, stage);
CREATE INDEX idx_synthesis_spec_stage ON consensus_synthesis(spec_id, stage);
"""
EXECUTIONS = """
CREATE TABLE agent_executions (agent_id TEXT PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
 phase_type TEXT NOT NULL, agent_name TEXT NOT NULL, spawned_at TEXT NOT NULL, completed_at TEXT, response_text TEXT,
 run_id TEXT, extraction_error TEXT);
CREATE INDEX idx_agent_executions_spec ON agent_executions(spec_id, stage);
CREATE INDEX idx_agent_executions_run ON agent_executions(run_id);
INSERT INTO agent_executions VALUES ('1ebf', 'SPEC-KIT-900', 'spec-plan', 'quality_gate', 'gemini',
 '2025-11-12 02:38:16', NULL, NULL, NULL, NULL);
"""
LEGACY = ("consensus_artifacts", "consensus_synthesis")
TABLES = (*LEGACY, "agent_executions")


def content(number: int) -> str:
    """Now JSON, now a template, now a log, now nothing."""
    kinds = (
        '{"stage": "spec-plan", "nr": %d}',
        "${TEMPLATE} – #%d 🙂",
        "[2025-11-04T02:11:59] codex \u2011 %d",
        "%.0d",
    )
    return kinds[number % 4] % number


@pytest.fixture
def database(new_database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Database:
    found = new_database
    monkeypatch.setenv("CONSENSUS_ORM_BACKUP_DIR", str(tmp_path))
    found.script((DDL if found.kind == "sqlite" else server.ARTIFACTS + server.SYNTHESIS) + EXECUTIONS)
    artifact = (
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id, created_at)"
        " VALUES ('SPEC-KIT-900', ?, ?, ?, ?, ?)"
    )
    for at, count in ROUNDS.items():
        for n in range(count):
            found.rows_of(artifact, "spec-implement", ("gemini", "claude", "code")[n % 3], content(n), None, at)
    for stage, (at, count) in STAGES.items():
        for n in range(count):
            found.rows_of(artifact, stage, f"agent-{n}", content(n), RUN, at)
    synthesis = (
        "INSERT INTO consensus_synthesis (spec_id, stage, output_markdown, output_path, status, artifacts_count,"
        " run_id, created_at) VALUES ('SPEC-KIT-900', ?, ?, ?, 'ok', ?, ?, ?)"
    )
    found.rows_of(synthesis, "spec-implement", "# Plan", "/docs/a.md", 23, None, "2025-11-04 02:23:58")
    for stage, (at, count) in STAGES.items():
        found.rows_of(synthesis, stage, "# Plan\n" * 1000, "/docs/b.md", count, RUN, at)
    return found


def command(database: Database, *words: str) -> Any:
    """Run a command; what it says as JSON."""
    done = CliRunner().invoke(main, ["--url", str(database.where), *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def everything(database: Database) -> tuple[Any, ...]:
    """What an application reads."""
    with ConsensusStore.open(database.where) as store, store.unit_of_work(read_only=True) as uow:
        return (
            uow.artifacts.list(),
            uow.artifacts.list(run_id=RUN, limit=5),
            uow.syntheses.list(),
            uow.runs.list(spec_id="SPEC-KIT-900"),
            uow.executions.in_flight(),
            uow.artifacts.specs(),
        )


def test_a_database_goes_to_contract_and_back_with_nothing_lost(database: Database) -> None:
    """69 artifacts and 4 syntheses become 8 runs, read the same in every phase, and come back byte for byte."""
    definitions, *found = database.image(*TABLES)
    command(database, "upgrade")  # before it, nobody reads a server
    before = everything(database)
    assert [len(part) for part in before] == [69, 5, 4, 8, 1, 1]

    for phase in list(Phase)[1:]:
        command(database, "migrate", "--to", phase.name.lower(), "--no-soak")
        assert everything(database) == before, phase
    status = command(database, "status")
    assert (status["phase"], status["mismatches"], status["rejects"]) == ("CONTRACT", 0, 0)
    assert [(pair["name"], pair["normalized_rows"]) for pair in status["pairs"]] == [
        ("artifacts", 69),
        ("syntheses", 4),
    ]
    assert database.scalar("SELECT count(*) FROM consensus_runs") == 8
    assert not set(LEGACY) & set(database.tables())

    command(database, "rollback", "expand")

    assert everything(database) == before
    again, *back = database.image(*TABLES)
    assert back == found
    assert but_for_triggers(again) == but_for_triggers(definitions) != []


def but_for_triggers(definitions: Any) -> list[Any]:
    return sorted(each for each in definitions if each[0] != "trigger")


AT_CONTRACT = """
import sys
from consensus_orm import ConsensusStore
def watched(uow):
    getattr(uow._driver, "set_trace_callback", id)(print)  # what a server is sent is seen on the way to it
with ConsensusStore.open(sys.argv[1]) as store:
    with store.unit_of_work() as uow:
        watched(uow)
        uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="{}")
        uow.syntheses.add(spec_id="S", stage="plan", output_markdown="# P", status="ok")
        uow.artifacts.add_many([dict(spec_id="T", stage="plan", agent_name="a", content_json="{}")])
        uow.artifacts.delete(spec_id="T")
    with store.unit_of_work(read_only=True) as uow:
        watched(uow)
        assert uow.artifacts.count() and uow.artifacts.list(limit=3) and uow.syntheses.list()
        assert uow.runs.latest(spec_id="S", stage="plan")
loaded = [name for name in sys.modules if name.startswith("consensus_orm") and name.endswith("models.legacy")]
assert not loaded, loaded
"""


def test_at_contract_nothing_legacy_is_imported_or_named(database: Database) -> None:
    """At CONTRACT a write and a read import no legacy module, and no statement names a legacy table."""
    command(database, "migrate", "--no-soak")
    sent: list[bytes] = []
    with contextlib.ExitStack() as stack:
        url = str(database.where)
        if database.kind != "sqlite":
            url = stack.enter_context(lacking(url, seen=sent.append))
        done = subprocess.run([sys.executable, "-c", AT_CONTRACT, url], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout + b"".join(sent)
    assert b"agent_outputs" in told
    assert [name for name in LEGACY if re.search(rb"\b%s\b" % name.encode(), told)] == []


@pytest.mark.parametrize("build", [builders.final_build, builders.dual_write_build])
def test_a_founding_file_is_backed_up_before_its_tables_are_rewritten(
    build: Callable[[Path], None], tmp_path: Path
) -> None:
    """The upgrade that drops founding tables leaves a verified copy of the file as it was, named in the audit."""
    path = tmp_path / "founding.db"
    build(path)
    before = {table: oracle.rows(path, table) for table in oracle.tables(path)}
    with ConsensusStore.open(path) as store:
        store.migration.upgrade(rewrite=True)
        store.migration.upgrade(rewrite=True)
        (backup,) = [entry.detail["backup"] for entry in store.migration.history() if entry.action == "backup"]
    assert [str(file) for file in tmp_path.glob("*.before-*")] == [backup]
    assert {table: oracle.rows(Path(backup), table) for table in oracle.tables(Path(backup))} == before


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSENSUS_ORM_URL", raising=False)
