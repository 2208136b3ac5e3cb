"""Forks: a child never touches a transaction of its parent, and loses nothing of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine

from consensus_orm import errors
from consensus_orm.databases.engine import checkout, driver, prepare
from tests.conftest import Open
from tests.databases.connections import QUICK, in_child, legacy, pragma, rows, running, write

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def test_a_forked_child_keeps_its_rows_when_the_parent_closes(engine: Engine, path: Path) -> None:
    """What the child commits after its parent closed the store is there at the end.

    With an inherited connection, the parent's close deletes the write-ahead log under the child.
    """
    write(engine, "INSERT INTO t VALUES ('parent')")
    reading, writing = os.pipe()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        write(engine, "INSERT INTO t VALUES ('child')")
        os.write(tell, b"x")
        os.read(reading, 1)
        write(engine, "INSERT INTO t VALUES ('late')")
        os._exit(0)
    os.read(ready, 1)
    engine.dispose()
    os.write(writing, b"x")
    os.waitpid(pid, 0)
    assert rows(engine) == ["parent", "child", "late"]


@pytest.mark.long
def test_a_fork_waits_for_units_of_work_of_other_threads(engine: Engine) -> None:
    """A child forked while other threads write can write itself, and nothing is lost or done twice."""
    stop = threading.Event()
    written = [0] * 4

    def run(number: int) -> None:
        while not stop.is_set():
            write(engine, "INSERT INTO t VALUES (1)")
            written[number] += 1

    threads = [running(lambda number=number: run(number)) for number in range(4)]  # type: ignore[misc]
    answers = [in_child(lambda: write(engine, "INSERT INTO t VALUES (2)")) for _ in range(5)]
    stop.set()
    for thread in threads:
        thread.join()
    assert answers == ["None"] * 5
    assert rows(engine).count(2) == 5
    assert rows(engine).count(1) == sum(written)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_child_cannot_touch_a_transaction_of_its_parent(path: Path, open_engine: Open, mode: str) -> None:
    """Forked in the middle of a unit of work, the child neither commits nor undoes it, and is told why."""
    engine = open_engine(legacy(path), QUICK)
    if mode == "wal":
        prepare(engine)
    with checkout(engine) as pooled:
        connection = driver(pooled)
        connection.execute("PRAGMA cache_size = 1")  # so that rows reach the file before the commit
        connection.begin(write=True)
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 5000,)] * 100)

        def child() -> None:
            with contextlib.suppress(errors.StorageError):
                connection.commit()
            connection.rollback()
            connection.close()
            write(engine, "INSERT INTO t VALUES ('child')")

        assert "forked while a unit of work was open" in in_child(child)
        connection.commit()
    assert len(rows(engine)) == 101
    assert pragma(engine, "integrity_check") == "ok"
