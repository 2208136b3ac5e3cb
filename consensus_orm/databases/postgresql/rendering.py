"""The rendering of statements for PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    CHAR,
    JSON,
    ColumnElement,
    Dialect,
    Enum,
    FromClause,
    Integer,
    Select,
    SelectBase,
    Table,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    literal_column,
    null,
    select,
)
from sqlalchemy import literal as sql_literal
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.dialects.postgresql.base import PGCompiler, PGDialect
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.types import TypeEngine

from consensus_orm.databases.postgresql.expressions import is_text, sql_type
from consensus_orm.declaration.constants import Constants, with_binary
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.row_keys import RowKey, parts
from consensus_orm.declaration.rules import Latest
from consensus_orm.declaration.stored_types import as_stored
from consensus_orm.models.base import Verbatim
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import (
    Overwritten,
    Statement,
    constant,
    literal,
    overwriting,
    quoted,
    table_of,
)
from consensus_orm.statements.rows import PairRendering, PairRows

__all__ = ["PostgresRendering"]


class _Compiler(Constants, PGCompiler):
    def with_type(self, written: str, type_: TypeEngine[Any]) -> str:
        """Cast a quoted literal that is not text: in a CASE it would count as text."""
        stored = sql_type(type_)
        if isinstance(stored, Text) or not written.startswith("'"):
            return written
        return f"CAST({written} AS {self.dialect.type_compiler_instance.process(stored)})"


class _PostgreSQL(PGDialect):
    supports_statement_cache = True
    statement_compiler = _Compiler
    colspecs = with_binary(PGDialect.colspecs, "decode('{}', 'hex')")


class PostgresRendering(PairRendering):
    """Renders statements for PostgreSQL."""

    dialect: Dialect = _PostgreSQL(paramstyle="named")  # type: ignore[no-untyped-call] # SQLAlchemy has no types here

    def typed(self, value: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """A bound value, cast to the type of its column, which the server cannot always infer."""
        return cast(value, sql_type(type_))

    def read_as_bound(self, type_: TypeEngine[Any]) -> frozenset[type]:
        """Texts where no column pads them, and integers where no column makes other numbers of them."""
        stored = as_stored(type_, self.name)
        if is_text(stored) and not isinstance(stored, CHAR | Enum):
            return frozenset([str])
        return frozenset([int] if isinstance(stored, Integer | Verbatim) else [])

    def unindexed(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """The column itself: the planner knows which index finds fewer rows."""
        return column

    def in_bytes(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        """Text in the order of its bytes, whatever the collation of the database."""
        return text.collate("C") if isinstance(sql_type(text.type), Text) else text

    def ignoring(
        self, into: Table, names: list[str], rows: SelectBase, unless: Overwritten | None = None
    ) -> ClauseElement:
        """Insert rows, and skip or overwrite those that exist."""
        statement = insert(into).from_select(names, rows)
        return overwriting(statement, names, unless) if unless else statement.on_conflict_do_nothing()

    def making(self, parents: Table, names: list[str], rows: Select[Any]) -> ClauseElement:
        """Insert the parents that rows need, and return them: a row may be deleted before it is carried."""
        statement = insert(parents).from_select(names, rows).on_conflict_do_nothing()
        return statement.returning(sql_literal(parents.name, Text), *parents.primary_key)

    def count_and_list(
        self, key: ColumnElement[Any], within: ColumnElement[bool], wrong: ColumnElement[bool]
    ) -> Select[Any]:
        """The number of rows, and the keys of the wrong ones as a JSON array."""
        count = select(func.count()).select_from(table_of(key)).where(within).scalar_subquery()
        listed = select(key.label("key")).where(within, wrong).order_by(*parts(key)).subquery()
        return select(count, select(cast(func.json_agg(listed.c.key), Text)).scalar_subquery())  # pyright: ignore[reportReturnType] # two columns

    def next_key(self, pair: Move) -> str:
        """The next id, from the sequence of the legacy table, which both sides use while both are written."""
        sequence = func.pg_get_serial_sequence(quoted(pair.legacy_name), pair.legacy_keys[0])
        return f"SELECT {self.render(func.nextval(sequence))}"

    def write_together(self, pair: PairRows, sides: Collection[Side]) -> str | None:
        """Write a row and its parent with one statement, for one round trip."""
        declared = pair.pair
        by_value = any(parent.tells_nulls_apart or parent.is_optional for parent in declared.parents)
        is_simple = declared.is_numbered and declared.own_id is None and not declared.tables_beside
        if declared.originals is not None or by_value or not is_simple or len(declared.parents) > 1:
            return None
        values = pair.normalized_values()
        parent = None
        for of in declared.parents:
            parent = self._upsert(pair, of).returning(of.key.label("id")).cte("parent")
            values[of.refers.key] = parent.c.id
        rows = select(*values.values())
        written = insert(declared.table).from_select(list(values), rows).returning(declared.key.label("id")).cte("own")
        if Side.LEGACY in sides:
            carried = {declared.legacy_keys[0]: written.c.id} | {name: pair.bound[name] for name in pair.bound}
            carried |= pair.legacy_constants
            other = insert(declared.legacy_table).from_select(list(carried), select(*carried.values()))
            written = other.returning(pair.legacy_key.label("id")).cte("other")
        # A trigger may skip a row without an error; then the division by 0 fails the whole statement.
        once = literal_column("1").op("/")(select(func.count()).select_from(written).scalar_subquery())
        keys = [select(cte.c.id).scalar_subquery() for cte in (written, parent) if cte is not None]
        return self.render(select(*keys, *([null()] if parent is None else []), once))

    def carry_new(self, pair: PairRows, criterion: ColumnElement[bool]) -> str | None:
        """Carry legacy rows and insert their parents with one statement, in one snapshot.

        A parent is inserted with the values derived from its earliest row. So if all rows were new, no parent has to be
        written a second time.
        """
        declared, (parent,) = pair.pair, pair.pair.parents
        if parent.tells_nulls_apart or parent.is_optional or isinstance(declared.key, RowKey):
            return None
        row = pair.legacy_row()
        own = pair.own_values(row)
        # Computed values are computed once; values that are only carried are not read before they are written.
        above = {name: value.label(f"parent_{name}") for name, value in declared.filled_above(parent, row).items()}
        derived = [*declared.computed, *([] if declared.newest is None else [declared.newest])]
        computed = {of.key: own[of.key].label(f"own_{of.key}") for of in derived}
        key = pair.legacy_key.label("seen")
        seen = select(key, *above.values(), *computed.values()).where(criterion).cte("seen").prefix_with("MATERIALIZED")
        written = own | {name: seen.c[label.name] for name, label in computed.items()}

        identity = {of.key: seen.c[above[of.key].name] for of in parent.identity}
        made = {name: _any(seen.c[label.name]) for name, label in above.items()} | identity
        for of, rule in parent.derived_columns.items():
            if isinstance(rule, Latest):
                made[of.key] = constant(rule.otherwise, of)
            elif declared.newest is not None:
                made[of.key] = func.min(written[declared.newest.key])
        rows = select(*made.values()).group_by(*identity.values())
        upsert = self._on_conflict(pair, parent, insert(parent.table).from_select(list(made), rows))
        parents = upsert.returning(parent.key, *(parent.table.c[name] for name in identity)).cte("parent")

        values = {declared.keys[0].key: pair.legacy_key} | written | pair.marked
        values[parent.refers.key] = parents.c[parent.key.name]
        is_theirs = and_(*(parents.c[name] == value for name, value in identity.items()))
        source = declared.legacy_table.join(seen, seen.c.seen == pair.legacy_key).join(parents, is_theirs)
        rows = select(*values.values()).select_from(source).where(criterion)
        inserted = insert(declared.table).from_select(list(values), rows).on_conflict_do_nothing()
        carried = inserted.returning(declared.key).cte("own")

        new, all_ = (select(func.count()).select_from(cte).scalar_subquery() for cte in (carried, seen))
        keys = select(cast(func.json_agg(parents.c[parent.key.name]), Text)).scalar_subquery()
        doubtful = keys if parent.depends_on(declared.name) else case((new == all_, null()), else_=keys)
        return self.render(select(doubtful).add_cte(parents, carried))

    def find_parent(self, parent: Parent, found: SelectBase, pair: PairRows) -> str:
        """The parent of a row, inserted if there is none, and locked until the end of the transaction."""
        if parent.tells_nulls_apart:
            return self.render(found.with_for_update() if isinstance(found, Select) else found)
        return self.render(self._upsert(pair, parent).returning(parent.key, false()))

    def _upsert(self, pair: PairRows, parent: Parent) -> Insert:
        return self._on_conflict(pair, parent, insert(parent.table).values(pair.new_parent(parent, pair.bound)))

    def _on_conflict(self, pair: PairRows, parent: Parent, statement: Insert) -> Insert:
        earliest = pair.earliest_column(parent)
        kept = parent.identity[0].key if earliest is None else earliest
        new = statement.excluded[kept]
        value = new if earliest is None else func.least(parent.table.c[kept], new)
        return statement.on_conflict_do_update(index_elements=[of.name for of in parent.identity], set_={kept: value})

    def items(self, listed: ColumnElement[Any]) -> tuple[FromClause, ColumnElement[Any], ColumnElement[Any]]:
        """The items of a JSON array as rows."""
        array = cast(case((listed.like("[%"), listed)), JSON)
        found = func.json_array_elements_text(array).table_valued("value", with_ordinality="place").render_derived()
        return found, found.c.place - literal_column("1", Integer), found.c.value

    def alone(self, parent: Parent) -> tuple[str, ...]:
        """An advisory lock: a unique index takes NULLs for different, so ON CONFLICT does not see them."""
        name = literal(f"consensus_orm parents {parent.table.name}")
        lock = f"DO $$BEGIN PERFORM pg_advisory_xact_lock(hashtextextended({name}, 0)); END$$"
        return (Statement(lock, writes=True),)

    def lock(self, keys: Select[Any], *, removes: bool) -> tuple[str, ...]:
        """Lock parents before they are read.

        A statement sees what was committed when it began. Without the lock it would wait for another writer of the
        parent, and then decide by a snapshot from before the commit of that writer. Two transactions that both wrote
        rows of a parent, and then wait for a lock with which it may be removed, would wait for each other.
        """
        return (self.render(keys.with_for_update(key_share=not removes)),)


def _any(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Any of the values of a group; PostgreSQL 15 has no any_value."""
    return func.array_agg(value, type_=ARRAY(value.type))[literal_column("1", Integer)]
