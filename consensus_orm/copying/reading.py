"""Rows in the order of their keys, a chunk at a time, in the same values from every kind of database."""

from __future__ import annotations

from typing import Any

from consensus_orm.copying.tables import Copied
from consensus_orm.copying.values import Values, plain
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["has_place", "rows_between"]


def has_place(table: Copied, kind: str) -> str:
    """Whether a row has a place in the order of keys: its key is not NULL, and of the type of the others.

    Args:
        table: The table of the row.
        kind: The kind of database.
    """
    key = quoted(table.key)
    if kind == "postgresql":
        return f"{key} IS NOT NULL"
    return f"typeof({key}) = '{'text' if table.text_key else 'integer'}'"


def rows_between(uow: UnitOfWork, table: Copied, after: Any, upto: Any, limit: int | None = None) -> list[Values]:
    """Rows of a range of keys.

    Args:
        uow: Where to look.
        table: The table.
        after: The key before the range; None for its start.
        upto: The last key of the range; None for its end.
        limit: Rows at most.
    """
    server = uow.statements.rendering.name == "postgresql"
    # In the order of their bytes, whatever the collation: so ranges are the same ranges everywhere.
    own = quoted(table.key)
    key = f"{own} COLLATE {quoted('C' if server else 'BINARY')}" if table.text_key else own
    bound = "CAST(:{} AS TEXT)" if table.text_key else ":{}"
    conditions = [has_place(table, uow.statements.rendering.name)]
    conditions += [f"{key} > {bound.format('_after')}"] if after is not None else []
    conditions += [f"{key} <= {bound.format('_upto')}"] if upto is not None else []
    where = f" WHERE {' AND '.join(conditions)}"
    most = f" LIMIT {limit}" if limit is not None else ""
    sql = f"SELECT {table.columns} FROM {quoted(table.name)}{where} ORDER BY {key}{most}"
    found = uow._rows(sql, {"_after": after, "_upto": upto})
    return [plain(row) for row in found] if server else found
