"""The rows of a pair as expressions: as they are meant, and as each side holds them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, Self

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Select,
    SelectBase,
    Table,
    Text,
    alias,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.types import TypeEngine

from consensus_orm.declaration.expressions import holds, same
from consensus_orm.declaration.keys import usable
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Many, Parent
from consensus_orm.declaration.row_keys import in_columns, row_key
from consensus_orm.declaration.rules import Earliest, Row, on
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import (
    FALSE,
    TRUE,
    Rendering,
    constant,
    in_keys,
    in_range,
    parameter,
)

__all__ = ["PairRendering", "PairRows"]


class PairRendering(Rendering):
    """How statements on the two tables of a pair are printed, where a database can do several with one."""

    @abstractmethod
    def find_parent(self, parent: Parent, found: SelectBase, pair: PairRows) -> str:
        """The parent of a row as meant, and whether the row is earlier than any it has.

        Args:
            parent: Which parent.
            found: Says so; it gives no row where there is no parent.
            pair: What a database needs that makes the parent with the same statement.
        """

    @abstractmethod
    def write_together(self, pair: PairRows, sides: Collection[Side]) -> str | None:
        """Write a row and its parent with one statement, giving key and parent; None where that saves nothing.

        Args:
            pair: The move of the row.
            sides: The normalized side, and the legacy side where it is written, too.
        """

    @abstractmethod
    def read_as_bound(self, type_: TypeEngine[Any]) -> frozenset[type]:
        """The types of values that a read gives as they were bound, where `same` has found the column to hold them."""

    @abstractmethod
    def items(self, listed: ColumnElement[Any]) -> tuple[FromClause, ColumnElement[Any], ColumnElement[Any]]:
        """The items of a JSON array as rows: where from, the place of each from 0, and the item as a text.

        Args:
            listed: The text of the array; NULL, and what is none, has no items.
        """

    @abstractmethod
    def carry_new(self, pair: PairRows, criterion: ColumnElement[bool]) -> str | None:
        """Carry legacy rows and make their parents with one statement; None where that saves nothing.

        It gives the parents to derive again, as a JSON array, or NULL where all rows were new: then what it gave
        their parents is right.
        """


class PairRows:
    """The rows of a pair as expressions: what a statement on them is made of.

    Args:
        pair: The declared pair.
        rendering: How statements are printed.
        moves: All moves of the database.
        odd: Columns whose values are of another kind than the column, and whether they are texts.
    """

    def __init__(
        self, pair: Move, rendering: PairRendering, moves: Moves, *, odd: Mapping[str, bool] | None = None
    ) -> None:
        self.pair = pair
        self.moves = moves
        self.rendering = rendering
        self.render = rendering.render
        self._odd = odd or {}

    def storing(self, odd: Mapping[str, bool]) -> Self:
        """Statements that store values of another kind than their columns as that kind.

        Args:
            odd: These columns, and whether the value is a text; otherwise it is stored as it is bound.
        """
        return type(self)(self.pair, self.rendering, self.moves, odd=odd) if odd else self

    def check(self) -> None:
        """Refuse rules that cannot be said in SQL, before a statement is made of them.

        Raises:
            ConfigurationError: There is one.
        """
        rules = [*self.own_values(self.bound).values()]
        for parent in self.pair.parents:
            rules += self.pair.filled_above(parent, self.bound).values()
        for part in self.pair.parts:
            rules += [*self.pair.filled_in(part, self.bound).values(), self.pair.has_part(part, self.bound)]
        rules += [many.items.listed(self.bound[name]) for name, many in self.pair.listed.items()]
        rules += [*self.pair.restored.values(), *self.pair.adopted.values(), *self.legacy_constants.values()]
        self.rendering.check(rules, known={parameter(name) for name in self.pair.columns})

    @cached_property
    def bound(self) -> Row:
        """The row as it is meant: bound values. Text is cast, so that bytes that are no UTF-8 can be bound."""
        return Row({name: self._bind(name, self.pair.type_of(name)) for name in self.pair.columns})

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The names of the fields of a row but its key, and of the parameters that hold their values."""
        return {name: parameter(name) for name in self.pair.fields[len(self.pair.keys) :]}

    @cached_property
    def read_as_bound(self) -> tuple[tuple[str, frozenset[type]], ...]:
        """For each legacy column its parameter, and the types whose values are read as they were bound."""
        key = frozenset([int] if self.pair.is_numbered else [])
        types = ((parameter(name), self.pair.type_of(name)) for name in self.pair.columns)
        return (("_key", key), *((bound, self.rendering.read_as_bound(type_)) for bound, type_ in types))

    def keyed(self, side: Side, key: ColumnElement[Any]) -> dict[str, Any]:
        """The key columns of a side, filled with a key: of the other side, or bound."""
        return dict(zip(self.pair.key_names(side), in_columns(key, self.pair.key), strict=True))

    def in_column(self, key: ColumnElement[Any]) -> ColumnElement[Any]:
        """A key of one column as a value of it, as parts and items refer to it."""
        value: ColumnElement[Any] = in_columns(key, self.pair.key)[0]
        return value

    def _bind(self, name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
        value = bindparam(parameter(name), type_=type_)
        is_text = self._odd.get(name)
        return value if is_text is False else self.rendering.typed(value, Text() if is_text else type_)

    def _kept_bind(self, of: Column[Any]) -> ColumnElement[Any]:
        return self._bind(of.key, of.type)

    def legacy_row(self, table: FromClause | None = None) -> Row:
        """The row as the legacy table holds it."""
        table = self.pair.legacy_table if table is None else table
        return Row({name: table.c[name] for name in self.pair.columns})

    def normalized_row(self, table: FromClause | None = None) -> Row:
        """The row as the normalized table and its parents hold it, under its legacy names."""
        return self.pair.given_back(self.pair.table if table is None else table)

    def own_values(self, row: Row) -> dict[str, ColumnElement[Any]]:
        """What the normalized table must hold for a row; without key, link, marker and what is kept."""
        constants = {self.pair.table.c[name].key: of for name, of in self.pair.only[Side.NORMALIZED].items()}
        return self.pair.filled(row) | constants

    @property
    def legacy_constants(self) -> dict[str, ColumnElement[Any]]:
        """What every legacy row of the move holds."""
        return self.pair.only[Side.LEGACY]

    def _identity(self, parent: Parent, row: Row, table: FromClause) -> ColumnElement[bool]:
        """Whether a parent is that of a row: NULLs are equal; only a column that can be NULL pays for that."""
        values, apart = self.pair.filled_above(parent, row), parent.tells_nulls_apart
        pairs = ((of, table.c[of.key], values[of.key]) for of in parent.identity)
        return and_(*(_null_safe(its, mine) if apart and of.nullable else its == mine for of, its, mine in pairs))

    def needs_parent(self, parent: Parent, row: Row) -> ColumnElement[bool]:
        """Whether a row has a parent: one whose values are all NULL has none, where its link can be NULL."""
        if not parent.is_optional:
            return TRUE
        values = self.pair.filled_above(parent, row)
        return or_(FALSE, *(values[of.key].is_not(None) for of in parent.identity))

    def _with_parents(self, source: FromClause, row: Row) -> FromClause:
        """Rows with the parents that their values name."""
        rows = source
        for parent in self.pair.parents:
            meant = self._identity(parent, row, parent.at)
            if parent.tells_nulls_apart:  # another program may have made two of the same values
                each = alias(parent.table)
                first = select(func.min(each.c[parent.key.key])).where(self._identity(parent, row, each))
                meant = parent.key_at == first.correlate(rows).scalar_subquery()
            source = source.join(parent.at, and_(meant, self.needs_parent(parent, row)), isouter=parent.is_optional)
        return source

    def _joined(self, table: FromClause) -> FromClause:
        """Normalized rows with all that belongs to them; without those that lack a parent."""
        source = self.with_beside(table, table)
        for parent in self.pair.parents:
            source = source.join(parent.at, parent.of(table), isouter=parent.is_optional)
        return source

    def with_beside(self, source: FromClause, own: Any) -> FromClause:
        """Join with normalized rows what stands beside them, in none or one row: kept originals, and parts.

        Args:
            source: Where the rows come from.
            own: The normalized table in it, or what stands for it.
        """
        if (originals := self.pair.originals) is not None:
            source = source.outerjoin(originals, self._has_original(originals, own))
        for part in self.pair.parts:
            source = source.outerjoin(part.table, part.by == own.c[self.pair.keys[0].key])
        return source

    def item_rows(
        self,
        many: Many,
        key: ColumnElement[Any],
        listed: ColumnElement[Any],
        *where: ColumnElement[bool],
        source: FromClause | None = None,
    ) -> tuple[ClauseElement, ...]:
        """Insert the items of rows that have none: those that another table holds first, where they are not there.

        Args:
            many: Where the items stand.
            key: The one column of the key of the rows.
            listed: Their items.
            *where: Which rows.
            source: Where the rows come from; None for one that is bound.
        """
        items, place, value = self.rendering.items(listed)
        rows = items if source is None else source.join(items, TRUE)
        has_none = not_(exists(literal_column("1")).where(alias(many.table).c[many.by.name] == key))
        values = {many.by.name: key, many.position.name: place}
        if many.parent is None or many.link is None:
            values[many.item.name] = value
            return (self.rendering.ignoring(many.table, list(values), self._of_rows(values, rows, has_none, *where)),)
        above = many.parent.table
        made = {many.item.name: value}
        parents = self.rendering.ignoring(above, list(made), self._of_rows(made, rows, has_none, *where).distinct())
        values[many.link.name] = many.parent.key
        linked = rows.join(above, many.item == value)
        return parents, self.rendering.ignoring(
            many.table, list(values), self._of_rows(values, linked, has_none, *where)
        )

    @staticmethod
    def _of_rows(values: dict[str, Any], source: FromClause, *where: ColumnElement[bool]) -> Select[Any]:
        rows: Select[Any] = select(*values.values())  # pyright: ignore[reportAssignmentType] # of any number of columns
        return rows.select_from(source).where(*where)

    def whole(self) -> FromClause:
        """The normalized table with what belongs to its rows, where there is any: a row may have lost its parent."""
        return self.with_parents(self.with_beside(self.pair.table, self.pair.table), self.pair.table)

    def with_parents(self, source: FromClause, own: Any) -> FromClause:
        """Join with normalized rows their parents, where they are there.

        Args:
            source: Where the rows come from.
            own: The normalized table in it, or what stands for it.
        """
        for parent in self.pair.parents:
            source = source.outerjoin(parent.at, parent.of(own))
        return source

    @cached_property
    def legacy_key(self) -> ColumnElement[Any]:
        """The key of the legacy table."""
        return self.pair.key_in(self.pair.legacy_table, Side.LEGACY)

    def _key_of_originals(self, originals: Table) -> ColumnElement[Any]:
        return row_key([originals.c[name] for name in self.pair.originals_key])

    def _has_original(self, originals: Table, own: Any) -> ColumnElement[bool]:
        return self._key_of_originals(originals) == self.pair.key_in(own, Side.NORMALIZED)

    def table_of(self, side: Side) -> Table:
        """The table of a side."""
        return self.pair.legacy_table if side is Side.LEGACY else self.pair.table

    def key_of(self, side: Side) -> ColumnElement[Any]:
        """The key of the table of a side."""
        return self.legacy_key if side is Side.LEGACY else self.pair.key

    def selected(self, side: Side, table: Any = None) -> list[ColumnElement[bool]]:
        """The conditions on which a row of a side is one of this move; none where all are.

        Args:
            side: The side.
            table: What stands for its table.
        """
        of = self.table_of(side) if table is None else table
        return [self.pair.selected(side, lambda name: of.c[name])] if self.pair.only[side] else []

    def unselected(self, side: Side, table: Any = None) -> ColumnElement[bool]:
        """Whether a row of a side is one of no move; such a row is looked after with the first move of its table."""
        of = self.table_of(side) if table is None else table
        return self.moves.unselected(self.pair, side, lambda name: of.c[name])

    def nameless(self, side: Side) -> ColumnElement[bool]:
        """Whether a row of a side has no usable key, or is one of no move."""
        unusable = and_(not_(usable(self.key_of(side))), *self.selected(side))
        return or_(unusable, self.unselected(side)) if self.pair.only[side] else unusable

    def in_keys(self, side: Side) -> ColumnElement[bool]:
        """Whether a row of a side is one of this move, with its key in `_keys`."""
        return and_(in_keys(self.key_of(side)), *self.selected(side))

    def in_range(self, side: Side) -> ColumnElement[bool]:
        """Whether a row of a side is one of this move, with its key between `_first` and `_last`."""
        return and_(in_range(self.key_of(side)), *self.selected(side))

    def agreement(self, row: Row, table: FromClause | None = None) -> dict[str, ColumnElement[bool]]:
        """For each normalized column, whether it holds what a row demands: the comparison, in one place."""
        return _merged(self._carried_agree(row, table), self._computed_agree(row, table))

    def _carried_agree(self, row: Row, table: FromClause | None = None) -> dict[str, ColumnElement[bool]]:
        own = self.pair.table if table is None else table
        found: dict[str, ColumnElement[bool]] = {}
        for name, of in self.pair.carried.items():
            label = of.key if self.pair.is_own(of) else f"{of.table.name}.{of.key}"
            found[label] = same(self.pair.standing(of, own), row[name])
        for part in self.pair.parts:
            is_there = case((self.pair.has_part(part, row), part.by.is_not(None)), else_=part.by.is_(None))
            found[f"{part.table.name}.{part.by.key}"] = is_there
        for name, many in self.pair.listed.items():
            equal = many.items.listed(row[name]).is_not_distinct_from(many.listed(own.c[self.pair.keys[0].key]))
            found[f"{many.table.name}.{many.item.key}"] = equal
        names = (*self.pair.restored, *self.pair.listed)
        back = self.normalized_row(own) if names else row
        return _merged(found, {name: holds(row[name], back[name]) for name in names})

    def _computed_agree(self, row: Row, table: FromClause | None = None) -> dict[str, ColumnElement[bool]]:
        own = self.pair.table if table is None else table
        found: dict[str, ColumnElement[bool]] = {
            of.key: holds(own.c[of.key], on(rule, row)) for of, rule in self.pair.computed.items()
        }
        for of, rule in (*self.pair.above.items(), *self.pair.beside.items()):
            found[f"{of.table.name}.{of.key}"] = holds(self.pair.standing(of, own), on(rule, row))
        return found

    def counterpart(self, row: Row, key: ColumnElement[Any]) -> Any:
        """Whether the normalized side holds an equal of a legacy row."""
        return (
            exists(literal_column("1"))
            .select_from(self._joined(self.pair.table))
            .where(self.pair.key == key, *self.selected(Side.NORMALIZED), *self.agreement(row).values())
        )

    def legacy_counterpart(self, own: FromClause, key: ColumnElement[Any]) -> Any:
        """Whether the legacy side holds an equal of a normalized row."""
        source: FromClause = self.pair.legacy_table
        compared = list(self.agreement(self.legacy_row(), own).values())
        for parent in self.pair.parents:
            source = source.join(parent.at, parent.of(own), isouter=parent.is_optional)
        if (originals := self.pair.originals) is not None:
            source = source.outerjoin(originals, self._has_original(originals, own))
        return (
            exists(literal_column("1"))
            .select_from(source)
            .where(self.legacy_key == key, *self.selected(Side.LEGACY), *compared)
        )

    def normalized_values(self) -> dict[str, Any]:
        """What the normalized table holds of a row as meant; without key and link."""
        kept = {of.key: self._kept_bind(of) for of in self.pair.kept}
        return self.own_values(self.bound) | kept | self.marked

    @property
    def marked(self) -> dict[str, ColumnElement[Any]]:
        """What tells a row of ours, where the declaration has a column for it."""
        return {} if self.pair.marker is None else {self.pair.marker.key: TRUE}

    @staticmethod
    def earliest_column(parent: Parent) -> str | None:
        """The column of a parent that follows its earliest row, if there is one."""
        derived = parent.derived_columns.items()
        return next((of.key for of, rule in derived if isinstance(rule, Earliest)), None)

    def _newest_value(self, row: Row) -> ColumnElement[Any]:
        assert self.pair.newest is not None
        return self.own_values(row)[self.pair.newest.key]

    def new_parent(self, parent: Parent, row: Row) -> dict[str, ColumnElement[Any]]:
        """What a parent holds whose first row this is; without its key."""
        values = self.pair.filled_above(parent, row)
        for of, rule in parent.derived_columns.items():
            values[of.key] = self._newest_value(row) if isinstance(rule, Earliest) else constant(rule.otherwise, of)
        return values

    def _once_more(self) -> tuple[FromClause, FromClause, Callable[[Any], Any]]:
        """Normalized rows with all that belongs to them, as a subquery on rows of the same tables needs them.

        Returns:
            What stands for the normalized table, where its rows come from, and what moves an expression there.
        """
        own = alias(self.pair.table)
        source: FromClause = own
        there: dict[Any, ColumnElement[Any]] = {}
        if (originals := self.pair.originals) is not None:
            source = source.outerjoin(originals, self._has_original(originals, own))
        for parent in self.pair.parents:
            above = alias(parent.table)
            source = source.outerjoin(above, above.c[parent.key.key] == own.c[parent.refers.key])
            there |= {parent.standing(of): above.c[of.key] for of in parent.table.columns}
        for part in self.pair.parts:
            beside = alias(part.table)
            source = source.outerjoin(beside, beside.c[part.by.name] == own.c[self.pair.keys[0].key])
            there |= {of: beside.c[of.key] for of in part.table.columns}

        def replace(element: Any, **_: Any) -> Any:
            return there.get(element)

        return own, source, lambda value: visitors.replacement_traverse(value, {}, replace)

    def _right_parent(self, parent: Parent) -> ColumnElement[Any]:
        """The parent a normalized row belongs to by its identity, whichever it is linked to."""
        own, source, moved = self._once_more()
        row = self.normalized_row(own)
        right, key = alias(parent.table), parent.key.key
        meant = moved(self._identity(parent, Row({name: row[name] for name in row}), right))
        return (
            select(func.min(right.c[key]) if parent.tells_nulls_apart else right.c[key])
            .select_from(source)
            .join(right, meant)
            .where(self.pair.key_in(own, Side.NORMALIZED) == self.pair.key, *self.selected(Side.NORMALIZED, own))
            .where(moved(parent.key_at).is_not(None))
            .correlate(self.pair.table)
            .scalar_subquery()
        )

    @property
    def _unmarked(self) -> ColumnElement[bool]:
        return FALSE if self.pair.marker is None else self.pair.marker.is_distinct_from(TRUE)

    @property
    def loses_by_adopting(self) -> ColumnElement[bool]:
        """Whether `adopt` would replace a value of a normalized row, and not only fill in what is missing."""
        table = self.pair.table
        row = self.normalized_row()
        filled = row | {name: func.coalesce(row[name], made) for name, made in self.pair.adopted.items()}
        replaced = [
            and_(table.c[of.key].is_not(None), not_(holds(table.c[of.key], on(rule, filled))))
            for of, rule in self.pair.computed.items()
        ]
        return or_(FALSE, *replaced)


def _merged(
    one: dict[str, ColumnElement[bool]], other: dict[str, ColumnElement[bool]]
) -> dict[str, ColumnElement[bool]]:
    """The comparisons of both; columns of either side may have one name."""
    return one | {name: and_(one[name], agrees) if name in one else agrees for name, agrees in other.items()}


def _null_safe(a: ColumnElement[Any], b: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether two values are equal or both NULL, as an index can find it: IS NOT DISTINCT FROM uses none."""
    return or_(a == b, and_(a.is_(None), b.is_(None)))
