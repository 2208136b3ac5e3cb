"""The base of all models, with their metadata, and the column type that keeps values as they are stored."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData, inspect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Text, UserDefinedType

__all__ = ["BIG", "NAMING", "Base", "BoundKey", "Key", "LedgerKey", "StoredKey", "Told", "Verbatim", "current_second"]

BIG = BigInteger().with_variant(Integer(), "sqlite")
"""Integers of 64 bits; in SQLite all are, and only INTEGER is the rowid."""

NAMING = {
    "ix": "idx_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names of indexes and constraints, so that a revision can name what it changes."""


class Base(DeclarativeBase):
    """Base of every model of this package; `Base.metadata` holds all their tables."""

    metadata = MetaData(naming_convention=NAMING)

    def __repr__(self) -> str:
        """Its class and key, as far as they are loaded; other columns may hold megabytes, or what nobody may log."""
        loaded = vars(self)
        keys = [column.key for column in inspect(type(self)).primary_key]
        known = (f"{name}={loaded[name]!r}" for name in keys if name in loaded)
        return f"<{' '.join([type(self).__name__, *known])}>"


class Verbatim(UserDefinedType[Any]):
    """A column without a Python type: what is stored comes back, whatever it is.

    The legacy tables hold values like 2, '' and 'not a date' in columns declared BOOLEAN or TIMESTAMP, which
    SQLAlchemy's own types would convert or refuse. The declared name decides SQLite's affinity, so a shadow
    column must repeat the name of the column it shadows.

    Args:
        name: The type as declared in SQLite's DDL; '' is no type, hence no affinity.
    """

    cache_ok = True

    def __init__(self, name: str = "") -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        """The type as SQLite's DDL declares it."""
        return self.name


class Key(Verbatim):
    """The key of a row in a ledger: a number or a text, as it is in SQLite; in PostgreSQL as JSON, in a column of text.

    So `12` and `"12"` are two keys in one column, and a number stands there as a trigger of any release stored it.
    """

    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        """A parameter as the column stores it; `ledgers.binding.stored` makes its value."""
        return BoundKey(bindvalue)

    def column_expression(self, colexpr: Any) -> Any:
        """A key as a number or a text."""
        return StoredKey(colexpr)


class _OfKey(FunctionElement[Any]):
    type = Verbatim()
    inherit_cache = True


class LedgerKey(_OfKey):
    """The key of a row, as a ledger stores it."""

    name = "ledger_key"


class StoredKey(_OfKey):
    """A key in a ledger, as a number or a text."""

    name = "stored_key"


class Told(_OfKey):
    """A key in a ledger, as a value of the type that the keys of its rows have."""

    name = "told"

    def __init__(self, key: Any, type_: Any) -> None:
        super().__init__(key)
        self.type = type_


class BoundKey(_OfKey):
    """A parameter that is stored in a ledger."""

    name = "bound_key"


@compiles(Key, "postgresql")
def _key_on_postgresql(_type: Key, _compiler: Any, **_: Any) -> str:
    return "TEXT"


@compiles(Verbatim, "postgresql")
def _on_postgresql(type_: Verbatim, _compiler: Any, **_: Any) -> str:
    """PostgreSQL has one type a column: times are text there, flags and keys are numbers."""
    return "TEXT" if type_.name == "TIMESTAMP" else "BIGINT"


class current_second(FunctionElement[str]):
    """The default of a legacy created_at: the second, in UTC, as text."""

    name = "current_second"
    type = Text()
    inherit_cache = True


@compiles(current_second, "sqlite")
def _second_of_sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "CURRENT_TIMESTAMP"


@compiles(current_second, "postgresql")
def _second_of_postgresql(_element: Any, _compiler: Any, **_: Any) -> str:
    return "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
