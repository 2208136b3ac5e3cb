"""The events of a store, each with its facts, for logs, spans and metrics.

No event holds an error's message, contents of rows or arguments of the work; keys of rows may be in it. Fields named
`seconds`, or ending in it, are in seconds.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar, TypeAlias

__all__ = [
    "AlarmEvent",
    "BackfillEvent",
    "BlockedEvent",
    "CallEvent",
    "Classification",
    "ComparisonEvent",
    "ConnectionEvent",
    "ErrorKind",
    "Event",
    "LockEvent",
    "MismatchEvent",
    "Outcome",
    "Plain",
    "RejectEvent",
    "RelayEvent",
    "ReplicaEvent",
    "RetryEvent",
    "StatementEvent",
    "UnitBegun",
    "UnitEvent",
    "UnitOutcome",
    "WaitingEvent",
]

Plain: TypeAlias = str | int | float | bool


class ErrorKind(StrEnum):
    """What to do about an error."""

    RETRYABLE = "retryable"
    """The same work may succeed later."""
    PERMANENT = "permanent"
    """The same work will fail again."""
    DEGRADED = "degraded"
    """A part succeeded, and can be used."""


@dataclass(frozen=True, slots=True)
class Classification:
    """What is known about an error.

    Args:
        kind: What to do about it.
        reason: Why, one of a small set of words, fit for a log line or a metric's label; never contents.
        wait: The wait before the next try that the called system asks for; None if it does not.
        caller_fault: The work itself is at fault; the error says nothing about the health of the called system.
    """

    kind: ErrorKind
    reason: str
    wait: timedelta | None = None
    caller_fault: bool = False

    @property
    def retryable(self) -> bool:
        """Whether the same work may succeed later."""
        return self.kind is ErrorKind.RETRYABLE


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        title: Its name in structured logs and on spans.
    """

    title: ClassVar[str]
    _level: ClassVar[int] = logging.NOTSET

    @property
    def level(self) -> int:
        """The level at which it is logged; NOTSET if it is too frequent for a log."""
        return self._level

    def fields(self) -> dict[str, Plain]:
        """The known facts as plain values, for a log line or a span."""
        names = [each.name for each in dataclasses.fields(self) if each.repr]
        facts = {name: getattr(self, name) for name in names}
        return {name: value for name, value in facts.items() if value is not None}

    def attributes(self) -> dict[str, Plain]:
        """The facts under names with the prefix `consensus_orm.`."""
        return {f"consensus_orm.{name}": value for name, value in self.fields().items()}

    def __str__(self) -> str:
        """The event in one line."""
        return self.title


# Calls with their retries ---------------------------------------------------------------------------------


class Outcome(StrEnum):
    """The outcome of a call."""

    FIRST_TRY = "first_try"
    """The first try succeeded."""
    RECOVERED = "recovered"
    """A retry succeeded."""
    EXHAUSTED = "exhausted"
    """The last error was transient, and no try or no time was left."""
    PERMANENT = "permanent"
    """The error was not transient."""
    DEGRADED = "degraded"
    """A part of the work succeeded."""
    CANCELLED = "cancelled"
    """The call was cancelled before it succeeded."""


@dataclass(frozen=True, slots=True)
class RetryEvent(Event):
    """A try failed, and another one follows.

    Args:
        name: The name of the work.
        attempt: The try that failed; the first is 1.
        wait: The wait before the next try.
        classification: Why it may be tried again.
        error_type: The name of the error's class.
        elapsed: Time since the call began.
    """

    title: ClassVar[str] = "consensus_orm.retry"
    _level: ClassVar[int] = logging.INFO
    name: str
    attempt: int
    wait: timedelta
    classification: Classification
    error_type: str
    elapsed: timedelta

    @property
    def reason(self) -> str:
        """Why it may be tried again, one of a small set of words."""
        return self.classification.reason

    def fields(self) -> dict[str, Plain]:
        """The facts as plain values; durations in seconds."""
        return {
            "work": self.name,
            "attempt": self.attempt,
            "wait": self.wait.total_seconds(),
            "kind": self.classification.kind.value,
            "reason": self.reason,
            "error_type": self.error_type,
            "elapsed": self.elapsed.total_seconds(),
        }

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}, trying again in {self.wait.total_seconds():.3f} s"


@dataclass(frozen=True, slots=True)
class CallEvent(Event):
    """A call ended, other than at the first try, which is only counted.

    Args:
        name: The name of the work.
        outcome: How it ended.
        attempts: The number of tries.
        elapsed: Time from its beginning to its end.
        classification: Of its last error; None if there was none.
        error_type: The name of the class of its last error; empty if there was none.
    """

    title: ClassVar[str] = "consensus_orm.call"
    name: str
    outcome: Outcome
    attempts: int
    elapsed: timedelta
    classification: Classification | None = None
    error_type: str = ""

    @property
    def level(self) -> int:
        """WARNING if retries did not help, DEBUG for a permanent error, which the caller gets, else INFO."""
        return {Outcome.EXHAUSTED: logging.WARNING, Outcome.PERMANENT: logging.DEBUG}.get(self.outcome, logging.INFO)

    def fields(self) -> dict[str, Plain]:
        """The facts as plain values; durations in seconds."""
        return {
            "work": self.name,
            "outcome": self.outcome.value,
            "attempts": self.attempts,
            "reason": self.classification.reason if self.classification else "",
            "error_type": self.error_type,
            "elapsed": self.elapsed.total_seconds(),
        }

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome.value} after try {self.attempts}"


# Units of work --------------------------------------------------------------------------------------------


class UnitOutcome(StrEnum):
    """How a unit of work ended."""

    COMMITTED = "committed"
    """It was committed; if read-only, it ended without an error."""
    ROLLED_BACK = "rolled_back"
    """An exception left its block."""
    FAILED = "failed"
    """It could not begin or could not commit."""


@dataclass(frozen=True, slots=True)
class UnitBegun(Event):
    """A unit of work is about to begin.

    Args:
        unit: The unit itself, to recognise it; not a field.
    """

    title: ClassVar[str] = "consensus_orm.unit_of_work.begun"
    unit: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class UnitEvent(Event):
    """A unit of work ended.

    Args:
        unit: The unit itself, to recognise it; not a field.
        phase: Its phase; `none` if the database has none, or could not be read.
        outcome: How it ended.
        read_only: Whether it was read-only.
        seconds: From before it waited for a connection until it returned the connection.
        held_seconds: How long it had a connection; None if it had none.
        error_type: The name of the class of the error that ended it; None if there was none.
    """

    title: ClassVar[str] = "consensus_orm.unit_of_work"
    _level: ClassVar[int] = logging.DEBUG
    unit: Any = field(repr=False)
    phase: str
    outcome: UnitOutcome
    read_only: bool
    seconds: float
    held_seconds: float | None = None
    error_type: str | None = None

    def __str__(self) -> str:
        return f"unit of work in {self.phase}: {self.outcome.value} after {self.seconds:.4f} s"


@dataclass(frozen=True, slots=True)
class ConnectionEvent(Event):
    """A connection was requested from the pool.

    Args:
        seconds: How long it took.
        error_type: The name of the class of the error, if the pool gave none.
    """

    title: ClassVar[str] = "consensus_orm.connection"
    seconds: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class ReplicaEvent(Event):
    """A read-only unit of work began on the primary instead of the replica.

    Args:
        reason: `behind`, if the replica lacks the newest change of phase, or `unreachable`.
        news: Whether this was not so for the unit of work before it.
    """

    title: ClassVar[str] = "consensus_orm.replica"
    reason: str
    news: bool = field(default=True, repr=False)

    @property
    def level(self) -> int:
        """WARNING once, so that a lasting state does not flood the log."""
        return logging.WARNING if self.news else logging.NOTSET

    def __str__(self) -> str:
        return f"the replica is {self.reason}: reading from the primary"


@dataclass(frozen=True, slots=True)
class LockEvent(Event):
    """The write lock was requested.

    Args:
        seconds: How long it took, the wait in the queue of this process included.
        error_type: The name of the class of the error, if it was not acquired.
    """

    title: ClassVar[str] = "consensus_orm.lock"
    seconds: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class BlockedEvent(Event):
    """A change of the phase waits for transactions of other programs on a server.

    Args:
        seconds: How long it has waited.
        blockers: Each of them: process of the server, application_name, role, and the begin of its transaction.
    """

    title: ClassVar[str] = "consensus_orm.blocked"
    _level: ClassVar[int] = logging.WARNING
    seconds: float
    blockers: str

    def __str__(self) -> str:
        return f"the change of the phase waits for {self.blockers}"


@dataclass(frozen=True, slots=True)
class WaitingEvent(Event):
    """A step waits: an operator has paused the long steps, or a gate is shut.

    Args:
        what: What it waits for, and what would help.
    """

    title: ClassVar[str] = "consensus_orm.waiting"
    _level: ClassVar[int] = logging.INFO
    what: str

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class StatementEvent(Event):
    """A statement was sent, and its rows were fetched.

    Args:
        unit: The unit of work it belongs to; not a field.
        operation: Its first word.
        seconds: How long it took; of the session's statements without the fetching.
        error_type: The name of the class of the error it ended with; None if there was none.
    """

    title: ClassVar[str] = "consensus_orm.statement"
    unit: Any = field(repr=False)
    operation: str
    seconds: float
    error_type: str | None = None


# The migration --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ComparisonEvent(Event):
    """Rows of both sides were compared.

    Args:
        pair: The pair of the rows.
        found_by: What compared them: write, shadow_read, verify.
        rows: The number of rows.
    """

    title: ClassVar[str] = "consensus_orm.comparison"
    pair: str
    found_by: str
    rows: int = 1


@dataclass(frozen=True, slots=True)
class MismatchEvent(Event):
    """A row differs between the sides; reported at once, whether or not the unit of work commits.

    Args:
        pair: The pair of the row.
        key: The key of the row; None if too many differ to report each.
        column: The differing column; None for the row as a whole.
        kind: What is wrong with it.
        found_by: What found it: write, shadow_read, verify.
        recorded: Whether the ledger has a new entry for it; not if one is open already, or if the write is refused.
    """

    title: ClassVar[str] = "consensus_orm.mismatch"
    pair: str
    key: Any
    column: str | None
    kind: str
    found_by: str
    recorded: bool

    @property
    def level(self) -> int:
        """WARNING for a new entry of the ledger, so that repeated ones do not flood the log."""
        return logging.WARNING if self.recorded else logging.NOTSET

    def __str__(self) -> str:
        return f"mismatch: {self.pair} {self.key}, {self.column or 'row'} {self.kind}"


@dataclass(frozen=True, slots=True)
class AlarmEvent(Event):
    """Confirmed mismatches passed the rate of the settings, or a relay or keeper found what an operator must see.

    Args:
        reason: What happened; of mismatches, their number and the time.
    """

    title: ClassVar[str] = "consensus_orm.alarm"
    _level: ClassVar[int] = logging.CRITICAL
    reason: str

    def __str__(self) -> str:
        return f"alarm: {self.reason}"


@dataclass(frozen=True, slots=True)
class RejectEvent(Event):
    """A row cannot be carried.

    Args:
        pair: The pair of the row.
        key: The key of the row.
        reason: Why it cannot be carried.
    """

    title: ClassVar[str] = "consensus_orm.reject"
    _level: ClassVar[int] = logging.WARNING
    pair: str
    key: Any
    reason: str

    def __str__(self) -> str:
        return f"reject: {self.pair} {self.key}: {self.reason}"


@dataclass(frozen=True, slots=True)
class BackfillEvent(Event):
    """A chunk of the backfill was committed.

    Args:
        pair: The pair of its rows.
        rows: The number of legacy rows that it carried or checked.
    """

    title: ClassVar[str] = "consensus_orm.backfill"
    _level: ClassVar[int] = logging.DEBUG
    pair: str
    rows: int

    def __str__(self) -> str:
        return f"backfill: {self.rows} rows of {self.pair}"


@dataclass(frozen=True, slots=True)
class RelayEvent(Event):
    """An entry of the outbox was sent to an external store and read back, or could not be.

    Args:
        sink: The external store.
        pair: The pair of the row.
        key: The key of the row.
        outcome: sent, postponed or rejected.
        lag_seconds: The time from the commit of the row until now.
        waiting: The number of entries that wait, as last counted.
    """

    title: ClassVar[str] = "consensus_orm.relay"
    sink: str
    pair: str
    key: Any
    outcome: str
    lag_seconds: float
    waiting: int

    @property
    def level(self) -> int:
        """WARNING for an entry that became a reject, else DEBUG."""
        return logging.WARNING if self.outcome == "rejected" else logging.DEBUG

    def __str__(self) -> str:
        return f"relay: {self.pair} {self.key} {self.outcome} to {self.sink}, {self.lag_seconds:.3f} s behind"
