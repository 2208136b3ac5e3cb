"""The saved schema: definitions and rows of the legacy tables from before they are dropped, in order of restoring."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, delete, insert, select

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.models.control import SavedSchema

__all__ = ["Entry", "add", "append", "entries", "entries_of", "forget", "forget_of", "has_tables"]


class Entry(NamedTuple):
    """A definition or a row: its position, type, name and table, its text, and the highest id of a table."""

    position: int
    type: str
    name: str
    table: str
    sql: str
    sequence: int | None


_ALL = select(table_of(SavedSchema)).order_by(SavedSchema.position)
_OF_TABLE = _ALL.where(SavedSchema.table_name == bindparam("table"))
_TABLES = select(SavedSchema.position).where(SavedSchema.type == "table").limit(1)
_ADD = insert(SavedSchema).values(
    position=bindparam("position"),
    type=bindparam("type"),
    name=bindparam("name"),
    table_name=bindparam("table"),
    sql=bindparam("sql"),
    sequence=bindparam("sequence"),
)
_FORGET = delete(SavedSchema).where(
    SavedSchema.type.in_(("table", "index", "trigger", "rule", "publication", "unlogged", "image", "row"))
)
_FORGET_OF = delete(SavedSchema).where(
    SavedSchema.table_name == bindparam("table"), SavedSchema.type == bindparam("type")
)


def entries(uow: Transaction) -> list[Entry]:
    """All entries, in order."""
    return [Entry(*row) for row in uow._rows(_ALL)]


def entries_of(uow: Transaction, table: str) -> list[Entry]:
    """The entries of a table, in order."""
    return [Entry(*row) for row in uow._rows(_OF_TABLE, {"table": table})]


def has_tables(uow: Transaction) -> bool:
    """Whether the definition of a table is saved."""
    return bool(uow._rows(_TABLES))


def add(uow: Transaction, entry: Entry) -> None:
    """Save an entry."""
    uow._execute(_ADD, entry._asdict())


def append(uow: Transaction, kind: str, name: str, table: str, sql: str) -> None:
    """Save an entry behind all others."""
    position = max((entry.position for entry in entries(uow)), default=0) + 1
    add(uow, Entry(position, kind, name, table, sql, None))


def forget_of(uow: Transaction, kind: str, table: str) -> None:
    """Delete the entries of a type and table."""
    uow._execute(_FORGET_OF, {"type": kind, "table": table})


def forget(uow: Transaction) -> None:
    """Delete all entries but those that a copy brought from another kind of database, which a copy back needs."""
    uow._execute(_FORGET)
