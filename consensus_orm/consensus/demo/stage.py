"""The course of the demo: five phases forward and four back, while threads write."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from consensus_orm import errors
from consensus_orm.consensus.demo import legacy_file
from consensus_orm.consensus.demo.judge import judge, look
from consensus_orm.consensus.demo.report import WANTED, DemoReport, Leg
from consensus_orm.consensus.demo.writers import OldProgram, Writer
from consensus_orm.consensus.store import ConsensusStore
from consensus_orm.phase import Phase
from consensus_orm.rehearsal.writers import Writers
from consensus_orm.settings import Settings

__all__ = ["play"]

THREADS = 3
SHORTEST_LEG = 0.5
"""The shortest duration of a phase in seconds, the step that led to it included."""

PATIENCE = 60.0
"""Seconds in which each thread must write `WANTED` rows in a phase."""

LOOK = 0.01
"""Seconds between two checks of what the threads have written."""


class _DemoSettings(Settings):
    """The defaults, whatever the environment says, and no soak times."""

    soak_dual_write: timedelta = timedelta(0)
    soak_cutover: timedelta = timedelta(0)
    soak_normalized: timedelta = timedelta(0)
    chunk_rows: int = 100
    shadow_reads: float = 0.25

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def play(
    database: Path | None = None,
    *,
    begin: Callable[[int, int, int], object] = lambda _rows, _bytes, _threads: None,
    tell: Callable[[Leg], object] = lambda _leg: None,
) -> DemoReport:
    """Migrate a legacy file through the five phases and back while threads write to it.

    Args:
        database: A file to copy, which is only read; a generated one where left out.
        begin: Called before the first step with the rows and bytes of the file, and the number of threads.
        tell: Called after each phase.

    Returns:
        What happened.

    Raises:
        ConsensusError: A step was refused, or the file cannot be copied or is not a legacy file.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="consensus_orm-demo-") as folder:
        path = Path(folder) / "consensus_artifacts.db"
        legacy_file.make(path) if database is None else _copy(database, path)
        before = look(path)
        begin(sum(map(len, before.rows.values())), path.stat().st_size, THREADS)
        with ConsensusStore.open(path, settings=_DemoSettings()) as store:
            _require_expand(store, database)
            store.migration.upgrade(rewrite=True)  # of a copy
            rounds = [Writer(number) for number in range(THREADS)]
            with Writers(store._units, rounds) as writers:
                stage = _Stage(store, writers, rounds, OldProgram(path), tell)
                stage.forward()
                stage.back()
            mismatches, rejects = stage.found()
        after = look(path, before.columns)
        added = {table: [row for each in rounds for row in each.kept[table].values()] for table in before.columns}
        added["consensus_artifacts"] = [*added.get("consensus_artifacts", ()), *stage.old.rows]
        verdict = judge(before, after, added, max(each.highest_id for each in rounds))
    return DemoReport(
        legs=stage.legs,
        verdict=verdict,
        writes=sum(each.writes.total() for each in rounds),
        deleted=sum(each.deleted for each in rounds),
        mismatches=mismatches,
        rejects=rejects,
        seconds=time.monotonic() - started,
    )


def _copy(database: Path, path: Path) -> None:
    if not database.exists():
        raise errors.ConfigurationError(f"{database} does not exist", hint="give the path of a legacy file")
    with ConsensusStore.open(database, settings=_DemoSettings()) as original:
        original.maintenance.backup(path)


def _require_expand(store: ConsensusStore, database: Path | None) -> None:
    if store.migration.phase is not Phase.EXPAND:
        raise errors.MigrationError(
            f"{database} is at {store.migration.phase.name} already, and the demo begins with EXPAND",
            hint="give a legacy file that was not moved yet",
        )


class _Stage:
    """The steps of the demo on one store."""

    def __init__(
        self,
        store: ConsensusStore,
        writers: Writers,
        rounds: list[Writer],
        old: OldProgram,
        tell: Callable[[Leg], object],
    ) -> None:
        self.migration = store.migration
        self.writers = writers
        self.rounds = rounds
        self.old = old
        self.tell = tell
        self.legs: list[Leg] = []
        self._since, self._written = time.monotonic(), self._writes()

    def forward(self) -> None:
        """Advance to CONTRACT as an operator would."""
        with self._leg() as leg:
            self.old.write()
            leg.notes.append("upgrade: the normalized tables stand beside the legacy ones; old programs go on")
        self.migration.advance()
        with self._leg() as leg:
            done = self.migration.backfill()
            leg.notes.append(f"backfill: {done.rows:,} rows carried in chunks, beside the writers")
            self._adopt(leg)
            self._verify(leg)
        self.migration.advance()
        with self._leg() as leg:
            self._adopt(leg)
            self._verify(leg)
        self.migration.advance()
        with self._leg() as leg:
            self._refuse(leg)
            self._verify(leg)
        self.migration.advance()
        with self._leg() as leg:
            leg.notes.append("a verified backup was made, and the legacy tables were dropped")

    def back(self) -> None:
        """Roll back to EXPAND."""
        self.migration.rollback(reason="demo")
        with self._leg(forward=False) as leg:
            leg.notes.append("the legacy tables were made again from the normalized ones")
        while self.migration.phase.previous is not None:
            self.migration.rollback(reason="demo")
            with self._leg(forward=False):
                pass
        self.old.write()

    def found(self) -> tuple[int, int]:
        """Mismatches and rejects since the start, settled ones included."""
        return len(self.migration.mismatches(everything=True)), len(self.migration.rejects(everything=True))

    @contextmanager
    def _leg(self, *, forward: bool = True) -> Iterator[Leg]:
        """One phase, the step that led to it included."""
        phase = self.migration.phase
        leg = Leg(phase, forward)
        yield leg
        self._let_write(leg)
        status = self.migration.status()
        if phase.has_legacy:
            leg.legacy_rows = sum(pair.legacy_rows or 0 for pair in status.pairs)
        leg.normalized_rows = sum(pair.normalized_rows or 0 for pair in status.pairs)
        leg.mismatches, leg.rejects = self.found()
        started, self._since = self._since, time.monotonic()
        leg.seconds = self._since - started
        self._judge(leg)
        self.legs.append(leg)
        self.tell(leg)

    def _writes(self) -> list[Counter[Phase]]:
        """Rows that each thread has written so far, by phase."""
        return [each.writes.copy() for each in self.rounds]

    def _let_write(self, leg: Leg) -> None:
        """Wait until each thread has written enough in this phase, and record what they wrote."""
        earliest, latest = self._since + SHORTEST_LEG, time.monotonic() + PATIENCE
        while (now := time.monotonic()) < latest and self.writers.alive:
            threads = zip(self._writes(), self._written, strict=True)
            leg.writes_by_thread = [done[leg.phase] - before[leg.phase] for done, before in threads]
            if now >= earliest and min(leg.writes_by_thread) >= WANTED:
                break
            time.sleep(LOOK)
        before, self._written = self._written, self._writes()
        done = sum(self._written, Counter()) - sum(before, Counter())
        leg.writes, leg.writes_before = done[leg.phase], done.total() - done[leg.phase]
        latency, self.writers.latency = self.writers.latency, defaultdict(list)
        leg.slowest_write = max((longest for times in latency.values() for longest in times), default=0.0)
        with contextlib.suppress(OSError, AttributeError):
            leg.load = os.getloadavg()[0]

    def _judge(self, leg: Leg) -> None:
        """Record the checks that failed since the phase before."""
        failures, self.writers.errors = self.writers.errors, []
        for thread, error in failures:
            leg.blame("no write fails", f"thread {thread}: {type(error).__name__}: {error}")
        leg.judge_writers()
        before = self.legs[-1] if self.legs else Leg(leg.phase, leg.forward)
        if leg.mismatches > before.mismatches:
            entries = self.migration.mismatches(everything=True)[before.mismatches :]
            found = Counter(f"{entry.pair}.{entry.column or '*'} {entry.kind}" for entry in entries)
            leg.blame("no mismatch is found", ", ".join(f"{count:,} x {what}" for what, count in found.items()))
        if leg.rejects > before.rejects:
            reasons = Counter(entry.reason for entry in self.migration.rejects(everything=True)[before.rejects :])
            leg.blame("no row is rejected", ", ".join(f"{count:,} x {what}" for what, count in reasons.items()))

    def _adopt(self, leg: Leg) -> None:
        """Let the old program write to the legacy side, and reconcile its row."""
        refused = self.old.write()
        noticed = self.migration.status().foreign_writes
        adopted = self.migration.reconcile().adopted
        leg.notes.append("an old program writes to the legacy side alone: noticed, and adopted by reconcile")
        if (noticed, adopted) != (1, 1):
            said = f", and SQLite refused it: {refused}" if refused else ""
            leg.blame(
                "the write of the old program is noticed and adopted", f"{noticed} noticed, {adopted} adopted{said}"
            )

    def _refuse(self, leg: Leg) -> None:
        """Let the old program write to the frozen legacy side."""
        leg.notes.append("an old program tries to write to the legacy side: refused, and told why")
        said = self.old.write()
        if said is None or "frozen" not in said:
            leg.blame("the old program's write is refused", said or "its row stands in the legacy table")

    def _verify(self, leg: Leg) -> None:
        seen = self.migration.verify()
        leg.notes.append(f"verify: {seen.compared:,} rows compared in every column, {len(seen.differences)} differ")
