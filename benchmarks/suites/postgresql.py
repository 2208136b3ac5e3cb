"""The same work on PostgreSQL, each case in a database of its own.

The server is that of `--url` (a user who may create databases), else of CONSENSUS_ORM_BENCH_POSTGRES, else the one of
the tests, which runs without fsync: a commit costs nothing there, so that ratios are the least flattering.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, make_url

from benchmarks.data import CREATED, MILLISECONDS, artifact
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import live_writer
from benchmarks.suites.outbox import mirror
from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.models.legacy import ConsensusArtifact, ConsensusSynthesis
from consensus_orm.models.base import Base
from consensus_orm.phase import Side
from consensus_orm.settings import Settings

if TYPE_CHECKING:
    import psycopg

COUNT = 200
ROWS = 3000
MILLION = 1_000_000
TEXT = "x" * 1000
CHUNK = 20_000

WRITES = Group(
    "PostgreSQL: one artifact, its own transaction",
    unit="write",
    count=COUNT,
    baseline="raw_four",
    targets=(
        Target("compared dual write, to its four statements sent raw", "ours_dual_write", 1.6, than="raw_four"),
        Target("the same in phase 3", "ours_cutover", 1.6, than="raw_four"),
    ),
)
POOLED = Group(
    "PostgreSQL: one artifact in phase 2, through pgbouncer (pool_mode = transaction)",
    unit="write",
    count=COUNT,
    baseline="direct",
    targets=(Target("compared write through pgbouncer, to direct", "through_pgbouncer", 1.3, than="direct"),),
)
MIRRORED = Group(
    "PostgreSQL: one artifact in phase 2, with an outbox",
    unit="write",
    count=COUNT,
    baseline="without_an_outbox",
    targets=(
        Target("compared write with an outbox, to one without", "with_an_outbox", 1.25, than="without_an_outbox"),
    ),
)
READS = Group(
    "PostgreSQL: read by id, within a unit of work",
    unit="read",
    count=500,
    baseline="raw_legacy",
    targets=(
        Target("read by id within a unit of work, to raw", "ours_read_dual_write", 2, than="raw_legacy"),
        Target("the same from the normalized side", "ours_read_cutover", 2, than="raw_normalized"),
    ),
)
OWN = Group(
    "PostgreSQL: read by id, a unit of work of its own",
    unit="read",
    count=500,
    baseline="raw_own_legacy",
    targets=(
        Target("read by id, its own unit of work, to a raw snapshot", "own_dual_write", 2, than="raw_own_legacy"),
        Target("the same from the normalized side", "own_cutover", 2, than="raw_own_normalized"),
    ),
)
BACKFILL = Group(
    "PostgreSQL: backfill of rows of 1 KB",
    unit="row",
    count=None,
    baseline="raw_chunks",
    targets=(
        Target(
            "backfill, rows/s of raw chunks of 20,000", "our_chunks_1000", 0.8, "raw_chunks", None, True, rows=MILLION
        ),
        Target("p99 of a live writer beside it, ms", "beside_a_writer", 20, None, "p99 ms", rows=MILLION),
    ),
)
VERIFY = Group(
    "PostgreSQL: verify of rows of 1 KB",
    unit="row",
    count=None,
    baseline="raw_full_join",
    targets=(Target("verify, to one FULL JOIN", "our_verify", 1.3, than="raw_full_join", rows=MILLION),),
)
GROUPS = (WRITES, *([POOLED] if shutil.which("pgbouncer") else ()), MIRRORED, READS, OWN, BACKFILL, VERIFY)
"""Without pgbouncer there is nothing to measure through it."""

_LEGACY = (
    "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id, created_at) VALUES"
    f" (%(spec_id)s, %(stage)s, %(agent_name)s, %(content_json)s, %(run_id)s, '{CREATED}') RETURNING id"
)
_RUN = (
    "INSERT INTO consensus_runs (spec_id, stage, run_id, run_key, run_timestamp, consensus_ok, degraded) VALUES"
    f" (%(spec_id)s, %(stage)s, %(run_id)s, 'run:' || %(run_id)s::text, {MILLISECONDS}, true, false)"
    " ON CONFLICT DO NOTHING"
)
_FIND = (
    "SELECT id FROM consensus_runs WHERE spec_id = %(spec_id)s AND stage = %(stage)s"
    " AND run_key = 'run:' || %(run_id)s::text"
)
_OUTPUT = (
    "INSERT INTO agent_outputs (id, run_id, agent_name, content, output_timestamp, created_at, mirrored) VALUES"
    f" (%(key)s, %(parent)s, %(agent_name)s, %(content_json)s, {MILLISECONDS}, '{CREATED}', true)"
)
FOUR = (_LEGACY, _RUN, _FIND, _OUTPUT)
"""A dual write as a program would send it that compares nothing, between BEGIN and COMMIT."""

COLUMNS = "id, spec_id, stage, agent_name, content_json, response_text, run_id, created_at"
BY_ID = {
    Side.LEGACY: f"SELECT {COLUMNS} FROM consensus_artifacts WHERE id = %s",
    Side.NORMALIZED: "SELECT o.id, r.spec_id, r.stage, o.agent_name, o.content, o.response_text, r.run_id, o.created_at"
    " FROM agent_outputs o JOIN consensus_runs r ON r.id = o.run_id WHERE o.id = %s",
}

KEY = "CASE WHEN {0}.run_id IS NULL THEN 'at:' || substr({0}.created_at, 1, 19) ELSE 'run:' || {0}.run_id END"
MS = "(extract(epoch FROM {0}.created_at::timestamp) * 1000)::bigint"
_PARENTS = (
    "INSERT INTO consensus_runs (spec_id, stage, run_id, run_key, run_timestamp, consensus_ok, degraded)"
    f" SELECT spec_id, stage, run_id, {KEY.format('a')}, min({MS.format('a')}), true, false"
    " FROM consensus_artifacts a WHERE id BETWEEN %(first)s AND %(last)s GROUP BY 1, 2, 3, 4 ON CONFLICT DO NOTHING"
)
_OUTPUTS = (
    "INSERT INTO agent_outputs (id, run_id, agent_name, output_timestamp, created_at, mirrored, response_text, content)"
    f" SELECT a.id, r.id, a.agent_name, {MS.format('a')}, a.created_at, true, a.response_text, a.content_json"
    f" FROM consensus_artifacts a JOIN consensus_runs r ON r.spec_id = a.spec_id AND r.stage = a.stage"
    f" AND r.run_key = {KEY.format('a')} WHERE a.id BETWEEN %(first)s AND %(last)s ON CONFLICT DO NOTHING"
)
CARRIED = (_PARENTS, _OUTPUTS)
"""The backfill by hand, for rows with valid times and no syntheses, which a store cannot presume."""

LEFT = {
    "agent_name": "o.agent_name",
    "content_json": "o.content",
    "response_text": "o.response_text",
    "created_at": "o.created_at",
    "spec_id": "r.spec_id",
    "stage": "r.stage",
    "run_id": "r.run_id",
}
SIDE = "agent_outputs o JOIN consensus_runs r ON r.id = o.run_id"
_DIFFERENT = " OR ".join(f'a.{left} COLLATE "C" IS DISTINCT FROM {right}' for left, right in LEFT.items())
FULL_JOIN = (
    f"SELECT count(*) FROM consensus_artifacts a FULL JOIN ({SIDE}) ON o.id = a.id WHERE a.id IS NULL OR o.id IS NULL"
    f' OR {_DIFFERENT} OR r.run_key COLLATE "C" IS DISTINCT FROM {KEY.format("a")}'
    f" OR o.output_timestamp IS DISTINCT FROM {MS.format('a')}"
)
_HERE, _THERE = (
    f"SELECT id, {', '.join(LEFT)}, {KEY.format('a')}, {MS.format('a')} FROM consensus_artifacts a",
    f"SELECT o.id, {', '.join(LEFT.values())}, r.run_key, o.output_timestamp FROM {SIDE}",
)
EXCEPT_ALL = f"SELECT count(*) FROM (({_HERE} EXCEPT ALL {_THERE}) UNION ALL ({_THERE} EXCEPT ALL {_HERE})) d"


@contextmanager
def database(template: str | None = None) -> Iterator[str]:
    """An empty database, or a clone of one."""
    if (url := os.environ.get("CONSENSUS_ORM_BENCH_POSTGRES")) is not None:
        os.environ["CONSENSUS_ORM_TEST_POSTGRES"] = url
    from tests.support import servers

    with servers.database(template) as url:
        yield url


def _fill(url: str, rows: int, text: str | None = None) -> None:
    """Make the legacy tables, with rows in them."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1))
    models = (ConsensusArtifact, ConsensusSynthesis)
    Base.metadata.create_all(engine, [Base.metadata.tables[model.__tablename__] for model in models])
    engine.dispose()
    names = ("spec_id", "stage", "agent_name", "content_json", "run_id", "created_at")
    with _raw(url) as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY consensus_artifacts ({', '.join(names)}) FROM STDIN".encode()) as copy:
            for number in range(rows):
                row = artifact(number, text) | {"created_at": CREATED}
                copy.write_row([row[name] for name in names])
        connection.execute("VACUUM ANALYZE")


@contextmanager
def _raw(url: str) -> Iterator[psycopg.Connection[Any]]:
    """The driver's connection."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def _take(url: str, phase: Phase) -> None:
    """Take a database to a phase, and let it settle."""
    with ConsensusStore.open(url) as store:
        store.migration.upgrade()
        store.migration.migrate(phase, soak=False)
        if phase is Phase.DUAL_WRITE:
            store.migration.backfill()
    with _raw(url) as connection:
        connection.execute("VACUUM ANALYZE")


@contextmanager
def _store(phase: Phase, rows: int) -> Iterator[ConsensusStore]:
    with filled(phase, rows) as url, ConsensusStore.open(url) as store:
        yield store


@contextmanager
def filled(phase: Phase, rows: int, text: str | None = None) -> Iterator[str]:
    with database() as url:
        _fill(url, rows, text)
        _take(url, phase)
        yield url


# One artifact ---------------------------------------------------------------------------------------------


def _four(connection: psycopg.Connection[Any], row: dict[str, Any]) -> None:
    legacy, run, find, output = (statement.encode() for statement in FOUR)
    row["key"] = _one(connection.execute(legacy, row))
    connection.execute(run, row)
    row["parent"] = _one(connection.execute(find, row))
    connection.execute(output, row)


def _one(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]


def _rows_of(bench: Bench, round_: int) -> Iterator[dict[str, Any]]:
    start = bench.times(ROWS) + (round_ + 1) * bench.times(COUNT)
    for number in range(start, start + bench.times(COUNT)):
        yield artifact(number)


@WRITES.case()
def raw_four(bench: Bench) -> Iterator[Work]:
    """psycopg: artifact, run, its id, output; uncompared"""
    with filled(Phase.DUAL_WRITE, bench.times(ROWS)) as url, _raw(url) as connection:
        connection.execute("SET consensus_orm.by = 'repository'")  # no trigger notes what is written

        def work(round_: int) -> None:
            for row in _rows_of(bench, round_):
                with connection.transaction():
                    _four(connection, row)

        yield work


@WRITES.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
def ours(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}"""
    with _store(phase, bench.times(ROWS)) as store:
        yield partial(_add, bench, store)


def _add(bench: Bench, store: ConsensusStore, round_: int) -> None:
    for row in _rows_of(bench, round_):
        with store.unit_of_work() as uow:
            uow.artifacts.add(**row)


@POOLED.case()
def direct(bench: Bench) -> Iterator[Work]:
    """consensus_orm, the server itself"""
    with _store(Phase.DUAL_WRITE, bench.times(ROWS)) as store:
        yield partial(_add, bench, store)


@MIRRORED.case()
def without_an_outbox(bench: Bench) -> Iterator[Work]:
    """no external store"""
    with _store(Phase.DUAL_WRITE, bench.times(ROWS)) as store:
        yield partial(_add, bench, store)


@MIRRORED.case()
def with_an_outbox(bench: Bench) -> Iterator[Work]:
    """the outbox of a store in memory"""
    with _store(Phase.DUAL_WRITE, bench.times(ROWS)) as store:
        mirror(store)
        yield partial(_add, bench, store)


@POOLED.case()
def planned(bench: Bench) -> Iterator[Work]:
    """consensus_orm, the server itself, each statement planned each time as through pgbouncer"""
    with (
        filled(Phase.DUAL_WRITE, bench.times(ROWS)) as url,
        ConsensusStore.open(_with(url, prepare_threshold="0")) as store,
    ):
        yield partial(_add, bench, store)


@POOLED.case()
def through_pgbouncer(bench: Bench) -> Iterator[Work]:
    """consensus_orm, through pgbouncer"""
    with _pooled(Phase.DUAL_WRITE, bench) as url, ConsensusStore.open(url) as store:
        yield partial(_add, bench, store)


def _with(url: str, **query: str) -> str:
    return make_url(url).update_query_dict(query).render_as_string(hide_password=False)


@contextmanager
def _pooled(phase: Phase, bench: Bench) -> Iterator[str]:
    from tests.support import poolers

    with filled(phase, bench.times(ROWS)) as url, poolers.pooled(url, "transaction") as pooler:
        yield pooler.url(url)


@POOLED.case()
def bare(bench: Bench) -> Iterator[Work]:
    """psycopg, as many messages that do nothing, the server itself"""
    with database() as url:
        yield from _bare(bench, url)


@POOLED.case()
def bare_pooled(bench: Bench) -> Iterator[Work]:
    """psycopg, as many messages that do nothing, through pgbouncer"""
    with _pooled(Phase.EXPAND, bench) as url:
        yield from _bare(bench, url)


def _bare(bench: Bench, url: str) -> Iterator[Work]:
    with _raw(url) as connection:
        connection.prepare_threshold = None

        def work(round_: int) -> None:
            for _ in _rows_of(bench, round_):
                connection.execute("BEGIN; SELECT 1")
                with connection.pipeline():
                    for _ in "write", "compare":
                        connection.execute("SELECT 1")
                connection.execute("COMMIT")

        yield work


# Reads ----------------------------------------------------------------------------------------------------


def _ids(bench: Bench, round_: int) -> list[int]:
    return random.Random(round_).choices(range(1, bench.times(ROWS) + 1), k=bench.times(500))


@contextmanager
def _raw_reads(bench: Bench, side: Side) -> Iterator[tuple[psycopg.Connection[Any], bytes]]:
    phase = Phase.DUAL_WRITE if side is Side.LEGACY else Phase.CUTOVER
    with filled(phase, bench.times(ROWS)) as url, _raw(url) as connection:
        yield connection, BY_ID[side].encode()


@READS.case(Side.LEGACY, Side.NORMALIZED)
def raw(bench: Bench, side: Side) -> Iterator[Work]:
    """psycopg, the {} row, within a transaction"""
    with _raw_reads(bench, side) as (connection, statement):

        def work(round_: int) -> None:
            with connection.transaction():
                for id_ in _ids(bench, round_):
                    connection.execute(statement, (id_,)).fetchone()

        yield work


@READS.case(Phase.DUAL_WRITE, Phase.CUTOVER)
def ours_read(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}, within a unit of work"""
    with _store(phase, bench.times(ROWS)) as store:

        def work(round_: int) -> None:
            with store.unit_of_work(read_only=True) as uow:
                for id_ in _ids(bench, round_):
                    uow.artifacts.get(id_)

        yield work


@OWN.case(Side.LEGACY, Side.NORMALIZED)
def raw_own(bench: Bench, side: Side) -> Iterator[Work]:
    """psycopg, the {} row, a snapshot of its own"""
    with _raw_reads(bench, side) as (connection, statement):

        def work(round_: int) -> None:
            for id_ in _ids(bench, round_):
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                connection.execute(statement, (id_,)).fetchone()
                connection.execute("COMMIT")

        yield work


@OWN.case(Phase.DUAL_WRITE, Phase.CUTOVER)
def own(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}, a unit of work of its own"""
    with _store(phase, bench.times(ROWS)) as store:

        def work(round_: int) -> None:
            for id_ in _ids(bench, round_):
                with store.unit_of_work(read_only=True) as uow:
                    uow.artifacts.get(id_)

        yield work


# Whole tables ---------------------------------------------------------------------------------------------


@contextmanager
def uncarried(bench: Bench, phase: Phase) -> Iterator[str]:
    """The name of a database to clone: rows that nobody carried yet."""
    with database() as url:
        _fill(url, bench.rows, TEXT)
        with ConsensusStore.open(url) as store:
            store.migration.upgrade()
            if phase > Phase.EXPAND:
                store.migration.advance(phase, soak=False)
        yield url.partition("?")[0].rpartition("/")[2]


@BACKFILL.case()
def raw_chunks(bench: Bench) -> Iterator[Work]:
    """psycopg, the same set-based SQL in chunks of 20,000, uncompared"""
    with uncarried(bench, Phase.EXPAND) as template:

        def work(round_: int) -> dict[str, float]:
            with database(template) as url, _raw(url) as connection:
                started = time.perf_counter()
                for first in range(1, bench.rows + 1, CHUNK):
                    with connection.transaction():
                        for statement in CARRIED:
                            connection.execute(statement.encode(), {"first": first, "last": first + CHUNK - 1})
                seconds = time.perf_counter() - started
                assert connection.execute("SELECT count(*) FROM agent_outputs").fetchone() == (bench.rows,)
            return {"seconds": seconds}

        yield work


def _backfilled(url: str, rows: int, **settings: Any) -> dict[str, float]:
    with ConsensusStore.open(url, settings=Settings(**settings)) as store:
        with store.unit_of_work():
            pass
        started = time.perf_counter()
        report = store.migration.backfill()
        assert (report.rows, report.rejects) >= (rows, 0)
        return {"seconds": time.perf_counter() - started}


@BACKFILL.case(1000, 20_000)
def our_chunks(bench: Bench, chunk: int) -> Iterator[Work]:
    """consensus_orm, compared, CHUNK_ROWS={}, of which alone 20 times as many may go in one transaction"""
    with uncarried(bench, Phase.DUAL_WRITE) as template:

        def work(round_: int) -> dict[str, float]:
            with database(template) as url:
                return _backfilled(url, bench.rows, chunk_rows=chunk)

        yield work


@BACKFILL.case()
def beside_a_writer(bench: Bench) -> Iterator[Work]:
    """consensus_orm, beside a process that writes an artifact every 2 ms"""
    with uncarried(bench, Phase.DUAL_WRITE) as template:

        def work(round_: int) -> dict[str, float]:
            with database(template) as url:
                with live_writer(url) as waited:
                    found = _backfilled(url, bench.rows)
                return found | waited

        yield work


def _asked(bench: Bench, question: str) -> Iterator[Work]:
    with filled(Phase.CUTOVER, bench.rows, TEXT) as url, _raw(url) as connection:

        def work(round_: int) -> None:
            assert connection.execute(question.encode()).fetchone() == (0,)

        yield work


@VERIFY.case()
def raw_full_join(bench: Bench) -> Iterator[Work]:
    """psycopg, one FULL JOIN that compares bytes"""
    yield from _asked(bench, FULL_JOIN)


@VERIFY.case()
def raw_except_all(bench: Bench) -> Iterator[Work]:
    """psycopg, EXCEPT ALL both ways"""
    yield from _asked(bench, EXCEPT_ALL)


@VERIFY.case()
def our_verify(bench: Bench) -> Iterator[Work]:
    """consensus_orm, with its certificate"""
    with filled(Phase.CUTOVER, bench.rows, TEXT) as url, ConsensusStore.open(url) as store:

        def work(round_: int) -> None:
            report = store.migration.verify()
            assert (report.clean, report.compared) == (True, bench.rows)

        yield work
