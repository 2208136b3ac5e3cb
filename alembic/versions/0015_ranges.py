"""Create the table of ranges, which workers of a backfill claim and carry at the same time.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class Untyped(sa.types.UserDefinedType[Any]):
    """A column without a type: in SQLite a key stays as it is in its own table; on a server it is stored as JSON."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Nothing."""
        return ""


KEY = Untyped().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "consensus_orm_ranges",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("number", BIG, autoincrement=False, nullable=False),
        sa.Column("first_key", KEY),
        sa.Column("last_key", KEY),
        sa.Column("rows", BIG, nullable=False),
        sa.Column("begins_at", BIG, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pair", "number", name=op.f("pk_consensus_orm_ranges")),
    )


def downgrade() -> None:
    op.drop_table("consensus_orm_ranges")
