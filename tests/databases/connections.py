"""What tests of engines share: files and processes that hold them, and writers."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Engine

from consensus_orm.databases.engine import checkout, driver
from consensus_orm.settings import Settings

QUICK = Settings(busy_timeout="0.3", pool_timeout="0.3")
HOLD_OPEN = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM t').fetchall()"
HOLD_LOCK = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE')"


def write(engine: Engine, statement: str) -> None:
    with checkout(engine) as pooled:
        connection = driver(pooled)
        connection.begin(write=True)
        connection.execute(statement)
        connection.commit()


def rows(engine: Engine) -> list[object]:
    with checkout(engine) as pooled:
        return [row[0] for row in driver(pooled).execute("SELECT a FROM t ORDER BY rowid").fetchall()]


def pragma(engine: Engine, name: str) -> object:
    with checkout(engine) as pooled:
        return driver(pooled).execute(f"PRAGMA {name}").fetchone()[0]


def legacy(path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES ('legacy')")
        connection.commit()
    return path


def open_files(path: Path) -> list[int]:
    """The numbers of this process's handles of a database and of the files beside it."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(str(path)):
                found.append(int(link.name))
    return found


@contextlib.contextmanager
def process(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has run `code` and then waits to be let go."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('ready', flush=True); sys.stdin.readline()", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
        if child.poll() is None:
            child.communicate("\n")


def in_child(work: Callable[[], object]) -> str:
    """What `work` gives in a forked child, as text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def running(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
