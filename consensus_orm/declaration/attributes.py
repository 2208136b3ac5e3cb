"""The columns and tables behind mapped attributes and classes, and what is unique in them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, Index, Table, UniqueConstraint, inspect
from sqlalchemy.orm import DeclarativeBase

from consensus_orm import errors
from consensus_orm.declaration.stored_types import DIALECTS

__all__ = ["column_of", "leads_an_index", "single_key", "table_of", "unique_sets"]


def table_of(model: type[DeclarativeBase]) -> Table:
    """The table of a mapped class."""
    table = model.__table__
    assert isinstance(table, Table)  # SQLAlchemy also maps classes to a join or a subquery
    return table


def column_of(attribute: Any) -> Column[Any]:
    """The column behind a mapped attribute.

    Raises:
        ConfigurationError: It is something else.
    """
    found: list[Any] = getattr(getattr(attribute, "property", None), "columns", [])
    if len(found) > 1:  # of a subclass with a table of its own: its key, and that of the table above
        own = inspect(attribute.class_).local_table
        found = [of for of in found if of.table is own]
    if len(found) != 1 or not isinstance(found[0], Column):
        raise errors.ConfigurationError(
            f"{attribute!r:.80} is no mapped column",
            hint="name an attribute of a mapped class that stands for one column",
        )
    column: Column[Any] = found[0]
    return column


def single_key(table: Table) -> Column[Any]:
    """The one primary key column of a table.

    Raises:
        ConfigurationError: It has none, or one of several columns.
    """
    columns = list(table.primary_key.columns)
    if len(columns) != 1:
        names = ", ".join(column.name for column in columns) or "no column"
        raise errors.ConfigurationError(
            f"the primary key of {table.name} is declared as {names}; rows are told apart by one column",
            hint="declare one column as primary key: a number or a text that is unique in the table",
            table=table.name,
        )
    return columns[0]


def unique_sets(table: Table) -> list[list[Column[Any]]]:
    """The sets of columns that no two rows of a table have in common."""
    constraints = [list(each.columns) for each in table.constraints if isinstance(each, UniqueConstraint)]
    indexes = [list(each.columns) for each in table.indexes if isinstance(each, Index) and _is_whole(each)]
    return [*constraints, *indexes, list(table.primary_key.columns)]


def _is_whole(index: Index) -> bool:
    """Whether an index makes its columns unique in all rows."""
    return bool(index.unique) and all(index.dialect_options[name].get("where") is None for name in DIALECTS)


def leads_an_index(value: ColumnElement[Any]) -> bool:
    """Whether an expression is a column that is the first of an index, which finds its values and has their order."""
    of = getattr(value, "table", None)
    if not isinstance(of, Table) or not isinstance(value, Column):
        return False
    indexes: list[Index | UniqueConstraint] = [*of.indexes]
    indexes += [each for each in of.constraints if isinstance(each, UniqueConstraint)]
    return any(next(iter(each.columns)) is value for each in indexes)
