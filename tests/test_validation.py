"""What callers may give: each wrong value is one clear error, and nothing is written, in any phase."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from consensus_orm import ConsensusError, ConsensusStore, ConsensusUnitOfWork
from consensus_orm import validation as check
from consensus_orm.errors import InvalidValueError
from consensus_orm.testing import artifact_values, legacy_history, spawn_values, synthesis_values
from consensus_orm.testing.plugin import History
from tests.support.databases import behind

ARTIFACT = ("spec_id", "stage", "agent_name")
WRONG_NAMES: dict[str, Any] = {
    "empty": "",
    "nul": "a\0b",
    "surrogate": "a\ud800",
    "escaped": "a\udcff",
    "long": "x" * 1001,
    "none": None,
    "number": 7,
    "bytes": b"bytes",
}


@pytest.fixture
def consensus_history() -> History:
    """Tame rows: what is tried here is what is given, not what is there."""
    return legacy_history


def everything(store: ConsensusStore) -> object:
    return behind(store).everything()


def refused(store: ConsensusStore, call: Callable[[ConsensusUnitOfWork], object]) -> InvalidValueError:
    """The error of a call that must write nothing, although its unit of work is committed."""
    with store.unit_of_work():
        pass  # the first that writes into a copy takes note of its schema
    before = everything(store)
    with store.unit_of_work() as uow, pytest.raises(InvalidValueError) as raised:
        call(uow)
    assert everything(store) == before
    assert isinstance(raised.value, ConsensusError)
    assert isinstance(raised.value, ValueError)
    assert raised.value.exit_code == 2
    return raised.value


@pytest.mark.long
@pytest.mark.parametrize("wrong", WRONG_NAMES)
def test_wrong_names_are_refused_in_every_phase(every_phase: ConsensusStore, wrong: str) -> None:
    """An empty, over-long, odd or missing identifier is named by its field; the error does not repeat it."""
    value = WRONG_NAMES[wrong]
    for field in ARTIFACT:
        error = refused(every_phase, lambda uow: uow.artifacts.add(**artifact_values() | {field: value}))  # noqa: B023
        assert error.field == field
        assert str(error).startswith(field)
        assert "xxxx" not in str(error)
    for field in ("spec_id", "stage", "status"):
        error = refused(every_phase, lambda uow: uow.syntheses.add(**synthesis_values() | {field: value}))  # noqa: B023
        assert error.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "a\0b"),
        ("run_id", 7),
        ("run_id", "x" * 1001),
        ("model_version", "\ud800"),
        ("content_json", None),
        ("content_json", b"{}"),
        ("content_json", {"ok": True}),
        ("response_text", 1),
        ("created_at", datetime(2025, 11, 4, 2, 23, 58)),
        ("created_at", "2025-11-04 02:23:58"),
        ("created_at", 1762743600),
        ("created_at", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
        ("created_at", datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(hours=12)))),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_wrong_values_of_an_artifact(consensus_store: ConsensusStore, field: str, value: Any) -> None:
    """Each field refuses what it cannot hold: other types, naive times, times outside the years 1 to 9999."""
    error = refused(consensus_store, lambda uow: uow.artifacts.add(**artifact_values() | {field: value}))

    assert error.field == field


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, True, "3"])
def test_wrong_numbers(consensus_store: ConsensusStore, value: Any) -> None:
    """Limits and counts are whole numbers from 0 up, that fit 63 bits; ids may be negative, as in the field."""
    for call in (
        lambda uow: uow.artifacts.list(limit=value),
        lambda uow: uow.syntheses.list(limit=value),
        lambda uow: uow.artifacts.get("3" if value == -1 else value),
        lambda uow: uow.syntheses.add(**synthesis_values() | {"artifacts_count": value}),
    ):
        refused(consensus_store, call)


def test_a_delete_wants_a_spec(every_phase: ConsensusStore) -> None:
    """Deleting without naming a spec deletes nothing."""
    values: list[Any] = ["", None, "a\0", 7]
    for value in values:
        of_artifacts = refused(every_phase, lambda uow: uow.artifacts.delete(spec_id=value))  # noqa: B023
        of_syntheses = refused(every_phase, lambda uow: uow.syntheses.delete(spec_id=value))  # noqa: B023
        assert (of_artifacts.field, of_syntheses.field) == ("spec_id", "spec_id"), value


@pytest.mark.parametrize("field", ["agent_id", "spec_id", "stage", "phase_type", "agent_name", "run_id", "branch_id"])
def test_a_spawn_is_checked_like_the_rest(consensus_store: ConsensusStore, field: str) -> None:
    """Every identifier of a spawn is checked."""
    error = refused(consensus_store, lambda uow: uow.executions.record_spawn(**spawn_values() | {field: "a\0b"}))

    assert error.field == field


def test_limits_of_what_is_accepted(consensus_store: ConsensusStore) -> None:
    """The longest identifier, the empty content and run id, and the first and last time are accepted."""
    for values in (
        {"spec_id": "x" * 1000},
        {"spec_id": "é" * 1000},
        {"content_json": "", "response_text": "", "run_id": "", "model_version": ""},
        {"created_at": datetime(1, 1, 1, tzinfo=UTC)},
        {"created_at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
        {"stage": " ", "agent_name": "'; DROP TABLE agent_outputs; --"},
    ):
        with consensus_store.unit_of_work() as uow:
            added = uow.artifacts.add(**artifact_values(**values))
            assert uow.artifacts.get(added.id) == added
            if "created_at" in values:
                assert added.created_at == values["created_at"]


def test_too_much_content_is_refused(monkeypatch: pytest.MonkeyPatch, consensus_store: ConsensusStore) -> None:
    """Content above the limit is refused by its length, before SQLite has to."""
    monkeypatch.setattr(check, "MAX_CONTENT", 10)
    error = refused(consensus_store, lambda uow: uow.artifacts.add(**artifact_values(content_json="x" * 11)))

    assert "11 characters" in str(error)
    with consensus_store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(content_json="x" * 10))


HOLDS_NOT = {"nul": "before\0after", "only_nul": "\0", "surrogate": '{"a": "\ud800"}', "invalid_utf8": "\udcff"}


@pytest.mark.postgresql
@pytest.mark.parametrize("content", HOLDS_NOT.values(), ids=HOLDS_NOT)
def test_contents_that_a_server_cannot_hold(every_phase: ConsensusStore, content: str) -> None:
    """NULs and lone surrogates are refused before anything is written, in every content and every phase.

    The unit of work goes on, and keeps what it wrote before and after.
    """
    values = synthesis_values()
    calls: list[Callable[[ConsensusUnitOfWork], object]] = [
        lambda uow: uow.artifacts.add(**artifact_values(content_json=content)),
        lambda uow: uow.artifacts.add(**artifact_values(response_text=content)),
        lambda uow: uow.syntheses.add(**values | {"output_markdown": content}),
        lambda uow: uow.syntheses.add(**values | {"conflicts": content}),
        lambda uow: uow.executions.record_completion("agent", content),
        lambda uow: uow.executions.record_extraction_failure("agent", content, "no JSON"),
        lambda uow: uow.executions.record_extraction_failure("agent", "raw", content),
    ]
    with every_phase.unit_of_work() as uow:
        uow.executions.record_spawn(**spawn_values(agent_id="agent"))
    for call in calls:
        error = refused(every_phase, call)
        assert "PostgreSQL cannot hold a text with a" in str(error)
        assert "before" not in str(error)
    with every_phase.unit_of_work() as uow:
        first = uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW"))
        with pytest.raises(InvalidValueError):
            uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW", content_json=content))
        second = uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW"))
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list(spec_id="SPEC-NEW") == [second, first]


@pytest.mark.postgresql
@pytest.mark.parametrize("content", HOLDS_NOT.values(), ids=HOLDS_NOT)
def test_a_batch_that_a_server_cannot_hold_is_refused_whole(consensus_store: ConsensusStore, content: str) -> None:
    """One row of a batch with such a content, and none is written."""
    refused(
        consensus_store,
        lambda uow: uow.artifacts.add_many([artifact_values(), artifact_values(content_json=content)]),
    )
