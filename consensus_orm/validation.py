"""Checks the arguments of callers before anything is written."""

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
    "interval",
    "invalid",
    "key",
    "length",
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
T = TypeVar("T")

MAX_IDENTIFIER = 1000
"""Characters of an identifier (spec, stage, agent, run); the longest in the field has 37."""

MAX_CONTENT = 256 * 1024 * 1024
"""Characters of a content; SQLite's own limit is 1,000,000,000 bytes a row (sqlite.org/limits.html)."""


def identifier(field: str, value: object, *, optional: bool = False, empty: bool = False) -> Any:
    """Check an identifier, by which rows are found.

    Args:
        field: The argument, for the error.
        value: Its value.
        optional: Accept None.
        empty: Accept ''.

    Returns:
        The value.

    Raises:
        InvalidValueError: It is not text, empty, too long, or holds a NUL or a lone surrogate.
    """
    if (given := _of_type(field, value, str, "text", optional=optional)) is None:
        return None
    if not given and not empty:
        raise invalid(field, "must not be empty")
    if len(given) > MAX_IDENTIFIER:
        raise invalid(field, f"has {len(given)} characters; at most {MAX_IDENTIFIER} are accepted")
    if "\0" in given:
        raise invalid(field, "holds a NUL character")
    if not given.isascii() and any("\ud800" <= c <= "\udfff" for c in given):
        raise invalid(field, "holds a lone surrogate")
    return given


def content(field: str, value: object, *, optional: bool = False) -> Any:
    """Check text of any contents that is stored verbatim.

    Raises:
        InvalidValueError: It is not text, or too long.
    """
    given = _of_type(field, value, str, "text", optional=optional)
    if given is not None and len(given) > MAX_CONTENT:
        raise invalid(field, f"has {len(given)} characters; at most {MAX_CONTENT} are accepted")
    return given


def number(field: str, value: object) -> int | None:
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


def key(field: str, value: object, *, optional: bool = False) -> Any:
    """Check the id of a row; there are rows with negative ones.

    Raises:
        InvalidValueError: It is not a whole number of 64 bits.
    """
    if value is None and optional:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise invalid(field, "must be a whole number of 64 bits")
    return value


def limit(value: object) -> int | None:
    """Check the limit of a list; None is no limit.

    Raises:
        InvalidValueError: It is negative or not a number.
    """
    return number("limit", value)


def moment(field: str, value: object) -> str:
    """Check an aware time, and convert it to text as the tables hold it: `YYYY-MM-DD HH:MM:SS[.ffffff]`, UTC.

    Raises:
        InvalidValueError: It is not a datetime, or has no zone.
    """
    given: datetime = _of_type(field, value, datetime, "a datetime")
    if given.tzinfo is None or given.utcoffset() is None:
        raise invalid(field, "has no time zone", "give an aware datetime, for example datetime.now(timezone.utc)")
    try:
        return time_text(given)
    except OverflowError:
        raise invalid(field, "lies outside the years 1 to 9999 in UTC") from None


def text(field: str, value: object, *, optional: bool = False) -> Any:
    """Check text of any contents, by which rows are filtered.

    Raises:
        InvalidValueError: It is not text.
    """
    return _of_type(field, value, str, "text", optional=optional)


def flag(field: str, value: object, *, optional: bool = False) -> Any:
    """Check a boolean; "no" and 2 are refused.

    Raises:
        InvalidValueError: It is neither True nor False.
    """
    return _of_type(field, value, bool, "True or False", optional=optional)


def position(field: str, value: object) -> int:
    """Check the number under which something is listed.

    Raises:
        InvalidValueError: It is not a whole number, negative, or too large.
    """
    found = number(field, value)
    if found is None:
        raise invalid(field, "must be a whole number, not NoneType")
    return found


def callback(field: str, value: object, *, optional: bool = False) -> Any:
    """Check a callback.

    Raises:
        InvalidValueError: It is not callable.
    """
    return _of_type(field, value, Callable, "a function", optional=optional)


def reason(field: str, value: object) -> Any:
    """Check an optional reason, and escape NUL and what is not UTF-8, so that every database can store it.

    Raises:
        InvalidValueError: It is not text, or too long.
    """
    if (given := content(field, value, optional=True)) is None:
        return None
    return given.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def path(field: str, value: object, *, optional: bool = False) -> Any:
    """Check the type of the path of a file or folder.

    Raises:
        InvalidValueError: It is neither text nor a Path.
    """
    return _of_type(field, value, str | Path, "a path", optional=optional)


def instance(field: str, value: object, kind: type[T]) -> T:
    """Check the class of an argument.

    Raises:
        InvalidValueError: It is of another class.
    """
    found: T = _of_type(field, value, kind, kind.__name__)
    return found


def several(field: str, values: object) -> Iterable[Any]:
    """Check an iterable.

    Raises:
        InvalidValueError: It is not iterable, or text.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise invalid(field, f"must be several, not {type(values).__name__}")
    return values


def row(values: object, names: Collection[str]) -> None:
    """Check the names of a row's values against the declared ones.

    Raises:
        InvalidValueError: It is not a mapping, or has another name.
    """
    given: Mapping[str, object] = _of_type("values", values, Mapping, "a mapping of columns")
    for name in given:
        if name not in names:
            raise invalid("values", f"has a column {name!r:.40} that is not declared")


def interval(field: str, value: object) -> timedelta:
    """Check the time between two steps.

    Raises:
        InvalidValueError: It is no duration, or not longer than nothing.
    """
    given = instance(field, value, timedelta)
    if not timedelta(0) < given <= LONGEST_INTERVAL:
        raise invalid(field, f"must be longer than nothing, and at most {LONGEST_INTERVAL.days} days")
    return given


def _wait(field: str, value: object) -> timedelta | None:
    given: timedelta | None = _of_type(field, value, timedelta, "a timedelta", optional=True)
    if given is not None and not timedelta(0) <= given <= LONGEST_INTERVAL:
        raise invalid(field, f"must not be negative, and at most {LONGEST_INTERVAL.days} days")
    return given


LONGEST_INTERVAL = timedelta(days=36500)
"""An interval that no system clock overflows at."""

_BY_NAME: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("progress", "tell"), partial(callback, optional=True)),
    **dict.fromkeys(("contents", "dry_run", "everything", "force", "full", "overwrite", "rewrite", "soak"), flag),
    "protect": partial(flag, optional=True),
    "number": position,
    "writers": position,
    "reason": reason,
    **dict.fromkeys(("all_of", "table"), partial(text, optional=True)),
    "step": identifier,
    "path": path,
    "keep": partial(path, optional=True),
    "interval": interval,
    "wait": _wait,
}
"""The check of each argument by its name, which means the same in every method."""


def checked(kind: C) -> C:
    """Make the public methods of a class check their arguments, by the names of these; for rare calls."""
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


def length(values: Mapping[str, object], most: int) -> None:
    """Check that a row has no more bytes of texts and blobs than the settings allow.

    Raises:
        InvalidValueError: It has more.
    """
    characters = 0
    for value in values.values():  # this takes half the time of a generator, at each write (measured)
        if type(value) is str or isinstance(value, str | bytes):
            characters += len(value)
    if 4 * characters <= most:  # no character has more bytes in UTF-8
        return
    texts = [value.encode(errors="surrogatepass") for value in values.values() if isinstance(value, str)]
    found = sum(map(len, texts)) + sum(len(value) for value in values.values() if isinstance(value, bytes))
    if found > most:
        raise InvalidValueError(
            f"a row of {found:,} bytes is longer than MAX_ROW_BYTES allows ({most:,})",
            hint="nothing was written; set CONSENSUS_ORM_MAX_ROW_BYTES higher where there is memory for it",
        )


def _of_type(field: str, value: object, kind: Any, name: str, *, optional: bool = False) -> Any:
    if isinstance(value, kind) or (optional and value is None):
        return value
    raise invalid(field, f"must be {name}, not {type(value).__name__}")


def invalid(field: str, problem: str, hint: str | None = None) -> InvalidValueError:
    """The error for an argument that is refused."""
    return InvalidValueError(f"{field} {problem}", hint=hint, field=field)
