"""What callers may give: checked before anything is written, each with one clear error."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from consensus_orm.errors import InvalidValueError
from consensus_orm.times import time_text

__all__ = [
    "MAX_CONTENT",
    "MAX_IDENTIFIER",
    "callback",
    "checked",
    "content",
    "flag",
    "identifier",
    "instance",
    "invalid",
    "limit",
    "moment",
    "number",
    "path",
    "position",
    "reason",
    "row",
    "several",
    "text",
]

C = TypeVar("C", bound=type)

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
        raise invalid(field, f"must be text, not {type(value).__name__}")
    if not value and not empty:
        raise invalid(field, "must not be empty")
    if len(value) > MAX_IDENTIFIER:
        raise invalid(field, f"has {len(value)} characters; at most {MAX_IDENTIFIER} are accepted")
    if "\0" in value:
        raise invalid(field, "holds a NUL character")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise invalid(field, "holds a lone surrogate")
    return value


def content(field: str, value: Any, *, optional: bool = False) -> Any:
    """Check a text that is stored verbatim, whatever it holds; '' is a text.

    Raises:
        InvalidValueError: It is no text, or too long.
    """
    if value is None and optional:
        return None
    if not isinstance(value, str):
        raise invalid(field, f"must be text, not {type(value).__name__}")
    if len(value) > MAX_CONTENT:
        raise invalid(field, f"has {len(value)} characters; at most {MAX_CONTENT} are accepted")
    return value


def number(field: str, value: Any) -> int | None:
    """Check an optional whole number that is not negative.

    Raises:
        InvalidValueError: It is something else.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(field, f"must be a whole number, not {type(value).__name__}")
    if not 0 <= value < 2**63:
        raise invalid(field, "must not be negative, and must fit 63 bits")
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
        raise invalid(field, f"must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise invalid(field, "has no time zone", "give an aware datetime, for example datetime.now(timezone.utc)")
    try:
        return time_text(value)
    except OverflowError:
        raise invalid(field, "lies outside the years 1 to 9999 in UTC") from None


def text(field: str, value: Any, *, optional: bool = False) -> Any:
    """Check a text that rows are looked up by: whatever a file may hold can be asked for.

    Raises:
        InvalidValueError: It is no text.
    """
    if not isinstance(value, str) and not (optional and value is None):
        raise invalid(field, f"must be text, not {type(value).__name__}")
    return value


def flag(field: str, value: Any, *, optional: bool = False) -> Any:
    """Check a choice between two: "no" and 2 are none.

    Raises:
        InvalidValueError: It is neither True nor False.
    """
    if not isinstance(value, bool) and not (optional and value is None):
        raise invalid(field, f"must be True or False, not {type(value).__name__}")
    return value


def position(field: str, value: Any) -> int:
    """Check the number under which something is listed.

    Raises:
        InvalidValueError: It is no whole number, or one that nothing can have.
    """
    found = number(field, value)
    if found is None:
        raise invalid(field, "must be a whole number, not NoneType")
    return found


def callback(field: str, value: Any, *, optional: bool = False) -> Any:
    """Check something that will be called.

    Raises:
        InvalidValueError: It cannot be.
    """
    if not callable(value) and not (optional and value is None):
        raise invalid(field, f"must be a function, not {type(value).__name__}")
    return value


def reason(field: str, value: Any) -> Any:
    """Check an optional reason, and spell what no database could hold of it: no step fails for its note.

    Returns:
        The reason, a NUL and bytes that are no UTF-8 (as an argument of a command may hold) as escapes.

    Raises:
        InvalidValueError: It is no text, or too long.
    """
    if (given := content(field, value, optional=True)) is None:
        return None
    return given.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def path(field: str, value: Any, *, optional: bool = False) -> Any:
    """Check the path of a file or folder; whether it can be used is for others to say.

    Raises:
        InvalidValueError: It is neither a text nor a Path.
    """
    if not isinstance(value, str | Path) and not (optional and value is None):
        raise invalid(field, f"must be a path, not {type(value).__name__}")
    return value


def instance(field: str, value: Any, kind: type) -> Any:
    """Check an argument that has to be one of a class of ours.

    Raises:
        InvalidValueError: It is none.
    """
    if not isinstance(value, kind):
        raise invalid(field, f"must be {kind.__name__}, not {type(value).__name__}")
    return value


def several(field: str, values: Any) -> Iterable[Any]:
    """Check something that is gone through.

    Raises:
        InvalidValueError: It cannot be, or is one text.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise invalid(field, f"must be several, not {type(values).__name__}")
    return values


def row(values: Any, names: Collection[str]) -> None:
    """Check the values of a row: what is under a name that nobody declared would be lost.

    Args:
        values: What was given.
        names: The declared names.

    Raises:
        InvalidValueError: It is no mapping, or has another name.
    """
    if not isinstance(values, Mapping):
        raise invalid("values", f"must be a mapping of columns, not {type(values).__name__}")
    for name in values:
        if name not in names:
            raise invalid("values", f"has a column {name!r:.40} that nobody declared")


def _interval(field: str, value: Any) -> Any:
    if not timedelta(0) < instance(field, value, timedelta) <= LONGEST_INTERVAL:
        raise invalid(field, f"must be longer than nothing, and at most {LONGEST_INTERVAL.days} days")
    return value


LONGEST_INTERVAL = timedelta(days=36500)
"""What no clock of a system overflows at."""

_BY_NAME: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("progress", "tell"), partial(callback, optional=True)),
    **dict.fromkeys(("contents", "dry_run", "everything", "force", "full", "overwrite", "rewrite", "soak"), flag),
    "protect": partial(flag, optional=True),
    "number": position,
    "writers": position,
    "reason": reason,
    "all_of": partial(text, optional=True),
    "step": identifier,
    "path": path,
    "keep": partial(path, optional=True),
    "interval": _interval,
}
"""What an argument has to be, by its name: the same name means the same in every method."""


def checked(kind: C) -> C:
    """Check what the public methods of a class are given, before they do anything; for calls that are rare.

    Args:
        kind: The class; its arguments are known by their names.
    """
    for name, method in list(vars(kind).items()):
        if not name.startswith("_") and inspect.isfunction(method):
            signature = inspect.signature(method)
            if not _BY_NAME.keys().isdisjoint(signature.parameters):
                setattr(kind, name, _checking(method, signature))
    return kind


def _checking(method: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            if (check := _BY_NAME.get(name)) is not None:
                given.arguments[name] = check(name, value)
        return method(*given.args, **given.kwargs)

    return call


def invalid(field: str, problem: str, hint: str | None = None) -> InvalidValueError:
    """What is wrong with an argument."""
    return InvalidValueError(f"{field} {problem}", hint=hint, field=field)
