"""On a server: the backfill by several workers, and how long each step there and back keeps a writer waiting."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import live_writer
from benchmarks.suites.postgresql import MILLION, TEXT, database, filled, uncarried
from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import GateClosedError
from consensus_orm.settings import Settings

BACKFILL = Group(
    "PostgreSQL: backfill of rows of 1 KB by workers",
    unit="row",
    count=None,
    baseline="alone",
    targets=(
        Target("4 workers, rows/s of one process alone", "workers_4", 1.5, "alone", None, True, rows=MILLION),
        Target("4 workers, rows/s of one worker", "workers_4", 1.5, "workers_1", None, True, rows=MILLION),
    ),
)

WAY = (
    *(f"advance {phase.name.lower()}" for phase in Phase if phase.previous),
    *(f"rollback {phase.name.lower()}" for phase in reversed(Phase) if phase.next),
)
LONGEST = 250
"""The longest time, in ms, for which a step may keep a writer waiting."""

STEPS = Group(
    "PostgreSQL: the longest wait of a writer beside each step",
    unit="row",
    count=None,
    baseline="there_and_back",
    targets=tuple(
        Target(
            f"{step}, longest wait of a writer, ms", "there_and_back", LONGEST, None, f"longest, {step}", rows=200_000
        )
        for step in WAY
    ),
)
GROUPS = (BACKFILL, STEPS)


def _carried(bench: Bench, workers: int | None) -> Iterator[Work]:
    with uncarried(bench, Phase.DUAL_WRITE) as name:

        def work(round_: int) -> dict[str, float]:
            with database(name) as url, ConsensusStore.open(url) as store:
                started = time.perf_counter()
                report = store.migration.backfill(workers=workers)
                seconds = time.perf_counter() - started
                assert (report.rows, report.rejects) == (bench.rows, 0)
            return {"seconds": seconds}

        yield work


@BACKFILL.case()
def alone(bench: Bench) -> Iterator[Work]:
    """one process, which compares on a second thread"""
    yield from _carried(bench, None)


@BACKFILL.case(1, 2, 4)
def workers(bench: Bench, number: int) -> Iterator[Work]:
    """workers that share the ranges: {}"""
    yield from _carried(bench, number)


@STEPS.case()
def there_and_back(bench: Bench) -> Iterator[Work]:
    """every step to CONTRACT and back, each beside a process that writes an artifact every 2 ms"""

    def work(round_: int) -> dict[str, float]:
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as backups, filled(Phase.EXPAND, bench.rows, TEXT) as url:
            settings = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, backup_dir=backups, protect=False)
            with ConsensusStore.open(url, settings=settings) as store:
                migration = store.migration
                steps: dict[str, Callable[..., object]] = {"advance": migration.advance, "rollback": migration.rollback}
                for step in WAY:
                    how, to = step.split()
                    _prepare(store, ready=how == "advance")
                    with live_writer(url) as waited:
                        _take(store, partial(steps[how], to))
                    found[f"longest, {step}"] = waited["longest ms"]
        return found

    yield work


def _prepare(store: ConsensusStore, *, ready: bool) -> None:
    """Open the gate, as an operator does before a step forward."""
    phase = store.migration.phase
    if ready and phase is Phase.DUAL_WRITE:
        store.migration.backfill()
    if ready and phase.has_legacy and phase.writes_normalized:
        assert store.migration.verify().clean


def _take(store: ConsensusStore, step: Callable[[], object]) -> None:
    """Take a step; on a busy machine the server may tell of reads of the writer so late that they count as others'."""
    try:
        step()
    except GateClosedError:
        reads = [each.name for each in store.migration.dependencies()]
        store.migration.accept_dependencies(reads, reason="the benchmark")
        step()
