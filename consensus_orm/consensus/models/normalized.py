"""The normalized tables: runs, their agents' outputs, and their syntheses.

The columns of the founding schema keep their names and types. Further columns restore every legacy row exactly:
`run_id` and `run_key` of a run, `response_text` and `created_at` of an output, and a table for syntheses, of which a
run may have several. Large columns come last: SQLite reads a row from its start, and to reach a column behind 8 KB of
content it walks through overflow pages.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index, Text, UniqueConstraint, false, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from consensus_orm.models.base import BIG, Base, Verbatim

__all__ = ["AgentOutput", "ConsensusRun", "ConsensusSynthesisRecord"]


class ConsensusRun(Base):
    """One round of agents on one stage of one spec; it lives as long as it has an output or a synthesis."""

    __tablename__ = "consensus_runs"
    # run_key is NULL only for runs of programs that know the founding schema alone, until they are adopted.
    __table_args__ = (
        UniqueConstraint("spec_id", "stage", "run_key"),
        Index("idx_consensus_runs_newest", "spec_id", "stage", "run_timestamp"),
        # Most runs have no run id, and are not in this index.
        Index(
            "idx_consensus_runs_run",
            "run_id",
            sqlite_where=text("run_id IS NOT NULL"),
            postgresql_where=text("run_id IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    spec_id: Mapped[str] = mapped_column(Text)
    stage: Mapped[str] = mapped_column(Text)
    run_id: Mapped[str | None] = mapped_column(Text)
    """The run id its rows carry, as text; NULL and '' are different."""
    run_key: Mapped[str | None] = mapped_column(Text)
    """Identity within spec and stage: the run id, or the second its rows share (rule 4)."""
    run_timestamp: Mapped[int] = mapped_column(BIG)
    """Earliest created_at of its rows, ms since 1970 UTC; 0 where one is not a time."""
    consensus_ok: Mapped[bool] = mapped_column(Boolean)
    degraded: Mapped[bool | None] = mapped_column(Boolean, server_default=false())
    synthesis_json: Mapped[str | None] = mapped_column(Text)
    """The latest synthesis as JSON, as the founding program wrote it; NULL where it cannot be JSON."""

    outputs: Mapped[list[AgentOutput]] = relationship(
        back_populates="run", passive_deletes=True, order_by="AgentOutput.output_timestamp.desc()"
    )
    syntheses: Mapped[list[ConsensusSynthesisRecord]] = relationship(
        back_populates="run",
        passive_deletes=True,
        order_by="ConsensusSynthesisRecord.synthesis_timestamp.desc()",
    )


class AgentOutput(Base):
    """The output of one agent in a run; one for each legacy artifact, with its id."""

    __tablename__ = "agent_outputs"
    __table_args__ = (
        Index("idx_agent_outputs_run", "run_id", "output_timestamp"),
        Index("idx_agent_outputs_agent", "agent_name"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("consensus_runs.id", ondelete="CASCADE"))
    agent_name: Mapped[str] = mapped_column(Text)
    model_version: Mapped[str | None] = mapped_column(Text)
    output_timestamp: Mapped[int] = mapped_column(BIG)
    """`created_at` in ms since 1970 UTC; 0 where it is not a time."""
    created_at: Mapped[Any | None] = mapped_column(Verbatim("TIMESTAMP"))
    """The legacy value itself, with the affinity of its column."""
    mirrored: Mapped[bool] = mapped_column(Boolean, server_default=false())
    """Whether its writer wrote the legacy side, too; 0 marks a row of another program, not yet adopted."""
    response_text: Mapped[str | None] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)

    run: Mapped[ConsensusRun] = relationship(back_populates="outputs")


class ConsensusSynthesisRecord(Base):
    """One synthesis of a run; one for each legacy synthesis, with its id."""

    __tablename__ = "consensus_syntheses"
    __table_args__ = (
        Index("idx_consensus_syntheses_run", "run_id", "synthesis_timestamp"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("consensus_runs.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(Text)
    artifacts_count: Mapped[int | None] = mapped_column(BIG)
    degraded: Mapped[Any | None] = mapped_column(Verbatim("BOOLEAN"))
    """The legacy value itself: 0, 1, NULL, or whatever else was stored."""
    synthesis_timestamp: Mapped[int] = mapped_column(BIG)
    """`created_at` in ms since 1970 UTC; 0 where it is not a time."""
    created_at: Mapped[Any | None] = mapped_column(Verbatim("TIMESTAMP"))
    mirrored: Mapped[bool] = mapped_column(Boolean, server_default=false())
    output_path: Mapped[str | None] = mapped_column(Text)
    agreements: Mapped[str | None] = mapped_column(Text)
    conflicts: Mapped[str | None] = mapped_column(Text)
    output_markdown: Mapped[str] = mapped_column(Text)

    run: Mapped[ConsensusRun] = relationship(back_populates="syntheses")
