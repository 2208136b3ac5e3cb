"""What is published of a store, by the real libraries: each switched on by one call."""

from __future__ import annotations

import importlib
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, errors, telemetry
from consensus_orm.cli.reference import REFERENCES
from consensus_orm.telemetry.instruments import INSTRUMENTS
from consensus_orm.telemetry.readings import READINGS
from tests.support.databases import Database
from tests.telemetry.published import (
    ROW,
    UNIT,
    OpenTelemetry,
    Prometheus,
    Traces,
    add,
    dual_writing,
    export,
    metrics,
    prometheus,
    spoil,
)

structlog = pytest.importorskip("structlog")
trace = pytest.importorskip("opentelemetry.trace")


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
        """The page of the documentation tells each metric."""
        page = "\n".join(REFERENCES["metrics"]())
        assert [each.name for each in (*INSTRUMENTS, *READINGS) if f"`{each.name}`" not in page] == []


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
