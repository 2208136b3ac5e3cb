"""The table of agent executions, which is the same in every phase and not moved."""

from __future__ import annotations

from sqlalchemy import Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from consensus_orm.models.base import Base

__all__ = ["AgentExecution"]


class AgentExecution(Base):
    """One spawn of one agent, and how it ended.

    Files in the field have 8 to 11 of these columns, in two orders. A missing column is added when its first value is
    written, never before, because other programs read this table, too. For the same reason a table that another
    program made gets no index of ours: there `in_flight()` and `cleanup` read all of it, until its owner adds
    `idx_agent_executions_completed`.
    """

    __tablename__ = "agent_executions"
    __table_args__ = (
        Index("idx_agent_executions_spec", "spec_id", "stage"),
        Index("idx_agent_executions_run", "run_id"),
        Index("idx_agent_executions_branch", "spec_id", "stage", "branch_id"),
        Index("idx_agent_executions_completed", "completed_at"),
    )

    agent_id: Mapped[str] = mapped_column(Text, primary_key=True)
    spec_id: Mapped[str] = mapped_column(Text)
    stage: Mapped[str] = mapped_column(Text)
    phase_type: Mapped[str] = mapped_column(Text)
    agent_name: Mapped[str] = mapped_column(Text)
    run_id: Mapped[str | None] = mapped_column(Text)
    spawned_at: Mapped[str] = mapped_column(Text)
    completed_at: Mapped[str | None] = mapped_column(Text)
    response_text: Mapped[str | None] = mapped_column(Text)
    extraction_error: Mapped[str | None] = mapped_column(Text)
    branch_id: Mapped[str | None] = mapped_column(Text)
