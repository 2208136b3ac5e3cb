"""The fingerprint of a declaration: it tells declarations apart, and nothing else."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import Text, case, cast, column, func, literal

from consensus_orm import Computed, Convert, Latest, Move, Moves, Parent
from consensus_orm.consensus.declaration import ARTIFACTS, CONSENSUS, SYNTHESES
from consensus_orm.consensus.expressions import run_key
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun
from consensus_orm.databases.opening import rendering
from consensus_orm.declaration.expressions import milliseconds, time_from
from consensus_orm.declaration.fingerprint import fingerprint
from consensus_orm.statements.pairs import Statements

RELEASED = "c5c52200d5dba7d6"
"""That of the consensus declaration: certificates in the field speak of it."""


def test_the_consensus_declaration_is_the_one_that_certificates_speak_of() -> None:
    """Another value here voids every certificate in the field: the declaration must have changed, and not its words."""
    assert fingerprint(CONSENSUS) == RELEASED
    assert {Statements(CONSENSUS, rendering(kind)).fingerprint for kind in ("sqlite", "postgresql")} == {RELEASED}


@pytest.mark.long
def test_it_needs_no_legacy_model() -> None:
    """A program at CONTRACT tells the fingerprint without importing what it left behind."""
    code = (
        "import sys; from consensus_orm.consensus.declaration import CONSENSUS;"
        " from consensus_orm.declaration.fingerprint import fingerprint; print(fingerprint(CONSENSUS));"
        " assert 'consensus_orm.consensus.models.legacy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == RELEASED


LEGACY = "consensus_artifacts=consensus_orm.consensus.models.legacy:ConsensusArtifact"
AT: Any = column("created_at")
RUN = column("run_id", Text)
STAMP: Any = milliseconds(AT)


def _artifacts(
    *,
    legacy: str = LEGACY,
    stamp: Any = STAMP,
    columns: dict[Any, Any] | None = None,
    by: dict[Any, Any] | None = None,
    derived: dict[Any, Any] | None = None,
    **more: Any,
) -> Moves:
    """The consensus data, with the artifacts declared once more and in part otherwise."""
    runs = Parent(
        ConsensusRun,
        link=AgentOutput.run_id,
        by={
            ConsensusRun.spec_id: "spec_id",
            ConsensusRun.stage: "stage",
            ConsensusRun.run_key: Computed(run_key(RUN, AT)),
        }
        | (by or {}),
        columns={ConsensusRun.run_id: "run_id"},
        derived=_derived() if derived is None else derived,
    )
    carried = {
        AgentOutput.agent_name: "agent_name",
        AgentOutput.content: "content_json",
        AgentOutput.response_text: "response_text",
        AgentOutput.created_at: "created_at",
    }
    said = {
        "name": "artifacts",
        "newest": AgentOutput.output_timestamp,
        "adopted": {AgentOutput.created_at: time_from(AgentOutput.output_timestamp)},
        "marker": AgentOutput.mirrored,
    }
    artifacts = Move(
        legacy,
        AgentOutput,
        key={"id": AgentOutput.id},
        columns={AgentOutput.output_timestamp: Computed(stamp)} | carried | (columns or {}),
        parts=[runs],
        **(said | more),
    )
    syntheses = copy.copy(SYNTHESES)
    (parent,) = map(copy.copy, SYNTHESES.parents)
    parent.__dict__ |= {"derived": runs.derived, "derived_columns": runs.derived_columns}
    syntheses.parents = (parent,)
    return Moves(artifacts, syntheses)


def _derived() -> dict[Any, Any]:
    return SYNTHESES.parents[0].derived


def _consensus_ok(rule: Latest) -> dict[Any, Any]:
    return _derived() | {ConsensusRun.consensus_ok: rule}


RULES: tuple[Any, ...] = (
    func.length(AT),
    func.length(RUN),
    func.lower(AT),
    AT + 1,
    AT + 2,
    AT - 1,
    AT + literal("1"),
    -AT,
    cast(AT, Text),
    case((RUN == "a", 1), else_=0),
    case((RUN == "b", 1), else_=0),
    case((RUN != "a", 1), else_=0),
    case((RUN == "a", 0), else_=1),
    AT.op("#")(1),
    AT.op("~")(1),
)
CHANGED = (
    CONSENSUS,
    Moves(SYNTHESES, ARTIFACTS),
    _artifacts(name="rows"),
    _artifacts(legacy="another=consensus_orm.consensus.models.legacy:ConsensusArtifact"),
    _artifacts(columns={AgentOutput.model_version: Computed(func.lower(AT))}),
    _artifacts(newest=None),
    _artifacts(adopted={}),
    _artifacts(marker=None),
    _artifacts(without={"more": "nobody reads it"}),
    _artifacts(columns={AgentOutput.content: Convert("content_json", up=func.hex(RUN), down=AgentOutput.content)}),
    _artifacts(by={ConsensusRun.spec_id: "stage", ConsensusRun.stage: "spec_id"}),
    _artifacts(by={ConsensusRun.run_key: Computed(RUN)}),
    _artifacts(derived=_consensus_ok(Latest("syntheses", column("agreements"), otherwise=True))),
    _artifacts(derived=_consensus_ok(Latest("syntheses", column("status"), otherwise=False))),
    *(_artifacts(stamp=rule) for rule in RULES),
)


def test_every_change_of_a_declaration_changes_it() -> None:
    """No two of these say the same, so none may be taken for another."""
    found = [fingerprint(moves) for moves in CHANGED]
    assert len(set(found)) == len(CHANGED)


def test_the_same_declaration_has_the_same_one() -> None:
    """Neither the objects nor the order in which columns are written down count."""
    assert fingerprint(_artifacts()) == RELEASED
