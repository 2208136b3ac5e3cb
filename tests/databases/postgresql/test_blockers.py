"""A change of the phase that waits names whom it waits for, and a standby that is being promoted is waited for."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase, telemetry
from consensus_orm.cli import main
from consensus_orm.errors import DatabaseBusyError, ReadOnlyDatabaseError
from consensus_orm.retrying.classification import ErrorKind, classify
from consensus_orm.settings import Settings
from consensus_orm.telemetry import BlockedEvent
from tests.concurrency import clients
from tests.concurrency.databases import in_phase, phase_of, query
from tests.field import server as field
from tests.support import poolers
from tests.support.servers import Server

pytestmark = pytest.mark.postgresql

HASTY = Settings(retry_attempts=3, retry_initial=timedelta(milliseconds=10))

LOCKS = {
    "a unit of work": "SELECT FROM consensus_orm_state FOR KEY SHARE",
    "a writer of a table": "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)"
    " VALUES ('S', 's', 'a', '{}')",
}


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("pooled", [False, True])
def test_a_flip_names_who_blocks_it(lock: str, pooled: bool) -> None:
    """While it waits, and when it gives up: process, application, role, and since when; to hooks, and in the error."""
    if pooled and not poolers.version():
        pytest.skip("NO PGBOUNCER: nothing was tried through a connection pooler (apt install pgbouncer)")
    with in_phase(Phase.EXPAND) as url, psycopg.connect(url, application_name="nightly report") as other:
        before = datetime.now(UTC) - timedelta(seconds=2)
        other.execute(LOCKS[lock].encode())
        heard: list[BlockedEvent] = []

        def flip(there: str) -> DatabaseBusyError:
            with ConsensusStore.open(there, settings=HASTY) as store:
                telemetry.listen(store, lambda e: heard.append(e) if isinstance(e, BlockedEvent) else None)
                with pytest.raises(DatabaseBusyError, match="waited in vain") as caught:
                    store.migration.advance(Phase.DUAL_WRITE, soak=False)
            return caught.value

        if pooled:
            with poolers.pooled(url, "transaction") as pooler:
                error = flip(pooler.url(url))
        else:
            error = flip(url)
        (blocker,) = error.blockers
        assert (blocker.pid, blocker.application) == (other.info.backend_pid, "nightly report")
        assert before < blocker.since < datetime.now(UTC)
        assert str(blocker.pid) in str(error)
        assert f"pg_terminate_backend({blocker.pid})" in error.hint
        assert heard
        assert str(blocker.pid) in heard[0].blockers
        assert "nightly report" in str(heard[0])
        assert phase_of(url) is Phase.EXPAND


def test_the_command_tells_whom_it_waits_for_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, while it waits; once the other has ended its transaction the phase changes."""
    monkeypatch.setenv("CONSENSUS_ORM_RETRY_ATTEMPTS", "30")
    with in_phase(Phase.EXPAND) as url, psycopg.connect(url, application_name="nightly report") as other:
        other.execute(LOCKS["a unit of work"].encode())
        timer = threading.Timer(2, other.rollback)
        timer.start()
        result = CliRunner().invoke(main, ["--url", url, "advance", "dual_write"])
        timer.join()
        assert result.exit_code == 0, result.output
        assert f"waits for pid {other.info.backend_pid} (nightly report" in result.stderr
        assert phase_of(url) is Phase.DUAL_WRITE


def test_a_flip_that_does_not_wait_asks_nobody() -> None:
    """No connection is opened for it, and its name is gone with its transaction."""
    with in_phase(Phase.EXPAND) as url, ConsensusStore.open(url, settings=HASTY) as store:
        store.migration.advance(Phase.DUAL_WRITE, soak=False)
        time.sleep(0.3)
        names = query(url, "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()")
        assert ("consensus_orm",) in names
        assert not [name for (name,) in names if "flip" in name]


def test_a_prepared_transaction_is_named() -> None:
    """It has no process, so it is told where it is listed."""
    with Server(settings={"max_prepared_transactions": "5"}) as server:
        field.build_legacy(server.url())
        with ConsensusStore.open(server.url(), settings=HASTY) as store:
            store.upgrade()
            with server.connect() as other:
                other.execute("BEGIN; SELECT FROM consensus_orm_state FOR KEY SHARE; PREPARE TRANSACTION 'left behind'")
                with pytest.raises(DatabaseBusyError, match="prepared transaction") as caught:
                    store.migration.advance(Phase.DUAL_WRITE, soak=False)
                assert "ROLLBACK PREPARED" in caught.value.hint
                other.execute("ROLLBACK PREPARED 'left behind'")
            store.migration.advance(Phase.DUAL_WRITE, soak=False)


# A standby that is being promoted ---------------------------------------------------------------------------


def test_a_unit_that_writes_waits_for_the_promotion_of_its_server() -> None:
    """25006 of a standby is tried again; once it is promoted the unit of work is there once."""
    with Server() as primary:
        field.build_legacy(primary.url())
        with ConsensusStore.open(primary.url()) as store:
            store.upgrade()
        with Server(primary=primary) as standby:
            standby.catch_up()
            with ConsensusStore.open(standby.url(), settings=HASTY) as store:
                with pytest.raises(ReadOnlyDatabaseError, match="25006") as caught, store.unit_of_work():
                    pass
                assert "target_session_attrs" in caught.value.hint
                assert classify(caught.value).kind is ErrorKind.RETRYABLE
            patient = Settings(retry_attempts=100, retry_budget=timedelta(seconds=60))
            with ConsensusStore.open(standby.url(), settings=patient) as store:
                promotion = threading.Timer(1, lambda: standby.value("SELECT pg_promote(wait => false)"))
                promotion.start()
                store.run(lambda uow: clients.add_one(uow, "PROMOTED"))
                promotion.join()
            assert standby.value("SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'PROMOTED'") == 1


def test_a_connection_to_a_standby_is_not_kept() -> None:
    """With two hosts in the URL, the next try goes to the one that is the primary now."""
    with Server() as primary:
        field.build_legacy(primary.url())
        with ConsensusStore.open(primary.url()) as store:
            store.upgrade()
        with Server(primary=primary) as standby:
            standby.catch_up()
            both = f"postgresql://postgres@/postgres?host={standby.folder}&host={primary.folder}"
            with ConsensusStore.open(both, settings=Settings(retry_attempts=30)) as store:
                stop = threading.Timer(1, standby.stop)
                stop.start()
                store.run(lambda uow: clients.add_one(uow, "ELSEWHERE"))
                stop.join()
            assert primary.value("SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'ELSEWHERE'") == 1
