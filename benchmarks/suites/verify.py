"""Comparing both sides whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.data import copied, engine_on, filled, raw_connection
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import live_writer, peak_memory
from benchmarks.raw import in_chunks
from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.models.legacy import ConsensusArtifact
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun

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


def _template(bench: Bench) -> Path:
    """A file in which both sides hold the same, made once for all cases.

    It is copied and never opened: a copy closes the file, and with that SQLite's locks on it are gone.
    """
    path = bench.folder / "template.db"
    return path if path.exists() else filled(path, Phase.CUTOVER, bench.rows, TEXT)


def _both_sides(bench: Bench) -> Path:
    """One that is read only, made once for all cases that do nothing else."""
    path = bench.folder / "both_sides.db"
    return path if path.exists() else copied(_template(bench), path)


@GROUP.case()
def raw_anti_join(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, byte-exact anti-joins both ways in chunks by key"""
    with closing(raw_connection(_both_sides(bench))) as connection:

        def work(round_: int) -> None:
            for table, statement in STATEMENTS.items():
                for bounds in in_chunks(connection, table, CHUNK):
                    assert not connection.execute(statement, bounds).fetchall()

        yield work


@GROUP.case()
def ours(bench: Bench) -> Iterator[Work]:
    """consensus_orm, with its certificate"""
    with ConsensusStore.open(_both_sides(bench)) as store:

        def work(round_: int) -> None:
            report = store.migration.verify()
            assert (report.clean, report.compared) == (True, bench.rows)

        yield work


@GROUP.case()
def beside_a_writer(bench: Bench) -> Iterator[Work]:
    """consensus_orm, beside a process that writes an artifact every 2 ms"""
    path = copied(_template(bench), bench.file("live_verify"))

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
    yield lambda _: {"MB": peak_memory("verify", _both_sides(bench))}


_SIDES = (
    """SELECT id, spec_id, stage, agent_name, content_json, response_text, run_id, created_at
       FROM consensus_artifacts WHERE id <= :last""",
    """SELECT o.id, r.spec_id, r.stage, o.agent_name, o.content, o.response_text, r.run_id, o.created_at
       FROM agent_outputs o JOIN consensus_runs r ON r.id = o.run_id WHERE o.id <= :last""",
)


def _tenth(bench: Bench, look: Callable[[int], None]) -> dict[str, float]:
    """Ten times the time that a tenth of the rows takes; these are slow."""
    last = max(1, bench.rows // 10)
    started = time.perf_counter()
    look(last)
    return {"seconds": (time.perf_counter() - started) * bench.rows / last}


@GROUP.case()
def raw_except(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, EXCEPT both ways, the carried columns only (on a tenth of the rows)"""
    with closing(raw_connection(_both_sides(bench))) as connection:

        def look(last: int) -> None:
            for one, other in (_SIDES, _SIDES[::-1]):
                assert not connection.execute(f"{one} EXCEPT {other}", {"last": last}).fetchall()

        yield lambda _: _tenth(bench, look)


@GROUP.case()
def orm_streaming(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy ORM, both sides streamed and compared in Python, the carried columns only (on a tenth of the rows)"""
    engine = engine_on(_both_sides(bench))
    statement = (
        select(ConsensusArtifact, AgentOutput, ConsensusRun)
        .outerjoin(AgentOutput, AgentOutput.id == ConsensusArtifact.id)
        .outerjoin(ConsensusRun, ConsensusRun.id == AgentOutput.run_id)
        .execution_options(yield_per=1000)
    )

    def look(last: int) -> None:
        with Session(engine) as session:
            for a, o, r in session.execute(statement.where(ConsensusArtifact.id <= last)):
                theirs = (r.spec_id, r.stage, o.agent_name, o.content, o.response_text, r.run_id, o.created_at)
                assert theirs == (
                    a.spec_id, a.stage, a.agent_name, a.content_json, a.response_text, a.run_id, a.created_at
                )  # fmt: skip

    yield lambda _: _tenth(bench, look)
    engine.dispose()
