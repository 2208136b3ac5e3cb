"""Comparing both sides whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from benchmarks.data import filled, raw_connection
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import live_writer, peak_memory
from benchmarks.raw import in_chunks
from consensus_orm import ConsensusStore, Phase

TEXT = "x" * 1000
MILLION = 1_000_000
CHUNK = 5000

GROUP = Group(
    "verify of rows of 1 KB",
    unit="row",
    count=None,
    baseline="raw_anti_join",
    targets=(
        Target("verify, to the fastest raw SQL that finds the same", "ours", 1.3, than="raw_anti_join", rows=MILLION),
        Target("memory of the verify, MB", "memory", 100, None, "MB", rows=MILLION),
        Target("p99 of a live writer beside it, ms", "beside_a_writer", 20, None, "p99 ms", rows=MILLION),
    ),
)
GROUPS = (GROUP,)

_SAME = "(CASE WHEN +{0} < '' THEN typeof({0}) = typeof({1}) AND {0} IS {1} ELSE +{0} COLLATE BINARY IS +{1} END)"
_COMPARED = (
    ("o.agent_name", "a.agent_name"),
    ("o.content", "a.content_json"),
    ("o.response_text", "a.response_text"),
    ("o.created_at", "a.created_at"),
    ("r.spec_id", "a.spec_id"),
    ("r.stage", "a.stage"),
    ("r.run_id", "a.run_id"),
)
_KEY = "CASE WHEN a.run_id IS NULL THEN 'at:' || substr(a.created_at, 1, 19) ELSE 'run:' || a.run_id END"
_MS = "CAST(round((julianday(a.created_at) - 2440587.5) * 86400) AS INTEGER) * 1000"
STATEMENTS = {
    "consensus_artifacts": f"""
        SELECT a.id FROM consensus_artifacts a WHERE a.id BETWEEN :first AND :last AND NOT EXISTS (
            SELECT 1 FROM agent_outputs o JOIN consensus_runs r ON r.id = o.run_id WHERE o.id = a.id
            AND {" AND ".join(_SAME.format(*pair) for pair in _COMPARED)}
            AND r.run_key IS {_KEY} AND o.output_timestamp IS {_MS})
    """,
    "agent_outputs": """
        SELECT o.id FROM agent_outputs o WHERE o.id BETWEEN :first AND :last
        AND NOT EXISTS (SELECT 1 FROM consensus_artifacts a WHERE a.id = o.id)
    """,
    "consensus_runs": """
        SELECT r.id FROM consensus_runs r WHERE r.id BETWEEN :first AND :last AND (run_timestamp IS NOT
            (SELECT min(output_timestamp) FROM agent_outputs o WHERE o.run_id = r.id)
            OR consensus_ok IS NOT 1 OR degraded IS NOT 0 OR synthesis_json IS NOT NULL
            OR EXISTS (SELECT 1 FROM consensus_syntheses s WHERE s.run_id = r.id))
    """,
}
"""The same differences, by hand for rows with valid times and no syntheses, which a store cannot presume."""


@GROUP.case()
def raw_anti_join(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, byte-exact anti-joins both ways in chunks by key"""
    path = filled(bench.file("raw_verify"), Phase.CUTOVER, bench.rows, TEXT)
    with closing(raw_connection(path)) as connection:

        def work(round_: int) -> None:
            for table, statement in STATEMENTS.items():
                for bounds in in_chunks(connection, table, CHUNK):
                    assert not connection.execute(statement, bounds).fetchall()

        yield work


@GROUP.case()
def ours(bench: Bench) -> Iterator[Work]:
    """consensus_orm, with its certificate"""
    with ConsensusStore.open(filled(bench.file("our_verify"), Phase.CUTOVER, bench.rows, TEXT)) as store:

        def work(round_: int) -> None:
            report = store.migration.verify()
            assert (report.clean, report.compared) == (True, bench.rows)

        yield work


@GROUP.case()
def beside_a_writer(bench: Bench) -> Iterator[Work]:
    """consensus_orm, beside a process that writes an artifact every 2 ms"""
    path = filled(bench.file("live_verify"), Phase.CUTOVER, bench.rows, TEXT)

    def work(round_: int) -> dict[str, float]:
        with live_writer(path) as waited, ConsensusStore.open(path) as store:
            started = time.perf_counter()
            assert store.migration.verify().clean
            seconds = time.perf_counter() - started
        return {"seconds": seconds, **waited}

    yield work


@GROUP.case()
def memory(bench: Bench) -> Iterator[Work]:
    """consensus_orm, in a process of its own (its start included)"""
    path = filled(bench.file("verify_memory"), Phase.CUTOVER, bench.rows, TEXT)
    yield lambda _: {"MB": peak_memory("verify", path)}
