"""Restore: a backup takes the place of a database whole or not at all, and what was there is kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, errors, restore
from consensus_orm.cli import main
from consensus_orm.databases.sqlite import write_ahead_log
from tests.field import builders
from tests.support import oracle
from tests.support.commands import one_line_of, without_settings
from tests.support.file_states import (
    add,
    damaged,
    damaged_inside,
    damaged_with_a_log,
    empty,
    in_wal_without_a_log,
    log_alone,
    nothing,
    with_a_hot_journal,
    with_a_log,
    with_a_log_of_another,
)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is: in a folder of its own."""
    folder = tmp_path / "database"
    folder.mkdir()
    return folder / "store.db"


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of ours, with two rows."""
    made = tmp_path / "backup.db"
    with ConsensusStore.open(tmp_path / "origin.db") as store:
        add(store, "first", "second")
        store.maintenance.backup(made)
    return made


def contents(path: Path) -> list[str]:
    """What is stored, by plain SQL."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [text for (text,) in connection.execute("SELECT content FROM agent_outputs ORDER BY id")]


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize(
    "make",
    [
        *(with_a_log, with_a_hot_journal, in_wal_without_a_log, with_a_log_of_another, damaged, damaged_with_a_log),
        *(damaged_inside, empty, log_alone, nothing),
    ],
)
def test_the_backup_is_there_and_what_was_there_is_kept(
    make: Callable[[Path], list[str] | None], path: Path, backup: Path
) -> None:
    """Nothing of an old log gets into the new file; what was there is kept byte for byte, with its log."""
    was = make(path)
    before, of_backup = snapshot(path.parent), oracle.sha256(backup)
    report = restore(backup, path, create=not path.exists())
    assert contents(path) == ["first", "second"]
    assert oracle.sha256(backup) == of_backup
    kept = {re.sub(r"\.before-restore-[0-9TZ.]+", "", each.name): each.read_bytes() for each in report.aside}
    assert kept == {name: data for name, data in before.items() if not name.endswith("-shm")}
    assert {each.name for each in path.parent.iterdir()} == {path.name, *(each.name for each in report.aside)}
    if was is not None:
        assert contents(report.aside[0]) == was
    with ConsensusStore.open(path) as store:
        add(store, "third")
    assert contents(path) == ["first", "second", "third"]


def test_what_was_set_aside_can_be_restored(path: Path, backup: Path) -> None:
    """With its log, which holds the newest rows."""
    was = with_a_log(path)
    aside = restore(backup, path).aside[0]
    report = restore(aside, path)
    assert contents(path) == was
    assert report.rows["agent_outputs"] == 2
    assert contents(report.aside[0]) == ["first", "second"]


def test_owner_and_mode_are_those_of_the_file_that_was_there(path: Path, backup: Path) -> None:
    """The programs that could open it still can; a new file is nobody else's to read."""
    in_wal_without_a_log(path)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    wanted = path.stat()
    report = restore(backup, path)
    for each in (path, *report.aside):
        found = each.stat()
        assert (found.st_mode, found.st_uid, found.st_gid) == (wanted.st_mode, wanted.st_uid, wanted.st_gid)
    new = path.with_name("new.db")
    restore(backup, new, create=True)
    assert new.stat().st_mode & 0o777 == 0o600


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(path: Path, backup: Path, tmp_path: Path) -> None:
    """The file has one name: its log is looked for there."""
    was = with_a_log(path)
    link, of_backup = tmp_path / "link.db", tmp_path / "of_backup.db"
    link.symlink_to(path)
    of_backup.symlink_to(backup)
    report = restore(of_backup, link)
    assert link.is_symlink()
    assert contents(path) == ["first", "second"]
    assert contents(report.aside[0]) == was


# Backups that are none ------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_log_beside_the_backup_belongs_to_it(path: Path, tmp_path: Path) -> None:
    """A database that was copied with its log, or in the middle of a transaction, is restored as SQLite reads it."""
    in_wal_without_a_log(path)
    for make in (with_a_log, with_a_hot_journal):
        source = tmp_path / f"{make.__name__}.db"
        was = make(source)
        before = snapshot(tmp_path)
        restore(source, path)
        assert contents(path) == was
        assert {name: data for name, data in snapshot(tmp_path).items() if name in before} == before | {
            f"{path.parent.name}/{path.name}": path.read_bytes()
        }


def missing(source: Path) -> None:
    """No file."""


def of_another_program(source: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as connection:
        connection.execute("CREATE TABLE bookmarks (a)")


def newer(source: Path) -> None:
    in_wal_without_a_log(source)
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute("UPDATE consensus_orm_version SET version_num = '9999'")


def folder(source: Path) -> None:
    source.mkdir()


def fifo(source: Path) -> None:
    os.mkfifo(source)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (missing, "does not exist"),
        (damaged, "file is not a database"),
        (damaged_inside, "damaged|malformed"),
        (damaged_with_a_log, "cannot be read|not a database"),
        (empty, "none of the tables"),
        (of_another_program, "none of the tables"),
        (newer, "9999"),
        (folder, "is a folder, and the database is a file"),
        (fifo, "not a regular file"),
    ],
)
def test_a_backup_that_cannot_be_used_changes_nothing(
    make: Callable[[Path], None], said: str, path: Path, tmp_path: Path
) -> None:
    """The database stays as it is, with its log, and nothing is left behind."""
    with_a_log(path)
    source = tmp_path / "source.db"
    make(source)
    before = snapshot(tmp_path)
    with pytest.raises(errors.ConsensusError, match=said):
        restore(source, path)
    assert snapshot(tmp_path) == before


def test_a_database_is_no_backup_of_itself(path: Path, tmp_path: Path) -> None:
    """Not by a link, not by a second name, and its log is none either."""
    with_a_log(path)
    (tmp_path / "link.db").symlink_to(path)
    before = snapshot(path.parent)
    for source in (path, tmp_path / "link.db", Path(f"{path}-wal")):
        with pytest.raises(errors.RestoreError, match="is the database itself"):
            restore(source, path)
    os.link(path, tmp_path / "second.db")
    with pytest.raises(errors.RestoreError, match="is the database itself"):
        restore(tmp_path / "second.db", path)
    assert snapshot(path.parent) == before


def test_what_cannot_be_replaced(path: Path, backup: Path) -> None:
    """A file that is not there is made where that is asked for; a folder or a server is never replaced."""
    with pytest.raises(errors.RestoreError, match="does not exist"):
        restore(backup, path)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(errors.RestoreError, match="not a regular file"):
        restore(backup, path.parent)
    with pytest.raises(errors.RestoreError, match="in memory"):
        restore(backup, ":memory:")
    with pytest.raises(errors.RestoreError, match="copy BACKUP URL"):
        restore(backup, "postgresql://somebody:secret@nowhere/nothing")


# Files in use ---------------------------------------------------------------------------------------------

IDLE = "c.execute('SELECT * FROM agent_outputs').fetchall()"
READING = "c.execute('BEGIN'); c.execute('SELECT * FROM agent_outputs').fetchall()"
WRITING = "c.execute('BEGIN IMMEDIATE')"


@contextlib.contextmanager
def program(code: str, path: Path) -> Iterator[None]:
    """Another program that has a file open."""
    script = (
        f"import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); {code};"
        " print('ready', flush=True); sys.stdin.readline()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield
        child.communicate("\n")


@pytest.mark.long
@pytest.mark.parametrize("seen", [True, False], ids=["with /proc", "by locks alone"])
@pytest.mark.parametrize("code", [IDLE, READING, WRITING], ids=["idle", "reading", "writing"])
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_file_in_use_is_not_replaced(
    journal_mode: str, code: str, seen: bool, path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the other program does; without /proc an idle one in a rollback mode holds no lock to be seen by."""
    in_wal_without_a_log(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
    if not seen:
        monkeypatch.setattr(write_ahead_log, "occupants", lambda *_, **__: [])
        if (journal_mode, code) == ("delete", IDLE):
            pytest.skip("SQLite keeps no lock for it: see the next test")
    names = sorted(path.parent.iterdir())
    with program(code, path):
        with pytest.raises(errors.DatabaseBusyError, match=f"has {path} open"):
            restore(backup, path)
        with pytest.raises(errors.DatabaseBusyError, match="open"):
            restore(path, backup)  # nor is it restored from
    assert contents(path) == ["old"]
    assert {each for each in path.parent.iterdir() if each.suffix == ".db"} >= set(names)
    assert restore(backup, path).path == path


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_connection_that_nobody_sees_goes_on_with_the_new_rows(
    journal_mode: str, path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that had the file open without a lock sees the new rows, and writes to them as any other connection."""
    in_wal_without_a_log(path)
    monkeypatch.setattr(write_ahead_log, "occupants", lambda *_, **__: [])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"PRAGMA journal_mode = {journal_mode}")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as hidden:
        if journal_mode == "delete":
            hidden.execute("SELECT * FROM agent_outputs").fetchall()
        restore(backup, path)
        with ConsensusStore.open(path) as store:
            add(store, "third")
            hidden.execute("UPDATE agent_outputs SET content = 'theirs' WHERE content = 'first'")
            add(store, "fourth")
    assert contents(path) == ["theirs", "second", "third", "fourth"]


def test_a_store_of_this_process_is_in_the_way(path: Path, backup: Path) -> None:
    """Until it is closed."""
    with ConsensusStore.open(path) as store:
        add(store, "old")
        with pytest.raises(errors.DatabaseBusyError, match="another connection in this process"):
            restore(backup, path)
        add(store, "more")
    assert contents(restore(backup, path).aside[0]) == ["old", "more"]


# Killed ---------------------------------------------------------------------------------------------------

KILLED = """
import os, shutil, signal, sqlite3, sys, json
from pathlib import Path
from consensus_orm import restore
from consensus_orm.consensus import restoration
template, work, backup = map(Path, sys.argv[1:4])
damaged = sys.argv[4] == "damaged"
target = work / "store.db"

CHANGES = {"chmod", "chown", "close", "link", "lockf", "rename", "replace", "rmdir", "sendfile", "unlink", "utime"}

def counted(at):
    left = [at]
    def count(frame, event, function):
        if event in ("c_call", "c_return") and (
            isinstance(getattr(function, "__self__", None), (sqlite3.Connection, sqlite3.Cursor))
            or (function.__module__ in ("posix", "fcntl") and function.__name__ in CHANGES)
        ):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    return count

def read(path):
    connection = sqlite3.connect(path)
    try:
        said = connection.execute("PRAGMA integrity_check").fetchone()[0]
        found = [text for (text,) in connection.execute("SELECT content FROM agent_outputs ORDER BY id")]
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        connection.close()
    return found if said == "ok" else said

restore(backup, template.with_name("warm.db"), create=True)
seen, at = {}, 0
while True:
    at += 1
    shutil.rmtree(work)
    shutil.copytree(template, work)
    before = {each.name: each.read_bytes() for each in work.iterdir()}
    pid = os.fork()
    if pid == 0:
        step = restoration._replace  # before it, nothing of the database is touched
        restoration._replace = lambda *arguments: (sys.setprofile(counted(at)), step(*arguments))[1]
        restore(backup, target)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    aside = [each for each in work.iterdir() if ".before-restore-" in each.name]
    whole = {each.name.split("Z", 1)[1]: each.read_bytes() for each in aside}
    kept = all(whole.get(name.removeprefix(target.name)) == data for name, data in before.items())
    same = all((work / name).exists() and (work / name).read_bytes() == data for name, data in before.items())
    state = "the same" if same else "nothing lost" if damaged and kept else "?"
    found = state if damaged and state != "?" and read(target) != ["first", "second"] else read(target)
    seen.setdefault(json.dumps(found), []).append(at)
    if at % 5 == 0 or status == 0:
        restore(backup, target)  # again, whatever was left behind
        assert read(target) == ["first", "second"], (at, read(target))
    if status == 0:
        break
print(json.dumps({"seen": seen, "steps": at}))
"""


@pytest.mark.long
@pytest.mark.parametrize("make", [with_a_log, with_a_hot_journal, damaged_with_a_log, with_a_log_of_another])
def test_killed_at_any_step_it_is_the_old_or_the_new(
    make: Callable[[Path], list[str] | None], path: Path, backup: Path, tmp_path: Path
) -> None:
    """A process that is killed leaves all of the old, its log included, or the backup; tried before each call.

    Of a file that is damaged all files are still where they were, or aside.
    """
    was = make(path)
    work = tmp_path / "work"
    work.mkdir()
    arguments = [str(path.parent), str(work), str(backup), "damaged" if was is None else "sound"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    states = {state: len(steps) for state, steps in told["seen"].items()}
    print(states)
    assert told["steps"] > 20
    new, old = json.dumps(["first", "second"]), json.dumps(was)
    if was is not None:
        assert states.keys() == {old, new}
    else:
        assert states.keys() - {json.dumps("nothing lost")} == {json.dumps("the same"), new}


# The command ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(path: Path) -> Callable[..., Result]:
    def call(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["--url", str(path), *words])
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.mark.long
def test_the_command(path: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    """A step that was not wanted is undone with the backup that it made; text and JSON name what is kept."""
    builders.odd_legacy(path)
    run("migrate", "--no-soak")
    (made,) = (each for each in path.parent.iterdir() if ".before-contract-" in each.name)
    said = run("restore", str(made)).stdout
    assert f"{path} is {made} now" in said
    assert "what was there is kept as" in said
    assert json.loads(run("status", "--json").stdout)["phase"] == "NORMALIZED"
    told = json.loads(run("restore", str(made), "--json").stdout)
    assert told["path"] == str(path)
    assert [Path(each).exists() for each in told["aside"]] == [True]
    assert told["rows"] == {name: len(oracle.rows(path, name)) for name in told["rows"]}
    assert one_line_of(run("restore", str(tmp_path / "mistyped.db"), code=1))
    path.unlink()
    assert "--create" in one_line_of(run("restore", str(made), code=1))
    run("restore", "--create", str(made))
    assert json.loads(run("status", "--json").stdout)["phase"] == "NORMALIZED"


def test_a_damaged_file_names_the_command(path: Path, run: Callable[..., Result]) -> None:
    """As it is typed, with the URL of this call."""
    in_wal_without_a_log(path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 100)
    assert f"consensus-orm --url {path} restore BACKUP" in one_line_of(run("status", code=1))
