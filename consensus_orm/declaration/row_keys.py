"""The key of a row as one value, whatever it is made of.

Statements, ledgers and ranges know a row by one value: a whole number, or a text. A key of one Integer or String column
is that column. Any other one is a `RowKey`: in SQL its columns as one text, in comparisons these columns themselves,
so that indexes find them. The text of a key of several columns is a JSON array of them in the order of the declaration,
without blanks; that of a UUID are its 32 digits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Column, ColumnElement, Integer, String, Text, and_, func, literal_column, select, tuple_
from sqlalchemy.sql import operators
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["KeyPart", "RowKey", "decoded", "encoded", "in_columns", "last", "parts", "row_key"]

_ORDERS = (operators.lt, operators.le, operators.gt, operators.ge)


class RowKey(FunctionElement[str]):
    """Several columns, or one of a type that JSON does not have, as the key of a row.

    Args:
        *columns: The columns, in order.
    """

    name = "row_key"
    type = Text()
    inherit_cache = True

    def __init__(self, *columns: ColumnElement[Any]) -> None:
        super().__init__(*columns)

    @property
    def parts(self) -> tuple[ColumnElement[Any], ...]:
        """The columns."""
        return tuple(self.clauses)

    @property
    def table(self) -> Any:
        """Where the columns stand."""
        first: Any = self.parts[0]
        return first.table

    def operate(self, op: Any, *other: Any, **_: Any) -> ColumnElement[Any]:
        """Compare the columns, not their text.

        Raises:
            NotImplementedError: Nothing else can be done with a key.
        """
        if op is operators.eq:
            return and_(*(mine == its for mine, its in zip(self.parts, in_columns(other[0], self), strict=True)))
        if op in _ORDERS:
            compared: ColumnElement[Any] = op(tuple_(*self.parts), tuple_(*in_columns(other[0], self)))
            return compared
        if op is operators.between_op:
            return and_(self >= other[0], self <= other[1])
        if op is operators.is_not:
            return self.parts[0].is_not(None)
        raise NotImplementedError(op)


class KeyPart(FunctionElement[Any]):
    """One column of a key that is given as text.

    Args:
        text: The text.
        number: The place of the column.
        of: The key.
    """

    name = "key_part"
    inherit_cache = False

    def __init__(self, text: ColumnElement[Any], number: int, of: RowKey) -> None:
        super().__init__(text)
        self.number = number
        self.type = of.parts[number].type
        self.is_alone = len(of.parts) == 1


def row_key(columns: Sequence[ColumnElement[Any]]) -> ColumnElement[Any]:
    """The key of a row: its column, or its columns as one value."""
    if len(columns) == 1 and isinstance(columns[0].type, Integer | String):
        return columns[0]
    return RowKey(*columns)


def parts(key: ColumnElement[Any]) -> tuple[ColumnElement[Any], ...]:
    """The columns of a key, by which rows are ordered."""
    return key.parts if isinstance(key, RowKey) else (key,)


def in_columns(value: Any, like: ColumnElement[Any]) -> tuple[Any, ...]:
    """A key that a parameter, a ledger or another table gives, as values for the columns of a key."""
    if not isinstance(like, RowKey):
        return (value,)
    return value.parts if isinstance(value, RowKey) else tuple(KeyPart(value, n, like) for n in range(len(like.parts)))


def last(key: ColumnElement[Any], *criterion: ColumnElement[bool]) -> ColumnElement[Any]:
    """The last of some keys in their order; NULL where there is none."""
    if not isinstance(key, RowKey):
        return select(func.max(key)).where(*criterion).scalar_subquery()
    descending = (of.desc() for of in key.parts)
    found = select(key).where(*criterion).order_by(*descending).limit(literal_column("1", Integer))
    return found.scalar_subquery()


# As values ------------------------------------------------------------------------------------------------


def encoded(values: Sequence[Any]) -> Any:
    """The key of a row whose columns hold some values; None where one is missing."""
    if any(value is None for value in values):
        return None
    if len(values) == 1:
        return _plain(values[0]) if isinstance(values[0], UUID) else values[0]
    return json.dumps(values, default=_plain, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> str:
    """A UUID by its digits alone, as SQLAlchemy stores it on SQLite."""
    return value.hex if isinstance(value, UUID) else str(value)


def decoded(key: Any, columns: Sequence[Column[Any]]) -> list[Any] | None:
    """The values of the columns of a key; None where it is not the key of so many."""
    if len(columns) == 1:
        return [key]
    try:
        values = json.loads(key)
    except (TypeError, ValueError, RecursionError):
        return None
    return values if isinstance(values, list) and len(values) == len(columns) else None
