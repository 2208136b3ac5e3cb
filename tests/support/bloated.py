"""Files and processes that the tests of vacuum and backup share."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

WRITER = """
import json, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
pause = float(sys.argv[2])
connection.execute("PRAGMA synchronous = NORMAL")
print("ready", flush=True)
waits, count, stop = [], 0, []
import threading
threading.Thread(target=lambda: (sys.stdin.readline(), stop.append(1)), daemon=True).start()
while not stop:
    started = time.monotonic()
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t (a) VALUES ('live')")
    connection.execute("INSERT INTO u (t) VALUES (last_insert_rowid())")
    connection.execute("COMMIT")
    waits.append(time.monotonic() - started)
    count += 1
    time.sleep(pause)
print(json.dumps({"count": count, "longest": max(waits)}), flush=True)
"""
"""A program that knows nothing of this package: it writes pairs of rows and measures how long each takes."""


def make_bloated(path: Path, *, pages: int, auto_vacuum: int, journal_mode: str) -> Path:
    """A file of about that many pages of which 13 or so are used, like the one in production."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA auto_vacuum = {auto_vacuum}")
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
        connection.execute("CREATE TABLE u (t INTEGER REFERENCES t (id))")
        connection.execute("BEGIN")
        # Five pages a row; the last rows stay, so that they have to move to the front of the file.
        rows = pages // 5
        connection.executemany("INSERT INTO t VALUES (?, zeroblob(20000))", [(n,) for n in range(rows)])
        connection.execute("DELETE FROM t WHERE id < ?", (rows - 2,))
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    # Else the first commit of whoever writes next waits 120 ms for all of this to reach the disk (measured).
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path


@contextlib.contextmanager
def writing(path: Path, *, pause: float = 0.0005) -> Iterator[dict[str, float]]:
    """Another process writing all the time; says afterwards how often, and its longest wait in seconds."""
    said: dict[str, float] = {}
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(pause)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        try:
            yield said
        finally:
            answer, _ = child.communicate("\n")
        said.update(json.loads(answer))
