"""Turns: a semaphore that serves in the order of asking.

`threading.Semaphore` and SQLAlchemy's QueuePool let a newcomer overtake those who wait, and SQLite's busy
handler sleeps up to 100 ms between two tries; with many threads the unlucky ones wait for seconds. Here a
permit given back goes straight to whoever has waited longest.
"""

from __future__ import annotations

import threading
import time
from collections import deque

__all__ = ["Turn", "Turns"]

AT_ONCE = 0.0002
"""Seconds within which a thread that asks again is taken for one that will do so next time."""

LOOK = 0.001
"""Seconds after which the first in line looks for itself; the others, who need not, after ten times as long."""


class _Stint(threading.local):
    """What a thread did last: when it gave its permit back, and until when it may take it again before others."""

    released = until = 0.0


class Turns:
    """Permits, lent in the order in which they were asked for.

    To hand over a permit from thread to thread takes as long as most of what is done with it. So a thread that keeps
    asking again at once may go on for a stint, and then the next in line does.

    `release` takes no lock that can block: the garbage collector may call it, on a thread that is inside
    this very class.

    Args:
        permits: How many may be lent at once.
        stint: How long, in seconds, one thread may go on while others wait.
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
        """How many are waiting now."""
        return len(self._waiting)

    def acquire(self, timeout: float) -> bool:
        """Take a permit.

        Args:
            timeout: Longest wait in seconds; 0 does not wait.

        Returns:
            Whether there was one in time.
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
        """Give a permit back."""
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
                if turn.acquire(timeout=min(left, self._look(turn))):
                    return True
                self._serve()
        except BaseException:  # KeyboardInterrupt: a permit that came meanwhile must not be lost
            if not self._withdraw(turn):
                self.release()
            raise
        return not self._withdraw(turn)

    def _look(self, turn: threading.Lock) -> float:
        """How long to wait before a look: who was expected back may have stayed away."""
        if not self._length:
            return threading.TIMEOUT_MAX
        try:
            return LOOK if self._waiting[0] is turn else 10 * LOOK
        except IndexError:  # it has just been served
            return LOOK

    def _withdraw(self, turn: threading.Lock) -> bool:
        """Stop waiting; False where the permit has come already."""
        try:
            with self._serving:
                self._waiting.remove(turn)
        except ValueError:
            return False
        finally:
            self._serve()
        return True

    def _serve(self) -> None:
        """Hand free permits to those who wait.

        Whoever finds the lock taken may leave: its holder looks again after giving it up.
        """
        while self._waiting and self._free and self._serving.acquire(blocking=False):
            try:
                if self._waiting:
                    self._free.pop()
                    self._waiting.popleft().release()
            except IndexError:  # a newcomer took the permit
                pass
            finally:
                self._serving.release()


class Turn:
    """One permit that was taken, until it ends; a turn that is garbage has ended.

    Args:
        turns: Where the permit was taken, and goes back to.
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
        """Give the permit back, once."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.release()

    __del__ = end
