"""The writers of the demo: rounds of work for threads, and a program that knows the legacy tables only."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from consensus_orm.consensus.demo.judge import KEYS
from consensus_orm.consensus.records import Artifact, Synthesis
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.phase import Phase
from consensus_orm.rehearsal.writers import Run

__all__ = ["OldProgram", "Writer"]

Row = dict[str, Any]

AGENTS = ("gemini", "claude", "code")
CONTENTS = ('{"ok": true}', "no JSON: ${X} \U0001f600", "with \0 inside", "bytes that are no UTF-8: \udcff")
RUN_IDS = (None, "", "run_{spec}")

PATIENCE = 60
"""Seconds the old program waits for the lock: SQLite asks ten times a second, and other threads go on writing."""


class Writer:
    """The rounds of one thread: artifacts with a synthesis, an execution, and now and then a delete.

    Args:
        number: Which thread.

    Attributes:
        kept: The rows that must be there now: legacy table, then key, then columns.
        writes: Rows written, deleted or completed so far, by the phase of the unit of work that did it.
        deleted: Rows deleted again.
        highest_id: The highest id given to an artifact.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.kept: dict[str, dict[Any, Row]] = {table: {} for table in KEYS}
        self.writes: Counter[Phase] = Counter()
        self.deleted = self.highest_id = 0

    def __call__(self, run: Run, number: int) -> None:
        """Do one round; raises AssertionError where rows do not read as they were written."""
        spec = f"DEMO-{self.number}-{number}"
        run(lambda uow: self._add(uow, spec, number))
        run(lambda uow: self._complete(uow, f"{spec}-agent"))
        said = run(lambda uow: uow.artifacts.list(spec_id=spec), read_only=True)
        meant = [row for row in self.kept["consensus_artifacts"].values() if row["spec_id"] == spec]
        if [(a.id, a.content_json) for a in reversed(said)] != [(row["id"], row["content_json"]) for row in meant]:
            raise AssertionError(f"{spec} does not read as it was written")
        if number % 3 == 0:
            run(lambda uow: self._remove(uow, f"DEMO-{self.number}-{number - 2}"))

    def _add(self, uow: ConsensusUnitOfWork, spec: str, number: int) -> None:
        run = RUN_IDS[number % len(RUN_IDS)]
        place: Row = {"spec_id": spec, "stage": "demo", "run_id": run and run.format(spec=spec)}
        kept: list[tuple[str, Any, Row]] = []
        for agent in AGENTS:
            row = {**place, "agent_name": agent, "content_json": CONTENTS[number % len(CONTENTS)]}
            artifact = uow.artifacts.add(**row)
            kept.append(("consensus_artifacts", artifact.id, row | _stamp(artifact)))
        row = {**place, "output_markdown": "# Demo", "status": "ok", "degraded": False}
        synthesis = uow.syntheses.add(**row)
        kept.append(("consensus_synthesis", synthesis.id, row | _stamp(synthesis)))
        row = {
            "agent_id": f"{spec}-agent",
            "spec_id": spec,
            "stage": "demo",
            "phase_type": "demo",
            "agent_name": "code",
        }
        spawned = uow.executions.record_spawn(**row)
        kept.append(("agent_executions", spawned.agent_id, row | {"spawned_at": spawned.spawned_at_raw}))
        phase = uow.phase
        uow.on_commit(lambda: self._keep(phase, kept))

    def _complete(self, uow: ConsensusUnitOfWork, agent: str) -> None:
        done = uow.executions.record_completion(agent, "done")
        row = self.kept["agent_executions"][agent] | {"response_text": "done", "completed_at": done.completed_at_raw}
        phase = uow.phase
        uow.on_commit(lambda: self._keep(phase, [("agent_executions", agent, row)]))

    def _keep(self, phase: Phase, rows: list[tuple[str, Any, Row]]) -> None:
        for table, key, row in rows:
            self.kept[table][key] = row
            if table == "consensus_artifacts":
                self.highest_id = max(self.highest_id, key)
        self.writes[phase] += len(rows)

    def _remove(self, uow: ConsensusUnitOfWork, spec: str) -> None:
        gone = uow.artifacts.delete(spec_id=spec) + uow.syntheses.delete(spec_id=spec)
        phase = uow.phase
        uow.on_commit(lambda: self._forget(phase, spec, gone))

    def _forget(self, phase: Phase, spec: str, gone: int) -> None:
        for table in ("consensus_artifacts", "consensus_synthesis"):
            self.kept[table] = {key: row for key, row in self.kept[table].items() if row["spec_id"] != spec}
        self.writes[phase] += gone
        self.deleted += gone


def _stamp(record: Artifact | Synthesis) -> Row:
    """The values that the store added to a row."""
    return {"id": record.id, "created_at": record.created_at_raw}


class OldProgram:
    """A program that was never changed: it opens the file and inserts into the legacy table."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = []

    def write(self) -> str | None:
        """Insert one row; returns SQLite's message if it refused, else None."""
        row: Row = {
            "spec_id": "OLD-PROGRAM",
            "stage": "plan",
            "agent_name": "gemini",
            "content_json": f'{{"row": {len(self.rows)}}}',
        }
        sql = (
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)"
            " VALUES (:spec_id, :stage, :agent_name, :content_json) RETURNING id, created_at"
        )
        with contextlib.closing(sqlite3.connect(self._path, timeout=PATIENCE)) as connection:
            try:
                with connection:
                    row["id"], row["created_at"] = connection.execute(sql, row).fetchone()
            except (sqlite3.IntegrityError, sqlite3.OperationalError) as error:
                return str(error)
        self.rows.append(row)
        return None
