"""Progress: how far a long step has come, for whoever watches; where nobody does, nothing is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Tally", "Watch", "of_pages"]


@dataclass(frozen=True)
class Progress:
    """How far a long step has come.

    Attributes:
        pair: What it works on: a pair, or what is done besides ("backup", "changes").
        done: How much is done so far, of earlier runs too.
        total: How much there is.
        rate: How much a second in this run.
        unit: What is counted.
    """

    pair: str
    done: int
    total: int
    rate: float
    unit: str = "rows"

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at this rate; None where nothing was measured yet."""
        return (self.total - self.done) / self.rate if self.rate else None


Watch = Callable[[Progress], object] | None
"""Called after each chunk, outside of its transaction."""


class Tally:
    """Adds up the chunks of a step.

    Args:
        watch: Who is told.
        what: The name of the step.
        unit: What is counted.
    """

    def __init__(self, watch: Watch, what: str, unit: str = "rows") -> None:
        self._watch = watch
        self._what = what
        self._unit = unit
        self._started = time.monotonic()
        self._done = 0
        self._total: int | None = None

    def expect(self, count: Callable[[], int]) -> None:
        """Count what there is to do: once, and for a watcher only, since it costs a look at every row.

        Args:
            count: Gives the number.
        """
        if self._watch is not None and self._total is None:
            self._total = count()

    def add(self, count: int) -> None:
        """Tell of one more chunk.

        Args:
            count: How much was done in it.
        """
        self._done += count
        if self._watch is not None and self._total:
            rate = self._done / max(time.monotonic() - self._started, 1e-6)
            total = max(self._total, self._done)  # others go on writing
            self._watch(Progress(self._what, self._done, total, rate, self._unit))


def of_pages(watch: Watch, what: str) -> Callable[[int, int], None] | None:
    """For what counts pages of the file: tells a watcher; None where there is none.

    Args:
        watch: Who is told.
        what: The name of the step.
    """
    if watch is None:
        return None
    started = time.monotonic()

    def tell(done: int, total: int) -> None:
        watch(Progress(what, done, total, done / max(time.monotonic() - started, 1e-6), "pages"))

    return tell
