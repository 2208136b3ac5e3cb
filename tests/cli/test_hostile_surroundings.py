"""What stands around a command: sequences, arguments, streams and folders as nobody would expect them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase, Settings
from consensus_orm.cli import main
from consensus_orm.testing import artifact_values, take_to
from consensus_orm.testing.plugin import NO_TIME
from tests.field import builders
from tests.support import oracle
from tests.support.commands import SCRIPT, forked, give_up_powers, without_settings

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "artifacts.db"
    builders.build_legacy(path, columns=11)
    shutil.copyfile(path, tmp_path / "backup.db")
    return path


def call(*words: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([SCRIPT, *words], capture_output=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("seq", ["NULL", "'many'", "'7'", "x'ff'", "0.5", "-1"])
def test_a_sequence_that_is_no_number(seq: str, path: Path) -> None:
    """Whatever sqlite_sequence holds, the way to CONTRACT and back is taken, and no id is given twice."""
    with builders.writing(path) as connection:
        connection.execute(f"UPDATE sqlite_sequence SET seq = {seq}")
    before = oracle.legacy(path)
    times = Settings(
        soak_dual_write=NO_TIME, soak_cutover=NO_TIME, soak_normalized=NO_TIME, chunk_pause=NO_TIME,
        backup_dir=path.parent,
    )  # fmt: skip
    ids = [int(bytes.fromhex(row[0][1])) for row in before["artifacts"]]
    with ConsensusStore.open(path, settings=times) as store:
        store.migration.status()
        store.maintenance.stats()
        for phase in (Phase.DUAL_WRITE, Phase.CONTRACT, Phase.EXPAND):
            take_to(store, phase)
            ids.append(store.run(lambda uow: uow.artifacts.add(**artifact_values())).id)
    assert len(set(ids)) == len(ids)
    assert oracle.legacy(path)["artifacts"][: len(before["artifacts"])] == before["artifacts"]


def test_a_reason_in_latin_1(path: Path) -> None:
    """An argument whose bytes are no UTF-8 is kept with escapes: the step is taken, and told in one line."""
    with ConsensusStore.open(path) as store:
        store.migration.advance(Phase.DUAL_WRITE)
    done = call("--url", str(path), "rollback", "--reason", "caf\xe9".encode("latin-1"))
    assert (done.returncode, done.stderr) == (0, b"")
    with oracle.reading(path) as connection:
        kept = connection.execute("SELECT reason FROM consensus_orm_history ORDER BY id DESC LIMIT 1").fetchone()
    assert kept == ("caf\\udce9",)
    assert call("--url", str(path), "history").returncode == 0


@pytest.mark.parametrize(
    "words", [["advance", b"\xe9"], [b"\xe9"], ["mismatches", "show", b"\xe9"], ["--url", b"\xe9"]]
)
def test_other_arguments_in_latin_1(words: list[Any], path: Path) -> None:
    """Where they mean nothing they are refused in one line, with the exit code of a wrong usage."""
    done = call("--url", str(path), *words)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def commands() -> list[list[str]]:
    """Every command, with the arguments that it cannot do without; `demo` takes no database."""
    wanting = {"backup": ["new.db"], "restore": ["backup.db"], "copy": ["FILE", "new.db"], "report": ["page.html"]}
    wanting |= {"contract": ["finish", "--reason", "x"], "throttle": ["off"], "alembic": ["history"]}
    wanting |= {"external": ["status"], "relay": ["status"]}
    models = "consensus_orm.consensus.models"
    wanting["generate"] = [f"{models}.legacy:ConsensusArtifact", f"{models}.normalized:AgentOutput"]
    return [[name, *wanting.get(name, [])] for name in main.list_commands(None) if name != "demo"]  # type: ignore[arg-type]


ELSEWHERE = ("docs", "explain", "generate")
"""Commands that open no database."""


def on(path: Path, words: list[str]) -> list[str]:
    return ["--url", str(path), *(word.replace("FILE", str(path)) for word in words)]


def fill_stdout() -> None:
    """Let nothing more be written to stdout, as on a disk that is full."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    sys.stdout = os.fdopen(1, "w")


def close_stdout() -> None:
    """Have no stdout, as a process that was started without one."""
    os.close(1)
    sys.stdout = None


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
@pytest.mark.parametrize("spoil", [fill_stdout, close_stdout], ids=["full", "closed"])
def test_every_command_without_a_stdout(words: list[str], spoil: Callable[[], None], path: Path) -> None:
    """No command ends in a traceback, and none says 0, where what it says cannot be written."""
    done = forked(on(path, words), path.parent, spoil)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with oracle.reading(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.skipif(os.getuid() == 0 and sys.platform != "linux", reason="root may enter any folder")
@pytest.mark.parametrize("words", [w for w in commands() if w[0] not in ELSEWHERE], ids=lambda words: words[0])
def test_every_command_in_a_folder_one_may_not_enter(words: list[str], path: Path) -> None:
    """One line that names the path and a way out, and an exit code; no traceback."""
    shut = path.parent / "shut"
    shut.mkdir()
    path.rename(shut / path.name)
    shut.chmod(0)
    try:
        done = forked(on(shut / path.name, words), path.parent, give_up_powers if os.getuid() == 0 else int)
    finally:
        shut.chmod(0o700)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert str(shut) in done.stderr
    assert [found.name for found in shut.iterdir()] == [path.name]
