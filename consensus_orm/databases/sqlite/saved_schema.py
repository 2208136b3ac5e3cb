"""Saved definitions of legacy tables, executed under an authorizer.

Text out of a database is never executed as it is (rule 13): in a file from elsewhere it could be ATTACH. So SQLite
itself parses a definition, and the authorizer allows the statement to create one table, or one index or trigger on its
table, and nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping

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
"""Prefixes of the names of what SQLite creates with a table."""


def make(connection: sqlite3.Connection, kind: str, table: str, sql: str) -> None:
    """Create a table, an index or a trigger from its definition, verbatim.

    Args:
        connection: In a transaction, without an authorizer.
        kind: table, index or trigger.
        table: The table, or the table of the index or trigger.
        sql: The definition.

    Raises:
        UnsafeDefinitionError: The text would do anything else, or more. None of it was done.
        sqlite3.Error: SQLite cannot do it.
    """
    reading = _Reading(kind, table)
    connection.set_authorizer(reading.authorize)
    try:
        connection.execute(sql)  # the driver refuses a second statement
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
    """The actions of a definition: `made` is the name of what it creates, `denied` whether it would do more."""

    def __init__(self, kind: str, table: str) -> None:
        self.kind = kind
        self.table = table.lower()
        self.made: str | None = None
        self.denied = False

    def authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, within: str | None
    ) -> int:
        """Allow the actions that create the object."""
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
        # Constraints and indexes read columns of the table and call functions; a new index is filled.
        return (
            (action == sqlite3.SQLITE_FUNCTION and on != "load_extension")
            or (action == sqlite3.SQLITE_READ and name == self.table)
            or (action == sqlite3.SQLITE_REINDEX and self.kind == "index")
        )


def bound(table: str, row: Cells) -> list[object]:
    """The values of a saved row as they are bound; a text as its bytes, which need not be valid UTF-8.

    Args:
        table: Its table.
        row: Its columns.

    Raises:
        UnsafeDefinitionError: One of them is not a value.
    """
    try:
        return [_VALUES[kind](bytes.fromhex(digits)) for kind, digits in row.values()]
    except (KeyError, ValueError, OverflowError) as error:
        raise unsafe("row", table) from error


_VALUES: Mapping[str, Callable[[bytes], object]] = {
    "null": lambda _: None,
    "integer": int,
    "real": lambda digits: float(digits.replace(b"\0", b"")),  # two bytes each in a file in UTF-16
    "text": bytes,
    "blob": bytes,
}
