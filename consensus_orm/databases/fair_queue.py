"""A fair queue: a semaphore that serves threads in the order of asking.

`threading.Semaphore` and SQLAlchemy's QueuePool let a new thread overtake waiting ones, and SQLite's busy handler
sleeps up to 100 ms between two tries; with many threads some wait for seconds. Here a released permit goes straight to
the thread that has waited longest.
"""

from __future__ import annotations

import threading
import time
from collections import deque

__all__ = ["Turn", "Turns"]

AT_ONCE = 0.0002
"""Seconds within which a thread that asks again is expected to do so next time."""

CHECK = 0.001
"""Seconds after which the first thread in the queue checks for a permit itself; the others after ten times as long."""


class _Stint(threading.local):
    """When a thread released its permit, and until when it may take it again before others."""

    released = until = 0.0


class Turns:
    """Permits, lent in the order in which threads ask for them.

    The handover of a permit from thread to thread takes as long as most of the work done with it. So a thread that
    keeps asking again at once may continue for a stint, before the next thread in the queue gets the permit.

    `release` takes no lock that can block: the garbage collector may call it, on a thread that is inside this class.

    Args:
        permits: How many may be lent at once.
        stint: How long, in seconds, one thread may continue while others wait.
    """

    __slots__ = ("_free", "_length", "_serving", "_stint", "_waiting")

    def __init__(self, permits: int, stint: float = 0.0) -> None:
        self._length = stint
        self._stint = _Stint()
        self._free: deque[None] = deque([None] * permits)
        self._waiting: deque[threading.Lock] = deque()
        self._serving = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many threads are waiting."""
        return len(self._waiting)

    def acquire(self, timeout: float) -> bool:
        """Take a permit.

        Args:
            timeout: Longest wait in seconds; 0 does not wait.

        Returns:
            Whether a permit came in time.
        """
        asked, stint = time.monotonic(), self._stint
        goes_on = asked < stint.until
        if not ((goes_on or not self._waiting) and self._take()):
            if timeout <= 0 or not self._wait(timeout):
                return False
            goes_on = False
        if not goes_on:
            comes_back = self._length and asked - stint.released < AT_ONCE
            stint.until = time.monotonic() + self._length if comes_back else 0.0
        return True

    def _take(self) -> bool:
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def release(self) -> None:
        """Return a permit."""
        now = self._stint.released = time.monotonic()
        self._free.append(None)
        if now >= self._stint.until:
            self._serve()

    def _wait(self, timeout: float) -> bool:
        turn, deadline = threading.Lock(), time.monotonic() + timeout
        turn.acquire()
        self._waiting.append(turn)
        self._serve()
        try:
            while (left := deadline - time.monotonic()) > 0:
                if turn.acquire(timeout=min(left, self._check_after(turn))):
                    return True
                self._serve()
        except BaseException:  # such as KeyboardInterrupt: a permit that came meanwhile must not be lost
            if not self._withdraw(turn):
                self.release()
            raise
        return not self._withdraw(turn)

    def _check_after(self, turn: threading.Lock) -> float:
        """How long to wait before a check: the thread that was expected to ask again may not have done so."""
        if not self._length:
            return threading.TIMEOUT_MAX
        try:
            return CHECK if self._waiting[0] is turn else 10 * CHECK
        except IndexError:  # it has just been served
            return CHECK

    def _withdraw(self, turn: threading.Lock) -> bool:
        """Stop waiting; False if the permit has come already."""
        try:
            with self._serving:
                self._waiting.remove(turn)
        except ValueError:
            return False
        finally:
            self._serve()
        return True

    def _serve(self) -> None:
        """Hand free permits to waiting threads.

        A thread that finds the lock taken may leave: its holder checks again after releasing it.
        """
        while self._waiting and self._free and self._serving.acquire(blocking=False):
            try:
                if self._waiting:
                    self._free.pop()
                    self._waiting.popleft().release()
            except IndexError:  # another thread took the permit
                pass
            finally:
                self._serving.release()


class Turn:
    """One permit, taken until the turn ends; garbage collection ends it too.

    Args:
        turns: The queue of the permit.
        waited: How many seconds its owner waited for it.

    Attributes:
        kept: Whether it ends with the return of a connection to the pool, not with a transaction.
    """

    __slots__ = ("_turns", "kept", "waited")

    def __init__(self, turns: Turns, waited: float) -> None:
        self._turns: Turns | None = turns
        self.waited = waited
        self.kept = False

    def end(self) -> None:
        """Return the permit, once."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.release()

    __del__ = end
