"""Create the record of guards, the demands of a phase, and the images of rows that were overwritten.

And indexes: for the newest run of a stage, for queries by run id alone, and for the completion of an agent.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from consensus_orm.errors import DowngradeRefusedError

revision = "0005"
down_revision = "0004"
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

PROTECTED = 3
"""The user_version that an upgrade gave the file, so that the founding builds refuse it."""

DEMANDS = ("soak", "certificate_max_age", "schema_version", "user_version")
"""New columns of the state; they are NULL until the next change of phase."""

SEEN = ("missed", "last_mismatch", "last_reject")
"""New columns of the certificates; a certificate in which they are NULL opens no gate."""


def upgrade() -> None:
    for name in DEMANDS:
        op.add_column("consensus_orm_state", sa.Column(name, BIG))
    for name in SEEN:
        op.add_column("consensus_orm_certificates", sa.Column(name, BIG))
    op.add_column(
        "consensus_orm_changes", sa.Column("undecided", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.create_index(
        "idx_consensus_orm_changes_undecided",
        "consensus_orm_changes",
        ["pair", "key"],
        sqlite_where=sa.text("undecided"),
        postgresql_where=sa.text("undecided"),
    )
    op.create_table(
        "consensus_orm_guards",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("made", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_consensus_orm_guards")),
    )
    op.create_table(
        "consensus_orm_images",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("key", KEY),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("restored_at", BIG),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_consensus_orm_images_pair", "consensus_orm_images", ["pair", "key"])
    _index()


def downgrade() -> None:
    if count := op.get_bind().scalar(sa.text("SELECT count(*) FROM consensus_orm_images")):
        raise DowngradeRefusedError(
            f"consensus_orm_images holds {count} rows that were overwritten or deleted",
            hint="they are kept nowhere else; stay at revision 0005",
            table="consensus_orm_images",
        )
    op.drop_index("idx_agent_executions_completed", "agent_executions", if_exists=True)
    op.drop_index("idx_consensus_runs_run", "consensus_runs", if_exists=True)
    op.drop_index("idx_consensus_runs_newest", "consensus_runs", if_exists=True)
    _give_user_version_back()
    _drop_signs()
    op.drop_table("consensus_orm_images")
    op.drop_table("consensus_orm_guards")
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP VIEW IF EXISTS consensus_orm_guarded")
    op.drop_index("idx_consensus_orm_changes_undecided", "consensus_orm_changes")
    op.drop_column("consensus_orm_changes", "undecided")
    for name in reversed(SEEN):
        op.drop_column("consensus_orm_certificates", name)
    for name in reversed(DEMANDS):
        op.drop_column("consensus_orm_state", name)


def _index() -> None:
    """Create indexes on tables that revisions made; a table of another program is not changed."""
    bind = op.get_bind()
    if not sa.inspect(bind).has_table("consensus_runs"):
        return  # of another move
    op.create_index("idx_consensus_runs_newest", "consensus_runs", ["spec_id", "stage", "run_timestamp"])
    op.create_index(
        "idx_consensus_runs_run",
        "consensus_runs",
        ["run_id"],
        sqlite_where=sa.text("run_id IS NOT NULL"),
        postgresql_where=sa.text("run_id IS NOT NULL"),
    )
    detail = bind.scalar(sa.text("SELECT detail FROM consensus_orm_history WHERE action = 'adopt'"))
    if "agent_executions" not in map(str.lower, json.loads(detail)["found"]):
        op.create_index("idx_agent_executions_completed", "agent_executions", ["completed_at"])


def _give_user_version_back() -> None:
    """Restore the user_version that the founding builds expect, unless another one was set since."""
    bind = op.get_bind()
    kept = bind.scalar(sa.text("SELECT user_version FROM consensus_orm_state"))
    if kept is None or bind.dialect.name != "sqlite":
        return
    if bind.exec_driver_sql("PRAGMA user_version").scalar_one() == PROTECTED:
        bind.exec_driver_sql(f"PRAGMA user_version = {int(kept)}")


def _drop_signs() -> None:
    """Drop the views that stand where the legacy tables were: the release before does not know them."""
    bind = op.get_bind()
    quoted = bind.dialect.identifier_preparer.quote_identifier
    standing = "SELECT g.name FROM consensus_orm_guards AS g JOIN "
    if bind.dialect.name == "postgresql":
        standing += "pg_class AS c ON c.oid = CAST(g.definition AS oid)"
    else:
        standing += "sqlite_master AS m ON m.type = 'view' AND m.name = g.name AND m.sql = g.definition"
    for (name,) in bind.exec_driver_sql(f"{standing} WHERE g.kind = 'view'").all():
        bind.exec_driver_sql(f"DROP VIEW {quoted(name)}")
