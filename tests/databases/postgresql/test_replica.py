"""Read replicas: two real servers, one of which follows the other by streaming, and is held back on purpose."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import create_engine, text

from consensus_orm import ConsensusStore, Phase, Settings, errors, telemetry
from consensus_orm.consensus.models.legacy import ConsensusArtifact, ConsensusSynthesis
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.databases.postgresql import replica as replica_module
from consensus_orm.models.base import Base
from consensus_orm.report import facts
from consensus_orm.telemetry import ReplicaEvent
from consensus_orm.telemetry.instruments import measure
from consensus_orm.testing import artifact_values
from tests.support.servers import Server

pytestmark = pytest.mark.long

NOW = timedelta(0)
WAY = (*Phase, Phase.NORMALIZED, Phase.CUTOVER, Phase.DUAL_WRITE, Phase.EXPAND)
"""Every flip, there and back."""


class Two(NamedTuple):
    """Two servers."""

    primary: Server
    replica: Server
    backups: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    # Nothing waits for a reader of the replica: what it reads is removed under it.
    follower = {"max_standby_streaming_delay": "0"}
    with Server() as primary, Server(primary=primary, settings=follower) as replica:
        yield Two(primary, replica, tmp_path_factory.mktemp("backups"))


@pytest.fixture
def name(two: Two) -> str:
    """A database with the legacy tables, on both servers."""
    name = f"d{uuid.uuid4().hex[:8]}"
    with two.primary.connect() as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    engine = create_engine(two.primary.url(name).replace("postgresql:", "postgresql+psycopg:", 1))
    models = (ConsensusArtifact, ConsensusSynthesis)
    Base.metadata.create_all(engine, [Base.metadata.tables[model.__tablename__] for model in models])
    engine.dispose()
    two.replica.catch_up()
    return name


def open_on(two: Two, name: str, read: str | None = None) -> ConsensusStore:
    settings = Settings(
        read_url=read or two.replica.url(name),
        soak_dual_write=NOW,
        soak_cutover=NOW,
        soak_normalized=NOW,
        backup_dir=two.backups,
    )
    return ConsensusStore.open(two.primary.url(name), settings=settings)


@pytest.fixture
def store(two: Two, name: str) -> Iterator[ConsensusStore]:
    with open_on(two, name) as store:
        store.upgrade()
        store.run(add("first"))
        two.replica.catch_up()
        yield store


def add(content: str) -> Callable[[ConsensusUnitOfWork], int]:
    def work(uow: ConsensusUnitOfWork) -> int:
        return uow.artifacts.add(**artifact_values(content_json=content)).id

    return work


def contents(uow: ConsensusUnitOfWork) -> list[str]:
    return [artifact.content_json for artifact in uow.artifacts.list()][::-1]


def is_replica(uow: ConsensusUnitOfWork) -> bool:
    return bool(uow.session.scalar(text("SELECT pg_is_in_recovery()")))


def told(store: ConsensusStore) -> list[ReplicaEvent]:
    """What will be told of reads that went to the primary instead."""
    events: list[ReplicaEvent] = []
    telemetry.listen(store, lambda event: events.append(event) if isinstance(event, ReplicaEvent) else None)
    return events


def take(store: ConsensusStore, to: Phase) -> None:
    if to < store.migration.phase:
        store.migration.rollback(to, reason="test")
    elif to > store.migration.phase:
        store.migration.migrate(to)


def test_only_reads_of_the_data_go_to_the_replica(store: ConsensusStore) -> None:
    """Read-only units of work read from the replica; writes, and all that the migration reads, stay on the primary."""
    events = told(store)
    assert store.run(is_replica, read_only=True)
    with store.unit_of_work(read_only=True) as uow:
        assert (is_replica(uow), contents(uow), uow.phase) == (True, ["first"], Phase.EXPAND)
        assert uow.session.execute(text("SELECT pg_is_in_recovery()")).scalar()
    assert not store.run(is_replica)
    with store.migration._reading() as reading:
        assert reading._rows("SELECT pg_is_in_recovery()") == [(False,)]
    assert events == []


def test_what_was_not_replayed_yet_is_not_seen(two: Two, store: ConsensusStore) -> None:
    """Within a phase a replica may lag: it answers with the rows it has, and later with all of them."""
    with two.replica.replay_paused():
        store.run(add("second"))
        two.replica.catch_up(shown=False)
        assert store.run(contents, read_only=True) == ["first"]
        for status in (store.migration.status(), facts.collect(store).status):
            assert status.pairs[0].legacy_rows == 2  # what the migration tells is never of the replica
    two.replica.catch_up()
    assert store.run(contents, read_only=True) == ["first", "second"]


def test_a_phase_that_is_over_never_answers(two: Two, store: ConsensusStore) -> None:
    """Across every flip, there and back, that a replica has not seen, reads go to the primary; then to it again."""
    expected = ["first"]
    for phase in WAY:
        events = told(store)
        with two.replica.replay_paused():
            before = store.migration.phase
            take(store, phase)
            expected.append(f"in {phase.name} after {before.name}")
            store.run(add(expected[-1]))
            two.replica.catch_up(shown=False)
            with store.unit_of_work(read_only=True) as uow:
                assert uow.phase is phase
                if before is not phase:
                    assert (is_replica(uow), contents(uow)) == (False, expected)
            store.run(contents, read_only=True)
        moved = before is not phase
        assert [(event.reason, event.news) for event in events] == [("behind", True), ("behind", False)] * moved
        two.replica.catch_up()
        with store.unit_of_work(read_only=True) as uow:
            assert (is_replica(uow), uow.phase, contents(uow)) == (True, phase, expected)


def test_a_flip_while_readers_read(two: Two, store: ConsensusStore) -> None:
    """While phases change and the replica stalls, no read sees a phase older than one that was already there."""
    newest, done = [store.migration.phase], threading.Event()

    def read() -> int:
        late = 0
        while not done.is_set():
            at_least = len(newest) - 1
            seen = store.run(lambda uow: uow.epoch, read_only=True)
            late += seen < first + at_least
        return late

    first = store.run(lambda uow: uow.epoch)
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            for phase in WAY[1:]:
                with two.replica.replay_paused():
                    take(store, phase)
                    newest.append(phase)
                    store.run(add("more"))
                two.replica.catch_up()
        finally:
            done.set()
        assert [reader.result() for reader in readers] == [0] * 4


def test_a_replica_without_our_tables_is_not_read(two: Two, name: str) -> None:
    """A database that was prepared while the replica stood still is read on the primary, and then on both."""
    with open_on(two, name) as store:
        with store.unit_of_work(read_only=True) as uow:  # not even the primary has them
            assert (is_replica(uow), uow.prepared) == (False, False)
        with two.replica.replay_paused():
            store.upgrade()
            store.run(add("first"))
            two.replica.catch_up(shown=False)
            with store.unit_of_work(read_only=True) as uow:
                assert (is_replica(uow), contents(uow)) == (False, ["first"])
        two.replica.catch_up()
        assert store.run(is_replica, read_only=True)


def test_the_replica_is_killed_under_readers(
    two: Two, store: ConsensusStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Readers notice nothing when their replica is killed: they read from the primary, and later from it again."""
    monkeypatch.setattr(replica_module, "PAUSE", 0.05)
    events = told(store)
    reading, done = threading.Barrier(5), threading.Event()

    def read() -> set[tuple[str, ...]]:
        seen = {tuple(store.run(contents, read_only=True))}
        reading.wait()
        while not done.is_set():
            seen.add(tuple(store.run(contents, read_only=True)))
        return seen

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as pool, ExitStack() as stack:
        readers = [pool.submit(read) for _ in range(4)]
        stack.callback(done.set)
        reading.wait()
        two.replica.kill()
        try:
            assert not store.run(is_replica, read_only=True)
            assert [store.run(is_replica, read_only=True) for _ in range(100)] == [False] * 100
        finally:
            two.replica.start()
        while not store.run(is_replica, read_only=True):
            pass
        done.set()
        assert [reader.result() for reader in readers] == [{("first",)}] * 4
    assert {event.reason for event in events} <= {"unreachable", "behind"}
    assert len(events) >= 100
    (counted,) = measure(next(event for event in events if event.reason == "unreachable"), {})
    assert counted == ("consensus_orm.replica.fallbacks", 1, {"consensus_orm.reason": "unreachable"})
    lines = [record for record in caplog.records if "unreachable" in record.getMessage()]
    assert 1 <= len(lines) < 20  # not one for each read: several threads may notice at once, and when it comes back


def test_a_replica_that_restarts_is_read_again(
    two: Two, store: ConsensusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that a restart has closed are replaced without a word."""
    events = told(store)
    assert store.run(is_replica, read_only=True)
    two.replica.restart()
    assert store.run(is_replica, read_only=True)
    assert events == []


def test_an_unreachable_replica_is_left_alone_for_a_while(two: Two, store: ConsensusStore) -> None:
    """After a replica could not be reached reads go to the primary at once, without trying it each time."""
    two.replica.stop()
    try:
        assert not store.run(is_replica, read_only=True)
    finally:
        two.replica.start()
    assert not store.run(is_replica, read_only=True)


def test_a_silent_replica_costs_one_wait(two: Two, name: str) -> None:
    """A replica that takes connections and says nothing is given up after its patience, and then left alone."""
    with open_on(two, name) as store:
        store.upgrade()
        with two.replica.paused():
            assert [store.run(is_replica, read_only=True) for _ in range(50)] == [False] * 50


def test_a_read_in_the_way_of_the_replica_is_repeated(two: Two, store: ConsensusStore) -> None:
    """A read whose rows the replica must remove meanwhile is ended by it, and repeated by `store.run`."""
    tries = []

    def work(uow: ConsensusUnitOfWork) -> list[str]:
        seen = contents(uow)
        tries.append(is_replica(uow))
        if len(tries) == 1:
            store.run(lambda other: other.artifacts.delete(spec_id=artifact_values()["spec_id"]))
            with two.primary.connect(uow.engine.url.database or "") as connection:
                connection.execute("VACUUM (FREEZE) consensus_artifacts")
            two.replica.catch_up()
        return seen + contents(uow)

    assert store.run(work, read_only=True) == []
    assert tries == [True, True]
    assert store.retrier.telemetry.totals.recovered == 1


def test_without_the_primary_nothing_is_answered(two: Two, store: ConsensusStore) -> None:
    """A replica alone cannot know whether its phase is over: while the primary is away, reads fail, as writes do."""
    assert store.run(is_replica, read_only=True)
    two.primary.stop()
    try:
        with pytest.raises(errors.DatabaseUnavailableError), store.unit_of_work(read_only=True):
            pass
    finally:
        two.primary.start()
    assert store.run(contents, read_only=True) == ["first"]


def test_a_reader_cannot_write(store: ConsensusStore) -> None:
    """A read-only unit of work says what it is, wherever it reads."""
    with pytest.raises(errors.ReadOnlyUnitOfWorkError), store.unit_of_work(read_only=True) as uow:
        uow.artifacts.add(**artifact_values())


def test_another_database_is_no_replica(two: Two, store: ConsensusStore, name: str) -> None:
    """A server that holds another database in the same epoch is refused at the first read, by a clear error."""
    other = f"{name}_other"
    with two.primary.connect() as connection:
        connection.execute(f"CREATE DATABASE {other}".encode())
    with ConsensusStore.open(two.primary.url(other)) as another:
        another.upgrade()
        assert another.run(lambda uow: uow.epoch) == store.run(lambda uow: uow.epoch)
    two.replica.catch_up()
    with open_on(two, name, read=two.replica.url(other)) as wrong:
        for _ in range(2):
            with pytest.raises(errors.ConfigurationError, match="READ_URL") as raised:
                wrong.run(contents, read_only=True)
        assert other not in str(raised.value)
        wrong.run(add("second"))


def test_closing_the_store_closes_its_connections_to_the_replica(two: Two, name: str) -> None:
    """After a store is closed the replica has none of its connections left."""
    count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
    with open_on(two, name) as store:
        store.upgrade()
        two.replica.catch_up()
        store.run(contents, read_only=True)
        assert two.replica.value(count) == 1
    two.replica.until(lambda: two.replica.value(count) == 0, "lose its reader")


@pytest.mark.parametrize("read", ["postgresql://user:secret@host/db", "other.db"])
def test_sqlite_has_no_replicas(tmp_path: Path, read: str) -> None:
    """A SQLite store with a READ_URL, of whatever kind, is refused when it is opened, without a password."""
    with pytest.raises(errors.ConfigurationError, match="READ_URL") as raised:
        ConsensusStore.open(tmp_path / "file.db", settings=Settings(read_url=read))
    assert "secret" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
