"""The one declaration: what in the consensus tables corresponds to what.

This is the only place that says so. Everything the package does with these tables follows from it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, column, or_
from sqlalchemy.orm import InstrumentedAttribute

from consensus_orm.consensus.expressions import flagged, run_key, says, synthesis_json
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun, ConsensusSynthesisRecord
from consensus_orm.declaration.expressions import milliseconds, time_from
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.rules import Computed, Earliest, Latest

__all__ = ["ARTIFACTS", "CONSENSUS", "SYNTHESES", "consensus_ok", "degraded"]


def consensus_ok(status: ColumnElement[Any]) -> ColumnElement[Any]:
    """Whether a synthesis stands for agreement: its status does not say failed."""
    return ~says(status, "failed")


def degraded(flag: ColumnElement[Any], status: ColumnElement[Any]) -> ColumnElement[Any]:
    """Whether a synthesis was made with less than all agents: by its flag, or by its status."""
    return or_(flagged(flag), says(status, "degraded"))


def _of_runs(link: InstrumentedAttribute[int]) -> Parent:
    status: ColumnElement[Any] = column("status")
    as_json = synthesis_json(
        column("output_markdown"),
        column("output_path"),
        status,
        column("artifacts_count"),
        column("agreements"),
        column("conflicts"),
    )
    return Parent(
        ConsensusRun,
        link=link,
        by={
            ConsensusRun.spec_id: "spec_id",
            ConsensusRun.stage: "stage",
            ConsensusRun.run_key: Computed(run_key(column("run_id"), column("created_at"))),
        },
        columns={ConsensusRun.run_id: "run_id"},
        derived={
            ConsensusRun.run_timestamp: Earliest(),
            ConsensusRun.consensus_ok: Latest("syntheses", consensus_ok(status), otherwise=True),
            ConsensusRun.degraded: Latest("syntheses", degraded(column("degraded"), status), otherwise=False),
            ConsensusRun.synthesis_json: Latest("syntheses", as_json),
        },
    )


ARTIFACTS = Move(
    "consensus_artifacts=consensus_orm.consensus.models.legacy:ConsensusArtifact",
    AgentOutput,
    name="artifacts",
    key={"id": AgentOutput.id},
    columns={
        AgentOutput.agent_name: "agent_name",
        AgentOutput.content: "content_json",
        AgentOutput.response_text: "response_text",
        AgentOutput.created_at: "created_at",
        AgentOutput.output_timestamp: Computed(milliseconds(column("created_at"))),
    },
    parts=[_of_runs(AgentOutput.run_id)],
    newest=AgentOutput.output_timestamp,
    marker=AgentOutput.mirrored,
    adopted={AgentOutput.created_at: time_from(AgentOutput.output_timestamp)},
)

SYNTHESES = Move(
    "consensus_synthesis=consensus_orm.consensus.models.legacy:ConsensusSynthesis",
    ConsensusSynthesisRecord,
    name="syntheses",
    key={"id": ConsensusSynthesisRecord.id},
    columns={
        ConsensusSynthesisRecord.output_markdown: "output_markdown",
        ConsensusSynthesisRecord.output_path: "output_path",
        ConsensusSynthesisRecord.status: "status",
        ConsensusSynthesisRecord.artifacts_count: "artifacts_count",
        ConsensusSynthesisRecord.agreements: "agreements",
        ConsensusSynthesisRecord.conflicts: "conflicts",
        ConsensusSynthesisRecord.degraded: "degraded",
        ConsensusSynthesisRecord.created_at: "created_at",
        ConsensusSynthesisRecord.synthesis_timestamp: Computed(milliseconds(column("created_at"))),
    },
    parts=[_of_runs(ConsensusSynthesisRecord.run_id)],
    newest=ConsensusSynthesisRecord.synthesis_timestamp,
    marker=ConsensusSynthesisRecord.mirrored,
    adopted={ConsensusSynthesisRecord.created_at: time_from(ConsensusSynthesisRecord.synthesis_timestamp)},
)

CONSENSUS = Moves(ARTIFACTS, SYNTHESES)
