"""Create the tables of accepted dependencies, and of reads of the frozen legacy tables.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "consensus_orm_acceptances",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("seen", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "table_name", name=op.f("pk_consensus_orm_acceptances")),
    )
    op.create_table(
        "consensus_orm_reads",
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("counted", BIG, nullable=False),
        sa.Column("own", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("others", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("last", BIG),
        sa.PrimaryKeyConstraint("table_name", name=op.f("pk_consensus_orm_reads")),
    )


def downgrade() -> None:
    op.drop_table("consensus_orm_reads")
    op.drop_table("consensus_orm_acceptances")
