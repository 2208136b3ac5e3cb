"""Classifies errors: retryable, permanent, or a partial success.

Errors are recognised by code, type and attributes, never by words of the message: messages are translated, reworded
from release to release, and may repeat contents of rows.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, runtime_checkable

from sqlalchemy import exc

from consensus_orm import errors
from consensus_orm.events import Classification, ErrorKind
from consensus_orm.settings import utc_now

__all__ = ["Classification", "ErrorKind", "RetryClassifiable", "classify"]


@runtime_checkable
class RetryClassifiable(Protocol):
    """An error that classifies itself, which overrides everything else known about it."""

    def retry_classification(self) -> Classification:
        """Classify this error."""
        ...


def classify(error: BaseException, *, now: Callable[[], datetime] = utc_now) -> Classification:
    """Tell whether work that failed may be tried again.

    The first known error decides: the error itself, then what it was explicitly raised from (`raise ... from`), and so
    on. An error that was merely being handled at the time (`__context__`) does not count.

    Args:
        error: The error of the work.
        now: Gives the time, aware; a Retry-After header may hold a date.

    Returns:
        The classification; an unknown error is PERMANENT and the caller's fault.
    """
    if isinstance(error, Exception):
        for link in _chain(error):
            if (found := _recognise(link, now)) is not None:
                return found
    # A storage error without a known code says that the database failed, though not why.
    ours = isinstance(error, errors.StorageError)
    return Classification(ErrorKind.PERMANENT, type(error).__name__, caller_fault=not ours)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        # SQLAlchemy keeps the driver's error here, also where it was not raised from it.
        origin = getattr(link, "orig", None) if isinstance(link, exc.StatementError) else None
        link = origin if isinstance(origin, BaseException) else link.__cause__


def _recognise(error: BaseException, now: Callable[[], datetime]) -> Classification | None:
    if isinstance(error, RetryClassifiable):
        return error.retry_classification()
    return (
        _lost_connection(error)
        or _sqlite(error)
        or _postgres(error)
        or _ours(error)
        or _http(error, now)
        or _network(error)
    )


def _lost_connection(error: BaseException) -> Classification | None:
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return Classification(ErrorKind.RETRYABLE, "connection lost")
    if isinstance(error, exc.TimeoutError):
        return Classification(ErrorKind.RETRYABLE, "pool exhausted")
    # Not imported: a process that has not loaded psycopg has none of its errors. Errors without a SQLSTATE come from
    # the client: the server could not be reached, or the connection broke. A refused login has none, too, since libpq
    # passes on its message only; it is retried in vain.
    psycopg = sys.modules.get("psycopg")
    if psycopg is None or not isinstance(error, psycopg.OperationalError):
        return None
    return Classification(ErrorKind.RETRYABLE, "connection lost") if getattr(error, "sqlstate", None) is None else None


_SQLITE_NAMES = {
    getattr(sqlite3, name): name
    for name in (
        *("SQLITE_ERROR", "SQLITE_INTERNAL", "SQLITE_PERM", "SQLITE_ABORT", "SQLITE_BUSY", "SQLITE_LOCKED"),
        *("SQLITE_NOMEM", "SQLITE_READONLY", "SQLITE_INTERRUPT", "SQLITE_IOERR", "SQLITE_CORRUPT"),
        *("SQLITE_NOTFOUND", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_PROTOCOL", "SQLITE_EMPTY"),
        *("SQLITE_SCHEMA", "SQLITE_TOOBIG", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_MISUSE"),
        *("SQLITE_NOLFS", "SQLITE_AUTH", "SQLITE_FORMAT", "SQLITE_RANGE", "SQLITE_NOTADB"),
    )
}
"""Primary result codes (sqlite.org/rescode.html); an extended one has its primary code in the low byte."""

_SQLITE_RETRYABLE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_SQLITE_UNHEALTHY = {
    *(sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB),
}
"""Codes for which the file, the disk or the machine is at fault, not the statement."""


def _sqlite(error: BaseException) -> Classification | None:
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(code, int):
        return None
    primary = code & 0xFF
    name = getattr(error, "sqlite_errorname", None)
    reason = name if isinstance(name, str) else _SQLITE_NAMES.get(primary, f"SQLite code {code}")
    if primary in _SQLITE_RETRYABLE:
        return Classification(ErrorKind.RETRYABLE, reason, wait=_retry_after(error))
    return Classification(ErrorKind.PERMANENT, reason, caller_fault=primary not in _SQLITE_UNHEALTHY)


_POSTGRES_RETRYABLE = (
    *("40001", "40P01"),  # serialization failure, deadlock
    "55P03",  # lock not available
    *("57P01", "57P02", "57P03"),  # shut down by an administrator, after a crash, or not started yet
    "25006",  # a standby, which is perhaps being promoted; a read-only unit of work has an error of its own
    "08",  # connection exceptions
    "53300",  # too many connections
)
_POSTGRES_UNHEALTHY = ("53", "58", "F0", "XX")
"""Classes of errors of the server: resources, system, configuration file, internal."""


def _postgres(error: BaseException) -> Classification | None:
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if not isinstance(state, str) or len(state) != 5:
        return None
    reason = f"SQLSTATE {state}"
    if state.startswith(_POSTGRES_RETRYABLE):
        return Classification(ErrorKind.RETRYABLE, reason)
    return Classification(ErrorKind.PERMANENT, reason, caller_fault=not state.startswith(_POSTGRES_UNHEALTHY))


def _ours(error: BaseException) -> Classification | None:
    """Classify errors of this package without a code; other storage errors are classified by their cause."""
    match error:
        case errors.DatabaseBusyError():
            return Classification(ErrorKind.RETRYABLE, "database busy", wait=_retry_after(error))
        case errors.CommitUncertainError():
            # A retry for its cause, a lost connection, might do the work twice.
            return Classification(ErrorKind.PERMANENT, "commit uncertain")
        case errors.PoolExhaustedError():
            return Classification(ErrorKind.RETRYABLE, "pool exhausted")
        case errors.CircuitOpenError():
            # A retry would defeat the breaker.
            return Classification(ErrorKind.PERMANENT, "circuit open", wait=_retry_after(error), caller_fault=True)
        case errors.SinkUnavailableError():
            return Classification(ErrorKind.RETRYABLE, "sink unavailable", wait=_retry_after(error))
        case errors.SinkContractError():
            return Classification(ErrorKind.PERMANENT, "sink contract", caller_fault=False)
        case errors.PartialAnswersError():
            return Classification(ErrorKind.DEGRADED, "partial answers")
        case errors.ConsensusError() if not isinstance(error, errors.StorageError):
            return Classification(ErrorKind.PERMANENT, type(error).__name__, caller_fault=True)
    return None


_HTTP_RETRYABLE = {408, 429, 502, 503, 504}


def _http(error: BaseException, now: Callable[[], datetime]) -> Classification | None:
    response = getattr(error, "response", None)
    status = next((code for holder in (error, response) if (code := _http_status(holder))), None)
    if status is None:
        return None
    reason = f"HTTP {status}"
    if status not in _HTTP_RETRYABLE:
        return Classification(ErrorKind.PERMANENT, reason, caller_fault=status < 500)
    waits = (_http_wait(getattr(holder, "headers", None), now) for holder in (error, response))
    return Classification(ErrorKind.RETRYABLE, reason, wait=next((wait for wait in waits if wait is not None), None))


def _http_status(holder: object) -> int | None:
    for name in ("status_code", "status"):
        status = getattr(holder, name, None)
        if isinstance(status, int) and 400 <= status <= 599:
            return int(status)
    return None


def _http_wait(headers: Any, now: Callable[[], datetime]) -> timedelta | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds, or a date."""
    items = getattr(headers, "items", None)
    if items is None:
        return None
    values = (str(value).strip() for key, value in items() if str(key).lower() == "retry-after")
    try:
        value = next(values)
        if value.isdecimal():
            return timedelta(seconds=int(value))
        date = parsedate_to_datetime(value)
    except (StopIteration, ValueError, OverflowError):
        return None
    # A date in "-0000", an unknown zone, is parsed as naive.
    return max(date.replace(tzinfo=date.tzinfo or UTC) - now(), timedelta())


def _network(error: BaseException) -> Classification | None:
    if isinstance(error, TimeoutError | ConnectionError):
        return Classification(ErrorKind.RETRYABLE, type(error).__name__)
    return None


def _retry_after(error: BaseException) -> timedelta | None:
    wait = getattr(error, "retry_after", None)
    return wait if isinstance(wait, timedelta) else None
