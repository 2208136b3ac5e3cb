"""Every statement on the data, built once from the mapping.

Built with SQLAlchemy, rendered once, and run on the driver's connection with named parameters: that costs
what raw SQL costs, where a `select()` built for each call costs 35 to 53 us more (measured). `sql.parameter`
names the parameter of each legacy column; `_key`, `_parent`, `_keys` (a JSON array), `_first` and `_last` (a range of
keys) are the others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import cache, cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    SelectBase,
    Table,
    alias,
    and_,
    bindparam,
    column,
    delete,
    exists,
    func,
    insert,
    literal_column,
    not_,
    null,
    or_,
    select,
    table,
    union_all,
    update,
)

from consensus_orm.declaration.expressions import exact_hex, holds, same, type_name
from consensus_orm.declaration.fingerprint import fingerprint
from consensus_orm.declaration.keys import require_declared, usable
from consensus_orm.declaration.pairs import Earliest, Latest, Mapping, Pair, Parent, Row
from consensus_orm.phase import Side
from consensus_orm.statements.parents import ParentStatements
from consensus_orm.statements.rendering import (
    FALSE,
    TRUE,
    Rendering,
    chunk_bounds,
    each_value,
    in_keys,
    in_range,
    leads_an_index,
    link,
    parameter,
)

__all__ = ["PairRendering", "PairStatements", "Statements"]


class PairRendering(Rendering):
    """How statements on the two tables of a pair are printed, where a database can do several with one."""

    @abstractmethod
    def find_parent(self, found: SelectBase, pair: PairStatements) -> str:
        """The parent of a row as meant, and whether the row is earlier than any it has.

        Args:
            found: Says so; it gives no row where there is no parent.
            pair: What a database needs that makes the parent with the same statement.
        """

    @abstractmethod
    def write_both(self, pair: PairStatements) -> str | None:
        """Write a row to both sides with one statement, giving key and parent; None where that saves nothing."""

    @abstractmethod
    def carry_new(self, pair: PairStatements, criterion: ColumnElement[bool]) -> str | None:
        """Carry legacy rows and make their parents with one statement; None where that saves nothing.

        It gives the parents to derive again, as a JSON array, or NULL where all rows were new: then what it gave
        their parents is right.
        """


class PairStatements:
    """Statements on the two tables of a pair.

    Args:
        pair: The declared pair.
        rendering: How statements are printed.
        uncast: Legacy columns of text whose values are bound without a cast to text.
    """

    def __init__(self, pair: Pair, rendering: PairRendering, *, uncast: frozenset[str] = frozenset()) -> None:
        self.pair = pair
        self.rendering = rendering
        self.render = rendering.render
        self._uncast = uncast

    def storing(self, columns: Iterable[str]) -> PairStatements:
        """Statements that store the values of some text columns as they are bound: bytes stay bytes."""
        uncast = frozenset(columns)
        return PairStatements(self.pair, self.rendering, uncast=uncast) if uncast else self

    def check(self) -> None:
        """Refuse rules that cannot be said in SQL, before a statement is made of them.

        Raises:
            ConfigurationError: There is one.
        """
        rules = [*self.own_values(self.bound).values(), *self.parent_values(self.bound).values()]
        rules += [make(self.pair.table) for make in self.pair.adopted.values()]
        self.rendering.check(rules, known={parameter(name) for name in self.pair.carried})

    # Where a row stands, as expressions -----------------------------------------------------------------

    @cached_property
    def bound(self) -> Row:
        """The row as it is meant: bound values. Text is cast, so that bytes that are no UTF-8 can be bound."""
        return Row({name: self._bind(name, attribute) for name, attribute in self.pair.carried.items()})

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The names of the fields of a row, and of the parameters that hold their values."""
        key, *others = self.pair.fields
        return {key: "_key"} | {name: parameter(name) for name in others}

    def _bind(self, name: str, attribute: Any) -> ColumnElement[Any]:
        type_ = self.pair.column(attribute).type
        value = bindparam(parameter(name), type_=type_)
        return value if name in self._uncast else self.rendering.typed(value, type_)

    def legacy_row(self, table: FromClause | None = None) -> Row:
        """The row as the legacy table holds it."""
        table = self.pair.legacy_table if table is None else table
        return Row({name: table.c[name] for name in self.pair.carried})

    def normalized_row(self, table: FromClause | None = None, parent: FromClause | None = None) -> Row:
        """The row as the normalized table and its parent hold it, under its legacy names."""
        own = self.pair.table if table is None else table
        above = parent if parent is not None or self.pair.parent is None else self.pair.parent.table
        return Row(
            {
                name: (own if a.class_ is self.pair.normalized else above).c[a.key]  # type: ignore[union-attr]
                for name, a in self.pair.carried.items()
            }
        )

    def own_values(self, row: Row) -> dict[str, ColumnElement[Any]]:
        """What the normalized table must hold for a row; without key, link, marker and what is kept."""
        carried = {a.key: row[name] for name, a in self.pair.carried.items() if a.class_ is self.pair.normalized}
        return carried | {a.key: value(row) for a, value in self.pair.computed.items()}

    def parent_values(self, row: Row) -> dict[str, ColumnElement[Any]]:
        """What the parent table must hold for a row; without key and derived columns."""
        if self.pair.parent is None:
            return {}
        carried = {a.key: row[name] for name, a in self.pair.carried.items() if a.class_ is self.pair.parent.model}
        return carried | {a.key: value(row) for a, value in self.pair.parent.computed.items()}

    def _identity(self, row: Row, parent: FromClause) -> ColumnElement[bool]:
        assert self.pair.parent is not None
        values = self.parent_values(row)
        return and_(*(parent.c[a.key] == values[a.key] for a in self.pair.parent.identity))

    def _joined(self, table: FromClause, parent: FromClause | None) -> FromClause:
        if parent is None or self.pair.parent is None:
            return table
        return table.join(parent, parent.c[self.pair.parent.key.name] == table.c[link(self.pair)])

    # The comparison (rule 5) ----------------------------------------------------------------------------

    def agreement(
        self, row: Row, table: FromClause | None = None, parent: FromClause | None = None
    ) -> dict[str, ColumnElement[bool]]:
        """For each normalized column, whether it holds what a row demands: the comparison, in one place."""
        return self._carried_agree(row, table, parent) | self._computed_agree(row, table, parent)

    def _carried_agree(
        self, row: Row, table: FromClause | None, parent: FromClause | None
    ) -> dict[str, ColumnElement[bool]]:
        own = self.pair.table if table is None else table
        found: dict[str, ColumnElement[bool]] = {}
        for name, a in self.pair.carried.items():
            if a.class_ is self.pair.normalized:
                found[a.key] = same(own.c[a.key], row[name])
            elif self.pair.parent is not None:
                above = self.pair.parent.table if parent is None else parent
                found[f"{self.pair.parent.table.name}.{a.key}"] = same(above.c[a.key], row[name])
        return found

    def _computed_agree(
        self, row: Row, table: FromClause | None, parent: FromClause | None
    ) -> dict[str, ColumnElement[bool]]:
        own = self.pair.table if table is None else table
        found: dict[str, ColumnElement[bool]] = {
            a.key: holds(own.c[a.key], value(row)) for a, value in self.pair.computed.items()
        }
        if self.pair.parent is not None:
            above = self.pair.parent.table if parent is None else parent
            for a, value in self.pair.parent.computed.items():
                found[f"{self.pair.parent.table.name}.{a.key}"] = holds(above.c[a.key], value(row))
        return found

    def counterpart(self, row: Row, key: ColumnElement[Any]) -> Any:
        """Whether the normalized side holds an equal of a legacy row."""
        parent = self.pair.parent.table if self.pair.parent else None
        return (
            exists(literal_column("1"))
            .select_from(self._joined(self.pair.table, parent))
            .where(self.pair.key == key, *self.agreement(row).values())
        )

    def legacy_counterpart(self, own: FromClause, key: ColumnElement[Any]) -> Any:
        """Whether the legacy side holds an equal of a normalized row."""
        source: FromClause = self.pair.legacy_table
        compared = list(self.agreement(self.legacy_row(), own).values())
        if self.pair.parent is not None:
            parent = self.pair.parent.table
            source = source.join(parent, self.pair.parent.key == own.c[link(self.pair)])
        return exists(literal_column("1")).select_from(source).where(self.legacy_key == key, *compared)

    @cached_property
    def write_both(self) -> str | None:
        """Write a row as meant to both sides with one statement, where the database saves trips by that."""
        return self.rendering.write_both(self)

    @cached_property
    def compare_written(self) -> str:
        """Whether the row that `write_both` has just written stands on each side as meant: gives 1, else 0."""
        # In a subquery, or it would be asked again for every row.
        return self._compare(select(func.lastval()).scalar_subquery())

    @cached_property
    def compare(self) -> str:
        """Whether exactly one row stands on each side under `_key`, both as meant: gives 1, else 0."""
        return self._compare(bindparam("_key"))

    def _compare(self, key: ColumnElement[Any]) -> str:
        parent = self.pair.parent.table if self.pair.parent else None
        legacy = self.pair.legacy_table
        source = self._joined(self.pair.table, parent).join(legacy, legacy.c[self._key] == self.pair.key)
        meant: list[ColumnElement[bool]] = [same(legacy.c[name], self.bound[name]) for name in self.pair.carried]
        meant += self.agreement(self.bound).values()
        meant += [same(self.pair.table.c[a.key], self._kept_bind(a)) for a in self.pair.kept]
        meant += [legacy.c[self._key] == key]
        return self.render(select(func.count()).select_from(source).where(*meant))

    def _kept_bind(self, attribute: Any) -> ColumnElement[Any]:
        return self._bind(attribute.key, attribute)

    @property
    def _key(self) -> str:
        return self.pair.key.name

    @cached_property
    def columns_differing(self) -> tuple[tuple[str, ...], str]:
        """Names of what is compared, and for the row under `_key`: on which sides it is, and each comparison."""
        legacy = self.pair.legacy_table
        parent = self.pair.parent.table if self.pair.parent else None
        only = select(self.rendering.typed(bindparam("_key"), self.pair.key.type).label("k")).subquery()
        source = only.outerjoin(legacy, legacy.c[self._key] == only.c.k).outerjoin(
            self.pair.table, self.pair.key == only.c.k
        )
        if parent is not None and self.pair.parent is not None:
            source = source.outerjoin(parent, self.pair.parent.key == self.pair.table.c[link(self.pair)])
        compared = self.agreement(self.legacy_row())
        present = [legacy.c[self._key].is_not(None), self.pair.key.is_not(None)]
        return tuple(compared), self.render(select(*present, *compared.values()).select_from(source))

    @cached_property
    def both_sides(self) -> tuple[str, str]:
        """How the rows in `_keys` stand to each other; a key that neither statement gives has no row.

        Those that the legacy side has: key, whether the normalized side has it, whether what is carried agrees,
        whether what is computed does. And keys of those that the normalized side alone has.
        """
        legacy, row = self.pair.legacy_table, self.legacy_row()
        source = legacy.outerjoin(self.pair.table, self.pair.key == self.legacy_key)
        if self.pair.parent is not None:
            source = source.outerjoin(
                self.pair.parent.table, self.pair.parent.key == self.pair.table.c[link(self.pair)]
            )
        agree = [and_(TRUE, *found(row, None, None).values()) for found in (self._carried_agree, self._computed_agree)]
        both = select(self.legacy_key, self.pair.key.is_not(None), *agree).select_from(source)
        there = exists(literal_column("1")).where(self.legacy_key == self.pair.key).correlate(self.pair.table)
        lone = select(self.pair.key).where(in_keys(self.pair.key), not_(there))
        return self.render(both.where(in_keys(self.legacy_key))), self.render(lone)

    # Reading --------------------------------------------------------------------------------------------

    def projection(self, side: Side, *more: str) -> tuple[Select[Any], dict[str, ColumnElement[Any]]]:
        """The rows of a side under their legacy names, the same on both, and the expressions behind the names.

        Args:
            side: The side to read.
            *more: Names of parent columns to read as well (identity and the like), computed on the legacy side;
                `latest_NAME` is what a derived column would be if this row were the newest of its parent.
        """
        if side is Side.LEGACY:
            row = self.legacy_row()
            names: dict[str, ColumnElement[Any]] = {self._key: self.pair.legacy_table.c[self._key]}
            names |= {name: row[name] for name in self.pair.carried}
            names |= {a.key: null() for a in self.pair.kept}
            above = self.parent_values(row)
            source: FromClause = self.pair.legacy_table
        else:
            row = self.normalized_row()
            parent = self.pair.parent.table if self.pair.parent else None
            names = {self._key: self.pair.key} | {name: row[name] for name in self.pair.carried}
            names |= {a.key: self.pair.column(a) for a in self.pair.kept}
            above = {} if parent is None else {c.name: c for c in parent.columns}
            source = self._joined(self.pair.table, parent)
        names |= {name: above[name] if name in above else self._latest(name, row) for name in more}
        if self.pair.newest is not None:
            names[NEWEST] = (
                self.own_values(row)[self.pair.newest.key]
                if side is Side.LEGACY
                else self.pair.column(self.pair.newest)
            )
        statement = select(*(value.label(name) for name, value in names.items())).select_from(source)
        return statement, names

    def _latest(self, name: str, row: Row) -> ColumnElement[Any]:
        assert self.pair.parent is not None
        rules = {f"latest_{a.key}": rule for a, rule in self.pair.parent.derived.items()}
        rule = rules[name]
        assert isinstance(rule, Latest)
        return rule.value(row)

    @cache  # noqa: B019 - lives as long as the mapping does
    def read(self, side: Side, filters: tuple[str, ...], *, limited: bool, more: tuple[str, ...] = ()) -> str:
        """Rows of a side, newest first, that equal the bound values of some columns."""
        statement, names = self.projection(side, *more)
        newest = [names[NEWEST].desc()] if NEWEST in names else []
        statement = statement.where(*self._filter(names, filters)).order_by(*newest, names[self._key].desc())
        return self.render(statement.limit(bindparam("_limit")) if limited else statement)

    @cache  # noqa: B019
    def get(self, side: Side) -> str:
        """The row of a side under `_key`."""
        statement, names = self.projection(side)
        names.pop(NEWEST, None)  # one row needs no order
        columns = (value.label(name) for name, value in names.items())
        return self.render(statement.with_only_columns(*columns).where(names[self._key] == bindparam("_key")))

    @cache  # noqa: B019
    def count(self, side: Side, filters: tuple[str, ...]) -> str:
        """How many rows of a side equal the bound values of some columns."""
        statement, names = self.projection(side)
        return self.render(statement.with_only_columns(func.count()).where(*self._filter(names, filters)))

    @cache  # noqa: B019
    def distinct(self, side: Side, column: str) -> str:
        """The values of a column on a side, each once, in order."""
        statement, names = self.projection(side)
        value = names[column]
        if leads_an_index(value) and not value.nullable:
            found = each_value(value)
            # As a value and not as a condition: that would be joined, with all rows.
            of_value: Select[Any] = statement.with_only_columns(literal_column("1")).where(value == found.c.value)
            there = of_value.limit(literal_column("1")).scalar_subquery().is_not(None)
            return self.render(select(found.c.value).where(there).order_by(self.rendering.in_bytes(found.c.value)))
        # Grouped, because DISTINCT would not be ordered by anything but the value itself.
        return self.render(statement.with_only_columns(value).group_by(value).order_by(self.rendering.in_bytes(value)))

    @cache  # noqa: B019
    def keys(self, side: Side, filters: tuple[str, ...]) -> str:
        """Keys of the rows of a side that equal the bound values of some columns; nobody else changes those then."""
        statement, names = self.projection(side)
        statement = statement.with_only_columns(names[self._key]).where(*self._filter(names, filters))
        table = self.pair.legacy_table if side is Side.LEGACY else self.pair.table
        return self.render(statement.with_for_update(of=table))

    def ages(self, filters: tuple[str, ...], members: list[PairStatements]) -> Select[Any]:
        """What tells how new the parents of legacy rows are: their identity, when each row was, and its key.

        Args:
            filters: The rows equal the bound values of these columns.
            members: The pairs whose rows have such parents; each has a column for its keys, 0 in rows of others.
        """
        assert self.pair.parent is not None
        row = self.legacy_row()
        values = self.parent_values(row)
        identity = [values[a.key].label(a.key) for a in self.pair.parent.identity]
        keys = [(self.legacy_key if of is self else literal_column("0")).label(of.pair.name) for of in members]
        meant = [row[name] == self.bound[name] for name in filters]
        return select(*identity, self._newest_value(row).label(NEWEST), *keys).where(*meant)

    def _filter(self, names: dict[str, ColumnElement[Any]], filters: tuple[str, ...]) -> list[Any]:
        is_own = self.pair.table.columns.contains_column
        wanted = {name: names[name] for name in filters}
        # A parent has few rows; an index on what rows of many parents have in common finds more.
        if any(leads_an_index(of) and not is_own(of) for of in wanted.values()):
            wanted = {name: self.rendering.unindexed(of) if is_own(of) else of for name, of in wanted.items()}
        return [of == self._meant(name, of) for name, of in wanted.items()]

    def _meant(self, name: str, of: ColumnElement[Any]) -> ColumnElement[Any]:
        carried = name in self.pair.carried
        return self.bound[name] if carried else self.rendering.typed(bindparam(parameter(name)), of.type)

    # Writing one row ------------------------------------------------------------------------------------

    @cached_property
    def next_key(self) -> str:
        """The next id, above whatever either side has or has ever given (rule 3)."""
        return self.rendering.next_key(self.pair)

    @cache  # noqa: B019
    def insert_legacy(self, *, keyed: bool) -> str:
        """Insert a row as meant, with its key, or with one that the database gives."""
        values: dict[str, Any] = {name: self.bound[name] for name in self.pair.carried}
        values |= {self._key: bindparam("_key")} if keyed else {}
        return self.render(insert(self.pair.legacy_table).values(values).returning(self.pair.legacy_table.c[self._key]))

    @cache  # noqa: B019
    def insert_normalized(self, *, keyed: bool) -> str:
        """Insert a row as meant under `_parent`, with its key, or with one that the database gives."""
        values = self.normalized_values() | ({self._key: bindparam("_key")} if keyed else {})
        if self.pair.link is not None:
            values[self.pair.link.key] = bindparam("_parent")
        return self.render(insert(self.pair.table).values(values).returning(self.pair.key))

    def normalized_values(self) -> dict[str, Any]:
        """What the normalized table holds of a row as meant; without key and link."""
        kept = {a.key: self._kept_bind(a) for a in self.pair.kept}
        return self.own_values(self.bound) | kept | {self.pair.marker.key: TRUE}

    @cached_property
    def find_parent(self) -> str:
        """The parent of a row as meant, and whether the row is earlier than any it has."""
        assert self.pair.parent is not None
        table = self.pair.parent.table
        earliest = self.earliest_column
        earlier = FALSE if earliest is None else table.c[earliest] > self._newest_value(self.bound)
        found = select(self.pair.parent.key, earlier).where(self._identity(self.bound, table))
        return self.rendering.find_parent(found, self)

    @property
    def earliest_column(self) -> str | None:
        """The column of the parent that follows its earliest row, if there is one."""
        assert self.pair.parent is not None
        return next((a.key for a, r in self.pair.parent.derived.items() if isinstance(r, Earliest)), None)

    def _newest_value(self, row: Row) -> ColumnElement[Any]:
        assert self.pair.newest is not None
        return self.own_values(row)[self.pair.newest.key]

    def new_parent(self, row: Row) -> dict[str, ColumnElement[Any]]:
        """What a parent holds whose first row this is; without its key."""
        assert self.pair.parent is not None
        values = self.parent_values(row)
        for attribute, rule in self.pair.parent.derived.items():
            values[attribute.key] = (
                self._newest_value(row) if isinstance(rule, Earliest) else literal_column(rule.otherwise)
            )
        return values

    @cached_property
    def insert_parent(self) -> str:
        """Insert the parent of a row as meant, which is its first."""
        assert self.pair.parent is not None
        statement = insert(self.pair.parent.table).values(self.new_parent(self.bound))
        return self.render(statement.returning(self.pair.parent.key))

    @cached_property
    def make_earlier(self) -> str:
        """Let the parent `_parent` begin with a row as meant."""
        assert self.pair.parent is not None
        values = {self.earliest_column: self._newest_value(self.bound)}
        return self.render(
            update(self.pair.parent.table).values(values).where(self.pair.parent.key == bindparam("_parent"))
        )

    # Carrying many rows from one side to the other ------------------------------------------------------

    def carry_parents(self, criterion: ColumnElement[bool], row: Row, source: FromClause) -> str:
        """Insert the parents that rows need and that are not there."""
        assert self.pair.parent is not None
        values = self.new_parent(row)
        # What is derived stands until the refresh only: reading every row's time for it would cost a third more.
        values |= {c.name: literal_column("0") for c in self._derived_numbers}
        rows = select(*values.values()).distinct().select_from(source).where(criterion)
        return self.render(self.rendering.making(self.pair.parent.table, list(values), rows))

    @property
    def _derived_numbers(self) -> list[Any]:
        assert self.pair.parent is not None
        columns = [self.pair.parent.table.c[a.key] for a in self.pair.parent.derived]
        return [c for c in columns if isinstance(c.type, Integer)]

    def carry_to_normalized(self, criterion: ColumnElement[bool], *, overwrite: bool) -> str:
        """Insert the normalized rows of legacy rows; rows that are there stand, or are overwritten."""
        legacy = self.pair.legacy_table
        row = self.legacy_row()
        values: dict[str, ColumnElement[Any]] = {self._key: legacy.c[self._key]} | self.own_values(row)
        values[self.pair.marker.key] = TRUE
        source: FromClause = legacy
        if self.pair.parent is not None:
            parent = self.pair.parent.table
            source = legacy.join(parent, self._identity(row, parent))
            values[link(self.pair)] = self.pair.parent.key
        rows = select(*values.values()).select_from(source).where(criterion)
        return self._insert_from(self.pair.table, values, rows, self._key, overwrite=overwrite)

    def carry_to_legacy(self, criterion: ColumnElement[bool], *, overwrite: bool) -> str:
        """Insert the legacy rows of normalized rows; rows that are there stand, or are overwritten."""
        row = self.normalized_row()
        parent = self.pair.parent.table if self.pair.parent else None
        values: dict[str, Any] = {self._key: self.pair.key} | {name: row[name] for name in self.pair.carried}
        rows = select(*values.values()).select_from(self._joined(self.pair.table, parent)).where(criterion)
        return self._insert_from(self.pair.legacy_table, values, rows, self._key, overwrite=overwrite)

    def _insert_from(self, table: Table, values: dict[str, Any], rows: SelectBase, key: str, *, overwrite: bool) -> str:
        statement = self.rendering.ignoring(table, list(values), rows, unless=key if overwrite else None)
        return self.render(statement)

    @cached_property
    def legacy_key(self) -> ColumnElement[Any]:
        """The key of the legacy table."""
        return self.pair.legacy_table.c[self._key]

    @cached_property
    def backfill(self) -> tuple[str, ...]:
        """Carry the legacy rows between `_first` and `_last` that have no normalized row."""
        parents = (
            ()
            if self.pair.parent is None
            else (self.carry_parents(in_range(self.legacy_key), self.legacy_row(), self.pair.legacy_table),)
        )
        return (*parents, self.carry_to_normalized(in_range(self.legacy_key), overwrite=False))

    @cached_property
    def carry_new(self) -> str | None:
        """What `backfill` does, and more, with one statement, where the database saves work by that."""
        return None if self.pair.parent is None else self.rendering.carry_new(self, in_range(self.legacy_key))

    @cached_property
    def overwrite_normalized(self) -> tuple[str, ...]:
        """Carry the legacy rows in `_keys`, whatever the normalized side holds."""
        parents = (
            ()
            if self.pair.parent is None
            else (self.carry_parents(in_keys(self.legacy_key), self.legacy_row(), self.pair.legacy_table),)
        )
        return (*parents, self.carry_to_normalized(in_keys(self.legacy_key), overwrite=True))

    @cached_property
    def insert_normalized_rows(self) -> tuple[str, ...]:
        """Carry the legacy rows in `_keys` that the normalized side does not have."""
        *parents, _ = self.overwrite_normalized
        return (*parents, self.carry_to_normalized(in_keys(self.legacy_key), overwrite=False))

    @cached_property
    def overwrite_legacy(self) -> str:
        """Carry the normalized rows in `_keys`, whatever the legacy side holds."""
        return self.carry_to_legacy(in_keys(self.pair.key), overwrite=True)

    @cached_property
    def insert_legacy_rows(self) -> str:
        """Carry the normalized rows in `_keys` that the legacy side does not have."""
        return self.carry_to_legacy(in_keys(self.pair.key), overwrite=False)

    @cached_property
    def mark(self) -> str:
        """Mark the normalized rows in `_keys` as known to both sides."""
        marked = update(self.pair.table).values({self.pair.marker.key: TRUE})
        return self.render(marked.where(in_keys(self.pair.key), self._unmarked))

    @property
    def loses_by_adopting(self) -> ColumnElement[bool]:
        """Whether `adopt` would replace a value of a normalized row, and not only fill in what is missing."""
        table = self.pair.table
        row = self.normalized_row()
        made = {name: func.coalesce(row[name], make(table)) for name, make in self.pair.adopted.items()}
        filled = Row({name: row[name] for name in row} | made)
        replaced = [
            and_(table.c[a.key].is_not(None), not_(holds(table.c[a.key], value(filled))))
            for a, value in self.pair.computed.items()
        ]
        return or_(FALSE, *replaced)

    @cached_property
    def fill_legacy(self) -> str:
        """Carry the normalized rows between `_first` and `_last` that the legacy side does not have."""
        return self.carry_to_legacy(in_range(self.pair.key), overwrite=False)

    @cached_property
    def rebuild_legacy(self) -> str:
        """Carry the normalized rows between `_first` and `_last` to legacy tables made anew."""
        return self.carry_to_legacy(in_range(self.pair.key), overwrite=True)

    @cached_property
    def adopt(self) -> tuple[str, ...]:
        """Complete the rows in `_keys`: a program may have written them that knows the founding schema alone.

        Every row goes under the parent that its values name: a program may have changed the parent itself.
        """
        table = self.pair.table
        foreign = and_(in_keys(self.pair.key), self._unmarked)
        steps: list[str] = []
        if self.pair.adopted:
            made = {
                self.pair.carried[name].key: func.coalesce(table.c[self.pair.carried[name].key], make(table))
                for name, make in self.pair.adopted.items()
            }
            steps.append(self.render(update(table).values(made).where(foreign)))
        values: dict[str, Any] = {a.key: value(self.normalized_row()) for a, value in self.pair.computed.items()}
        # What is computed may be wrong in a row of ours too, where somebody changed it.
        completed = update(table).values({**values, self.pair.marker.key: TRUE}).where(in_keys(self.pair.key))
        steps.append(self.render(completed))
        if self.pair.parent is not None:
            row, source = self.normalized_row(), self._joined(table, self.pair.parent.table)
            steps.append(self.carry_parents(in_keys(self.pair.key), row, source))
            # A row whose parent is gone has no right one: it stays as it is, to be rejected.
            moves = table.c[link(self.pair)] != self._right_parent()
            moved = update(table).values({link(self.pair): self._right_parent()})
            steps.append(self.render(moved.where(in_keys(self.pair.key), moves)))
        return tuple(steps)

    def _right_parent(self) -> ColumnElement[Any]:
        """The parent a normalized row belongs to by its identity, whichever it is linked to."""
        assert self.pair.parent is not None
        key = self.pair.parent.key.name
        own, linked, right = (
            alias(self.pair.table),
            alias(self.pair.parent.table),
            alias(self.pair.parent.table),
        )
        return (
            select(right.c[key])
            .select_from(own.join(linked, linked.c[key] == own.c[link(self.pair)]))
            .join(right, self._identity(self.normalized_row(own, linked), right))
            .where(own.c[self._key] == self.pair.key)
            .correlate(self.pair.table)
            .scalar_subquery()
        )

    @cache  # noqa: B019
    def delete(self, side: Side) -> str:
        """Delete the rows in `_keys` from a side."""
        return self.render(delete(self.table_of(side)).where(in_keys(self.key_of(side))))

    @cache  # noqa: B019
    def present(self, side: Side) -> str:
        """Those of `_keys` that a side has."""
        return self.render(select(self.key_of(side)).where(in_keys(self.key_of(side))))

    @cached_property
    def parents_of(self) -> str:
        """The parents of the normalized rows in `_keys`."""
        return self.render(select(self.pair.table.c[link(self.pair)]).distinct().where(in_keys(self.pair.key)))

    @cached_property
    def parents_meant(self) -> str:
        """The parents that are there for the legacy rows in `_keys`, whether these have a normalized row or not."""
        assert self.pair.parent is not None
        parent, row = self.pair.parent.table, self.legacy_row()
        there = self.pair.legacy_table.join(parent, self._identity(row, parent))
        return self.render(select(self.pair.parent.key).distinct().select_from(there).where(in_keys(self.legacy_key)))

    # Verifying ------------------------------------------------------------------------------------------

    def table_of(self, side: Side) -> Table:
        """The table of a side."""
        return self.pair.legacy_table if side is Side.LEGACY else self.pair.table

    def key_of(self, side: Side) -> ColumnElement[Any]:
        """The key of the table of a side."""
        return self.table_of(side).c[self._key]

    @cache  # noqa: B019
    def next_chunk(self, side: Side) -> tuple[str, str]:
        """Bounds of the first chunk of a side, and of each further one."""
        key = self.key_of(side)
        return chunk_bounds(self.rendering, key, first=True), chunk_bounds(self.rendering, key, first=False)

    @cache  # noqa: B019
    def last_key(self, side: Side) -> str:
        """The last usable key of a side, in the order of the ranges."""
        key = self.key_of(side)
        return self.render(select(func.max(key)).where(usable(key)))

    @cache  # noqa: B019
    def all_rows(self, side: Side) -> str:
        """How many rows the table of a side has, whatever their keys and wherever they refer to."""
        return self.render(select(func.count()).select_from(self.table_of(side)))

    @cache  # noqa: B019
    def rows_in_range(self, side: Side) -> str:
        """How many rows of a side lie between `_first` and `_last`."""
        return self.render(select(func.count()).select_from(self.table_of(side)).where(in_range(self.key_of(side))))

    @cache  # noqa: B019
    def keys_in_range(self, side: Side) -> str:
        """The keys of the rows of a side between `_first` and `_last`."""
        key = self.key_of(side)
        return self.render(select(key).where(in_range(key)))

    @cache  # noqa: B019
    def keyless_rows(self, side: Side) -> str:
        """How many rows of a side cannot be named by their key, and lie in no range."""
        return self.render(select(func.count()).select_from(self.table_of(side)).where(not_(usable(self.key_of(side)))))

    @cached_property
    def readable_rows(self) -> str:
        """How many normalized rows can be read: they have a usable key, and a parent where they need one."""
        parent = self.pair.parent.table if self.pair.parent else None
        source = self._joined(self.pair.table, parent)
        return self.render(select(func.count()).select_from(source).where(usable(self.pair.key)))

    @cached_property
    def unequal_in_range(self) -> str:
        """Keys of the legacy rows between `_first` and `_last` that have no equal on the normalized side."""
        return self._select_unequal(in_range(self.legacy_key), self._between(self.pair.key))

    @cached_property
    def unequal_in_keys(self) -> str:
        """Those of the legacy rows in `_keys` that have no equal on the normalized side."""
        return self._select_unequal(in_keys(self.legacy_key))

    def _select_unequal(self, criterion: ColumnElement[bool], *theirs: ColumnElement[bool]) -> str:
        return self.render(select(self.legacy_key).where(criterion, self._unequal(*theirs)).order_by(self.legacy_key))

    def _unequal(self, *theirs: ColumnElement[bool]) -> ColumnElement[bool]:
        equal = self.counterpart(self.legacy_row(), self.legacy_key).where(*theirs)
        unequal: ColumnElement[bool] = not_(equal.correlate(self.pair.legacy_table))
        return unequal

    def _between(self, key: ColumnElement[Any]) -> ColumnElement[bool]:
        """That a row of one side lies where the range of the other one does.

        It equals a key of that range anyway; PostgreSQL would look through all rows for each chunk otherwise.
        """
        between: ColumnElement[bool] = key.between(bindparam("_first"), bindparam("_last"))
        return between

    @cache  # noqa: B019
    def compare_range(self, side: Side, *, but_recorded: bool) -> str:
        """Compare the rows of a side between `_first` and `_last`: how many there are, and the keys of the wrong ones.

        Those are a JSON array, or NULL. Of the legacy side they are the rows without an equal on the normalized side;
        of the normalized one, those without a legacy row.

        Args:
            side: The side.
            but_recorded: Leave out rows that are recorded as changed since the legacy side was frozen.
        """
        key = self.key_of(side)
        if side is Side.LEGACY:
            wrong = self._unequal(self._between(self.pair.key))
        else:
            there = exists(literal_column("1")).where(self.legacy_key == key, self._between(self.legacy_key))
            wrong = not_(there.correlate(self.pair.table))
        wrong = and_(wrong, self._unrecorded(key)) if but_recorded else wrong
        return self.render(self.rendering.count_and_list(key, in_range(key), wrong))

    def _unrecorded(self, key: ColumnElement[Any]) -> ColumnElement[bool]:
        changes = table("consensus_orm_changes", column("pair"), column("key"))
        mine = changes.c.pair == self.pair.name
        return not_(exists(literal_column("1")).select_from(changes).where(mine, changes.c.key == key))

    @cached_property
    def foreign_in_keys(self) -> str:
        """Those of the normalized rows in `_keys` that another program wrote and nobody has adopted."""
        return self.render(select(self.pair.key).where(in_keys(self.pair.key), self._unmarked))

    @cached_property
    def foreign_in_range(self) -> str:
        """The normalized rows between `_first` and `_last` that another program wrote and nobody has adopted."""
        return self.render(select(self.pair.key).where(in_range(self.pair.key), self._unmarked))

    @property
    def _unmarked(self) -> ColumnElement[bool]:
        return self.pair.column(self.pair.marker).is_distinct_from(TRUE)

    @cache  # noqa: B019
    def image(self, side: Side) -> tuple[tuple[str, ...], str]:
        """Names and, for the row under `_key`, type and bytes of every column: what a reject keeps."""
        names, images = self._images(side)
        return names, self.render(images.where(self.key_of(side) == bindparam("_key")))

    @cache  # noqa: B019
    def keyless_images(self, side: Side) -> tuple[tuple[str, ...], str]:
        """Names and, for each row that cannot be named by its key, type and bytes of every column."""
        names, images = self._images(side)
        return names, self.render(images.where(not_(usable(self.key_of(side)))))

    def _images(self, side: Side) -> tuple[tuple[str, ...], Select[Any]]:
        """Rows whole. A normalized one shows itself without its parent too: that one may be what is wrong with it."""
        _, names = self.projection(side)
        names.pop(NEWEST, None)
        source: FromClause = self.table_of(side)
        if side is Side.NORMALIZED and self.pair.parent is not None:
            parent = self.pair.parent
            source = source.outerjoin(parent.table, parent.key == self.pair.table.c[link(self.pair)])
        parts: list[Any] = [part for v in names.values() for part in (type_name(v), exact_hex(v))]
        return tuple(names), select(*parts).select_from(source)  # pyright: ignore[reportReturnType]


NEWEST = "newest_"
"""Label of the column that orders rows."""


class Statements:
    """All statements of a mapping.

    Args:
        mapping: The declaration.
        rendering: How they are printed for the kind of database.

    Raises:
        ConfigurationError: A rule of the declaration cannot be said in the SQL of that kind of database.
    """

    def __init__(self, mapping: Mapping, rendering: PairRendering) -> None:
        require_declared(mapping, rendering.name)
        self.mapping = mapping
        self.rendering = rendering
        self._pairs = {pair.name: PairStatements(pair, rendering) for pair in mapping.pairs}
        self.parents = {p.table.name: ParentStatements(p, mapping, rendering) for p in mapping.parents}
        for of_pair in self._pairs.values():
            of_pair.check()
        for of_parent in self.parents.values():
            of_parent.check()

    def __getitem__(self, pair: Pair) -> PairStatements:
        return self._pairs[pair.name]

    def of_parent(self, pair: Pair) -> ParentStatements | None:
        """The statements on the parent of a pair, if it has one."""
        return None if pair.parent is None else self.parents[pair.parent.table.name]

    @cache  # noqa: B019
    def newest_parent(self, parent: Parent, side: Side, filters: tuple[str, ...]) -> str:
        """The identity of the newest of the parents whose rows equal the bound values of some columns.

        That is the one that began last, by its earliest row; of several, the one with the newest row. The normalized
        side knows when each began; on the legacy one it follows from all rows that have these values.
        """
        pairs = [self[pair] for pair in self.mapping.members(parent)]
        identity = [a.key for a in parent.identity]
        if side is Side.NORMALIZED:
            return self.parents[parent.table.name].newest(
                *(parent.table.c[pairs[0].pair.carried[name].key] == pairs[0].bound[name] for name in filters)
            )
        rows = union_all(*(each.ages(filters, pairs) for each in pairs)).subquery()
        columns = [rows.c[name] for name in identity]
        newest = [func.min(rows.c[NEWEST]), *(func.max(rows.c[each.pair.name]) for each in pairs)]
        found = select(*columns).group_by(*columns).order_by(*(of.desc() for of in newest))
        return self.rendering.render(found.limit(literal_column("1")))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the declaration: what a certificate speaks of."""
        return fingerprint(self.mapping)
