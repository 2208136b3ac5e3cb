"""The foreign keys of a server's tables that a copy drops, and restores when all rows are there.

Meanwhile they are stored in the target, where other programs may write: so as names, which are quoted, and words of a
list, never as the text of a statement.
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
    """The foreign keys of tables of a server."""
    return [
        ForeignKey(
            name=str(found["name"]),
            table=table.name,
            columns=found["constrained_columns"],
            to_schema=found["referred_schema"],
            to_table=found["referred_table"],
            to_columns=found["referred_columns"],
            options={name: word for name, word in found.get("options", {}).items() if word is not None},
        )
        for table in tables
        for found in inspect(connection).get_foreign_keys(table.name)
    ]


def checked(kept: ForeignKey, tables: Iterable[Table]) -> ForeignKey:
    """Check that a stored foreign key is one of these tables, with known options only.

    Raises:
        UnsafeDefinitionError: It is not.
    """
    options = kept["options"].items()
    known = all(name in _WORDS and word in _WORDS[name] for name, word in options)
    if not known or kept["table"] not in {table.name for table in tables}:
        raise unsafe("foreign key", str(kept["table"]))
    return kept


def constraint(key: ForeignKey) -> ForeignKeyConstraint:
    """A foreign key for SQLAlchemy, which quotes its names."""
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
