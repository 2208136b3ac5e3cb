"""Let the ledgers hold keys of any kind on PostgreSQL: texts, UUIDs, and keys of several columns.

A key stands there as JSON, in a column of text; so a number is what it was, and triggers go on to store it. SQLite has
columns without a type, which hold all of them already.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from consensus_orm.errors import DowngradeRefusedError

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

KEYS = {
    "consensus_orm_mismatches": "key",
    "consensus_orm_rejects": "key",
    "consensus_orm_images": "key",
    "consensus_orm_changes": "key",
    "consensus_orm_outbox": "key",
    "consensus_orm_sink_findings": "key",
    "consensus_orm_sink_imports": "key",
    "consensus_orm_backfill": "last_key",
}
"""The ledgers, and their columns of keys."""

NUMBER = "^-?[0-9]+$"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, column in KEYS.items():
        op.alter_column(
            table, column, existing_type=sa.BigInteger(), type_=sa.Text(), postgresql_using=f"CAST({column} AS TEXT)"
        )


def downgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return
    for table, column in KEYS.items():
        found = sa.column(column, sa.Text())
        others = sa.select(sa.func.count()).select_from(sa.table(table)).where(found.op("!~")(NUMBER))
        if count := bind.scalar(others):
            raise DowngradeRefusedError(
                f"{table} holds {count} keys that are no numbers",
                hint="the release before knows no such keys; stay at revision 0010",
                table=table,
            )
    for table, column in KEYS.items():
        op.alter_column(
            table, column, existing_type=sa.Text(), type_=sa.BigInteger(), postgresql_using=f"CAST({column} AS BIGINT)"
        )
