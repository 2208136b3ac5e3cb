"""Statistics: what is in force in a file and what it takes on the disk, read and not assumed."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine

from consensus_orm.databases.engine import checkout, driver, prepare
from consensus_orm.databases.opening import collect, create
from consensus_orm.settings import Settings
from tests.support.bloated import make_bloated

SETTINGS = Settings(busy_timeout="0.7", synchronous="FULL", cache_size=-1234, mmap_size=4096 * 16)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create(tmp_path / "store.db", SETTINGS)
    yield made
    made.dispose()


def test_what_is_in_force_is_reported(engine: Engine, tmp_path: Path) -> None:
    """Every pragma asked for is read back, with bytes on disk as the file system has them."""
    prepare(engine)
    with checkout(engine) as pooled:
        driver(pooled).execute("CREATE TABLE t (a)")
    found = collect(engine)
    assert (found.journal_mode, found.auto_vacuum, found.synchronous) == ("wal", "INCREMENTAL", "FULL")
    assert (found.busy_timeout, found.cache_size, found.mmap_size) == (700, -1234, 65536)
    assert (found.foreign_keys, found.temp_store, found.encoding) == (True, "MEMORY", "UTF-8")
    assert (found.page_size, found.user_version, found.wal_autocheckpoint) == (4096, 0, 1000)
    assert found.disk.database == (tmp_path / "store.db").stat().st_size
    assert found.disk.wal == (tmp_path / "store.db-wal").stat().st_size > 0
    assert found.disk.total == found.disk.database + found.disk.wal + found.disk.shm
    assert found.notes == ()
    with pytest.raises(ValidationError, match="frozen"):
        found.journal_mode = "off"  # type: ignore[misc]


def test_it_is_what_is_in_force_and_not_what_was_asked_for(engine: Engine) -> None:
    """A pragma changed behind our back is reported as it is."""
    with checkout(engine) as pooled:
        driver(pooled).execute("PRAGMA foreign_keys = OFF")
        driver(pooled).execute("PRAGMA synchronous = OFF")
    found = collect(engine)
    assert (found.foreign_keys, found.synchronous) == (False, "OFF")


def test_a_legacy_file_is_described_and_not_touched(tmp_path: Path) -> None:
    """A bloated legacy file is told by its notes, and is byte for byte what it was."""
    path = make_bloated(tmp_path / "legacy.db", pages=200, auto_vacuum=0, journal_mode="delete")
    before = hashlib.sha256(path.read_bytes()).digest()
    engine = create(path, SETTINGS)
    found = collect(engine)
    engine.dispose()
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert [each.name for each in tmp_path.iterdir()] == ["legacy.db"]
    assert (found.journal_mode, found.auto_vacuum) == ("delete", "NONE")
    mode, shrink, free = found.notes
    assert "consensus-orm upgrade" in mode
    assert "vacuum --full" in shrink
    assert "bytes are free" in free


def test_who_keeps_the_file_from_wal_is_named(tmp_path: Path) -> None:
    """The reason for another mode than WAL is given, before and after prepare found it."""
    path = make_bloated(tmp_path / "legacy.db", pages=20, auto_vacuum=2, journal_mode="delete")
    engine = create(path, SETTINGS)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM t").fetchall()
        assert "another connection in this process has the file open" in collect(engine).notes[0]
        prepare(engine)
    assert "another connection in this process has the file open" in collect(engine).notes[0]
    engine.dispose()


def test_the_use_of_the_pool_is_counted(tmp_path: Path) -> None:
    """Lent, open and waiting are those of this moment; the connection that asks is not counted as lent."""
    engine = create(tmp_path / "store.db", Settings(pool_size=2))
    with checkout(engine):
        use = collect(engine).pool
        assert (use.size, use.open, use.lent, use.waiting) == (2, 2, 1, 0)
        with checkout(engine):
            thread = threading.Thread(target=lambda: collect(engine))
            thread.start()
            time.sleep(0.05)
        thread.join()
    assert collect(engine).pool.lent == 0
    engine.dispose()


def test_memory_has_statistics_too() -> None:
    """A database in memory is described, with nothing on disk and nothing to complain of."""
    engine = create(":memory:", SETTINGS)
    found = collect(engine)
    engine.dispose()
    assert (found.path, found.journal_mode, found.disk.total, found.notes) == (None, "memory", 0, ())
