"""Every statement on a parent table, built once from the moves: what follows from its rows, and their absence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    union_all,
    update,
)

from consensus_orm import errors
from consensus_orm.declaration.expressions import holds
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.rules import Earliest, Latest, Row, expression, on
from consensus_orm.statements.rendering import Rendering, chunk_bounds, constant, in_keys, in_range, newest_first

__all__ = ["AgedParents", "ParentStatements"]


class AgedParents(NamedTuple):
    """Parents with their identity and the keys of their newest rows, and what they are ordered by."""

    found: Select[Any]
    age: list[ColumnElement[Any]]

    def ordered(self, *, oldest_first: bool, limited: bool) -> Select[Any]:
        """The newest of them first, or the oldest; at most `_limit`."""
        ordered = self.found.order_by(*(of if oldest_first else of.desc() for of in self.age))
        return ordered.limit(bindparam("_limit")) if limited else ordered


class ParentStatements:
    """Statements on a parent table: what follows from its rows, and which parents have none.

    Args:
        parent: The declared parent.
        moves: The moves it belongs to.
        rendering: How statements are printed.
    """

    def __init__(self, parent: Parent, moves: Moves, rendering: Rendering) -> None:
        self.parent = parent
        self.rendering = rendering
        self.render = rendering.render
        self.links = moves.links(parent)

    def check(self) -> None:
        """Refuse rules that cannot be said in SQL, before a statement is made of them.

        Raises:
            ConfigurationError: There is one.
        """
        self.rendering.check(self.derived(self.parent.table).values())

    def derived(self, parent: FromClause) -> dict[str, ColumnElement[Any]]:
        """What each derived column must be, from the normalized rows of a parent."""
        key = parent.c[self.parent.key.name]
        return {
            of.key: self._earliest(key) if isinstance(rule, Earliest) else self._latest(rule, of, key)
            for of, rule in self.parent.derived_columns.items()
        }

    def _earliest(self, key: ColumnElement[Any]) -> ColumnElement[Any]:
        newest = [
            select(func.min(pair.table.c[pair.newest.key]).label("t")).where(link == key).correlate(key.table)
            for pair, link in self.links
            if pair.newest is not None
        ]
        rows = union_all(*newest).subquery()
        return select(func.min(rows.c.t)).scalar_subquery()

    def _latest(self, rule: Latest, of: Column[Any], key: ColumnElement[Any]) -> ColumnElement[Any]:
        pair = next((pair for pair, _ in self.links if pair.name == rule.move), None)
        if pair is None:
            raise errors.ConfigurationError(
                f"a column of {self.parent.table.name} is derived from the move {rule.move!r}, which is not declared",
                hint="declare that move too, or derive the column from another one",
            )
        row = Row({name: of for name, of in pair.carried.items() if pair.is_own(of)})
        value = (
            select(on(expression(rule.value), row))
            .where(or_(*(link == key for of, link in self.links if of is pair)))
            .order_by(*newest_first(pair, pair.table))
            .limit(literal_column("1"))
            .correlate(key.table)
            .scalar_subquery()
        )
        return value if rule.otherwise is None else func.coalesce(value, constant(rule.otherwise, of))

    def _has_rows(
        self, key: ColumnElement[Any], *, in_range_too: bool = False, members: Sequence[Move] | None = None
    ) -> ColumnElement[bool]:
        """Whether there is a row of a parent, of some moves; in the range of the parents, where they are a range.

        PostgreSQL would look through all rows for each chunk of parents otherwise.
        """
        found = []
        for of in (link for pair, link in self.links if members is None or pair in members):
            found.append(exists().where(of == key, *([in_range(of)] if in_range_too else [])).correlate(key.table))
        return or_(false(), *found)

    def by_age(self, *criterion: ColumnElement[bool], with_row_of: str | None) -> AgedParents:
        """Some parents by their age: when they began, and their newest rows where several began together.

        Args:
            *criterion: Which parents.
            with_row_of: The move of which they have a row; any where left out.
        """
        table, key = self.parent.table, self.parent.key
        began = next(of for of, rule in self.parent.derived_columns.items() if isinstance(rule, Earliest))
        rows = [
            select(func.max(pair.key)).where(link == key).correlate(table).scalar_subquery()
            for pair, link in self.links
        ]
        wanted = [pair for pair, _ in self.links if with_row_of in (None, pair.name)]
        found = select(*self.parent.identity, *rows).where(*criterion, self._has_rows(key, members=wanted))
        return AgedParents(found, [began, *(func.coalesce(row, literal_column("0")) for row in rows)])

    @cached_property
    def refresh(self) -> str:
        """Derive again what follows from the rows of the parents in `_keys`; empty where nothing does."""
        table = self.parent.table
        if not self.parent.derived:
            return ""
        statement = update(table).values(self.derived(table)).where(in_keys(self.parent.key))
        return self.render(statement)

    @cache
    def refresh_in_range(self, pair: Move) -> tuple[str, ...]:
        """Derive again what follows from the rows of the parents of the rows between `_first` and `_last`."""
        if not self.refresh:
            return ()
        table, of_range = self.parent.table, self._of_range(pair)
        refresh = self.render(update(table).values(self.derived(table)).where(of_range))
        return (*self._lock(of_range, removes=False), refresh)

    def _of_range(self, pair: Move) -> ColumnElement[bool]:
        rows = (select(link).where(in_range(pair.key)) for of, link in self.links if of is pair)
        return or_(*(self.parent.key.in_(of) for of in rows))

    def _lock(self, which: ColumnElement[bool], *, removes: bool = True) -> tuple[str, ...]:
        return self.rendering.lock(select(self.parent.key).where(which).order_by(self.parent.key), removes=removes)

    @cached_property
    def settle(self) -> tuple[str, ...]:
        """Remove those of the parents in `_keys` that no row belongs to, and derive the others again."""
        return (*self._lock(in_keys(self.parent.key)), self.prune, *([self.refresh] if self.refresh else []))

    @cached_property
    def prune(self) -> str:
        """Remove those of the parents in `_keys` that no row belongs to."""
        key = self.parent.key
        return self.render(delete(self.parent.table).where(in_keys(key), not_(self._has_rows(key))))

    @cached_property
    def all_without_rows(self) -> str:
        """The parents that have no rows."""
        return self.render(select(self.parent.key).where(not_(self._has_rows(self.parent.key))))

    @cached_property
    def without_rows(self) -> str:
        """Those of the parents in `_keys` that have no rows."""
        key = self.parent.key
        return self.render(select(key).where(in_keys(key), not_(self._has_rows(key))))

    @cached_property
    def compare_range(self) -> str:
        """Compare the parents between `_first` and `_last`: how many there are, and the keys of the wrong ones.

        Those are a JSON array, or NULL: parents without rows, or whose derived columns are not what follows.
        """
        wrong = self._wrong(in_range_too=True)
        return self.render(self.rendering.count_and_list(self.parent.key, in_range(self.parent.key), wrong))

    @property
    def wrong(self) -> ColumnElement[bool]:
        """Whether a parent has no rows, or a derived column is not what follows from them."""
        return self._wrong(in_range_too=False)

    def _wrong(self, *, in_range_too: bool) -> ColumnElement[bool]:
        right = [holds(self.parent.table.c[name], value) for name, value in self.derived(self.parent.table).items()]
        return not_(and_(self._has_rows(self.parent.key, in_range_too=in_range_too), *right))

    @cached_property
    def all_rows(self) -> str:
        """How many parents there are, whatever their keys."""
        return self.render(select(func.count()).select_from(self.parent.table))

    @cached_property
    def rows_in_range(self) -> str:
        """How many parents lie between `_first` and `_last`."""
        return self.render(select(func.count()).select_from(self.parent.table).where(in_range(self.parent.key)))

    @cached_property
    def next_chunk(self) -> tuple[str, str]:
        """Bounds of the first chunk of parents, and of each further one."""
        first, further = (chunk_bounds(self.rendering, self.parent.key, first=first) for first in (True, False))
        return first, further
