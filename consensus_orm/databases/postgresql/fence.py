"""The fence on a server: a change of the phase waits for writers under the phase before, and new writers wait for it.

It is a lock on the table of the phase. It was measured (benchmarks/fence.py) against advisory locks and against a lock
on the row, with which writers overtake a waiting flip (for seconds, with 16 steady writers). Distributed engines that
speak the protocol refuse `LOCK TABLE`, and do not know how a transaction ended. On them rows are locked: the answer of
the engine decides, so that all programs use the same fence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import ClassVar

import psycopg

from consensus_orm.databases.base import FENCE
from consensus_orm.databases.lock import Lock
from consensus_orm.settings import Isolation
from consensus_orm.statements.rendering import quoted

__all__ = ["COOKIE", "REFUSALS", "ROWS", "TABLES", "Entry", "Fence"]

REFUSALS = (psycopg.errors.FeatureNotSupported, psycopg.errors.SyntaxError, psycopg.errors.UndefinedFunction)
"""The errors with which an engine refuses a feature that it lacks: 0A000, 42601 and 42883."""

_TURNSTILE = "SELECT FROM consensus_orm_version"

COOKIE = (
    "(SELECT coalesce(bit_xor(hashtextextended(concat_ws(' ', c.oid, c.relname, c.relnamespace, t.tgname, t.tgenabled,"
    " t.xmin, p.xmin), 0)), 0) FROM consensus_orm_guards AS g JOIN pg_class AS c ON c.oid = CAST(g.definition AS oid)"
    " LEFT JOIN pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal LEFT JOIN pg_proc AS p ON p.oid = t.tgfoid"
    " WHERE g.kind <> 'trigger')"
)
"""A number that differs after a guarded table or view was dropped or renamed, or a trigger or its function changed.

`xmin` is the transaction that wrote an entry of the catalog last."""


class Entry(Enum):
    """How a unit of work reads the phase, and with it the cookie of the guards."""

    PREPARED = "prepared"
    """By a prepared statement, which costs 15 us; planning it each time would cost 120 us (measured)."""
    TEXT = "text"
    """By its text, through a connection pooler that does not keep prepared statements."""
    BARE = "bare"
    """The phase alone, on an engine without that catalog."""

    @property
    def next(self) -> Entry:
        """The entry to try instead."""
        return Entry.TEXT if self is Entry.PREPARED else Entry.BARE


class Fence(ABC):
    """The statements for each strength of `Lock`."""

    statement: ClassVar[str]
    """The name of the prepared statement that reads the phase."""
    number: ClassVar[str]
    """The SQL of the transaction id."""

    def begin(
        self,
        lock: Lock,
        isolation: Isolation,
        patience: int | None,
        entry: Entry = Entry.BARE,
        *,
        settings: str = "",
    ) -> bytes:
        """The statements that begin a unit of work that writes, in one message.

        The lock comes before the first read, so that the snapshot is not older than the lock (at REPEATABLE READ with a
        later lock, the transaction would still see the old phase; tried).

        Args:
            lock: Its lock; not NONE.
            isolation: Of its transaction.
            patience: Longest wait for the lock in ms; by default that of the connection.
            entry: How the phase is read.
            settings: Statements that set up the transaction, where the session is not.

        Returns:
            Statements of which the last returns phase, epoch, and the transaction id or ''; unless the entry is bare,
            also the recorded cookie of the guards, and the cookie now.
        """
        isolation = self._isolation(lock, isolation)
        limit = "" if patience is None else f" SET LOCAL lock_timeout = {patience};"
        # A unit of work that carries rows reads ranges of keys, for which a prepared plan is no use.
        plans = " SET LOCAL plan_cache_mode = auto;" if lock.carries else ""
        look = f"EXECUTE {self.statement}" if entry is Entry.PREPARED else self._look(lock, entry)
        begin = f"BEGIN ISOLATION LEVEL {isolation.sql};{settings}"
        return f"{begin}{limit}{plans} {self._enter(lock)}; {look}".encode()

    def prepare(self) -> bytes:
        """The statement that prepares, on a connection, how a unit of work reads the phase."""
        return f"PREPARE {self.statement} AS {self._look(Lock.WRITE, Entry.PREPARED)}".encode()

    def _look(self, lock: Lock, entry: Entry) -> str:
        """The query for the phase, which also tells the triggers whose writes follow."""
        by = "carrier" if lock.carries else "repository"
        cookies = "" if entry is Entry.BARE else f", schema_version, {COOKIE}"
        return (
            f"SELECT phase, epoch, {self.number}, set_config('consensus_orm.by', '{by}', true){cookies}"
            f" FROM consensus_orm_state WHERE id = 1{self._lock_too(lock)}"
        )

    def _lock_too(self, lock: Lock) -> str:
        return ""

    @abstractmethod
    def hold(self, lock: Lock) -> str:
        """The statement that takes a stronger lock within a transaction."""

    @abstractmethod
    def keep_out(self, tables: Iterable[str], triggers: Callable[[], Iterable[tuple[str, str]]]) -> Iterator[str]:
        """The statements that block writers of other programs from tables, until the transaction ends.

        Args:
            tables: Their names; at least one.
            triggers: Asks for the names of the enabled triggers of this package, and their quoted tables.
        """

    def _isolation(self, lock: Lock, asked: Isolation) -> Isolation:
        return Isolation.READ_COMMITTED if lock is Lock.RANGE else asked

    @abstractmethod
    def _enter(self, lock: Lock) -> str: ...


class _Tables(Fence):
    """Table locks (postgresql.org/docs/current/explicit-locking.html).

    SHARE UPDATE EXCLUSIVE conflicts with itself, not with ROW SHARE; SHARE with it, not with itself; EXCLUSIVE
    conflicts with every mode of a writer.
    The view is locked, and with it the table of the phase: before version 16 every one of these modes asks for a right
    with which a role could change the phase.
    """

    statement = "consensus_orm_enter"
    number = "CAST(pg_current_xact_id() AS TEXT)"
    _modes: ClassVar = {
        Lock.WRITE: "ROW SHARE",
        Lock.RANGE: "SHARE",
        Lock.CARRY: "SHARE UPDATE EXCLUSIVE",
        Lock.ALONE: "EXCLUSIVE",
        Lock.FLIP: "EXCLUSIVE",
    }

    def hold(self, lock: Lock) -> str:
        return f"LOCK TABLE {FENCE} IN {self._modes[lock]} MODE"

    def keep_out(self, tables: Iterable[str], triggers: Callable[[], Iterable[tuple[str, str]]]) -> Iterator[str]:
        yield f"LOCK TABLE {', '.join(map(quoted, sorted(tables)))} IN SHARE ROW EXCLUSIVE MODE"

    def _enter(self, lock: Lock) -> str:
        return self.hold(lock)


class _Rows(Fence):
    """Row locks, which conflict in the same way.

    Engines with fewer modes take a stronger one, with which more programs wait. A transaction that locks a row
    overtakes one that waits for a stronger lock on it. So there is a second row, the turnstile: writers lock it for a
    moment before they lock the first, and a flip keeps it locked while it waits for them.
    """

    statement = "consensus_orm_enter_by_row"
    number = "''"
    _modes: ClassVar = {
        Lock.WRITE: "KEY SHARE",
        Lock.RANGE: "SHARE",
        Lock.CARRY: "NO KEY UPDATE",
        Lock.ALONE: "UPDATE",
        Lock.FLIP: "UPDATE",
    }

    def hold(self, lock: Lock) -> str:
        return f"SELECT phase FROM consensus_orm_state WHERE id = 1 FOR {self._modes[lock]}"

    def keep_out(self, tables: Iterable[str], triggers: Callable[[], Iterable[tuple[str, str]]]) -> Iterator[str]:
        """Enable enabled triggers: it changes nothing, and waits for every writer of the table."""
        wanted = {form for name in tables for form in (name, quoted(name))}
        for trigger, table in sorted(triggers()):
            if table in wanted:
                yield f"ALTER TABLE {table} ENABLE TRIGGER {quoted(trigger)}"

    def _isolation(self, lock: Lock, asked: Isolation) -> Isolation:
        # With a snapshot older than the lock, rows deleted during the wait for the lock would be carried again.
        return asked if lock is Lock.WRITE else Isolation.READ_COMMITTED

    def _lock_too(self, lock: Lock) -> str:
        return f" FOR {self._modes[lock]}"

    def _enter(self, lock: Lock) -> str:
        if lock in (Lock.ALONE, Lock.FLIP):
            return f"{_TURNSTILE} FOR UPDATE"
        # The rollback to the savepoint releases the lock.
        return f"SAVEPOINT turnstile; {_TURNSTILE} FOR KEY SHARE; ROLLBACK TO SAVEPOINT turnstile"


TABLES: Fence = _Tables()
ROWS: Fence = _Rows()
