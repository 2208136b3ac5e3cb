"""Writers beside the long steps: in each of them they get a share of the turns that they get without it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.databases.sqlite.connection import DriverConnection
from consensus_orm.events import BackfillEvent
from consensus_orm.migration import pace
from consensus_orm.migration.settling import Drained, drain
from consensus_orm.settings import Settings
from consensus_orm.telemetry import listen
from tests.concurrency.processes import Child, start
from tests.support.databases import Database, at, build_legacy
from tests.support.servers import Server

pytestmark = pytest.mark.long

ROWS, CHANGES = 4000, {"sqlite": 2500, "postgresql": 500}
SHARE = 0.12
"""Of the turns a writer gets without a step it gets this share beside one. Measured: 0.2 to 0.7, and 0.03 to 0.11 where
a step took the lock again at once. That some of its turns are lost is right: both write to one file."""

MEANT = 40
"""Turns a writer would get without a step, below which a step is too short for a share to say anything."""

LOCKED = 0.7
"""Of its time a step that is a chain of transactions holds the lock for at most this share. It lets go of it for as
long as it held it, and the last of them is followed by nothing; one that does not holds it for 0.8 to 1."""

CHAIN = 6
"""Transactions that make a chain."""

BREATH = 0.002
NO_TIME = timedelta(0)
SETTINGS = Settings(
    soak_dual_write=NO_TIME, soak_cutover=NO_TIME, soak_normalized=NO_TIME, busy_timeout=timedelta(seconds=60)
)
BESIDE = SETTINGS.model_copy(update={"wal_autocheckpoint": 100_000})
"""Of the writer: what it copies of the log of others is no turn that it waits for."""

Turns = list[tuple[float, float]]
"""When a writer asked, and when it had written: `time.monotonic`, which is the same in all processes."""


def _write_on(write: Callable[[], object], over: Callable[[], bool]) -> Turns:
    turns: Turns = []
    while not over():
        asked = time.monotonic()
        write()
        turns.append((asked, time.monotonic()))
        time.sleep(BREATH)
    return turns


def _add(store: ConsensusStore) -> None:
    store.run(lambda uow: uow.artifacts.add(spec_id="BESIDE", stage="s", agent_name="a", content_json="{}"))


def beside_as_a_process(pipe: Connection, where: str | Path) -> None:
    """Write with a store of its own until told to stop; tell the turns."""
    with ConsensusStore.open(where, settings=BESIDE) as store:
        pipe.send(None)
        turns = _write_on(lambda: _add(store), pipe.poll)
    pipe.send(turns)


def beside_as_a_program(pipe: Connection, where: Path) -> None:
    """Write with the plain driver, which asks for the lock after 1, 2, 5, 10, 15, 20, 25 ... 100 ms."""
    with contextlib.closing(sqlite3.connect(where, timeout=60, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 100000")
        pipe.send(None)
        turns = _write_on(lambda: connection.execute("INSERT INTO theirs VALUES (1)"), pipe.poll)
    pipe.send(turns)


class Writer:
    """One that writes beside, in this process or in another."""

    def __init__(self, kind: str, store: ConsensusStore, where: str | Path) -> None:
        self._child: Child | None = None
        self._over = threading.Event()
        self._turns: Turns = []
        if kind == "thread":
            self._thread = threading.Thread(target=self._run, args=(store,))
            self._thread.start()
        else:
            self._child = start(beside_as_a_process if kind == "process" else beside_as_a_program, where)
            assert self._child.hear() is None

    def _run(self, store: ConsensusStore) -> None:
        self._turns = _write_on(lambda: _add(store), self._over.is_set)

    def stop(self) -> Turns:
        """End it; its turns."""
        if self._child is None:
            self._over.set()
            self._thread.join()
            return self._turns
        self._child.tell()
        turns: Turns = self._child.hear(60)
        assert self._child.join() == 0
        return turns


def big_legacy(database: Database) -> None:
    """Legacy rows enough for a backfill of many chunks, and a table of another program."""
    build_legacy(database.where)
    database.script("CREATE TABLE theirs (x INTEGER)")
    database.rows_of(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})"
        " INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id)"
        f" SELECT 'S' || (i / 50), 's', 'a', '{'x' * 1000}', 'r' || (i / 7) FROM n"
    )


def add_changes(store: ConsensusStore) -> None:
    """Rows that the way back has to carry; of a server, where each is a few trips, fewer."""
    rows = [{"spec_id": "NEW", "stage": "s", "agent_name": "a", "content_json": "x" * 1000}] * 500
    for _ in range(CHANGES[store.engine.dialect.name] // len(rows)):
        store.run(lambda uow: uow.artifacts.add_many(rows))


@dataclass
class Taken:
    """A step: its name, since when nothing was done before it, its begin, and its end."""

    name: str
    idle: float
    begun: float
    ended: float

    def rates(self, turns: Turns) -> tuple[float, float]:
        """Turns a second of a writer before it, and beside it."""
        before = sum(self.idle <= done < self.begun for _, done in turns)
        during = sum(self.begun <= done < self.ended for _, done in turns)
        return before / (self.begun - self.idle), during / self.seconds

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.begun

    def locked(self, holds: Turns) -> float:
        """The share of its time in which it held the lock, until its last transaction, which nothing has to follow.

        Returns:
            The share; 0 where it is not a chain of transactions.
        """
        mine = [(begin, end) for begin, end in holds if self.begun <= begin <= self.ended]
        if len(mine) < CHAIN:
            return 0
        return sum(end - begin for begin, end in mine[:-1]) / (mine[-1][0] - self.begun)


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """When this thread had the write lock of a file, and when it gave it back."""
    found: Turns = []
    begin, commit = DriverConnection.begin_writing, DriverConnection.commit
    since: dict[int, float] = {}

    def timed_begin(self: DriverConnection) -> None:
        begin(self)
        since[threading.get_ident()] = time.monotonic()

    def timed_commit(self: DriverConnection) -> None:
        commit(self)
        begun = since.pop(threading.get_ident(), None)
        if begun is not None and threading.current_thread() is threading.main_thread():
            found.append((begun, time.monotonic()))

    monkeypatch.setattr(DriverConnection, "begin_writing", timed_begin)
    monkeypatch.setattr(DriverConnection, "commit", timed_commit)
    return found


def take_all_steps(store: ConsensusStore) -> Iterator[Taken]:
    """Forward and back; the steps that are more than one transaction. A flip is one, however long."""
    migration = store.migration

    def step(do: Callable[[], object]) -> Taken:
        phase, idle = migration.phase, time.monotonic()
        time.sleep(0.25)
        begun = time.monotonic()
        do()
        return Taken(f"{getattr(do, '__name__', do)} in {phase.name}", idle, begun, time.monotonic())

    migration.advance()
    yield step(migration.backfill)
    yield step(migration.reconcile)
    yield step(migration.verify)
    migration.advance()
    migration.verify()
    migration.advance()
    add_changes(store)
    yield step(migration.verify)
    yield step(migration.rollback)
    migration.verify()
    migration.advance()
    migration.verify()
    yield step(migration.advance)
    add_changes(store)
    yield step(migration.rollback)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("writer", ["thread", "process", "program"])
def test_a_writer_gets_its_turns_beside_every_step(
    writer: str, new_database: Database, tmp_path: Path, kind: str, holds: Turns
) -> None:
    """Forward and back, in this process, in another, and with the plain driver, a writer gets its share of turns."""
    if writer == "program" and kind != "sqlite":
        pytest.skip("the plain driver waits for no lock of ours there")
    big_legacy(new_database)
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        store.migration.upgrade()
        beside = Writer(writer, store, new_database.where)
        try:
            steps = list(take_all_steps(store))
        finally:
            turns = beside.stop()
    said, shares, locked = [], list[float](), list[float]()
    for taken in steps:
        before, during = taken.rates(turns)
        held = taken.locked(holds)
        locked.append(held)
        said.append(
            f"{taken.name:<23} {taken.seconds:6.3f} s, turns/s: {before:4.0f} and {during:4.0f}, locked {held:.2f}"
        )
        if before * taken.seconds >= MEANT:
            shares.append(during / before)
    print("\n" + "\n".join(said))
    assert len(shares) >= 2, "no step was long enough: this shows nothing"
    assert min(shares) >= SHARE, "\n".join(said)
    assert kind != "sqlite" or 0 < max(locked) <= LOCKED, "\n".join(said)


def test_writers_that_are_faster_do_not_keep_a_step_from_its_end(
    new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more is written between two transactions than one of them carries, they grow until nothing is left."""
    build_legacy(new_database.where)
    monkeypatch.setattr(pace, "CHANGES_IN_ONE_TRANSACTION", 5)
    sizes: list[int] = []
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        store.migration.migrate("normalized", soak=False)
        rows = [{"spec_id": "NEW", "stage": "s", "agent_name": "a", "content_json": "{}"}] * 12
        with store.unit_of_work(read_only=True) as uow:  # a busy machine must not count as a slow step
            monkeypatch.setattr(type(uow.catalog), "longest_chunk", (60.0, 1))

        @dataclass(frozen=True)
        class Writing:
            """Units of work, before each of which somebody writes."""

            read_only: bool = False

            def run(self, work: Callable[[Any], Any]) -> Any:
                if not self.read_only:
                    store.run(lambda uow: uow.artifacts.add_many(rows))
                return store.migration._writing.run(work)

        def carry(uow: ConsensusUnitOfWork, limit: int) -> Drained:
            sizes.append(limit)
            return drain(uow, limit=limit)

        carried = pace.catch_up(Writing(), carry)  # type: ignore[arg-type]
        assert sizes == [5, 10, 20, 20]
        assert carried == len(sizes) * len(rows)
        assert store.migration.rollback() is Phase.CUTOVER
    assert at(new_database.where).scalar("SELECT count(*) FROM consensus_orm_changes") == 0


def short_rows(database: Database) -> None:
    """Legacy rows that take a database hardly any time."""
    build_legacy(database.where)
    database.rows_of(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)"
        " INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) SELECT 'S', 's', 'a', '{}' FROM n"
    )


def test_a_long_way_to_the_database_does_not_make_chunks_of_one_row(
    new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a transaction takes too long whatever it carries, a backfill goes on with rows enough to come to an end."""
    short_rows(new_database)
    chunks: list[int] = []
    with ConsensusStore.open(new_database.where, settings=SETTINGS.model_copy(update={"chunk_rows": 100})) as store:
        store.migration.advance()
        with store.unit_of_work(read_only=True) as uow:
            monkeypatch.setattr(type(uow.catalog), "longest_chunk", (1e-6, 1))
            driver: Any = type(uow._connected)
        listen(store, lambda event: chunks.append(event.rows) if isinstance(event, BackfillEvent) else None)
        begin = driver.begin_unit

        def far_away(self: Any, *arguments: Any, **options: Any) -> None:
            begin(self, *arguments, **options)
            time.sleep(0.03)

        monkeypatch.setattr(driver, "begin_unit", far_away)
        store.migration.backfill()
        assert store.migration.verify().clean
    assert sum(chunks) > 1500
    assert len(chunks) < 60, chunks


def test_a_backfill_is_no_company_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody else writes, chunks grow beyond `chunk_rows`; a savepoint of its own is not taken for a writer.

    It has a server to itself: transaction ids are given to all databases of one, and other tests write to some.
    """
    chunks: list[int] = []
    with Server() as server:
        short_rows(at(server.url()))
        settings = SETTINGS.model_copy(update={"chunk_rows": 50})
        with ConsensusStore.open(server.url(), settings=settings) as store:
            store.migration.advance()
            with store.unit_of_work(read_only=True) as uow:  # a busy machine must not count as a slow step
                monkeypatch.setattr(type(uow.catalog), "longest_chunk", (60.0, 20))
            listen(store, lambda event: chunks.append(event.rows) if isinstance(event, BackfillEvent) else None)
            store.migration.backfill()
    assert max(chunks) >= 200, chunks
    assert sum(chunks) > 1500
