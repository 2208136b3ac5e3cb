"""Factories of rows, one for each model: they write with the session of `use_session`, flush and expire.

Every shape of a row in the field has a name: `time_shape`, `content_shape` and `run_shape` take the keys of
`TIMES`, `CONTENTS` and `RUN_IDS`; traits make the rest. Columns can be given, too.
"""

# ruff: noqa: D106 - Meta and Params are words of factory-boy, which reads them and inherits nothing from them
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Text, cast, inspect, literal, null
from sqlalchemy.orm import DeclarativeBase

from consensus_orm.consensus.declaration import ARTIFACTS, SYNTHESES
from consensus_orm.consensus.models.executions import AgentExecution
from consensus_orm.consensus.models.legacy import ConsensusArtifact, ConsensusSynthesis
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun, ConsensusSynthesisRecord
from consensus_orm.databases.sqlite.parameters import storable
from consensus_orm.declaration.attributes import column_of
from consensus_orm.declaration.rules import Row, on
from consensus_orm.testing._factory import (
    RANDOM,
    Factory,
    Iterator,
    LazyAttribute,
    SelfAttribute,
    Sequence,
    SQLAlchemyModelFactory,
    SubFactory,
    Trait,
    choice,
)
from consensus_orm.testing.session import current_session
from consensus_orm.testing.shapes import BIG_ID, CONTENTS, RUN_IDS, TIMES

__all__ = [
    "AgentExecutionFactory",
    "AgentOutputFactory",
    "ConsensusArtifactFactory",
    "ConsensusRunFactory",
    "ConsensusSynthesisFactory",
    "ConsensusSynthesisRecordFactory",
    "ModelFactory",
    "stored",
    "twins",
]

M = TypeVar("M", bound=DeclarativeBase)


class ModelFactory(SQLAlchemyModelFactory, Factory[M], Generic[M]):
    """Base of the factories of models: rows are read back from the database.

    None is NULL, also in a column with a default; text that is not UTF-8 is stored as its bytes.
    """

    class Meta:
        abstract = True
        sqlalchemy_session_factory = current_session

    @classmethod
    def _save(cls, model_class: type[M], session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> M:
        made = model_class(*args, **{name: stored(session, value) for name, value in kwargs.items()})
        session.add(made)
        session.flush()
        session.expire(made)
        return made


def stored(session: Any, value: Any) -> Any:
    """What a session is given so that the database of it stores a value: None is NULL, odd text its bytes."""
    return _stored(value) if session.get_bind().dialect.name == "sqlite" else _given(value)


def _given(value: Any) -> Any:
    return null() if value is None else value  # None alone would give the default of the database


def _stored(value: Any) -> Any:
    if isinstance(value, str) and isinstance(raw := storable(value), bytes):
        return cast(literal(raw), Text)
    return _given(value)


def twins(model_factory: type[ModelFactory[M]], count: int = 2, **values: Any) -> list[M]:
    """Make rows that are equal except for their ids.

    Args:
        model_factory: Makes the rows.
        count: Their number.
        **values: The arguments of the factory.
    """
    first = model_factory.create(**values)
    keys = {column.key for column in inspect(type(first)).primary_key}
    same = {c.key: getattr(first, c.key) for c in inspect(type(first)).column_attrs if c.key not in keys}
    return [first, *(model_factory.create(**same) for _ in range(count - 1))]


class _Shaped(ModelFactory[M], Generic[M]):
    class Meta:
        abstract = True

    class Params:
        time_shape = "second"
        content_shape = "json"
        run_shape = "null"
        big_id = Trait(id=Sequence(lambda n: BIG_ID + n))
        random = RANDOM

    created_at: Any = choice("time_shape", TIMES)


class _SynthesisFactory(_Shaped[M], Generic[M]):
    class Meta:
        abstract = True

    class Params:
        degraded_flag = Trait(degraded=1)
        degraded_status = Trait(status="degraded")
        degraded_null = Trait(degraded=None)
        failed = Trait(status="failed")

    output_markdown: Any = choice("content_shape", CONTENTS)
    output_path: Any = None
    status: Any = "ok"
    artifacts_count: Any = 4
    agreements: Any = '["both"]'
    conflicts: Any = "[]"
    degraded: Any = 0


class ConsensusArtifactFactory(_Shaped[ConsensusArtifact]):
    """Legacy artifacts. A batch of them is a round: the same spec, stage and second."""

    class Meta:
        model = ConsensusArtifact

    class Params:
        verdict = Trait(agent_name="consensus-verdict")

    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    agent_name = Iterator(["gemini", "claude", "code", "gpt_pro"])
    content_json: Any = choice("content_shape", CONTENTS)
    response_text: Any = None
    run_id: Any = choice("run_shape", RUN_IDS)


class ConsensusSynthesisFactory(_SynthesisFactory[ConsensusSynthesis]):
    """Legacy syntheses, with the traits `degraded_flag`, `degraded_status`, `degraded_null` and `failed`."""

    class Meta:
        model = ConsensusSynthesis

    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    run_id: Any = choice("run_shape", RUN_IDS)


def _follows(rule: ColumnElement[Any], *columns: str) -> Any:
    """A normalized column derived from a legacy row by the rule of the moves."""

    def value(o: Any) -> ColumnElement[Any]:
        given = {name: _expression(getattr(o, name)) for name in columns}
        return on(rule, Row(given))

    return LazyAttribute(value)


def _expression(value: Any) -> ColumnElement[Any]:
    stored = _stored(value)
    return stored if isinstance(stored, ColumnElement) else literal(stored)


_OUTPUT_TIME = ARTIFACTS.computed[column_of(AgentOutput.output_timestamp)]
_SYNTHESIS_TIME = SYNTHESES.computed[column_of(ConsensusSynthesisRecord.synthesis_timestamp)]


class ConsensusRunFactory(ModelFactory[ConsensusRun]):
    """Runs, each of a spec of its own; derived columns follow from `time_shape` and `run_shape`."""

    class Meta:
        model = ConsensusRun

    class Params:
        time_shape = "second"
        run_shape = "null"
        created_at: Any = choice("time_shape", TIMES)
        foreign = Trait(run_key=None)

    spec_id = Sequence(lambda n: f"SPEC-KIT-{n}")
    stage = "spec-plan"
    run_id: Any = choice("run_shape", RUN_IDS)
    run_key: Any = _follows(ARTIFACTS.above[column_of(ConsensusRun.run_key)], "run_id", "created_at")
    run_timestamp: Any = _follows(_OUTPUT_TIME, "created_at")
    consensus_ok: Any = True
    degraded: Any = False
    synthesis_json: Any = None


def _run_of_its_own() -> Any:
    shapes = {name: SelfAttribute(f"..{name}") for name in ("time_shape", "run_shape")}
    return SubFactory(ConsensusRunFactory, **shapes)


class AgentOutputFactory(_Shaped[AgentOutput]):
    """Outputs, each in a run of its own unless `run` is given; `foreign` makes one of a founding program."""

    class Meta:
        model = AgentOutput

    class Params:
        foreign = Trait(
            mirrored=False,
            output_timestamp=1_762_222_238_123,
            created_at=None,
            run=SubFactory(ConsensusRunFactory, foreign=True, run_timestamp=1_762_222_238_123),
        )

    run = _run_of_its_own()
    agent_name = Iterator(["gemini", "claude", "code", "gpt_pro"])
    model_version: Any = None
    output_timestamp: Any = _follows(_OUTPUT_TIME, "created_at")
    mirrored: Any = True
    response_text: Any = None
    content: Any = choice("content_shape", CONTENTS)


class ConsensusSynthesisRecordFactory(_SynthesisFactory[ConsensusSynthesisRecord]):
    """Normalized syntheses, each in a run of its own unless `run` is given."""

    class Meta:
        model = ConsensusSynthesisRecord

    run = _run_of_its_own()
    synthesis_timestamp: Any = _follows(_SYNTHESIS_TIME, "created_at")
    mirrored: Any = True


class AgentExecutionFactory(ModelFactory[AgentExecution]):
    """Executions in flight, with the traits `completed` and `failed` (an extraction failure).

    The table must have all 11 columns, as one made by `upgrade`.
    """

    class Meta:
        model = AgentExecution

    class Params:
        completed = Trait(completed_at="2025-11-04 02:23:58", response_text='{"ok": true}')
        failed = Trait(
            completed_at="2025-11-04 02:23:58", response_text="no JSON \U0001f600", extraction_error="no JSON found"
        )

    agent_id = Sequence(lambda n: f"agent-{n}")
    spec_id = "SPEC-KIT-900"
    stage = "spec-plan"
    phase_type = "regular_stage"
    agent_name = Iterator(["gemini", "claude", "code", "gpt_pro"])
    run_id: Any = None
    spawned_at: Any = "2025-11-04 02:20:00"
    completed_at: Any = None
    response_text: Any = None
    extraction_error: Any = None
    branch_id: Any = None
