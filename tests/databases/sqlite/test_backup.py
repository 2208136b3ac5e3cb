"""Backups: whole while others write, private, and put in their place only when they are complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from consensus_orm import errors, files
from consensus_orm.databases.engine import checkout, driver, prepare
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.databases.sqlite import backup as backup_module
from consensus_orm.databases.sqlite.backup import backup
from consensus_orm.settings import Settings
from tests.conftest import Open
from tests.field import builders
from tests.support import oracle
from tests.support.bloated import make_bloated, writing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with rows, in WAL."""
    return make_bloated(tmp_path / "store.db", pages=2_000, auto_vacuum=2, journal_mode="wal")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder / "copy.db"


@pytest.fixture
def engine(path: Path, open_engine: Open) -> Engine:
    return open_engine(path)


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def one(path: Path, statement: str) -> object:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchone()[0]


def test_a_backup_has_everything(engine: Engine, path: Path, target: Path) -> None:
    """The copy has the same rows, schema, user_version and auto_vacuum, mode 0600, and nothing beside it."""
    with checkout(engine) as pooled:
        driver(pooled).execute("PRAGMA user_version = 7")
        driver(pooled).execute("PRAGMA application_id = 99")
    told: list[tuple[int, int]] = []
    report = backup(engine, target, progress=lambda done, total: told.append((done, total)))
    assert dump(target) == dump(path)
    assert [one(target, f"PRAGMA {name}") for name in ("user_version", "application_id", "auto_vacuum")] == [
        *(7, 99, 2)
    ]
    assert one(target, "PRAGMA journal_mode") == "wal"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(target.parent) == [target.name]  # noqa: PTH208
    assert report.path == target
    assert (report.user_version, report.rows, report.bytes) == (7, {"t": 2, "u": 0}, target.stat().st_size)
    assert report.pages is not None
    steps = range(backup_module.PAGES, report.pages, backup_module.PAGES)
    assert told == [(done, report.pages) for done in (*steps, report.pages)]
    assert len(told) > 1


@pytest.mark.long
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_backup_under_a_steady_writer_ends_and_is_one_moment(
    tmp_path: Path, target: Path, open_engine: Open, journal_mode: str
) -> None:
    """While another process writes without a pause, the copy ends soon and its pairs of rows are complete."""
    path = make_bloated(tmp_path / "busy.db", pages=20_000, auto_vacuum=0, journal_mode=journal_mode)
    engine = open_engine(path)
    with writing(path, pause=0) as writer:
        time.sleep(0.2)
        reports = [backup(engine, target, overwrite=True) for _ in range(3)]
        time.sleep(0.1)
    print(reports, writer)
    assert max(each.seconds for each in reports) < 5
    assert one(target, "SELECT count(*) FROM u") == reports[-1].rows["u"] > 0
    assert one(target, "SELECT count(*) FROM t") == reports[-1].rows["u"] + 2
    assert reports[0].rows["u"] < reports[1].rows["u"] < reports[2].rows["u"] < writer["count"]
    assert one(target, "PRAGMA integrity_check") == "ok"
    assert writer["longest"] < (0.5 if journal_mode == "wal" else 2)


def test_the_original_is_not_written(tmp_path: Path, target: Path, open_engine: Callable[..., Engine]) -> None:
    """A legacy file is byte for byte what it was, with nothing beside it."""
    path = make_bloated(tmp_path / "legacy.db", pages=200, auto_vacuum=0, journal_mode="delete")
    before = hashlib.sha256(path.read_bytes()).digest()
    backup(open_engine(path), target)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["backups", "legacy.db"]
    assert dump(target) == dump(path)


def test_memory_can_be_backed_up(target: Path, open_engine: Open) -> None:
    """A database in memory becomes a file."""
    engine = open_engine(":memory:")
    with checkout(engine) as pooled:
        driver(pooled).execute("CREATE TABLE t (a)")
        driver(pooled).execute("INSERT INTO t VALUES (5)")
    assert backup(engine, target).rows == {"t": 1}
    assert one(target, "SELECT a FROM t") == 5
    with checkout(engine) as pooled:
        assert driver(pooled).execute("SELECT a FROM t").fetchall() == [(5,)]


def test_a_backup_opens_as_a_store(engine: Engine, target: Path, open_engine: Callable[..., Engine]) -> None:
    """What was backed up can be opened, prepared and written."""
    backup(engine, target)
    restored = open_engine(target)
    assert prepare(restored).mode == "wal"
    with checkout(restored) as pooled:
        driver(pooled).execute("INSERT INTO t (a) VALUES (1)")


def folder(target: Path, _source: Path) -> Path:
    target.mkdir()
    return target


def no_folder(target: Path, _source: Path) -> Path:
    return target / "deeper" / "copy.db"


def existing(target: Path, _source: Path) -> Path:
    target.write_text("precious")
    return target


def dangling_link(target: Path, _source: Path) -> Path:
    target.symlink_to("nowhere")
    return target


def itself(_target: Path, source: Path) -> Path:
    return source


def its_log(_target: Path, source: Path) -> Path:
    return Path(f"{source}-wal")


def link_to_itself(target: Path, source: Path) -> Path:
    target.symlink_to(source)
    return target


def hard_link_to_itself(target: Path, source: Path) -> Path:
    os.link(source, target)
    return target


def in_use(target: Path, _source: Path) -> Path:
    Path(f"{target}-journal").write_text("hot")
    return target


@pytest.mark.parametrize(
    ("make", "overwrite", "said", "hint"),
    [
        (folder, True, "is a folder", "give the path of a file in it"),
        (no_folder, True, "folder that does not exist", "make the folder first"),
        (existing, False, "exists already", "give another path, or ask to overwrite it"),
        (dangling_link, False, "exists already", "give another path, or ask to overwrite it"),
        (itself, True, "is the database itself", "give another path"),
        (its_log, True, "is the database itself", "give another path"),
        (link_to_itself, True, "is the database itself", "give another path"),
        (hard_link_to_itself, True, "is the database itself", "give another path"),
        (in_use, True, "has a -journal file beside it, as a database in use has", "give another path"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    engine: Engine, path: Path, target: Path, make: Callable[[Path, Path], Path], overwrite: bool, said: str, hint: str
) -> None:
    """Each target that would lose something or cannot be written is refused, with nothing changed and what helps."""
    refused = make(target, path)
    before = dump(path)
    with pytest.raises(errors.BackupError, match=said) as caught:
        backup(engine, refused, overwrite=overwrite)
    assert caught.value.hint == hint
    assert caught.value.facts["path"] == files.resolved(refused)
    assert dump(path) == before
    if make is existing:
        assert target.read_text() == "precious"


def test_overwriting_replaces_the_file_at_once(engine: Engine, path: Path, target: Path) -> None:
    """Asked to, a backup takes the place of what was there; an open handle still reads the old one."""
    target.write_text("precious")
    with target.open() as handle:
        backup(engine, target, overwrite=True)
        assert handle.read() == "precious"
    assert dump(target) == dump(path)


def test_a_file_that_appears_meanwhile_is_not_replaced(engine: Engine, target: Path) -> None:
    """Somebody else's file that comes while the copy is being made stays."""
    with pytest.raises(errors.BackupError, match="File exists"):
        backup(engine, target, progress=lambda *_: target.write_text("theirs"))
    assert target.read_text() == "theirs"
    assert os.listdir(target.parent) == [target.name]  # noqa: PTH208


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DELETE FROM t", "differs from the original in t(:|$)"),
        ("DELETE FROM t; DROP TABLE u", "differs from the original in t, u(:|$)"),
        ("PRAGMA user_version = 3", "differs from the original in its settings(:|$)"),
        ("bytes", "integrity_check of the copy says: [^*]"),
    ],
)
def test_a_copy_that_differs_is_thrown_away(
    engine: Engine, target: Path, monkeypatch: pytest.MonkeyPatch, damage: str, said: str
) -> None:
    """A copy that lost a row, a table, a setting or a page on its way is never put in its place; that is named."""
    real = backup_module._verify

    def damaged(copy: Path, wanted: backup_module._Facts) -> None:
        if damage == "bytes":
            with copy.open("r+b") as file:
                file.seek(4096 + 5)  # the map of pointers: rows are counted without it
                file.write(b"\x01\x02\x03\x04\x05")
        else:
            with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                connection.executescript(damage)
        real(copy, wanted)

    monkeypatch.setattr(backup_module, "_verify", damaged)
    with pytest.raises(errors.BackupError, match=said):
        backup(engine, target)
    assert os.listdir(target.parent) == []  # noqa: PTH208


def test_orphans_that_were_there_are_copied_and_counted(engine: Engine, path: Path, target: Path) -> None:
    """Rows that break a foreign key in the original do not stand in the way of its backup."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO u VALUES (-1)")
    assert backup(engine, target).foreign_key_violations == 1


@pytest.mark.long
def test_a_full_disk_leaves_nothing(path: Path, target: Path) -> None:
    """With no room at the target the error says so, and neither half a copy nor a temporary file stays."""
    code = (
        "import resource, sys, signal, pathlib\n"
        "from consensus_orm.databases.opening import create\nfrom consensus_orm.settings import Settings\n"
        "from consensus_orm.databases.sqlite.backup import backup\nfrom consensus_orm.errors import BackupError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))\n"
        "try: backup(create(sys.argv[1], Settings()), sys.argv[2])\n"
        "except BackupError as error: print('refused', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(target)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("refused"), done.stderr
    assert os.listdir(target.parent) == []  # noqa: PTH208


@pytest.mark.long
def test_killed_on_the_way_nothing_stands_at_the_target(path: Path, target: Path) -> None:
    """A process killed in the middle of a backup leaves no file under the name of the backup."""
    code = (
        "import sys, time\nfrom consensus_orm.databases.opening import create\n"
        "from consensus_orm.settings import Settings\n"
        "from consensus_orm.databases.sqlite.backup import backup\n"
        "def slow(*_): print('copying', flush=True); time.sleep(30)\n"
        "backup(create(sys.argv[1], Settings()), sys.argv[2], progress=slow)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(target)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "copying\n"
        child.send_signal(signal.SIGKILL)
    assert not target.exists()


def test_writers_of_the_same_store_go_on(engine: Engine, target: Path) -> None:
    """A unit of work of another thread commits while the copy is being made, and is not in it."""
    committed = threading.Event()

    def write() -> None:
        with checkout(engine) as pooled:
            driver(pooled).execute("INSERT INTO t (a) VALUES ('late')")
        committed.set()

    def during(done: int, _total: int) -> None:
        if done and not committed.is_set():
            thread = threading.Thread(target=write)
            thread.start()
            thread.join(5)

    report = backup(engine, target, progress=during)
    assert committed.is_set()
    assert report.rows["t"] == 2
    assert one(target, "SELECT count(*) FROM t") == 2


def test_a_legacy_file_is_backed_up(tmp_path: Path, target: Path, open_engine: Open) -> None:
    """A legacy file is copied with all its rows, through the facade."""
    legacy = tmp_path / "legacy.db"
    builders.odd_legacy(legacy)
    report = Maintenance(open_engine(legacy), Settings()).backup(target)
    for table in oracle.LEGACY:
        assert oracle.rows(target, table) == oracle.rows(legacy, table)
        assert report.rows[table] == len(oracle.rows(legacy, table)) > 0
