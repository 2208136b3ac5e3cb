"""The statements that carry many rows from one side to the other."""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Integer,
    SelectBase,
    alias,
    and_,
    delete,
    func,
    literal_column,
    not_,
    select,
    update,
)
from sqlalchemy.sql.util import ClauseAdapter

from consensus_orm.declaration.parts import Part
from consensus_orm.declaration.rules import Row, on
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import Overwritten, link
from consensus_orm.statements.rows import PairRows

__all__ = ["CarryStatements"]


class CarryStatements(PairRows):
    """Many rows, from one side to the other."""

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
        return [c for c in self.pair.parent.derived_columns if isinstance(c.type, Integer)]

    def carry_to_normalized(self, criterion: ColumnElement[bool], *, overwrite: bool) -> str:
        """Insert the normalized rows of legacy rows; rows that are there stand, or are overwritten."""
        legacy = self.pair.legacy_table
        row = self.legacy_row()
        values: dict[str, ColumnElement[Any]] = {self.pair.key.key: self.legacy_key} | self.own_values(row)
        values |= self.marked
        source: FromClause = legacy
        if self.pair.parent is not None:
            parent = self.pair.parent.table
            source = legacy.join(parent, self._identity(row, parent))
            values[link(self.pair)] = self.pair.parent.key
        rows = select(*values.values()).select_from(source).where(criterion)
        return self._insert_from(Side.NORMALIZED, values, rows, self.pair.unique, overwrite=overwrite)

    def carry_to_legacy(self, criterion: ColumnElement[bool], *, overwrite: bool) -> str:
        """Insert the legacy rows of normalized rows; rows that are there stand, or are overwritten."""
        row = self.normalized_row()
        parent = self.pair.parent.table if self.pair.parent else None
        values: dict[str, Any] = {self.pair.legacy_key: self.pair.key} | {name: row[name] for name in row}
        values |= self.legacy_constants
        rows = select(*values.values()).select_from(self._joined(self.pair.table, parent)).where(criterion)
        return self._insert_from(Side.LEGACY, values, rows, (self.pair.legacy_key,), overwrite=overwrite)

    def _insert_from(
        self, side: Side, values: dict[str, Any], rows: SelectBase, key: tuple[str, ...], *, overwrite: bool
    ) -> str:
        """Insert rows; of those that are there, only rows of this move are overwritten."""
        table, unless = self.table_of(side), Overwritten(key, self.selected(side)) if overwrite else None
        return self.render(self.rendering.ignoring(table, list(values), rows, unless=unless))

    @cached_property
    def backfill(self) -> tuple[str, ...]:
        """Carry the legacy rows between `_first` and `_last` that have no normalized row."""
        return self._carry_with_parents(self.in_range(Side.LEGACY), overwrite=False)

    def _carry_with_parents(self, criterion: ColumnElement[bool], *, overwrite: bool) -> tuple[str, ...]:
        steps = self.carry_originals(criterion)
        if self.pair.parent is not None:
            steps += (self.carry_parents(criterion, self.legacy_row(), self.pair.legacy_table),)
        steps += (self.carry_to_normalized(criterion, overwrite=overwrite),)
        steps += tuple(step for part in self.pair.parts for step in self.carry_part(part, criterion))
        return (*steps, *(step for name in self.pair.listed for step in self.carry_items(name, criterion)))

    def carry_items(self, name: str, criterion: ColumnElement[bool]) -> tuple[str, ...]:
        """Write the items of a column of legacy rows, where other ones stand or none."""
        many, own = self.pair.listed[name], self.pair.table
        there = and_(self.pair.key == self.legacy_key, *self.selected(Side.NORMALIZED))
        rows, listed = self.pair.legacy_table.join(own, there), many.items.listed(self.legacy_row()[name])
        differs = listed.is_distinct_from(many.listed(self.legacy_key))
        others = select(self.legacy_key).select_from(rows).where(criterion, differs)
        written = self.item_rows(many, self.legacy_key, listed, criterion, source=rows)
        return (self.render(delete(many.table).where(many.by.in_(others))), *map(self.render, written))

    def carry_part(self, part: Part, criterion: ColumnElement[bool]) -> tuple[str, ...]:
        """Write the part of legacy rows whose normalized row is there, and delete it from those that have none."""
        row, own = self.legacy_row(), self.pair.table
        has = self.pair.has_part(part, row)
        there = and_(self.pair.key == self.legacy_key, *self.selected(Side.NORMALIZED))
        without = select(self.legacy_key).where(criterion, not_(has))
        values = {part.by.key: self.legacy_key} | self.pair.filled_in(part, row)
        rows = select(*values.values()).select_from(self.pair.legacy_table.join(own, there)).where(criterion, has)
        written = self.rendering.ignoring(part.table, list(values), rows, unless=Overwritten((part.by.name,)))
        return self.render(delete(part.table).where(part.by.in_(without))), self.render(written)

    def carry_originals(self, criterion: ColumnElement[bool]) -> tuple[str, ...]:
        """Keep the originals of legacy rows that the rules cannot give back, and forget those of the others.

        They come before the rows themselves: a trigger that looks at a row finds what it stands for.
        """
        if (originals := self.pair.originals) is None:
            return ()
        row, legacy = self.legacy_row(), self.pair.legacy_table
        values = {"key": self.legacy_key} | {name: row[name] for name in self.pair.lossy_columns}
        there = select(self.legacy_key).where(criterion)
        lost = select(*values.values()).select_from(legacy).where(criterion, self.pair.loses(row))
        forget = delete(originals).where(originals.c.key.in_(there))
        return self.render(forget), self.render(self.rendering.ignoring(originals, list(values), lost))

    @cached_property
    def carry_new(self) -> str | None:
        """What `backfill` does, and more, with one statement, where the database saves work by that."""
        alone = self.pair.parent is None or self.pair.originals is not None or bool(self.pair.tables_beside)
        return None if alone else self.rendering.carry_new(self, self.in_range(Side.LEGACY))

    @cached_property
    def overwrite_normalized(self) -> tuple[str, ...]:
        """Carry the legacy rows in `_keys`, whatever the normalized side holds."""
        return self._carry_with_parents(self.in_keys(Side.LEGACY), overwrite=True)

    @cached_property
    def insert_normalized_rows(self) -> tuple[str, ...]:
        """Carry the legacy rows in `_keys` that the normalized side does not have."""
        return self._carry_with_parents(self.in_keys(Side.LEGACY), overwrite=False)

    @cached_property
    def overwrite_legacy(self) -> str:
        """Carry the normalized rows in `_keys`, whatever the legacy side holds."""
        return self.carry_to_legacy(self.in_keys(Side.NORMALIZED), overwrite=True)

    @cached_property
    def insert_legacy_rows(self) -> str:
        """Carry the normalized rows in `_keys` that the legacy side does not have."""
        return self.carry_to_legacy(self.in_keys(Side.NORMALIZED), overwrite=False)

    @cached_property
    def mark(self) -> str:
        """Mark the normalized rows in `_keys` as known to both sides."""
        marked = update(self.pair.table).values(self.marked or {self.pair.key.key: self.pair.key})
        return self.render(marked.where(self.in_keys(Side.NORMALIZED), self._unmarked))

    @cached_property
    def fill_legacy(self) -> str:
        """Carry the normalized rows between `_first` and `_last` that the legacy side does not have."""
        return self.carry_to_legacy(self.in_range(Side.NORMALIZED), overwrite=False)

    @cached_property
    def rebuild_legacy(self) -> str:
        """Carry the normalized rows between `_first` and `_last` to legacy tables made anew."""
        return self.carry_to_legacy(self.in_range(Side.NORMALIZED), overwrite=True)

    @cached_property
    def adopt(self) -> tuple[str, ...]:
        """Complete the rows in `_keys`: a program may have written them that knows the founding schema alone.

        Every row goes under the parent that its values name: a program may have changed the parent itself.
        """
        table = self.pair.table
        foreign = and_(self.in_keys(Side.NORMALIZED), self._unmarked)
        steps: list[str] = []
        if self.pair.adopted:
            made = {
                self.pair.carried[name].key: func.coalesce(self.pair.carried[name], made)
                for name, made in self.pair.adopted.items()
            }
            steps.append(self.render(update(table).values(made).where(foreign)))
        row = self.normalized_row()
        values: dict[str, Any] = {of.key: self._derived(rule) for of, rule in self.pair.computed.items()} | self.marked
        # What is computed may be wrong in a row of ours too, where somebody changed it.
        if values:
            steps.append(self.render(update(table).values(values).where(self.in_keys(Side.NORMALIZED))))
        for part in self.pair.parts:
            rules = {of.key: rule for of, rule in self.pair.beside.items() if of.table is part.table}
            derived = {name: self._derived(rule, part.by) for name, rule in rules.items()}
            if derived:
                mine = select(self.pair.key).where(self.in_keys(Side.NORMALIZED))
                steps.append(self.render(update(part.table).values(derived).where(part.by.in_(mine))))
        if self.pair.parent is not None:
            source = self._joined(table, self.pair.parent.table)
            steps.append(self.carry_parents(self.in_keys(Side.NORMALIZED), row, source))
            # A row whose parent is gone has no right one: it stays as it is, to be rejected.
            moves = table.c[link(self.pair)] != self._right_parent()
            moved = update(table).values({link(self.pair): self._right_parent()})
            steps.append(self.render(moved.where(self.in_keys(Side.NORMALIZED), moves)))
        return tuple(steps)

    def _derived(self, rule: ColumnElement[Any], of: Column[Any] | None = None) -> ColumnElement[Any]:
        """A computed value of a normalized row from what it gives back; what stands beside it is looked up."""
        if not self.pair.parts and self.pair.originals is None:
            return on(rule, self.normalized_row())
        key = self.pair.key if of is None else of
        own = alias(self.pair.table)
        parent = None if self.pair.parent is None else alias(self.pair.parent.table)
        value, source = on(rule, self.normalized_row(own, parent)), cast("FromClause", own)
        if (originals := self.pair.originals) is not None:
            source = source.outerjoin(originals, originals.c.key == own.c[self.pair.key.key])
        if parent is not None and self.pair.parent is not None:
            source = source.outerjoin(parent, parent.c[self.pair.parent.key.name] == own.c[link(self.pair)])
        for part in self.pair.parts:
            beside = alias(part.table)
            source = source.outerjoin(beside, beside.c[part.by.name] == own.c[self.pair.key.key])
            value = ClauseAdapter(beside).traverse(value)
        mine = [own.c[self.pair.key.key] == key, *self.selected(Side.NORMALIZED, own)]
        return select(value).select_from(source).where(*mine).correlate(key.table).scalar_subquery()

    @cached_property
    def parents_of(self) -> str:
        """The parents of the normalized rows in `_keys`."""
        return self.render(select(self.pair.table.c[link(self.pair)]).distinct().where(self.in_keys(Side.NORMALIZED)))

    @cached_property
    def parents_meant(self) -> str:
        """The parents that are there for the legacy rows in `_keys`, whether these have a normalized row or not."""
        assert self.pair.parent is not None
        parent, row = self.pair.parent.table, self.legacy_row()
        there = self.pair.legacy_table.join(parent, self._identity(row, parent))
        return self.render(select(self.pair.parent.key).distinct().select_from(there).where(self.in_keys(Side.LEGACY)))

    @cached_property
    def foreign_in_keys(self) -> str:
        """Those of the normalized rows in `_keys` that another program wrote and nobody has adopted."""
        return self.render(select(self.pair.key).where(self.in_keys(Side.NORMALIZED), self._unmarked))

    @cached_property
    def foreign_in_range(self) -> str:
        """The normalized rows between `_first` and `_last` that another program wrote and nobody has adopted."""
        return self.render(select(self.pair.key).where(self.in_range(Side.NORMALIZED), self._unmarked))
