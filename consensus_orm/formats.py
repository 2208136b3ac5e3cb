"""How durations, sizes and times are written for people: one format each, in every command, gate and report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

__all__ = ["count", "duration", "moment", "none_of", "series", "size"]

NAMED = 20
"""What a series names before it says that there are more."""


def duration(span: timedelta | float) -> str:
    """A duration, in seconds or as a timedelta: `340 ms`, `4.2 s`, `5 min 10 s`, `6 d 23 h`; rounded up."""
    seconds = max(span.total_seconds() if isinstance(span, timedelta) else span, 0.0)
    if 0 < seconds < 1 and (milliseconds := math.ceil(seconds * 1000)) < 1000:
        return f"{milliseconds} ms"
    if (tenths := math.ceil(seconds * 10)) < 600:
        return f"{tenths / 10:g} s"
    left, parts = math.ceil(seconds), list[str]()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        whole, left = divmod(left, length)
        if whole or parts:
            parts.append(f"{whole} {unit}" if whole else "")
    return " ".join(filter(None, parts[:2]))


def size(bytes_: float) -> str:
    """A size in bytes: `512 bytes`, `1.2 MB`; a kB has 1000 bytes."""
    for unit, digits in (("bytes", 0), ("kB", 1), ("MB", 1)):
        if bytes_ < 1000:
            return f"{bytes_:,.{digits}f} {unit}"
        bytes_ /= 1000
    return f"{bytes_:,.1f} GB"


def moment(at: datetime | None) -> str:
    """A time in UTC, to the second; empty for None."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number of things: `1 row`, `1,234 rows`; with a plural where that has not just an s more."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def series(words: Sequence[object]) -> str:
    """Several things in a row: `3, 7, 12`; of many the first, and how many more there are."""
    more = f" and {len(words) - NAMED:,} more" if len(words) > NAMED else ""
    return ", ".join(map(str, words[:NAMED])) + more


def none_of(words: Sequence[object], noun: str, plural: str = "") -> str:
    """That there is none of each: `there is no row 3`, `there are no rows 3, 7`; with a plural as for `count`."""
    one = len(words) == 1
    return f"there {'is' if one else 'are'} no {noun if one else plural or f'{noun}s'} {series(words)}"
