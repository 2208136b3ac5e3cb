"""What can happen: the facts of each kind of event, once, for logs, spans and metrics alike.

No event ever holds an error's message, contents of a row or an argument of the work; keys of rows are told.
What is called `seconds` or ends in it is in seconds.
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
    "ReplicaEvent",
    "RetryEvent",
    "StatementEvent",
    "UnitBegun",
    "UnitEvent",
    "UnitOutcome",
]

Plain: TypeAlias = str | int | float | bool


class ErrorKind(StrEnum):
    """What to do about an error."""

    RETRYABLE = "retryable"
    """The same work may succeed a little later."""
    PERMANENT = "permanent"
    """The same work will fail again."""
    DEGRADED = "degraded"
    """A part succeeded; what there is can be used."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The verdict on one error.

    Args:
        kind: What to do about it.
        reason: Why, in few words out of a small set, fit for a log line or a metric's label; never contents.
        wait: How long whoever answered asks to wait before the next try; None where nobody said.
        caller_fault: The work itself is at fault; the error says nothing about the health of what was called.
    """

    kind: ErrorKind
    reason: str
    wait: timedelta | None = None
    caller_fault: bool = False

    @property
    def retryable(self) -> bool:
        """Whether the same work may succeed a little later."""
        return self.kind is ErrorKind.RETRYABLE


class Event:
    """Something that happened.

    Attributes:
        title: What it is called in structured logs and on spans.
    """

    __slots__ = ()
    title: ClassVar[str]
    _level: ClassVar[int] = logging.NOTSET

    @property
    def level(self) -> int:
        """At which level it is logged; NOTSET where it is too frequent for a log."""
        return self._level

    def fields(self) -> dict[str, Plain]:
        """The facts as plain values, for a log line or a span; what is not known is left out."""
        names = [each.name for each in dataclasses.fields(self) if each.repr]  # type: ignore[arg-type]
        facts = {name: getattr(self, name) for name in names}
        return {name: value for name, value in facts.items() if value is not None}

    def attributes(self) -> dict[str, Plain]:
        """The facts under names that are nobody else's: prefixed with `consensus_orm.`."""
        return {f"consensus_orm.{name}": value for name, value in self.fields().items()}

    def __str__(self) -> str:
        """One line for people."""
        return self.title


# Calls with their retries ---------------------------------------------------------------------------------


class Outcome(StrEnum):
    """How a call ended."""

    FIRST_TRY = "first_try"
    """It succeeded at once."""
    RECOVERED = "recovered"
    """It succeeded after at least one retry."""
    EXHAUSTED = "exhausted"
    """Its last error was transient, and no try or no time was left."""
    PERMANENT = "permanent"
    """It failed with an error that another try would not change."""
    DEGRADED = "degraded"
    """A part of it succeeded."""
    CANCELLED = "cancelled"
    """It was cancelled before it succeeded."""


@dataclass(frozen=True, slots=True)
class RetryEvent(Event):
    """A try failed, and another one follows.

    Args:
        name: What the work is called.
        attempt: The try that failed; the first is 1.
        wait: How long until the next try.
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
        """Why it may be tried again, out of a small set of words."""
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
    """A call ended otherwise than by succeeding at once, which is counted but not told.

    Args:
        name: What the work is called.
        outcome: How it ended.
        attempts: How many tries were made.
        elapsed: Time from its beginning to its end.
        classification: The verdict on its last error; None where it never failed.
        error_type: The name of the class of its last error; empty where it never failed.
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
        """WARNING where nothing helped, DEBUG for a permanent error, which the caller gets anyway, else INFO."""
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
        return f"{self.name}: {self.outcome.value} after {self.attempts} tries"


# Units of work --------------------------------------------------------------------------------------------


class UnitOutcome(StrEnum):
    """How a unit of work ended."""

    COMMITTED = "committed"
    """Everything was kept; of one that only reads: it came to its end."""
    ROLLED_BACK = "rolled_back"
    """An exception left its block."""
    FAILED = "failed"
    """It could not begin or could not commit."""


@dataclass(frozen=True, slots=True)
class UnitBegun(Event):
    """A unit of work is about to begin.

    Args:
        unit: The unit itself, to know it again; never told.
    """

    title: ClassVar[str] = "consensus_orm.unit_of_work.begun"
    unit: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class UnitEvent(Event):
    """A unit of work ended.

    Args:
        unit: The unit itself, to know it again; never told.
        phase: Its phase; `none` where the database has no phase, or could not be asked.
        outcome: How it ended.
        read_only: Whether it could only read.
        seconds: From before it waited for a connection until the connection was given back.
        held_seconds: How long it had a connection; None where it had none.
        error_type: The name of the class of the error that ended it; None where there was none.
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
    """A connection was asked of the pool.

    Args:
        seconds: How long it took.
        error_type: The name of the class of the error, where none came.
    """

    title: ClassVar[str] = "consensus_orm.connection"
    seconds: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class ReplicaEvent(Event):
    """A read-only unit of work began on the primary instead of the replica.

    Args:
        reason: `behind`, where the replica has not seen the newest change of phase, or `unreachable`.
        news: Whether the one before it did not, or for another reason.
    """

    title: ClassVar[str] = "consensus_orm.replica"
    reason: str
    news: bool = field(default=True, repr=False)

    @property
    def level(self) -> int:
        """WARNING once: what lasts would only flood the log."""
        return logging.WARNING if self.news else logging.NOTSET

    def __str__(self) -> str:
        return f"the replica is {self.reason}: reading from the primary"


@dataclass(frozen=True, slots=True)
class LockEvent(Event):
    """The write lock was asked for.

    Args:
        seconds: How long it took, waiting in the queue of this process included.
        error_type: The name of the class of the error, where it did not come.
    """

    title: ClassVar[str] = "consensus_orm.lock"
    seconds: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class StatementEvent(Event):
    """A statement was sent, and its rows were fetched.

    Args:
        unit: The unit of work it belongs to; never told.
        operation: Its first word.
        seconds: How long it took; of the session's statements without the fetching.
        error_type: The name of the class of the error it ended with; None where there was none.
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
        rows: How many.
    """

    title: ClassVar[str] = "consensus_orm.comparison"
    pair: str
    found_by: str
    rows: int = 1


@dataclass(frozen=True, slots=True)
class MismatchEvent(Event):
    """A row was found to differ between the sides; told at once, whether or not the unit of work commits.

    Args:
        pair: The pair of the row.
        key: The key of the row; None where too many differ to tell them one by one.
        column: The differing column; None for the row as a whole.
        kind: What is wrong with it.
        found_by: What found it: write, shadow_read, verify.
        recorded: Whether the ledger has a new entry for it. It has none where one is open already, or where the
            write is refused instead.
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
        """WARNING once: what is seen again, or raised, would only flood the log."""
        return logging.WARNING if self.recorded else logging.NOTSET

    def __str__(self) -> str:
        return f"mismatch: {self.pair} {self.key}, {self.column or 'row'} {self.kind}"


@dataclass(frozen=True, slots=True)
class AlarmEvent(Event):
    """Confirmed mismatches passed the rate of the settings.

    Args:
        reason: How many in which time.
    """

    title: ClassVar[str] = "consensus_orm.alarm"
    _level: ClassVar[int] = logging.CRITICAL
    reason: str

    def __str__(self) -> str:
        return f"alarm: {self.reason}"


@dataclass(frozen=True, slots=True)
class RejectEvent(Event):
    """A row was found that cannot be carried.

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
        rows: How many legacy rows it carried or looked at.
    """

    title: ClassVar[str] = "consensus_orm.backfill"
    _level: ClassVar[int] = logging.DEBUG
    pair: str
    rows: int

    def __str__(self) -> str:
        return f"backfill: {self.rows} rows of {self.pair}"
