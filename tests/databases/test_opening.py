"""Opening and preparing a file: it is private, in WAL where that can be had, and nothing else is touched."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import Engine

from consensus_orm import errors
from consensus_orm.databases import engine as engine_module
from consensus_orm.databases.engine import checkout, driver, prepare
from consensus_orm.databases.sqlite import write_ahead_log
from tests.conftest import Open
from tests.databases.connections import HOLD_OPEN, QUICK, legacy, open_files, pragma, process, rows, write

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


# Opening and preparing


def test_opening_writes_nothing(path: Path, open_engine: Open) -> None:
    """A legacy file that was opened and read is byte for byte what it was, with nothing beside it."""
    before = hashlib.sha256(legacy(path).read_bytes()).digest()
    engine = open_engine(path, QUICK)
    assert rows(engine) == ["legacy"]
    assert pragma(engine, "journal_mode") == "delete"
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_new_file_is_private_and_laid_out(engine: Engine, path: Path) -> None:
    """A new file has mode 0600, and WAL and incremental auto_vacuum stay with it; user_version is 0."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as other:
        found = [
            other.execute(f"PRAGMA {each}").fetchone()[0] for each in ("journal_mode", "auto_vacuum", "user_version")
        ]
    assert found == ["wal", 2, 0]


def test_pragmas_are_in_force_on_every_connection(engine: Engine) -> None:
    """Each connection of the pool has the pragmas asked for, before and after writing."""
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                connection = driver(stack.enter_context(checkout(engine)))
                names = ("busy_timeout", "foreign_keys", "synchronous", "cache_size", "temp_store")
                found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
                assert found == [300, 1, 1, QUICK.cache_size, 2]
        write(engine, "INSERT INTO t VALUES (1)")


def test_prepare_leaves_a_file_in_wal_alone(engine: Engine) -> None:
    """A second prepare, with connections of the same pool lent and idle, finds everything in force."""
    with checkout(engine), checkout(engine):
        assert prepare(engine) == write_ahead_log.Journal(mode="wal", auto_vacuum=2, refused=None)


def test_own_connections_do_not_stand_in_the_way_of_wal(path: Path, open_engine: Open) -> None:
    """A legacy file becomes WAL although other connections of the same pool have it open."""
    engine = open_engine(legacy(path), QUICK)
    with checkout(engine) as one, checkout(engine) as two:
        for each in (one, two):
            driver(each).execute("SELECT * FROM t").fetchall()
        found = prepare(engine)
    assert found == write_ahead_log.Journal(mode="wal", auto_vacuum=0, refused=None)
    assert rows(engine) == ["legacy"]


def test_another_process_with_the_file_open_keeps_its_mode(
    path: Path, open_engine: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """While an idle process has it open the file stays as it is, who it is is said, and the store works."""
    engine = open_engine(legacy(path), QUICK)
    with process(HOLD_OPEN, path) as other, caplog.at_level(logging.WARNING):
        found = prepare(engine)
        assert found.mode == "delete"
        assert str(other.pid) in str(found.refused)
        assert str(other.pid) in caplog.text
        write(engine, "INSERT INTO t VALUES ('mine')")
    assert rows(engine) == ["legacy", "mine"]
    assert prepare(engine).mode == "wal"


def test_another_connection_of_this_process_keeps_the_mode(path: Path, open_engine: Open) -> None:
    """A connection of this process that is not the pool's is somebody else."""
    engine = open_engine(legacy(path), QUICK)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM t").fetchall()
        assert prepare(engine).refused == "another connection in this process has the file open"
    assert prepare(engine).mode == "wal"


def test_a_new_file_is_laid_out_even_where_wal_cannot_be_had(path: Path, open_engine: Open) -> None:
    """auto_vacuum is set on an empty file that somebody else has open, for all connections."""
    engine = open_engine(path, QUICK)
    path.touch()
    with process(HOLD_OPEN.replace("SELECT * FROM t", "SELECT * FROM sqlite_master"), path):
        found = prepare(engine)
    assert (found.mode, found.auto_vacuum) == ("delete", 2)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (a)")
        assert other.execute("PRAGMA auto_vacuum").fetchone() == (2,)


@pytest.fixture
def without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite on its dot-file VFS, which like a network file system has no shared memory."""
    real = sqlite3.connect

    def connect(database: object, **options: object) -> object:
        return real(f"file:{database}?vfs=unix-dotfile", **options | {"uri": True})  # type: ignore[call-overload]

    monkeypatch.setattr(sqlite3, "connect", connect)


@pytest.mark.usefixtures("without_shared_memory")
def test_without_shared_memory_the_store_works_in_the_mode_found(path: Path, open_engine: Open) -> None:
    """Where SQLite has no shared memory, prepare says so, leaves nothing behind, and writing works."""
    engine = open_engine(path, QUICK)
    found = prepare(engine)
    assert (found.mode, found.auto_vacuum) == ("delete", 2)
    assert found.refused == "SQLite cannot use it here"
    write(engine, "CREATE TABLE t (a)")
    write(engine, "INSERT INTO t VALUES (1)")
    assert rows(engine) == [1]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p"])
def test_a_network_file_system_is_not_tried(
    path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """WAL is not even tried on a file system that /proc says is another machine's."""
    monkeypatch.setattr(write_ahead_log, "_file_system", lambda _: kind)
    found = prepare(open_engine(legacy(path), QUICK))
    assert (found.mode, found.refused) == ("delete", f"the file is on a network file system ({kind})")


def test_the_file_system_is_known(tmp_path: Path) -> None:
    """The file system named is the one `stat -f` names."""
    named = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True)
    assert (write_ahead_log._file_system(tmp_path) or "")[:3] == named.stdout[:3]


def test_what_is_no_database_is_refused_and_not_kept_open(path: Path, open_engine: Open) -> None:
    """A file that is no database gives a clear error, unchanged, and no handle stays."""
    path.write_text("no database " * 1000)
    engine = open_engine(path, QUICK)
    with pytest.raises(errors.NotADatabaseError), engine_module.translated(engine):
        prepare(engine)
    engine.dispose()
    assert path.read_text() == "no database " * 1000
    assert open_files(path) == []
