"""Reads by id, of a run's outputs, and from two processes."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from benchmarks.data import artifact, engine_on, filled, raw_connection
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import processes
from consensus_orm import Artifact, ConsensusStore, Phase
from consensus_orm.consensus.models.legacy import ConsensusArtifact
from consensus_orm.phase import Side

ROWS = 3000
NAMES = (
    "id",
    "spec_id",
    "stage",
    "agent_name",
    "content_json",
    "response_text",
    "run_id",
    "created_at_raw",
    "model_version",
)
COLUMNS = "id, spec_id, stage, agent_name, content_json, response_text, run_id, created_at"
SIDES = {
    Side.LEGACY: f"SELECT {COLUMNS} FROM consensus_artifacts",
    Side.NORMALIZED: "SELECT o.id, r.spec_id, r.stage, o.agent_name, o.content, o.response_text, r.run_id, o.created_at"
    " FROM agent_outputs o JOIN consensus_runs r ON r.id = o.run_id",
}
"""The same row from each side. The legacy one has its small columns behind its content: SQLite has to walk there."""
BY_ID = {Side.LEGACY: f"{SIDES[Side.LEGACY]} WHERE id = ?", Side.NORMALIZED: f"{SIDES[Side.NORMALIZED]} WHERE o.id = ?"}
OF_RUN = {
    Side.LEGACY: f"{SIDES[Side.LEGACY]} WHERE spec_id = ? AND stage = ? AND run_id = ?"
    " ORDER BY created_at DESC, id DESC",
    Side.NORMALIZED: f"{SIDES[Side.NORMALIZED]} WHERE r.spec_id = ? AND r.stage = ? AND r.run_key = 'run:' || ?"
    " ORDER BY o.output_timestamp DESC, o.id DESC",
}

ONE = Group(
    "read by id, within a unit of work",
    unit="read",
    count=2000,
    baseline="raw_record_legacy",
    targets=(
        Target(
            "read by id within a unit of work, to raw plus the record", "ours_dual_write", 2.5, than="raw_record_legacy"
        ),
        Target("the same from the normalized side", "ours_cutover", 2.5, than="raw_record_normalized"),
    ),
)
OWN = Group(
    "read by id, a unit of work of its own",
    unit="read",
    count=500,
    baseline="raw_record_own_legacy",
    targets=(
        Target(
            "read by id, its own unit of work, to raw plus the record",
            "own_dual_write",
            3.5,
            than="raw_record_own_legacy",
        ),
        Target("the same from the normalized side", "own_cutover", 3.5, than="raw_record_own_normalized"),
    ),
)
LIST = Group(
    "list of a run's outputs (3 rows)",
    unit="list",
    count=500,
    baseline="raw_list_legacy",
    targets=(
        Target("list of a run, to raw plus the records", "of_run_dual_write", 2.5, than="raw_list_legacy"),
        Target("the same from the normalized side", "of_run_cutover", 2.5, than="raw_list_normalized"),
        Target(
            "list from the normalized side, slower than the legacy side by",
            "of_run_cutover",
            1.15,
            than="of_run_dual_write",
        ),
        Target("list of a run in phase 1, to phase 4", "of_run_expand", 1.2, than="of_run_normalized"),
    ),
)
TWO = Group(
    "reads by id from 2 processes",
    unit="read",
    count=20_000,
    baseline="raw_processes_legacy",
    targets=(
        Target(
            "reads/s of 2 processes together (or the next line)",
            "our_processes_cutover",
            100_000,
            None,
            "reads/s",
            True,
        ),
        Target("reads of 2 processes, to raw", "our_processes_cutover", 2.5, than="raw_processes_normalized"),
    ),
)
GROUPS = (ONE, OWN, LIST, TWO)


def _ids(bench: Bench, count: int, round_: int) -> list[int]:
    return random.Random(round_).choices(range(1, ROWS + 1), k=bench.times(count))


def _runs(bench: Bench, round_: int) -> Iterator[dict[str, Any]]:
    for id_ in _ids(bench, 500, round_):
        row = artifact((id_ - 1) // 3 * 3)
        yield {name: row[name] for name in ("spec_id", "stage", "run_id")}


def _record(row: tuple[Any, ...]) -> Artifact:
    return Artifact.of(dict(zip(NAMES, (*row, None))))  # noqa: B905 - as the store does


@contextmanager
def _raw(bench: Bench) -> Iterator[sqlite3.Connection]:
    with closing(raw_connection(filled(bench.file("read_raw"), Phase.CUTOVER, ROWS))) as connection:
        yield connection


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction, as a unit of work is: without it each select would begin and end its own."""
    connection.execute("BEGIN")
    yield
    connection.execute("COMMIT")


@ONE.case()
def raw(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, a tuple"""
    with _raw(bench) as connection:

        def work(round_: int) -> None:
            with _snapshot(connection):
                for id_ in _ids(bench, 2000, round_):
                    connection.execute(BY_ID[Side.LEGACY], (id_,)).fetchone()

        yield work


def _raw_record(bench: Bench, side: Side, count: int, *, own: bool) -> Iterator[Work]:
    with _raw(bench) as connection:

        def work(round_: int) -> None:
            with nullcontext() if own else _snapshot(connection):
                for id_ in _ids(bench, count, round_):
                    _record(connection.execute(BY_ID[side], (id_,)).fetchone())

        yield work


@ONE.case(*Side)
def raw_record(bench: Bench, side: Side) -> Iterator[Work]:
    """raw sqlite3 and the record, {}"""
    yield from _raw_record(bench, side, 2000, own=False)


@OWN.case(*Side)
def raw_record_own(bench: Bench, side: Side) -> Iterator[Work]:
    """raw sqlite3 and the record, {}"""
    yield from _raw_record(bench, side, 500, own=True)


@ONE.case()
def core(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy Core, prebuilt"""
    table = ConsensusArtifact.__table__
    statement = select(table).where(table.c.id == bindparam("id"))
    with engine_on(filled(bench.file("read_core"), Phase.EXPAND, ROWS)).connect() as connection:

        def work(round_: int) -> None:
            for id_ in _ids(bench, 2000, round_):
                connection.execute(statement, {"id": id_}).one()

        yield work


@ONE.case()
def plain_orm(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy ORM, a select built per call"""
    with Session(engine_on(filled(bench.file("read_orm"), Phase.EXPAND, ROWS))) as session:

        def work(round_: int) -> None:
            for id_ in _ids(bench, 2000, round_):
                session.scalars(select(ConsensusArtifact).where(ConsensusArtifact.id == id_)).one()
            session.rollback()

        yield work


@OWN.case()
def plain_orm_own(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy ORM, a session per read"""
    engine = engine_on(filled(bench.file("read_orm"), Phase.EXPAND, ROWS))

    def work(round_: int) -> None:
        for id_ in _ids(bench, 500, round_):
            with Session(engine) as session:
                session.scalars(select(ConsensusArtifact).where(ConsensusArtifact.id == id_)).one()

    yield work
    engine.dispose()


@ONE.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
def ours(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}"""
    with ConsensusStore.open(filled(bench.file("read"), phase, ROWS)) as store:

        def work(round_: int) -> None:
            with store.unit_of_work(read_only=True) as uow:
                for id_ in _ids(bench, 2000, round_):
                    uow.artifacts.get(id_)

        yield work


@OWN.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
def own(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}"""
    with ConsensusStore.open(filled(bench.file("read_own"), phase, ROWS)) as store:

        def work(round_: int) -> None:
            for id_ in _ids(bench, 500, round_):
                with store.unit_of_work(read_only=True) as uow:
                    uow.artifacts.get(id_)

        yield work


@LIST.case(*Side)
def raw_list(bench: Bench, side: Side) -> Iterator[Work]:
    """raw sqlite3 and the records, {}"""
    with _raw(bench) as connection:

        def work(round_: int) -> None:
            with _snapshot(connection):
                for run in _runs(bench, round_):
                    rows = connection.execute(OF_RUN[side], tuple(run.values())).fetchall()
                    assert len([_record(row) for row in rows]) == 3

        yield work


@LIST.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
def of_run(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}"""
    with ConsensusStore.open(filled(bench.file("list"), phase, ROWS)) as store:

        def work(round_: int) -> None:
            with store.unit_of_work(read_only=True) as uow:
                for run in _runs(bench, round_):
                    assert len(uow.artifacts.list(**run)) == 3

        yield work


def _together(target: Any, arguments: tuple[str, ...], bench: Bench, round_: int) -> dict[str, float]:
    ids = [_ids(bench, 10_000, round_ + process) for process in range(2)]
    spans = processes(target, [(*arguments, mine) for mine in ids])
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    return {"seconds": seconds, "reads/s": sum(map(len, ids)) / seconds}


def _read_raw(barrier: Any, path: str, statement: str, ids: list[int]) -> tuple[float, float]:
    with closing(raw_connection(Path(path))) as connection, _snapshot(connection):
        connection.execute(statement, (1,)).fetchone()
        barrier.wait()
        started = time.monotonic()
        for id_ in ids:
            connection.execute(statement, (id_,)).fetchone()
        return started, time.monotonic()


def _read_ours(barrier: Any, path: str, ids: list[int]) -> tuple[float, float]:
    with ConsensusStore.open(path) as store, store.unit_of_work(read_only=True) as uow:
        uow.artifacts.get(1)
        barrier.wait()
        started = time.monotonic()
        for id_ in ids:
            uow.artifacts.get(id_)
        return started, time.monotonic()


@TWO.case(*Side)
def raw_processes(bench: Bench, side: Side) -> Iterator[Work]:
    """raw sqlite3, tuples, {}"""
    path = filled(bench.file("raw_processes"), Phase.CUTOVER, ROWS)
    yield lambda round_: _together(_read_raw, (str(path), BY_ID[side]), bench, round_)


@TWO.case(Phase.DUAL_WRITE, Phase.CUTOVER)
def our_processes(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}"""
    path = filled(bench.file("our_processes"), phase, ROWS)
    yield lambda round_: _together(_read_ours, (str(path),), bench, round_)
