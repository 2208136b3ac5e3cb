"""What processes at a PostgreSQL server do: units of work through the public API, and programs that know one side."""

from __future__ import annotations

import random
import time
from multiprocessing.connection import Connection

import psycopg

from consensus_orm import ConsensusStore
from consensus_orm.store import ConsensusUnitOfWork
from tests.concurrency.databases import SETTINGS, connect

__all__ = ["add_one", "add_to_runs", "backfill", "delete_rows", "delete_specs", "insert_into_runs"]


def add_one(uow: ConsensusUnitOfWork, spec: str) -> int:
    """An artifact and a synthesis of one run."""
    artifact = uow.artifacts.add(spec_id=spec, stage="s", agent_name="a", content_json="{}", run_id="r")
    uow.syntheses.add(spec_id=spec, stage="s", output_markdown="m", status="ok", run_id="r")
    return artifact.id


def backfill(pipe: Connection, url: str) -> None:
    """Carry everything, and tell what was done."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        report = store.migration.backfill()
    pipe.send((report.rows, report.adopted, report.rejects))


def delete_specs(pipe: Connection, url: str, specs: list[str]) -> None:
    """Delete whole specs when told to; tell the ids that are gone."""
    gone: set[int] = set()
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        pipe.send(None)
        pipe.recv()
        for spec in specs:

            def work(uow: ConsensusUnitOfWork, spec: str = spec) -> set[int]:
                ids = {artifact.id for artifact in uow.artifacts.list(spec_id=spec)}
                uow.artifacts.delete(spec_id=spec)
                uow.syntheses.delete(spec_id=spec)
                return ids

            gone |= store.run(work)
            time.sleep(0.004)
    pipe.send(gone)


def delete_rows(pipe: Connection, url: str, seed: int, count: int) -> None:
    """Another program: deletes rows at random from one side or the other when told to; tells which are gone."""
    chance = random.Random(seed)
    gone: set[int] = set()
    with connect(url) as program:
        keys = [key for (key,) in program.execute("SELECT id FROM consensus_artifacts")]
        pipe.send(None)
        pipe.recv()
        for key in chance.sample(keys, count):
            table = chance.choice([b"consensus_artifacts", b"agent_outputs"])
            if program.execute(b"DELETE FROM " + table + b" WHERE id = %s", (key,)).rowcount:
                gone.add(key)
            time.sleep(0.001)
    pipe.send(gone)


def add_to_runs(pipe: Connection, url: str, seed: int) -> None:
    """Add rows to runs that others add to as well, until told to stop; tell their contents."""
    chance = random.Random(seed)
    contents: list[str] = []
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        pipe.send(None)
        pipe.recv()
        while not pipe.poll() or len(contents) < 20:
            content = f"w{seed}-{len(contents)}"
            spec, stage, run = (f"{word}{chance.randrange(7)}" for word in ("G", "s", "r"))

            def work(
                uow: ConsensusUnitOfWork, spec: str = spec, stage: str = stage, run: str = run, content: str = content
            ) -> None:
                uow.artifacts.add(spec_id=spec, stage=stage, agent_name="w", content_json=content, run_id=run)
                uow.syntheses.add(spec_id=spec, stage=stage, output_markdown=content, status="failed", run_id=run)

            store.run(work)
            contents.append(content)
    pipe.send(contents)


def insert_into_runs(pipe: Connection, url: str, seed: int) -> None:
    """Another program: inserts and updates legacy rows of the same runs until told to stop; tells their contents."""
    chance = random.Random(seed)
    contents: list[str] = []
    insert = (
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id)"
        " VALUES (%s, %s, 'p', %s, %s) RETURNING id"
    )
    with connect(url) as program:
        pipe.send(None)
        pipe.recv()
        while not pipe.poll() or len(contents) < 20:
            spec, stage, run = (f"{word}{chance.randrange(7)}" for word in ("G", "s", "r"))
            content = f"p{seed}-{len(contents)}"
            with program.transaction():
                (key,) = one(program.execute(insert, (spec, stage, content + "?", run)))
            with program.transaction():
                program.execute("UPDATE consensus_artifacts SET content_json = %s WHERE id = %s", (content, key))
                time.sleep(0.001)
            contents.append(content)
    pipe.send(contents)


def one(cursor: psycopg.Cursor[tuple[int]]) -> tuple[int]:
    """The only row."""
    row = cursor.fetchone()
    assert row is not None
    return row
