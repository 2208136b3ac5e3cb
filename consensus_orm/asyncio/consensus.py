"""AsyncConsensusStore: the store of the consensus data, for coroutines.

async with await AsyncConsensusStore.open("artifacts.db") as store:
async with store.unit_of_work() as uow:
await uow.artifacts.add(spec_id="SPEC-1", stage="plan", agent_name="gemini", content_json="{}")
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Self

from sqlalchemy import URL

from consensus_orm.asyncio.calls import Asynchronous, asynchronous, streamed
from consensus_orm.asyncio.store import BaseAsyncStore
from consensus_orm.asyncio.unit_of_work import AsyncUnitOfWork
from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.consensus.executions import Executions
from consensus_orm.consensus.runs import Runs
from consensus_orm.consensus.store import ConsensusStore, ConsensusUnitOfWork
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.declaration.moves import Moves
from consensus_orm.settings import Settings

__all__ = [
    "AsyncArtifacts",
    "AsyncConsensusStore",
    "AsyncConsensusUnitOfWork",
    "AsyncExecutions",
    "AsyncRuns",
    "AsyncSyntheses",
]


class AsyncArtifacts(Asynchronous):
    """`Artifacts`, to be awaited."""

    add = asynchronous(Artifacts.add)
    add_many = asynchronous(Artifacts.add_many)
    update = asynchronous(Artifacts.update)
    get = asynchronous(Artifacts.get)
    get_many = asynchronous(Artifacts.get_many)
    exists = asynchronous(Artifacts.exists)
    list = asynchronous(Artifacts.list)
    iterate = streamed(Artifacts.iterate)
    list_and_count = asynchronous(Artifacts.list_and_count)
    count = asynchronous(Artifacts.count)
    delete = asynchronous(Artifacts.delete)
    specs = asynchronous(Artifacts.specs)


class AsyncSyntheses(Asynchronous):
    """`Syntheses`, to be awaited."""

    add = asynchronous(Syntheses.add)
    put = asynchronous(Syntheses.put)
    update = asynchronous(Syntheses.update)
    get = asynchronous(Syntheses.get)
    get_many = asynchronous(Syntheses.get_many)
    exists = asynchronous(Syntheses.exists)
    latest = asynchronous(Syntheses.latest)
    list = asynchronous(Syntheses.list)
    iterate = streamed(Syntheses.iterate)
    list_and_count = asynchronous(Syntheses.list_and_count)
    count = asynchronous(Syntheses.count)
    delete = asynchronous(Syntheses.delete)


class AsyncRuns(Asynchronous):
    """`Runs`, to be awaited."""

    list = asynchronous(Runs.list)
    iterate = streamed(Runs.iterate)
    latest = asynchronous(Runs.latest)


class AsyncExecutions(Asynchronous):
    """`Executions`, to be awaited."""

    record_spawn = asynchronous(Executions.record_spawn)
    record_completion = asynchronous(Executions.record_completion)
    record_extraction_failure = asynchronous(Executions.record_extraction_failure)
    get = asynchronous(Executions.get)
    get_many = asynchronous(Executions.get_many)
    exists = asynchronous(Executions.exists)
    list = asynchronous(Executions.list)
    iterate = streamed(Executions.iterate)
    list_and_count = asynchronous(Executions.list_and_count)
    count = asynchronous(Executions.count)
    in_flight = asynchronous(Executions.in_flight)
    extraction_failures = asynchronous(Executions.extraction_failures)
    for_branch = asynchronous(Executions.for_branch)
    cleanup = asynchronous(Executions.cleanup)
    delete = asynchronous(Executions.delete)


class AsyncConsensusUnitOfWork(AsyncUnitOfWork[ConsensusUnitOfWork]):
    """A `ConsensusUnitOfWork` to be awaited."""

    @cached_property
    def artifacts(self) -> AsyncArtifacts:
        """The artifacts: what agents said."""
        return AsyncArtifacts(lambda: self._sync.artifacts, self._call)

    @cached_property
    def syntheses(self) -> AsyncSyntheses:
        """The syntheses: what agents agreed on."""
        return AsyncSyntheses(lambda: self._sync.syntheses, self._call)

    @cached_property
    def runs(self) -> AsyncRuns:
        """The runs: rounds of agents with their outputs and syntheses."""
        return AsyncRuns(lambda: self._sync.runs, self._call)

    @cached_property
    def executions(self) -> AsyncExecutions:
        """The executions: spawned agents, and how each ended."""
        return AsyncExecutions(lambda: self._sync.executions, self._call)


class AsyncConsensusStore(BaseAsyncStore[AsyncConsensusUnitOfWork]):
    """A `ConsensusStore` for coroutines."""

    _unit_type = AsyncConsensusUnitOfWork
    sync_store: ConsensusStore

    @classmethod
    async def open(
        cls,
        url: str | Path | URL | None = None,
        *,
        settings: Settings | None = None,
        echo: bool = False,
        moves: Moves = CONSENSUS,
        password: Callable[[], str] | None = None,
    ) -> Self:
        """Open a database with the arguments of `ConsensusStore.open`, which says what errors it raises.

        Returns:
            The store; an asynchronous context manager that closes it.
        """
        opened = partial(ConsensusStore.open, url, settings=settings, echo=echo, moves=moves, password=password)
        return cls(await cls._opened(opened))
