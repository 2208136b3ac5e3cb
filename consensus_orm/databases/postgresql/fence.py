"""The fence on a server: how a change of the phase waits for those who write under the phase before, and they for it.

It is a lock on the table of the phase. Measured against a lock on its row, which lets writers overtake a flip that
waits (for seconds, where 16 write on and on), and against advisory locks (benchmarks/fence.py). Engines that speak
the protocol and run on many machines refuse `LOCK TABLE`, and do not tell how a transaction ended. There rows are
locked: the engine's answer decides, so that all programs on it use the same fence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import ClassVar

import psycopg

from consensus_orm.databases.lock import Lock
from consensus_orm.settings import Isolation
from consensus_orm.statements.rendering import quoted

__all__ = ["COOKIE", "REFUSALS", "ROWS", "TABLES", "Entry", "Fence"]

REFUSALS = (psycopg.errors.FeatureNotSupported, psycopg.errors.SyntaxError, psycopg.errors.UndefinedFunction)
"""How an engine says that it does not have something: 0A000, 42601 and 42883."""


_TURNSTILE = "SELECT FROM consensus_orm_version"

COOKIE = (
    "(SELECT coalesce(bit_xor(hashtextextended(concat_ws(' ', c.oid, c.relname, c.relnamespace, t.tgname, t.tgenabled,"
    " t.xmin, p.xmin), 0)), 0) FROM consensus_orm_guards AS g JOIN pg_class AS c ON c.oid = CAST(g.definition AS oid)"
    " LEFT JOIN pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal LEFT JOIN pg_proc AS p ON p.oid = t.tgfoid"
    " WHERE g.kind <> 'trigger')"
)
"""A number that differs once a guarded table or view was dropped or renamed, or a trigger or its function changed.

`xmin` is the transaction that wrote an entry of the catalog last."""


class Entry(Enum):
    """How a unit of work reads the phase, and with it whether what guards the phase was touched."""

    PREPARED = "prepared"
    """By a prepared statement: planning the question costs 120 us more, and this 15 (measured)."""
    TEXT = "text"
    """By its text: somebody between us and the server keeps no prepared statements."""
    BARE = "bare"
    """The phase alone: the engine's catalog cannot be asked."""

    @property
    def next(self) -> Entry:
        """What to try instead."""
        return Entry.TEXT if self is Entry.PREPARED else Entry.BARE


class Fence(ABC):
    """What is sent for each strength of `Lock`."""

    statement: ClassVar[str]
    """The name of the prepared statement that reads the phase."""
    number: ClassVar[str]
    """What gives the number of the transaction."""

    def begin(self, lock: Lock, isolation: Isolation, patience: int | None, entry: Entry = Entry.BARE) -> bytes:
        """What begins a unit of work that writes, in one message.

        The lock comes before the first look at any row, so that what is seen is not older than the lock (at
        REPEATABLE READ a lock taken later would leave the old phase in sight; tried).

        Args:
            lock: Its lock; not NONE.
            isolation: Of its transaction.
            patience: Longest wait for the lock in ms; that of the connection where left out.
            entry: How the phase is read.

        Returns:
            Statements of which the last gives phase, epoch, and the number of the transaction, '' where it has none;
            unless the entry is bare, also the recorded cookie of the guards, and the cookie now.
        """
        isolation = self._isolation(lock, isolation)
        limit = "" if patience is None else f" SET LOCAL lock_timeout = {patience};"
        # Who carries looks at ranges, for which there is no plan to keep.
        plans = "" if lock is Lock.WRITE else " SET LOCAL plan_cache_mode = auto;"
        look = f"EXECUTE {self.statement}" if entry is Entry.PREPARED else self._look(lock, entry)
        return f"BEGIN ISOLATION LEVEL {isolation.sql};{limit}{plans} {self._enter(lock)}; {look}".encode()

    def prepare(self) -> bytes:
        """What prepares, on a connection, the statement by which a unit of work reads the phase."""
        return f"PREPARE {self.statement} AS {self._look(Lock.WRITE, Entry.PREPARED)}".encode()

    def _look(self, lock: Lock, entry: Entry) -> str:
        """What reads the phase, and tells our triggers whose writes follow."""
        by = "repository" if lock is Lock.WRITE else "carrier"
        cookies = "" if entry is Entry.BARE else f", schema_version, {COOKIE}"
        return (
            f"SELECT phase, epoch, {self.number}, set_config('consensus_orm.by', '{by}', true){cookies}"
            f" FROM consensus_orm_state WHERE id = 1{self._lock_too(lock)}"
        )

    def _lock_too(self, lock: Lock) -> str:
        return ""

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
    def _enter(self, lock: Lock) -> str: ...


class _Tables(Fence):
    """Table locks (postgresql.org/docs/current/explicit-locking.html).

    Only ROW SHARE and weaker ones go together with SHARE UPDATE EXCLUSIVE, which excludes itself, and with EXCLUSIVE
    none that a writer takes.
    """

    statement = "consensus_orm_enter"
    number = "CAST(pg_current_xact_id() AS TEXT)"
    _modes: ClassVar = {Lock.WRITE: "ROW SHARE", Lock.CARRY: "SHARE UPDATE EXCLUSIVE", Lock.FLIP: "EXCLUSIVE"}

    def hold(self, lock: Lock) -> str:
        return f"LOCK TABLE consensus_orm_state IN {self._modes[lock]} MODE"

    def keep_out(self, tables: Iterable[str], triggers: Iterable[tuple[str, str]]) -> Iterator[str]:
        yield f"LOCK TABLE {', '.join(map(quoted, sorted(tables)))} IN SHARE ROW EXCLUSIVE MODE"

    def _enter(self, lock: Lock) -> str:
        return self.hold(lock)


class _Rows(Fence):
    """Row locks, which exclude each other in the same way.

    Engines that know fewer of them take a stronger one for a weaker one, which keeps more programs waiting. Who locks
    a row overtakes who waits for a stronger lock on it, so there is a turnstile before it: another row, which
    writers lock only to go through, and which a flip keeps locked while it waits for those who are within.
    """

    statement = "consensus_orm_enter_by_row"
    number = "''"
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

    def _lock_too(self, lock: Lock) -> str:
        return f" FOR {self._modes[lock]}"

    def _enter(self, lock: Lock) -> str:
        if lock is Lock.FLIP:
            return f"{_TURNSTILE} FOR UPDATE"
        # What a savepoint locked is free again when it is rolled back.
        return f"SAVEPOINT turnstile; {_TURNSTILE} FOR KEY SHARE; ROLLBACK TO SAVEPOINT turnstile"


TABLES: Fence = _Tables()
ROWS: Fence = _Rows()
