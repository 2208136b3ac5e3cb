"""Those who write meanwhile: threads that use the public API, and a program that knows the legacy tables only."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from consensus_orm.consensus.store import ConsensusStore, ConsensusUnitOfWork
from consensus_orm.phase import Phase

__all__ = ["OldProgram", "Writer", "Writers"]

Row = dict[str, Any]

AGENTS = ("gemini", "claude", "code")
CONTENTS = ('{"ok": true}', "no JSON: ${X} \U0001f600", "with \0 inside", "bytes that are no UTF-8: \udcff")
RUN_IDS = (None, "", "run_{spec}")
BREATH = 0.005
"""Seconds between two rounds of a thread."""

PATIENCE = 60
"""Seconds the old program waits for the lock: SQLite lets it ask ten times a second, between threads that write on."""


class Writers:
    """Some threads that keep writing; the `with` block ends them.

    Args:
        store: Shared by all of them.
        threads: How many.
    """

    def __init__(self, store: ConsensusStore, threads: int) -> None:
        self._stop = threading.Event()
        self._threads = [Writer(store, number, self._stop) for number in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def writes(self) -> list[Counter[Phase]]:
        """Rows written, deleted or completed so far by each thread, by the phase of the unit of work that did it."""
        return [thread.writes.copy() for thread in self._threads]

    @property
    def alive(self) -> bool:
        """Whether all of them are still at work."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def deleted(self) -> int:
        """Rows the threads deleted again."""
        return sum(thread.deleted for thread in self._threads)

    def take_failures(self) -> list[str]:
        """What went wrong in threads since the last call; nothing should."""
        failures = [f"thread {thread.number}: {thread.failure}" for thread in self._threads if thread.failure]
        for thread in self._threads:
            thread.failure = None
        return failures

    def take_slowest(self) -> float:
        """Seconds of the longest unit of work since the last call, waiting for locks included."""
        slowest = max(thread.slowest for thread in self._threads)
        for thread in self._threads:
            thread.slowest = 0.0
        return slowest

    def rows(self, table: str) -> list[Row]:
        """The rows of a legacy table that must be there now."""
        return [row for thread in self._threads for row in thread.kept[table].values()]

    @property
    def highest_id(self) -> int:
        """The highest id given to an artifact."""
        return max(thread.highest_id for thread in self._threads)


class Writer(threading.Thread):
    """One thread: a round of artifacts with a synthesis, an execution, and now and then a delete."""

    def __init__(self, store: ConsensusStore, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"demo-writer-{number}", daemon=True)
        self.store = store
        self.number = number
        self.stop = stop
        self.kept: dict[str, dict[Any, Row]] = {
            "consensus_artifacts": {},
            "consensus_synthesis": {},
            "agent_executions": {},
        }
        self.writes: Counter[Phase] = Counter()
        self.deleted = self.highest_id = 0
        self.slowest = 0.0
        self.failure: str | None = None

    def run(self) -> None:
        """Write until told to stop, or until something goes wrong."""
        try:
            for number in count():
                if self.stop.wait(BREATH):
                    return
                self._round(f"DEMO-{self.number}-{number}", number)
                if number % 3 == 2:
                    self._timed(lambda uow, spec=f"DEMO-{self.number}-{number - 2}": self._remove(uow, spec))
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    def _timed(self, work: Any) -> None:
        started = time.monotonic()
        self.store.run(work)
        self.slowest = max(self.slowest, time.monotonic() - started)

    def _round(self, spec: str, number: int) -> None:
        self._timed(lambda uow: self._add(uow, spec, number))
        self._timed(lambda uow: self._complete(uow, f"{spec}-agent"))
        said = self.store.run(lambda uow: uow.artifacts.list(spec_id=spec), read_only=True)
        meant = [row for row in self.kept["consensus_artifacts"].values() if row["spec_id"] == spec]
        if [(a.id, a.content_json) for a in reversed(said)] != [(row["id"], row["content_json"]) for row in meant]:
            raise AssertionError(f"{spec} does not read as it was written")

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


def _stamp(record: Any) -> Row:
    """What the store added to a row of a writer."""
    return {"id": record.id, "created_at": record.created_at_raw}


class OldProgram:
    """A program that was never changed: it opens the file and inserts into the legacy table.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = []

    def write(self) -> str | None:
        """Insert one row.

        Returns:
            What SQLite said where it refused; None where the row stands.
        """
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
