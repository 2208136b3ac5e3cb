"""What is published of a store, by the real libraries: each switched on by one call."""

from __future__ import annotations

import importlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import text

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase, Settings, errors, telemetry
from consensus_orm.retrying.circuit_breaker import CircuitState
from consensus_orm.settings import OnMismatch
from consensus_orm.telemetry.instruments import INSTRUMENTS
from consensus_orm.telemetry.readings import READINGS
from tests.support.databases import IGNORE, Database, build_legacy

prometheus = pytest.importorskip("prometheus_client")
metrics = pytest.importorskip("opentelemetry.sdk.metrics")
export = pytest.importorskip("opentelemetry.sdk.metrics.export")
tracing = pytest.importorskip("opentelemetry.sdk.trace")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
structlog = pytest.importorskip("structlog")
trace = pytest.importorskip("opentelemetry.trace")

EVIL = "UPDATE consensus_artifacts SET content_json = 'evil' WHERE id = NEW.id"
ROW: Any = {"spec_id": "S", "stage": "plan", "agent_name": "a", "content_json": "secret"}

Point = tuple[dict[str, str], float]


class Reader(Protocol):
    """What was measured: of a histogram, how many values, and their sum."""

    def points(self, name: str) -> list[Point]: ...
    def sums(self, name: str) -> list[Point]: ...


class Prometheus:
    def __init__(self, store: ConsensusStore) -> None:
        self.registry = prometheus.CollectorRegistry()
        telemetry.report_to_prometheus(store, registry=self.registry)

    def points(self, name: str) -> list[Point]:
        return self._samples(name, "", "_total", "_count", "_seconds_count")

    def sums(self, name: str) -> list[Point]:
        return self._samples(name, "_seconds_sum")

    def _samples(self, name: str, *suffixes: str) -> list[Point]:
        names = {plain(name) + suffix for suffix in suffixes}
        samples = [sample for family in self.registry.collect() for sample in family.samples if sample.name in names]
        return [({k: v for k, v in sample.labels.items() if v}, sample.value) for sample in samples]


class OpenTelemetry:
    def __init__(self, store: ConsensusStore) -> None:
        self.reader = export.InMemoryMetricReader()
        telemetry.report_to_opentelemetry(store, meter_provider=metrics.MeterProvider([self.reader]))

    def points(self, name: str) -> list[Point]:
        return [(labels, point.count if hasattr(point, "count") else point.value) for labels, point in self._of(name)]

    def sums(self, name: str) -> list[Point]:
        return [(labels, point.sum) for labels, point in self._of(name)]

    def _of(self, name: str) -> Iterator[tuple[dict[str, str], Any]]:
        data = self.reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics if data else []
        for metric in found:
            if metric.name == name:
                for point in metric.data.data_points:
                    yield {plain(key): value for key, value in point.attributes.items()}, point


Backend = Callable[[ConsensusStore], Reader]
"""Switches a publisher of metrics on, and reads what it published."""


def plain(name: str) -> str:
    """A name as prometheus spells it."""
    return name.replace(".", "_")


@pytest.fixture(params=[Prometheus, OpenTelemetry], ids=lambda backend: backend.__name__.lower())
def backend(request: pytest.FixtureRequest) -> Backend:
    """What switches a publisher of metrics on, and reads what it published."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def legacy(new_database: Database) -> Database:
    """A database with the common legacy rows."""
    build_legacy(new_database.where)
    return new_database


@pytest.fixture
def every_phase(every_phase: ConsensusStore) -> ConsensusStore:
    """The shipped one, ready: the first unit of work looks at the schema, which is told by units of its own."""
    return ready(every_phase)


@pytest.fixture
def consensus_store(consensus_store: ConsensusStore) -> ConsensusStore:
    """The shipped one, ready."""
    return ready(consensus_store)


def ready(store: ConsensusStore) -> ConsensusStore:
    store.upgrade()
    with store.unit_of_work():
        pass
    return store


@contextmanager
def dual_writing(legacy: Database, **settings: Any) -> Iterator[ConsensusStore]:
    """A store in DUAL_WRITE."""
    with ConsensusStore.open(legacy.where, settings=Settings(**settings)) as store:
        store.migration.migrate(Phase.DUAL_WRITE, soak=False)
        yield store


def add(store: ConsensusStore) -> None:
    with store.unit_of_work() as uow:
        uow.artifacts.add(**ROW)


def spoil(legacy: Database) -> None:
    """Have every later write differ."""
    legacy.fault("AFTER INSERT", "consensus_artifacts", EVIL)


def name_of(store: ConsensusStore) -> str:
    """What a database is called where it is observed: a file by its name without the folder, others with their host."""
    url = store.engine.url
    return Path(str(url.database)).name if store.path else f"{url.host or url.query['host']}/{url.database}"


class Traces:
    """The spans of a store."""

    def __init__(self, store: ConsensusStore, **options: Any) -> None:
        self.exporter = memory.InMemorySpanExporter()
        provider = tracing.TracerProvider()
        simple = importlib.import_module("opentelemetry.sdk.trace.export").SimpleSpanProcessor
        provider.add_span_processor(simple(self.exporter))
        self.tracer = provider.get_tracer("application")
        telemetry.report_to_opentelemetry(
            store, meter_provider=metrics.MeterProvider(), tracer_provider=provider, **options
        )

    def named(self, name: str) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


UNIT = "consensus_orm.unit_of_work"


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
        """Each statement is measured once, those of a session too, and those that fail by their error."""
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
                (system | {"db_operation_name": "SAVEPOINT"}, 1),  # of the session
                (system | {"db_operation_name": "RELEASE"}, 1),
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


class TestSpans:
    def test_units_of_work(self, every_phase: ConsensusStore) -> None:
        """In each phase a unit of work is one span, and what is done within it belongs to it."""
        traces = Traces(every_phase)
        with traces.tracer.start_as_current_span("request"), every_phase.unit_of_work() as uow:
            uow.artifacts.add(**ROW)
            with traces.tracer.start_as_current_span("inside"):
                pass
        (unit,), (inside,), (request,) = (traces.named(name) for name in (UNIT, "inside", "request"))
        assert dict(unit.attributes) == {
            "db.system.name": every_phase.engine.dialect.name,
            "consensus_orm.phase": every_phase.migration.phase.name.lower(),
            "consensus_orm.outcome": "committed",
            "consensus_orm.read_only": False,
        }
        assert inside.parent.span_id == unit.context.span_id
        assert unit.parent.span_id == request.context.span_id
        assert unit.status.status_code is trace.StatusCode.UNSET
        assert not trace.get_current_span().get_span_context().is_valid

    def test_statements(self, every_phase: ConsensusStore) -> None:
        """Asked for, each statement is a span of its unit of work; without texts."""
        traces = Traces(every_phase, statements=True)
        add(every_phase)
        (unit,) = traces.named(UNIT)
        system = every_phase.engine.dialect.name
        statements = [span for span in traces.exporter.get_finished_spans() if span is not unit]
        names = {span.name for span in statements}
        assert "COMMIT" in names
        assert names & {"INSERT", "BATCH"}
        for span in statements:
            assert span.kind is trace.SpanKind.CLIENT
            assert dict(span.attributes) == {
                "db.system.name": system,
                "db.operation.name": span.name,
            }
            assert span.parent.span_id == unit.context.span_id
            assert unit.start_time <= span.start_time <= span.end_time <= unit.end_time

    def test_failures(self, consensus_store: ConsensusStore) -> None:
        """A unit of work that fails is an error of its type, without the message."""
        traces = Traces(consensus_store)
        with pytest.raises(ValueError, match="secret"), consensus_store.unit_of_work():
            raise ValueError("secret")
        (unit,) = traces.named(UNIT)
        assert (unit.status.status_code, unit.status.description) == (trace.StatusCode.ERROR, None)
        assert unit.attributes["error.type"] == "ValueError"
        assert unit.attributes["consensus_orm.outcome"] == "rolled_back"

    def test_events(self, legacy: Database) -> None:
        """A mismatch is an event of the unit of work in which it was found, a retry one of the caller's span."""
        with dual_writing(legacy) as store:
            spoil(legacy)
            traces = Traces(store)
            failures = [errors.DatabaseBusyError("secret", sqlite_errorcode=sqlite3.SQLITE_BUSY)]

            def work(uow: ConsensusUnitOfWork) -> None:
                if failures:
                    raise failures.pop()
                uow.artifacts.add(**ROW)

            with traces.tracer.start_as_current_span("request"):
                store.run(work)
        failed, done = traces.named(UNIT)
        assert [event.name for event in failed.events] == []
        assert [event.name for event in done.events] == ["consensus_orm.mismatch"]
        assert done.events[0].attributes["consensus_orm.column"] == "content"
        assert [event.name for event in traces.named("request")[0].events] == [
            "consensus_orm.retry",
            "consensus_orm.call",
        ]

    def test_ending_in_another_thread(self, consensus_store: ConsensusStore, caplog: pytest.LogCaptureFixture) -> None:
        """A unit of work may end in another thread than it began in: its span ends, and nothing is logged."""
        traces = Traces(consensus_store, statements=True)

        def begin() -> ConsensusUnitOfWork:
            return consensus_store.unit_of_work().__enter__()

        with ThreadPoolExecutor(1) as other:
            other.submit(begin).result().__exit__(None, None, None)
        (unit,), (commit,) = traces.named(UNIT), traces.named("COMMIT")
        assert unit.attributes["consensus_orm.outcome"] == "committed"
        assert commit.parent.span_id == unit.context.span_id
        assert caplog.records == []


class TestLogs:
    def test_structlog(self, legacy: Database, caplog: pytest.LogCaptureFixture) -> None:
        """structlog gets a mismatch with its fields and a unit of work at DEBUG, and the standard log does not."""  # noqa: D403
        with dual_writing(legacy) as store:
            spoil(legacy)
            telemetry.report_to_structlog(store)
            with structlog.testing.capture_logs() as logs:
                add(store)
        mismatch, unit = logs
        key = mismatch.pop("key")
        assert mismatch == {
            "event": "consensus_orm.mismatch",
            "log_level": "warning",
            "pair": "artifacts",
            "column": "content",
            "kind": "different",
            "found_by": "write",
            "recorded": True,
        }
        assert key > 0
        assert unit.pop("seconds") >= unit.pop("held_seconds") > 0
        assert unit == {
            "event": UNIT,
            "log_level": "debug",
            "phase": "dual_write",
            "outcome": "committed",
            "read_only": False,
        }
        assert "mismatch" not in caplog.text

    def test_standard_logging(self, legacy: Database, caplog: pytest.LogCaptureFixture) -> None:
        """The standard log has a mismatch in any case, and units of work once somebody listens; with fields."""
        caplog.set_level(logging.DEBUG, "consensus_orm.telemetry")
        with dual_writing(legacy) as store:
            spoil(legacy)
            caplog.clear()
            add(store)
            (found,) = caplog.records
            telemetry.listen(store)
            add(store)
            unit = caplog.records[-1]
        assert (found.levelno, found.name) == (logging.WARNING, "consensus_orm.telemetry")
        assert vars(found)["consensus_orm.column"] == "content"
        assert found.getMessage().startswith("mismatch: artifacts ")
        assert unit.levelno == logging.DEBUG
        assert vars(unit)["consensus_orm.outcome"] == "committed"

    def test_what_is_seen_again_is_logged_once(self, legacy: Database, caplog: pytest.LogCaptureFixture) -> None:
        """A difference that is open already is counted and not logged again."""
        with dual_writing(legacy) as store:
            spoil(legacy)
            read = Prometheus(store)
            add(store)
            store.migration.verify()
            store.migration.verify()
        assert sum(count for _, count in read.points("consensus_orm.mismatches")) == 3
        assert caplog.text.count("mismatch: ") == 1


class TestPromises:
    def test_nothing_is_observed_unasked(self, consensus_store: ConsensusStore) -> None:
        """Until a listener is switched on a unit of work is the plain one, with nothing between its steps."""
        assert type(consensus_store.unit_of_work()) is ConsensusUnitOfWork
        telemetry.listen(consensus_store)
        assert type(consensus_store.unit_of_work()) is not ConsensusUnitOfWork

    def test_no_contents(self, legacy: Database, caplog: pytest.LogCaptureFixture) -> None:
        """Neither contents of rows nor messages of errors get into metrics, spans or logs."""
        caplog.set_level(logging.DEBUG)
        with dual_writing(legacy) as store:
            spoil(legacy)
            traces, read = Traces(store, statements=True), Prometheus(store)
            add(store)
            with pytest.raises(ValueError, match="secret"), store.unit_of_work() as uow:
                uow.session.execute(text("SELECT :word, 'secret'"), {"word": "secret"})
                raise ValueError("secret")
        spans = "".join(span.to_json() for span in traces.exporter.get_finished_spans())
        published = prometheus.generate_latest(read.registry).decode()
        assert "artifacts" in published
        assert "artifacts" in spans
        for told in (spans, published, str([vars(record) for record in caplog.records])):
            assert "secret" not in told
            assert "evil" not in told

    def test_listeners_live_side_by_side(self, consensus_store: ConsensusStore) -> None:
        """What is switched on first goes on when another follows."""
        first, second = Prometheus(consensus_store), OpenTelemetry(consensus_store)
        with structlog.testing.capture_logs() as logs:
            telemetry.report_to_structlog(consensus_store)
            add(consensus_store)
        assert [count for _, count in first.points(f"{UNIT}.duration")] == [1]
        assert [count for _, count in second.points(f"{UNIT}.duration")] == [1]
        assert [log["event"] for log in logs] == [UNIT]

    def test_one_registry_takes_one_store(self, tmp_path: Path) -> None:
        """A second store in a registry is refused, and the first goes on."""
        registry = prometheus.CollectorRegistry()
        with ConsensusStore.open(tmp_path / "a.db") as first, ConsensusStore.open(tmp_path / "b.db") as second:
            telemetry.report_to_prometheus(first, registry=registry)
            with pytest.raises(errors.ConfigurationError, match="registry of its own"):
                telemetry.report_to_prometheus(second, registry=registry)
            add(first)
            assert registry.get_sample_value("db_client_connection_max", {POOL: "a.db"}) == 10

    @pytest.mark.parametrize("name", ["db_client_connection_max", "db_client_operation_duration_seconds"])
    def test_names_of_somebody_else(self, consensus_store: ConsensusStore, name: str) -> None:
        """A registry that has a metric of one of our names is left as it is."""
        registry = prometheus.CollectorRegistry()
        prometheus.Gauge(name, "Somebody else's.", registry=registry)
        with pytest.raises(errors.ConfigurationError):
            telemetry.report_to_prometheus(consensus_store, registry=registry)
        assert [family.name for family in registry.collect()] == [name]
        assert type(consensus_store.unit_of_work()) is ConsensusUnitOfWork

    @pytest.mark.parametrize("each", [*INSTRUMENTS, *READINGS], ids=lambda each: each.name)
    def test_conventions(self, each: Any) -> None:
        """What is called `db.*` is a name, and has the unit and attributes, of OpenTelemetry's conventions."""
        known, units, attributes = conventions()
        assert each.name in known or each.name.startswith("consensus_orm.")
        assert each.name not in units or units[each.name] == each.unit
        assert all(name in attributes or name.startswith("consensus_orm.") for name in each.attributes)

    def test_names_are_documented(self) -> None:
        """The README tells each metric."""
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        assert [each.name for each in (*INSTRUMENTS, *READINGS) if f"`{each.name}`" not in readme] == []


POOL = "db_client_connection_pool_name"


def conventions() -> tuple[set[str], dict[str, str], set[str]]:
    """Names of metrics, their units, and names of attributes, as opentelemetry-semantic-conventions has them."""
    of_metrics = importlib.import_module("opentelemetry.semconv._incubating.metrics.db_metrics")
    of_stable = importlib.import_module("opentelemetry.semconv.metrics.db_metrics")
    of_db = importlib.import_module("opentelemetry.semconv._incubating.attributes.db_attributes")
    of_errors = importlib.import_module("opentelemetry.semconv.attributes.error_attributes")
    names = {value for module in (of_metrics, of_stable) for value in vars(module).values() if isinstance(value, str)}
    attributes = {value for module in (of_db, of_errors) for value in vars(module).values() if isinstance(value, str)}
    reader = export.InMemoryMetricReader()
    meter = metrics.MeterProvider([reader]).get_meter("conventions")
    makers = [make for name, make in vars(of_metrics).items() if name.startswith("create_db_client_connection_")]
    units = {made.name: made.unit for made in (make(meter) for make in makers)}
    return names, {**units, "db.client.operation.duration": "s"}, attributes
