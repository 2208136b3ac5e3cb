"""Agent executions: one table in every phase and of every age, in which no completion is ever erased."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork
from consensus_orm.consensus.records import Execution
from consensus_orm.errors import InvalidValueError, UnknownAgentError
from consensus_orm.settings import Settings
from consensus_orm.testing import AgentExecutionFactory, session_on, spawn_values
from tests.support.databases import Database, behind, build_legacy

Raw = Callable[..., list[tuple[Any, ...]]]

FIRST_EIGHT = "agent_id, spec_id, stage, phase_type, agent_name, spawned_at, completed_at, response_text"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2025, 12, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def consensus_settings(clock: Clock) -> Settings:
    return Settings(clock=clock, chunk_pause=timedelta(0))


def table(store: ConsensusStore) -> object:
    """All there is to say of the table: its DDL, its rows, in type and bytes."""
    return behind(store).image("agent_executions")


# Spawning and completing ------------------------------------------------------------------------------------


def test_a_spawn_is_in_flight_until_it_completes(every_phase: ConsensusStore, clock: Clock) -> None:
    """spawn, completion and failure leave what happened, with its times, in every phase."""
    with every_phase.unit_of_work() as uow:
        before = uow.executions.list()
        spawned = uow.executions.record_spawn(**spawn_values(agent_id="new", run_id="r", branch_id="b"))
        assert spawned.spawned_at == uow.now
        assert uow.executions.in_flight(run_id="r") == [spawned]
    with every_phase.unit_of_work() as uow:
        done = uow.executions.record_completion("new", "said \U0001f600")
        assert done.completed_at == uow.now > spawned.spawned_at
        failed = uow.executions.record_spawn(**spawn_values(agent_id="other", run_id="r"))
        failed = uow.executions.record_extraction_failure("other", "raw {output", "no JSON")

    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.executions.get("new") == done
        assert done.response_text == "said \U0001f600"
        assert done.extraction_error is None
        assert uow.executions.get("other") == failed
        assert (failed.response_text, failed.extraction_error) == ("raw {output", "no JSON")
        assert failed.completed_at is not None
        assert uow.executions.in_flight(run_id="r") == []
        assert failed in uow.executions.extraction_failures("SPEC-KIT-900")
        assert done not in uow.executions.extraction_failures("SPEC-KIT-900")
        assert [e for e in uow.executions.list() if e.agent_id not in ("new", "other")] == before


def test_a_respawn_erases_no_completion(consensus_store: ConsensusStore) -> None:
    """Spawning an agent again that has completed changes nothing at all, and says so."""
    with consensus_store.unit_of_work() as uow:
        values = spawn_values(run_id="first")
        uow.executions.record_spawn(**values)
        done = uow.executions.record_completion(values["agent_id"], "kept")
    before = table(consensus_store)

    with consensus_store.unit_of_work() as uow:
        again = uow.executions.record_spawn(**values | {"run_id": "second", "stage": "other", "branch_id": "b"})

    assert again == done
    assert table(consensus_store) == before


def test_a_failed_agent_is_not_erased_either(consensus_store: ConsensusStore) -> None:
    """The raw output of an extraction failure survives a respawn."""
    with consensus_store.unit_of_work() as uow:
        values = spawn_values()
        uow.executions.record_spawn(**values)
        failed = uow.executions.record_extraction_failure(values["agent_id"], "raw", "broken")
        assert uow.executions.record_spawn(**values) == failed


def test_a_respawn_in_flight_says_what_is_true_now(consensus_store: ConsensusStore) -> None:
    """Spawning an agent again that never completed renews what is known of it; there is still one row."""
    with consensus_store.unit_of_work() as uow:
        values = spawn_values(run_id="first")
        first = uow.executions.record_spawn(**values)
    with consensus_store.unit_of_work() as uow:
        second = uow.executions.record_spawn(**values | {"run_id": "second"})
        assert uow.executions.list() == [second]

    assert (first.run_id, second.run_id) == ("first", "second")
    assert first.spawned_at is not None
    assert second.spawned_at is not None
    assert second.spawned_at > first.spawned_at


def test_completing_an_unknown_agent_is_an_error(every_phase: ConsensusStore) -> None:
    """Nothing is updated and nothing reported as success where nobody was spawned."""
    with every_phase.unit_of_work() as uow:
        before = uow.executions.list()
        with pytest.raises(UnknownAgentError) as raised:
            uow.executions.record_completion("nobody", "x")
        with pytest.raises(UnknownAgentError):
            uow.executions.record_extraction_failure("nobody", "x", "y")
        assert uow.executions.list() == before
        assert uow.executions.get("nobody") is None

    assert raised.value.facts["agent_id"] == "nobody"
    assert isinstance(raised.value, LookupError)


@pytest.mark.parametrize(
    ("method", "arguments", "field"),
    [
        ("record_spawn", spawn_values(agent_id=""), "agent_id"),
        ("record_spawn", spawn_values(spec_id="a\0b"), "spec_id"),
        ("record_spawn", spawn_values(phase_type=None), "phase_type"),
        ("record_spawn", spawn_values(agent_name="x" * 1001), "agent_name"),
        ("record_completion", {"agent_id": "a1", "response_text": None}, "response_text"),
        ("record_completion", {"agent_id": "\ud800", "response_text": ""}, "agent_id"),
        ("record_extraction_failure", {"agent_id": "a1", "raw_output": "x", "error": ""}, "error"),
        ("cleanup", {"older_than": datetime(2025, 1, 1)}, "older_than"),
        ("cleanup", {"older_than": timedelta(seconds=-1)}, "older_than"),
    ],
)
def test_wrong_values_write_nothing(every_phase: ConsensusStore, method: str, arguments: Any, field: str) -> None:
    """A value that cannot be accepted is named, and the table stays as it is."""
    before = table(every_phase)
    with every_phase.unit_of_work() as uow, pytest.raises(InvalidValueError) as raised:
        getattr(uow.executions, method)(**arguments)

    assert raised.value.field == field
    assert table(every_phase) == before


@pytest.mark.sqlite  # PostgreSQL cannot hold it: test_validation
def test_odd_text_is_kept_as_its_bytes(consensus_store: ConsensusStore, raw: Raw) -> None:
    """NULs, lone surrogates and invalid UTF-8 in a response are stored as the bytes they stand for."""
    for number, (text, meant) in enumerate([("a\0b", b"a\0b"), ("\ud800", b"\xed\xa0\x80"), ("\udcff", b"\xff")]):
        with consensus_store.unit_of_work() as uow:
            uow.executions.record_spawn(**spawn_values(agent_id=f"a{number}"))
            uow.executions.record_extraction_failure(f"a{number}", text, text)
        sql = "SELECT typeof(response_text), CAST(response_text AS BLOB), CAST(extraction_error AS BLOB)"
        found = raw(consensus_store, f"{sql} FROM agent_executions WHERE agent_id = ?", f"a{number}")
        assert found == [("text", meant, meant)]
        with consensus_store.unit_of_work(read_only=True) as uow:
            execution = uow.executions.get(f"a{number}")
        assert execution is not None
        assert execution.response_text is not None
        assert execution.response_text.encode("utf-8", "surrogateescape") == meant


# Finding ----------------------------------------------------------------------------------------------------


@pytest.fixture
def populated(consensus_store: ConsensusStore) -> ConsensusStore:
    """Executions of two specs, runs and branches, in each state."""
    with session_on(behind(consensus_store).where):
        for spec in ("SPEC-A", "SPEC-B"):
            for state in ({}, {"completed": True}, {"failed": True}):
                for run, branch in (("r1", "b1"), ("r1", "b2"), (None, None)):
                    AgentExecutionFactory.create(spec_id=spec, run_id=run, branch_id=branch, **state)
    return consensus_store


def test_executions_are_found_by_what_they_are(populated: ConsensusStore, raw: Raw) -> None:
    """in_flight, extraction_failures, for_branch and list find exactly their rows, oldest first."""

    def ids(where: str) -> list[str]:
        sql = f"SELECT agent_id FROM agent_executions WHERE {where} ORDER BY spawned_at, agent_id"
        return [row[0] for row in raw(populated, sql)]

    def found(executions: list[Execution]) -> list[str]:
        return [execution.agent_id for execution in executions]

    with populated.unit_of_work(read_only=True) as uow:
        mine = uow.executions
        assert found(mine.in_flight()) == ids("completed_at IS NULL")
        assert found(mine.in_flight(spec_id="SPEC-A")) == ids("completed_at IS NULL AND spec_id = 'SPEC-A'")
        where = "completed_at IS NULL AND spec_id = 'SPEC-B' AND run_id = 'r1'"
        assert found(mine.in_flight(spec_id="SPEC-B", run_id="r1")) == ids(where)
        assert found(mine.extraction_failures("SPEC-A")) == ids("extraction_error NOTNULL AND spec_id = 'SPEC-A'")
        assert mine.extraction_failures("nobody") == []
        where = "spec_id = 'SPEC-A' AND stage = 'spec-plan' AND branch_id = 'b2'"
        assert found(mine.for_branch(spec_id="SPEC-A", stage="spec-plan", branch_id="b2")) == ids(where)
        assert mine.for_branch(spec_id="SPEC-A", stage="other", branch_id="b2") == []
        assert found(mine.list(spec_id="SPEC-A", stage="spec-plan", run_id="r1")) == ids(
            "spec_id = 'SPEC-A' AND run_id = 'r1'"
        )
        assert all(e.response_text == "no JSON \U0001f600" for e in mine.extraction_failures("SPEC-A"))


def test_cleanup_never_removes_what_is_in_flight(consensus_store: ConsensusStore, raw: Raw, clock: Clock) -> None:
    """Only what completed before the limit goes; what is in flight stays, and so does what has no readable time."""
    times = {
        "old": "2025-11-01 00:00:00",
        "just_before": "2025-11-04 02:23:57.999",
        "limit": "2025-11-04 02:23:58",
        "new": "2025-11-05 00:00:00",
        "in_flight": None,
        "iso": "2020-01-01T00:00:00Z",
        "words": "long ago",
        "empty": "",
        "year_0": "0000-01-01 00:00:00",
    }
    with session_on(behind(consensus_store).where):
        for name, completed in times.items():
            AgentExecutionFactory.create(agent_id=name, spawned_at="2020-01-01 00:00:00", completed_at=completed)

    with consensus_store.unit_of_work() as uow:
        assert uow.executions.cleanup(datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)) == 2
        assert uow.executions.cleanup(timedelta(days=10_000)) == 0
        assert uow.executions.cleanup(timedelta(0)) == 2

    left = {row[0] for row in raw(consensus_store, "SELECT agent_id FROM agent_executions")}
    assert left == {"in_flight", "iso", "words", "empty", "year_0"}


# Files of every age -----------------------------------------------------------------------------------------


@pytest.fixture(params=[(columns, altered) for columns in (8, 9, 10, 11) for altered in (False, True)], ids=str)
def aged(request: pytest.FixtureRequest, new_database: Database, clock: Clock) -> Iterator[ConsensusStore]:
    """A store on a database whose table has 8 to 11 columns, as created or by ALTER."""
    columns, altered = request.param
    build_legacy(new_database.where, columns=columns, altered=altered)
    with ConsensusStore.open(new_database.where, settings=Settings(clock=clock)) as store:
        yield store


@pytest.fixture
def upgraded(aged: ConsensusStore) -> ConsensusStore:
    """The same, upgraded: on a server nothing is written before that."""
    aged.upgrade()
    return aged


def columns_of(store: ConsensusStore) -> list[str]:
    return behind(store).columns("agent_executions")


def test_rows_of_every_age_are_read(aged: ConsensusStore) -> None:
    """Columns are found by name; those that the file does not have are None, and the file is not touched."""
    before = table(aged)

    with aged.unit_of_work(read_only=True) as uow:
        done, in_flight, failed = sorted(uow.executions.list(), key=lambda execution: execution.agent_id)
        assert (done.agent_name, done.response_text, done.run_id) == ("gemini", '{"ok": true}', None)
        assert (in_flight.completed_at_raw, in_flight.spawned_at_raw) == (None, "2025-11-04T02:20:01Z")
        assert (failed.phase_type, failed.completed_at) == ("quality_gate", datetime(2025, 11, 4, 2, 24, tzinfo=UTC))
        assert uow.executions.in_flight() == [in_flight]
        assert uow.executions.in_flight(run_id="r") == []
        assert uow.executions.extraction_failures("SPEC-KIT-900") == []
        assert uow.executions.for_branch(spec_id="SPEC-KIT-900", stage="spec-plan", branch_id="b") == []
    assert table(aged) == before


def test_ddl_is_untouched_until_a_value_needs_a_column(aged: ConsensusStore) -> None:
    """Upgrade and writes without the newer values leave the table as other programs know it."""
    before = table(aged)
    aged.upgrade()
    assert table(aged) == before
    columns = columns_of(aged)

    with aged.unit_of_work() as uow:
        uow.executions.record_spawn(**spawn_values(agent_id="new"))
        uow.executions.record_completion("new", "said")
        uow.executions.cleanup(timedelta(days=10_000))

    assert columns_of(aged) == columns


def test_a_column_comes_with_the_first_value_for_it(upgraded: ConsensusStore) -> None:
    """A value for a missing column adds that column, last and alone; what was there keeps its values."""
    columns = columns_of(upgraded)
    with upgraded.unit_of_work(read_only=True) as uow:
        before = uow.executions.list()
    expected = list(columns)
    writes: list[tuple[str, Callable[[ConsensusUnitOfWork], Execution]]] = [
        ("branch_id", lambda uow: uow.executions.record_spawn(**spawn_values(agent_id="b", branch_id="b1"))),
        ("run_id", lambda uow: uow.executions.record_spawn(**spawn_values(agent_id="r", run_id="r1"))),
        ("extraction_error", lambda uow: uow.executions.record_extraction_failure("b", "raw", "broken")),
    ]
    for name, write in writes:
        with upgraded.unit_of_work() as uow:
            write(uow)
        expected += [name] if name not in expected else []
        assert columns_of(upgraded) == expected

    with upgraded.unit_of_work(read_only=True) as uow:
        assert [e for e in uow.executions.list() if e.agent_id not in "br"] == before
        (mine,) = uow.executions.for_branch(spec_id="SPEC-KIT-900", stage="spec-plan", branch_id="b1")
        assert uow.executions.extraction_failures("SPEC-KIT-900") == [mine]
        assert [e.agent_id for e in uow.executions.in_flight(run_id="r1")] == ["r"]
    behind(upgraded).script(  # as another program goes on writing it
        f"INSERT INTO agent_executions ({FIRST_EIGHT}) VALUES ('x', 's', 'p', 't', 'n', '', '', '')"
    )


def test_an_added_column_keeps_text_as_text(upgraded: ConsensusStore) -> None:
    """What looks like a number in an added column comes back as it was given."""
    with upgraded.unit_of_work() as uow:
        uow.executions.record_spawn(**spawn_values(agent_id="n", run_id="007", branch_id="1e3"))
        failed = uow.executions.record_extraction_failure("n", "1.0", "0010")
        (found,) = uow.executions.list(run_id="007")

    assert found == failed
    assert (found.run_id, found.branch_id, found.response_text, found.extraction_error) == ("007", "1e3", "1.0", "0010")


def test_a_column_that_was_added_goes_with_a_rollback(upgraded: ConsensusStore) -> None:
    """The ALTER TABLE belongs to the unit of work: where it fails, the table is what it was."""
    before = table(upgraded)
    with pytest.raises(ZeroDivisionError), upgraded.unit_of_work() as uow:
        uow.executions.record_spawn(**spawn_values(run_id="r", branch_id="b"))
        raise ZeroDivisionError

    assert table(upgraded) == before
    with upgraded.unit_of_work() as uow:
        assert uow.executions.record_spawn(**spawn_values(run_id="r")).run_id == "r"


def test_two_stores_add_the_column_once(upgraded: ConsensusStore) -> None:
    """Another store that looked at the table before the column came finds it."""
    with ConsensusStore.open(upgraded.engine.url) as other:
        for store, agent in ((other, "one"), (upgraded, "two"), (other, "three")):
            with store.unit_of_work() as uow:
                uow.executions.record_spawn(**spawn_values(agent_id=agent, run_id="r", branch_id="b"))
        with other.unit_of_work(read_only=True) as uow:
            assert len(uow.executions.in_flight(run_id="r")) == 3
