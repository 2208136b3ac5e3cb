"""How a row is written to an external store: canonical JSON in ASCII, from which it can be read back exactly.

External stores were seen to lose a session over a lone surrogate, so that no byte above 127 leaves this package: JSON
escapes all of them, and NUL. A value that JSON has no word for is an object with one name that begins with `$`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Uuid

from consensus_orm import errors
from consensus_orm.declaration.keys import is_usable
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.row_keys import decoded, encoded

__all__ = ["content_of", "digest", "name_of", "parse", "row_named"]


def content_of(pair: Move, row: tuple[Any, ...]) -> str:
    """A row as the text of an entry.

    Args:
        pair: Its pair.
        row: Its values as stored, in the order of `pair.legacy_columns`.
    """
    begin, cells = _layout(pair.name, pair.legacy_columns)
    return f"{begin}{','.join([name + _printed(row[place]) for name, place in cells])}}}}}"


@cache
def _layout(pair: str, columns: tuple[str, ...]) -> tuple[str, tuple[tuple[str, int], ...]]:
    """How the text of a row begins, and its cells in order: the name as it is printed, and the place of the value."""
    cells = ((f"{_json(name)}:", columns.index(name)) for name in sorted(columns))
    return f'{{"move":{_json(pair)},"row":{{', tuple(cells)


def _printed(value: Any) -> str:
    """A stored value as JSON; what most of them are without a call of the encoder, which costs as much as a row."""
    if type(value) is int:
        return str(value)
    return "null" if value is None else _json(value if type(value) is str else _cell(value))


def name_of(pair: Move, key: Any) -> str:
    """The name of the entry of a row: `artifacts:17`."""
    return f"{pair.name.encode('ascii', 'backslashreplace').decode()}:{_json(_cell(key))}"


def row_named(moves: Mapping[str, Move], name: str) -> tuple[Move, Any] | None:
    """The pair and the key of the row whose entry has a name; None for a name that no row can have.

    Args:
        moves: The pairs by their names.
        name: The name of an entry.
    """
    pair, _, key = name.partition(":")
    if pair not in moves:
        return None
    of = moves[pair]
    try:
        found = json.loads(key)
        values = zip(of.keys, decoded(found, of.keys) or (), strict=True)
        spelled = encoded([UUID(value) if isinstance(column.type, Uuid) else value for column, value in values])
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return (of, found) if is_usable(of, found) and name_of(of, spelled) == name else None


def digest(content: str) -> str:
    """The SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def parse(content: str) -> tuple[str, dict[str, Any]]:
    """Read the text of an entry that `content_of` wrote.

    Returns:
        The name of the pair, and the row under its legacy column names.

    Raises:
        InvalidValueError: It is another text.
    """
    try:
        found = json.loads(content)
        return str(found["move"]), {str(name): _value(cell) for name, cell in found["row"].items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise errors.InvalidValueError(
            "this entry was not written by this package", hint="give a function that reads it", field="content"
        ) from error


_json = json.JSONEncoder(ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


def _cell(value: Any) -> Any:
    """A stored value in terms of JSON."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$number": repr(value)}
        case bytes() | bytearray() | memoryview():
            return {"$bytes": bytes(value).hex()}
        case UUID():
            return value.hex  # as a file stores it
        case dict() | list():
            return {"$json": value}  # psycopg reads JSON into objects
    return {"$text": str(value)}


def _value(cell: Any) -> Any:
    """The value of a cell."""
    if not isinstance(cell, dict):
        return cell
    ((kind, value),) = cell.items()
    readers: dict[str, Callable[[Any], Any]] = {
        "$bytes": bytes.fromhex,
        "$number": float,
        "$json": lambda found: found,
        "$text": str,
    }
    return readers[kind](value)
