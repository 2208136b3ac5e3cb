"""Converts times: milliseconds since 1970 UTC in control tables, text in legacy tables (rule 4)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["CLOCKS_AGREE", "credible", "milliseconds", "time_of", "time_text", "when"]

CLOCKS_AGREE = timedelta(minutes=1)
"""The tolerated difference between the clocks of two machines, plus the time that a writer waits for its lock."""

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""An earlier date comes from a machine whose clock was never set."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def milliseconds(duration: timedelta) -> int:
    """A duration in whole milliseconds, rounded up."""
    return -(-duration // timedelta(milliseconds=1))


def when(stored: object) -> datetime:
    """A stored date, UTC; clamped to Python's calendar, and its first moment if the value is not a number."""
    if not isinstance(stored, int | float):
        return _FIRST
    try:
        return _EPOCH + timedelta(milliseconds=stored)
    except OverflowError:
        return _FIRST if stored < 0 else _LAST


def credible(stored: object, now: datetime) -> bool:
    """Whether a stored value, milliseconds since 1970 UTC, is a plausible date that is not in the future."""
    return _EARLIEST <= when(stored) <= now + CLOCKS_AGREE


_TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2}) ([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?")


def time_of(value: object) -> datetime | None:
    """Parse text shaped `YYYY-MM-DD HH:MM:SS[.f]`, in UTC, truncated to microseconds; None for anything else."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    *parts, fraction = match.groups(default="")
    try:
        return datetime(*map(int, parts), int(f"{fraction:0<6.6}"), tzinfo=UTC)  # type: ignore[misc,arg-type]  # six parts
    except ValueError:
        return None


def time_text(moment: datetime) -> str:
    """An aware time as the legacy tables hold it: `YYYY-MM-DD HH:MM:SS[.ffffff]` in UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
