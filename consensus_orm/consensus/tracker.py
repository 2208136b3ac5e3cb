"""ExecutionTracker: the expected and completed agents of a stage in memory, updated only after commits."""

from __future__ import annotations

import threading

from consensus_orm.consensus.store import ConsensusUnitOfWork

__all__ = ["ExecutionTracker"]


class ExecutionTracker:
    """Expected and completed agents of one stage.

    Each change is written in a unit of work and counts only after its commit. After a restart `resync` rebuilds the
    state from the database. Thread-safe.

    Args:
        spec_id: The spec.
        stage: The stage.
        run_id: The run; all runs of the stage where left out.
    """

    def __init__(self, *, spec_id: str, stage: str, run_id: str | None = None) -> None:
        self.spec_id = spec_id
        self.stage = stage
        self.run_id = run_id
        self._lock = threading.Lock()
        self._expected: frozenset[str] = frozenset()
        self._completed: frozenset[str] = frozenset()

    @property
    def expected(self) -> frozenset[str]:
        """Agents (by agent_id) whose spawn is committed."""
        return self._expected

    @property
    def completed(self) -> frozenset[str]:
        """Agents whose completion or failure is committed."""
        return self._completed

    @property
    def in_flight(self) -> frozenset[str]:
        """Agents that are expected and have not completed."""
        with self._lock:
            return self._expected - self._completed

    @property
    def is_complete(self) -> bool:
        """Whether agents are expected and all of them have completed."""
        with self._lock:
            return bool(self._expected) and self._expected == self._completed

    def spawn(
        self,
        uow: ConsensusUnitOfWork,
        *,
        agent_id: str,
        phase_type: str,
        agent_name: str,
        branch_id: str | None = None,
    ) -> None:
        """Record a spawn; the agent is expected after the commit.

        Args:
            uow: The unit of work to write in.
            agent_id: The spawn; unique.
            phase_type: The purpose of the spawn.
            agent_name: The agent.
            branch_id: The branch of the run.
        """
        execution = uow.executions.record_spawn(
            agent_id=agent_id,
            spec_id=self.spec_id,
            stage=self.stage,
            phase_type=phase_type,
            agent_name=agent_name,
            run_id=self.run_id,
            branch_id=branch_id,
        )
        done = {agent_id} if execution.completed_at_raw is not None else set()
        uow.on_commit(lambda: self._update(expected={agent_id}, completed=done))

    def complete(self, uow: ConsensusUnitOfWork, agent_id: str, response_text: str) -> None:
        """Record a completion; the agent is completed after the commit.

        Args:
            uow: The unit of work to write in.
            agent_id: The spawn.
            response_text: Its response.

        Raises:
            UnknownAgentError: The spawn was not recorded.
        """
        uow.executions.record_completion(agent_id, response_text)
        uow.on_commit(lambda: self._update(expected={agent_id}, completed={agent_id}))

    def fail(self, uow: ConsensusUnitOfWork, agent_id: str, raw_output: str, error: str) -> None:
        """Record an extraction failure; the agent is completed after the commit.

        Args:
            uow: The unit of work to write in.
            agent_id: The spawn.
            raw_output: Its output.
            error: Why nothing could be extracted.

        Raises:
            UnknownAgentError: The spawn was not recorded.
        """
        uow.executions.record_extraction_failure(agent_id, raw_output, error)
        uow.on_commit(lambda: self._update(expected={agent_id}, completed={agent_id}))

    def resync(self, uow: ConsensusUnitOfWork) -> None:
        """Rebuild the state from the database.

        Args:
            uow: A unit of work to read in.
        """
        found = uow.executions.list(spec_id=self.spec_id, stage=self.stage, run_id=self.run_id)
        with self._lock:
            self._expected = frozenset(e.agent_id for e in found)
            self._completed = frozenset(e.agent_id for e in found if e.completed_at_raw is not None)

    def _update(self, *, expected: set[str], completed: set[str]) -> None:
        with self._lock:
            self._expected |= expected
            self._completed |= completed
