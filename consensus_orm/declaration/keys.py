"""What a key must be, in one place: columns of numbers, texts or UUIDs, in one order, the same on both sides.

Statements name rows by their keys, ranges of rows by two of them, and ledgers keep them. So a table whose key cannot
do that is refused by name before the first row is carried: what is declared when a store is opened, what the database
has at the gate of EXPAND and at every later one. A single row whose key cannot do it (NULL, another type, a text that
no JSON can say) becomes a reject; `consensus_orm.migration.keyless` looks after those.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, Integer, String, Uuid, and_

from consensus_orm import errors
from consensus_orm.declaration.expressions import Condition
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.row_keys import decoded, parts

__all__ = [
    "LARGEST",
    "InOrder",
    "Usable",
    "in_order",
    "is_usable",
    "is_word",
    "require_declared",
    "require_usable",
    "usable",
]

LARGEST = 2**63 - 1
"""The largest number that a key can be, and the last id that a database gives."""


class Usable(Condition):
    """Whether a row can be named by its key: a whole number, or a text that goes through JSON and comes back."""

    name = "usable"
    inherit_cache = True


def usable(key: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a row can be named by its key.

    Args:
        key: A column of keys.
    """
    return and_(*map(Usable, parts(key)))


class InOrder(Condition):
    """Whether a key lies among those of its type: what `usable` says, as far as an index can say it."""

    name = "in_order"
    inherit_cache = True


def in_order(key: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a key lies among those of its type, and can be the end of a range; it need not be usable.

    Args:
        key: A column of keys.
    """
    return and_(*map(InOrder, parts(key)))


def is_usable(pair: Move, key: Any) -> bool:
    """Whether a row can be named by this key: what `usable` says, of a value.

    Args:
        pair: The pair of the row.
        key: The key as the driver gives it.
    """
    values = decoded(key, pair.keys)
    return values is not None and all(map(_is_usable, pair.keys, values))


def _is_usable(of: Column[Any], value: Any) -> bool:
    if not is_word(of):
        return type(value) is int and -LARGEST - 1 <= value <= LARGEST
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def is_word(of: ColumnElement[Any]) -> bool:
    """Whether a column of keys holds texts on SQLite: UUIDs are such."""
    return isinstance(of.type, String | Uuid)


def require_usable(pair: Move, key: Any) -> None:
    """Refuse a key that a caller gives and that no statement could name the row by.

    Args:
        pair: The pair of the row.
        key: The key; None has the database give one.

    Raises:
        InvalidValueError: It is another kind of value, or None where the database gives no key.
    """
    if (key is None and pair.is_numbered) or is_usable(pair, key):
        return
    values = decoded(key, pair.keys) or [key]
    unusable = (n for n, (of, value) in enumerate(zip(pair.keys, values, strict=False)) if not _is_usable(of, value))
    at = next(unusable, 0)
    word, number = "text without NUL characters and lone surrogates", "a whole number of 64 bits"
    wanted = word if is_word(pair.keys[at]) else number
    given = "was left out" if key is None else f"is not that, but {type(values[at]).__name__}"
    if type(values[at]) in (int, str):
        given = "is none"
    raise errors.InvalidValueError(
        f"the key of a row of {pair.name} has to be {wanted}; this one {given}", field=pair.legacy_keys[at]
    )


# What is declared -----------------------------------------------------------------------------------------


def require_declared(moves: Moves) -> None:
    """Refuse a declaration whose keys cannot be kept apart, put in order and written into the ledgers.

    Args:
        moves: The declaration.

    Raises:
        ConfigurationError: A key is of a type that is not supported.
    """
    for parent in moves.parents:
        _require_type(parent.key, "the parent table", words=False)
    for pair in moves:
        for key in pair.keys:
            _require_type(key, f"move {pair.name!r}", words=True)


def _require_type(key: Column[Any], what: str, *, words: bool) -> None:
    if isinstance(key.type, Integer) or (words and is_word(key)):
        return
    wanted = "Integer, BigInteger, String, Text or Uuid" if words else "Integer or BigInteger"
    raise errors.ConfigurationError(
        f"{what}: the key {key.table.name}.{key.name} is declared as {type(key.type).__name__}; it has to be {wanted}",
        hint="declare a key of such a type; this move cannot be made with another one",
        table=key.table.name,
        column=key.name,
    )
