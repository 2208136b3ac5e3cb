"""The statements that PostgreSQL wants in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Dialect,
    Integer,
    Select,
    SelectBase,
    Table,
    Text,
    cast,
    false,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.types import Boolean, TypeEngine

import consensus_orm.postgresql.expressions  # noqa: F401 - its forms of the expressions
from consensus_orm.mapping import Pair
from consensus_orm.models.base import Verbatim
from consensus_orm.sql import Words, overwriting

if TYPE_CHECKING:
    from consensus_orm.statements import PairStatements

__all__ = ["PostgresWords"]


class PostgresWords(Words):
    """How statements are printed for PostgreSQL."""

    dialect: Dialect = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]

    def typed(self, value: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """A bound value of a column's type: the server cannot always tell what an expression is given."""
        return cast(value, _sql_type(type_))

    def in_bytes(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        """Text in the order of its bytes, whatever the collation of the database."""
        return text.collate("C") if isinstance(_sql_type(text.type), Text) else text

    def ignoring(self, into: Table, names: list[str], rows: SelectBase, unless: str | None = None) -> ClauseElement:
        """Insert rows, and leave out, or overwrite, those that are there."""
        statement = insert(into).from_select(names, rows)
        return statement.on_conflict_do_nothing() if unless is None else overwriting(statement, names, unless)

    def next_key(self, pair: Pair) -> str:
        """The next id: while both sides are written, both draw from the sequence of the legacy table."""
        sequence = func.pg_get_serial_sequence(
            literal_column(f"'\"{pair.legacy_table.name}\"'"), literal_column(f"'{pair.key.name}'")
        )
        return f"SELECT {self.render(func.nextval(sequence))}"

    def find_parent(self, found: SelectBase, pair: PairStatements) -> str:
        """The parent of a row as meant, made where there is none, and kept from others until the end."""
        parent = pair.pair.parent
        assert parent is not None
        statement = insert(parent.table).values(pair.new_parent(pair.bound))
        earliest = pair.earliest_column
        kept = parent.identity[0].key if earliest is None else earliest
        value = (
            statement.excluded[kept] if earliest is None else func.least(parent.table.c[kept], statement.excluded[kept])
        )
        upsert = statement.on_conflict_do_update(index_elements=[a.key for a in parent.identity], set_={kept: value})
        return self.render(upsert.returning(parent.key, false()))

    def lock(self, keys: Select[Any]) -> tuple[str, ...]:
        """Lock parents before they are looked through.

        A statement sees what was committed when it began. Without the lock it would wait for a writer of the
        same parent, and then decide by what it saw before that one committed.
        """
        return (self.render(keys.with_for_update()),)


def _sql_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    if isinstance(type_, Verbatim):
        return BigInteger() if type_.name != "TIMESTAMP" else Text()
    if isinstance(type_, Text | Boolean):
        return type_
    return BigInteger() if isinstance(type_, Integer) else type_
