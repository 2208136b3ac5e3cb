"""The command as people and programs call it: interrupted, on a terminal, told in one line that something is wrong."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pkgutil
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import consensus_orm.cli
from consensus_orm import ConsensusStore

__all__ = [
    "NO_SOAK",
    "SCRIPT",
    "SLOW",
    "SLOW_ALONE",
    "add_waiting_rows",
    "forked",
    "give_up_powers",
    "interrupted",
    "on_a_terminal",
    "on_two_terminals",
    "one_line_of",
    "without_settings",
]

SCRIPT = Path(sys.executable).parent / "consensus-orm"
NO_SOAK = {f"CONSENSUS_ORM_SOAK_{phase}": "0" for phase in ("DUAL_WRITE", "CUTOVER", "NORMALIZED")}
SLOW = {"CONSENSUS_ORM_CHUNK_ROWS": "1", "CONSENSUS_ORM_CHUNK_PAUSE": "0.02"}
SLOW_ALONE = SLOW | {"CONSENSUS_ORM_CHUNK_PAUSE": "0.08"}
"""Where nobody else writes, a pause is a quarter of what it is set to."""


def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no setting of whoever runs the tests reach a command."""
    for name in list(os.environ):
        if name.startswith("CONSENSUS_ORM_"):
            monkeypatch.delenv(name)


def add_waiting_rows(where: str | Path, rows: int) -> None:
    """Have so many rows in a database in DUAL_WRITE that nobody has carried."""
    with ConsensusStore.open(where) as store:
        store.migration.rollback()
        with store.unit_of_work() as uow:
            for number in range(rows):
                uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json=str(number))
        store.migration.advance()


def one_line_of(result: Result | subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr."""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("consensus-orm: ")
    return lines[0]


# What there is --------------------------------------------------------------------------------------------


def interrupted(words: list[str], ready: Callable[[], bool], number: int = signal.SIGINT, /, **env: str) -> list[str]:
    """Interrupt a command when it has come so far; gives the arguments with which, as it says, to go on."""
    pipe = subprocess.PIPE
    with subprocess.Popen([str(SCRIPT), *words], stdout=pipe, stderr=pipe, text=True, env=os.environ | env) as process:
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    line = err.strip()
    assert "\n" not in line
    assert "everything stands as after the last finished chunk" in line
    program, *again = shlex.split(line.partition("go on with: ")[2])
    assert program == "consensus-orm"
    return again


def on_a_terminal(words: list[str], **env: str) -> tuple[bytes, bytes]:
    """Run a command whose stderr alone is a terminal."""
    ours, theirs = pty.openpty()
    try:
        command = [str(SCRIPT), *words]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **env}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
            os.close(theirs)
            seen = b""
            while True:
                try:
                    more = os.read(ours, 65536)
                except OSError:  # Linux says so at the end of a terminal
                    break
                if not more:
                    break
                seen += more
            assert process.stdout is not None
            out = process.stdout.read()
        assert process.returncode == 0, seen
    finally:
        os.close(ours)
    return out, seen


def on_two_terminals(
    words: list[str], answer: bytes, *, also_stdout: bool = False, **env: str
) -> tuple[int, str, bytes]:
    """Run a command whose stdin and stderr are a terminal, and answer its question.

    Args:
        words: Its arguments.
        answer: What is typed at the question.
        also_stdout: Whether stdout is that terminal, too.
        **env: For its environment.

    Returns:
        Its exit code, what the terminal showed, and stdout.
    """
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **env}
    with subprocess.Popen(
        [str(SCRIPT), *words],
        stdin=theirs,
        stdout=theirs if also_stdout else subprocess.PIPE,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # Linux says so at the end of a terminal
            while more := os.read(ours, 65536):
                seen += more
                if seen.rstrip().endswith(b"[y/N]:"):
                    os.write(ours, answer)
                    answer = b""
        out = process.stdout.read() if process.stdout is not None else b""
        process.wait(60)
    os.close(ours)
    return process.returncode, seen.decode(), out


# Many commands ----------------------------------------------------------------------------------------------

_FORKS = multiprocessing.get_context("forkserver")
"""One process has imported the commands; each that is tried is a fork of it."""

_FORKS.set_forkserver_preload(
    [f"consensus_orm.cli.{name}" for _, name, _ in pkgutil.iter_modules(consensus_orm.cli.__path__)]
)


def forked(words: list[str], folder: Path, prepare: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that need not import it again.

    Args:
        words: Its arguments.
        folder: Where it runs; what it says on stderr is in a file beside it.
        prepare: Called in its process before it, by name: a function of a module.
    """
    said = folder.with_name(f"{folder.name}.stderr")
    process = _FORKS.Process(target=_run, args=(words, folder, said, prepare))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "it has not ended"
    return subprocess.CompletedProcess(words, process.exitcode, None, said.read_text())


def _run(words: list[str], folder: Path, said: Path, prepare: Callable[[], object]) -> None:
    os.chdir(folder)
    with said.open("w") as stream:
        os.dup2(stream.fileno(), 2)
    prepare()
    sys.argv = ["consensus-orm", *words]
    consensus_orm.cli.main()


def give_up_powers() -> None:
    """Let this process enter no folder that is shut, whoever it is: root may as long as it has two capabilities."""
    libc, header, sets = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # of the effective ones, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
