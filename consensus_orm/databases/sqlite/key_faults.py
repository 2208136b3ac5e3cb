"""What makes a column of a SQLite file unfit as the key of a move; `declaration.keys` has the requirements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.keys import is_word
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


def key_faults(uow: Transaction, key: Sequence[Column[Any]], unique: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What makes columns unfit as the key of a move: the name of one, and its fault with the remedy."""
    table, is_rowid = key[0].table.name, False
    for of in key:
        if not (found := uow._rows(DECLARED, {"table": table, "key": of.name})):
            yield of.name, "does not exist; declare the key that the table has"
            return
        ((declared, alone),) = found
        is_rowid = alone and declared.upper() == "INTEGER"  # which needs no index
        wanted = ("TEXT",) if is_word(of) else ("INTEGER", "NUMERIC")
        if (affinity := _affinity(declared)) not in wanted:
            stored = "any type" if affinity == "BLOB" else affinity
            told = f"is declared {declared or 'without a type'} and stores {stored}"
            yield of.name, f"{told}; make a table with a key of {wanted[0]}"
    names = {name.lower() for name in unique}
    indexes = [each for each in _unique(uow, table) if each.keys() == names]
    if not indexes and not is_rowid:
        alone = "of its own" if len(unique) == 1 else f"of {', '.join(unique)} alone"
        yield key[0].name, f"has no unique index {alone}; remove duplicates, then CREATE UNIQUE INDEX"
        return
    for of in (of for of in key if is_word(of)):
        exact = any(each[of.name.lower()] == "BINARY" for each in indexes)
        if not exact or not _compares_bytes(uow, table, of.name):
            fault = "has a collation by which different keys can be equal"
            yield of.name, f"{fault}; make a table with a key of COLLATE BINARY"


def _unique(uow: Transaction, table: str) -> list[dict[str, str]]:
    """The unique indexes of a table: the collation of each of their columns."""
    found: dict[str, dict[str, str]] = {}
    for index, name, collation in uow._rows(UNIQUE, {"table": table}):
        found.setdefault(index, {})[name] = collation
    return list(found.values())


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
