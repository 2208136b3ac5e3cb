"""Turns: a semaphore that serves in the order of asking.

`threading.Semaphore` and SQLAlchemy's QueuePool let a newcomer overtake those who wait, and SQLite's busy
handler sleeps up to 100 ms between two tries; with many threads the unlucky ones wait for seconds. Here a
permit given back goes straight to whoever has waited longest.
"""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Turns"]


class Turns:
    """Permits, lent in the order in which they were asked for.

    `release` takes no lock that can block: the garbage collector may call it, on a thread that is inside
    this very class.

    Args:
        permits: How many may be lent at once.
    """

    __slots__ = ("_free", "_serving", "_waiting")

    def __init__(self, permits: int) -> None:
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
        if not self._waiting:
            try:
                self._free.pop()
            except IndexError:
                pass
            else:
                return True
        return timeout > 0 and self._wait(timeout)

    def release(self) -> None:
        """Give a permit back."""
        self._free.append(None)
        self._serve()

    def _wait(self, timeout: float) -> bool:
        turn = threading.Lock()
        turn.acquire()
        self._waiting.append(turn)
        self._serve()
        try:
            if turn.acquire(timeout=timeout):
                return True
        except BaseException:  # KeyboardInterrupt: a permit that came meanwhile must not be lost
            if not self._withdraw(turn):
                self.release()
            raise
        return not self._withdraw(turn)

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
