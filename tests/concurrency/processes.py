"""Real processes for tests: forked from a server that has imported the package once, about 10 ms each.

The server is a process of its own with one thread, so forking is safe whatever pytest is doing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

__all__ = ["Child", "acknowledged", "start"]

PRELOADED = [
    "__main__",
    "alembic.command",
    "consensus_orm.retrying.circuit_breaker",
    "consensus_orm.databases.maintenance",
    "consensus_orm.migration.contraction",
    "consensus_orm.models.control",
    "consensus_orm.consensus.models.legacy",
    "consensus_orm.databases.postgresql.catalog",
    "consensus_orm.databases.postgresql.connection",
    "consensus_orm.databases.postgresql.rendering",
    "consensus_orm.retrying.retrier",
    "consensus_orm.consensus.store",
    "consensus_orm.telemetry",
    "stamina",
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


class Child:
    """A process, and a pipe to it.

    Args:
        process: The started process.
        pipe: Our end; the function it runs has the other one.
    """

    def __init__(self, process: ForkServerProcess, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe

    def tell(self, message: Any = None) -> None:
        """Send something, mostly leave to go on."""
        self.pipe.send(message)

    def hear(self, timeout: float = 30) -> Any:
        """What it says next.

        Raises:
            AssertionError: It said nothing in time, or died.
        """
        assert self.pipe.poll(timeout), "the child is silent"
        try:
            said = self.pipe.recv()
        except EOFError:
            self.process.join(5)
            raise AssertionError(f"the child ended with {self.process.exitcode}") from None
        if isinstance(said, BaseException):
            raise said
        return said

    def signal(self, number: int) -> None:
        """Send it a signal; to this one process, by its id."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kill -9, and wait for the end."""
        self.process.kill()
        self.join()

    def join(self, timeout: float = 60) -> int:
        """Wait for the end.

        Returns:
            The exit code; -9 after a kill.
        """
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"{self.process.name} did not end in {timeout} s")
        self.pipe.close()
        return code

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it."""
        return (self.process.exitcode or 0) in (-signal.SIGKILL, -signal.SIGXFSZ)


def start(work: Callable[..., None], *arguments: Any) -> Child:
    """Run `work(pipe, *arguments)` in a process of its own; what it raises is sent through the pipe.

    Args:
        work: A function of an importable module.
        *arguments: Anything that can be pickled.
    """
    mine, theirs = _context.Pipe()
    process = _context.Process(target=_run, args=(theirs, work, arguments), name=work.__name__, daemon=True)
    process.start()
    theirs.close()
    return Child(process, mine)


def _run(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        work(pipe, *arguments)
    except BaseException as error:
        pipe.send(AssertionError(f"{work.__name__}: {type(error).__name__}: {error}"))
        raise


class Acknowledgements:
    """A file to which a process appends what it was told is committed; survives its kill.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def __call__(self, *words: object) -> None:
        """Append one line, in one write."""
        os.write(self._handle, (" ".join(map(str, words)) + "\n").encode())


def acknowledged(path: Path) -> list[list[str]]:
    """The whole lines of such a file, in words."""
    text = path.read_text() if path.exists() else ""
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for(condition: Callable[[], object], timeout: float = 10) -> None:
    """Wait until something is true.

    Raises:
        AssertionError: It did not become true in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)
