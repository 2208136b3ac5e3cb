"""How a column's type is stored: whether two columns keep the same value in type and bytes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Dialect, Interval
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import CompileError
from sqlalchemy.types import TypeDecorator, TypeEngine

__all__ = ["DIALECTS", "as_stored", "stored_differently"]

DIALECTS = ("sqlite", "postgresql")
"""The kinds of databases, as SQLAlchemy calls them."""

_SQLITE = sqlite.dialect()
_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy has not typed its dialects


def as_stored(type_: TypeEngine[Any], kind: str) -> TypeEngine[Any]:
    """The type that a kind of database has for a column: that below a TypeDecorator, or a variant.

    Args:
        type_: The type as the model declares it.
        kind: The kind of database.
    """
    dialect = _SQLITE if kind == "sqlite" else _POSTGRESQL
    stored = _variant(type_, kind)
    while isinstance(stored, TypeDecorator) and not (isinstance(stored, Interval) and dialect is _POSTGRESQL):
        stored = _variant(stored.load_dialect_impl(dialect), kind)
    return stored


def _variant(type_: TypeEngine[Any], kind: str) -> TypeEngine[Any]:
    return type_._variant_mapping.get(kind, type_)


def stored_differently(one: Column[Any], other: Column[Any], kind: str) -> bool:
    """Whether two columns would not store a value alike.

    Args:
        one: A column.
        other: Another one.
        kind: The kind of database.
    """
    stored = _affinity if kind == "sqlite" else _stored
    return stored(one) != stored(other)


def _stored(of: Column[Any]) -> str:
    """The type of a column on a server; all texts are one."""
    spelled = _spelled(of, _POSTGRESQL)
    return "TEXT" if spelled.startswith(("VARCHAR", "TEXT")) else spelled


def _affinity(of: Column[Any]) -> str:
    """The affinity of a column of SQLite, by the rules of its manual (datatype3.html, section 3.1)."""
    spelled = _spelled(of, _SQLITE).upper()
    if "INT" in spelled:
        return "INTEGER"
    if any(word in spelled for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in spelled or not spelled:
        return "BLOB"
    return "REAL" if any(word in spelled for word in ("REAL", "FLOA", "DOUB")) else "NUMERIC"


def _spelled(of: Column[Any], dialect: Dialect) -> str:
    """The name of a type; empty where a kind of database does not have it (an array, or an address, in a file)."""
    try:
        return of.type.compile(dialect=dialect)
    except CompileError:
        return ""
