"""The statements that write one row to the sides of a phase, and compare it there."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

from sqlalchemy import (
    ColumnElement,
    alias,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    not_,
    select,
    update,
)

from consensus_orm.declaration.expressions import holds, same
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.row_keys import in_columns
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import FALSE, parent_parameter
from consensus_orm.statements.rows import PairRows

__all__ = ["WriteStatements"]


class WriteStatements(PairRows):
    """One row, written and compared (rules 3 and 5)."""

    @cached_property
    def write_both(self) -> str | None:
        """Write a row as meant to both sides with one statement, where the database saves trips by that."""
        return self.rendering.write_together(self, [Side.NORMALIZED, Side.LEGACY])

    @cached_property
    def write_normalized(self) -> str | None:
        """Write a row to the normalized side with one statement, where that is all there is to write of it."""
        return None if self.given_back else self.rendering.write_together(self, [Side.NORMALIZED])

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
        legacy = self.pair.legacy_table
        source = self._joined(self.pair.table).join(legacy, self.legacy_key == self.pair.key)
        meant: list[ColumnElement[bool]] = [same(legacy.c[name], self.bound[name]) for name in self.pair.columns]
        meant += self.agreement(self.bound).values()
        meant += [same(of, self._kept_bind(of)) for of in self.pair.kept]
        meant += [self.legacy_key == key, *self.selected(Side.LEGACY), *self.selected(Side.NORMALIZED)]
        return self.render(select(func.count()).select_from(source).where(*meant))

    @cached_property
    def keep_original(self) -> tuple[str, ...]:
        """Keep the original of the row under `_key` as it is meant, where the rules cannot give it back."""
        if (originals := self.pair.originals) is None:
            return ()
        names = self.pair.lossy_columns
        key = in_columns(self.rendering.typed(bindparam("_key"), self.pair.key.type), self.pair.key)
        lost = select(*key, *(self.bound[name] for name in names)).where(self.pair.loses(self.bound))
        forget = delete(originals).where(self._key_of_originals(originals) == bindparam("_key"))
        kept = insert(originals).from_select([*self.pair.originals_key, *names], lost)
        return self.render(forget), self.render(kept)

    @cached_property
    def given_back(self) -> str | None:
        """For each legacy column with a rule, or in a part, whether the normalized row under `_key` gives it back."""
        if not self.pair.given_back_names:
            return None
        back = self.normalized_row()
        agree = [holds(self.bound[name], back[name]) for name in self.pair.given_back_names]
        source = self.with_beside(self.pair.table, self.pair.table)
        return self.render(select(*agree).select_from(source).where(*self._under_key(Side.NORMALIZED)))

    @cached_property
    def next_key(self) -> str:
        """The next id, above whatever either side has or has ever given (rule 3)."""
        return self.rendering.next_key(self.pair)

    @cache
    def insert_legacy(self, *, keyed: bool) -> str:
        """Insert a row as meant, with its key, or with one that the database gives."""
        values: dict[str, Any] = {name: self.bound[name] for name in self.pair.columns}
        values |= self.legacy_constants | (self.keyed(Side.LEGACY, bindparam("_key")) if keyed else {})
        return self.render(insert(self.pair.legacy_table).values(values).returning(self.legacy_key))

    @cache
    def insert_normalized(self, *, keyed: bool) -> str:
        """Insert a row as meant under its parents, with its key, or with one that the database gives."""
        values = self.normalized_values() | (self.keyed(Side.NORMALIZED, bindparam("_key")) if keyed else {})
        values |= {parent.refers.key: bindparam(parent_parameter(parent)) for parent in self.pair.parents}
        return self.render(insert(self.pair.table).values(values).returning(self.pair.key))

    @cached_property
    def update_legacy(self) -> str:
        """Let the legacy row under `_key` hold a row as meant."""
        values = {name: self.bound[name] for name in self.pair.columns}
        values = values or self.keyed(Side.LEGACY, self.legacy_key)
        return self.render(update(self.pair.legacy_table).values(values).where(*self._under_key(Side.LEGACY)))

    @cached_property
    def update_normalized(self) -> str:
        """Let the normalized row under `_key` hold a row as meant, under its parents."""
        values = self.normalized_values()
        values |= {parent.refers.key: bindparam(parent_parameter(parent)) for parent in self.pair.parents}
        values = values or self.keyed(Side.NORMALIZED, self.pair.key)
        return self.render(update(self.pair.table).values(values).where(*self._under_key(Side.NORMALIZED)))

    @cache
    def renumber(self, side: Side) -> str:
        """Let the row of a side under `_key` have the key `_new`."""
        new = self.keyed(side, bindparam("_new"))
        return self.render(update(self.table_of(side)).values(new).where(*self._under_key(side)))

    def _under_key(self, side: Side) -> list[ColumnElement[bool]]:
        return [self.key_of(side) == bindparam("_key"), *self.selected(side)]

    @cache
    def has_parent(self, parent: Parent) -> str | None:
        """Whether a row as meant has a parent; None where every row has one."""
        return self.render(select(self.needs_parent(parent, self.bound))) if parent.is_optional else None

    @cache
    def find_parent(self, parent: Parent) -> str:
        """The parent of a row as meant, and whether the row is earlier than any it has."""
        earliest = self.earliest_column(parent)
        earlier = FALSE if earliest is None else parent.table.c[earliest] > self._newest_value(self.bound)
        found = select(parent.key, earlier).where(self._identity(parent, self.bound, parent.table))
        if parent.tells_nulls_apart:
            found = found.order_by(parent.key).limit(literal_column("1"))
        return self.rendering.find_parent(parent, found, self)

    @cache
    def insert_parent(self, parent: Parent) -> str:
        """Insert the parent of a row as meant, which is its first."""
        statement = insert(parent.table).values(self.new_parent(parent, self.bound))
        return self.render(statement.returning(parent.key))

    @cache
    def make_earlier(self, parent: Parent) -> str:
        """Let a parent begin with a row as meant."""
        values = {self.earliest_column(parent): self._newest_value(self.bound)}
        meant = parent.key == bindparam(parent_parameter(parent))
        return self.render(update(parent.table).values(values).where(meant))

    @cache
    def delete(self, side: Side) -> tuple[str, ...]:
        """Delete the rows in `_keys` from a side, and their parts first."""
        rows = self.render(delete(self.table_of(side)).where(self.in_keys(side)))
        mine = select(*self.pair.keys).where(self.in_keys(side))
        parts = self.pair.beside_rows[::-1] if side is Side.NORMALIZED else ()  # one may refer to one before it
        return (*(self.render(delete(part.table).where(part.by.in_(mine))) for part in parts), rows)

    @cached_property
    def write_parts(self) -> tuple[str, ...]:
        """Let the row under `_key` have the parts and items of the row as it is meant, and no others."""
        steps: list[str] = []
        gone: list[str] = []
        key = self.in_column(self.rendering.typed(bindparam("_key"), self.pair.key.type))
        under_key = self.in_column(bindparam("_key"))
        for part in self.pair.parts:
            of, has, values = part.table, self.pair.has_part(part, self.bound), self.pair.filled_in(part, self.bound)
            mine = part.by == under_key
            there = exists(literal_column("1")).where(alias(of).c[part.by.name] == key)
            new = select(key, *values.values()).where(has, not_(there))
            gone.insert(0, self.render(delete(of).where(mine, not_(has))))
            steps += [self.render(update(of).values(values).where(mine))] if values else []
            steps.append(self.render(insert(of).from_select([part.by.key, *values], new)))
        for name, many in self.pair.listed.items():
            listed = many.items.listed(self.bound[name])
            others = and_(many.by == under_key, listed.is_distinct_from(many.listed(key)))
            steps += [self.render(delete(many.table).where(others))]
            steps += map(self.render, self.item_rows(many, key, listed))
        return (*gone, *steps)
