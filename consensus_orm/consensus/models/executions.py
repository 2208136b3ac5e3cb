"""Agent executions: one table in every phase, not part of the move."""

from __future__ import annotations

from sqlalchemy import Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from consensus_orm.models.base import Base

__all__ = ["AgentExecution"]


class AgentExecution(Base):
    """One spawn of one agent, and how it ended.

    Files in the field have 8, 9, 10 or 11 of these columns, in two orders; what is missing is added when the
    first value for it is written, never before: other programs read this table too. For the same reason a table that
    another program made gets no index of ours: there `in_flight()` and `cleanup` read it whole, until its owner adds
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
