"""What is left of a command that is ended: nothing by a signal, and after kill -9 `status` names it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import make_url

from consensus_orm import ConsensusStore, Phase, files
from consensus_orm.cli import main
from consensus_orm.rehearsal.copies import _database
from consensus_orm.settings import Settings
from tests.field import builders
from tests.support.commands import NO_SOAK, SCRIPT, without_settings
from tests.support.databases import Database, build_legacy

pytestmark = pytest.mark.long

SIZE = 60_000_000
"""Bytes of the file: so many that a copy of it takes a while."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in phase NORMALIZED, whose gate to CONTRACT is open but for the soak."""
    path = tmp_path_factory.mktemp("large") / "store.db"
    builders.build_legacy(path)
    with builders.writing(path) as connection:
        connection.executemany(
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 'plan', 'a', ?)",
            [(f"{number}".ljust(1_000_000),) for number in range(SIZE // 2_000_000)],
        )
    with ConsensusStore.open(path, settings=Settings(soak_normalized=timedelta(0))) as store:
        store.migration.migrate(Phase.NORMALIZED, soak=False)
        store.migration.verify()
    return path


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, by this process and by commands."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    without_settings(monkeypatch)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def path(large: Path, tmp_path: Path) -> Path:
    (tmp_path / "database").mkdir()
    return Path(shutil.copy(large, tmp_path / "database"))


COMMANDS = {
    "backup": ["backup", "BACKUP"],
    "rehearsal": ["rehearse"],
    "contract": ["advance", "contract"],
    "restore": ["restore", "ORIGINAL"],
}


@contextlib.contextmanager
def at_work(name: str, path: Path, large: Path, scratch: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that is making a copy just now."""
    place = {"BACKUP": str(path.with_name("backup.db")), "ORIGINAL": str(large)}
    command = [str(SCRIPT), "--url", str(path), *(place.get(word, word) for word in COMMANDS[name])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | NO_SOAK) as process:
        deadline = time.monotonic() + 60
        while not any(each.stat().st_size > 1_000_000 for each in copies(path.parent, scratch)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        yield process


def copies(*folders: Path) -> list[Path]:
    """Files in folders that are made for copies."""
    return [
        each
        for folder in folders
        for made in folder.glob(".consensus_orm-*")
        for each in made.rglob("*")
        if each.is_file()
    ]


def status(path: Path) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["--url", str(path), "status", "--json"])
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_leaves_no_copy(name: str, number: signal.Signals, path: Path, large: Path, scratch: Path) -> None:
    """The command removes what it made and ends with 130; the database is what it was."""
    with at_work(name, path, large, scratch) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGHUP)  # a session that is closed sends several
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert {each.name for each in path.parent.iterdir()} - {f"{path.name}-wal", f"{path.name}-shm"} == {path.name}
    assert list(scratch.iterdir()) == []
    found = status(path)
    assert (found["phase"], found["leftovers"]) == ("NORMALIZED", [])


@pytest.mark.parametrize("name", COMMANDS)
def test_status_names_what_a_killed_process_left(name: str, path: Path, large: Path, scratch: Path) -> None:
    """With its size and the command that removes it; what is in use is not named."""
    with at_work(name, path, large, scratch) as process:
        process.send_signal(signal.SIGSTOP)
        if name not in ("contract", "restore"):  # which may hold a lock
            assert status(path)["leftovers"] == []
        process.send_signal(signal.SIGKILL)
    (left,) = copies(path.parent, scratch)
    (told,) = status(path)["leftovers"]
    assert left.is_relative_to(told["name"])
    assert told["bytes"] == left.stat().st_size > 1_000_000
    text = CliRunner().invoke(main, ["--url", str(path), "status"]).stdout
    assert "left behind" in text
    assert told["remove"] in text
    subprocess.run(told["remove"], shell=True, check=True)
    assert status(path)["leftovers"] == []
    assert copies(path.parent, scratch) == []


def test_only_folders_that_hold_something_and_are_not_locked_are_left_behind(tmp_path: Path) -> None:
    """An empty one may be about to be used; a link, a file and folders of others are none."""
    with files.own_folder(tmp_path, "backup") as used:
        (used / "copy.db").write_text("used")
        (tmp_path / ".consensus_orm-backup-empty").mkdir()
        (tmp_path / ".consensus_orm-link").symlink_to(used)
        (tmp_path / ".consensus_orm-file").write_text("a file")
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "copy.db").write_text("theirs")
        left = tmp_path / ".consensus_orm-backup-it's left"
        left.mkdir()
        (left / "copy.db").write_text("left")
        (found,) = files.leftovers([tmp_path, tmp_path, tmp_path / "nowhere"])
    assert (found.name, found.bytes) == (str(left), 4)
    subprocess.run(found.remove, shell=True, check=True)
    assert files.leftovers([tmp_path]) == []
    assert not used.exists()


@pytest.mark.postgresql
def test_databases_of_rehearsals_that_were_killed_are_named(new_database: Database, scratch: Path) -> None:
    """Those whose rehearsal holds its lock, or that are connected to, are in use; the others come with their DROP."""
    url = make_url(str(new_database.where))
    build_legacy(str(new_database.where))
    name = f"{str(url.database)[:40]}_rehearsal_0123abcd"
    with ConsensusStore.open(str(new_database.where)) as store:
        store.upgrade()
        with _database(store.engine, (), keep=False):
            assert store.maintenance.leftovers() == []
        with psycopg.connect(str(new_database.where), autocommit=True) as admin:
            admin.execute(f'CREATE DATABASE "{name}"'.encode())
            with psycopg.connect(url.set(database=name).render_as_string(hide_password=False)):
                assert store.maintenance.leftovers() == []
            (found,) = _until_found(store)
            assert (found.name, found.remove) == (name, f'DROP DATABASE "{name}"')
            assert found.bytes is not None
            assert found.bytes > 1_000_000
            told = CliRunner().invoke(main, ["--url", str(new_database.where), "status", "--json"])
            assert [each["name"] for each in json.loads(told.stdout)["leftovers"]] == [name]
            admin.execute(found.remove.encode())
        assert store.maintenance.leftovers() == []


def _until_found(store: ConsensusStore) -> list[files.Leftover]:
    """A connection that was closed may take the server a moment."""
    deadline = time.monotonic() + 10
    while not (found := store.maintenance.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
