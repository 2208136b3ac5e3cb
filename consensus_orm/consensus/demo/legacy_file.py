"""Generates a legacy file for the demo: ordinary rounds, and the rows that break simple implementations.

It uses plain SQL and nothing of the package. The shapes are those found in the field, the contents are made up.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

__all__ = ["make"]

SCHEMA = """
CREATE TABLE consensus_artifacts (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL,
  stage TEXT NOT NULL, agent_name TEXT NOT NULL, content_json TEXT NOT NULL, response_text TEXT, run_id TEXT,
  created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_spec_stage ON consensus_artifacts(spec_id, stage);
CREATE TABLE consensus_synthesis (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL,
  stage TEXT NOT NULL, output_markdown TEXT NOT NULL, output_path TEXT, status TEXT NOT NULL,
  artifacts_count INTEGER, agreements TEXT, conflicts TEXT, degraded BOOLEAN DEFAULT 0, run_id TEXT,
  created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_synthesis_spec_stage ON consensus_synthesis(spec_id, stage);
CREATE TABLE agent_executions (agent_id TEXT PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
  phase_type TEXT NOT NULL, agent_name TEXT NOT NULL, run_id TEXT, spawned_at TEXT NOT NULL, completed_at TEXT,
  response_text TEXT, extraction_error TEXT);
ALTER TABLE agent_executions ADD COLUMN branch_id TEXT;
"""

AGENTS = ("gemini", "claude", "code", "gpt_pro", "consensus-verdict", "agent-lifecycle-telemetry")
STAGES = ("spec-plan", "plan", "before-specify", "after-tasks", "speckit.specify", "validate-lifecycle")
ROUNDS = 200

CONTENTS: tuple[Any, ...] = (
    '{"ok": true}',
    '{"agent": "${AGENT}", "n": ${N}}',
    "// a comment\n{}",
    "[2025-11-04T02:23:58] tokens used: 7\nthinking\n",
    '{"said": "\U0001f600 \N{EN DASH} \N{NON-BREAKING HYPHEN}"}',
    "",
)
"""Common contents; half of them are not JSON."""

ODD_CONTENTS: tuple[Any, ...] = (
    "before\0after",
    b"\x00\xff stored as BLOB",
    7,
    0.1,
    "007",
    "x" * 5_000_000,
    *["the same words under every name " * 2259] * 6,
)
ODD_TIMES: tuple[Any, ...] = (
    None,
    "",
    "not a date",
    1762743600,
    1762743600000,
    "2025-11-04T02:23:58Z",
    "2025-11-04 02:23:58.123456",
    "2025-11-04 04:23:58+02:00",
    "2025-02-30 00:00:00",
)
RUN_IDS = (None, "", "run_SPEC-ODD_1762222238_aaaaaaaa", "run_SPEC-ODD_1762222238_bbbbbbbb")
"""Several runs of one stage within one second; NULL and the empty string are two of them."""

SECOND = "2025-11-04 02:23:58"


def make(path: Path) -> None:
    """Make the file at a path where there is none yet."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA)
        for columns in _rounds():
            _insert(connection, "consensus_artifacts", columns)
        for columns in _odd_artifacts():
            _insert(connection, "consensus_artifacts", columns)
        for columns in _syntheses():
            _insert(connection, "consensus_synthesis", columns)
        for columns in _executions():
            _insert(connection, "agent_executions", columns)
        connection.execute(  # not UTF-8: a lone surrogate, as some programs stored it
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)"
            " VALUES ('SPEC-ODD', 'plan', 'gemini', CAST(x'eda080' AS TEXT))"
        )
        connection.execute(
            "DELETE FROM consensus_artifacts WHERE id % 17 = 0 AND spec_id <> 'SPEC-ODD'"
        )  # ids have gaps


def _insert(connection: sqlite3.Connection, table: str, columns: dict[str, Any]) -> None:
    names = ", ".join(columns)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})", [*columns.values()])


def _rounds() -> Iterator[dict[str, Any]]:
    """Rounds of agents, most without a run id; all rows of one share their second."""
    chance, contents = random.Random(900), cycle(CONTENTS)
    for number in range(ROUNDS):
        spec = f"SPEC-KIT-{900 + number % 7}"
        at = datetime(2025, 11, 4, 2, 23, 58) + timedelta(seconds=431 * number)
        run = None if chance.random() < 0.9 else f"run_{spec}_{number:08x}"
        for _ in range(chance.choice((1, 3, 5, 6, 11))):
            yield {
                "spec_id": spec,
                "stage": STAGES[number % len(STAGES)],
                "agent_name": chance.choice(AGENTS),
                "content_json": next(contents),
                "response_text": chance.choice((None, "", "raw output")),
                "run_id": run,
                "created_at": f"{at:%Y-%m-%d %H:%M:%S}",
            }


def _odd_artifacts() -> Iterator[dict[str, Any]]:
    row: dict[str, Any] = {"spec_id": "SPEC-ODD", "stage": "plan", "agent_name": "gemini", "content_json": "{}"}
    for content, agent in zip(ODD_CONTENTS, cycle(AGENTS), strict=False):
        yield {**row, "agent_name": agent, "content_json": content, "created_at": SECOND}
    for at in ODD_TIMES:
        yield {**row, "created_at": at}
    for run in RUN_IDS:
        yield {**row, "run_id": run, "created_at": SECOND}
    for content in ("said first", "said again", "said again"):  # one agent, one second; two rows are twins
        yield {**row, "content_json": content, "created_at": SECOND}
    yield {**row, "id": 2**31 + 5, "created_at": SECOND}


def _syntheses() -> Iterator[dict[str, Any]]:
    row: dict[str, Any] = {"spec_id": "SPEC-ODD", "stage": "plan", "output_markdown": "# Plan", "status": "ok"}
    yield {**row, "created_at": SECOND, "artifacts_count": 3, "agreements": '["all"]', "conflicts": "[]"}
    yield {**row, "created_at": SECOND, "output_markdown": "# A second one of the same run"}
    yield {**row, "created_at": SECOND, "status": "degraded", "degraded": None}
    yield {**row, "created_at": None, "degraded": 2}
    yield {**row, "spec_id": "SPEC-ALONE", "output_markdown": "# Without any artifact", "created_at": SECOND}
    yield {**row, "output_markdown": "# Long \N{EN DASH} \U0001f600\n" * 100_000, "created_at": "not a date"}


def _executions() -> Iterator[dict[str, Any]]:
    row = {"spec_id": "SPEC-KIT-900", "stage": "plan", "phase_type": "regular_stage", "spawned_at": SECOND}
    yield {**row, "agent_id": "a-1", "agent_name": "gemini", "completed_at": SECOND, "response_text": "{}"}
    yield {**row, "agent_id": "a-2", "agent_name": "claude"}  # never completed
    yield {**row, "agent_id": "a-3", "agent_name": "code", "completed_at": SECOND, "extraction_error": "no JSON"}
