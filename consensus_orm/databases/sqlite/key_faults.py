"""What makes a column of a SQLite file unfit as the key of a move; `declaration.keys` has the requirements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.rules import is_text
from consensus_orm.statements.rendering import quoted

__all__ = ["key_faults"]

DECLARED = (
    "SELECT type, pk = 1 AND (SELECT sum(pk) FROM pragma_table_info(:table)) = 1"
    " FROM pragma_table_info(:table) WHERE name = :key COLLATE NOCASE"
)
"""The declared type of a column, and whether it is the whole primary key."""

UNIQUE = (
    "SELECT i.name, lower(x.name), upper(x.coll) FROM pragma_index_list(:table) AS i, pragma_index_xinfo(i.name) AS x"
    ' WHERE i."unique" AND NOT i.partial AND x.key'
)
"""The columns of the unique indexes of a table, and their collations."""

AFFINITIES = {
    "INT": "INTEGER", "CHAR": "TEXT", "CLOB": "TEXT", "TEXT": "TEXT", "BLOB": "BLOB", "REAL": "REAL", "FLOA": "REAL",
    "DOUB": "REAL",
}  # fmt: skip
"""The affinity of a declared type, by the first of these parts in it (sqlite.org/datatype3.html, 3.1)."""


def key_faults(uow: Transaction, table: str, key: Column[Any], unique: Sequence[str]) -> Iterator[str]:
    """What makes a column unfit as the key of a move, each fault with its remedy."""
    if not (found := uow._rows(DECLARED, {"table": table, "key": key.name})):
        yield "does not exist; declare the key that the table has"
        return
    ((declared, alone),) = found
    wanted = ("TEXT",) if is_text(key) else ("INTEGER", "NUMERIC")
    if (affinity := _affinity(declared)) not in wanted:
        stored = "any type" if affinity == "BLOB" else affinity
        yield f"is declared {declared or 'without a type'} and stores {stored}; make a table with a key of {wanted[0]}"
    collations = _collations(uow, table, key, {name.lower() for name in unique})
    is_rowid = alone and declared.upper() == "INTEGER"  # which needs no index
    if not collations and not is_rowid:
        yield "has no unique index of its own; remove duplicates, then CREATE UNIQUE INDEX"
    elif is_text(key) and ("BINARY" not in collations or not _compares_bytes(uow, table, key.name)):
        yield "has a collation by which different keys can be equal; make a table with a key of COLLATE BINARY"


def _collations(uow: Transaction, table: str, key: Column[Any], wanted: set[str]) -> list[str]:
    """The collations of a column in the unique indexes of exactly some columns."""
    indexes: dict[str, dict[str, str]] = {}
    for index, name, collation in uow._rows(UNIQUE, {"table": table}):
        indexes.setdefault(index, {})[name] = collation
    return [columns[key.name.lower()] for columns in indexes.values() if columns.keys() == wanted]


def _affinity(declared: str) -> str:
    known = (affinity for part, affinity in AFFINITIES.items() if part in declared.upper())
    return next(known, "NUMERIC") if declared else "BLOB"


def _compares_bytes(uow: Transaction, table: str, key: str) -> bool:
    """Whether a column has the collation BINARY: the first part of a compound query decides the collation of all."""
    column = f"SELECT {quoted(key)} FROM {quoted(table)} WHERE FALSE"
    try:
        texts = uow._rows(f"SELECT count(*) FROM ({column} UNION SELECT 'a' UNION SELECT 'A' UNION SELECT 'a ')")
    except errors.StorageError:  # only the program that created the table defines the collation
        return False
    return bool(texts[0][0] == 3)
