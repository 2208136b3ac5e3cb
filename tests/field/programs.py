"""The programs that made the files of the field, as far as they touch a file: raw sqlite3, nothing of the package.

They were built and run, and do as written here (LEGACY.md, section 6): each opens the file anew for each operation, so
that two installed versions take turns on one file.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from tests.field.builders import ARTIFACTS, EXECUTIONS_CREATED, FOUNDING, SYNTHESIS

__all__ = ["PROGRAMS", "DualWriteBuild", "FinalBuild", "FirstVersion", "NewerDatabaseError"]

APPLICATION_VERSION = 2


class NewerDatabaseError(Exception):
    """What the dual-write and the final build say of a file whose user_version is above theirs."""


def _if_not_exists(script: str) -> str:
    return script.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS").replace(
        "CREATE INDEX", "CREATE INDEX IF NOT EXISTS"
    )


class FirstVersion:
    """2025-11-02 on: the legacy tables alone; it never looks at user_version.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """Open the file, and make what is missing, as at each start and before each operation."""
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=5)) as connection:
            self.start(connection)
            yield connection

    def start(self, connection: sqlite3.Connection) -> None:
        """Make the tables that are not there."""
        connection.executescript(_if_not_exists(ARTIFACTS + SYNTHESIS))
        connection.execute(f"CREATE TABLE IF NOT EXISTS agent_executions ({EXECUTIONS_CREATED[8]})")
        for column in ("run_id TEXT", "extraction_error TEXT"):
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute(f"ALTER TABLE agent_executions ADD COLUMN {column}")

    def store_artifact(self, spec_id: str, stage: str, agent_name: str, content: str) -> int | None:
        """Store what an agent said."""
        with self.opened() as connection:
            return connection.execute(
                "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES (?, ?, ?, ?)",
                (spec_id, stage, agent_name, content),
            ).lastrowid

    def store_synthesis(self, spec_id: str, stage: str, markdown: str, status: str, *, degraded: bool = False) -> None:
        """Store what agents agreed on."""
        with self.opened() as connection:
            connection.execute(
                "INSERT INTO consensus_synthesis (spec_id, stage, output_markdown, status, artifacts_count, degraded)"
                " VALUES (?, ?, ?, ?, 3, ?)",
                (spec_id, stage, markdown, status, degraded),
            )


class DualWriteBuild(FirstVersion):
    """2025-11-13: both sides, the normalized one in a second transaction, whose failure it only prints."""

    def start(self, connection: sqlite3.Connection) -> None:
        """Make the legacy tables, and below user_version 1 the normalized ones."""
        version = _version(connection)
        super().start(connection)
        if version < 1:
            connection.executescript(_if_not_exists(FOUNDING))
            connection.execute("PRAGMA user_version = 1")

    def store_artifact(self, spec_id: str, stage: str, agent_name: str, content: str) -> int | None:
        """Store what an agent said, then a run of its own with one output."""
        stored = super().store_artifact(spec_id, stage, agent_name, content)
        with self.opened() as connection, contextlib.suppress(sqlite3.Error):
            run = _insert_run(connection, spec_id, stage, degraded=False, synthesis=None)
            connection.execute(
                "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp) VALUES (?, ?, ?, ?)",
                (run, agent_name, content, _now()),
            )
        return stored

    def store_synthesis(self, spec_id: str, stage: str, markdown: str, status: str, *, degraded: bool = False) -> None:
        """Store what agents agreed on, then a run that holds it as JSON; the run is ok, whatever the status says."""
        super().store_synthesis(spec_id, stage, markdown, status, degraded=degraded)
        with self.opened() as connection, contextlib.suppress(sqlite3.Error):
            _insert_run(connection, spec_id, stage, degraded=degraded, synthesis=_json(markdown, status))


class FinalBuild:
    """The normalized side alone. Below user_version 2 it drops the legacy tables with all rows, and copies nothing.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """Open the file and bring it to version 2, as at each start and before each operation."""
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=5)) as connection:
            if _version(connection) < APPLICATION_VERSION:
                connection.executescript(
                    f"BEGIN EXCLUSIVE; {_if_not_exists(FOUNDING)} DROP TABLE IF EXISTS consensus_artifacts;"
                    " DROP TABLE IF EXISTS consensus_synthesis; PRAGMA user_version = 2; COMMIT"
                )
            yield connection

    def store_artifact(self, spec_id: str, stage: str, agent_name: str, content: str) -> int | None:
        """Store what an agent said as a run of its own with one output."""
        with self.opened() as connection:
            run = _insert_run(connection, spec_id, stage, degraded=False, synthesis=None)
            return connection.execute(
                "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp) VALUES (?, ?, ?, ?)",
                (run, agent_name, content, _now()),
            ).lastrowid


def _version(connection: sqlite3.Connection) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > APPLICATION_VERSION:
        raise NewerDatabaseError(f"{version} is newer than application version {APPLICATION_VERSION}")
    return version


def _insert_run(
    connection: sqlite3.Connection, spec_id: str, stage: str, *, degraded: bool, synthesis: str | None
) -> int | None:
    # One run for a millisecond: a second one of the stage waits for the next.
    while connection.execute(
        "SELECT 1 FROM consensus_runs WHERE (spec_id, stage, run_timestamp) = (?, ?, ?)", (spec_id, stage, at := _now())
    ).fetchone():
        time.sleep(0.001)
    return connection.execute(
        "INSERT INTO consensus_runs (spec_id, stage, run_timestamp, consensus_ok, degraded, synthesis_json)"
        " VALUES (?, ?, ?, 1, ?, ?)",
        (spec_id, stage, at, degraded, synthesis),
    ).lastrowid


def _json(markdown: str, status: str) -> str:
    """The copy of a synthesis, its keys in the order of the alphabet, without spaces."""
    fields = {"output_markdown": markdown, "output_path": None, "status": status, "artifacts_count": 3}
    fields |= {"agreements": None, "conflicts": None}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _now() -> int:
    return time.time_ns() // 1_000_000


PROGRAMS: dict[str, type[FirstVersion | FinalBuild]] = {
    "first_version": FirstVersion,
    "dual_write_build": DualWriteBuild,
    "final_build": FinalBuild,
}
"""By the name of the files that they make."""
