"""Definitions of legacy tables that were saved, made again: SQLite itself reads them, by its grammar.

Nothing that stands in a database, ours or another's, runs as it stands (rule 13): whoever hands a file over could have
it say ATTACH. So a definition is run under an authorizer, which lets the statement make one table, index or trigger on
the table that it belongs to, and nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from consensus_orm.databases.base import Cells
from consensus_orm.databases.saved_rows import unsafe

__all__ = ["bound", "make"]

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
        if reading.denied or (code == sqlite3.SQLITE_ERROR and reading.made is None):
            raise unsafe(kind, table) from error
        raise
    finally:
        connection.set_authorizer(None)
    there = "SELECT 1 FROM sqlite_master WHERE type = ? AND name = ?"
    if reading.made is None or connection.execute(there, (kind, reading.made)).fetchone() is None:
        raise unsafe(kind, table)


class _Reading:
    """How SQLite reads a definition.

    `made` is the name of what it makes, None where that is nothing; `denied` says whether it would do anything else.
    """

    def __init__(self, kind: str, table: str) -> None:
        self.kind = kind
        self.table = table.lower()
        self.made: str | None = None
        self.denied = False

    def authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, within: str | None
    ) -> int:
        """Say whether a step of the statement is one of making the object."""
        allowed = within is None and database in (None, "main") and self._belongs(action, first or "", second or "")
        self.denied |= not allowed
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
            (action == sqlite3.SQLITE_FUNCTION and on != "load_extension")
            or (action == sqlite3.SQLITE_READ and name == self.table)
            or (action == sqlite3.SQLITE_REINDEX and self.kind == "index")
        )


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
