"""Samples of the writes of this process, kept in the database for the dashboard."""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consensus_orm import validation as check
from consensus_orm.errors import ConsensusError, StoreClosedError
from consensus_orm.events import Event, UnitEvent, UnitOutcome
from consensus_orm.ledgers import samples
from consensus_orm.unit_of_work.unit import UnitOfWork

if TYPE_CHECKING:
    from consensus_orm.store import Store

__all__ = ["Sampler"]

log = logging.getLogger("consensus_orm")


@dataclass
class _Sum:
    """Units of work of one phase: how many, and how long all of them and the longest took, in seconds."""

    count: int = 0
    took: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.took += seconds
        self.longest = max(self.longest, seconds)


class Sampler:
    """Adds up the units of work that wrote, and writes the sums to the database from time to time.

    Args:
        store: The store; it is not kept open by this.
        application: The name and version of the application; the name of the program where empty.
        interval: Time between two writes.
    """

    def __init__(self, store: Store[Any], application: str, interval: timedelta) -> None:
        self._store = weakref.ref(store)
        self._application = check.text("application", application) or Path(sys.argv[0]).name
        self._interval = check.interval("interval", interval).total_seconds()
        self._sums: dict[str, _Sum] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="consensus_orm-samples", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def hear(self, event: Event) -> None:
        """Count a unit of work that wrote; those of the sampler itself do not count."""
        if not isinstance(event, UnitEvent) or event.read_only or event.outcome is not UnitOutcome.COMMITTED:
            return
        if threading.current_thread() is not self._thread:
            with self._lock:
                self._sums.setdefault(event.phase, _Sum()).add(event.seconds)

    def _work(self) -> None:
        waiting = threading.Event()
        while not waiting.wait(self._interval) and (store := self._store()) is not None:
            try:
                self.write(store)
            except StoreClosedError:
                return
            except ConsensusError as error:  # the next one has the sums of this one, too
                log.warning("samples for the dashboard could not be written: %s", type(error).__name__)
            del store

    def write(self, store: Store[Any]) -> None:
        """Write what was added up since the last time; nothing where nothing was written.

        Raises:
            ConsensusError: It could not be written; it is kept for the next time.
        """
        with self._lock:
            sums, self._sums = self._sums, {}
        try:
            if sums:
                store.run(lambda uow: self._add(uow, sums))
        except ConsensusError:
            with self._lock:
                for phase, missed in sums.items():
                    now = self._sums.setdefault(phase, _Sum())
                    now.count, now.took = now.count + missed.count, now.took + missed.took
                    now.longest = max(now.longest, missed.longest)
            raise

    def _add(self, uow: UnitOfWork, sums: dict[str, _Sum]) -> None:
        for phase, each in sums.items():
            samples.add(
                uow,
                samples.WRITE,
                phase,
                each.count,
                application=self._application,
                took=each.took,
                longest=each.longest,
            )
