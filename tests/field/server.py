"""A legacy database on PostgreSQL, frozen: raw SQL and psycopg, nothing of the package.

No program of the field wrote to a server. This is what one would have made there: the same tables and names, with
the one type that a column can have, and of the odd rows those that such a column can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from tests.field import rows
from tests.field.builders import EXECUTIONS, EXECUTIONS_ALTERED, EXECUTIONS_CREATED

ARTIFACTS = """
CREATE TABLE consensus_artifacts (id BIGSERIAL PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
  agent_name TEXT NOT NULL, content_json TEXT NOT NULL, response_text TEXT, run_id TEXT,
  created_at TEXT DEFAULT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'));
CREATE INDEX idx_spec_stage ON consensus_artifacts(spec_id, stage);
"""

SYNTHESIS = """
CREATE TABLE consensus_synthesis (id BIGSERIAL PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
  output_markdown TEXT NOT NULL, output_path TEXT, status TEXT NOT NULL, artifacts_count BIGINT, agreements TEXT,
  conflicts TEXT, degraded BIGINT DEFAULT 0, run_id TEXT,
  created_at TEXT DEFAULT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'));
CREATE INDEX idx_synthesis_spec_stage ON consensus_synthesis(spec_id, stage);
"""

NUMBERS = ("id", "artifacts_count", "degraded")


def create_executions(connection: psycopg.Connection[Any], columns: int, *, altered: bool = False) -> None:
    """Make agent_executions with 8 to 11 columns and three rows: done, in flight, failed."""
    connection.execute(f"CREATE TABLE agent_executions ({EXECUTIONS_CREATED[8 if altered else columns]})".encode())
    if altered:
        for column in EXECUTIONS_ALTERED[: columns - 8]:
            connection.execute(f"ALTER TABLE agent_executions ADD COLUMN {column}".encode())
    connection.execute("CREATE INDEX idx_agent_executions_spec ON agent_executions(spec_id, stage)")
    for execution in EXECUTIONS:
        insert(connection, "agent_executions", execution)


def build_legacy(url: str, *, columns: int = 11, altered: bool = False) -> None:
    """The legacy side with the common rows, and agent_executions."""
    with psycopg.connect(url) as connection:
        connection.execute(f"{ARTIFACTS}{SYNTHESIS}".encode())
        create_executions(connection, columns, altered=altered)
        insert_plain_rows(connection)


def odd_legacy(url: str) -> None:
    """A legacy database with the common rows and every odd one that fits, less those of several megabytes."""
    build_legacy(url)
    with psycopg.connect(url) as connection:
        insert_odd_rows(connection)


def fits(columns: Mapping[str, Any]) -> bool:
    """Whether a row can be held: text of UTF-8 without NUL in most columns, integers in the others."""
    return all(
        value is None or (isinstance(value, int) if name in NUMBERS else isinstance(value, str) and "\0" not in value)
        for name, value in columns.items()
    )


def insert(connection: psycopg.Connection[Any], table: str, columns: Mapping[str, Any]) -> None:
    """Insert one row as it stands."""
    values = ", ".join(f"%({name})s" for name in columns)
    connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})".encode(), columns)


def insert_odd_rows(connection: psycopg.Connection[Any]) -> None:
    """Insert every odd row that fits, and let the sequences know of the ids that were given, as a restore does."""
    for table, odd in (("consensus_artifacts", rows.ODD_ARTIFACTS), ("consensus_synthesis", rows.ODD_SYNTHESES)):
        for name, columns in odd.items():
            if fits(columns) and name not in ("big", "long"):
                insert(connection, table, columns)
        connection.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))".encode()
        )


def insert_plain_rows(connection: psycopg.Connection[Any]) -> None:
    """Insert rows as they are in most databases, with a gap and a last id that only the sequence remembers."""
    for table, columns in rows.plain_rows():
        insert(connection, table, columns)
    connection.execute("DELETE FROM consensus_artifacts WHERE id = 3")
    insert(connection, "consensus_artifacts", {**rows.ROUND, "content_json": "soon gone"})
    connection.execute("DELETE FROM consensus_artifacts WHERE content_json = 'soon gone'")
