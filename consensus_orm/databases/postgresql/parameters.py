"""Statements and values as psycopg expects them; the package spells parameters as SQLite does."""

from __future__ import annotations

import re
from functools import lru_cache

from consensus_orm import errors

__all__ = ["bindable", "spelled"]

_TOKENS = re.compile(
    r"""(?P<literal>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<percent>%)|(?P<same>\bIS(?=\s+[:?]))|(?P<cast>::)|:(?P<name>\w+)|(?P<place>\?)""",
    re.VERBOSE,
)


@lru_cache(2048)
def spelled(sql: str) -> str:
    """A statement with psycopg's placeholders for `:name` and `?`; SQLite's `IS :value` is IS NOT DISTINCT FROM."""
    return _TOKENS.sub(_spell, sql)


def _spell(found: re.Match[str]) -> str:
    if found["name"] is not None:
        return f"%({found['name']})s"
    if found["place"] is not None:
        return "%s"
    return "IS NOT DISTINCT FROM" if found["same"] is not None else found[0].replace("%", "%%")


def bindable(value: object) -> object:
    """A value that the server can store.

    Raises:
        InvalidValueError: It is a text with a NUL, or that UTF-8 cannot encode.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise errors.InvalidValueError(
                "PostgreSQL cannot hold a text with a NUL character in it",
                hint="nothing was written; take it out, or keep the store on SQLite",
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise errors.InvalidValueError(
                "PostgreSQL cannot hold a text with a lone surrogate in it",
                hint="nothing was written; take it out, or keep the store on SQLite",
            ) from None
    return value
