"""Foreign keys that a copy takes away from a server's tables, and puts back when all rows are there.

What is kept of them meanwhile stands in the target, where others may write: so it is names, which are quoted, and
words out of a list, never the text of a statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from sqlalchemy import Column, Connection, ForeignKeyConstraint, Integer, MetaData, Table, inspect

from consensus_orm.databases.saved_rows import unsafe

__all__ = ["ForeignKey", "checked", "constraint", "of"]

_ACTIONS = ("NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT")
_WORDS: dict[str, Sequence[Any]] = {
    "onupdate": _ACTIONS,
    "ondelete": _ACTIONS,
    "deferrable": (True, False),
    "initially": ("DEFERRED", "IMMEDIATE"),
    "match": ("FULL", "SIMPLE"),
}


class ForeignKey(TypedDict):
    """A foreign key, as names and words."""

    name: str
    table: str
    columns: list[str]
    to_schema: str | None
    to_table: str
    to_columns: list[str]
    options: dict[str, Any]


def of(connection: Connection, tables: Iterable[Table]) -> list[ForeignKey]:
    """The foreign keys of tables of a server.

    Args:
        connection: To the server.
        tables: The tables.
    """
    return [
        ForeignKey(
            name=str(found["name"]),
            table=table.name,
            columns=found["constrained_columns"],
            to_schema=found["referred_schema"],
            to_table=found["referred_table"],
            to_columns=found["referred_columns"],
            options={name: word for name, word in found["options"].items() if word is not None},  # pyright: ignore[reportTypedDictNotRequiredAccess]
        )
        for table in tables
        for found in inspect(connection).get_foreign_keys(table.name)
    ]


def checked(kept: ForeignKey, tables: Iterable[Table]) -> ForeignKey:
    """What was kept of a foreign key, where it says no more than one can.

    Args:
        kept: What was kept.
        tables: One of them it must belong to.

    Raises:
        UnsafeDefinitionError: It says something else.
    """
    options = kept["options"].items()
    known = all(name in _WORDS and word in _WORDS[name] for name, word in options)
    if not known or kept["table"] not in {table.name for table in tables}:
        raise unsafe("foreign key", str(kept["table"]))
    return kept


def constraint(key: ForeignKey) -> ForeignKeyConstraint:
    """A foreign key for SQLAlchemy, which quotes its names.

    Args:
        key: The foreign key.
    """
    metadata, to_itself = MetaData(), (key["to_schema"], key["to_table"]) == (None, key["table"])
    own = Table(key["table"], metadata, *_columns({*key["columns"], *(key["to_columns"] if to_itself else ())}))
    other = own
    if not to_itself:
        other = Table(key["to_table"], metadata, *_columns(key["to_columns"]), schema=key["to_schema"])
    refers_to = [other.c[name] for name in key["to_columns"]]
    made = ForeignKeyConstraint(key["columns"], refers_to, name=key["name"], **key["options"])
    own.append_constraint(made)
    return made


def _columns(names: Iterable[str]) -> list[Column[Any]]:
    return [Column(name, Integer) for name in names]
