"""Create the table of samples: what was written and carried in each minute of the last day, and how fast.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "consensus_orm_samples",
        sa.Column("minute", BIG, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("build", sa.Text(), nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("took", BIG, nullable=False),
        sa.Column("longest", BIG, nullable=False),
        sa.PrimaryKeyConstraint(
            "minute", "kind", "name", "application", "process", name=op.f("pk_consensus_orm_samples")
        ),
    )


def downgrade() -> None:
    op.drop_table("consensus_orm_samples")
