"""Create the normalized tables.

Two builds in the field made tables of the same names; this revision sets their rows aside, and 0003 adopts them.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from consensus_orm.errors import DowngradeRefusedError, RewriteNotConfirmedError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

EXPAND, CONTRACT = 1, 5

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Any value of the legacy columns must fit, so these have the same affinity.
TIMESTAMP = sa.TIMESTAMP().with_variant(sa.Text(), "postgresql")
BOOLEAN = sa.Boolean().with_variant(sa.BigInteger(), "postgresql")

FOUNDING = {
    "consensus_runs": (
        "consensus_orm_founding_runs",
        """id INTEGER PRIMARY KEY, spec_id TEXT, stage TEXT, run_timestamp INTEGER, consensus_ok BOOLEAN,
        degraded BOOLEAN, synthesis_json TEXT""",
    ),
    "agent_outputs": (
        "consensus_orm_founding_outputs",
        """id INTEGER PRIMARY KEY, run_id INTEGER, agent_name TEXT, model_version TEXT, content TEXT,
        output_timestamp INTEGER""",
    ),
}

LEGACY = {
    "consensus_artifacts": (
        """CREATE TABLE consensus_artifacts (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL,
        stage TEXT NOT NULL, agent_name TEXT NOT NULL, content_json TEXT NOT NULL, response_text TEXT,
        run_id TEXT, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)""",
        "CREATE INDEX idx_spec_stage ON consensus_artifacts(spec_id, stage)",
    ),
    "consensus_synthesis": (
        """CREATE TABLE consensus_synthesis (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL,
        stage TEXT NOT NULL, output_markdown TEXT NOT NULL, output_path TEXT, status TEXT NOT NULL,
        artifacts_count INTEGER, agreements TEXT, conflicts TEXT, degraded BOOLEAN DEFAULT 0, run_id TEXT,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)""",
        "CREATE INDEX idx_synthesis_spec_stage ON consensus_synthesis(spec_id, stage)",
    ),
}


LEGACY_ON_POSTGRESQL = {
    "consensus_artifacts": (
        """CREATE TABLE consensus_artifacts (id BIGSERIAL PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
        agent_name TEXT NOT NULL, content_json TEXT NOT NULL, response_text TEXT, run_id TEXT,
        created_at TEXT DEFAULT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'))""",
        "CREATE INDEX idx_spec_stage ON consensus_artifacts(spec_id, stage)",
    ),
    "consensus_synthesis": (
        """CREATE TABLE consensus_synthesis (id BIGSERIAL PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
        output_markdown TEXT NOT NULL, output_path TEXT, status TEXT NOT NULL, artifacts_count BIGINT,
        agreements TEXT, conflicts TEXT, degraded BIGINT DEFAULT 0, run_id TEXT,
        created_at TEXT DEFAULT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'))""",
        "CREATE INDEX idx_synthesis_spec_stage ON consensus_synthesis(spec_id, stage)",
    ),
}


def upgrade() -> None:
    if _of_another_move():
        return
    given = {} if _on_postgresql() else _set_founding_rows_aside()
    _create_tables()
    _never_give_ids_twice(given)
    if _phase() == EXPAND:
        _complete_the_legacy_side()


def _of_another_move() -> bool:
    """Whether the database is moved by another declaration, which creates its own normalized tables."""
    return op.get_context().config.attributes.get("legacy") is not None  # type: ignore[union-attr] # alembic always has one here


def _phase() -> int:
    return int(op.get_bind().scalar(sa.text("SELECT phase FROM consensus_orm_state")))


def _on_postgresql() -> bool:
    """Whether this is a server: the founding programs never wrote to one."""
    return op.get_bind().dialect.name == "postgresql"


def _has(table: str) -> bool:
    return sa.inspect(op.get_bind()).has_table(table)


def _set_founding_rows_aside() -> dict[str, int]:
    """Copy the founding tables aside, instead of renaming them.

    A rename would rewrite the views and triggers of other programs, or fail on them. A view that reads a founding
    table continues to work, since the new tables have all its columns.

    Returns:
        The highest id of each table, above which the new one must go on.
    """
    bind = op.get_bind()
    given: dict[str, int] = {}
    if not any(map(_has, FOUNDING)):
        return given
    if not op.get_context().config.attributes.get("rewrite"):  # type: ignore[union-attr] # alembic always has one here
        raise RewriteNotConfirmedError
    for table, (aside, columns) in reversed(FOUNDING.items()):
        bind.exec_driver_sql(f"CREATE TABLE {aside} ({columns})")
        if not _has(table):
            continue
        names = ", ".join(column.split()[0] for column in columns.split(","))
        bind.exec_driver_sql(f"INSERT INTO {aside} ({names}) SELECT {names} FROM {table} ORDER BY id")
        given[table] = bind.exec_driver_sql(
            f"SELECT max(ifnull((SELECT max(seq) FROM sqlite_sequence WHERE name = '{table}'), 0),"
            f" ifnull((SELECT max(id) FROM {table}), 0))"
        ).scalar_one()
        # The transaction began with foreign_keys off, so nothing cascades from here.
        op.drop_table(table)
    # In the final build a synthesis is a run, and keeps the id of that run.
    return {**given, "consensus_syntheses": given.get("consensus_runs", 0)}


def _never_give_ids_twice(given: dict[str, int]) -> None:
    for table, highest in given.items():
        op.get_bind().exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, highest))


def _create_tables() -> None:
    op.create_table(
        "consensus_runs",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("spec_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text()),
        sa.Column("run_key", sa.Text()),
        sa.Column("run_timestamp", BIG, nullable=False),
        sa.Column("consensus_ok", sa.Boolean(), nullable=False),
        sa.Column("degraded", sa.Boolean(), server_default=sa.false()),
        sa.Column("synthesis_json", sa.Text()),
        sa.UniqueConstraint("spec_id", "stage", "run_key", name=op.f("uq_consensus_runs_spec_id_stage_run_key")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "agent_outputs",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("agent_name", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text()),
        sa.Column("output_timestamp", BIG, nullable=False),
        sa.Column("created_at", TIMESTAMP),
        sa.Column("mirrored", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("response_text", sa.Text()),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["consensus_runs.id"],
            name=op.f("fk_agent_outputs_run_id_consensus_runs"),
            ondelete="CASCADE",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_agent_outputs_run", "agent_outputs", ["run_id", "output_timestamp"])
    op.create_index("idx_agent_outputs_agent", "agent_outputs", ["agent_name"])
    op.create_table(
        "consensus_syntheses",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("run_id", BIG, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("artifacts_count", BIG),
        sa.Column("degraded", BOOLEAN),
        sa.Column("synthesis_timestamp", BIG, nullable=False),
        sa.Column("created_at", TIMESTAMP),
        sa.Column("mirrored", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("output_path", sa.Text()),
        sa.Column("agreements", sa.Text()),
        sa.Column("conflicts", sa.Text()),
        sa.Column("output_markdown", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["consensus_runs.id"],
            name=op.f("fk_consensus_syntheses_run_id_consensus_runs"),
            ondelete="CASCADE",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_consensus_syntheses_run", "consensus_syntheses", ["run_id", "synthesis_timestamp"])


def _complete_the_legacy_side() -> None:
    """Create the legacy table that is missing: some programs made only one of the two, and EXPAND writes both."""
    for table, statements in (LEGACY_ON_POSTGRESQL if _on_postgresql() else LEGACY).items():
        if not _has(table):
            for statement in statements:
                op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    if not _has("consensus_runs"):
        return  # of another move
    _refuse_to_lose_rows()
    _drop_triggers()
    _take_back_the_legacy_half()
    for table in ("consensus_syntheses", "agent_outputs", "consensus_runs"):
        op.drop_table(table)
    for table in ("consensus_orm_founding_outputs", "consensus_orm_founding_runs"):
        if _has(table):
            op.drop_table(table)


def _refuse_to_lose_rows() -> None:
    phase = _phase()
    if phase not in (EXPAND, CONTRACT):
        raise DowngradeRefusedError("both sides are in use in this phase", phase=phase)
    if phase == CONTRACT:
        # Ids that were given count, too: a sequence that starts at 1 again would give them twice.
        lost = """
            SELECT (SELECT count(*) FROM agent_outputs) + (SELECT count(*) FROM consensus_syntheses)
            + (SELECT count(*) FROM consensus_runs)"""
        lost += "".join(f" + ({_given(t)})" for t in ("agent_outputs", "consensus_syntheses", "consensus_runs"))
    else:
        # Rows that the backfill copied are still in the legacy tables.
        lost = """
            SELECT (SELECT count(*) FROM agent_outputs WHERE model_version IS NOT NULL
                    OR id NOT IN (SELECT id FROM consensus_artifacts))
            + (SELECT count(*) FROM consensus_syntheses WHERE id NOT IN (SELECT id FROM consensus_synthesis))
            + (SELECT count(*) FROM consensus_runs WHERE run_key IS NULL)"""
    if op.get_bind().exec_driver_sql(lost).scalar_one():
        raise DowngradeRefusedError("the normalized tables hold rows that stand nowhere else", phase=phase)


def _given(table: str) -> str:
    """Whether a table has ever given an id, as a number."""
    if _on_postgresql():
        return f"SELECT count(pg_sequence_last_value(CAST(pg_get_serial_sequence('{table}', 'id') AS regclass)))"
    return f"SELECT count(*) FROM sqlite_sequence WHERE name = '{table}'"


def _take_back_the_legacy_half() -> None:
    """Drop the legacy table that the upgrade made, unless it was used."""
    bind = op.get_bind()
    detail = bind.scalar(sa.text("SELECT detail FROM consensus_orm_history WHERE action = 'adopt'"))
    found = {name.lower() for name in json.loads(detail)["found"]}
    for table in LEGACY.keys() - found:
        if not _has(table):
            continue
        if not bind.exec_driver_sql(_given(table)).scalar_one():
            op.drop_table(table)


def _drop_triggers() -> None:
    """Drop the triggers of the phase, which name these tables; the next upgrade makes them again."""
    bind = op.get_bind()
    quoted = bind.dialect.identifier_preparer.quote_identifier
    if _on_postgresql():
        functions = (
            "SELECT proname FROM pg_proc WHERE prorettype = 'trigger'::regtype AND proname ^@ 'consensus_orm_'"
            " AND pg_function_is_visible(oid) AND prosrc ~"
            " 'consensus_orm_changes|consensus_orm: the legacy tables|past the repositories'"
        )
        for (name,) in bind.exec_driver_sql(functions).all():
            bind.exec_driver_sql(f"DROP FUNCTION {quoted(name)}() CASCADE")
        bind.exec_driver_sql("UPDATE consensus_orm_state SET mapping = NULL")
        return
    # Ours name the control tables; another program may give its own triggers any name.
    ours = (
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'consensus_orm_*'"
        " AND (instr(sql, 'consensus_orm_changes') OR instr(sql, 'consensus_orm_state'))"
    )
    for (name,) in bind.exec_driver_sql(ours).all():
        bind.exec_driver_sql(f"DROP TRIGGER {quoted(name)}")
    bind.exec_driver_sql("UPDATE consensus_orm_state SET mapping = NULL")
