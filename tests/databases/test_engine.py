"""The engine on a file: who waits for the write lock and how long, and what a lost file or connection does."""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from consensus_orm import errors
from consensus_orm.databases import engine as engine_module
from consensus_orm.databases.engine import checkout, driver, pool_of, prepare, source_of
from consensus_orm.databases.opening import create
from consensus_orm.databases.sqlite import connection as connection_module
from consensus_orm.settings import Settings
from tests.conftest import Open
from tests.databases.connections import (
    HOLD_LOCK,
    QUICK,
    in_child,
    legacy,
    open_files,
    pragma,
    process,
    rows,
    running,
    wait_until,
    write,
)
from tests.field import builders
from tests.support import oracle
from tests.support.timing import assert_typical

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


# Waiting for the write lock


@pytest.mark.long
def test_another_processs_lock_is_waited_for_and_no_longer_than_asked(engine: Engine, path: Path) -> None:
    """A lock held by another process gives DatabaseBusyError after the busy timeout, which stays in force."""

    def measure() -> float:
        started = time.monotonic()
        with pytest.raises(errors.DatabaseBusyError, match=r"another process held the lock for 0\.3 s"):
            write(engine, "INSERT INTO t VALUES (1)")
        waited = time.monotonic() - started
        assert waited >= 0.3
        return waited

    with process(HOLD_LOCK, path):
        assert_typical(measure, below=0.6)
        assert pragma(engine, "busy_timeout") == 300
    write(engine, "INSERT INTO t VALUES (2)")
    assert rows(engine) == [2]


@pytest.mark.long
def test_a_lock_given_back_is_noticed_within_milliseconds(engine: Engine, path: Path) -> None:
    """Half a second into a wait SQLite would sleep 100 ms; the lock is taken sooner than that."""
    engine.dispose()
    patient = create(path, Settings())

    def measure() -> float:
        freed: list[float] = []
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")

        def free() -> None:
            time.sleep(0.43)
            freed.append(time.monotonic())
            other.rollback()

        thread = running(free)
        write(patient, "INSERT INTO t VALUES (1)")
        waited = time.monotonic() - freed[0]
        thread.join()
        other.close()
        return waited

    assert_typical(measure, below=0.02)
    patient.dispose()


@pytest.mark.long
def test_a_thread_in_its_own_way_is_told(engine: Engine) -> None:
    """A second writing unit of work on one thread ends in bounded time, and says that this was the reason."""
    said: list[str] = []

    def elsewhere() -> None:
        try:
            write(engine, "INSERT INTO t VALUES (1)")
        except errors.DatabaseBusyError as error:
            said.append(str(error))

    with checkout(engine) as pooled:
        driver(pooled).begin(write=True)

        def measure() -> float:
            started = time.monotonic()
            with pytest.raises(errors.DatabaseBusyError, match="this thread already has"):
                write(engine, "INSERT INTO t VALUES (1)")
            return time.monotonic() - started

        assert_typical(measure, below=0.6)
        running(elsewhere).join()
    assert "other threads" in said[0]
    write(engine, "INSERT INTO t VALUES (2)")
    assert rows(engine) == [2]


def end_by_commit(pooled: object) -> None:
    driver(pooled).commit()  # type: ignore[arg-type]


def end_by_rollback(pooled: object) -> None:
    driver(pooled).rollback()  # type: ignore[arg-type]


def end_by_close(pooled: object) -> None:
    driver(pooled).close()  # type: ignore[arg-type]


def end_by_invalidation(pooled: object) -> None:
    pooled.invalidate()  # type: ignore[attr-defined]


def end_by_return(pooled: object) -> None:
    pooled.close()  # type: ignore[attr-defined]


def end_by_sql(pooled: object) -> None:
    driver(pooled).execute("COMMIT")  # type: ignore[arg-type]
    pooled.close()  # type: ignore[attr-defined]


def end_by_forgetting(pooled: object) -> None:
    """The caller drops it."""


def end_by_detaching(pooled: object) -> None:
    pooled.detach()  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.parametrize(
    "end",
    [
        end_by_commit,
        end_by_rollback,
        end_by_close,
        end_by_invalidation,
        end_by_return,
        end_by_sql,
        end_by_forgetting,
        end_by_detaching,
    ],
)
def test_the_turn_ends_however_the_transaction_ends(engine: Engine, end: Callable[[object], None]) -> None:
    """After any end of a writing transaction, the next writer does not wait."""

    def measure() -> float:
        pooled = engine.raw_connection()
        driver(pooled).begin(write=True)
        end(pooled)
        if end in (end_by_forgetting, end_by_detaching):
            del pooled
            gc.collect()
        started = time.monotonic()
        write(engine, "INSERT INTO t VALUES (1)")
        return time.monotonic() - started

    assert_typical(measure, below=0.1)


def test_a_refused_commit_keeps_the_turn(path: Path, open_engine: Open) -> None:
    """In rollback mode a reader can refuse a commit; the transaction is still open and can be tried again."""
    engine = open_engine(legacy(path), QUICK)
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM t").fetchall()
    with checkout(engine) as pooled:
        connection = driver(pooled)
        connection.begin(write=True)
        connection.execute("INSERT INTO t VALUES ('mine')")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            connection.commit()
        assert not source_of(engine).writers.acquire(0)
        reader.close()
        connection.commit()
    assert rows(engine) == ["legacy", "mine"]


@pytest.mark.long
def test_a_hundred_threads_on_ten_connections_are_all_served_alike(engine: Engine) -> None:
    """Nobody starves: of 100 threads that write all the time, each gets its share.

    Measured on idle cores: the longest wait is 20 ms. With SQLAlchemy's own queue one thread waited all the time.
    """
    patient = create(engine.url, Settings())
    stop, served = threading.Event(), [0] * 100

    def run(number: int) -> None:
        while not stop.is_set():
            write(patient, "INSERT INTO t VALUES (1)")
            served[number] += 1

    threads = [running(lambda number=number: run(number)) for number in range(100)]  # type: ignore[misc]
    wait_until(lambda: min(served) > 0)  # those that start late have not been overtaken
    before = list(served)
    wait_until(lambda: max(served) > max(before) + 20)
    since = [now - then for now, then in zip(served, before, strict=True)]
    stop.set()
    for thread in threads:
        thread.join()
    assert len(rows(patient)) == sum(served)
    patient.dispose()
    assert min(since) > 0.5 * max(since)


@pytest.mark.long
def test_no_connection_in_time_is_an_error_that_says_what_to_do(engine: Engine) -> None:
    """The eleventh connection is refused after the pool timeout with a hint, and comes when one is free."""
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(checkout(engine))

        def measure() -> float:
            started = time.monotonic()
            with (
                pytest.raises(errors.PoolExhaustedError, match="CONSENSUS_ORM_POOL_SIZE") as caught,
                checkout(engine),
            ):
                pass
            assert caught.value.facts["pool_size"] == 10
            waited = time.monotonic() - started
            assert waited >= 0.3
            return waited

        assert_typical(measure, below=0.6)
    assert rows(engine) == []


def test_read_only_transactions_cannot_write_and_the_next_can(engine: Engine) -> None:
    """SQLite refuses a write in a read-only transaction; a Session on the same connection writes again."""
    with checkout(engine) as pooled:
        driver(pooled).begin(write=False)
        with pytest.raises(errors.ReadOnlyDatabaseError), engine_module.translated(engine):
            driver(pooled).execute("INSERT INTO t VALUES (1)")
    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO t VALUES (2)"))
    assert rows(engine) == [2]


@pytest.mark.parametrize("size", [1, 2])
def test_a_connection_that_read_is_not_turned_round_to_write(path: Path, open_engine: Open, size: int) -> None:
    """Reads and writes by turns keep a connection each where there are two: SQLite prepares no statement again."""
    engine = open_engine(path, QUICK.model_copy(update={"pool_size": size}))
    used = []
    for writing in (True, False) * 3:
        pooled = pool_of(engine).borrow(write=writing)
        driver(pooled).begin(write=writing)
        used.append(driver(pooled))
        pooled.close()
    assert len(set(used[0::2])) == len(set(used[1::2])) == 1
    assert len(set(used)) == size


def test_all_writers_use_one_connection(engine: Engine) -> None:
    """Whose turn it is gets the connection of the writer before, whose cache is warm, however many threads wait."""
    used = set()

    def write_five_times() -> None:
        for _ in range(5):
            pooled = pool_of(engine).borrow(write=True)
            driver(pooled).begin(write=True)
            used.add(driver(pooled))
            time.sleep(0.001)
            driver(pooled).commit()
            pooled.close()

    for thread in [running(write_five_times) for _ in range(8)]:
        thread.join()
    assert len(used) == 1


def test_a_connection_knows_whether_others_wrote(engine: Engine, path: Path) -> None:
    """A write of another program or another thread is noticed once; those of its own are not."""

    def asked() -> bool:
        pooled = pool_of(engine).borrow(write=True)
        try:
            driver(pooled).begin(write=True)
            driver(pooled).execute("INSERT INTO t VALUES (1)")
            found = driver(pooled).others_wrote()
            driver(pooled).commit()
        finally:
            pooled.close()
        return found

    assert [asked(), asked(), asked()] == [False, False, False]
    with builders.writing(path) as other:
        other.execute("INSERT INTO t VALUES (2)")
    assert [asked(), asked()] == [True, False]
    running(lambda: write(engine, "INSERT INTO t VALUES (3)")).join()
    assert [asked(), asked()] == [True, False]


def test_sessions_take_their_turn(engine: Engine) -> None:
    """A Session begins with the write lock, in the same queue as units of work."""
    with Session(engine) as session, session.begin():
        session.execute(text("SELECT 1"))
        with pytest.raises(errors.DatabaseBusyError, match="this thread"):
            write(engine, "INSERT INTO t VALUES (1)")
    write(engine, "INSERT INTO t VALUES (2)")


# Health


def test_a_replaced_file_is_noticed(engine: Engine, path: Path, tmp_path: Path, open_engine: Open) -> None:
    """After another file was moved to its path, the pool answers from neither; an engine made after that does."""
    write(engine, "INSERT INTO t VALUES ('first')")
    other = legacy(tmp_path / "other.db")
    assert rows(engine) == ["first"]
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    other.replace(path)
    with pytest.raises(errors.StorageError, match="was replaced by another file while it was in use"):
        rows(engine)
    assert pool_of(engine).checkedout() == 0
    assert rows(open_engine(path, QUICK)) == ["legacy"]


def test_a_removed_file_is_not_begun_anew(engine: Engine, path: Path) -> None:
    """A file that goes away is an error that says so, never an empty database."""
    path.unlink()
    with pytest.raises(errors.StorageError, match="was removed while it was in use"):
        rows(engine)
    assert not path.exists()
    assert pool_of(engine).checkedout() == 0


def test_a_closed_connection_is_replaced(engine: Engine) -> None:
    """A connection that somebody closed behind the pool's back is not lent again."""
    with checkout(engine) as pooled:
        driver(pooled).close()
    assert rows(engine) == []


def test_a_dead_connection_is_replaced(engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose file handles are gone is found out after it was idle, and replaced."""
    write(engine, "INSERT INTO t VALUES (1)")
    monkeypatch.setattr(connection_module, "IDLE", -1.0)
    with Path(os.devnull).open("w") as nothing:
        for handle in open_files(path):
            if not os.readlink(f"/proc/self/fd/{handle}").endswith("-shm"):  # noqa: PTH115
                os.dup2(nothing.fileno(), handle)
    insert = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO t VALUES (2)'); c.commit()"
    subprocess.run([sys.executable, "-c", insert, path], check=True)  # so that no page kept in memory will do
    assert rows(engine) == [1, 2]


def test_disposing_leaves_no_handles(engine: Engine, path: Path) -> None:
    """Neither idle connections nor one that was lent at the time keep the file open."""
    with checkout(engine), checkout(engine):
        pass
    with checkout(engine) as pooled:
        driver(pooled).execute("SELECT * FROM t").fetchall()
        engine.dispose()
        assert open_files(path)
    assert open_files(path) == []
    assert rows(engine) == []


# In memory


def test_memory_is_one_database_for_all_threads_and_across_forks(open_engine: Open) -> None:
    """Threads share the one database in memory, a child has a copy, and the parent's stays."""
    engine = open_engine(":memory:", QUICK)
    assert prepare(engine).mode == "memory"
    write(engine, "CREATE TABLE t (a)")
    threads = [running(lambda: write(engine, "INSERT INTO t VALUES (1)")) for _ in range(20)]
    for thread in threads:
        thread.join()
    assert in_child(lambda: len(rows(engine))) == "20"
    assert len(rows(engine)) == 20


def test_the_pool_says_who_waits(engine: Engine) -> None:
    """The pool counts the threads that wait for a connection."""
    pool = pool_of(engine)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(checkout(engine))
        thread = running(lambda: rows(engine))
        while not pool.waiting:
            time.sleep(0.001)
    thread.join()
    assert pool.waiting == 0


@pytest.mark.long
def test_a_place_lost_with_an_interrupted_thread_is_replaced(path: Path, open_engine: Callable[..., Engine]) -> None:
    """A thread that is interrupted with the only place of a pool in hand costs a connection, and blocks no thread."""
    engine = open_engine(path, QUICK.model_copy(update={"pool_size": 1}))
    write(engine, "CREATE TABLE t (a)")
    pool_of(engine)._writers.clear()
    write(engine, "INSERT INTO t VALUES (1)")
    assert rows(engine) == [1]
    assert pool_of(engine).checkedout() == 0


def test_a_legacy_file_becomes_wal(tmp_path: Path, open_engine: Open) -> None:
    """A legacy file is prepared with its rows and user_version as they were."""
    legacy = tmp_path / "legacy.db"
    builders.build_legacy(legacy)
    before = oracle.rows(legacy, "consensus_artifacts")
    engine = open_engine(legacy, QUICK)
    assert prepare(engine).mode == "wal"
    assert oracle.rows(legacy, "consensus_artifacts") == before
    assert pragma(engine, "user_version") == 0
