"""Who keeps a change of the phase waiting: asked on a second connection, since the one that waits cannot ask."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg

from consensus_orm.databases.postgresql.login import Login
from consensus_orm.events import BlockedEvent

__all__ = ["Blocker", "Watch"]

FIRST_LOOK = 0.1
"""Seconds of waiting after which the server is asked; most flips take less."""

PAUSE = 0.5
"""Seconds between two looks."""

# Found by the name of its session: behind a connection pooler a client does not know its process of the server, and a
# query for it would take the snapshot of the transaction before the lock. A prepared transaction has the process 0.
_BLOCKERS = (
    "SELECT blocking.pid, other.application_name, other.usename, other.xact_start FROM pg_stat_activity AS waiting"
    " CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS blocking(pid)"
    " LEFT JOIN pg_stat_activity AS other ON other.pid = blocking.pid"
    " WHERE waiting.application_name = %s GROUP BY 1, 2, 3, 4 ORDER BY 4, 1"
)


@dataclass(frozen=True)
class Blocker:
    """A session of the server that has a lock which a flip waits for.

    Attributes:
        pid: Its process of the server; 0 for a prepared transaction.
        application: Its application_name.
        role: Its role.
        since: When its transaction began; None where the role of the flip may not see that.
    """

    pid: int
    application: str | None
    role: str | None
    since: datetime | None

    def __str__(self) -> str:
        if not self.pid:
            return "a prepared transaction (see pg_prepared_xacts)"
        since = f", in its transaction since {self.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"pid {self.pid} ({self.application or 'no application_name'}, role {self.role}){since}"


class Watch:
    """Asks who blocks a session, from when it has waited for a while until `stop`.

    Args:
        login: Logs in on the server.
        name: The application_name of the session that waits.
        tell: Called with an event when the answer changes, on a thread of its own.
    """

    def __init__(self, login: Login, name: str, tell: Callable[[BlockedEvent], object]) -> None:
        self.found: tuple[Blocker, ...] = ()
        """The last answer that named somebody."""
        self._login = login
        self._name = name
        self._tell = tell
        self._since = time.monotonic()
        self._over = threading.Event()
        threading.Thread(target=self._look, name="consensus_orm-blockers", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()

    def _look(self) -> None:
        if self._over.wait(FIRST_LOOK):
            return
        with contextlib.suppress(psycopg.Error), self._login.connect(psycopg.Connection, connect_timeout=2) as asking:
            asking.prepare_threshold = None
            while not self._over.is_set():
                found = tuple(Blocker(*row) for row in self._ask(asking))
                if found and found != self.found:
                    self.found = found
                    self._tell(BlockedEvent(time.monotonic() - self._since, "; ".join(map(str, found))))
                self._over.wait(PAUSE)

    def _ask(self, asking: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
        return asking.execute(_BLOCKERS, (self._name,)).fetchall()
