"""The play itself: five phases forward and four back, while others write."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from consensus_orm import errors
from consensus_orm.demo import legacy_file
from consensus_orm.demo.judge import Verdict, judge, look
from consensus_orm.demo.writers import OldProgram, Writers
from consensus_orm.phase import Phase
from consensus_orm.settings import Settings
from consensus_orm.store import ConsensusStore

__all__ = ["DemoReport", "Leg", "play"]

THREADS = 3
SHORTEST_LEG = 0.5
"""Seconds that every phase lasts at least, so that the writers write in all of them."""


@dataclass
class Leg:
    """One phase of the play.

    Attributes:
        phase: The phase.
        forward: Whether it was reached by `advance`; else by `rollback`.
        legacy_rows: Rows on the legacy side at its end; None where the tables are gone.
        normalized_rows: Rows on the normalized side at its end; None where there are no tables yet.
        writes: What the threads wrote meanwhile, in rows.
        slowest_write: Seconds of their longest unit of work.
        mismatches: Mismatches found since the start, settled ones included.
        rejects: Rejects found since the start.
        seconds: How long it took.
        notes: What was done in it.
    """

    phase: Phase
    forward: bool
    legacy_rows: int | None = None
    normalized_rows: int | None = None
    writes: int = 0
    slowest_write: float = 0.0
    mismatches: int = 0
    rejects: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DemoReport:
    """How the play went.

    Attributes:
        legs: Its phases, in order.
        verdict: What the judge says of the rows at the end.
        failures: What went wrong for a writer, or for the old program.
        writes: Rows they wrote.
        deleted: Rows they deleted again.
        mismatches: Mismatches found in all.
        rejects: Rejects found in all.
        seconds: How long it took.
    """

    legs: list[Leg]
    verdict: Verdict
    failures: list[str]
    writes: int
    deleted: int
    mismatches: int
    rejects: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        wrote_in_all = all(leg.writes for leg in self.legs)
        return self.verdict.exact and wrote_in_all and not (self.failures or self.mismatches or self.rejects)


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
    """Take a legacy file through the five phases and back while threads write to it.

    Args:
        database: A file to take a copy of; a made-up one where left out. The file itself is only read.
        begin: Called with the rows and bytes of the file, and the threads that will write, before the first step.
        tell: Called after each phase.

    Returns:
        How it went.

    Raises:
        ConsensusError: A step was refused, or the file cannot be copied or is no legacy file.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="consensus_orm-demo-") as folder:
        path = Path(folder) / "consensus_artifacts.db"
        legacy_file.make(path) if database is None else _copy(database, path)
        before = look(path)
        begin(sum(map(len, before.rows.values())), path.stat().st_size, THREADS)
        with ConsensusStore.open(path, settings=_DemoSettings()) as store:
            _require_expand(store, database)
            store.migration.upgrade()
            with Writers(store, THREADS) as writers:
                stage = _Stage(store, writers, OldProgram(path), tell)
                stage.forward()
                stage.back()
            mismatches, rejects = stage.found()
        after = look(path, before.columns)
        added = {table: writers.rows(table) for table in before.columns}
        added["consensus_artifacts"] = [*added.get("consensus_artifacts", ()), *stage.old.rows]
        verdict = judge(before, after, added, writers.highest_id)
    return DemoReport(
        legs=stage.legs,
        verdict=verdict,
        failures=writers.failures + stage.failures,
        writes=writers.writes.total(),
        deleted=writers.deleted,
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
    """Where the play takes place."""

    def __init__(self, store: ConsensusStore, writers: Writers, old: OldProgram, tell: Callable[[Leg], object]) -> None:
        self.migration = store.migration
        self.writers = writers
        self.old = old
        self.tell = tell
        self.legs: list[Leg] = []
        self.failures: list[str] = []
        self._since, self._written = time.monotonic(), writers.writes

    def forward(self) -> None:
        """Take the steps of an operator."""
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
        """Take all of it back."""
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
        """One phase, from the step that led to it."""
        phase = self.migration.phase
        leg = Leg(phase, forward)
        yield leg
        time.sleep(max(0.0, SHORTEST_LEG - (time.monotonic() - self._since)))
        status = self.migration.status()
        if phase.has_legacy:
            leg.legacy_rows = sum(pair.legacy_rows or 0 for pair in status.pairs)
        leg.normalized_rows = sum(pair.normalized_rows or 0 for pair in status.pairs)
        before, self._written = self._written, self.writers.writes
        leg.writes = self._written[phase] - before[phase]
        leg.slowest_write = self.writers.take_slowest()
        leg.mismatches, leg.rejects = self.found()
        started, self._since = self._since, time.monotonic()
        leg.seconds = self._since - started
        self.legs.append(leg)
        self.tell(leg)

    def _adopt(self, leg: Leg) -> None:
        """Let a program write that knows one side only, and carry what it wrote."""
        self.old.write()
        noticed = self.migration.status().foreign_writes
        adopted = self.migration.reconcile().adopted
        leg.notes.append("an old program writes to the legacy side alone: noticed, and adopted by reconcile")
        if (noticed, adopted) != (1, 1):
            self.failures.append(f"the old program in {leg.phase.name}: {noticed} noticed, {adopted} adopted")

    def _refuse(self, leg: Leg) -> None:
        """Let that program write where its row would be lost."""
        leg.notes.append("an old program tries to write to the legacy side: refused, and told why")
        if self.old.write() is None:
            self.failures.append(f"the old program was not refused in {leg.phase.name}")

    def _verify(self, leg: Leg) -> None:
        seen = self.migration.verify()
        leg.notes.append(f"verify: {seen.compared:,} rows compared in every column, {len(seen.differences)} differ")
