"""What is measured of a store, as Prometheus and as OpenTelemetry publish it."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase, Settings, errors, telemetry
from consensus_orm.retrying.circuit_breaker import CircuitState
from consensus_orm.settings import OnMismatch
from tests.support.databases import IGNORE, Database
from tests.telemetry.conftest import ready
from tests.telemetry.published import (
    UNIT,
    Backend,
    OpenTelemetry,
    Prometheus,
    Reader,
    add,
    dual_writing,
    name_of,
    spoil,
)


@pytest.fixture(params=[Prometheus, OpenTelemetry], ids=lambda backend: backend.__name__.lower())
def backend(request: pytest.FixtureRequest) -> Backend:
    """What switches a publisher of metrics on, and reads what it published."""
    return request.param  # type: ignore[no-any-return]


class TestMetrics:
    def test_units_of_work(self, every_phase: ConsensusStore, backend: Backend) -> None:
        """In each phase, a unit of work is measured once: by phase, outcome and what it may do."""
        phase = every_phase.migration.phase.name.lower()
        read = backend(every_phase)
        add(every_phase)
        with every_phase.unit_of_work(read_only=True) as uow:
            uow.artifacts.count()
        with pytest.raises(ZeroDivisionError), every_phase.unit_of_work():
            _ = 1 / 0
        told = {"consensus_orm_phase": phase}
        assert sorted(read.points(f"{UNIT}.duration"), key=str) == sorted(
            [
                (told | {"consensus_orm_outcome": "committed", "consensus_orm_read_only": "false"}, 1),
                (told | {"consensus_orm_outcome": "committed", "consensus_orm_read_only": "true"}, 1),
                (
                    told
                    | {"consensus_orm_outcome": "rolled_back", "consensus_orm_read_only": "false"}
                    | {"error_type": "ZeroDivisionError"},
                    1,
                ),
            ],
            key=str,
        )
        pool = {"db_client_connection_pool_name": name_of(every_phase)}
        assert read.points("db.client.connection.wait_time") == [(pool, 3)]
        assert read.points("db.client.connection.use_time") == [(pool, 3)]
        assert read.points("consensus_orm.lock.wait_time") == [({"db_system_name": every_phase.engine.dialect.name}, 2)]

    def test_statements(self, every_phase: ConsensusStore, backend: Backend) -> None:
        """Each statement is measured once, of a session too but its savepoints; those that fail, by their error."""
        read = backend(every_phase)
        with every_phase.unit_of_work(read_only=True) as uow:
            uow.artifacts.count()  # fetched by the same call
            uow.session.execute(text("SELECT 1"))
        with pytest.raises(errors.StorageError), every_phase.unit_of_work(read_only=True) as uow:
            uow._execute("SELECT * FROM nowhere")
        system = {"db_system_name": every_phase.engine.dialect.name}
        assert sorted(read.points("db.client.operation.duration"), key=str) == sorted(
            [
                (system | {"db_operation_name": "SELECT"}, 2),
                (system | {"db_operation_name": "SELECT", "error_type": "StorageError"}, 1),
                (system | {"db_operation_name": "COMMIT"}, 1),
            ],
            key=str,
        )

    def test_comparisons(self, every_phase: ConsensusStore, backend: Backend) -> None:
        """A row is compared when it is written where there are two sides, and only there."""
        read = backend(every_phase)
        add(every_phase)
        compared = [({"consensus_orm_pair": "artifacts", "consensus_orm_found_by": "write"}, 1)]
        assert read.points("consensus_orm.comparisons") == (compared if every_phase.migration.phase.compares else [])

    def test_comparisons_of_reads_and_of_verify(self, legacy: Database, backend: Backend) -> None:
        """Shadow reads and verify count the rows they compared."""
        with dual_writing(legacy, shadow_reads=1) as store:
            read = backend(store)
            report = store.migration.verify()
            with store.unit_of_work(read_only=True) as uow:
                rows = len(uow.artifacts.list())
            found = read.points("consensus_orm.comparisons")
        by: dict[str, float] = {}
        for labels, count in found:
            how = labels["consensus_orm_found_by"]
            by[how] = by.get(how, 0) + count
        assert rows > 0
        assert by == {"verify": report.compared, "shadow_read": rows}

    @pytest.mark.parametrize("policy", OnMismatch)
    def test_mismatches(self, legacy: Database, backend: Backend, policy: OnMismatch) -> None:
        """A write that differs is counted by table, column and kind, whether it is recorded or refused."""
        with dual_writing(legacy, on_mismatch=policy) as store:
            spoil(legacy)
            read = backend(store)
            for _ in range(2):
                try:
                    add(store)
                except errors.MismatchError:
                    assert policy is OnMismatch.RAISE
            assert read.points("consensus_orm.mismatches") == [
                (
                    {
                        "consensus_orm_pair": "artifacts",
                        "consensus_orm_column": "content",
                        "consensus_orm_kind": "different",
                        "consensus_orm_found_by": "write",
                    },
                    2,
                )
            ]

    def test_alarm(self, legacy: Database, backend: Backend) -> None:
        """The alarm on the rate of mismatches is counted."""
        with dual_writing(legacy, alarm_mismatches=2) as store:
            spoil(legacy)
            read = backend(store)
            for _ in range(3):
                add(store)
            assert read.points("consensus_orm.alarms") == [({}, 1)]

    def test_backfill(self, legacy: Database, backend: Backend) -> None:
        """The rows of the backfill add up to those of the legacy side, whatever the size of the chunks."""
        with ConsensusStore.open(legacy.where, settings=Settings(chunk_rows=2, chunk_pause=timedelta())) as store:
            store.migration.upgrade()
            store.migration.advance(Phase.DUAL_WRITE)
            read = backend(store)
            report = store.migration.backfill()
            assert report.rows > 2
            assert sum(count for _, count in read.points("consensus_orm.backfill.rows")) == report.rows

    def test_rejects(self, legacy: Database, backend: Backend) -> None:
        """A row that cannot be carried is counted."""
        with ConsensusStore.open(legacy.where, settings=Settings(chunk_pause=timedelta())) as store:
            store.migration.upgrade()
            store.migration.advance(Phase.DUAL_WRITE)
            legacy.fault("BEFORE INSERT", "agent_outputs", IGNORE)
            read = backend(store)
            report = store.migration.backfill()
            assert report.rejects > 0
            rejected = sum(count for _, count in read.points("consensus_orm.rejects"))
        assert rejected == report.rejects

    def test_retries(self, consensus_store: ConsensusStore, backend: Backend) -> None:
        """Calls are counted by how they ended, and retries by reason, with what happened before switching on."""
        consensus_store.run(lambda uow: None)
        first_tries = consensus_store.telemetry.totals.first_try
        read = backend(consensus_store)
        failures = [errors.DatabaseBusyError("busy", sqlite_errorcode=sqlite3.SQLITE_BUSY)]

        def work(uow: ConsensusUnitOfWork) -> None:
            if failures:
                raise failures.pop()

        consensus_store.run(work)
        calls = {labels["consensus_orm_outcome"]: count for labels, count in read.points("consensus_orm.calls")}
        assert {outcome: count for outcome, count in calls.items() if count} == {
            "first_try": first_tries,
            "recovered": 1,
        }
        assert [count for _, count in read.points("consensus_orm.retries")] == [1]
        assert read.points("consensus_orm.retry.wait_time") == [({}, 1)]

    def test_breaker(self, new_database: Database, backend: Backend) -> None:
        """Exactly the state of the circuit breaker is 1; where there is no breaker, nothing is told."""
        settings = Settings(breaker=True, breaker_window=1, breaker_minimum_calls=1, retry_attempts=1)

        def fail(uow: ConsensusUnitOfWork) -> None:
            raise errors.DatabaseBusyError("busy", sqlite_errorcode=sqlite3.SQLITE_BUSY)

        def states(read: Reader) -> dict[str, float]:
            return {
                labels["consensus_orm_state"]: value for labels, value in read.points("consensus_orm.breaker.state")
            }

        with ConsensusStore.open(new_database.where, settings=settings) as store:
            ready(store)
            read = backend(store)
            assert states(read) == {each.value: float(each is CircuitState.CLOSED) for each in CircuitState}
            with pytest.raises(errors.DatabaseBusyError):
                store.run(fail)
            assert states(read) == {each.value: float(each is CircuitState.OPEN) for each in CircuitState}
        with ConsensusStore.open(new_database.where, settings=Settings(breaker=False)) as store:
            assert states(backend(store)) == {}

    def test_pool(self, new_database: Database, backend: Backend) -> None:
        """Connections are told by state, and who waits for one; who waited in vain is counted."""
        settings = Settings(pool_size=1, pool_timeout=timedelta(seconds=0.2), retry_attempts=1)
        with ConsensusStore.open(new_database.where, settings=settings) as store:
            ready(store)
            pool = {"db_client_connection_pool_name": name_of(store)}
            used, idle = pool | {"db_client_connection_state": "used"}, pool | {"db_client_connection_state": "idle"}
            read = backend(store)
            assert read.points("db.client.connection.max") == [(pool, 1)]
            with store.unit_of_work(), ThreadPoolExecutor(1) as other:
                assert read.points("db.client.connection.count") == [(used, 1), (idle, 0)]
                waiting = other.submit(add, store)
                seen = []
                while not waiting.done():
                    seen += read.points("db.client.connection.pending_requests")
                with pytest.raises(errors.PoolExhaustedError):
                    waiting.result()
            assert (pool, 1) in seen
            assert read.points("db.client.connection.timeouts") == [(pool, 1)]
            assert read.points("db.client.connection.wait_time") == [(pool, 1)]  # of the one that came
            assert read.points("db.client.connection.count") == [(used, 0), (idle, 1)]
            units = [labels.get("error_type") for labels, _ in read.points(f"{UNIT}.duration")]
            assert sorted(units, key=str) == [None, "PoolExhaustedError"]

    def test_lock_waits(self, legacy: Database, backend: Backend) -> None:
        """The time a second writer, in another process, keeps a unit of work waiting is told as such."""
        with ConsensusStore.open(legacy.where, settings=Settings(retry_attempts=1)) as store:
            ready(store)
            read = backend(store)
            asking = threading.Event()
            store.telemetry.add_hook(lambda event: asking.set() if isinstance(event, telemetry.UnitBegun) else None)
            with ThreadPoolExecutor(1) as other:
                with legacy.writers_waiting():
                    waiting = other.submit(add, store)
                    assert asking.wait(30)
                    time.sleep(0.3)
                waiting.result()
            ((labels, waited),) = read.sums("consensus_orm.lock.wait_time")
        assert labels == {"db_system_name": legacy.kind}
        assert waited > 0.15

    def test_a_lock_that_never_comes(self, legacy: Database, backend: Backend) -> None:
        """Giving up is told by the error, of the lock and of the unit of work, which had no phase yet."""
        with ConsensusStore.open(legacy.where, settings=Settings(busy_timeout=timedelta(milliseconds=20))) as store:
            ready(store)
            read = backend(store)
            with legacy.writers_waiting(), pytest.raises(errors.DatabaseBusyError):
                add(store)
            busy = {"error_type": "DatabaseBusyError"}
            assert read.points("consensus_orm.lock.wait_time") == [(busy | {"db_system_name": legacy.kind}, 1)]
            failed = {"consensus_orm_outcome": "failed", "consensus_orm_read_only": "false"}
            assert read.points(f"{UNIT}.duration") == [(busy | failed | {"consensus_orm_phase": "none"}, 1)]
