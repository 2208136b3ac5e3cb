"""Dates of the control tables: milliseconds since 1970 UTC, as some program's clock said they were."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["CLOCKS_AGREE", "credible", "milliseconds", "when"]

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
