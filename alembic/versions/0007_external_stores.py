"""Create the outbox of external stores, their stages, findings, imports and certificates.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from consensus_orm.errors import DowngradeRefusedError

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# ids grow past 2^31; in SQLite only INTEGER is the rowid.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class Untyped(sa.types.UserDefinedType[Any]):
    """A column without a type, hence without affinity: keys stay as they are in their own table."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """No type name."""
        return ""


KEY = Untyped().with_variant(sa.BigInteger(), "postgresql")
WAITING = sa.text("settled_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "consensus_orm_sinks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("stage", BIG, nullable=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.Column("since", BIG, nullable=False),
        sa.Column("soak", BIG),
        sa.Column("imported_at", BIG),
        sa.Column("exported_at", BIG),
        sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("lease_until", BIG),
        sa.Column("alarmed_at", BIG),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_consensus_orm_sinks")),
        sa.CheckConstraint("stage BETWEEN 0 AND 3", name=op.f("ck_consensus_orm_sinks_known_stage")),
    )
    op.create_table(
        "consensus_orm_outbox",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("key", KEY),
        sa.Column("op", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text()),
        sa.Column("at", BIG, nullable=False),
        sa.Column("tries", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("retry_at", BIG),
        sa.Column("settled_at", BIG),
        sa.Column("outcome", sa.Text()),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "idx_consensus_orm_outbox_waiting",
        "consensus_orm_outbox",
        ["sink", "pair", "key"],
        sqlite_where=WAITING,
        postgresql_where=WAITING,
    )
    op.create_table(
        "consensus_orm_sink_findings",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("pair", sa.Text()),
        sa.Column("key", KEY),
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("content", sa.Text()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("found_at", BIG, nullable=False),
        sa.Column("settled_at", BIG),
        sa.Column("note", sa.Text()),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_consensus_orm_sink_findings_open", "consensus_orm_sink_findings", ["sink", "state", "item"])
    op.create_table(
        "consensus_orm_sink_imports",
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("key", KEY),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("sink", "item", name=op.f("pk_consensus_orm_sink_imports")),
    )
    op.create_table(
        "consensus_orm_sink_certificates",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("build", sa.Text(), nullable=False),
        sa.Column("mapping", sa.Text(), nullable=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.Column("sequence", BIG, nullable=False),
        sa.Column("provable", sa.Boolean(), nullable=False),
        sa.Column("rows", BIG, nullable=False),
        sa.Column("items", BIG, nullable=False),
        sa.Column("in_flight", BIG, nullable=False),
        sa.Column("differences", BIG, nullable=False),
        sa.Column("last_finding", BIG, nullable=False),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    bind = op.get_bind()
    if stages := bind.scalar(sa.text("SELECT count(*) FROM consensus_orm_sinks WHERE stage <> 0")):
        raise DowngradeRefusedError(
            f"{stages} external stores are not at stage OFF",
            hint="run: consensus-orm external rollback off",
            table="consensus_orm_sinks",
        )
    if kept := bind.scalar(
        sa.text(
            "SELECT (SELECT count(*) FROM consensus_orm_sink_imports)"
            " + (SELECT count(*) FROM consensus_orm_sink_findings WHERE content IS NOT NULL)"
        )
    ):
        raise DowngradeRefusedError(
            f"the tables of external stores hold {kept} entries that tell where rows came from or what was overwritten",
            hint="they are kept nowhere else; stay at revision 0007",
            table="consensus_orm_sink_findings",
        )
    for table in ("sink_certificates", "sink_imports", "sink_findings", "outbox", "sinks"):
        op.drop_table(f"consensus_orm_{table}")
