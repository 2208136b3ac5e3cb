"""What repositories return: frozen values, equal by what they hold, odd rows included."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from consensus_orm import ConsensusStore
from consensus_orm.consensus.records import AgentOutput, Artifact, Execution, Record, Run, Synthesis, time_of_ms
from consensus_orm.testing import (
    AgentOutputRecordFactory,
    ArtifactFactory,
    ExecutionFactory,
    RunFactory,
    SynthesisFactory,
)

RECORDS: list[Record] = [
    ArtifactFactory.build(),
    ArtifactFactory.build(time_shape="blob", content_shape="blob", run_shape="empty"),
    AgentOutputRecordFactory.build(),
    SynthesisFactory.build(degraded=2),
    RunFactory.build(),
    ExecutionFactory.build(failed=True),
]


@pytest.mark.parametrize(
    ("milliseconds", "time"),
    [
        (0, None),
        (1762222238123, datetime(2025, 11, 4, 2, 10, 38, 123000, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
        (-62167219200000, None),
        (10**18, None),
    ],
)
def test_milliseconds_become_a_time_or_none(milliseconds: int, time: datetime | None) -> None:
    """A row of the year 0, which SQLite takes for a date, must not keep its run from being read."""
    assert time_of_ms(milliseconds) == time


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_are_values(record: Record) -> None:
    """A record is frozen, hashable, and equal to any other of the same fields: copied, pickled or made anew."""
    name = "agent_name" if "agent_name" in type(record).model_fields else "stage"
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, name, "other")
    again = type(record).of({name: getattr(record, name) for name in type(record).model_fields})
    for twin in (again, copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert twin == record
        assert hash(twin) == hash(record)
    assert record.model_copy(update={name: "other"}) != record
    assert again == record


def test_records_of_a_store_are_like_those_of_a_caller(consensus_store: ConsensusStore) -> None:
    """A record that was read equals one that was constructed with validation."""
    with consensus_store.unit_of_work() as uow:
        read = uow.artifacts.add(spec_id="S", stage="p", agent_name="a", content_json="{}")

    made = Artifact(
        id=read.id,
        spec_id="S",
        stage="p",
        agent_name="a",
        content_json="{}",
        created_at_raw=read.created_at_raw,
    )
    assert made == read
    assert made.model_dump() == read.model_dump()
    assert Artifact.model_validate_json(read.model_dump_json(exclude={"created_at"})) == read


@pytest.mark.parametrize(
    ("raw", "time"),
    [
        ("2025-11-04 02:23:58", datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)),
        ("2025-11-04 02:23:58.1234567", datetime(2025, 11, 4, 2, 23, 58, 123456, tzinfo=UTC)),
        ("2025-11-04T02:23:58Z", None),
        ("2025-02-30 00:00:00", None),
        ("2025-11-04 02:23:58\0", None),
        ("٢٠٢٥-11-04 02:23:58", None),
        ("", None),
        (1762743600, None),
        (b"2025-11-04 02:23:58", None),
        (None, None),
    ],
    ids=ascii,
)
def test_times_are_read_where_there_are_some(raw: Any, time: datetime | None) -> None:
    """created_at, spawned_at and completed_at are UTC times or None; the stored value stands beside them."""
    timed: list[tuple[Any, str]] = [
        (ArtifactFactory.build(created_at_raw=raw), "created_at"),
        (SynthesisFactory.build(created_at_raw=raw), "created_at"),
        (AgentOutputRecordFactory.build(created_at_raw=raw), "created_at"),
        (ExecutionFactory.build(spawned_at_raw=raw), "spawned_at"),
        (ExecutionFactory.build(completed_at_raw=raw), "completed_at"),
    ]
    for record, name in timed:
        assert getattr(record, name) == time
        assert getattr(record, f"{name}_raw") == raw
        assert record.model_dump(warnings=False)[name] == time


def test_fields_are_what_the_design_says() -> None:
    """The fields of the records are public surface: none goes or comes unnoticed."""
    expected: dict[type[Record], str] = {
        Artifact: "created_at_raw id spec_id stage agent_name content_json response_text run_id model_version",
        AgentOutput: "created_at_raw id agent_name content response_text model_version",
        Run: "spec_id stage run_id started_at consensus_ok degraded outputs syntheses",
        Synthesis: (
            "created_at_raw id spec_id stage output_markdown output_path status artifacts_count agreements"
            " conflicts degraded run_id"
        ),
        Execution: (
            "agent_id spec_id stage phase_type agent_name run_id branch_id spawned_at_raw completed_at_raw"
            " response_text extraction_error"
        ),
    }
    for record, fields in expected.items():
        assert list(record.model_fields) == fields.split()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_keep_no_engine_alive(record: Record) -> None:
    """A record is plain data: nothing of a session or connection hangs on it."""
    assert not any("sqlalchemy" in type(value).__module__ for value in vars(record).values())
