"""Create the control row, by which an operator steers a migration that runs in another process.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Milliseconds grow past 2^31; in SQLite only INTEGER is the rowid.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "consensus_orm_control",
        sa.Column("id", BIG, autoincrement=False, nullable=False),
        sa.Column("paused_at", BIG),
        sa.Column("throttle", BIG),
        sa.Column("held_at", BIG),
        sa.Column("by", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consensus_orm_control")),
        sa.CheckConstraint("id = 1", name=op.f("ck_consensus_orm_control_one_row")),
    )


def downgrade() -> None:
    op.drop_table("consensus_orm_control")
