"""Many units of work at once, on a file that somebody else locks: each is committed exactly once."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.settings import Settings
from tests.concurrency.files import Files, assert_sides_agree, assert_sound, kept_in, raw, small_file
from tests.concurrency.processes import start
from tests.concurrency.steps import verified

pytestmark = pytest.mark.long

PROCESSES, THREADS, UNITS = 4, 10, 25
IMPATIENT = Settings(busy_timeout=timedelta(milliseconds=400))
"""The default policy of retries, above a busy timeout that the locks outlast."""


def add(uow: ConsensusUnitOfWork, name: str) -> int:
    return uow.artifacts.add(spec_id="SPEC-MANY", stage="s", agent_name=name, content_json="{}", run_id=name[:4]).id


def in_threads(store: ConsensusStore, names: list[list[str]]) -> tuple[list[str], list[int]]:
    """Do a unit of work for each name, one thread for each list; what was raised, and how often callbacks ran."""
    failures: list[str] = []
    committed: list[int] = []
    barrier = threading.Barrier(len(names))

    def work(mine: list[str]) -> None:
        barrier.wait()
        for name in mine:

            def unit(uow: ConsensusUnitOfWork, name: str = name) -> None:
                key = add(uow, name)
                uow.on_commit(lambda: committed.append(key))

            try:
                store.run(unit)
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(mine,)) for mine in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures, committed


def work_in_threads(pipe: Connection, path: Path, process: int) -> None:
    """A process with many threads."""
    names = [[f"p{process}-t{thread}-{n}" for n in range(UNITS)] for thread in range(THREADS)]
    with ConsensusStore.open(path, settings=IMPATIENT) as store:
        pipe.send(None)
        pipe.recv()
        failures, committed = in_threads(store, names)
        totals = store.retrier.telemetry.totals
    pipe.send((failures, committed, totals))


def lock_at_random(pipe: Connection, path: Path) -> None:
    """Another program: takes the write lock at random, for up to twice their busy timeout; at first, too."""
    chance = random.Random(1)
    locks = 0
    with raw(path) as connection:
        connection.execute("PRAGMA busy_timeout = 20000")
        going_on = True
        while going_on:
            connection.execute("BEGIN IMMEDIATE")
            locks += 1
            if locks == 1:
                pipe.send(None)
                pipe.poll(1)
            time.sleep(chance.uniform(0.1, 0.8))
            connection.execute("ROLLBACK")
            going_on = not pipe.poll(chance.uniform(0.02, 0.3))
    pipe.send(locks)


def assert_once(path: Path, names: set[str]) -> None:
    """Every name stands on both sides exactly once, under one id."""
    with raw(path) as connection:
        query = "SELECT agent_name FROM {} WHERE agent_name GLOB '[pt]*-*'"
        for table in ("consensus_artifacts", "agent_outputs"):
            found = [name for (name,) in connection.execute(query.format(table))]
            assert Counter(found) == Counter(names)
    assert_sound(path)
    assert_sides_agree(path)


@pytest.mark.timeout(240)
def test_a_thousand_units_of_work_against_a_locker_are_committed_once_each(files: Files, path: Path) -> None:
    """10 threads in each of 4 processes, 1000 units of work, random locks: nothing is lost, nothing is doubled."""
    files.copy(path, Phase.DUAL_WRITE, small_file, change=verified)
    locker = start(lock_at_random, path)
    workers = [start(work_in_threads, path, number) for number in range(PROCESSES)]
    for child in (locker, *workers):
        assert child.hear() is None
    started = time.monotonic()
    for child in workers:
        child.tell()
    told = [child.hear(200) for child in workers]
    seconds = time.monotonic() - started
    locker.tell()
    locks = locker.hear()
    assert [child.join() for child in (locker, *workers)] == [0] * (PROCESSES + 1)

    print(f"\n{PROCESSES * THREADS * UNITS} units of work, {locks} locks, {seconds:.1f} s")
    for failures, committed, totals in told:
        print(totals)
        assert failures == []
        assert len(committed) == len(set(committed)) == THREADS * UNITS
        assert totals.exhausted == totals.permanent == 0
        assert totals.first_try + totals.recovered == THREADS * UNITS
    assert sum(totals.recovered for *_, totals in told) > 0, "nothing was ever in the way: this shows nothing"
    names = {f"p{p}-t{t}-{n}" for p in range(PROCESSES) for t in range(THREADS) for n in range(UNITS)}
    assert_once(path, names)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("wal", [True, False], ids=["wal", "journal"])
def test_a_hundred_threads_on_a_pool_of_ten(files: Files, path: Path, wal: bool) -> None:
    """100 threads at once, 10 connections: every unit of work is committed once, and nobody waits long."""
    files.copy(path, Phase.DUAL_WRITE, small_file, change=verified, wal=wal)
    names = [[f"t{thread}-{n}" for n in range(3)] for thread in range(100)]
    with kept_in(path, wal=wal), ConsensusStore.open(path, settings=Settings(pool_size=10)) as store:
        before = len(store.engine.pool.source.connections)  # type: ignore[attr-defined]
        failures, committed = in_threads(store, names)
        assert failures == []
        assert len(committed) == len(set(committed)) == 300
        assert store.retrier.telemetry.totals.exhausted == 0
        assert before <= len(store.engine.pool.source.connections) <= 10  # type: ignore[attr-defined]
    assert_once(path, {name for mine in names for name in mine})


def test_work_that_fails_is_not_tried_again(files: Files, path: Path) -> None:
    """A permanent error is raised after one try, whatever the policy, and nothing of the unit of work stays."""
    files.copy(path, Phase.CUTOVER, small_file)
    tries: list[int] = []

    def work(uow: ConsensusUnitOfWork) -> Any:
        tries.append(add(uow, "p-never"))
        raise sqlite3.IntegrityError("no")

    with ConsensusStore.open(path) as store:
        with pytest.raises(Exception, match="no"):
            store.run(work)
        assert len(tries) == 1
    with raw(path) as connection:
        query = "SELECT count(*) FROM agent_outputs WHERE agent_name = 'p-never'"
        assert connection.execute(query).fetchone() == (0,)
