"""Databases with a legacy history, and stores taken to a phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from consensus_orm.databases.opening import parse_url
from consensus_orm.models import Base
from consensus_orm.phase import Phase
from consensus_orm.testing.session import session_on

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from consensus_orm.consensus.store import ConsensusStore

__all__ = ["legacy_file", "legacy_history", "take_to"]


@contextmanager
def legacy_file(path: str | Path) -> Iterator[Session]:
    """Make a file as a program of the field made it, and fill it with model factories.

    Args:
        path: The file, or the URL of a database; legacy tables and agent_executions are created where they are missing.

    Yields:
        The session in use; committed at the end.
    """
    from consensus_orm.consensus.models.executions import AgentExecution
    from consensus_orm.consensus.models.legacy import ConsensusArtifact, ConsensusSynthesis

    engine = create_engine(parse_url(path), poolclass=NullPool)
    tables = [Base.metadata.tables[m.__tablename__] for m in (ConsensusArtifact, ConsensusSynthesis, AgentExecution)]
    Base.metadata.create_all(engine, tables)
    engine.dispose()
    with session_on(path) as session:
        yield session


def legacy_history(path: str | Path) -> None:
    """Make a legacy database with the history that `every_phase` begins with: rounds, syntheses, executions.

    Args:
        path: The file, or the URL of a database.
    """
    from consensus_orm.testing.models import (
        AgentExecutionFactory,
        ConsensusArtifactFactory,
        ConsensusSynthesisFactory,
    )

    with legacy_file(path) as session:
        ConsensusArtifactFactory.create_batch(4)
        ConsensusSynthesisFactory.create()
        ConsensusArtifactFactory.create_batch(3, stage="spec-tasks", time_shape="later", run_shape="named")
        ConsensusSynthesisFactory.create(stage="spec-tasks", time_shape="later", run_shape="named", failed=True)
        ConsensusArtifactFactory.create(time_shape="null", content_shape="template")
        ConsensusArtifactFactory.create(run_shape="empty", content_shape="blob" if _holds_anything(session) else "log")
        AgentExecutionFactory.create(completed=True)
        AgentExecutionFactory.create()


def _holds_anything(session: Session) -> bool:
    """Whether a column holds values of any type: on a server it has one."""
    return session.get_bind().dialect.name == "sqlite"


def take_to(store: ConsensusStore, phase: Phase) -> None:
    """Take a store to a phase, forward or back, through every gate in between but the soak times.

    Where both sides are written, they hold the same afterwards: the backfill is complete.

    Args:
        store: The store; upgraded first.
        phase: The phase to reach.
    """
    migration = store.migration
    migration.upgrade()
    while migration.phase < phase:
        now = migration.phase
        if now.compares:
            migration.backfill()
        if now.writes_normalized:
            migration.verify()
        migration.advance(soak=False)
    if migration.phase > phase:
        migration.rollback(phase)
    if phase.compares:
        migration.backfill()
