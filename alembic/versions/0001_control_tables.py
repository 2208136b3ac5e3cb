"""Create the control tables, and set the phase in which the database starts.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from alembic import op

from consensus_orm.errors import DowngradeRefusedError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LEGACY = ("consensus_artifacts", "consensus_synthesis")
FOUND = (*LEGACY, "consensus_runs", "agent_outputs", "agent_executions")
EXPAND, CONTRACT = 1, 5

# ids grow past 2^31; in SQLite only INTEGER is the rowid.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class Untyped(sa.types.UserDefinedType[Any]):
    """A column without a type, hence without affinity: keys stay as they are in their own table."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """No type name."""
        return ""


KEY = Untyped().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    legacy = _attribute("legacy") or LEGACY
    ours = {name.lower() for name in (*FOUND, *legacy)}
    found = [name for name in sa.inspect(op.get_bind()).get_table_names() if name.lower() in ours]
    _create_tables()
    _adopt(found, EXPAND if {name.lower() for name in legacy} & {name.lower() for name in found} else CONTRACT)


def _attribute(name: str) -> Any:
    """An attribute that the program which runs the revisions has set; None under the alembic command line."""
    return op.get_context().config.attributes.get(name)  # type: ignore[union-attr] # alembic always has one here


def _create_tables() -> None:
    op.create_table(
        "consensus_orm_state",
        sa.Column("id", BIG, autoincrement=False, nullable=False),
        sa.Column("phase", BIG, nullable=False),
        sa.Column("epoch", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("since", BIG, nullable=False),
        sa.Column("mapping", sa.Text()),
        sa.Column("step", sa.Text()),
        sa.Column("carrying", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consensus_orm_state")),
        sa.CheckConstraint("id = 1", name=op.f("ck_consensus_orm_state_one_row")),
        sa.CheckConstraint("phase BETWEEN 1 AND 5", name=op.f("ck_consensus_orm_state_known_phase")),
    )
    op.create_table(
        "consensus_orm_history",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("from_phase", BIG),
        sa.Column("to_phase", BIG),
        sa.Column("at", BIG, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("forced", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("detail", sa.Text()),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "consensus_orm_mismatches",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("key", KEY),
        sa.Column("column_name", sa.Text()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("found_by", sa.Text(), nullable=False),
        sa.Column("found_at", BIG, nullable=False),
        sa.Column("seen", BIG, server_default=sa.text("1"), nullable=False),
        sa.Column("settled_at", BIG),
        sa.Column("note", sa.Text()),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "idx_consensus_orm_mismatches_open",
        "consensus_orm_mismatches",
        ["state", "pair", "column_name", "key"],
    )
    op.create_table(
        "consensus_orm_rejects",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("key", KEY),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("found_at", BIG, nullable=False),
        sa.Column("settled_at", BIG),
        sa.Column("note", sa.Text()),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_consensus_orm_rejects_pair", "consensus_orm_rejects", ["pair", "key"])
    op.create_table(
        "consensus_orm_backfill",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("last_key", KEY),
        sa.Column("rows", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("finished", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("started_at", BIG, nullable=False),
        sa.Column("updated_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("pair", name=op.f("pk_consensus_orm_backfill")),
    )
    op.create_table(
        "consensus_orm_certificates",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("at", BIG, nullable=False),
        sa.Column("build", sa.Text(), nullable=False),
        sa.Column("mapping", sa.Text(), nullable=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.Column("legacy_rows", BIG, nullable=False),
        sa.Column("normalized_rows", BIG, nullable=False),
        sa.Column("compared", BIG, nullable=False),
        sa.Column("differences", BIG, nullable=False),
        sa.Column("rejects", BIG, nullable=False),
        sa.Column("changes", BIG, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "consensus_orm_changes",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("key", KEY),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("op", sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_consensus_orm_changes_key", "consensus_orm_changes", ["pair", "key"])
    op.create_table(
        "consensus_orm_saved_schema",
        sa.Column("position", BIG, autoincrement=False, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("sql", sa.Text(), nullable=False),
        sa.Column("sequence", BIG),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_consensus_orm_saved_schema")),
    )


def _adopt(found: list[str], phase: int) -> None:
    """Record the first phase, and which of our tables the database had: a downgrade leaves those alone."""
    now = _now()
    op.get_bind().execute(
        sa.text("INSERT INTO consensus_orm_state (id, phase, epoch, since) VALUES (1, :phase, 0, :now)"),
        {"phase": phase, "now": now},
    )
    op.get_bind().execute(
        sa.text(
            "INSERT INTO consensus_orm_history (action, to_phase, at, by, detail)"
            " VALUES ('adopt', :phase, :now, :by, :detail)"
        ),
        {"phase": phase, "now": now, "by": _user(), "detail": json.dumps({"found": sorted(found)})},
    )


def _now() -> int:
    clock = _attribute("clock") or (lambda: datetime.now(UTC))
    return int((clock() - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in some containers
        return "unknown"


def downgrade() -> None:
    count = op.get_bind().scalar(
        sa.text(
            "SELECT (SELECT count(*) FROM consensus_orm_rejects)"
            " + (SELECT count(*) FROM consensus_orm_saved_schema)"
            # The backup of a file whose tables were made anew belongs to the adoption.
            " + (SELECT count(*) FROM consensus_orm_history WHERE action NOT IN ('adopt', 'backup'))"
        )
    )
    if count:
        raise DowngradeRefusedError(
            f"the control tables hold {count} rejects, saved definitions or entries of the audit",
            hint="they are kept nowhere else; leave the control tables where they are",
        )
    for table in (
        "consensus_orm_saved_schema",
        "consensus_orm_changes",
        "consensus_orm_certificates",
        "consensus_orm_backfill",
        "consensus_orm_rejects",
        "consensus_orm_mismatches",
        "consensus_orm_history",
        "consensus_orm_state",
    ):
        op.drop_table(table)
