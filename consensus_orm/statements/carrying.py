"""The statements that carry many rows from one side to the other."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    SelectBase,
    alias,
    and_,
    delete,
    exists,
    func,
    literal_column,
    not_,
    select,
    tuple_,
    update,
)

from consensus_orm.declaration.parts import Parent, Part
from consensus_orm.declaration.row_keys import parts, row_key
from consensus_orm.declaration.rules import Row, columns_of, on
from consensus_orm.phase import Side
from consensus_orm.statements.references import ReferenceStatements
from consensus_orm.statements.rendering import Overwritten, table_of

__all__ = ["CarryStatements"]


class CarryStatements(ReferenceStatements):
    """Many rows, from one side to the other."""

    def carry_parents(
        self, parent: Parent, criterion: ColumnElement[bool], row: Row, source: FromClause
    ) -> tuple[str, ...]:
        """Insert the parents that rows need and that are not there."""
        values = self.new_parent(parent, row)
        # What is derived stands until the refresh only: reading every row's time for it would cost a third more.
        values |= {c.name: literal_column("0") for c in parent.derived_columns if isinstance(c.type, Integer)}
        rows = select(*values.values()).distinct().select_from(source).where(criterion)
        if parent.is_optional:
            rows = rows.where(self.needs_parent(parent, row))
        if parent.tells_nulls_apart:
            there = alias(parent.table)
            known = exists(literal_column("1")).select_from(there).where(self._identity(parent, row, there))
            rows = rows.where(not_(known.correlate_except(there)))
        made = self.render(self.rendering.making(parent.table, list(values), rows))
        return (*self.make_parents_alone(parent), made)

    def make_parents_alone(self, parent: Parent) -> tuple[str, ...]:
        """What keeps others from making parents until the end of the transaction, where no unique index does."""
        return self.rendering.alone(parent) if parent.tells_nulls_apart else ()

    def carry_to_normalized(self, criterion: ColumnElement[bool], *, overwrite: bool) -> str:
        """Insert the normalized rows of legacy rows; rows that are there stand, or are overwritten."""
        legacy = self.pair.legacy_table
        row = self.legacy_row()
        values: dict[str, ColumnElement[Any]] = self.keyed(Side.NORMALIZED, self.legacy_key) | self.own_values(row)
        values |= self.marked
        values |= {parent.refers.key: parent.key_at for parent in self.pair.parents}
        values = self.held(Side.NORMALIZED, values)
        rows = select(*values.values()).select_from(self._with_parents(legacy, row)).where(criterion)
        return self._insert_from(Side.NORMALIZED, values, rows, self.pair.unique, overwrite=overwrite)

    def carry_to_legacy(self, criterion: ColumnElement[bool], *, overwrite: bool) -> str:
        """Insert the legacy rows of normalized rows; rows that are there stand, or are overwritten."""
        row = self.normalized_row()
        values: dict[str, Any] = self.keyed(Side.LEGACY, self.pair.key) | {name: row[name] for name in row}
        values = self.held(Side.LEGACY, values | self.legacy_constants)
        rows = select(*values.values()).select_from(self._joined(self.pair.table)).where(criterion)
        return self._insert_from(Side.LEGACY, values, rows, self.pair.legacy_keys, overwrite=overwrite)

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
        for parent in self.pair.parents:
            steps += self.carry_parents(parent, criterion, self.legacy_row(), self.pair.legacy_table)
        steps += (self.carry_to_normalized(criterion, overwrite=overwrite),)
        carried = [self.carry_part(part, criterion) for part in self.pair.parts]
        # One part may refer to one before it: it goes first, and comes last.
        steps += (*(gone for gone, _ in reversed(carried)), *(written for _, written in carried))
        return (*steps, *(step for name in self.pair.listed for step in self.carry_items(name, criterion)))

    def carry_items(self, name: str, criterion: ColumnElement[bool]) -> tuple[str, ...]:
        """Write the items of a column of legacy rows, where other ones stand or none."""
        many, own = self.pair.listed[name], self.pair.table
        there = and_(self.pair.key == self.legacy_key, *self.selected(Side.NORMALIZED))
        rows, listed = self.pair.legacy_table.join(own, there), many.items.listed(self.legacy_row()[name])
        key = self.in_column(self.legacy_key)
        differs = listed.is_distinct_from(many.listed(key))
        others = select(key).select_from(rows).where(criterion, differs)
        written = self.item_rows(many, key, listed, criterion, source=rows)
        return (self.render(delete(many.table).where(many.by.in_(others))), *map(self.render, written))

    def carry_part(self, part: Part, criterion: ColumnElement[bool]) -> tuple[str, str]:
        """Delete the part of legacy rows that have none, and write it for the others whose normalized row is there."""
        row, own, key = self.legacy_row(), self.pair.table, self.in_column(self.legacy_key)
        has = self.pair.has_part(part, row)
        there = and_(self.pair.key == self.legacy_key, *self.selected(Side.NORMALIZED))
        without = select(key).where(criterion, not_(has))
        values = {part.by.key: key} | self.pair.filled_in(part, row)
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
        key, (first, *others) = parts(self.legacy_key), parts(self._key_of_originals(originals))
        values = dict(zip(self.pair.originals_key, key, strict=True))
        values |= {name: row[name] for name in self.pair.lossy_columns}
        there = select(*key).where(criterion)
        lost = select(*values.values()).select_from(legacy).where(criterion, self.pair.loses(row))
        forget = delete(originals).where((tuple_(first, *others) if others else first).in_(there))
        return self.render(forget), self.render(self.rendering.ignoring(originals, list(values), lost))

    @cached_property
    def carry_new(self) -> str | None:
        """What `backfill` does, and more, with one statement, where the database saves work by that."""
        alone = len(self.pair.parents) != 1 or self.pair.originals is not None or bool(self.pair.tables_beside)
        return (
            None
            if alone or self.pair.references(Side.NORMALIZED)
            else self.rendering.carry_new(self, self.in_range(Side.LEGACY))
        )

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
        marked = update(self.pair.table).values(self.marked or self.keyed(Side.NORMALIZED, self.pair.key))
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
            derived = {name: self._derived(rule, row_key([part.by])) for name, rule in rules.items()}
            if derived:
                mine = select(*self.pair.keys).where(self.in_keys(Side.NORMALIZED))
                steps.append(self.render(update(part.table).values(derived).where(part.by.in_(mine))))
        for parent in self.pair.parents:
            steps += self.carry_parents(parent, self.in_keys(Side.NORMALIZED), row, self._joined(table))
            # A row whose parent is gone has no right one: it stays as it is, to be rejected.
            right = self._right_parent(parent)
            moved = update(table).values({parent.refers.key: right})
            steps.append(self.render(moved.where(self.in_keys(Side.NORMALIZED), parent.refers != right)))
        return tuple(steps)

    def _derived(self, rule: ColumnElement[Any], of: ColumnElement[Any] | None = None) -> ColumnElement[Any]:
        """A computed value of a normalized row from what it gives back; what stands beside it is looked up."""
        value = on(rule, self.normalized_row())
        if all(column.table is self.pair.table for column in columns_of(value)) and not self.pair.listed:
            return value
        key = self.pair.key if of is None else of
        own, source, moved = self._once_more()
        value = moved(on(rule, self.normalized_row(own)))
        mine = [self.pair.key_in(own, Side.NORMALIZED) == key, *self.selected(Side.NORMALIZED, own)]
        return select(value).select_from(source).where(*mine).correlate(table_of(key)).scalar_subquery()

    @cache
    def parents_of(self, parent: Parent) -> str:
        """The keys of a parent that the normalized rows in `_keys` refer to."""
        return self.render(select(parent.refers).distinct().where(self.in_keys(Side.NORMALIZED)))

    @cache
    def parents_meant(self, parent: Parent) -> str:
        """The parents that are there for the legacy rows in `_keys`, whether these have a normalized row or not."""
        table, row = parent.table, self.legacy_row()
        meant = and_(self._identity(parent, row, table), self.needs_parent(parent, row))
        there = self.pair.legacy_table.join(table, meant)
        return self.render(select(parent.key).distinct().select_from(there).where(self.in_keys(Side.LEGACY)))

    @cached_property
    def foreign_in_keys(self) -> str:
        """Those of the normalized rows in `_keys` that another program wrote and nobody has adopted."""
        return self.render(select(self.pair.key).where(self.in_keys(Side.NORMALIZED), self._unmarked))

    @cached_property
    def foreign_in_range(self) -> str:
        """The normalized rows between `_first` and `_last` that another program wrote and nobody has adopted."""
        return self.render(select(self.pair.key).where(self.in_range(Side.NORMALIZED), self._unmarked))
