"""The foreign keys of a table of a PostgreSQL database to itself."""

from __future__ import annotations

from consensus_orm.databases.base import Transaction

__all__ = ["references"]

FOUND = (
    "SELECT array_agg(lower(a.attname)), CASE c.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL'"
    " WHEN 'd' THEN 'SET DEFAULT' WHEN 'r' THEN 'RESTRICT' ELSE 'NO ACTION' END"
    " FROM pg_constraint AS c JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)"
    " WHERE c.contype = 'f' AND c.conrelid = to_regclass(quote_ident(:table)) AND c.confrelid = c.conrelid"
    " GROUP BY c.oid, c.confdeltype ORDER BY c.oid"
)


def references(uow: Transaction, table: str) -> list[tuple[frozenset[str], str]]:
    """The names of their columns in small letters, and their ON DELETE."""
    return [(frozenset(columns), on_delete) for columns, on_delete in uow._rows(FOUND, {"table": table})]
