"""Makes databases with a legacy history, and takes stores to a phase."""

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
    """Make a file as a program of the field would, and fill it with model factories.

    Args:
        path: The file, or the URL of a database; missing legacy tables and agent_executions are created.

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
    """Make the legacy database that `every_phase` begins with, at a path or URL: rounds, syntheses, executions."""
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
    """Whether a column holds values of any type."""
    return session.get_bind().dialect.name == "sqlite"


def take_to(store: ConsensusStore, phase: Phase) -> None:
    """Upgrade a store and take it to a phase, forward or back, through every gate except the soak times.

    In a phase that writes both sides, the backfill is complete afterwards.
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
