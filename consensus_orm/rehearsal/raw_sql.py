"""Raw SQL that reads a database past the moves and the store, for SQLite and for PostgreSQL.

Values are read as type and bytes; the rest of a rehearsal does not depend on the kind of database.
"""

from __future__ import annotations

import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from consensus_orm.databases.base import PREFIX
from consensus_orm.databases.guard_record import GUARDS
from consensus_orm.databases.opening import rendering
from consensus_orm.databases.saved_rows import DROPPED, dropped
from consensus_orm.statements.rendering import literal, quoted

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import ColumnElement

__all__ = ["FileLook", "Look", "Rows", "SchemaObject", "ServerLook", "look_of"]

Rows = Callable[[str], list[tuple[Any, ...]]]
"""Runs a statement without parameters: of a raw connection, or of a unit of work."""

SchemaObject = tuple[str, str, str]
"""Its type, its name and its definition."""


_RECORDED = f"SELECT name FROM {GUARDS} WHERE kind = 'trigger'"


class Look(ABC):
    """Reads one database; `rows` runs a statement."""

    dialect: ClassVar[str]
    """The kind of database, as SQLAlchemy calls it."""

    parameter: ClassVar[str]
    """How a statement for `stream` spells its one parameter."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def spelled(self, of: ColumnElement[Any]) -> str:
        """A column, or what a legacy one follows from, as SQL."""
        return rendering(self.dialect).render(of)

    @abstractmethod
    def tables(self) -> dict[str, str]:
        """The tables by their lower-case names."""

    @abstractmethod
    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table by their lower-case names; none where it does not exist."""

    @abstractmethod
    def cell(self, column: str) -> str:
        """Two expressions: the type of a value, and its bytes."""

    @abstractmethod
    def objects(self, tables: Collection[str]) -> frozenset[SchemaObject]:
        """The definitions of tables (lower-case names), their indexes and the triggers of other programs.

        Of tables that were dropped, what was saved.
        """

    def stream(self, sql: str, value: Any = None) -> Iterator[tuple[Any, ...]]:
        """Stream the rows of a query, text as bytes."""
        raise NotImplementedError

    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """Read one snapshot until the block ends."""
        raise NotImplementedError


class FileLook(Look):
    """A SQLite database."""

    dialect = "sqlite"
    parameter = ":value"
    _connection: sqlite3.Connection

    @classmethod
    @contextlib.contextmanager
    def at(cls, path: Path) -> Iterator[FileLook]:
        """Read with a connection of its own."""
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            yield cls.by(connection)

    @classmethod
    def by(cls, connection: sqlite3.Connection) -> FileLook:
        """Read with a given connection."""
        found = cls(lambda sql: connection.execute(sql).fetchall())
        found._connection = connection
        return found

    def tables(self) -> dict[str, str]:
        """The tables."""
        return {name.lower(): name for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table."""
        return {name.lower(): name for _, name, *_ in self.rows(f"PRAGMA table_info({quoted(table)})")}

    def cell(self, column: str) -> str:
        """Type and bytes of a value."""
        # A real number as text has 15 digits, which is not all of it.
        whole = f"CAST(printf('%!.20g', {column}) AS BLOB)"
        return f"typeof({column}), CASE typeof({column}) WHEN 'real' THEN {whole} ELSE CAST({column} AS BLOB) END"

    def objects(self, tables: Collection[str]) -> frozenset[SchemaObject]:
        """The definitions of tables."""
        found = self.rows("SELECT type, name, sql, lower(tbl_name) FROM sqlite_master WHERE sql IS NOT NULL")
        names = {name for _, name, *_ in found}
        ours = self.rows(_RECORDED) if GUARDS in names else []
        kept = ((kind, name, sql) for kind, name, sql, table in found if table in tables)
        objects = frozenset(each for each in kept if each[0] != "trigger" or (each[1],) not in ours)
        saved = "consensus_orm_saved_schema" in names
        if any(kind == "table" for kind, _, _ in objects) or not saved:
            return objects
        aside = self.rows(
            "SELECT type, name, sql FROM consensus_orm_saved_schema WHERE type IN ('table', 'index', 'trigger')"
        )
        return frozenset((kind, name, sql) for kind, name, sql in aside)

    def stream(self, sql: str, value: Any = None) -> Iterator[tuple[Any, ...]]:
        """Stream the rows of a query."""
        # Text need not be UTF-8, and may hold NUL.
        before, self._connection.text_factory = self._connection.text_factory, bytes
        try:
            yield from self._connection.execute(sql, {} if value is None else {"value": value})
        finally:
            self._connection.text_factory = before

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one snapshot."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("COMMIT")


class ServerLook(Look):
    """A PostgreSQL database; tables that were renamed at CONTRACT appear under their old names."""

    dialect = "postgresql"
    parameter = "%(value)s"
    _connection: psycopg.Connection[Any]

    @classmethod
    @contextlib.contextmanager
    def at(cls, connect: Callable[[], psycopg.Connection[Any]]) -> Iterator[ServerLook]:
        """Read with a connection of its own."""
        with connect() as connection:
            connection.prepare_threshold = None  # a connection pooler may be in between
            found = cls(lambda sql: connection.execute(sql.encode()).fetchall())
            found._connection = connection
            yield found

    def tables(self) -> dict[str, str]:
        """The tables."""
        sql = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid)"
        return {name.lower(): name for (name,) in self.rows(sql)}

    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table."""
        sql = (
            f"SELECT attname FROM pg_attribute WHERE attrelid = to_regclass({literal(quoted(table))})"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        )
        return {name.lower(): name for (name,) in self.rows(sql)}

    def cell(self, column: str) -> str:
        """Type and bytes of a value."""
        kind = f"CASE WHEN {column} IS NULL THEN 'null' ELSE CAST(pg_typeof({column}) AS TEXT) END"
        return f"{kind}, convert_to(CAST({column} AS TEXT), 'UTF8')"

    def objects(self, tables: Collection[str]) -> frozenset[SchemaObject]:
        """The definitions of tables."""
        there = self.tables()
        found: set[SchemaObject] = set()
        for table in tables:
            if name := there.get(table) or there.get(dropped(table)):
                for kind, own, sql in self.rows(_OBJECTS.format(table=f"to_regclass({literal(quoted(name))})")):
                    found.add((kind, own.replace(DROPPED, ""), sql.replace(DROPPED, "")))
        return frozenset(found)

    def stream(self, sql: str, value: Any = None) -> Iterator[tuple[Any, ...]]:
        """Stream the rows of a query."""
        with self._connection.transaction(), self._connection.cursor(name="consensus_orm_look") as cursor:
            cursor.itersize = 1000
            yield from cursor.execute(sql.encode(), None if value is None else {"value": value})

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one snapshot."""
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield


_OBJECTS = (
    "SELECT 'column', CAST(a.attname AS TEXT), concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod),"
    " a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid)) FROM pg_attribute AS a"
    " LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
    " WHERE a.attrelid = {table} AND a.attnum > 0 AND NOT a.attisdropped"
    " UNION ALL SELECT 'constraint', CAST(conname AS TEXT), pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE conrelid = {table} AND contype <> 'n'"
    " UNION ALL SELECT 'index', CAST(CAST(indexrelid AS regclass) AS TEXT), pg_get_indexdef(indexrelid) FROM pg_index"
    " WHERE indrelid = {table}"
    " UNION ALL SELECT 'trigger', CAST(tgname AS TEXT), pg_get_triggerdef(oid) FROM pg_trigger"
    " WHERE tgrelid = {table} AND NOT tgisinternal"
    f" AND NOT (tgname ^@ '{PREFIX}' AND tgname = (SELECT proname FROM pg_proc AS p WHERE p.oid = tgfoid))"
)
"""Our triggers have a function of the same name. NOT NULL is read from the columns; the constraints that PostgreSQL 18
has for it are left out."""


def look_of(dialect: str, rows: Rows) -> Look:
    """Read with a function that runs statements; it cannot stream."""
    return (FileLook if dialect == "sqlite" else ServerLook)(rows)
