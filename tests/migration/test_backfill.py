"""The backfill: it ends beside writers, counts each row once, and its chunks fit the time a writer may wait."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.opening import catalog
from consensus_orm.databases.postgresql.catalog import PostgresCatalog
from consensus_orm.databases.sqlite.catalog import SQLiteCatalog
from consensus_orm.errors import DatabaseBusyError, StorageError, WrongPhaseError
from consensus_orm.ledgers import control
from consensus_orm.migration import pace
from consensus_orm.migration.backfill import _Chunks
from consensus_orm.migration.pace import Pace
from consensus_orm.migration.transactions import Transactions
from consensus_orm.settings import Settings
from consensus_orm.unit_of_work.unit import UnitOfWork
from tests.support.databases import REFUSE, Database, build_legacy

NO_TIME = timedelta(0)
CARRIED = ("consensus_artifacts", "consensus_synthesis")
ROW = {"spec_id": "MORE", "stage": "s", "agent_name": "a", "content_json": "{}"}

Open = Callable[..., ConsensusStore]


@pytest.fixture
def open_store(new_database: Database) -> Iterator[Open]:
    """Open a database with the common rows, in DUAL_WRITE; keyword arguments are settings."""
    build_legacy(new_database.where)
    with contextlib.ExitStack() as stack:

        def open_(**settings: Any) -> ConsensusStore:
            chosen = Settings(**{"chunk_pause": NO_TIME, **settings})
            store = stack.enter_context(ConsensusStore.open(new_database.where, settings=chosen))
            if not store.migration.phase.compares:
                store.migration.migrate("dual_write", soak=False)
            return store

        yield open_


@pytest.fixture
def chunks_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's chunks are as small as a file's, where they would become several times `chunk_rows`."""
    for kind in (SQLiteCatalog, PostgresCatalog):
        monkeypatch.setattr(kind, "longest_chunk", (kind.longest_chunk[0], 1))


def legacy_rows(database: Database) -> int:
    """Rows on the legacy side."""
    return sum(database.scalar(f"SELECT count(*) FROM {table}") for table in CARRIED)


@pytest.mark.usefixtures("chunks_do_not_grow")
def test_rows_written_since_it_began_are_not_looked_at(open_store: Open, new_database: Database) -> None:
    """Where writers add rows faster than chunks are carried, the backfill ends with those it found."""
    store, other = open_store(chunk_rows=2), open_store()
    there, told = legacy_rows(new_database), list[object]()

    def add_more(progress: object) -> None:
        told.append(progress)
        if len(told) < 60:
            other.run(lambda uow: uow.artifacts.add_many([ROW] * 6))

    report = store.migration.backfill(add_more)
    assert there <= report.rows < there + 4
    assert len(told) < 60
    assert store.migration.verify().clean


@pytest.mark.usefixtures("chunks_do_not_grow")
def test_a_chunk_that_failed_at_its_commit_counts_once(
    open_store: Open, new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was settled in a transaction that was taken back does not count, whatever else is being compared then."""
    store = open_store(retry_initial=NO_TIME, chunk_rows=2)
    commit, find_unequal = UnitOfWork._commit_transaction, _Chunks._find_unequal
    commits: list[UnitOfWork] = []

    def fail_at_times(uow: UnitOfWork, driver: Any) -> None:
        if uow.lock is Lock.CARRY:
            commits.append(uow)
        if uow.lock is Lock.CARRY and len(commits) % 4 == 0:
            raise DatabaseBusyError("for a moment", hint="wait")
        commit(uow, driver)

    def find_later(chunks: _Chunks, chunk: Any) -> None:
        time.sleep(0.02)
        find_unequal(chunks, chunk)

    monkeypatch.setattr(UnitOfWork, "_commit_transaction", fail_at_times)
    monkeypatch.setattr(_Chunks, "_find_unequal", find_later)
    report = store.migration.backfill()
    assert store.retrier.telemetry.totals.retries >= 2, "no commit failed: this shows nothing"
    monkeypatch.undo()
    assert (report.rows, report.seconds > 0.02) == (legacy_rows(new_database), True)
    assert new_database.scalar("SELECT sum(rows) FROM consensus_orm_backfill") == legacy_rows(new_database)
    assert store.migration.verify().clean


# The pace ---------------------------------------------------------------------------------------------------


def test_chunks_that_take_too_long_shrink(
    open_store: Open, new_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is half as long as the one before it that kept writers waiting, to one row, if rows are what takes it."""
    store = open_store(chunk_rows=8)
    monkeypatch.setattr(pace, "NO_USE", float("inf"))  # so few rows take the same time as one
    with store.unit_of_work() as uow:
        monkeypatch.setattr(type(uow.catalog), "longest_chunk", (1e-9, 1))
    new_database.unnoticed("DELETE FROM agent_outputs")
    new_database.script(
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) SELECT 'S', 's', 'a', '' FROM n"
    )
    with caplog.at_level("DEBUG", "consensus_orm"):
        store.migration.backfill()
    told = [record.getMessage() for record in caplog.records]
    sizes = [int(said.split()[1]) for said in told if re.fullmatch(r"backfill: \d+ rows of artifacts", said)]
    assert sizes[:5] == [8, 4, 2, 1, 1]
    assert store.migration.verify().clean


class Clock:
    """Time that passes when somebody sleeps, and when told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


class Steps:
    """Transactions of a step at a pace, on a database of each kind."""

    def __init__(
        self, reading: Transactions, uow: ConsensusUnitOfWork, clock: Clock, most: int | None, others: list[bool]
    ) -> None:
        self.uow, self.clock, self.pace = uow, clock, Pace(reading, most)
        self._driver, self._others = uow._driver, iter(others)

    def take(self, seconds: float, *, each: float = 0.0, behind: bool = False, after: float = 0.0) -> int:
        """One transaction that takes so long, and for each row; how much it does. Its caller goes on after it."""
        self.uow._driver = SimpleNamespace(others_wrote=lambda: next(self._others))
        try:
            self.pace.begin(self.uow, behind=behind)
            size = self.pace.size
            self.clock.now += seconds + size * each
            self.pace.end()
            self.clock.now += after
            self.pace.rest()
        finally:
            self.uow._driver = self._driver
        return size


GOAL = 0.08


@pytest.fixture
def steps(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Steps]]:
    """Steps of a store with chunks of 100 rows and pauses of 8 ms, where a transaction should take 80 ms."""
    clock = Clock()
    store = open_store(chunk_rows=100, chunk_pause=timedelta(milliseconds=8))
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(control, "read", lambda _: control.FREE)  # the driver of a step answers nothing
    with store.unit_of_work() as uow:
        monkeypatch.setattr(type(uow.catalog), "longest_chunk", (GOAL, 3))
        yield lambda most=None, *, others: Steps(Transactions(store._units), uow, clock, most, others)


@pytest.mark.parametrize(
    ("seconds", "alone", "beside"),
    [(GOAL / 2 + 0.001, 100, 50), (GOAL / 2 - 0.001, 200, 50), (2 * GOAL, 100, 50), (2 * GOAL + 0.001, 50, 50)],
)
def test_a_transaction_fits_the_one_before_it(
    steps: Callable[..., Steps], seconds: float, alone: int, beside: int
) -> None:
    """Half of one that was too long, twice one that was short; beside others never more than half a chunk."""
    for others, wanted in ((False, alone), (True, beside)):
        step = steps(others=[others] * 2)
        assert step.take(seconds) == 100
        assert step.take(seconds) == wanted


def test_a_transaction_grows_and_shrinks_within_bounds(steps: Callable[..., Steps]) -> None:
    """As many chunks as the database says at most, one row at least, and never more than the step itself allows."""
    step = steps(others=[False] * 40)
    assert [step.take(0.0) for _ in range(4)] == [100, 200, 300, 300]
    assert [step.take(0.0, each=0.1) for _ in range(10)] == [300, 150, 75, 37, 18, 9, 4, 2, 1, 1]
    step = steps(30, others=[False] * 9)
    assert [step.take(0.0, each=each) for each in (0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 0.0)] == [30, 30, 30, 15, 7, 14, 28]
    step = steps(30, others=[True] * 3)
    assert [step.take(0.0) for _ in range(3)] == [30, 30, 30]


def test_a_transaction_does_not_shrink_where_that_makes_it_no_shorter(steps: Callable[..., Steps]) -> None:
    """Where a transaction takes long whatever it carries, half a chunk is tried now and then, and given up."""
    step = steps(others=[False] * 9)
    assert [step.take(1.0) for _ in range(7)] == [100, 50, 200, 300, 300, 150, 300]


def test_the_lock_is_free_for_as_long_as_it_was_held(steps: Callable[..., Steps]) -> None:
    """Beside others on a file a rest is as long as the transaction; else as configured, alone a quarter of it.

    Whether there are others is not known at first: a writer that has waited all along gets the first rests, too.
    """
    held = 0.05
    step = steps(others=[False] * (pace.UNKNOWN + 1) + [True, True, True])
    slept = step.clock.slept
    waits = not step.uow.catalog.others_write_meanwhile
    for _ in range(pace.UNKNOWN):
        step.take(held)
        assert slept.pop() == (0.05 if waits else 0.002)
    step.take(held)
    assert slept.pop() == 0.002
    step.take(held)
    assert slept.pop() == (0.05 if waits else 0.008)
    step.take(held, after=0.03)
    assert slept.pop() == (0.02 if waits else 0.008)
    step.take(held, after=0.3)
    assert slept.pop() == 0.008


def test_a_step_that_falls_behind_takes_more_and_rests_less(steps: Callable[..., Steps]) -> None:
    """It does twice as much, however long that takes, until it keeps up; a try that is repeated does not count."""
    step = steps(100, others=[True] * 9)
    assert step.take(0.2) == 100
    step.clock.slept.clear()
    assert [step.take(0.2, behind=True) for _ in range(2)] == [100, 200]
    assert step.clock.slept == [0.008, 0.008]
    step.uow._driver = SimpleNamespace(others_wrote=lambda: True)
    for _ in range(3):
        step.pace.begin(step.uow, behind=True)
        assert step.pace.size == 400
    step.uow._driver = step._driver
    step.pace.end()
    assert step.take(0.2) == 400
    assert step.take(0.0) == 100


def test_the_times_of_each_database() -> None:
    """A file is locked for 25 ms at a time, half of what a writer may wait; on a server writers do not wait."""
    assert catalog("sqlite").longest_chunk == (0.025, 1)
    assert catalog("postgresql").longest_chunk == (0.3, 20)


# Where there is nothing to carry -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "hint"),
    [(Phase.EXPAND, "run: consensus-orm advance dual_write"), (Phase.NORMALIZED, "there is nothing to do")],
    ids=lambda value: value.name if isinstance(value, Phase) else "",
)
def test_a_phase_without_two_sides_is_refused(open_store: Open, phase: Phase, hint: str) -> None:
    """Rows would be missed before DUAL_WRITE, and have nowhere to go after CUTOVER: which it is, is said."""
    store = open_store()
    if phase is Phase.EXPAND:
        store.migration.rollback(phase)
    else:
        store.migration.migrate(phase, soak=False)
    with pytest.raises(WrongPhaseError, match=f"the phase is {phase.name}") as refused:
        store.migration.backfill()
    assert refused.value.hint == hint


def test_an_error_that_a_trigger_raises_makes_no_rejects(open_store: Open, new_database: Database) -> None:
    """It may say anything of every row of the table: the step ends, nothing is rejected, and it goes on afterwards."""
    store = open_store()
    new_database.fault("BEFORE INSERT", "agent_outputs", REFUSE)
    for step in (store.migration.backfill, store.migration.reconcile):
        with pytest.raises(StorageError):
            step()
        assert store.migration.rejects() == []
    new_database.heal()
    store.migration.backfill()
    assert store.migration.verify().clean
    assert store.migration.rejects() == []
