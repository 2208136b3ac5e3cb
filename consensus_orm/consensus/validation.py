"""What callers may give: checked before anything is written, each with one clear error."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from consensus_orm.declaration.expressions import time_text
from consensus_orm.errors import InvalidValueError

__all__ = ["MAX_CONTENT", "MAX_IDENTIFIER", "content", "identifier", "limit", "moment", "number"]

MAX_IDENTIFIER = 1000
"""Characters of an identifier (spec, stage, agent, run); the longest in the field has 37."""

MAX_CONTENT = 256 * 1024 * 1024
"""Characters of a content; SQLite's own limit is 1,000,000,000 bytes a row (sqlite.org/limits.html)."""


def identifier(field: str, value: Any, *, optional: bool = False, empty: bool = False) -> Any:
    """Check a name that rows are found by.

    Args:
        field: The argument, for the error.
        value: What was given.
        optional: Whether None may be given.
        empty: Whether '' may be given.

    Returns:
        The value.

    Raises:
        InvalidValueError: It is no text, empty, too long, or holds a NUL or a lone surrogate.
    """
    if value is None and optional:
        return None
    if not isinstance(value, str):
        raise _invalid(field, f"must be text, not {type(value).__name__}")
    if not value and not empty:
        raise _invalid(field, "must not be empty")
    if len(value) > MAX_IDENTIFIER:
        raise _invalid(field, f"has {len(value)} characters; at most {MAX_IDENTIFIER} are accepted")
    if "\0" in value:
        raise _invalid(field, "holds a NUL character")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise _invalid(field, "holds a lone surrogate")
    return value


def content(field: str, value: Any, *, optional: bool = False) -> Any:
    """Check a text that is stored verbatim, whatever it holds; '' is a text.

    Raises:
        InvalidValueError: It is no text, or too long.
    """
    if value is None and optional:
        return None
    if not isinstance(value, str):
        raise _invalid(field, f"must be text, not {type(value).__name__}")
    if len(value) > MAX_CONTENT:
        raise _invalid(field, f"has {len(value)} characters; at most {MAX_CONTENT} are accepted")
    return value


def number(field: str, value: Any) -> int | None:
    """Check an optional whole number that is not negative.

    Raises:
        InvalidValueError: It is something else.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _invalid(field, f"must be a whole number, not {type(value).__name__}")
    if not 0 <= value < 2**63:
        raise _invalid(field, "must not be negative, and must fit 63 bits")
    return value


def limit(value: Any) -> int | None:
    """Check the limit of a list; None is no limit.

    Raises:
        InvalidValueError: It is negative or no number.
    """
    return number("limit", value)


def moment(field: str, value: Any) -> str:
    """Write an aware time as the tables hold it.

    Returns:
        `YYYY-MM-DD HH:MM:SS[.ffffff]`, UTC.

    Raises:
        InvalidValueError: It is no datetime, or one without a zone.
    """
    if not isinstance(value, datetime):
        raise _invalid(field, f"must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise _invalid(field, "has no time zone", "give an aware datetime, for example datetime.now(timezone.utc)")
    try:
        return time_text(value)
    except OverflowError:
        raise _invalid(field, "lies outside the years 1 to 9999 in UTC") from None


def _invalid(field: str, problem: str, hint: str | None = None) -> InvalidValueError:
    return InvalidValueError(f"{field} {problem}", hint=hint, field=field)
