"""What becomes of a unit of work whose connection is lost at its commit: it is there once, or not at all."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase
from consensus_orm.errors import CommitUncertainError, DatabaseUnavailableError
from consensus_orm.retrying.classification import ErrorKind, classify
from consensus_orm.settings import Settings
from tests.concurrency import clients
from tests.concurrency.databases import made, query
from tests.support.servers import Server

pytestmark = pytest.mark.long

PATIENT = Settings(retry_attempts=12, retry_budget=timedelta(seconds=60))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose log is written to disk by commits alone, so that a kill loses what was not committed."""
    with Server(settings={"wal_writer_delay": "10s"}) as server:
        made(server.url(), Phase.DUAL_WRITE)
        yield server


def count(server: Server, spec: str) -> tuple[int, int]:
    """How many artifacts of a spec stand on each side."""
    sides = query(
        server.url(),
        f"SELECT (SELECT count(*) FROM consensus_artifacts WHERE spec_id = '{spec}'), (SELECT count(*)"
        f" FROM agent_outputs AS o JOIN consensus_runs AS r ON r.id = o.run_id WHERE r.spec_id = '{spec}')",
    )
    return sides[0][0], sides[0][1]


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_a_restart_before_the_commit_leaves_nothing(
    server: Server, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The unit of work fails with an error that may be tried again, and done by `run` it is there once."""
    with ConsensusStore.open(server.url(), settings=PATIENT) as store:
        with pytest.raises(DatabaseUnavailableError) as caught, store.unit_of_work() as uow:
            clients.add_one(uow, f"ONCE-{mode}")
            server.kill() if mode == "kill" else server.stop(mode)
            server.start()
        assert classify(caught.value).kind is ErrorKind.RETRYABLE
        assert count(server, f"ONCE-{mode}") == (0, 0)
        store.run(lambda uow: clients.add_one(uow, f"ONCE-{mode}"))
    assert count(server, f"ONCE-{mode}") == (1, 1)
    with (
        ConsensusStore.open(server.url(), settings=PATIENT) as store,
        pytest.raises(ZeroDivisionError),
        store.unit_of_work() as uow,
    ):
        clients.add_one(uow, "NEVER")
        server.kill() if mode == "kill" else server.stop(mode)
        server.start()
        raise ZeroDivisionError
    assert "sqlalchemy" not in caplog.text, "a rollback that nobody answers is none that failed"


@pytest.mark.parametrize("mode", ["immediate", "kill"])
def test_a_number_that_a_crashed_server_gives_again_is_not_taken_for_ours(server: Server, mode: str) -> None:
    """A transaction that was lost is not reported as committed because a later one was, under the same number."""
    with (
        ConsensusStore.open(server.url(), settings=PATIENT) as store,
        pytest.raises(CommitUncertainError) as caught,
        store.unit_of_work() as uow,
    ):
        clients.add_one(uow, "LOST")
        number = int(uow._connected._transaction)  # type: ignore[attr-defined]
        server.kill() if mode == "kill" else server.stop(mode)
        server.start()
        with server.connect() as other:
            while (given := query_number(other)) < number:
                pass
            assert given == number, "the server did not lose the number: this shows nothing"
    assert count(server, "LOST") == (0, 0)
    assert classify(caught.value).kind is ErrorKind.PERMANENT, "it would be done again, and perhaps twice"


def query_number(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    assert row is not None
    return row[0]


def test_a_commit_whose_answer_was_lost_is_not_repeated(server: Server) -> None:
    """The server committed and the answer never came: `run` finds out, and the work is done once."""
    tries = []
    with ConsensusStore.open(server.url(), settings=PATIENT) as store:

        def work(uow: ConsensusUnitOfWork) -> None:
            tries.append(uow)
            clients.lose_the_answer(uow)
            clients.add_one(uow, "ANSWERED")

        store.run(work)
    assert len(tries) == 1
    assert count(server, "ANSWERED") == (1, 1)


def test_a_server_that_does_not_come_back_leaves_it_uncertain(server: Server) -> None:
    """Where nobody can be asked, the error says so, and the work is not done again by itself."""
    with ConsensusStore.open(server.url(), settings=Settings(retry_budget=timedelta(milliseconds=300))) as store:
        tries = []

        def work(uow: object) -> None:
            tries.append(uow)
            clients.add_one(uow, "ALONE")  # type: ignore[arg-type]
            server.kill()

        with pytest.raises(CommitUncertainError):
            store.run(work)
        assert len(tries) == 1
    server.start()
    assert count(server, "ALONE") == (0, 0)


def test_a_terminated_backend_is_asked_about(server: Server) -> None:
    """Backends that an administrator terminates at random, also while they commit: each row is there once."""
    stop = threading.Event()
    chance = random.Random(3)

    def terminate() -> None:
        with server.connect() as admin:
            while not stop.wait(chance.uniform(0.03, 0.15)):
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'consensus_orm'"
                )

    thread, added = threading.Thread(target=terminate), 0
    patient = Settings(retry_attempts=100, retry_initial=timedelta(0), retry_budget=timedelta(seconds=60))
    with ConsensusStore.open(server.url(), settings=patient) as store:
        thread.start()
        try:
            while added < 60 or not (store.retrier.telemetry.totals.recovered or added > 5000):
                store.run(lambda uow: clients.add_one(uow, f"TERM-{added}"))  # noqa: B023 - called at once
                added += 1
        finally:
            stop.set()
            thread.join()
        assert store.retrier.telemetry.totals.recovered > 0, "nobody was ever terminated: this shows nothing"
    assert [count(server, f"TERM-{number}") for number in range(added)] == [(1, 1)] * added
