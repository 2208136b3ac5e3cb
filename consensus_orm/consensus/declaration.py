"""The one declaration: what in the consensus tables corresponds to what.

This is the only place that says so. Everything the package does with these tables follows from it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, or_

from consensus_orm.consensus.expressions import flagged, run_key, says, synthesis_json
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun, ConsensusSynthesisRecord
from consensus_orm.declaration.expressions import milliseconds, time_from
from consensus_orm.declaration.pairs import Earliest, Latest, Mapping, Pair, Parent, Row

__all__ = ["ARTIFACTS", "CONSENSUS", "RUNS", "SYNTHESES", "consensus_ok", "degraded"]


def consensus_ok(synthesis: Row) -> ColumnElement[Any]:
    """Whether a synthesis stands for agreement: its status does not say failed."""
    return ~says(synthesis.status, "failed")


def degraded(synthesis: Row) -> ColumnElement[Any]:
    """Whether a synthesis was made with less than all agents: by its flag, or by its status."""
    return or_(flagged(synthesis.degraded), says(synthesis.status, "degraded"))


def _as_json(synthesis: Row) -> ColumnElement[Any]:
    return synthesis_json(
        synthesis.output_markdown,
        synthesis.output_path,
        synthesis.status,
        synthesis.artifacts_count,
        synthesis.agreements,
        synthesis.conflicts,
    )


RUNS = Parent(
    ConsensusRun,
    identity=(ConsensusRun.spec_id, ConsensusRun.stage, ConsensusRun.run_key),
    computed={ConsensusRun.run_key: lambda row: run_key(row.run_id, row.created_at)},
    derived={
        ConsensusRun.run_timestamp: Earliest(),
        ConsensusRun.consensus_ok: Latest("syntheses", consensus_ok, otherwise="TRUE"),
        ConsensusRun.degraded: Latest("syntheses", degraded, otherwise="FALSE"),
        ConsensusRun.synthesis_json: Latest("syntheses", _as_json, otherwise="NULL"),
    },
)

ARTIFACTS = Pair(
    "artifacts",
    legacy="consensus_artifacts=consensus_orm.consensus.models.legacy:ConsensusArtifact",
    normalized=AgentOutput,
    parent=RUNS,
    link=AgentOutput.run_id,
    carried={
        "spec_id": ConsensusRun.spec_id,
        "stage": ConsensusRun.stage,
        "agent_name": AgentOutput.agent_name,
        "content_json": AgentOutput.content,
        "response_text": AgentOutput.response_text,
        "run_id": ConsensusRun.run_id,
        "created_at": AgentOutput.created_at,
    },
    computed={AgentOutput.output_timestamp: lambda row: milliseconds(row.created_at)},
    kept=(AgentOutput.model_version,),
    marker=AgentOutput.mirrored,
    newest=AgentOutput.output_timestamp,
    adopted={"created_at": lambda table: time_from(table.c.output_timestamp)},
)

SYNTHESES = Pair(
    "syntheses",
    legacy="consensus_synthesis=consensus_orm.consensus.models.legacy:ConsensusSynthesis",
    normalized=ConsensusSynthesisRecord,
    parent=RUNS,
    link=ConsensusSynthesisRecord.run_id,
    carried={
        "spec_id": ConsensusRun.spec_id,
        "stage": ConsensusRun.stage,
        "output_markdown": ConsensusSynthesisRecord.output_markdown,
        "output_path": ConsensusSynthesisRecord.output_path,
        "status": ConsensusSynthesisRecord.status,
        "artifacts_count": ConsensusSynthesisRecord.artifacts_count,
        "agreements": ConsensusSynthesisRecord.agreements,
        "conflicts": ConsensusSynthesisRecord.conflicts,
        "degraded": ConsensusSynthesisRecord.degraded,
        "run_id": ConsensusRun.run_id,
        "created_at": ConsensusSynthesisRecord.created_at,
    },
    computed={ConsensusSynthesisRecord.synthesis_timestamp: lambda row: milliseconds(row.created_at)},
    marker=ConsensusSynthesisRecord.mirrored,
    newest=ConsensusSynthesisRecord.synthesis_timestamp,
    adopted={"created_at": lambda table: time_from(table.c.synthesis_timestamp)},
)

CONSENSUS = Mapping((ARTIFACTS, SYNTHESES))
