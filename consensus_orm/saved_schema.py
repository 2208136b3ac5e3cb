"""What was saved of the legacy tables is data: definitions that SQLite itself reads by its grammar, and rows by value.

Nothing that stands in a database, ours or another's, runs as it stands (rule 13): whoever hands a file over could have
it say ATTACH. So a definition is run under an authorizer, which lets the statement make one table, index or trigger on
the table that it belongs to, and nothing else; and the values of a row are bound.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from consensus_orm import errors

__all__ = ["IMAGE", "ROWS", "Cells", "bound", "cells", "image", "make", "unsafe"]

IMAGE = "image"
"""The type of a saved row: it stands on the legacy side alone, since it could not be carried."""

ROWS = (IMAGE, "row")
"""The types of saved rows; a database contracted by an earlier release kept the text of an INSERT instead."""

Cells = Mapping[str, tuple[str, str]]
"""A row by its columns: SQLite's name of the type of each value, and its bytes in hexadecimal digits."""


# Definitions ------------------------------------------------------------------------------------------------

_MAKES = {
    "table": sqlite3.SQLITE_CREATE_TABLE,
    "index": sqlite3.SQLITE_CREATE_INDEX,
    "trigger": sqlite3.SQLITE_CREATE_TRIGGER,
}
_BOOKKEEPING = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_READ)
_SCHEMA_TABLES = ("sqlite_master", "sqlite_schema")
_OF_ITS_OWN = ("sqlite_sequence", "sqlite_autoindex_")
"""How the names begin of what SQLite makes with a table."""


def make(connection: sqlite3.Connection, kind: str, table: str, sql: str) -> None:
    """Make a table, an index or a trigger from its definition, verbatim.

    Args:
        connection: Holds a transaction, and no authorizer.
        kind: table, index or trigger.
        table: The table that it is, or is on.
        sql: The definition.

    Raises:
        UnsafeDefinitionError: The text says anything else, or more. Nothing of it was done.
        sqlite3.Error: SQLite cannot do it.
    """
    reading = _Reading(kind, table)
    connection.set_authorizer(reading.authorize)
    try:
        connection.execute(sql)  # which refuses a second statement, too
    except (sqlite3.ProgrammingError, sqlite3.Warning, TypeError, ValueError) as error:
        raise unsafe(kind, table) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_AUTH or (code == sqlite3.SQLITE_ERROR and reading.made is None):
            raise unsafe(kind, table) from error
        raise
    finally:
        connection.set_authorizer(None)
    there = "SELECT 1 FROM sqlite_master WHERE type = ? AND name = ?"
    if reading.made is None or connection.execute(there, (kind, reading.made)).fetchone() is None:
        raise unsafe(kind, table)


class _Reading:
    """How SQLite reads a definition: `made` is the name of what it makes, None where that is nothing."""

    def __init__(self, kind: str, table: str) -> None:
        self.kind = kind
        self.table = table.lower()
        self.made: str | None = None

    def authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, within: str | None
    ) -> int:
        """Say whether a step of the statement is one of making the object."""
        allowed = within is None and database in (None, "main") and self._belongs(action, first or "", second or "")
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    def _belongs(self, action: int, first: str, second: str) -> bool:
        name, on = first.lower(), second.lower()
        if action in _BOOKKEEPING and name in _SCHEMA_TABLES:
            return True
        if action == _MAKES.get(self.kind) and (name if self.kind == "table" else on) == self.table:
            self.made = first
            return True
        if action in (sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX):
            return self.kind == "table" and name.startswith(_OF_ITS_OWN) and on in ("", self.table)
        # Constraints and indexes speak of columns of the table and call functions; a new index is filled.
        return (
            action == sqlite3.SQLITE_FUNCTION
            or (action == sqlite3.SQLITE_READ and name == self.table)
            or (action == sqlite3.SQLITE_REINDEX and self.kind == "index")
        )


def unsafe(kind: str, table: str) -> errors.UnsafeDefinitionError:
    """The error of something saved that is not what it says it is.

    Args:
        kind: What it says it is.
        table: The table that it says it belongs to.
    """
    return errors.UnsafeDefinitionError(f"what was saved as a {kind} of {table} says something else", table=table)


# Rows -------------------------------------------------------------------------------------------------------

_NAME = r'"(?:[^"]|"")+"'
_INSERT = re.compile(
    rf"INSERT (?:OR IGNORE )?INTO ({_NAME}) \(({_NAME}(?:, {_NAME})*)\) VALUES \((.*)\)(?: ON CONFLICT DO NOTHING)?",
    re.DOTALL,
)
_LITERAL = re.compile(
    r"(?P<null>NULL)|X'(?P<blob>[0-9A-Fa-f]*)'|CAST\(X'(?P<text>[0-9A-Fa-f]*)' AS TEXT\)"
    r"|convert_from\(decode\('(?P<server>[0-9A-Fa-f]*)', 'hex'\), 'UTF8'\)"
    r"|(?P<integer>-?[0-9]+)(?=,|$)|(?P<other>[-+.0-9A-Za-z]+)"
)
"""A value as the statement of an earlier release spelled it."""


def image(row: Cells) -> str:
    """A row as it is kept.

    Args:
        row: Its columns.
    """
    return json.dumps({name: list(cell) for name, cell in row.items()})


def cells(kind: str, table: str, text: str) -> dict[str, tuple[str, str]]:
    """A saved row.

    Args:
        kind: Its type, one of `ROWS`.
        table: Its table.
        text: What was kept of it.

    Raises:
        UnsafeDefinitionError: It is no row of the table.
    """
    try:
        found = dict(_parsed(table, text)) if kind != IMAGE else json.loads(text)
        return {str(name): (str(type_), str(digits)) for name, (type_, digits) in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise unsafe("row", table) from error


def _parsed(table: str, sql: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """The values of an INSERT as an earlier release wrote it: literals, and nothing that would have to be run."""
    whole = _INSERT.fullmatch(sql)
    if whole is None or _name(whole[1]) != table:
        raise ValueError(table)
    names, values, at = [_name(quoted) for quoted in re.findall(_NAME, whole[2])], whole[3], 0
    for number, name in enumerate(names):
        if number:
            at = _behind(values, at, ", ")
        literal = _LITERAL.match(values, at)
        if literal is None:
            raise ValueError(name)
        at = literal.end()
        yield name, _cell(literal)
    if at != len(values):
        raise ValueError(table)


def _name(quoted: str) -> str:
    return quoted[1:-1].replace('""', '"')


def _behind(text: str, at: int, separator: str) -> int:
    if not text.startswith(separator, at):
        raise ValueError(separator)
    return at + len(separator)


def _cell(literal: re.Match[str]) -> tuple[str, str]:
    kind = str(literal.lastgroup)
    value = literal[kind]
    if kind in ("blob", "text"):
        return kind, value
    if kind == "server":
        return "text", value
    if kind == "null":
        return "null", ""
    return ("real" if kind == "other" else "integer"), value.encode().hex()


def bound(table: str, row: Cells) -> list[Any]:
    """The values of a saved row as SQLite is given them; a text as its bytes, which need not be UTF-8.

    Args:
        table: Its table.
        row: Its columns.

    Raises:
        UnsafeDefinitionError: One of them is no value.
    """
    try:
        return [_VALUES[kind](bytes.fromhex(digits)) for kind, digits in row.values()]
    except (KeyError, ValueError, OverflowError) as error:
        raise unsafe("row", table) from error


_VALUES: Mapping[str, Callable[[bytes], Any]] = {
    "null": lambda _: None,
    "integer": int,
    "real": lambda digits: float(digits.replace(b"\0", b"")),  # a file in UTF-16 writes two bytes for each
    "text": bytes,
    "blob": bytes,
}
