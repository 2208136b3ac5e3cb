"""ConsensusStore: the store of the consensus data, and its unit of work."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy import URL, Engine

from consensus_orm import validation as check
from consensus_orm.consensus.application import APPLICATION, application_of, place
from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.consensus.executions import Executions
from consensus_orm.consensus.runs import Runs
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.declaration.moves import Moves
from consensus_orm.settings import Settings, from_environment
from consensus_orm.store import RepositoryUnitOfWork, Store

if TYPE_CHECKING:
    from consensus_orm.rehearsal.application import Rehearsed

__all__ = ["ConsensusStore", "ConsensusUnitOfWork"]


class ConsensusUnitOfWork(RepositoryUnitOfWork):
    """A unit of work with the repositories of the consensus data."""

    @cached_property
    def artifacts(self) -> Artifacts:
        """The artifacts: what agents said."""
        return Artifacts(self)

    @cached_property
    def syntheses(self) -> Syntheses:
        """The syntheses: what agents agreed on."""
        return Syntheses(self)

    @cached_property
    def runs(self) -> Runs:
        """The runs: rounds of agents with their outputs and syntheses."""
        return Runs(self)

    @cached_property
    def executions(self) -> Executions:
        """The executions: spawned agents, and how each ended."""
        return Executions(self)


class ConsensusStore(Store[ConsensusUnitOfWork]):
    """The consensus data of one database, whichever schema is live.

    Open it once and share it between threads; take a unit of work for each piece of work.

    Args:
        engine: An engine of the database, as of `Store`.
        moves: The declaration of what is moved; the consensus tables where left out.
        settings: The settings; read from the environment where left out.
    """

    _unit_type = ConsensusUnitOfWork

    @property
    def _rehearsed(self) -> Rehearsed | None:
        """How a rehearsal writes and judges the consensus data; None for other moves."""
        if self.application is not APPLICATION:
            return None
        from consensus_orm.consensus.rehearsed import REHEARSED  # loads the rehearsal: not at start-up

        return REHEARSED

    def __init__(self, engine: Engine, moves: Moves = CONSENSUS, settings: Settings | None = None) -> None:
        super().__init__(engine, moves, settings, application=application_of(moves))

    @classmethod
    def open(
        cls,
        url: str | Path | URL | None = None,
        *,
        settings: Settings | None = None,
        echo: bool = False,
        moves: Moves = CONSENSUS,
        password: Callable[[], str] | None = None,
    ) -> Self:
        """Open a database; inspects it and writes nothing.

        Args:
            url: Any SQLAlchemy URL, or a path; `CONSENSUS_ORM_URL`, else `~/.code/consensus_artifacts.db`,
                where left out.
            settings: The settings; read from the environment where left out.
            echo: Log each statement that goes through SQLAlchemy.
            moves: The declaration of what is moved; the consensus tables where left out.
            password: Called at each connect for the password for a server, where it changes; as the setting.

        Returns:
            The store; a context manager that closes it.

        Raises:
            ConfigurationError: The URL or a setting cannot be used.
            SchemaError: The file holds tables of our names with an unknown schema.
            StorageError: The file cannot be read.
        """
        chosen = from_environment() if settings is None else check.instance("settings", settings, Settings)
        return super().open(place(url, chosen), moves=moves, settings=chosen, echo=echo, password=password)
