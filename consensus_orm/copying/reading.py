"""Reads rows in the order of their keys, in chunks, with equal values from every kind of database."""

from __future__ import annotations

from typing import Any

from consensus_orm.copying.tables import Copied
from consensus_orm.copying.values import Field, Held, Values, escaped, plain
from consensus_orm.databases.sqlite.expressions import is_well_formed
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["compared", "has_place", "in_utf16", "parameters_of", "rows_between", "rows_of"]

WORDS = {Held.TEXT, Held.UUID}
"""What keys are that are texts on SQLite."""


def in_utf16(uow: UnitOfWork) -> bool:
    """Whether a database stores text in UTF-16."""
    return uow.catalog.text_encoding(uow) != "utf-8"


def has_place(table: Copied, uow: UnitOfWork) -> str:
    """The condition that a row has a place in the order of keys: a key that is not NULL, of the type of the others."""
    return " AND ".join(_has_place(field, uow) for field in table.key)


def _has_place(field: Field, uow: UnitOfWork) -> str:
    key = quoted(field.name)
    if uow.statements.rendering.name == "postgresql":
        return f"{key} IS NOT NULL"
    if field.held not in WORDS:
        return f"typeof({key}) = 'integer'"
    return f"typeof({key}) = 'text'" + (f" AND {is_well_formed(key)}" if in_utf16(uow) else "")


def rows_between(uow: UnitOfWork, table: Copied, after: Any, upto: Any, limit: int | None = None) -> list[Values]:
    """Rows of a range of keys.

    Args:
        uow: Reads them.
        table: The table.
        after: The key before the range; None for the start of the table.
        upto: The last key of the range; None for the end of the table.
        limit: The highest number of rows.
    """
    conditions, parameters = [has_place(table, uow)], dict[str, Any]()
    for name, operator, key in (("_after", ">", after), ("_upto", "<=", upto)):
        if key is not None:
            conditions.append(compared(table, uow, operator, name))
            parameters |= parameters_of(table, name, key)
    most = f" LIMIT {limit}" if limit is not None else ""
    order = ", ".join(_ordered(table, uow))
    return rows_of(uow, table, f"WHERE {' AND '.join(conditions)} ORDER BY {order}{most}", parameters)


def compared(table: Copied, uow: UnitOfWork, operator: str, name: str) -> str:
    """The condition that a key equals a bound one, or comes before or after it.

    Args:
        table: The table.
        uow: Reads it.
        operator: How they compare.
        name: How `parameters_of` names the parameters.
    """
    own = _ordered(table, uow)
    given = [_bound(field, uow, f"{name}{place}") for place, field in enumerate(table.key)]
    if len(own) == 1:
        return f"{own[0]} {operator} {given[0]}"
    return f"({', '.join(own)}) {operator} ({', '.join(given)})"


def parameters_of(table: Copied, name: str, key: Any) -> dict[str, Any]:
    """The parameters of such a condition."""
    return {f"{name}{place}": value for place, value in enumerate(table.key_values(key))}


def _ordered(table: Copied, uow: UnitOfWork) -> list[str]:
    """The columns of a key in the order of their bytes in UTF-8, so that ranges are the same everywhere."""
    collated = {Held.TEXT} if uow.statements.rendering.name == "postgresql" else WORDS
    return [
        quoted(field.name) + (f" COLLATE {quoted(_order(uow))}" if field.held in collated else "")
        for field in table.key
    ]


def _bound(field: Field, uow: UnitOfWork, name: str) -> str:
    """A part of a key that `rows_of` binds; in UTF-16 as its bytes, since SQLite binds U+FFFF as U+FFFD."""
    if field.held not in WORDS:
        return f":{name}"
    if field.held is Held.UUID and uow.statements.rendering.name == "postgresql":
        return f"CAST(:{name} AS UUID)"
    return f"CAST(x'' || :{name} AS TEXT)" if in_utf16(uow) else f"CAST(:{name} AS TEXT)"


def _order(uow: UnitOfWork) -> str:
    if uow.statements.rendering.name == "postgresql":
        return "C"
    return "consensus_code_points" if in_utf16(uow) else "BINARY"


def rows_of(uow: UnitOfWork, table: Copied, rest: str, parameters: dict[str, Any]) -> list[Values]:
    """Rows of a table in the values of a copy.

    SQLite silently reads malformed UTF-16 as other text; here it is read with its bytes escaped.

    Args:
        uow: Reads them.
        table: The table.
        rest: The statement after the table.
        parameters: The keys that it binds.
    """
    origin = f"FROM {quoted(table.name)} {rest}"
    if uow.statements.rendering.name == "postgresql":
        columns = ", ".join(map(_read, table.fields))
        return [plain(row) for row in uow._rows(f"SELECT {columns} {origin}", parameters)]
    if not in_utf16(uow):
        return uow._rows(f"SELECT {table.columns} {origin}", parameters)
    encoding, width = uow.catalog.text_encoding(uow), len(table.fields)
    malformed = ", ".join(
        f"CASE WHEN typeof({name}) = 'text' AND NOT {is_well_formed(name)} THEN CAST({name} AS BLOB) END"
        for name in (quoted(field.name) for field in table.fields)
    )
    keys = {name: key.encode(encoding) if isinstance(key, str) else key for name, key in parameters.items()}
    return [
        tuple(
            value if raw is None else escaped(raw, encoding)
            for value, raw in zip(row[:width], row[width:], strict=True)
        )
        for row in uow._rows(f"SELECT {table.columns}, {malformed} {origin}", keys)
    ]


def _read(field: Field) -> str:
    """A column of a server: keys in ledgers stand there as JSON, and the driver would read other JSON into objects."""
    name = quoted(field.name)
    if field.held is Held.KEY:
        return f"CAST({name} AS JSONB)"
    return f"CAST({name} AS TEXT)" if field.json else name
