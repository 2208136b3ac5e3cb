"""Reports the progress of long steps to a callback; without one, nothing is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Tally", "Watch", "of_pages"]


@dataclass(frozen=True)
class Progress:
    """The progress of a long step.

    Attributes:
        pair: The pair it works on, or another name ("backup", "changes").
        done: What is done so far, earlier runs included.
        total: What there is to do.
        rate: What was done per second in this run.
        unit: What is counted.
    """

    pair: str
    done: int
    total: int
    rate: float
    unit: str = "rows"

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at this rate; None before anything was measured."""
        return (self.total - self.done) / self.rate if self.rate else None


Watch = Callable[[Progress], object] | None
"""Called after each chunk, outside of its transaction."""


class Tally:
    """Adds up the chunks of a step.

    Args:
        watch: The callback, if any.
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
        """Count what there is to do: once, and only for a callback, since that may read every row."""
        if self._watch is not None and self._total is None:
            self._total = count()

    def add(self, count: int) -> None:
        """Report one more chunk."""
        self._done += count
        if self._watch is not None and self._total:
            rate = self._done / max(time.monotonic() - self._started, 1e-6)
            total = max(self._total, self._done)  # other writers go on
            self._watch(Progress(self._what, self._done, total, rate, self._unit))


def of_pages(watch: Watch, what: str) -> Callable[[int, int], None] | None:
    """A callback that takes pages of the file (done, total) and reports to another one; None if there is none."""
    if watch is None:
        return None
    started = time.monotonic()

    def tell(done: int, total: int) -> None:
        watch(Progress(what, done, total, done / max(time.monotonic() - started, 1e-6), "pages"))

    return tell
