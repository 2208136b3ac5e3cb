"""The fence on a server: how a change of the phase waits for those who write under the phase before, and they for it.

It is a lock on the table of the phase. Measured against a lock on its row, which lets writers overtake a flip that
waits (for seconds, where 16 write on and on), and against advisory locks (benchmarks/fence.py). Engines that speak
the protocol and run on many machines refuse `LOCK TABLE`, and do not tell how a transaction ended. There rows are
locked: the engine's answer decides, so that all programs on it use the same fence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

import psycopg

from consensus_orm.lock import Lock
from consensus_orm.settings import Isolation
from consensus_orm.sql import quoted

__all__ = ["REFUSALS", "ROWS", "TABLES", "Fence"]

REFUSALS = (psycopg.errors.FeatureNotSupported, psycopg.errors.SyntaxError, psycopg.errors.UndefinedFunction)
"""How an engine says that it does not have something: 0A000, 42601 and 42883."""


_TURNSTILE = "SELECT FROM consensus_orm_version"


class Fence(ABC):
    """What is sent for each strength of `Lock`."""

    def begin(self, lock: Lock, isolation: Isolation, patience: int | None) -> bytes:
        """What begins a unit of work that writes, in one message.

        The lock comes before the first look at any row, so that what is seen is not older than the lock (at
        REPEATABLE READ a lock taken later would leave the old phase in sight; tried).

        Args:
            lock: Its lock; not NONE.
            isolation: Of its transaction.
            patience: Longest wait for the lock in ms; that of the connection where left out.

        Returns:
            Statements of which the last gives phase, epoch, and the number of the transaction, '' where it has none.
        """
        isolation = self._isolation(lock, isolation)
        limit = "" if patience is None else f" SET LOCAL lock_timeout = {patience};"
        # Who carries looks at ranges, for which there is no plan to keep.
        plans = "" if lock is Lock.WRITE else " SET LOCAL plan_cache_mode = auto;"
        by = f"set_config('consensus_orm.by', '{'repository' if lock is Lock.WRITE else 'carrier'}', true)"
        return f"BEGIN ISOLATION LEVEL {isolation.sql};{limit}{plans} {self._enter(lock, by)}".encode()

    @abstractmethod
    def hold(self, lock: Lock) -> str:
        """What takes a stronger lock within a transaction."""

    @abstractmethod
    def keep_out(self, tables: Iterable[str], triggers: Iterable[tuple[str, str]]) -> Iterator[str]:
        """What keeps the writers of other programs out of tables, until the transaction ends.

        Args:
            tables: Their names; at least one.
            triggers: Ours that are in force, and their tables, quoted.

        Yields:
            Statements.
        """

    def _isolation(self, lock: Lock, asked: Isolation) -> Isolation:
        return asked

    @abstractmethod
    def _enter(self, lock: Lock, by: str) -> str: ...


class _Tables(Fence):
    """Table locks (postgresql.org/docs/current/explicit-locking.html).

    Only ROW SHARE and weaker ones go together with SHARE UPDATE EXCLUSIVE, which excludes itself, and with EXCLUSIVE
    none that a writer takes.
    """

    _modes: ClassVar = {Lock.WRITE: "ROW SHARE", Lock.CARRY: "SHARE UPDATE EXCLUSIVE", Lock.FLIP: "EXCLUSIVE"}

    def hold(self, lock: Lock) -> str:
        return f"LOCK TABLE consensus_orm_state IN {self._modes[lock]} MODE"

    def keep_out(self, tables: Iterable[str], triggers: Iterable[tuple[str, str]]) -> Iterator[str]:
        yield f"LOCK TABLE {', '.join(map(quoted, sorted(tables)))} IN SHARE ROW EXCLUSIVE MODE"

    def _enter(self, lock: Lock, by: str) -> str:
        number = "CAST(pg_current_xact_id() AS TEXT)"
        return f"{self.hold(lock)}; SELECT phase, epoch, {number}, {by} FROM consensus_orm_state WHERE id = 1"


class _Rows(Fence):
    """Row locks, which exclude each other in the same way.

    Engines that know fewer of them take a stronger one for a weaker one, which keeps more programs waiting. Who locks
    a row overtakes who waits for a stronger lock on it, so there is a turnstile before it: another row, which
    writers lock only to go through, and which a flip keeps locked while it waits for those who are within.
    """

    _modes: ClassVar = {Lock.WRITE: "KEY SHARE", Lock.CARRY: "NO KEY UPDATE", Lock.FLIP: "UPDATE"}

    def hold(self, lock: Lock) -> str:
        return f"SELECT phase FROM consensus_orm_state WHERE id = 1 FOR {self._modes[lock]}"

    def keep_out(self, tables: Iterable[str], triggers: Iterable[tuple[str, str]]) -> Iterator[str]:
        """What is in force is put in force: it changes nothing, and waits for all who write the table."""
        wanted = {form for name in tables for form in (name, quoted(name))}
        for trigger, table in sorted(triggers):
            if table in wanted:
                yield f"ALTER TABLE {table} ENABLE TRIGGER {quoted(trigger)}"

    def _isolation(self, lock: Lock, asked: Isolation) -> Isolation:
        # A snapshot that is older than the lock would bring back what was deleted while it was waited for.
        return asked if lock is Lock.WRITE else Isolation.READ_COMMITTED

    def _enter(self, lock: Lock, by: str) -> str:
        phase = f"SELECT phase, epoch, '', {by} FROM consensus_orm_state WHERE id = 1 FOR {self._modes[lock]}"
        if lock is Lock.FLIP:
            return f"{_TURNSTILE} FOR UPDATE; {phase}"
        # What a savepoint locked is free again when it is rolled back.
        return f"SAVEPOINT turnstile; {_TURNSTILE} FOR KEY SHARE; ROLLBACK TO SAVEPOINT turnstile; {phase}"


TABLES: Fence = _Tables()
ROWS: Fence = _Rows()
