"""Factories of arguments for the repositories: `uow.artifacts.add(**artifact_values(agent_name="claude"))`."""

# ruff: noqa: D106 - Meta and Params are words of factory-boy

from __future__ import annotations

from typing import Any

from consensus_orm.testing._factory import RANDOM_TEXTS, DictFactory, Iterator, Sequence, Trait, choice
from consensus_orm.testing.shapes import CONTENTS, RUN_IDS

__all__ = [
    "ArtifactValuesFactory",
    "SpawnValuesFactory",
    "SynthesisValuesFactory",
    "artifact_values",
    "spawn_values",
    "synthesis_values",
]


class ArtifactValuesFactory(DictFactory):
    """Arguments of `uow.artifacts.add`."""

    class Params:
        content_shape = "json"
        run_shape = "null"
        random = RANDOM_TEXTS

    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    agent_name = Iterator(["gemini", "claude", "code", "gpt_pro"])
    content_json: Any = choice("content_shape", CONTENTS)
    run_id: Any = choice("run_shape", RUN_IDS)


class SynthesisValuesFactory(DictFactory):
    """Arguments of `uow.syntheses.add`."""

    class Params:
        content_shape = "json"
        run_shape = "null"
        random = RANDOM_TEXTS
        failed = Trait(status="failed")

    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    output_markdown: Any = choice("content_shape", CONTENTS)
    status = "ok"
    artifacts_count = 4
    run_id: Any = choice("run_shape", RUN_IDS)


class SpawnValuesFactory(DictFactory):
    """Arguments of `uow.executions.record_spawn`."""

    agent_id = Sequence(lambda n: f"agent-{n}")
    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    phase_type = "regular_stage"
    agent_name = Iterator(["gemini", "claude", "code", "gpt_pro"])


def artifact_values(**overrides: Any) -> dict[str, Any]:
    """Arguments for `uow.artifacts.add`, some of them given; `content_shape` and `run_shape` name shapes."""
    return dict(ArtifactValuesFactory.build(**overrides))


def synthesis_values(**overrides: Any) -> dict[str, Any]:
    """Arguments for `uow.syntheses.add`, some of them given; `content_shape` and `run_shape` name shapes."""
    return dict(SynthesisValuesFactory.build(**overrides))


def spawn_values(**overrides: Any) -> dict[str, Any]:
    """Arguments for `uow.executions.record_spawn`, some of them given."""
    return dict(SpawnValuesFactory.build(**overrides))
