"""Create the table of agent executions, where there is none yet.

An existing table is not changed, whether it has 8 or 11 columns: other programs read it, too.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from consensus_orm.errors import DowngradeRefusedError

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if sa.inspect(op.get_bind()).has_table("agent_executions"):
        return
    if not sa.inspect(op.get_bind()).has_table("consensus_runs"):
        return  # of another move
    op.create_table(
        "agent_executions",
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("spec_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("phase_type", sa.Text(), nullable=False),
        sa.Column("agent_name", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text()),
        sa.Column("spawned_at", sa.Text(), nullable=False),
        sa.Column("completed_at", sa.Text()),
        sa.Column("response_text", sa.Text()),
        sa.Column("extraction_error", sa.Text()),
        sa.Column("branch_id", sa.Text()),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("pk_agent_executions")),
    )
    op.create_index("idx_agent_executions_spec", "agent_executions", ["spec_id", "stage"])
    op.create_index("idx_agent_executions_run", "agent_executions", ["run_id"])
    op.create_index("idx_agent_executions_branch", "agent_executions", ["spec_id", "stage", "branch_id"])


def downgrade() -> None:
    bind = op.get_bind()
    detail = bind.scalar(sa.text("SELECT detail FROM consensus_orm_history WHERE action = 'adopt'"))
    if "agent_executions" in map(str.lower, json.loads(detail)["found"]):
        return
    if not sa.inspect(bind).has_table("agent_executions"):
        return  # of another move
    if count := bind.scalar(sa.text("SELECT count(*) FROM agent_executions")):
        raise DowngradeRefusedError(
            f"agent_executions holds {count} rows",
            hint="older programs read this table too; stay at revision 0004",
            table="agent_executions",
        )
    op.drop_table("agent_executions")
