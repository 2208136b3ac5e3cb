"""The fingerprint of a declaration: it tells declarations apart, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Text, case, cast, func, literal

from consensus_orm import Earliest, Mapping, Pair
from consensus_orm.consensus.declaration import ARTIFACTS, CONSENSUS, RUNS, SYNTHESES
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun
from consensus_orm.databases.opening import rendering
from consensus_orm.declaration.fingerprint import fingerprint
from consensus_orm.statements.pairs import Statements

RELEASED = "c5c52200d5dba7d6"
"""That of the consensus declaration: certificates in the field speak of it."""


def test_the_consensus_declaration_is_the_one_that_certificates_speak_of() -> None:
    """Another value here voids every certificate in the field: the declaration must have changed, and not its words."""
    assert fingerprint(CONSENSUS) == RELEASED
    assert {Statements(CONSENSUS, rendering(kind)).fingerprint for kind in ("sqlite", "postgresql")} == {RELEASED}


def test_it_needs_no_legacy_model() -> None:
    """A program at CONTRACT tells the fingerprint without importing what it left behind."""
    code = (
        "import sys; from consensus_orm.consensus.declaration import CONSENSUS;"
        " from consensus_orm.declaration.fingerprint import fingerprint; print(fingerprint(CONSENSUS));"
        " assert 'consensus_orm.consensus.models.legacy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == RELEASED


def _stamped(rule: Any) -> Mapping:
    return Mapping((replace(ARTIFACTS, computed={AgentOutput.output_timestamp: rule}), SYNTHESES))


def _with(**changes: Any) -> Mapping:
    return Mapping((replace(ARTIFACTS, **changes), SYNTHESES))


def _swapped() -> Mapping:
    carried = dict(ARTIFACTS.carried)
    carried["spec_id"], carried["stage"] = carried["stage"], carried["spec_id"]
    return _with(carried=carried)


def _parent(**changes: Any) -> Mapping:
    parent = replace(RUNS, **changes)
    return Mapping(tuple(replace(pair, parent=parent) for pair in CONSENSUS.pairs))


RULES = (
    lambda row: func.length(row.created_at),
    lambda row: func.length(row.run_id),
    lambda row: func.lower(row.created_at),
    lambda row: row.created_at + 1,
    lambda row: row.created_at + 2,
    lambda row: row.created_at - 1,
    lambda row: row.created_at + literal("1"),
    lambda row: -row.created_at,
    lambda row: cast(row.created_at, Text),
    lambda row: case((row.run_id == "a", 1), else_=0),
    lambda row: case((row.run_id == "b", 1), else_=0),
    lambda row: case((row.run_id != "a", 1), else_=0),
    lambda row: case((row.run_id == "a", 0), else_=1),
    lambda row: row.created_at.op("#")(1),
    lambda row: row.created_at.op("~")(1),
)
CHANGED = (
    CONSENSUS,
    Mapping((SYNTHESES, ARTIFACTS)),
    _with(name="rows"),
    _with(legacy="another=consensus_orm.consensus.models.legacy:ConsensusArtifact"),
    _with(kept=()),
    _with(newest=None),
    _with(adopted={}),
    _swapped(),
    _parent(computed={}),
    _parent(derived={ConsensusRun.run_timestamp: Earliest()}),
    *(_stamped(rule) for rule in RULES),
)


def test_every_change_of_a_declaration_changes_it() -> None:
    """No two of these say the same, so none may be taken for another."""
    found = [fingerprint(mapping) for mapping in CHANGED]
    assert len(set(found)) == len(CHANGED)


@pytest.mark.parametrize("again", [CONSENSUS, Mapping(tuple(replace(pair) for pair in CONSENSUS.pairs))])
def test_the_same_declaration_has_the_same_one(again: Mapping) -> None:
    """Neither the objects nor the order in which columns are written down count."""
    turned = Mapping(tuple(replace(pair, carried=dict(reversed(list(pair.carried.items())))) for pair in again.pairs))
    assert fingerprint(again) == fingerprint(turned) == RELEASED
    assert isinstance(again.pairs[0], Pair)
