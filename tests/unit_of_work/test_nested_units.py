"""Units of work inside each other, side by side, and left to the garbage collector."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.pool import PoolProxiedConnection

from consensus_orm import ConsensusStore
from consensus_orm.errors import (
    DatabaseBusyError,
    StorageError,
)
from consensus_orm.settings import Settings
from consensus_orm.testing import artifact_values, spawn_values
from tests.support.databases import REFUSE, Database, behind
from tests.unit_of_work.test_unit_of_work import contents


@pytest.mark.sqlite  # writers of a server do not wait for each other, and so not for themselves
def test_a_writer_within_a_writer_is_told_so(consensus_store: ConsensusStore) -> None:
    """Two writing units of one thread cannot be, and the error says that instead of waiting for ever."""
    settings = Settings(busy_timeout="0.1")
    with ConsensusStore.open(consensus_store.path, settings=settings) as store, store.unit_of_work() as outer:
        with pytest.raises(DatabaseBusyError, match="this thread already"), store.unit_of_work():
            raise AssertionError("it was entered")
        outer.artifacts.add(**artifact_values())

    assert len(contents(consensus_store)[0]) == 1  # type: ignore[arg-type]


@pytest.mark.postgresql
def test_writers_of_one_thread_do_not_know_each_other(consensus_store: ConsensusStore) -> None:
    """On a server a writer within a writer is another transaction, which sees what was committed and stands alone."""
    with pytest.raises(ZeroDivisionError), consensus_store.unit_of_work() as outer:
        outer.artifacts.add(**artifact_values(spec_id="SPEC-OUTER"))
        with consensus_store.unit_of_work() as inner:
            assert inner.artifacts.count() == 0
            inner.artifacts.add(**artifact_values(spec_id="SPEC-INNER"))
        assert outer.artifacts.specs() == ["SPEC-INNER", "SPEC-OUTER"]
        raise ZeroDivisionError

    with consensus_store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.specs() == ["SPEC-INNER"]


@pytest.mark.long
@pytest.mark.parametrize("session", [False, True], ids=["repositories", "session"])
def test_a_unit_that_nobody_ends_ends_by_itself(new_database: Database, session: bool) -> None:
    """Forgotten, or within a generator that is collected as garbage, it rolls back and gives its connection back."""
    with ConsensusStore.open(new_database.where, settings=Settings(pool_size=1)) as store:
        store.upgrade()

        def write() -> Iterator[None]:
            with store.unit_of_work() as uow:
                uow.artifacts.add(**artifact_values())
                if session:
                    assert uow.session.scalar(text("SELECT 1")) == 1
                yield

        next(in_a_cycle(write()))
        gc.collect()
        forgotten = store.unit_of_work().__enter__()
        forgotten.artifacts.add(**artifact_values())
        if session:
            assert forgotten.session.scalar(text("SELECT 1")) == 1
        del forgotten
        gc.collect()
        with store.unit_of_work() as uow:
            assert uow.artifacts.count() == 0
            uow.artifacts.add(**artifact_values())
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.count() == 1


@pytest.mark.long
def test_garbage_does_not_end_the_unit_of_somebody_else(new_database: Database) -> None:
    """The connection of a generator that is collected is lent again when its blocks have ended, and not before."""
    with ConsensusStore.open(new_database.where, settings=Settings(pool_size=1)) as store:
        store.upgrade()

        def write() -> Iterator[None]:
            with store.unit_of_work() as uow:
                uow.artifacts.add(**artifact_values(spec_id="SPEC-GARBAGE"))
                try:
                    yield
                finally:
                    time.sleep(0.1)

        def write_slowly() -> None:
            with store.unit_of_work() as uow:
                uow.artifacts.add(**artifact_values(spec_id="SPEC-OTHER"))
                time.sleep(0.2)
                uow.artifacts.add(**artifact_values(spec_id="SPEC-OTHER"))

        next(in_a_cycle(write()))
        with ThreadPoolExecutor(1) as thread:
            other = thread.submit(write_slowly)
            gc.collect()
            other.result()
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.specs() == ["SPEC-OTHER"]


@pytest.mark.long
@pytest.mark.parametrize("end", ["commit", "failure", "collection"])
@pytest.mark.parametrize("read_only", [False, True])
def test_nothing_is_kept_of_a_unit_that_has_ended(consensus_store: ConsensusStore, end: str, read_only: bool) -> None:
    """However it ended, its hold on a connection is gone with it: a program that runs for months does not grow."""

    def kept() -> int:
        gc.collect()
        return sum(isinstance(thing, PoolProxiedConnection) for thing in gc.get_objects())

    before = kept()
    for _ in range(5):
        unit = consensus_store.unit_of_work(read_only=read_only)
        if end == "collection":
            unit.__enter__()
            del unit
            continue
        with suppress(ZeroDivisionError), unit as uow:
            uow.artifacts.count()
            if end == "failure":
                raise ZeroDivisionError
    assert kept() == before


def test_a_transaction_that_the_database_ended_is_no_success(every_phase: ConsensusStore) -> None:
    """Though somebody caught the error of the statement that ended it: nothing was kept, and no callback is called."""
    database = behind(every_phase)
    table = "agent_outputs" if every_phase.migration.phase.truth == "normalized" else "consensus_artifacts"
    called: list[object] = []
    database.fault("BEFORE INSERT", table, "SELECT RAISE(ROLLBACK, 'no')" if database.kind == "sqlite" else REFUSE)
    with pytest.raises(StorageError), every_phase.unit_of_work() as uow:
        uow.executions.record_spawn(**spawn_values(agent_id="agent-lost"))
        uow.on_commit(lambda: called.append(uow))
        with suppress(StorageError):
            uow.artifacts.add(**artifact_values())
    database.heal()
    assert called == []
    assert database.scalar("SELECT count(*) FROM agent_executions WHERE agent_id = 'agent-lost'") == 0
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values())


def in_a_cycle(generator: Iterator[None]) -> Iterator[None]:
    """A generator that only garbage collection finds when nobody refers to it any more."""
    cycle: list[object] = [generator]
    cycle.append(cycle)
    return generator


def test_readers_can_be_nested(consensus_store: ConsensusStore) -> None:
    """A reader within a writer, and a reader within a reader, each see what was committed."""
    with consensus_store.unit_of_work() as outer:
        outer.artifacts.add(**artifact_values())
        with consensus_store.unit_of_work(read_only=True) as a, consensus_store.unit_of_work(read_only=True) as b:
            assert a.artifacts.count() == b.artifacts.count() == 0
