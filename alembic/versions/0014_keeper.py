"""Create the row of the keeper: which process holds its lease, and when it last did what.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# Milliseconds grow past 2^31; in SQLite only INTEGER is the rowid.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "consensus_orm_keeper",
        sa.Column("id", BIG, autoincrement=False, nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("lease_until", BIG),
        sa.Column("verified_at", BIG),
        sa.Column("backed_up_at", BIG),
        sa.Column("vacuumed_at", BIG),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consensus_orm_keeper")),
        sa.CheckConstraint("id = 1", name=op.f("ck_consensus_orm_keeper_one_row")),
    )


def downgrade() -> None:
    op.drop_table("consensus_orm_keeper")
