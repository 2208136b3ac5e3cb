"""The words that all statements share: how SQL is printed, and how keys and ranges of keys are bound."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Table, bindparam, func, literal_column, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.expression import ClauseElement

from consensus_orm.mapping import Pair

__all__ = ["FALSE", "TRUE", "chunk_bounds", "in_keys", "in_range", "link", "newest_first", "render"]

_DIALECT = sqlite.dialect(paramstyle="named")
TRUE: ColumnElement[Any] = literal_column("1")
FALSE: ColumnElement[Any] = literal_column("0")


def render(statement: ClauseElement) -> str:
    """Print a statement as SQL with named parameters, its constants written out."""
    compiled = statement.compile(dialect=_DIALECT)
    constants = {name: value for name, value in (compiled.params or {}).items() if value is not None}
    return re.sub(r":(\w+)", lambda m: str(constants.get(m[1], m[0])), str(compiled))


def in_keys(column: ColumnElement[Any], name: str = "_keys") -> ColumnElement[bool]:
    """Whether a key is in the JSON array bound to a parameter; one statement for any number of keys."""
    return column.in_(select(literal_column("value")).select_from(func.json_each(bindparam(name))))


def in_range(column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a key lies between `_first` and `_last`, both included."""
    return column.between(bindparam("_first"), bindparam("_last"))


def chunk_bounds(table: Table, key: ColumnElement[Any], *, first: bool) -> str:
    """The first key, last key and number of rows of the next chunk of at most `_rows` rows after `_after`."""
    rows = select(key.label("k")).order_by(key).limit(bindparam("_rows"))
    if not first:
        rows = rows.where(key > bindparam("_after"))
    chunk = rows.subquery()
    return render(select(func.min(chunk.c.k), func.max(chunk.c.k), func.count()).select_from(chunk))


def link(pair: Pair) -> str:
    """The name of the column by which a pair refers to its parent."""
    assert pair.link is not None
    key: str = pair.link.key
    return key


def newest_first(pair: Pair, table: FromClause) -> list[ColumnElement[Any]]:
    """The order of rows everywhere: newest first, ties by key, newest first."""
    newest = [] if pair.newest is None else [table.c[pair.newest.key].desc()]
    return [*newest, table.c[pair.key.name].desc()]
