"""Factories of records, one for each: values as the repositories return them, made without a database.

The shapes are those of the model factories: `ArtifactFactory.build(time_shape="null", content_shape="blob")`.
"""

# ruff: noqa: D106 - Meta and Params are words of factory-boy, which reads them and inherits nothing from them
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from consensus_orm.consensus.records import AgentOutput, Artifact, Execution, Record, Run, Synthesis
from consensus_orm.testing._factory import (
    RANDOM,
    Factory,
    Iterator,
    LazyAttribute,
    LazyFunction,
    Sequence,
    Trait,
    choice,
)
from consensus_orm.testing.shapes import BIG_ID, CONTENTS, RUN_IDS, TIMES

__all__ = [
    "AgentOutputRecordFactory",
    "ArtifactFactory",
    "ExecutionFactory",
    "RecordFactory",
    "RunFactory",
    "SynthesisFactory",
]

R = TypeVar("R", bound=Record)


class RecordFactory(Factory[R], Generic[R]):
    """Base of the factories of records, which may hold invalid values, as rows do."""

    class Meta:
        abstract = True

    @classmethod
    def _build(cls, model_class: type[R], *args: Any, **kwargs: Any) -> R:
        if unknown := sorted(kwargs.keys() - model_class.model_fields.keys()):
            raise TypeError(f"{model_class.__name__} has no field {', '.join(unknown)}")
        missing = {name: f.get_default() for name, f in model_class.model_fields.items() if name not in kwargs}
        return model_class.of({**missing, **kwargs})

    _create = _build


class _Shaped(RecordFactory[R], Generic[R]):
    class Meta:
        abstract = True

    class Params:
        time_shape = "second"
        content_shape = "json"
        run_shape = "null"
        big_id = Trait(id=Sequence(lambda n: BIG_ID + n))
        random = RANDOM

    id: Any = Sequence(lambda n: n + 1)
    created_at_raw: Any = choice("time_shape", TIMES)


class ArtifactFactory(_Shaped[Artifact]):
    """Artifacts."""

    class Meta:
        model = Artifact

    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    agent_name = Iterator(["gemini", "claude", "code", "gpt_pro"])
    content_json: Any = choice("content_shape", CONTENTS)
    run_id: Any = choice("run_shape", RUN_IDS)


class AgentOutputRecordFactory(_Shaped[AgentOutput]):
    """Outputs of a run."""

    class Meta:
        model = AgentOutput

    agent_name = Iterator(["gemini", "claude", "code", "gpt_pro"])
    content: Any = choice("content_shape", CONTENTS)


class SynthesisFactory(_Shaped[Synthesis]):
    """Syntheses."""

    class Meta:
        model = Synthesis

    class Params:
        degraded_flag = Trait(degraded=True)
        degraded_status = Trait(status="degraded")
        degraded_null = Trait(degraded=None)
        failed = Trait(status="failed")

    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    output_markdown: Any = choice("content_shape", CONTENTS)
    status: Any = "ok"
    artifacts_count: Any = 4
    agreements: Any = '["both"]'
    conflicts: Any = "[]"
    degraded: Any = False
    run_id: Any = choice("run_shape", RUN_IDS)


class RunFactory(RecordFactory[Run]):
    """Runs of two outputs and a synthesis; `outputs` and `syntheses` take others."""

    class Meta:
        model = Run

    class Params:
        run_shape = "null"
        alone = Trait(outputs=())
        unfinished = Trait(syntheses=())

    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    run_id: Any = choice("run_shape", RUN_IDS)
    started_at: Any = datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)
    consensus_ok: Any = True
    degraded: Any = False
    outputs: Any = LazyFunction(lambda: tuple(AgentOutputRecordFactory.build_batch(2)))
    syntheses: Any = LazyAttribute(
        lambda o: (SynthesisFactory.build(spec_id=o.spec_id, stage=o.stage, run_id=o.run_id),)
    )


class ExecutionFactory(RecordFactory[Execution]):
    """Executions in flight, with the traits `completed` and `failed` (an extraction failure)."""

    class Meta:
        model = Execution

    class Params:
        completed = Trait(completed_at_raw="2025-11-04 02:23:58", response_text='{"ok": true}')
        failed = Trait(
            completed_at_raw="2025-11-04 02:23:58",
            response_text="no JSON \U0001f600",
            extraction_error="no JSON found",
        )

    agent_id = Sequence(lambda n: f"agent-{n}")
    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    phase_type = "regular_stage"
    agent_name = Iterator(["gemini", "claude", "code", "gpt_pro"])
    spawned_at_raw: Any = "2025-11-04 02:20:00"
