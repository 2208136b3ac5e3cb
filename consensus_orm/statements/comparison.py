"""The statements that compare ranges of rows of both sides, and count them."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    and_,
    bindparam,
    column,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    table,
)

from consensus_orm.declaration.keys import usable
from consensus_orm.declaration.row_keys import last, parts
from consensus_orm.models.base import LedgerKey
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import (
    TRUE,
    chunk_bounds,
)
from consensus_orm.statements.rows import PairRows

__all__ = ["ComparisonStatements"]


class ComparisonStatements(PairRows):
    """Ranges of rows of both sides, compared."""

    @cached_property
    def columns_differing(self) -> tuple[tuple[str, ...], str]:
        """Names of what is compared, and for the row under `_key`: on which sides it is, and each comparison."""
        legacy = self.pair.legacy_table
        only = select(self.rendering.typed(bindparam("_key"), self.pair.key.type).label("k")).subquery()
        source: FromClause = only.outerjoin(legacy, and_(self.legacy_key == only.c.k, *self.selected(Side.LEGACY)))
        own = and_(self.pair.key == only.c.k, *self.selected(Side.NORMALIZED))
        source = source.outerjoin(self.pair.table, own)
        source = self.with_beside(self.with_parents(source, self.pair.table), self.pair.table)
        compared = self.agreement(self.legacy_row())
        present = [self.legacy_key.is_not(None), self.pair.key.is_not(None)]
        return tuple(compared), self.render(select(*present, *compared.values()).select_from(source))

    @cached_property
    def both_sides(self) -> tuple[str, str]:
        """How the rows in `_keys` stand to each other; a key that neither statement gives has no row.

        Those that the legacy side has: key, whether the normalized side has it, whether what is carried agrees,
        whether what is computed does. And keys of those that the normalized side alone has.
        """
        legacy, row = self.pair.legacy_table, self.legacy_row()
        own = and_(self.pair.key == self.legacy_key, *self.selected(Side.NORMALIZED))
        source: FromClause = legacy.outerjoin(self.pair.table, own)
        source = self.with_beside(self.with_parents(source, self.pair.table), self.pair.table)
        agree = [and_(TRUE, *found(row).values()) for found in (self._carried_agree, self._computed_agree)]
        both = select(self.legacy_key, self.pair.key.is_not(None), *agree).select_from(source)
        there = exists(literal_column("1")).where(self.legacy_key == self.pair.key, *self.selected(Side.LEGACY))
        there = there.correlate(self.pair.table)
        lone = select(self.pair.key).where(self.in_keys(Side.NORMALIZED), not_(there))
        return self.render(both.where(self.in_keys(Side.LEGACY))), self.render(lone)

    @cache
    def next_chunk(self, side: Side) -> tuple[str, str]:
        """Bounds of the first chunk of a side, and of each further one."""
        key, where = self.key_of(side), self.selected(side)
        first, further = (chunk_bounds(self.rendering, key, first=is_first, where=where) for is_first in (True, False))
        return first, further

    @cache
    def last_key(self, side: Side) -> str:
        """The last usable key of a side, in the order of the ranges."""
        key = self.key_of(side)
        return self.render(select(last(key, usable(key), *self.selected(side))))

    @cached_property
    def comes_after(self) -> str:
        """Whether the legacy row under `_first` comes after the key `_until` in the order of keys: a row, or none."""
        key = self.legacy_key
        until = self.rendering.typed(bindparam("_until"), key.type)
        return self.render(select(literal_column("1")).where(key == bindparam("_first"), key > until))

    @cache
    def all_rows(self, side: Side) -> str:
        """How many rows of the move a side has, whatever their keys and wherever they refer to.

        Those that are of no move are counted with the first one of their table.
        """
        rows = select(func.count()).select_from(self.table_of(side))
        mine = [or_(*self.selected(side), self.unselected(side))] if self.pair.only[side] else []
        return self.render(rows.where(*mine))

    @cache
    def rows_in_range(self, side: Side) -> str:
        """How many rows of a side lie between `_first` and `_last`."""
        return self.render(select(func.count()).select_from(self.table_of(side)).where(self.in_range(side)))

    @cache
    def keys_in_range(self, side: Side) -> str:
        """The keys of the rows of a side between `_first` and `_last`."""
        return self.render(select(self.key_of(side)).where(self.in_range(side)))

    @cache
    def keyless_rows(self, side: Side) -> str:
        """How many rows of a side cannot be named by their key or are of no move, and lie in no range."""
        return self.render(select(func.count()).select_from(self.table_of(side)).where(self.nameless(side)))

    @cached_property
    def readable_rows(self) -> str:
        """How many normalized rows can be read: they have a usable key, and the parents that they need."""
        source = self._joined(self.pair.table)
        mine = self.selected(Side.NORMALIZED)
        return self.render(select(func.count()).select_from(source).where(usable(self.pair.key), *mine))

    @cached_property
    def unequal_in_range(self) -> str:
        """Keys of the legacy rows between `_first` and `_last` that have no equal on the normalized side."""
        return self._select_unequal(self.in_range(Side.LEGACY), self._between(self.pair.key))

    @cached_property
    def unequal_in_keys(self) -> str:
        """Those of the legacy rows in `_keys` that have no equal on the normalized side."""
        return self._select_unequal(self.in_keys(Side.LEGACY))

    @cache
    def not_carried(self, *, begun: bool) -> str:
        """Those of the legacy rows in `_keys` that the normalized side lacks, and that lie behind the key `_after`.

        Args:
            begun: Whether there is such a key; otherwise all of them lie behind it.
        """
        after = self.rendering.typed(bindparam("_after"), self.legacy_key.type)
        there = exists(literal_column("1")).where(self.pair.key == self.legacy_key, *self.selected(Side.NORMALIZED))
        behind = [self.legacy_key > after] if begun else []
        missing = not_(there.correlate(self.pair.legacy_table))
        return self.render(select(self.legacy_key).where(self.in_keys(Side.LEGACY), missing, *behind))

    def _select_unequal(self, criterion: ColumnElement[bool], *theirs: ColumnElement[bool]) -> str:
        unequal = select(self.legacy_key).where(criterion, self._unequal(*theirs))
        return self.render(unequal.order_by(*parts(self.legacy_key)))

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

    @cache
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
            there = exists(literal_column("1")).where(
                self.legacy_key == key, *self.selected(Side.LEGACY), self._between(self.legacy_key)
            )
            wrong = not_(there.correlate(self.pair.table))
        wrong = and_(wrong, self._unrecorded(key)) if but_recorded else wrong
        return self.render(self.rendering.count_and_list(key, self.in_range(side), wrong))

    def _unrecorded(self, key: ColumnElement[Any]) -> ColumnElement[bool]:
        changes = table("consensus_orm_changes", column("pair"), column("key"))
        mine = changes.c.pair == self.pair.name
        return not_(exists(literal_column("1")).select_from(changes).where(mine, changes.c.key == LedgerKey(key)))
