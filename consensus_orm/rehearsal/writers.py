"""Writers for a rehearsal: threads that use the public API while the copy is moved, and remember what was kept."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from typing import Any, Self

from consensus_orm.errors import ConsensusError
from consensus_orm.migration.rehearsal_report import Latency
from consensus_orm.phase import Phase
from consensus_orm.rehearsal.application import Rehearsed
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Writers"]

PAUSE = 0.005
"""Seconds between two units of work of a writer: they are to meet every step, not to use up the machine."""


class Writers:
    """So many threads, each adding a row every few milliseconds from enter to exit.

    Args:
        units: The units of work of the copy.
        rehearsed: How its rows are written; None where no thread is to write.
        threads: How many.

    Attributes:
        wrote: What was acknowledged: pair, then key, then text.
        errors: Failed units of work by type.
        latency: Seconds of each unit of work, by the phase it worked in.
    """

    def __init__(self, units: UnitOfWorkFactory[Any], rehearsed: Rehearsed | None, threads: int) -> None:
        self.columns = {} if rehearsed is None else rehearsed.columns
        self.wrote: dict[str, dict[int, str]] = {name: {} for name in self.columns}
        self.errors: Counter[str] = Counter()
        self.latency: dict[Phase, list[float]] = defaultdict(list)
        self._units = units
        self._rehearsed = rehearsed
        self._over = threading.Event()
        self._lock = threading.Lock()
        names = (f"consensus-orm-rehearsal-{number}" for number in range(threads))
        self._threads = [threading.Thread(target=self._write, args=(name,), name=name, daemon=True) for name in names]

    def __enter__(self) -> Self:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # Ctrl-C between two of them: nobody else would stop the first
            self.stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each finish what it is doing, and end."""
        self._over.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def summary(self) -> dict[str, Latency]:
        """Latency by phase, in the order of phases."""
        return {phase.name: Latency.of(self.latency[phase]) for phase in sorted(self.latency)}

    def _write(self, name: str) -> None:
        number = 0
        assert self._rehearsed is not None
        add = self._rehearsed.add
        while not self._over.wait(PAUSE):
            number += 1
            text = json.dumps({"writer": name, "number": number})

            def work(uow: UnitOfWork, number: int = number, text: str = text) -> tuple[Phase, dict[str, int]]:
                return uow.phase, add(uow, name, number, text)

            started = time.perf_counter()
            try:
                phase, keys = self._units.run(work, cancel=self._over)
            except ConsensusError as error:
                if not self._over.is_set():
                    self.errors[type(error).__name__] += 1
                continue
            took = time.perf_counter() - started
            with self._lock:
                self.latency[phase].append(took)
                for pair, key in keys.items():
                    self.wrote[pair][key] = text
