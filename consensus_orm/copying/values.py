"""Values that are copied between kinds of databases: what each can hold, and when two values are equal.

A value has one of SQLite's types: None, int, float, str (with surrogates for bytes that are not UTF-8) or bytes. A
boolean is the number that SQLite stores, and a UUID the text; the key of a row in a ledger is a number or a text.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Boolean, Column, Float, Integer, LargeBinary, Text, Uuid
from sqlalchemy.types import String, TypeEngine

from consensus_orm import errors
from consensus_orm.models.base import Key, Verbatim

__all__ = ["Cell", "Field", "Held", "cell", "checker", "digest", "escaped", "field_of", "is_encodable", "plain"]

Values = tuple[Any, ...]
Cell = tuple[str, str]

_NUMBER = re.compile(r"[ \t\n\v\f\r]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t\n\v\f\r]*")
"""Text that SQLite converts to a number in a numeric column (sqlite.org/datatype3.html, 3)."""

_UUID = re.compile("[0-9a-f]{32}")
"""A UUID as SQLAlchemy stores it on SQLite."""

_WORDS = {int: "an integer", float: "a real number", str: "text", bytes: "a blob", type(None): "NULL"}


class Held(StrEnum):
    """The type of a column's values."""

    TEXT = "text"
    INTEGER = "integers"
    BOOLEAN = "booleans"
    REAL = "real numbers"
    BLOB = "blobs"
    UUID = "UUIDs"
    KEY = "keys"
    ANYTHING = "anything"


_TYPES: dict[Held, tuple[type, ...]] = {
    Held.TEXT: (str,),
    Held.INTEGER: (int,),
    Held.BOOLEAN: (int,),
    Held.REAL: (float,),
    Held.BLOB: (bytes,),
    Held.UUID: (str,),
    Held.KEY: (int, str),
    Held.ANYTHING: (int, float, str, bytes),
}


@dataclass(frozen=True)
class Field:
    """A column of a table that is copied.

    Attributes:
        name: Its name.
        held: The type of its values on a database with types.
        required: Whether NULL is refused there.
        numeric: Whether SQLite converts text that looks like a number.
        json: Whether it is of a type for JSON.
    """

    name: str
    held: Held
    required: bool = False
    numeric: bool = False
    json: bool = False


def field_of(column: Column[Any]) -> Field:
    """Describe a column for a copy.

    Raises:
        ConfigurationError: Its type is not supported.
    """
    type_ = column.type
    held, required, numeric = _held(type_, column), not column.nullable, _is_numeric(type_)
    return Field(column.name, held, required=required, numeric=numeric, json=isinstance(type_, JSON))


def _held(type_: TypeEngine[Any], column: Column[Any]) -> Held:
    if isinstance(type_, Key):
        return Held.KEY
    if isinstance(type_, Verbatim):
        return Held.TEXT if type_.name == "TIMESTAMP" else Held.INTEGER
    for known, held in (
        (String, Held.TEXT),
        (Text, Held.TEXT),
        (JSON, Held.TEXT),
        (Boolean, Held.BOOLEAN),
        (Integer, Held.INTEGER),
        (Float, Held.REAL),
        (LargeBinary, Held.BLOB),
        (Uuid, Held.UUID),
    ):
        if isinstance(type_, known):
            return held
    raise errors.ConfigurationError(
        f"column {column} is of a type that is not the same on every database",
        hint="declare it as text, integer, boolean, float or bytes",
    )


def _is_numeric(type_: TypeEngine[Any]) -> bool:
    """Whether the declared type has the affinity NUMERIC, INTEGER or REAL on SQLite."""
    if not isinstance(type_, Verbatim):
        return isinstance(type_, Integer | Boolean | Float | JSON)
    name = type_.name.upper()
    if "INT" in name:
        return True
    return bool(name) and not any(word in name for word in ("CHAR", "CLOB", "TEXT", "BLOB"))


Checker = Callable[[Any], "str | None"]


def checker(field: Field, source: str, target: str, *, utf16: bool = False) -> Checker | None:
    """Make the function that says why a value cannot be stored in a kind of database; None if all values can.

    Args:
        field: The column.
        source: The kind of the source: sqlite or postgresql.
        target: The kind of the target.
        utf16: Whether the source stores text in UTF-16.
    """
    if source == target:  # the same column, with the same affinity and the same constraints
        return _malformed if utf16 else None
    if target == "postgresql":
        return _typed(field)
    return _numeric if field.numeric and field.held is Held.TEXT else None


def _numeric(value: Any) -> str | None:
    looks = isinstance(value, str) and _NUMBER.fullmatch(value)
    return "text that looks like a number, of which SQLite would make one in this column" if looks else None


def _malformed(value: Any) -> str | None:
    return None if is_encodable(value) else "text that is not UTF-16"


def _typed(field: Field) -> Checker:
    types, held, required, is_json = _TYPES[field.held], field.held, field.required, field.json

    def check(value: Any) -> str | None:
        if type(value) is str and held is Held.TEXT:
            if "\0" in value:
                return "a NUL character in text"
            if not is_encodable(value):
                return "text that is not UTF-8"
            return "text that is not JSON" if is_json and not _is_json(value) else None
        if value is None:
            return "NULL where a value is required" if required else None
        if type(value) not in types:
            return f"{_WORDS[type(value)]} in a column of {held.value}"
        if held is Held.UUID and _UUID.fullmatch(value) is None:
            return "text that is not a UUID of 32 small digits"
        if held is Held.BOOLEAN and value not in (0, 1):
            return "a number other than 0 and 1 in a column of booleans"
        return None

    return check


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def is_encodable(value: Any) -> bool:
    """Whether a value is not text with escaped bytes, which UTF-8 cannot hold."""
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(row: Iterable[Any]) -> Values:
    """A row of any driver in the values of this module."""
    return tuple(
        int(value) if value is True or value is False else value.hex if isinstance(value, UUID) else value
        for value in row
    )


def escaped(raw: bytes, encoding: str) -> str:
    """Malformed UTF-16, in an encoding of Python, as text with surrogates for its bytes in UTF-8."""
    odd = len(raw) % 2
    known = raw[: len(raw) - odd].decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    return (known + b"\xff" * odd + raw[len(raw) - odd :]).decode("utf-8", "surrogateescape")


def cell(value: Any) -> Cell:
    """A value as rejects store it: SQLite's name of its type, and its bytes in hexadecimal digits."""
    if value is None:
        return "null", ""
    if isinstance(value, bytes):
        return "blob", value.hex().upper()
    if isinstance(value, str):
        return "text", value.encode("utf-8", "surrogateescape").hex().upper()
    return ("real" if isinstance(value, float) else "integer"), repr(value).encode().hex().upper()


def digest(rows: list[Values]) -> bytes:
    """A digest of rows that is equal only for rows equal in type and bytes.

    The output of marshal differs for different types and for any two floats. Only version 0 is without references
    between values, which may differ for equal values.
    """
    return hashlib.blake2b(marshal.dumps(rows, 0), digest_size=32).digest()
