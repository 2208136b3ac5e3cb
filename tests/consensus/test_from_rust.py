"""For those who come from the Rust program: the table names methods that exist, and the example runs as it stands."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import consensus_orm
from consensus_orm import ConsensusStore, ExecutionTracker
from consensus_orm.testing import artifact_values, spawn_values
from tests.support.documentation import block

DOCS = Path(consensus_orm.__file__).parent / "docs"
TABLE = (DOCS / "from-rust.md").read_text(encoding="utf-8")

NAMED = (
    *("init", "store_artifact", "query_artifacts", "store_synthesis", "query_latest_synthesis", "record_agent_spawn"),
    *("get_agent_spawn_info", "get_agent_name", "query_extraction_failures", "get_responses_for_branch"),
    *("cleanup_old_executions", "execute_in_transaction", "batch_insert", "upsert_consensus_run", "run_vacuum_cycle"),
)

PASS, FAIL = json.dumps({"verdict": "pass"}), json.dumps({"verdict": "fail"})


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("coordination", DOCS / "coordination.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coordination"] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_has_each_method_and_names_ours(consensus_store: ConsensusStore) -> None:
    """Every method of the Rust program has its row, and each of ours that is named can be called."""
    for name in NAMED:
        assert f"| `{name}`" in TABLE or f", `{name}`" in TABLE, name
    with consensus_store.unit_of_work() as uow:
        owners = {"uow": uow, "store": consensus_store, "ConsensusStore": ConsensusStore}
        owners["ExecutionTracker"] = ExecutionTracker
        paths = set(re.findall(r"`((?:uow|store|ConsensusStore|ExecutionTracker)\.[\w.]+)", TABLE))
        assert len(paths) > 20
        for path in paths:
            owner, *names = path.split(".")
            found: Any = owners[owner]
            for name in names:
                found = getattr(found, name)
            assert callable(found), path


def test_the_differences_are_as_told(consensus_store: ConsensusStore) -> None:
    """Order of failures and branches, the ties of artifacts, and what a clean-up leaves."""
    with consensus_store.unit_of_work() as uow:
        added = uow.artifacts.add_many([artifact_values(spec_id="S", stage="s")] * 3)
        assert uow.artifacts.list(spec_id="S", stage="s") == added[::-1]
        for agent_id in ("agent_1", "agent_2"):
            uow.executions.record_spawn(**spawn_values(agent_id=agent_id, spec_id="S", stage="s", branch_id="b"))
            uow.executions.record_extraction_failure(agent_id, "x" * 2000, "no JSON")
        failures = uow.executions.extraction_failures("S", newest_first=True)
        assert [(each.agent_id, len(each.response_text or "")) for each in failures] == [
            ("agent_2", 2000),
            ("agent_1", 2000),
        ]
        assert uow.executions.for_branch(spec_id="S", stage="s", branch_id="b", newest_first=True) == failures


def test_the_example_is_short() -> None:
    """About a hundred lines."""
    assert len((DOCS / "coordination.py").read_text(encoding="utf-8").splitlines()) < 140


def test_a_round(example: Any, consensus_store: ConsensusStore, tmp_path: Path) -> None:
    """All agree; the verdict is the latest run, the judged one is exported, and a repeated gate adds no synthesis."""
    tracker = ExecutionTracker(spec_id="S", stage="plan", run_id="run_1")
    run = example.coordinate(consensus_store, tracker, {"gemini": lambda _: PASS, "claude": lambda _: PASS}, tmp_path)
    assert (run.run_id, run.consensus_ok, run.degraded, len(run.outputs)) == ("run_1", True, False, 2)
    assert (tmp_path / "S_plan_synthesis.md").read_text().startswith("# S plan: ok")
    example.gate(consensus_store, tracker)
    with consensus_store.unit_of_work(read_only=True) as uow:
        assert uow.syntheses.count() == 1
        latest = uow.runs.latest(spec_id="S", stage="plan")
        assert latest is not None
        assert [output.agent_name for output in latest.outputs] == ["consensus-verdict"] * len(latest.outputs)


@pytest.mark.parametrize(
    ("answers", "status"),
    [((PASS, PASS), "ok"), ((PASS, "thinking ..."), "degraded"), ((PASS, FAIL), "failed"), (("?", "!"), "failed")],
    ids=["agree", "one cannot be parsed", "disagree", "none"],
)
def test_the_verdict(
    example: Any, consensus_store: ConsensusStore, tmp_path: Path, answers: tuple[str, ...], status: str
) -> None:
    """What the gate says of a round, and what is kept of answers that are not JSON."""
    agents = {f"agent_{number}": (lambda _, said=said: said) for number, said in enumerate(answers)}
    run = example.coordinate(
        consensus_store, ExecutionTracker(spec_id="S", stage="plan", run_id="run_1"), agents, tmp_path
    )
    assert (run.syntheses[0].status, run.consensus_ok) == (status, status != "failed")
    with consensus_store.unit_of_work(read_only=True) as uow:
        failed = uow.executions.extraction_failures("S")
    assert [each.response_text for each in failed] == [said for said in answers if said not in (PASS, FAIL)]


def test_a_round_goes_on_after_a_crash(example: Any, consensus_store: ConsensusStore, tmp_path: Path) -> None:
    """An agent that completed before is not asked again; a new process begins with a new tracker of the same run."""
    asked: list[str] = []

    def agent(name: str, *, dies: bool = False) -> Any:
        def answer(_: str) -> str:
            asked.append(name)
            if dies:
                raise KeyboardInterrupt
            return PASS

        return answer

    of_run = {"spec_id": "S", "stage": "plan", "run_id": "run_1"}
    with pytest.raises(KeyboardInterrupt):
        example.coordinate(
            consensus_store, ExecutionTracker(**of_run), {"a": agent("a"), "b": agent("b", dies=True)}, tmp_path
        )
    run = example.coordinate(consensus_store, ExecutionTracker(**of_run), {"a": agent("a"), "b": agent("b")}, tmp_path)
    assert (asked, len(run.outputs), run.consensus_ok) == (["a", "b", "b"], 2, True)


@pytest.mark.long
@pytest.mark.sqlite
def test_the_example_as_a_program(tmp_path: Path) -> None:
    """The commands of the page run it, on a file that is not there yet, and print it; alone it tells its arguments."""

    def call(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    runs, prints = ([*shlex.split(line, comments=True)][2:] for line in block("from-rust", "console").splitlines())
    assert call(runs).stdout.split()[0] == "degraded"
    assert len(list((tmp_path / "evidence").iterdir())) == 1
    assert call(prints).stdout == (DOCS / "coordination.py").read_text(encoding="utf-8") + "\n"
    alone = call(runs[:2])
    assert (alone.returncode, "database folder" in alone.stderr) == (2, True)
