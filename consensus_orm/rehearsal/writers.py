"""Threads that write through the public API while a database is moved: those of a rehearsal, and of the demo."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol, Self, TypeVar

from consensus_orm.errors import ConsensusError
from consensus_orm.phase import Phase
from consensus_orm.rehearsal.application import Rehearsed
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Additions", "Round", "Run", "Writers"]

T = TypeVar("T")

PAUSE = 0.005
"""Seconds between two rounds of a thread, so that the threads do not use up the machine."""


class Run(Protocol):
    """Does a piece of work in a unit of work, as `Store.run` does."""

    def __call__(self, work: Callable[[Any], T], /, *, read_only: bool = False) -> T:
        """Do the work, and all of it again after a transient error."""
        ...


Round = Callable[[Run, int], object]
"""The work of a thread between two pauses: called with what runs units of work, and the number of the round."""


class Writers:
    """Threads that do rounds of work from enter to exit.

    A thread goes on after an error of this package, and ends with any other.

    Args:
        units: The units of work of the database.
        rounds: The work of each thread.

    Attributes:
        errors: The errors of rounds, each with the number of its thread.
        latency: Seconds of each unit of work, by its phase.
    """

    def __init__(self, units: UnitOfWorkFactory[Any], rounds: Sequence[Round]) -> None:
        self.errors: list[tuple[int, Exception]] = []
        self.latency: dict[Phase, list[float]] = defaultdict(list)
        self._units = units
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=each, name=f"consensus-orm-writer-{each[0]}", daemon=True)
            for each in enumerate(rounds)
        ]

    def __enter__(self) -> Self:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # Ctrl-C between two of them: the first must end, too
            self.stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each thread finish its unit of work, and end."""
        self._over.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def alive(self) -> bool:
        """Whether all threads are at work."""
        return all(thread.is_alive() for thread in self._threads)

    def _write(self, thread: int, round_: Round) -> None:
        for number in count(1):
            if self._over.wait(PAUSE):
                return
            try:
                round_(self._run, number)
            except Exception as error:
                if not self._over.is_set():
                    self.errors.append((thread, error))
                if not isinstance(error, ConsensusError):
                    return

    def _run(self, work: Callable[[UnitOfWork], T], /, *, read_only: bool = False) -> T:
        def timed(uow: UnitOfWork) -> tuple[Phase, T]:
            return uow.phase, work(uow)

        started = time.perf_counter()
        phase, result = self._units.run(timed, read_only=read_only, cancel=self._over)
        self.latency[phase].append(time.perf_counter() - started)
        return result


class Additions:
    """The rounds of a rehearsal's threads: each adds rows, and remembers what was acknowledged.

    Args:
        rehearsed: How rows are added; None where no thread is to write.

    Attributes:
        columns: The legacy column of each pair that holds the text of a row.
        acknowledged: Pair, then key, then text.
    """

    def __init__(self, rehearsed: Rehearsed | None) -> None:
        self.columns = {} if rehearsed is None else rehearsed.columns
        self.acknowledged: dict[str, dict[int, str]] = {name: {} for name in self.columns}
        self._rehearsed = rehearsed

    def rounds(self, threads: int) -> list[Round]:
        """The work of so many threads."""
        return [] if self._rehearsed is None else [self._round(self._rehearsed, n) for n in range(threads)]

    def _round(self, rehearsed: Rehearsed, thread: int) -> Round:
        def add(run: Run, number: int) -> None:
            name = f"consensus-orm-rehearsal-{thread}"
            text = json.dumps({"writer": name, "number": number})
            for pair, key in run(lambda uow: rehearsed.add(uow, name, number, text)).items():
                self.acknowledged[pair][key] = text

        return add
