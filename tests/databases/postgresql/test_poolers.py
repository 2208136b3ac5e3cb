"""Through a real pgbouncer the package does what it does without, and leaves nothing to the other clients."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase
from consensus_orm.databases.postgresql.fence import Entry
from consensus_orm.errors import ConfigurationError, DatabaseBusyError
from consensus_orm.settings import Settings
from tests.concurrency import clients
from tests.concurrency.databases import assert_sides_agree, assert_sound, in_phase, legacy, phase_of, query, settings
from tests.concurrency.files import bring
from tests.field import server as field
from tests.support import poolers, servers
from tests.support.poolers import Pooler, pooled

pytestmark = [pytest.mark.postgresql, pytest.mark.long]

PATIENT = Settings(retry_attempts=20, retry_budget=timedelta(seconds=60), chunk_rows=16, chunk_pause=timedelta(0))

HERE = "SELECT current_setting('search_path'), current_setting('lock_timeout')"


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not poolers.version():
        pytest.skip("NO PGBOUNCER: nothing was tried through a connection pooler (apt install pgbouncer)")


@pytest.fixture(params=["session", "transaction", "transaction, tracking"])
def mode(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """The pool_mode, and whether pgbouncer keeps track of prepared statements."""
    mode, _, tracking = request.param.partition(", ")
    if tracking and poolers.version() < poolers.TRACKING:
        found = ".".join(map(str, poolers.version()))
        pytest.skip(f"PGBOUNCER {found} keeps no track of prepared statements; 1.21 and later do")
    if poolers.version() < poolers.TRACKING:
        return mode, {}
    return mode, {"max_prepared_statements": 100 if tracking else 0}


@contextlib.contextmanager
def through(url: str, mode: tuple[str, dict[str, object]], **more: object) -> Iterator[tuple[Pooler, str]]:
    """A pooler in front of a database, and the URL through it."""
    with pooled(url, mode[0], **mode[1], **more) as pooler:
        yield pooler, pooler.url(url)


def add(store: ConsensusStore, spec: str) -> None:
    store.run(lambda uow: clients.add_one(uow, spec))


def delete(store: ConsensusStore, spec: str) -> int:
    return store.run(lambda uow: uow.artifacts.delete(spec_id=spec))


def left_behind(url: str) -> list[tuple[Any, ...]]:
    """What a connection to the server has that outlived the transaction of its client."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        prepared = connection.execute("SELECT name, statement FROM pg_prepared_statements").fetchall()
        listening = connection.execute("SELECT pg_listening_channels()").fetchall()
        temporary = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()"
        ).fetchall()
        locks = connection.execute("SELECT * FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
        changed = connection.execute(
            "SELECT name, setting FROM pg_settings WHERE source = 'session' AND setting <> reset_val"
            " AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'TimeZone')"
        ).fetchall()
        return [*prepared, *listening, *temporary, *locks.fetchall(), *changed]


def test_concurrent_clients_do_not_meet_in_the_pooler(mode: tuple[str, dict[str, object]]) -> None:
    """Many threads of two stores add and delete on few connections: each call does its own work, on both sides.

    A prepared statement of one client that runs as another's would delete rows of the other table.
    """
    with in_phase(Phase.DUAL_WRITE, field_carried) as url, through(url, mode, default_pool_size=12) as (_, there):
        before = query(url, "SELECT count(*) FROM consensus_artifacts")[0][0]

        def write(store: ConsensusStore, name: str) -> None:
            for n in range(10):
                spec = f"{name}-{n}"
                add(store, spec)
                with store.unit_of_work(read_only=True) as uow:
                    assert [artifact.spec_id for artifact in uow.artifacts.list(spec_id=spec)] == [spec]
                if n % 2:
                    assert delete(store, spec) == 1
                    assert query(url, f"SELECT count(*) FROM consensus_synthesis WHERE spec_id = '{spec}'") == [(1,)]

        with (
            ConsensusStore.open(there, settings=PATIENT) as one,
            ConsensusStore.open(there, settings=PATIENT) as other,
            ThreadPoolExecutor(8) as pool,
        ):
            for done in [pool.submit(write, (one, other)[n % 2], f"CLIENT-{n}") for n in range(8)]:
                done.result()
        assert query(url, "SELECT count(*) FROM consensus_artifacts") == [(before + 8 * 5,)]
        assert_sides_agree(url)
        assert query(url, "SELECT count(*) FROM consensus_orm_mismatches") == [(0,)]


def field_carried(url: str) -> None:
    """Carry what was there before the dual write."""
    with ConsensusStore.open(url, settings=PATIENT) as store:
        store.migration.backfill()


def test_nothing_of_ours_is_left_to_other_clients() -> None:
    """After reads, writes, sessions, and steps, a connection to the server is as a new one would be."""
    with in_phase(Phase.EXPAND) as url, through(url, ("transaction", {}), default_pool_size=1) as (_, there):
        with psycopg.connect(there, autocommit=True) as other:
            before = other.execute(HERE).fetchone()
        with ConsensusStore.open(there, settings=PATIENT.model_copy(update={"pool_size": 1})) as store:
            store.migration.advance(Phase.DUAL_WRITE, soak=False)
            store.migration.backfill()
            for n in range(12):  # psycopg prepares a statement that it sends for the sixth time
                add(store, f"S-{n}")
                store.run(lambda uow: uow.artifacts.count(), read_only=True)
            with store.unit_of_work() as uow:
                uow.session.connection().exec_driver_sql("SELECT 1")
            store.maintenance.stats()
        assert left_behind(there) == []
        with psycopg.connect(there, autocommit=True) as other:
            assert other.execute(HERE).fetchone() == before


def test_settings_of_other_clients_do_not_matter() -> None:
    """A client that left its search path and its formats on the connection does not change what the package does."""
    with (
        in_phase(Phase.DUAL_WRITE, field_carried) as url,
        through(url, ("transaction", {}), default_pool_size=1) as (
            _,
            there,
        ),
    ):
        with psycopg.connect(there, autocommit=True) as other:
            other.execute("CREATE TEMPORARY TABLE consensus_artifacts (id int)")
            other.execute("SET search_path = pg_temp, nowhere")
            other.execute("SET bytea_output = escape")
            other.execute("SET lock_timeout = 1")
        with ConsensusStore.open(there, settings=PATIENT.model_copy(update={"pool_size": 1})) as store:
            store.run(lambda uow: clients.add_one(uow, "MINE"))
            with store.unit_of_work(read_only=True) as uow:
                assert len(uow.artifacts.list(spec_id="MINE")) == 1
                assert uow._rows("SELECT current_setting('lock_timeout')") == [("5s",)]
        assert query(url, "SELECT count(*) FROM public.consensus_artifacts WHERE spec_id = 'MINE'") == [(1,)]


def test_a_migration_goes_all_the_way_and_back(mode: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    """Beside a writer, through the pooler from EXPAND to CONTRACT and back to EXPAND; no row differs at the end."""
    with servers.database() as url:
        field.build_legacy(url)
        expected = legacy(url)
        with through(url, mode) as (_, there), ConsensusStore.open(there, settings=settings(tmp_path)) as store:
            store.upgrade()
            for phase in list(Phase)[1:]:
                bring(store, phase)
                assert phase_of(url) is phase
                add(store, f"IN-{phase.name}")
                assert delete(store, f"IN-{phase.name}") == 1
                with store.unit_of_work() as uow:
                    uow.syntheses.delete(spec_id=f"IN-{phase.name}")
            assert_sound(url)
            store.migration.rollback(Phase.EXPAND)
        assert legacy(url) == expected
        assert left_behind(url) == []


def test_a_rehearsal_runs_through_the_pooler(tmp_path: Path) -> None:
    """The copy is made beside the database, reached through the pooler, and removed."""
    with in_phase(Phase.EXPAND) as url, through(url, ("transaction", {})) as (_, there):
        with ConsensusStore.open(there, settings=settings(tmp_path)) as store:
            report = store.migration.rehearse()
        assert report.passed
        ours = "starts_with(datname, left(current_database(), 40) || '_rehearsal')"
        assert query(url, f"SELECT datname FROM pg_database WHERE {ours}") == []


def test_the_fence_holds(mode: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    """A flip waits for a unit of work that began before, and what that wrote is of the phase before."""
    with in_phase(Phase.EXPAND) as url, through(url, mode) as (_, there):
        flipped = threading.Event()

        def flip() -> None:
            with ConsensusStore.open(there, settings=PATIENT) as store:
                store.migration.advance(Phase.DUAL_WRITE, soak=False)
            flipped.set()

        with ConsensusStore.open(there, settings=PATIENT) as store:
            with store.unit_of_work() as uow:
                clients.add_one(uow, "BEFORE")
                flipper = threading.Thread(target=flip)
                flipper.start()
                assert not flipped.wait(1)
                assert uow.phase is Phase.EXPAND
            flipper.join(30)
            assert flipped.is_set()
            with store.unit_of_work() as uow:
                assert uow.phase is Phase.DUAL_WRITE
                clients.add_one(uow, "AFTER")
        assert query(url, "SELECT spec_id FROM consensus_runs WHERE spec_id IN ('BEFORE', 'AFTER')") == [("AFTER",)]


def test_a_commit_whose_answer_is_lost_is_asked_for_through_the_pooler(mode: tuple[str, dict[str, object]]) -> None:
    """The server says that it was committed, so that the work is not repeated."""
    with (
        in_phase(Phase.DUAL_WRITE, field_carried) as url,
        through(url, mode) as (_, there),
        ConsensusStore.open(there, settings=PATIENT) as store,
    ):
        tries = []

        def work(uow: ConsensusUnitOfWork) -> None:
            tries.append(uow)
            clients.lose_the_answer(uow)
            clients.add_one(uow, "ONCE")

        store.run(work)
        assert len(tries) == 1
        assert query(url, "SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'ONCE'") == [(1,)]


SLOW_COMMIT = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON consensus_artifacts DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  EXECUTE FUNCTION slowly();
"""


def test_a_commit_that_the_server_ends_is_repeated() -> None:
    """Its process is ended within the commit, the pooler says so; the server says that it was aborted."""
    with (
        in_phase(Phase.DUAL_WRITE, field_carried) as url,
        through(url, ("transaction", {})) as (_, there),
        ConsensusStore.open(there, settings=PATIENT) as store,
        psycopg.connect(url, autocommit=True) as admin,
    ):
        admin.execute(SLOW_COMMIT.encode())
        tries = []

        def end_it() -> None:
            committing = "datname = current_database() AND query = 'COMMIT' AND state = 'active'"
            ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {committing}"
            servers.until(lambda: admin.execute(ended.encode()).fetchall() == [(True,)], "commit", "a client")
            admin.execute("ALTER TABLE consensus_artifacts DISABLE TRIGGER slowly")

        def work(uow: ConsensusUnitOfWork) -> None:
            tries.append(uow)
            clients.add_one(uow, "ONCE")

        ender = threading.Thread(target=end_it)
        ender.start()
        store.run(work)
        ender.join()
        assert len(tries) == 2
        assert query(url, "SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'ONCE'") == [(1,)]
        assert_sides_agree(url)


def test_a_pooler_of_statements_is_refused() -> None:
    """It keeps no transaction together, so nothing is begun through it, and nothing is tried again."""
    with in_phase(Phase.EXPAND) as url, through(url, ("statement", {})) as (_, there):
        with pytest.raises(ConfigurationError, match="statement pooling") as caught:
            ConsensusStore.open(there, settings=PATIENT)
        assert "pool_mode" in caught.value.hint


def test_a_server_that_crashes_is_not_taken_for_a_pooler_of_statements() -> None:
    """A pooler whose server is away is tried again: once it is back the store is opened."""
    with servers.Server() as server:
        field.build_legacy(server.url())
        with through(server.url(), ("transaction", {})) as (_, there):
            with ConsensusStore.open(there, settings=PATIENT) as store:
                store.upgrade()
                server.restart("immediate")
                store.run(lambda uow: clients.add_one(uow, "AFTER"))
            assert server.value("SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'AFTER'") == 1


def test_prepare_threshold_says_what_a_url_of_other_drivers_says(tmp_path: Path) -> None:
    """0 in the URL prepares nothing, though no pooler was recognised; a number does; anything else is refused."""
    with in_phase(Phase.DUAL_WRITE, field_carried) as url:

        def prepared(more: str) -> tuple[Entry, int]:
            with ConsensusStore.open(f"{url}&prepare_threshold={more}", settings=PATIENT) as store:
                for n in range(8):
                    add(store, f"{more}-{n}")
                with store.unit_of_work() as uow:
                    count = uow._rows("SELECT count(*) FROM pg_prepared_statements")[0][0]
                return store.engine.pool.source.entry, count  # type: ignore[attr-defined]

        assert prepared("0") == prepared("none") == (Entry.TEXT, 0)
        entry, count = prepared("2")
        assert entry is Entry.PREPARED
        assert count > 1
        with pytest.raises(ConfigurationError, match="prepare_threshold"):
            prepared("often")


def test_without_a_pooler_statements_stay_prepared() -> None:
    """What reaches the server itself is not slowed down by what a pooler asks for."""
    with in_phase(Phase.DUAL_WRITE, field_carried) as url, ConsensusStore.open(url, settings=PATIENT) as store:
        for n in range(8):
            add(store, f"S-{n}")
        with store.unit_of_work() as uow:
            assert uow._rows("SELECT count(*) FROM pg_prepared_statements")[0][0] > 1
        source: Any = store.engine.pool.source  # type: ignore[attr-defined]
        assert source.transaction_settings == ""


def test_options_of_the_url_are_set_although_a_pooler_ignores_them() -> None:
    """A search path in the URL finds the tables, also where pgbouncer is told to ignore startup parameters."""
    with servers.database() as url:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE SCHEMA elsewhere; ALTER SCHEMA public RENAME TO away")
        options = "&options=-csearch_path%3Delsewhere"
        with through(url, ("transaction", {}), ignore_startup_parameters="options") as (_, there):
            with ConsensusStore.open(there + options, settings=PATIENT) as store:
                store.upgrade()
                key = store.run(lambda uow: clients.add_one(uow, "THERE"))
            assert query(url, "SELECT id FROM elsewhere.agent_outputs") == [(key,)]


def test_a_flip_that_waits_too_long_gives_up_through_the_pooler(tmp_path: Path) -> None:
    """Its patience is that of its own transaction, not what another client left."""
    hasty = PATIENT.model_copy(update={"retry_attempts": 2, "busy_timeout": timedelta(seconds=1)})
    with (
        in_phase(Phase.EXPAND) as url,
        through(url, ("transaction", {})) as (_, there),
        ConsensusStore.open(there, settings=hasty) as store,
        store.unit_of_work() as uow,
    ):
        clients.add_one(uow, "HOLDS")
        with ConsensusStore.open(there, settings=hasty) as other, pytest.raises(DatabaseBusyError):
            other.migration.advance(Phase.DUAL_WRITE, soak=False)
