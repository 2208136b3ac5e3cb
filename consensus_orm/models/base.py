"""The base of all models, with their metadata, and the column type that keeps values as they are stored."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData, inspect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Text, UserDefinedType

__all__ = ["BIG", "NAMING", "Base", "Verbatim", "current_second"]

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
