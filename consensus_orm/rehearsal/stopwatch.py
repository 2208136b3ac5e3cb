"""A queue of writers that measures how long the rehearsal itself kept the write lock of a file."""

from __future__ import annotations

import threading
import time

from consensus_orm.databases.fair_queue import Turns

__all__ = ["Stopwatch"]


class Stopwatch(Turns):
    """The queue of the copy's writers, which remembers how long the rehearsal itself held a turn.

    Every writer of a process has a turn while it holds the write lock; so this is how long a writer of another
    process had to wait.
    """

    __slots__ = ("_mine", "_since", "_thread", "longest")

    def __init__(self) -> None:
        super().__init__(1)
        self.longest = 0.0
        self._since = 0.0
        self._thread = threading.get_ident()
        self._mine = False

    def acquire(self, timeout: float) -> bool:
        """Take the turn."""
        taken = super().acquire(timeout)
        if taken:
            self._mine = threading.get_ident() == self._thread
            self._since = time.perf_counter()
        return taken

    def release(self) -> None:
        """Give the turn back."""
        if self._mine:
            self.longest = max(self.longest, time.perf_counter() - self._since)
        super().release()

    def reset(self) -> float:
        """The longest turn since the last call, in seconds."""
        longest, self.longest = self.longest, 0.0
        return longest
