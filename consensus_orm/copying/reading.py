"""Reads rows in the order of their keys, in chunks, with equal values from every kind of database."""

from __future__ import annotations

from typing import Any

from consensus_orm.copying.tables import Copied
from consensus_orm.copying.values import Values, escaped, plain
from consensus_orm.databases.sqlite.expressions import is_well_formed
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["bound", "has_place", "in_utf16", "rows_between", "rows_of"]


def in_utf16(uow: UnitOfWork) -> bool:
    """Whether a database stores text in UTF-16."""
    return uow.catalog.text_encoding(uow) != "utf-8"


def has_place(table: Copied, uow: UnitOfWork) -> str:
    """The condition that a row has a place in the order of keys: a key that is not NULL, of the type of the others."""
    key = quoted(table.key)
    if uow.statements.rendering.name == "postgresql":
        return f"{key} IS NOT NULL"
    if not table.text_key:
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
    # In the order of their bytes in UTF-8, whatever the collation, so that ranges are the same everywhere.
    own = quoted(table.key)
    key = f"{own} COLLATE {quoted(_order(uow))}" if table.text_key else own
    conditions = [has_place(table, uow)]
    conditions += [f"{key} > {bound(table, uow, '_after')}"] if after is not None else []
    conditions += [f"{key} <= {bound(table, uow, '_upto')}"] if upto is not None else []
    most = f" LIMIT {limit}" if limit is not None else ""
    rest = f"WHERE {' AND '.join(conditions)} ORDER BY {key}{most}"
    return rows_of(uow, table, rest, {"_after": after, "_upto": upto})


def bound(table: Copied, uow: UnitOfWork, name: str) -> str:
    """The SQL of a key that `rows_of` binds; in UTF-16 as its bytes, since SQLite binds U+FFFF as U+FFFD."""
    if not table.text_key:
        return f":{name}"
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
    if not in_utf16(uow):
        kind = uow.statements.rendering.name
        found = uow._rows(f"SELECT {table.read_from(kind)} {origin}", parameters)
        return [plain(row) for row in found] if kind == "postgresql" else found
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
