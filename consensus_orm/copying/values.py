"""Values on their way from one kind of database to another: what each can hold, and when two are the same.

A value is what SQLite knows: None, int, float, str (bytes that are no UTF-8 escaped) or bytes. A boolean is the number
that SQLite stores.
"""

from __future__ import annotations

import hashlib
import marshal
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Boolean, Column, Float, Integer, LargeBinary, Text
from sqlalchemy.types import String, TypeEngine

from consensus_orm import errors
from consensus_orm.models.base import Verbatim

__all__ = ["Cell", "Field", "Held", "cell", "checker", "digest", "escaped", "field_of", "plain"]

Values = tuple[Any, ...]
Cell = tuple[str, str]

_NUMBER = re.compile(r"[ \t\n\v\f\r]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t\n\v\f\r]*")
"""What SQLite takes for a number in a column of numbers (sqlite.org/datatype3.html, 3)."""

_WORDS = {int: "an integer", float: "a real number", str: "text", bytes: "a blob", type(None): "NULL"}


class Held(StrEnum):
    """What a column holds, where it has one type."""

    TEXT = "text"
    INTEGER = "integers"
    BOOLEAN = "booleans"
    REAL = "real numbers"
    BLOB = "blobs"
    ANYTHING = "anything"


_TYPES: dict[Held, tuple[type, ...]] = {
    Held.TEXT: (str,),
    Held.INTEGER: (int,),
    Held.BOOLEAN: (int,),
    Held.REAL: (float,),
    Held.BLOB: (bytes,),
    Held.ANYTHING: (int, float, str, bytes),
}


@dataclass(frozen=True)
class Field:
    """A column of a table that is copied.

    Attributes:
        name: Its name.
        held: What it holds on a database with types.
        required: Whether NULL is refused there.
        numeric: Whether SQLite makes numbers of texts that look like one.
    """

    name: str
    held: Held
    required: bool = False
    numeric: bool = False


def field_of(column: Column[Any]) -> Field:
    """A column as the copy sees it.

    Raises:
        ConfigurationError: Its type is unknown here.
    """
    type_ = column.type
    return Field(column.name, _held(type_, column), required=not column.nullable, numeric=_is_numeric(type_))


def _held(type_: TypeEngine[Any], column: Column[Any]) -> Held:
    if isinstance(type_, Verbatim):
        return Held.TEXT if type_.name == "TIMESTAMP" else Held.INTEGER
    for known, held in (
        (String, Held.TEXT),
        (Text, Held.TEXT),
        (Boolean, Held.BOOLEAN),
        (Integer, Held.INTEGER),
        (Float, Held.REAL),
        (LargeBinary, Held.BLOB),
    ):
        if isinstance(type_, known):
            return held
    raise errors.ConfigurationError(
        f"column {column} is of a type that is not the same on every database",
        hint="declare it as text, integer, boolean, float or bytes",
    )


def _is_numeric(type_: TypeEngine[Any]) -> bool:
    """Whether SQLite's affinity for the declared type is NUMERIC, INTEGER or REAL."""
    if not isinstance(type_, Verbatim):
        return isinstance(type_, Integer | Boolean | Float)
    name = type_.name.upper()
    if "INT" in name:
        return True
    return bool(name) and not any(word in name for word in ("CHAR", "CLOB", "TEXT", "BLOB"))


Checker = Callable[[Any], "str | None"]


def checker(field: Field, source: str, target: str, *, utf16: bool = False) -> Checker | None:
    """What says why a value of a column cannot be held by a kind of database; None where all can.

    Args:
        field: The column.
        source: The kind of database it comes from: sqlite or postgresql.
        target: The kind of database it goes to.
        utf16: Whether the source writes its texts in UTF-16.
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
    whole = not isinstance(value, str) or value.isascii() or _is_utf8(value)
    return None if whole else "text that is no UTF-16"


def _typed(field: Field) -> Checker:
    types, held, required = _TYPES[field.held], field.held, field.required

    def check(value: Any) -> str | None:
        if type(value) is str and held is Held.TEXT:
            if "\0" in value:
                return "a NUL character in text"
            return None if value.isascii() or _is_utf8(value) else "text that is no UTF-8"
        if value is None:
            return "NULL where a value is required" if required else None
        if type(value) not in types:
            return f"{_WORDS[type(value)]} in a column of {held.value}"
        if held is Held.BOOLEAN and value not in (0, 1):
            return "a number other than 0 and 1 in a column of booleans"
        return None

    return check


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(row: Iterable[Any]) -> Values:
    """A row as any driver gives it, in the values of this module."""
    return tuple(int(value) if value is True or value is False else value for value in row)


def escaped(raw: bytes, encoding: str) -> str:
    """Malformed UTF-16 as a text that is no UTF-8: lone surrogates in the bytes that UTF-8 would have for them.

    Args:
        raw: The bytes of the text.
        encoding: Its encoding, as Python calls it.
    """
    odd = len(raw) % 2
    known = raw[: len(raw) - odd].decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    return (known + b"\xff" * odd + raw[len(raw) - odd :]).decode("utf-8", "surrogateescape")


def cell(value: Any) -> Cell:
    """A value as rejects keep it: SQLite's name of its type, and its bytes in hexadecimal digits."""
    if value is None:
        return "null", ""
    if isinstance(value, bytes):
        return "blob", value.hex().upper()
    if isinstance(value, str):
        return "text", value.encode("utf-8", "surrogateescape").hex().upper()
    return ("real" if isinstance(value, float) else "integer"), repr(value).encode().hex().upper()


def digest(rows: list[Values]) -> bytes:
    """What two lists of rows share where they are equal in type and bytes, and only there.

    What marshal writes tells types apart, and every float from every other; only its first version is without
    references from one value to another, which are not the same for equal values.
    """
    return hashlib.blake2b(marshal.dumps(rows, 0), digest_size=32).digest()
