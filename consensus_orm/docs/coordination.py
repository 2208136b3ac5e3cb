"""One round of agents, as the Rust program coordinates it: spawn, completion, quality gate, verdict, export.

    python -m consensus_orm.docs.coordination artifacts.db evidence/

The database first, memory second: each change is a unit of work of its own, and the tracker counts what is committed.
So a round that was killed anywhere goes on where it stood: agents that completed are not asked again.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from consensus_orm import Artifact, ConsensusStore, ConsensusUnitOfWork, ExecutionTracker, Run

Agent = Callable[[str], str]
"""Answers a prompt; what it says should be JSON."""

VERDICT = "consensus-verdict"
"""The agent name under which the gate keeps its verdict."""


def spawn(store: ConsensusStore, tracker: ExecutionTracker, agents: Mapping[str, Agent]) -> None:
    """Record a spawn for each agent that has none in this run; a repeated call spawns nobody twice."""

    def work(uow: ConsensusUnitOfWork) -> None:
        for name in agents:
            if (agent_id := f"{tracker.run_id}-{name}") not in tracker.expected:
                tracker.spawn(uow, agent_id=agent_id, phase_type="quality_gate", agent_name=name)

    store.run(work)


def complete(store: ConsensusStore, tracker: ExecutionTracker, agent_id: str, said: str) -> None:
    """Keep what an agent said: its completion and its artifact in one unit of work, or the failure to parse it."""
    try:
        json.loads(said)
        problem = None
    except ValueError as error:
        problem = f"no JSON: {error}"

    def work(uow: ConsensusUnitOfWork) -> None:
        if problem is not None:
            tracker.fail(uow, agent_id, said, problem)
            return
        tracker.complete(uow, agent_id, said)
        execution = uow.executions.get(agent_id)
        assert execution is not None
        uow.artifacts.add(
            spec_id=tracker.spec_id,
            stage=tracker.stage,
            run_id=tracker.run_id,
            agent_name=execution.agent_name,  # the name expected of this spawn, whatever the answer says
            content_json=said,
            response_text=said,
        )

    store.run(work)


def judge(artifacts: list[Artifact], expected: int) -> tuple[str, list[str]]:
    """Decide: ok where all answered and agree, degraded where some are missing, failed where they disagree."""
    verdicts = [str(json.loads(artifact.content_json).get("verdict")) for artifact in artifacts]
    if not verdicts or len(set(verdicts)) > 1:
        return "failed", sorted(set(verdicts))
    return ("ok" if len(verdicts) == expected else "degraded"), []


def gate(store: ConsensusStore, tracker: ExecutionTracker) -> Run:
    """Judge the run: its one synthesis, replaced if the gate is repeated, and the verdict as an artifact."""
    of: dict[str, Any] = {"spec_id": tracker.spec_id, "stage": tracker.stage}

    def work(uow: ConsensusUnitOfWork) -> None:
        artifacts = uow.artifacts.list(**of, run_id=tracker.run_id, oldest_first=True)
        status, conflicts = judge(artifacts, len(tracker.expected))
        uow.syntheses.put(
            **of,
            run_id=tracker.run_id,
            output_markdown="\n".join(f"- {each.agent_name}: {each.content_json}" for each in artifacts),
            status=status,
            artifacts_count=len(artifacts),
            conflicts=json.dumps(conflicts),
            degraded=status == "degraded",
        )
        # Without a run id, as the Rust gate stores it: a run of its own, which is then the latest one of the stage.
        uow.artifacts.add(**of, agent_name=VERDICT, content_json=json.dumps({"status": status}))

    store.run(work, exclusive=True)
    with store.unit_of_work(read_only=True) as uow:
        run = uow.runs.latest(**of, with_synthesis=True)
    assert run is not None
    return run


def export(run: Run, folder: Path) -> Path:
    """Write the evidence of a run to a file, when all of it is committed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.spec_id}_{run.stage}_synthesis.md"
    synthesis = run.syntheses[0]
    path.write_text(f"# {run.spec_id} {run.stage}: {synthesis.status}\n\n{synthesis.output_markdown}\n", "utf-8")
    return path


def coordinate(store: ConsensusStore, tracker: ExecutionTracker, agents: Mapping[str, Agent], folder: Path) -> Run:
    """Take a round from spawn to export; call it again after a crash, with a tracker of the same run."""
    store.run(tracker.resync)
    spawn(store, tracker, agents)
    with store.unit_of_work(read_only=True) as uow:
        waiting = uow.executions.in_flight(run_id=tracker.run_id)
    for execution in waiting:
        complete(store, tracker, execution.agent_id, agents[execution.agent_name](f"Judge {tracker.spec_id}"))
    assert tracker.is_complete
    run = gate(store, tracker)
    export(run, folder)
    return run


if __name__ == "__main__":
    answer = json.dumps({"verdict": "pass"})
    team = {"gemini": lambda _: answer, "claude": lambda _: answer, "code": lambda _: "thinking ..."}
    parser = argparse.ArgumentParser(description="One round of three agents, written to a database and exported.")
    parser.add_argument("database", help="a path or URL")
    parser.add_argument("folder", type=Path, help="where the evidence is written")
    given = parser.parse_args()
    with ConsensusStore.open(given.database) as opened:
        of_round = ExecutionTracker(spec_id="SPEC-KIT-900", stage="spec-plan", run_id=f"run_{uuid.uuid4().hex[:8]}")
        judged = coordinate(opened, of_round, team, given.folder)
    sys.stdout.write(f"{judged.syntheses[0].status} {[output.agent_name for output in judged.outputs]}\n")
