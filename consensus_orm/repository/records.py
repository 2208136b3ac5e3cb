"""Records: the rows of a move as an application sees them, under its attribute names and in its Python types."""

from __future__ import annotations

import dataclasses
import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import JSON, Dialect, Float, Uuid
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

from consensus_orm import errors
from consensus_orm.declaration.keys import require_usable
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.row_keys import encoded
from consensus_orm.ledgers.binding import Key

__all__ = ["Records", "key_from", "records_of"]

FLOAT8, NUMERIC = 701, 1700
"""The numbers of these types in pg_type."""

Process = Callable[[Any], Any] | None


class Records:
    """How rows of a move become records, and records rows.

    Args:
        move: The move.
        database: The kind of database, as SQLAlchemy calls it.
    """

    def __init__(self, move: Move, database: str) -> None:
        self.move = move
        dialect = _dialect(database)
        types = [
            *(of.type for of in move.keys),
            *(move.type_of(name) for name in move.columns),
            *(of.type for of in move.kept),
        ]
        self.names = tuple(move.attributes.get(name, name) for name in move.fields)
        self._columns = dict(zip(self.names, move.fields, strict=True))
        self._bind = dict(zip(move.fields, (_bind(type_, dialect) for type_ in types), strict=True))
        self._results = [_result(type_, dialect) for type_ in types]
        decoded = database == "postgresql"
        self._read_as_objects = {
            name for name, type_ in zip(move.fields, types, strict=True) if decoded and isinstance(type_, JSON)
        }
        self._plain = not any(self._results)
        self._uuids: dict[str, Callable[[str], Any]] = {
            name: UUID if of.type.as_uuid else lambda digits: str(UUID(digits))
            for name, of in zip(move.legacy_keys, move.keys, strict=True)
            if isinstance(of.type, Uuid)
        }
        self._make = _maker(move, self.names)

    def columns_of(self, values: Any) -> dict[str, Any]:
        """What is given under attribute names, under the names of columns and as the database stores it.

        Args:
            values: A moves, or a record.

        Raises:
            InvalidValueError: It is something else, has a name that is not declared, or a value of the wrong type.
        """
        found = dict(_items(values))
        for name in found:
            if name not in self._columns:
                known = ", ".join(self.names)
                raise errors.InvalidValueError(
                    f"{self.move.name} has no field {name!r:.40}", hint=f"use some of: {known}", field=str(name)
                )
        return {(column := self._columns[name]): self.bound(column, value) for name, value in found.items()}

    def column_of(self, name: str) -> str:
        """The column behind an attribute.

        Raises:
            InvalidValueError: There is no such attribute.
        """
        return next(iter(self.columns_of({name: None})))

    def key_of(self, key: Any) -> Any:
        """A key as the database stores it.

        Raises:
            InvalidValueError: It is none that a row can have.
        """
        stored = self.stored_key(key)
        if stored is None:
            raise errors.InvalidValueError("the key of a row is missing", hint="give its key", field="key")
        require_usable(self.move, stored)
        return stored

    def stored_key(self, key: Any) -> Any:
        """A key as one value, unchecked: of several columns from a tuple, or from their values by name."""
        names = self.move.legacy_keys
        if len(names) == 1:
            return encoded([self.bound(names[0], key)])
        if isinstance(key, Mapping):
            return self.move.key_from(self.columns_of(key))
        if not isinstance(key, Sequence) or isinstance(key, str | bytes) or len(key) != len(names):
            raise errors.InvalidValueError(
                f"the key of a row of {self.move.name} has {len(names)} parts: {', '.join(self.names[: len(names)])}",
                hint="give them as a tuple, in this order",
                field="key",
            )
        return encoded([self.bound(name, part) for name, part in zip(names, key, strict=True)])

    def told_key(self, key: Any) -> Any:
        """A key that was written, in the types of the application: of several columns as a tuple."""
        if self.move.is_numbered:
            return key
        first, *others = self.key_parts(key)
        return (first, *others) if others else first

    def key_parts(self, key: Any) -> tuple[Any, ...]:
        """The columns of a key, in the types of the application."""
        return tuple(
            self._uuids[name](value) if name in self._uuids else self.value(name, value)
            for name, value in self.move.key_values(key).items()
        )

    def storable(self, column: str, read: Any) -> Any:
        """A value that was read from one column, as it is written again: psycopg reads JSON into objects."""
        return self.bound(column, read) if column in self._read_as_objects else read

    def record(self, row: tuple[Any, ...]) -> Any:
        """The record of a row in the order of `Move.fields`."""
        return self._make(row if self._plain else self._read(row))

    def value(self, column: str, stored: Any) -> Any:
        """A value of one column, in the type of the application."""
        process = self._results[self.move.fields.index(column)]
        return stored if process is None else process(stored)

    def _read(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value if process is None else process(value) for value, process in zip(row, self._results, strict=False)
        )

    def bound(self, column: str, value: Any) -> Any:
        """A value of one column, as the database stores it.

        Raises:
            InvalidValueError: It is of another type.
        """
        process = self._bind[column]
        if process is None or value is None:
            return value
        try:
            return process(value)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise errors.InvalidValueError(
                f"a {type(value).__name__} is no value of {self.move.name}.{column}",
                hint="give a value of the type that the model declares",
                field=column,
            ) from error


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        yield from values.items()
    elif dataclasses.is_dataclass(values) and not isinstance(values, type):
        yield from ((each.name, getattr(values, each.name)) for each in dataclasses.fields(values))
    elif isinstance(values, BaseModel):
        yield from ((name, getattr(values, name)) for name in type(values).model_fields)
    elif (as_dict := getattr(values, "_asdict", None)) is not None:  # a named tuple
        yield from as_dict().items()
    else:
        raise errors.InvalidValueError(
            f"a row must be a mapping or a record, not {type(values).__name__}",
            hint="give the fields by their names",
            field="row",
        )


def _maker(move: Move, names: tuple[str, ...]) -> Callable[[tuple[Any, ...]], Any]:
    """What makes a record of the values of a row."""
    kind = move.record
    if kind is None:
        made = _made(move.name, names)
        width = len(names)
        return lambda row: made._make(row[:width])
    if dataclasses.is_dataclass(kind):
        wanted = {each.name for each in dataclasses.fields(kind) if each.init}
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        wanted = set(kind.model_fields)
    else:
        raise errors.ConfigurationError(
            f"move {move.name!r}: record={kind!r:.60} is neither a dataclass nor a pydantic model",
            hint="give a class of one of these, or leave it out",
        )
    if unknown := sorted(wanted - set(names)):
        raise errors.ConfigurationError(
            f"move {move.name!r}: its record has a field {unknown[0]!r} that no row has",
            hint=f"name its fields as the rows do: {', '.join(names)}",
        )
    return lambda row: kind(**{name: value for name, value in zip(names, row, strict=False) if name in wanted})


@cache
def _made(name: str, names: tuple[str, ...]) -> Any:
    return namedtuple(re.sub(r"\W", "_", f"{name.title()}Row", flags=re.ASCII), names, rename=True)


@cache
def _dialect(database: str) -> Dialect:
    """How values of a type reach the driver of a kind of database, and come back."""
    if database == "postgresql":
        import psycopg
        from sqlalchemy.dialects.postgresql import psycopg as of_psycopg

        return of_psycopg.dialect(dbapi=psycopg)  # type: ignore[no-untyped-call]  # untyped there
    return sqlite.dialect()


def _bind(type_: TypeEngine[Any], dialect: Dialect) -> Process:
    return type_.dialect_impl(dialect).bind_processor(dialect)


def _result(type_: TypeEngine[Any], dialect: Dialect) -> Process:
    # psycopg tells the kinds of numbers apart by the number of their type.
    return type_.dialect_impl(dialect).result_processor(dialect, FLOAT8 if isinstance(type_, Float) else NUMERIC)


@cache
def records_of(move: Move[Any], database: str) -> Records:
    """How rows of a move become records on a kind of database."""
    return Records(move, database)


def key_from(move: Move[Any], database: str, values: Iterable[Any]) -> Key:
    """The key of a row whose entity holds some values in its key columns, as the ledgers have it.

    Args:
        move: The move.
        database: The kind of database.
        values: In the order of the columns; the key is None where one is missing.
    """
    first, *others = values
    if move.is_numbered:
        key: Key = first
        return key
    found: Key = records_of(move, database).stored_key((first, *others) if others else first)
    return found
