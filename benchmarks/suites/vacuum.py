"""Giving space back after most rows were deleted, and how long it keeps a writer waiting."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.data import copied, raw_connection
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import live_writer
from consensus_orm import ConsensusStore

ROWS = 20_000
GROUP = Group(
    "vacuum after 9 of 10 rows of 8 KB were deleted",
    unit="file",
    count=1,
    baseline="raw_vacuum",
    targets=(Target("p99 of a live writer beside it, ms", "beside_a_writer", 20, None, "p99 ms"),),
)
GROUPS = (GROUP,)


def _bloated(bench: Bench) -> Path:
    path = bench.file("bloated")
    with ConsensusStore.open(path) as store:
        rows = bench.times(ROWS)
        with store.unit_of_work() as uow:
            uow.artifacts.add_many(
                {
                    "spec_id": "keep" if number % 10 == 0 else "drop",
                    "stage": "spec-plan",
                    "agent_name": "gemini",
                    "content_json": "x" * 8000,
                }
                for number in range(rows)
            )
        with store.unit_of_work() as uow:
            uow.artifacts.delete(spec_id="drop")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def _megabytes(path: Path) -> float:
    return path.stat().st_size / 1024 / 1024


@GROUP.case()
def raw_vacuum(bench: Bench) -> Iterator[Work]:
    """raw VACUUM, which locks writers out to its end"""
    template, path = _bloated(bench), bench.file("raw_vacuum")

    def work(round_: int) -> dict[str, float]:
        with closing(raw_connection(copied(template, path))) as connection:
            started = time.perf_counter()
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "longest lock ms": seconds * 1000, "MB left": _megabytes(path)}

    yield work


@GROUP.case()
def ours(bench: Bench) -> Iterator[Work]:
    """consensus_orm, in steps"""
    template, path = _bloated(bench), bench.file("our_vacuum")

    def work(round_: int) -> dict[str, float]:
        with ConsensusStore.open(copied(template, path)) as store:
            report = store.maintenance.vacuum()
            left = _megabytes(path)
        return {"seconds": report.seconds, "longest lock ms": report.longest_lock * 1000, "MB left": left}

    yield work


@GROUP.case()
def beside_a_writer(bench: Bench) -> Iterator[Work]:
    """consensus_orm, beside a process that writes an artifact every 2 ms"""
    template, path = _bloated(bench), bench.file("live_vacuum")

    def work(round_: int) -> dict[str, float]:
        with live_writer(copied(template, path)) as waited, ConsensusStore.open(path) as store:
            seconds = store.maintenance.vacuum().seconds
        return {"seconds": seconds, **waited}

    yield work
