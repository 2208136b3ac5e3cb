"""Rule 9: the database first, memory second; and memory can be rebuilt after a kill between the two."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, ExecutionTracker
from consensus_orm.errors import UnknownAgentError
from tests.support.databases import Database


@pytest.fixture
def tracker() -> ExecutionTracker:
    return ExecutionTracker(spec_id="SPEC-1", stage="plan", run_id="r")


def memory(tracker: ExecutionTracker) -> tuple[set[str], set[str]]:
    """Who is expected, and who has completed."""
    return set(tracker.expected), set(tracker.completed)


def spawn(store: ConsensusStore, tracker: ExecutionTracker, *agents: str) -> None:
    with store.unit_of_work() as uow:
        for agent in agents:
            tracker.spawn(uow, agent_id=agent, phase_type="regular_stage", agent_name=agent)


def test_memory_follows_the_commit(every_phase: ConsensusStore, tracker: ExecutionTracker) -> None:
    """Within the unit of work memory knows nothing yet; after its commit it knows everything, in every phase."""
    with every_phase.unit_of_work() as uow:
        tracker.spawn(uow, agent_id="a", phase_type="regular_stage", agent_name="gemini")
        tracker.spawn(uow, agent_id="b", phase_type="regular_stage", agent_name="claude", branch_id="x")
        assert tracker.expected == frozenset()
    assert memory(tracker) == ({"a", "b"}, set())
    assert not tracker.is_complete

    with every_phase.unit_of_work() as uow:
        tracker.complete(uow, "a", "said")
        assert tracker.completed == frozenset()
    assert memory(tracker) == ({"a", "b"}, {"a"})
    assert tracker.in_flight == {"b"}

    with every_phase.unit_of_work() as uow:
        tracker.fail(uow, "b", "raw", "broken")
    assert tracker.is_complete
    with every_phase.unit_of_work(read_only=True) as uow:
        assert {e.agent_id for e in uow.executions.list(run_id="r")} == {"a", "b"}
        assert [e.branch_id for e in uow.executions.extraction_failures("SPEC-1")] == ["x"]


def test_memory_does_not_follow_a_rollback(consensus_store: ConsensusStore, tracker: ExecutionTracker) -> None:
    """What the database did not keep never reaches the memory."""
    spawn(consensus_store, tracker, "a")
    with pytest.raises(ZeroDivisionError), consensus_store.unit_of_work() as uow:
        tracker.complete(uow, "a", "said")
        tracker.spawn(uow, agent_id="b", phase_type="t", agent_name="n")
        raise ZeroDivisionError
    with pytest.raises(UnknownAgentError), consensus_store.unit_of_work() as uow:
        tracker.complete(uow, "a", "said")
        tracker.complete(uow, "nobody", "said")

    assert memory(tracker) == ({"a"}, set())


def test_a_retried_unit_of_work_counts_once(consensus_store: ConsensusStore, tracker: ExecutionTracker) -> None:
    """Callbacks of tries that were rolled back are forgotten with them."""
    from consensus_orm.errors import DatabaseBusyError

    tries: list[int] = []

    def work(uow: ConsensusUnitOfWork) -> None:
        tracker.spawn(uow, agent_id=f"try-{len(tries)}", phase_type="t", agent_name="n")
        tries.append(1)
        if len(tries) < 3:
            raise DatabaseBusyError(sqlite_errorcode=5)

    consensus_store.run(work)

    assert tracker.expected == {"try-2"}


def test_a_respawn_of_a_completed_agent_counts_as_completed(
    consensus_store: ConsensusStore, tracker: ExecutionTracker
) -> None:
    """Memory says of a respawned agent what the database says: it has completed."""
    spawn(consensus_store, tracker, "a")
    with consensus_store.unit_of_work() as uow:
        tracker.complete(uow, "a", "said")
    fresh = ExecutionTracker(spec_id="SPEC-1", stage="plan", run_id="r")
    spawn(consensus_store, fresh, "a")

    assert fresh.is_complete


def test_resync_knows_its_own_stage_and_run(consensus_store: ConsensusStore, tracker: ExecutionTracker) -> None:
    """Resync takes what belongs to the stage and run, replaces what memory held, and writes nothing."""
    other = ExecutionTracker(spec_id="SPEC-1", stage="plan", run_id="other")
    everything = ExecutionTracker(spec_id="SPEC-1", stage="plan")
    elsewhere = ExecutionTracker(spec_id="SPEC-1", stage="tasks", run_id="r")
    spawn(consensus_store, tracker, "a", "b")
    spawn(consensus_store, other, "c")
    spawn(consensus_store, elsewhere, "d")
    with consensus_store.unit_of_work() as uow:
        uow.executions.record_completion("a", "said")
    assert tracker.completed == frozenset()  # written past the tracker

    with consensus_store.unit_of_work(read_only=True) as uow:
        tracker.resync(uow)
        everything.resync(uow)

    assert memory(tracker) == ({"a", "b"}, {"a"})
    assert everything.expected == {"a", "b", "c"}
    empty = ExecutionTracker(spec_id="nobody", stage="plan")
    with consensus_store.unit_of_work(read_only=True) as uow:
        empty.resync(uow)
    assert not empty.is_complete


KILLED = """
import os, signal, sys
from consensus_orm import ConsensusStore, ExecutionTracker

path, moment = sys.argv[1:]
store = ConsensusStore.open(path)
tracker = ExecutionTracker(spec_id="SPEC-1", stage="plan", run_id="r")
with store.unit_of_work() as uow:
    for agent in ("a", "b"):
        tracker.spawn(uow, agent_id=agent, phase_type="regular_stage", agent_name=agent)
assert tracker.expected == {"a", "b"}
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
with store.unit_of_work() as uow:
    if moment == "between":
        uow.on_commit(die)  # after the commit, before the memory is told
    tracker.complete(uow, "a", "said")
    if moment == "before":
        die()
raise SystemExit("still alive")
"""


@pytest.mark.long
@pytest.mark.parametrize(("moment", "completed"), [("before", set()), ("between", {"a"})])
def test_memory_is_rebuilt_after_a_kill(new_database: Database, moment: str, completed: set[str]) -> None:
    """Kill -9 between commit and memory loses nothing: resync finds the completion. Before the commit there is none."""
    with ConsensusStore.open(new_database.where) as store:
        store.upgrade()
    command = [sys.executable, "-c", KILLED, str(new_database.where), moment]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr

    with ConsensusStore.open(new_database.where) as store:
        tracker = ExecutionTracker(spec_id="SPEC-1", stage="plan", run_id="r")
        with store.unit_of_work(read_only=True) as uow:
            tracker.resync(uow)
            in_flight = {execution.agent_id for execution in uow.executions.in_flight(run_id="r")}
        assert memory(tracker) == ({"a", "b"}, completed)
        assert tracker.in_flight == in_flight == {"a", "b"} - completed
        with store.unit_of_work() as uow:
            for agent in in_flight:
                tracker.complete(uow, agent, "said after the restart")
        assert tracker.is_complete


def test_threads_share_a_tracker(consensus_store: ConsensusStore, tracker: ExecutionTracker) -> None:
    """Completions of many threads are all counted."""
    agents = [f"agent-{n}" for n in range(12)]
    spawn(consensus_store, tracker, *agents)

    def complete(agent: str) -> None:
        with consensus_store.unit_of_work() as uow:
            tracker.complete(uow, agent, "said")

    threads = [threading.Thread(target=complete, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert tracker.is_complete
