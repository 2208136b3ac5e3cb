"""An independent judge on PostgreSQL: raw SQL by psycopg, importing nothing of the package.

A cell is `(type, hex of its bytes)`, as that of `oracle`: the type is PostgreSQL's name of it, or null.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg

from tests.support.oracle import Row, legacy_of, normalized_of


@contextlib.contextmanager
def reading(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Open a database for reading only, at one moment."""
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield connection


def query(connection: psycopg.Connection[Any], names: list[str], rest: str) -> list[Row]:
    """Read expressions as cells.

    Args:
        connection: Where.
        names: Columns or expressions.
        rest: FROM and what follows.
    """
    cells = ", ".join(
        f"CASE WHEN {name} IS NULL THEN 'null' ELSE pg_typeof({name})::text END,"
        f" coalesce(upper(encode(convert_to({name}::text, 'UTF8'), 'hex')), '')"
        for name in names
    )
    rows = connection.execute(f"SELECT {cells} {rest}".encode()).fetchall()
    return [tuple(zip(row[::2], row[1::2], strict=True)) for row in rows]


def columns(connection: psycopg.Connection[Any], table: str) -> list[str]:
    """The columns of a table, in their order."""
    names = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        (f'"{table}"',),
    )
    return [f'"{name}"' for (name,) in names]


def rows(url: str, table: str) -> list[Row]:
    """All rows of a table, every cell in type and bytes, in the order of its first column."""
    with reading(url) as connection:
        return query(connection, columns(connection, table), f'FROM "{table}" ORDER BY 1, 2')


TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"


def tables(url: str) -> list[str]:
    """The tables there are."""
    with reading(url) as connection:
        return [name for (name,) in connection.execute(TABLES)]


def everything(url: str) -> dict[str, list[Row]]:
    """All rows of all tables, as they are at one moment."""
    with reading(url) as connection:
        names = [name for (name,) in connection.execute(TABLES).fetchall()]
        return {name: query(connection, columns(connection, name), f'FROM "{name}" ORDER BY 1, 2') for name in names}


DEFINITIONS = {
    "column": "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull::text,"
    " coalesce(pg_get_expr(d.adbin, d.adrelid), '') FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d"
    " ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
    " WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
    "index": "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass ORDER BY 1",
    "constraint": "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE conrelid = %s::regclass ORDER BY 1",
    "trigger": "SELECT pg_get_triggerdef(oid) FROM pg_trigger"
    " WHERE tgrelid = %s::regclass AND NOT tgisinternal AND NOT starts_with(tgname, 'consensus_orm_') ORDER BY 1",
}


def definitions(url: str, *names: str) -> list[tuple[str, ...]]:
    """What the catalog says of some tables: their columns, indexes, constraints, and triggers other than ours."""
    with reading(url) as connection:
        return [
            (name, kind, *row)
            for name in names
            for kind, sql in DEFINITIONS.items()
            for row in connection.execute(sql.encode(), (f'"{name}"',)).fetchall()
        ]


def sequences(url: str) -> dict[str, int]:
    """The highest id ever given, by table; tables that never gave one are left out."""
    sql = (
        "SELECT t.relname, CASE s.relkind WHEN 'S' THEN pg_sequence_last_value(s.oid) END FROM pg_class AS s"
        " JOIN pg_depend AS d ON d.objid = s.oid AND d.deptype IN ('a', 'i') AND d.classid = 'pg_class'::regclass"
        " JOIN pg_class AS t ON t.oid = d.refobjid"
    )
    with reading(url) as connection:
        return {table: value for table, value in connection.execute(sql.encode()) if value is not None}


def image(url: str, *names: str) -> tuple[object, ...]:
    """All there is to say of some tables: definitions, rows, sequences. Two equal images are equal tables."""
    given = sequences(url)
    return (
        definitions(url, *names),
        {name: rows(url, name) for name in names},
        {name: given.get(name) for name in names},
    )


def legacy(url: str) -> dict[str, list[Row]]:
    """The rows of the legacy side."""
    with reading(url) as connection:
        return legacy_of(partial(query, connection))


def normalized(url: str) -> dict[str, list[Row]]:
    """The rows of the normalized side, in the shape of the legacy one."""
    with reading(url) as connection:
        return normalized_of(partial(query, connection))
