"""The foreign keys of a table of a SQLite file to itself."""

from __future__ import annotations

from consensus_orm.databases.base import Transaction

__all__ = ["references"]

FOUND = (
    'SELECT id, lower("from"), on_delete FROM pragma_foreign_key_list(:table)'
    ' WHERE "table" = :table COLLATE NOCASE ORDER BY id'
)


def references(uow: Transaction, table: str) -> list[tuple[frozenset[str], str]]:
    """The names of their columns in small letters, and their ON DELETE."""
    found: dict[int, tuple[frozenset[str], str]] = {}
    for number, column, on_delete in uow._rows(FOUND, {"table": table}):
        others, _ = found.get(number, (frozenset[str](), on_delete))
        found[number] = (others | {column}, on_delete)
    return [*found.values()]
