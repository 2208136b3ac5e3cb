"""The backfill of a whole table, alone and beside a live writer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.data import MILLISECONDS, copied, legacy_file, raw_connection
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import live_writer, lock_times, peak_memory
from benchmarks.raw import in_chunks
from consensus_orm import ConsensusStore, Phase

TEXT = "x" * 1000
MILLION = 1_000_000
CHUNK = 2000
"""Rows of a raw chunk: the fastest of 1000, 2000 and 3000."""

GROUP = Group(
    "backfill of rows of 1 KB",
    unit="row",
    count=None,
    baseline="raw_chunks",
    targets=(
        Target(
            "backfill, rows/s of the same SQL run raw in chunks", "ours", 0.8, "raw_chunks", None, True, rows=MILLION
        ),
        Target("longest write lock of the backfill, ms", "ours", 50, None, "longest lock ms", rows=MILLION),
        Target("p99 of a live writer beside it, ms", "beside_a_writer", 20, None, "p99 ms", rows=MILLION),
        Target("memory of the backfill, MB", "memory", 100, None, "MB", rows=MILLION),
    ),
)
GROUPS = (GROUP,)

_PARENTS = """
    INSERT OR IGNORE INTO consensus_runs (spec_id, stage, run_id, run_key, run_timestamp, consensus_ok, degraded)
    SELECT DISTINCT spec_id, stage, run_id, {key}, {ms}, 1, 0 FROM consensus_artifacts WHERE id BETWEEN :first AND :last
"""
_OUTPUTS = """
    INSERT OR IGNORE INTO agent_outputs (id, run_id, agent_name, output_timestamp, created_at, mirrored, response_text,
        content)
    SELECT a.id, r.id, a.agent_name, {ms}, a.created_at, 1, a.response_text, a.content_json
    FROM consensus_artifacts a JOIN consensus_runs r
    ON r.spec_id = a.spec_id AND r.stage = a.stage AND r.run_key = {key} WHERE a.id BETWEEN :first AND :last
"""
_KEY = "CASE WHEN {0}run_id IS NULL THEN 'at:' || substr({0}created_at, 1, 19) ELSE 'run:' || {0}run_id END"
_MS = "CAST(round((julianday({0}created_at) - 2440587.5) * 86400) AS INTEGER) * 1000"
STATEMENTS = (
    _PARENTS.format(key=_KEY.format(""), ms=_MS.format("")),
    _OUTPUTS.format(key=_KEY.format("a."), ms=_MS.format("a.")),
)


def _template(bench: Bench, phase: Phase) -> Path:
    """A file to begin with, made once for all cases."""
    path = bench.folder / f"template_{phase.name}.db"
    if path.exists():
        return path
    with ConsensusStore.open(legacy_file(path, bench.rows, TEXT)) as store:
        store.migration.advance(phase, soak=False) if phase > Phase.EXPAND else store.migration.upgrade()
    return path


@GROUP.case()
def raw_chunks(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, the same set-based SQL in chunks by key, uncompared"""
    yield _raw(bench, Phase.EXPAND)


@GROUP.case()
def raw_chunks_noticed(bench: Bench) -> Iterator[Work]:
    """the same where a backfill runs: triggers notice what other programs write, and cost each row"""
    yield _raw(bench, Phase.DUAL_WRITE)


def _raw(bench: Bench, phase: Phase) -> Work:
    template, path = _template(bench, phase), bench.file("raw_backfill")

    def work(round_: int) -> dict[str, float]:
        with closing(raw_connection(copied(template, path))) as connection:
            started, longest = time.perf_counter(), 0.0
            for bounds in in_chunks(connection, "consensus_artifacts", CHUNK):
                locked = time.perf_counter()
                connection.execute("BEGIN IMMEDIATE")
                for statement in STATEMENTS:
                    connection.execute(statement, bounds)
                connection.execute("COMMIT")
                longest = max(longest, time.perf_counter() - locked)
            seconds = time.perf_counter() - started
            (right,) = connection.execute(
                "SELECT count(*) FROM agent_outputs WHERE output_timestamp = ?", (MILLISECONDS,)
            ).fetchone()
            assert right == bench.rows
        return {"seconds": seconds, "longest lock ms": longest * 1000}

    return work


@GROUP.case()
def ours(bench: Bench) -> Iterator[Work]:
    """consensus_orm, compared, with checkpoints and pauses"""
    template, path = _template(bench, Phase.DUAL_WRITE), bench.file("our_backfill")

    def work(round_: int) -> dict[str, float]:
        with ConsensusStore.open(copied(template, path)) as store:
            with store.unit_of_work():
                pass
            started = time.perf_counter()
            with lock_times() as held:
                report = store.migration.backfill()
            seconds = time.perf_counter() - started
            assert (report.rows, report.rejects) == (bench.rows, 0)
        return {"seconds": seconds, "longest lock ms": max(held) * 1000}

    yield work


@GROUP.case()
def beside_a_writer(bench: Bench) -> Iterator[Work]:
    """consensus_orm, beside a process that writes an artifact every 2 ms"""
    template, path = _template(bench, Phase.DUAL_WRITE), bench.file("live_backfill")

    def work(round_: int) -> dict[str, float]:
        with live_writer(copied(template, path)) as waited, ConsensusStore.open(path) as store:
            started = time.perf_counter()
            store.migration.backfill()
            seconds = time.perf_counter() - started
        return {"seconds": seconds, **waited}

    yield work


@GROUP.case()
def memory(bench: Bench) -> Iterator[Work]:
    """consensus_orm, in a process of its own (its start included)"""
    template, path = _template(bench, Phase.DUAL_WRITE), bench.file("backfill_memory")
    yield lambda _: {"MB": peak_memory("backfill", copied(template, path))}
