"""The rendering of statements for SQLite."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Dialect,
    FromClause,
    Integer,
    Select,
    SelectBase,
    String,
    Table,
    Text,
    case,
    cast,
    func,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler, SQLiteDialect
from sqlalchemy.sql.expression import ClauseElement, UnaryExpression
from sqlalchemy.sql.operators import custom_op
from sqlalchemy.types import TypeEngine

from consensus_orm.databases.sqlite import expressions
from consensus_orm.declaration.constants import ConstantsInSQLite, with_binary
from consensus_orm.declaration.keys import usable
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.stored_types import as_stored
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import Overwritten, overwriting, table_of
from consensus_orm.statements.rows import PairRendering, PairRows

__all__ = ["SQLiteRendering"]

assert expressions  # the import registers the rules for SQLite


class _SQLiteCompiler(ConstantsInSQLite, SQLiteCompiler):
    pass


class _SQLite(SQLiteDialect):
    supports_statement_cache = True
    statement_compiler = _SQLiteCompiler
    colspecs = with_binary(SQLiteDialect.colspecs, "X'{}'")


class SQLiteRendering(PairRendering):
    """Renders statements for SQLite."""

    dialect: Dialect = _SQLite(paramstyle="named")

    def typed(self, value: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """A bound value of a column's type; text is cast, so that bytes that are not valid UTF-8 can be bound."""
        return cast(value, Text) if isinstance(as_stored(type_, self.name), String) else value

    def read_as_bound(self, type_: TypeEngine[Any]) -> frozenset[type]:
        """Texts, and integers that `typed` does not cast."""
        return frozenset([str] if isinstance(as_stored(type_, self.name), String) else [str, int])

    def unindexed(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """A column without its index, because SQLite does not know which of two indexes finds fewer rows."""
        return UnaryExpression(column, operator=custom_op("+"), type_=column.type)

    def in_bytes(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        """Text in the order of its bytes: SQLite's default."""
        return text

    def ignoring(
        self, into: Table, names: list[str], rows: SelectBase, unless: Overwritten | None = None
    ) -> ClauseElement:
        """Insert rows, without those that exist or violate a constraint."""
        statement = insert(into).prefix_with("OR IGNORE").from_select(names, rows)
        return overwriting(statement, names, unless) if unless else statement

    def making(self, parents: Table, names: list[str], rows: Select[Any]) -> ClauseElement:
        """Insert the parents that rows need, without those that exist."""
        return self.ignoring(parents, names, rows)

    def count_and_list(
        self, key: ColumnElement[Any], within: ColumnElement[bool], wrong: ColumnElement[bool]
    ) -> Select[Any]:
        """The number of rows, and the keys of the wrong ones as a JSON array, in one scan."""
        listed = func.json_group_array(key).filter(wrong)
        counted = select(func.count(), listed).select_from(table_of(key))
        return counted.where(within)  # pyright: ignore[reportReturnType] # two columns

    def next_key(self, pair: Move) -> str:
        """The next id, above every id that either side has or ever assigned (rule 3)."""
        keys = (pair.legacy_table.c[pair.legacy_keys[0]], pair.keys[0])
        names = [key.table.name for key in keys if key.primary_key]
        given: Select[Any] = select(func.max(cast(literal_column("seq"), Integer))).select_from(
            table("sqlite_sequence")
        )
        given = given.where(literal_column("name").collate("NOCASE").in_(names))
        highest = [given, *(select(func.max(key)).where(usable(key)) for key in keys)]
        zero: ColumnElement[Any] = literal_column("0")
        largest = func.max(*(func.coalesce(h.scalar_subquery(), zero) for h in highest))
        return self.render(select(largest + literal_column("1")))

    def find_parent(self, parent: Parent, found: SelectBase, pair: PairRows) -> str:
        """The parent of a row, and whether the row is earlier than those it has."""
        return self.render(found)

    def write_together(self, pair: PairRows, sides: Collection[Side]) -> str | None:
        """None: one statement instead of two would save no round trip."""
        return None

    def carry_new(self, pair: PairRows, criterion: ColumnElement[bool]) -> str | None:
        """None: one statement instead of two would save no round trip."""
        return None

    def items(self, listed: ColumnElement[Any]) -> tuple[FromClause, ColumnElement[Any], ColumnElement[Any]]:
        """The items of a JSON array as rows."""
        found = func.json_each(case((listed.like("[%"), listed))).table_valued("key", "value")
        return found, found.c.key, found.c.value

    def alone(self, parent: Parent) -> tuple[str, ...]:
        """Nothing: the write lock is held by one transaction."""
        return ()

    def lock(self, keys: Select[Any], *, removes: bool) -> tuple[str, ...]:
        """Nothing: the write lock protects parents until the end of the transaction."""
        return ()
