"""What a key must be, in one place: one column, a whole number or a text, in one order, the same on both sides.

Statements name rows by their keys, ranges of rows by two of them, and ledgers keep them. So a table whose key cannot
do that is refused by name before the first row is carried: what is declared when a store is opened, what the database
has at the gate of EXPAND and at every later one. A single row whose key cannot do it (NULL, another type, a text that
no JSON can say) becomes a reject; `consensus_orm.migration.keyless` looks after those.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ColumnElement, Integer

from consensus_orm import errors
from consensus_orm.declaration.expressions import Condition
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.rules import is_text

__all__ = [
    "LARGEST",
    "InOrder",
    "Usable",
    "in_order",
    "is_usable",
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
    return Usable(key)


class InOrder(Condition):
    """Whether a key lies among those of its type: what `usable` says, as far as an index can say it."""

    name = "in_order"
    inherit_cache = True


def in_order(key: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a key lies among those of its type, and can be the end of a range; it need not be usable.

    Args:
        key: A column of keys.
    """
    return InOrder(key)


def is_usable(pair: Move, key: Any) -> bool:
    """Whether a row can be named by this key: what `usable` says, of a value.

    Args:
        pair: The pair of the row.
        key: The key as the driver gives it.
    """
    if not is_text(pair.key):
        return isinstance(key, int) and -LARGEST - 1 <= key <= LARGEST
    return isinstance(key, str) and "\0" not in key and not any("\ud800" <= c <= "\udfff" for c in key)


def require_usable(pair: Move, key: Any) -> None:
    """Refuse a key that a caller gives and that no statement could name the row by.

    Args:
        pair: The pair of the row.
        key: The key; None has the database give one.

    Raises:
        InvalidValueError: It is another kind of value, or None where the key is a text.
    """
    if is_usable(pair, key) or (key is None and not is_text(pair.key)):
        return
    wanted = "text without NUL characters and lone surrogates" if is_text(pair.key) else "a whole number of 64 bits"
    given = "was left out" if key is None else f"is not that, but {type(key).__name__}"
    if type(key) in (int, str):
        given = "is none"
    raise errors.InvalidValueError(
        f"the key of a row of {pair.name} has to be {wanted}; this one {given}", field=pair.legacy_key
    )


# What is declared -----------------------------------------------------------------------------------------


def require_declared(mapping: Moves, database: str) -> None:
    """Refuse a declaration whose keys cannot be kept apart, put in order and written into the ledgers.

    Args:
        mapping: The declaration.
        database: The kind of database it is for: sqlite or postgresql.

    Raises:
        ConfigurationError: A key is of more columns than one, or of a type that is not supported.
    """
    for parent in mapping.parents:
        _require_type(parent.key, "the parent table", texts=False)
    for pair in mapping:
        _require_type(pair.key, f"move {pair.name!r}", texts=database == "sqlite")


def _require_type(key: Column[Any], what: str, *, texts: bool) -> None:
    if isinstance(key.type, Integer) or (texts and is_text(key)):
        return
    wanted = "Integer, BigInteger, String or Text" if texts else "Integer or BigInteger"
    raise errors.ConfigurationError(
        f"{what}: the key {key.table.name}.{key.name} is declared as {type(key.type).__name__}; it has to be {wanted}",
        hint="declare a key of such a type; this move cannot be made with another one",
        table=key.table.name,
        column=key.name,
    )
