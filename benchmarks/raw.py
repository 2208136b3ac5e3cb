"""The two sides by hand, with the raw driver: what everything else is measured against."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.data import CREATED, MILLISECONDS, filled, raw_connection
from consensus_orm import Phase

__all__ = ["LEGACY", "RawSides", "in_chunks", "raw_sides"]

LEGACY = (
    "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id, created_at)"
    f" VALUES (:spec_id, :stage, :agent_name, :content_json, :run_id, '{CREATED}')"
)
_RUN = (
    "INSERT INTO consensus_runs (spec_id, stage, run_id, run_key, run_timestamp, consensus_ok, degraded)"
    f" VALUES (:spec_id, :stage, :run_id, 'run:' || :run_id, {MILLISECONDS}, 1, 0) ON CONFLICT DO NOTHING"
)
_FIND_RUN = (
    "(SELECT id FROM consensus_runs WHERE spec_id = :spec_id AND stage = :stage AND run_key = 'run:' || :run_id)"
)
_OUTPUT = (
    "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp, created_at, mirrored)"
    f" VALUES ({_FIND_RUN}, :agent_name, :content_json, {MILLISECONDS}, '{CREATED}', 1)"
)
_LEGACY_SYNTHESIS = (
    "INSERT INTO consensus_synthesis (spec_id, stage, output_markdown, status, artifacts_count, agreements, conflicts,"
    " degraded, run_id, created_at) VALUES (:spec_id, :stage, :output_markdown, :status, :artifacts_count, :agreements,"
    f" :conflicts, 0, :run_id, '{CREATED}')"
)
_SYNTHESIS = (
    "INSERT INTO consensus_syntheses (run_id, output_markdown, status, artifacts_count, agreements, conflicts,"
    f" degraded, synthesis_timestamp, created_at, mirrored) VALUES ({_FIND_RUN}, :output_markdown, :status,"
    f" :artifacts_count, :agreements, :conflicts, 0, {MILLISECONDS}, '{CREATED}', 1)"
)


class RawSides:
    """Writes both sides, uncompared."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def artifacts(self, rows: list[dict[str, Any]]) -> None:
        """Write artifacts with executemany."""
        for statement in (LEGACY, _RUN, _OUTPUT):
            self.connection.executemany(statement, rows)

    def artifact(self, row: dict[str, Any]) -> None:
        """Write one artifact."""
        for statement in (LEGACY, _RUN, _OUTPUT):
            self.connection.execute(statement, row)

    def synthesis(self, row: dict[str, Any]) -> None:
        """Write one synthesis."""
        for statement in (_LEGACY_SYNTHESIS, _RUN, _SYNTHESIS):
            self.connection.execute(statement, row)

    def transaction(self, write: Callable[[], object]) -> None:
        """Write in one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        write()
        self.connection.execute("COMMIT")


@contextmanager
def raw_sides(path: Path) -> Iterator[RawSides]:
    """Both sides of a new file; in phase EXPAND no trigger looks at what is inserted."""
    connection = raw_connection(filled(path, Phase.EXPAND, 0))
    try:
        yield RawSides(connection)
    finally:
        connection.close()


def in_chunks(connection: sqlite3.Connection, table: str, rows: int) -> Iterable[dict[str, int]]:
    """Ranges of ids that cover a table."""
    (last,) = connection.execute(f"SELECT max(id) FROM {table}").fetchone()
    for first in range(1, (last or 0) + 1, rows):
        yield {"first": first, "last": first + rows - 1}
