"""The statements that read rows of one side, under their legacy names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
)

from consensus_orm.declaration.attributes import leads_an_index
from consensus_orm.declaration.expressions import exact_hex, type_name
from consensus_orm.declaration.keys import in_order
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.row_keys import parts
from consensus_orm.declaration.rules import Latest, Row, expression, on
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import (
    each_value,
    in_keys,
    parameter,
)
from consensus_orm.statements.rows import PairRows

__all__ = ["ReadStatements"]


NEWEST = "newest_"
"""Label of the column that orders rows."""


class ReadStatements(PairRows):
    """Rows of one side, as users and ledgers read them."""

    def projection(self, side: Side, *more: str) -> tuple[Select[Any], dict[str, ColumnElement[Any]]]:
        """The rows of a side under their legacy names, the same on both, and the expressions behind the names.

        Args:
            side: The side to read.
            *more: Names of parent columns to read as well (identity and the like), computed on the legacy side;
                `latest_NAME` is what a derived column would be if this row were the newest of its parent.
        """
        if side is Side.LEGACY:
            row = self.legacy_row()
            names: dict[str, ColumnElement[Any]] = self._key_columns(side)
            names |= {name: row[name] for name in row}
            names |= {of.key: null() for of in self.pair.kept}
            above = {n: of for parent in self.pair.parents for n, of in self.pair.filled_above(parent, row).items()}
            source: FromClause = self.pair.legacy_table
        else:
            row = self.normalized_row()
            names = self._key_columns(side) | {name: row[name] for name in row}
            names |= {of.key: of for of in self.pair.kept}
            above = {c.name: c for parent in self.pair.parents for c in parent.at.columns}
            source = self._joined(self.pair.table)
        names |= {name: above[name] if name in above else self._latest(name, row) for name in more}
        if self.pair.newest is not None:
            names[NEWEST] = self.own_values(row)[self.pair.newest.key] if side is Side.LEGACY else self.pair.newest
        statement = select(*(value.label(name) for name, value in names.items())).select_from(source)
        return statement.where(*self.selected(side)), names

    def _key_columns(self, side: Side) -> dict[str, ColumnElement[Any]]:
        return dict(zip(self.pair.legacy_keys, parts(self.key_of(side)), strict=True))

    def _latest(self, name: str, row: Row) -> ColumnElement[Any]:
        derived = (each for parent in self.pair.parents for each in parent.derived_columns.items())
        latest = {f"latest_{of.key}": rule.value for of, rule in derived if isinstance(rule, Latest)}
        return on(expression(latest[name]), row)

    @cache
    def read(
        self,
        side: Side,
        filters: tuple[str, ...],
        *,
        limited: bool,
        more: tuple[str, ...] = (),
        empty: frozenset[str] = frozenset(),
        oldest_first: bool = False,
        behind: bool = False,
        keys_alone: bool = False,
    ) -> str:
        """Rows of a side, newest first, that equal the bound values of some columns.

        Args:
            side: The side.
            filters: Those columns.
            limited: At most `_limit` of them.
            more: Names of parent columns to read as well.
            empty: Those of the filters that are NULL, which no value equals.
            oldest_first: In the other order.
            behind: Only those that come behind the row under `_after`.
            keys_alone: Nothing but their keys.
        """
        statement, names = self.projection(side, *more)
        if keys_alone:
            statement = statement.with_only_columns(self.key_of(side))
        order = [*([names[NEWEST]] if NEWEST in names else []), *parts(self.key_of(side))]
        statement = statement.where(*self._filter(names, filters, empty))
        if behind:
            statement = statement.where(self._behind(side, oldest_first=oldest_first))
        statement = statement.order_by(*(value if oldest_first else value.desc() for value in order))
        return self.render(statement.limit(bindparam("_limit")) if limited else statement)

    def _behind(self, side: Side, *, oldest_first: bool) -> ColumnElement[bool]:
        """Whether a row comes behind the one under `_after`, in the order of their values and then of their keys."""
        key = self.key_of(side)
        after = self.rendering.typed(bindparam("_after"), key.type)
        statement, names = self.projection(side)
        if NEWEST not in names:
            return key > after if oldest_first else key < after
        mark = statement.with_only_columns(names[NEWEST]).where(key == after).subquery()
        value, at = names[NEWEST], select(mark.c[0]).scalar_subquery()
        further = value > at if oldest_first else value < at
        return or_(further, and_(value == at, key > after if oldest_first else key < after))

    @cache
    def get_many(self, side: Side) -> str:
        """The rows of a side under `_keys`."""
        statement, names = self.projection(side)
        names.pop(NEWEST, None)
        columns = (value.label(name) for name, value in names.items())
        return self.render(statement.with_only_columns(*columns).where(in_keys(self.key_of(side))))

    @cache
    def get(self, side: Side) -> str:
        """The row of a side under `_key`."""
        statement, names = self.projection(side)
        names.pop(NEWEST, None)  # one row needs no order
        columns = (value.label(name) for name, value in names.items())
        return self.render(statement.with_only_columns(*columns).where(self.key_of(side) == bindparam("_key")))

    @cache
    def just_written(self, side: Side) -> str:
        """The row of a side whose key the last statement has drawn, on a server."""
        statement, names = self.projection(side)
        columns = [names[name].label(name) for name in self.pair.legacy_columns]
        drawn = select(func.lastval()).scalar_subquery()  # or it would be asked again for every row
        return self.render(statement.with_only_columns(*columns).where(self.key_of(side) == drawn))

    @cache
    def page(self, side: Side, *, first: bool, keys_alone: bool = False) -> str:
        """Some rows of a side behind the key `_after`, at most `_rows`, in the order of their keys.

        Rows that have no usable key are left out.

        Args:
            side: The side to read.
            first: Begin with the first row.
            keys_alone: Only their keys.
        """
        key = self.key_of(side)
        statement, names = self.projection(side)
        columns = [names[name].label(name) for name in self.pair.legacy_columns]
        statement = select(key) if keys_alone else statement.with_only_columns(*columns)
        behind = [] if first else [key > self.rendering.typed(bindparam("_after"), key.type)]
        statement = statement.where(in_order(key), *behind).order_by(*parts(key))
        return self.render(statement.limit(bindparam("_rows", type_=Integer)))

    @cache
    def count(self, side: Side, filters: tuple[str, ...], empty: frozenset[str] = frozenset()) -> str:
        """How many rows of a side equal the bound values of some columns."""
        statement, names = self.projection(side)
        return self.render(statement.with_only_columns(func.count()).where(*self._filter(names, filters, empty)))

    @cache
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

    @cache
    def keys(self, side: Side, filters: tuple[str, ...], empty: frozenset[str] = frozenset()) -> str:
        """Keys of the rows of a side that equal the bound values of some columns; nobody else changes those then."""
        statement, names = self.projection(side)
        statement = statement.with_only_columns(self.key_of(side)).where(*self._filter(names, filters, empty))
        table = self.pair.legacy_table if side is Side.LEGACY else self.pair.table
        return self.render(statement.with_for_update(of=table))

    def ages(self, parent: Parent, filters: tuple[str, ...], members: Sequence[PairRows]) -> Select[Any]:
        """What tells how new the parents of legacy rows are: their identity, when each row was, and its key.

        Args:
            parent: Which parents.
            filters: The rows equal the bound values of these columns.
            members: The pairs whose rows have such parents; each has a column for its keys, NULL in rows of others.
        """
        row = self.legacy_row()
        (mine,) = (each for each in self.pair.parents if each.table is parent.table)
        values = self.pair.filled_above(mine, row)
        identity = [values[of.key].label(of.key) for of in mine.identity]
        keys = [
            (self.legacy_key if of is self else cast(null(), of.legacy_key.type)).label(of.pair.name) for of in members
        ]
        meant = [row[name] == self.bound[name] for name in filters]
        return select(*identity, self._newest_value(row).label(NEWEST), *keys).where(
            *meant, *self.selected(Side.LEGACY)
        )

    def _filter(
        self, names: dict[str, ColumnElement[Any]], filters: tuple[str, ...], empty: frozenset[str]
    ) -> list[Any]:
        is_own = self.pair.table.columns.contains_column
        wanted = {name: names[name] for name in filters}
        # A parent has few rows; an index on what rows of many parents have in common finds more.
        if any(leads_an_index(of) and not is_own(of) for of in wanted.values()):
            wanted = {name: self.rendering.unindexed(of) if is_own(of) else of for name, of in wanted.items()}
        return [of.is_(None) if name in empty else of == self._meant(name, of) for name, of in wanted.items()]

    def _meant(self, name: str, of: ColumnElement[Any]) -> ColumnElement[Any]:
        carried = name in self.pair.columns
        return self.bound[name] if carried else self.rendering.typed(bindparam(parameter(name)), of.type)

    @cache
    def image(self, side: Side) -> tuple[tuple[str, ...], str]:
        """Names and, for the row under `_key`, type and bytes of every column: what a reject keeps."""
        names, images = self._images(side)
        return names, self.render(images.where(self.key_of(side) == bindparam("_key"), *self.selected(side)))

    @cache
    def keyless_images(self, side: Side) -> tuple[tuple[str, ...], str]:
        """Names and, for each row that has no usable key or is of no move, type and bytes of every column."""
        names, images = self._images(side)
        return names, self.render(images.where(self.nameless(side)))

    def _images(self, side: Side) -> tuple[tuple[str, ...], Select[Any]]:
        """Rows whole. A normalized one shows itself without its parent too: that one may be what is wrong with it."""
        _, names = self.projection(side)
        names.pop(NEWEST, None)
        names |= {name: self.table_of(side).c[name] for name in self.pair.only[side]}
        source = self.table_of(side) if side is Side.LEGACY else self.whole()
        parts: list[Any] = [part for v in names.values() for part in (type_name(v), exact_hex(v))]
        return tuple(names), select(*parts).select_from(source)  # pyright: ignore[reportReturnType]  # any columns

    @cache
    def hold(self, side: Side) -> str:
        """Those of `_keys` that a side has, in order; nobody else changes these rows then."""
        key = self.key_of(side)
        return self.render(select(key).where(in_keys(key)).order_by(*parts(key)).with_for_update())

    @cache
    def present(self, side: Side) -> str:
        """Those of `_keys` that a side has."""
        return self.render(select(self.key_of(side)).where(self.in_keys(side)))
