"""Engines that speak PostgreSQL's protocol and refuse some of it; how their fence holds is told by the other tests."""

from __future__ import annotations

import psycopg
import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase
from consensus_orm.databases.lock import Lock
from consensus_orm.errors import CommitUncertainError, MigrationError, StorageError
from tests.concurrency import clients
from tests.concurrency.databases import SETTINGS, assert_sides_agree, in_phase, phase_of, query
from tests.concurrency.test_postgresql_fence import ready
from tests.support.engines import TABLE_LOCKS_AND_NUMBERS, lacking

pytestmark = pytest.mark.long


def test_an_engine_that_only_locks_rows_is_asked_for_nothing_else_again() -> None:
    """It refuses a lock on a table once for each strength, and then no unit of work sends what it does not have."""
    texts: list[bytes] = []
    with (
        in_phase(Phase.DUAL_WRITE) as url,
        lacking(url, *TABLE_LOCKS_AND_NUMBERS, seen=texts.append) as engine,
        ConsensusStore.open(engine, settings=SETTINGS) as store,
    ):
        with store.unit_of_work() as uow:
            clients.add_one(uow, "FIRST")
        asked = [text for text in texts if b"LOCK TABLE" in text]
        # The first unit of work, with the look at its guards and without, and one try of each strength.
        assert len(asked) == 2 + sum(lock is not Lock.NONE for lock in Lock)
        texts.clear()
        store.migration.backfill()
        with store.unit_of_work() as uow:
            clients.add_one(uow, "SECOND")
            uow.artifacts.delete(spec_id="FIRST")
        assert [text for text in texts for word in TABLE_LOCKS_AND_NUMBERS[:-1] if word in text] == []
        assert_sides_agree(url)


@pytest.mark.parametrize("refused", [b"IN ROW SHARE", b"IN EXCLUSIVE"])
def test_an_engine_that_takes_half_of_the_locks_is_refused(refused: bytes) -> None:
    """Else programs would use fences that do not know of each other; nothing is written."""
    with (
        in_phase(Phase.DUAL_WRITE, ready) as url,
        lacking(url, refused) as engine,
        ConsensusStore.open(engine, settings=SETTINGS) as store,
    ):
        rows = query(url, "SELECT count(*) FROM consensus_artifacts")
        with pytest.raises(MigrationError, match="takes some locks on tables and refuses others"):
            if b"EXCLUSIVE" in refused:
                store.migration.advance(soak=False)
            else:
                store.run(lambda uow: clients.add_one(uow, "HALF"))
        assert phase_of(url) is Phase.DUAL_WRITE
        assert query(url, "SELECT count(*) FROM consensus_artifacts") == rows


def test_an_engine_without_locks_on_rows_either_says_so() -> None:
    """What it refused is told, and it is not asked for ever."""
    with (
        in_phase(Phase.DUAL_WRITE) as url,
        lacking(url, *TABLE_LOCKS_AND_NUMBERS, b"FOR KEY SHARE") as engine,
        ConsensusStore.open(engine, settings=SETTINGS) as store,
        pytest.raises(StorageError, match="42601"),
    ):
        store.run(lambda uow: clients.add_one(uow, "NO LOCK"))


def test_an_engine_without_numbers_leaves_a_lost_commit_uncertain() -> None:
    """It committed, the answer never came, and it cannot be asked: the work is not done again by itself."""
    tries = []
    with (
        in_phase(Phase.DUAL_WRITE) as url,
        lacking(url, *TABLE_LOCKS_AND_NUMBERS) as engine,
        ConsensusStore.open(engine, settings=SETTINGS) as store,
    ):

        def work(uow: ConsensusUnitOfWork) -> None:
            tries.append(uow)
            clients.lose_the_answer(uow)
            clients.add_one(uow, "UNCERTAIN")

        with pytest.raises(CommitUncertainError):
            store.run(work)
        assert len(tries) == 1
        assert query(url, "SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'UNCERTAIN'") == [(1,)]


def test_an_engine_that_says_it_does_not_know_leaves_a_commit_uncertain() -> None:
    """SQLSTATE 40003, statement completion unknown, is not taken for a transaction that may be repeated."""
    with (
        in_phase(Phase.DUAL_WRITE) as url,
        lacking(url, *TABLE_LOCKS_AND_NUMBERS) as engine,
        ConsensusStore.open(engine, settings=SETTINGS) as store,
        pytest.raises(CommitUncertainError),
        store.unit_of_work() as uow,
    ):
        driver = uow._connected
        assert driver._lock is Lock.WRITE  # type: ignore[attr-defined]

        def does_not_know(commands: bytes) -> None:
            del driver._send  # type: ignore[attr-defined]
            raise psycopg.errors.StatementCompletionUnknown("unknown")

        driver._send = does_not_know  # type: ignore[attr-defined]
