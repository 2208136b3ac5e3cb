"""How far the replicas of a server are behind, so that a long step waits for them (`MAX_LAG`)."""

from __future__ import annotations

import time
from collections import deque

from consensus_orm.databases.base import Transaction

__all__ = ["Lag"]


class Lag:
    """The lag of the replica that is furthest behind, in seconds.

    The server reports how long its latest commits took to be replayed. It reports nothing new of a replica that stands
    still, so the lag is also measured here: as the age of the oldest position of the write-ahead log, among those seen
    before, that a replica has not replayed yet.

    Attributes:
        seconds: The lag at the last look.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, uow: Transaction) -> None:
        """Look how far the replicas are behind.

        Raises:
            ConfigurationError: The role may not see it.
        """
        found = uow.catalog.replication(uow)
        if found is None:
            self.seconds = 0.0
            return
        written, replayed, reported = found
        now = time.monotonic()
        if not self._seen or written > self._seen[-1][1]:
            self._seen.append((now, written))
        while self._seen and self._seen[0][1] <= replayed:
            self._seen.popleft()
        self.seconds = max(reported, now - self._seen[0][0] if self._seen else 0.0)
