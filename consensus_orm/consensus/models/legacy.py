"""The legacy tables, exactly as they are in the field.

Nothing here may be improved, since files made by other programs have these tables. Columns that hold values of any
type (`created_at`, `degraded`) are mapped without a Python type.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from consensus_orm.models.base import BIG, Base, Verbatim, current_second

__all__ = ["ConsensusArtifact", "ConsensusSynthesis"]


class ConsensusArtifact(Base):
    """The statement of one agent: a flat row that repeats spec, stage and run."""

    __tablename__ = "consensus_artifacts"
    __table_args__ = (Index("idx_spec_stage", "spec_id", "stage"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    spec_id: Mapped[str] = mapped_column(Text)
    stage: Mapped[str] = mapped_column(Text)
    agent_name: Mapped[str] = mapped_column(Text)
    content_json: Mapped[str] = mapped_column(Text)
    response_text: Mapped[str | None] = mapped_column(Text)
    run_id: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[Any | None] = mapped_column(Verbatim("TIMESTAMP"), server_default=current_second())


class ConsensusSynthesis(Base):
    """The synthesis of a stage: a flat row that repeats spec, stage and run."""

    __tablename__ = "consensus_synthesis"
    __table_args__ = (Index("idx_synthesis_spec_stage", "spec_id", "stage"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    spec_id: Mapped[str] = mapped_column(Text)
    stage: Mapped[str] = mapped_column(Text)
    output_markdown: Mapped[str] = mapped_column(Text)
    output_path: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    artifacts_count: Mapped[int | None] = mapped_column(BIG)
    agreements: Mapped[str | None] = mapped_column(Text)
    conflicts: Mapped[str | None] = mapped_column(Text)
    degraded: Mapped[Any | None] = mapped_column(Verbatim("BOOLEAN"), server_default=text("0"))
    run_id: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[Any | None] = mapped_column(Verbatim("TIMESTAMP"), server_default=current_second())
