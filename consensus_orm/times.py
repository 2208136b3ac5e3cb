"""Times: of the control tables in milliseconds since 1970 UTC, of the legacy tables as text (rule 4)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["CLOCKS_AGREE", "credible", "milliseconds", "time_of", "time_text", "when"]

CLOCKS_AGREE = timedelta(minutes=1)
"""How far the clocks of two machines may lie apart, with the time that a writer waits for its lock."""

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""A date before this comes from a machine whose clock was never set."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def milliseconds(duration: timedelta) -> int:
    """A duration in whole milliseconds, rounded up."""
    return -(-duration // timedelta(milliseconds=1))


def when(stored: Any) -> datetime:
    """A stored date, UTC; the first or last moment there is where it lies outside of the calendar or is no number."""
    if not isinstance(stored, int | float):
        return _FIRST
    try:
        return _EPOCH + timedelta(milliseconds=stored)
    except OverflowError:
        return _FIRST if stored < 0 else _LAST


def credible(stored: Any, now: datetime) -> bool:
    """Whether a stored date can be right: it is one, and does not lie in the future.

    Args:
        stored: Milliseconds since 1970 UTC, or whatever stands there.
        now: The time.
    """
    return _EARLIEST <= when(stored) <= now + CLOCKS_AGREE


_TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2}) ([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?")


def time_of(value: object) -> datetime | None:
    """Read a stored time: text shaped `YYYY-MM-DD HH:MM:SS[.f]` that is a valid date, in UTC.

    Args:
        value: The value as stored.

    Returns:
        The time, its fraction truncated to microseconds; None for everything else.
    """
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    *parts, fraction = match.groups(default="")
    try:
        return datetime(*map(int, parts), int(f"{fraction:0<6.6}"), tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError:
        return None


def time_text(moment: datetime) -> str:
    """Write a time as the legacy tables hold it: `YYYY-MM-DD HH:MM:SS[.ffffff]` in UTC.

    Args:
        moment: An aware time.

    Returns:
        The text; a fraction only where there is one.
    """
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
