"""Who still reads the frozen tables: the server counts, what this package reads itself is no read of others."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from sqlalchemy import make_url

from consensus_orm import ConsensusStore, Phase
from consensus_orm.databases.engine import source_of
from consensus_orm.databases.opening import catalog
from consensus_orm.databases.postgresql import own_reads
from consensus_orm.errors import BackupError
from consensus_orm.ledgers import reads
from consensus_orm.testing.plugin import QueryCounter
from tests.concurrency.processes import start
from tests.migration.steps import BASE, forward, refused
from tests.support import poolers, servers
from tests.support.databases import ServerDatabase, build_legacy

READ = "SELECT count(*) FROM consensus_artifacts"


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerDatabase]:
    """A legacy database, in which what is read a moment after the tables are frozen is known to be read since."""
    monkeypatch.setattr(reads, "GRACE", 0)
    monkeypatch.setattr(reads, "MARGIN", 0)
    with servers.database() as url:
        build_legacy(url)
        yield ServerDatabase(url)


@pytest.fixture
def store(database: ServerDatabase, tmp_path: Path) -> Iterator[ConsensusStore]:
    settings = BASE.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(database.where, settings=settings) as store:
        forward(store, Phase.NORMALIZED)
        settle(store)
        yield store


def flush(store: ConsensusStore) -> None:
    """Have every connection of a store report what it has read."""
    for connection in list(source_of(store.engine).connections):
        connection.execute("SELECT pg_stat_force_next_flush()")
        connection.execute("SELECT 1")


def settle(store: ConsensusStore) -> None:
    """Have all that was read so far reported by every connection, and looked at."""
    flush(store)
    assert store.migration.verify().clean
    store.migration.accept_dependencies([each.name for each in store.migration.dependencies()], reason="settled")


def seen(store: ConsensusStore) -> dict[str, int]:
    return {each.table: each.reads for each in store.migration.dependencies() if each.accepted is None}


def test_a_read_by_another_program_shuts_the_gate(store: ConsensusStore, database: ServerDatabase) -> None:
    """How many there were and when, in the status too; accepted with a reason, until the table is read again."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    assert seen(store) == {}
    database.rows_of(READ)
    (entry,) = (each for each in store.migration.status().dependencies if each.accepted is None)
    assert (entry.kind, entry.table) == ("reads", "consensus_artifacts")
    if database.scalar("SELECT current_setting('server_version_num')::int") >= 160000:
        assert entry.last_read is not None
        assert before < entry.last_read < datetime.now(UTC) + timedelta(seconds=1)
    refused(store, "other programs have read consensus_artifacts")
    store.migration.accept_dependencies(["consensus_artifacts"], reason="it was me")
    assert store.migration.status().gate == []
    database.rows_of(READ)
    refused(store, "other programs have read consensus_artifacts")


def test_reads_of_this_package_are_not_those_of_others(store: ConsensusStore, database: ServerDatabase) -> None:
    """Neither of verify, reconcile, status, backup nor a copy; nor those of the step to CONTRACT itself."""
    assert seen(store) == {}
    for _ in range(2):
        assert store.migration.verify().clean
        assert seen(store) == {}
        store.migration.reconcile()
        store.migration.status()
        assert seen(store) == {}
    store.migration.backup_before("a test")
    assert seen(store) == {}
    with ConsensusStore.open(database.where, settings=store.settings) as another:  # which knows nothing of that
        assert seen(another) == {}
    assert store.migration.advance() is Phase.CONTRACT


@pytest.mark.parametrize("what", ["backup", "verify", "verify that fails"])
def test_another_process_never_takes_them_for_reads_of_others(
    store: ConsensusStore, database: ServerDatabase, tmp_path: Path, what: str
) -> None:
    """It looks after the server has counted them, before the first one has looked or written again."""
    if what == "backup":
        store.maintenance.backup(tmp_path / "backup")
    elif what == "verify":
        store.migration.verify()
    else:
        with pytest.raises(ZeroDivisionError):
            store.migration.verify(progress=lambda *_: 1 / 0)
    flush(store)
    with ConsensusStore.open(database.where, settings=store.settings) as another:
        assert seen(another) == {}
        assert another.migration.advance(soak=False) is Phase.CONTRACT


@pytest.mark.skipif(poolers.version() == (), reason="pgbouncer is not installed")
def test_a_backup_through_a_pooler_needs_one_connection(
    store: ConsensusStore, database: ServerDatabase, tmp_path: Path
) -> None:
    """A second one, to tell what the first reads, is asked for when the first is free; nothing is lost by that."""
    with poolers.pooled(database.where, "transaction", default_pool_size=1, query_wait_timeout=5) as pooler:
        with ConsensusStore.open(pooler.url(database.where), settings=store.settings) as pooled:
            pooled.maintenance.backup(tmp_path / "backup")
        assert "query_wait_timeout" not in pooler.log
    assert seen(store) == {}


def test_a_read_that_was_refused_hides_none_of_others(
    store: ConsensusStore, database: ServerDatabase, tmp_path: Path
) -> None:
    """A backup tells of each read before it reads; where the server refuses that, the next read by another counts."""
    role = f"reader_{make_url(database.where).database}"
    database.script(
        f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};"
        f" GRANT UPDATE ON consensus_orm_reads TO {role}; REVOKE SELECT ON consensus_artifacts FROM {role}"
    )
    url = make_url(database.where).set(username=role).render_as_string()
    with ConsensusStore.open(url, settings=store.settings) as other, pytest.raises(BackupError):
        other.maintenance.backup(tmp_path / "backup")
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")
    database.rows_of(READ)
    assert set(seen(store)) == {"consensus_artifacts"}


def test_what_is_told_while_the_ledger_is_written_is_kept(store: ConsensusStore, database: ServerDatabase) -> None:
    """A process that keeps what it has seen takes back nothing that another one tells meanwhile."""
    own = "SELECT own FROM consensus_orm_reads WHERE table_name = 'consensus_artifacts'"
    before = database.scalar(own)
    with ThreadPoolExecutor(1) as pool:
        with store.migration._writing() as uow:
            reads.note(uow)
            told = pool.submit(own_reads.expect, store.engine, {"consensus_artifacts": 1})
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            servers.until(lambda: told.done() or database.scalar(waits) > 0, "wait", "the thread that tells")
        told.result(20)
    assert database.scalar(own) == before + 1


def be_killed_in_a_backup(_pipe: Connection, url: str, folder: Path) -> None:
    """Take a backup, and be killed once the legacy tables are copied."""
    with ConsensusStore.open(url, settings=BASE) as store:
        store.maintenance.backup(
            folder / "backup", progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL) if _has_read(folder) else None
        )


def _has_read(folder: Path) -> bool:
    """Whether the backup has come to the tables behind the legacy ones, in the order of their names."""
    return any(int(file.stem) > 3 for file in folder.rglob("*.copy"))


def test_reads_of_a_backup_that_is_killed_are_not_those_of_others(
    store: ConsensusStore, database: ServerDatabase, tmp_path: Path
) -> None:
    """The server counts them when it finds that the process is gone."""
    counted = "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname LIKE 'consensus_artifacts'"
    before = database.scalar(counted)
    child = start(be_killed_in_a_backup, database.where, tmp_path)
    child.join()
    assert child.was_killed
    servers.until(lambda: database.scalar(counted) > before, "count them", "the server")
    assert seen(store) == {}


def test_a_status_reads_no_frozen_table(store: ConsensusStore, database: ServerDatabase) -> None:
    """It writes nothing, so that it could not tell the next look what it has read."""
    flush(store)
    counted = "SELECT sum(seq_scan + idx_scan) FROM pg_stat_user_tables WHERE relname = 'consensus_artifacts'"
    rows = len(database.rows("consensus_artifacts"))
    before = database.scalar(counted)
    assert store.migration.status().pairs[0].legacy_rows == rows
    flush(store)
    assert database.scalar(counted) == before


def test_what_was_read_outlives_the_counters_of_the_server(store: ConsensusStore, database: ServerDatabase) -> None:
    """A look that wrote keeps it; counters that begin again at 0 count from there."""
    database.rows_of(READ)
    store.migration.verify()
    (count,) = seen(store).values()
    database.rows_of("SELECT pg_stat_reset()")
    assert seen(store) == {"consensus_artifacts": count}
    database.rows_of(READ)
    assert seen(store)["consensus_artifacts"] == count + 1


def test_reads_before_the_tables_are_frozen_do_not_count(store: ConsensusStore, database: ServerDatabase) -> None:
    """Also on the way back and forth again: each time the tables are frozen, the count begins anew."""
    database.rows_of(READ)
    assert seen(store)
    store.migration.rollback()
    database.rows_of(READ)
    forward(store, Phase.NORMALIZED)
    settle(store)
    assert seen(store) == {}


def test_the_counters_are_not_asked_where_every_program_reads(
    database: ServerDatabase, tmp_path: Path, query_counter: QueryCounter
) -> None:
    """Before the cutover nobody is to stop reading the legacy tables."""
    settings = BASE.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(database.where, settings=settings) as store:
        forward(store, Phase.DUAL_WRITE)
        with query_counter(store) as queries:
            store.migration.backfill()
            assert store.migration.verify().clean
    assert queries.mentioning("agent_outputs")
    assert not queries.mentioning("pg_stat")


def test_a_file_has_no_counters(tmp_path: Path) -> None:
    """SQLite counts nothing, and the status says so."""
    build_legacy(tmp_path / "file.db")
    with ConsensusStore.open(tmp_path / "file.db", settings=BASE) as store:
        assert not catalog("sqlite").counts_reads
        assert not store.migration.status().reads_counted
