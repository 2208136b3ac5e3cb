"""The statements on rows that refer to other rows of their table, so that no foreign key stands in the way.

A row is written with a reference only where the row that it refers to is there; the reference is filled in by `link`
once that row has come, and emptied by `unlink` before it goes. So rows are carried in any order, and in circles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    alias,
    and_,
    case,
    exists,
    literal_column,
    not_,
    null,
    or_,
    select,
    update,
)

from consensus_orm.declaration.keys import usable
from consensus_orm.declaration.references import Reference
from consensus_orm.declaration.row_keys import row_key
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import in_keys, in_range
from consensus_orm.statements.rows import PairRows

__all__ = ["ReferenceStatements"]


class ReferenceStatements(PairRows):
    """Rows that refer to others of their table. The foreign keys are those of the side that is written."""

    def held(self, to: Side, values: dict[str, Any]) -> dict[str, Any]:
        """The values of rows, where a reference is NULL unless the side has the row that it refers to.

        Args:
            to: The side that is written.
            values: What is written, by column.
        """
        for of in self.pair.references(to):
            there = alias(self.table_of(to))
            named = row_key([values[name] for name in of.columns[to]])
            is_there = exists(literal_column("1")).where(self.pair.key_in(there, to) == named).correlate_except(there)
            values = values | {name: case((is_there, values[name])) for name in of.emptied}
        return values

    @cache
    def link(self, to: Side) -> tuple[str, ...]:
        """Fill in the references of the rows in `_keys` to rows that have come since."""
        return self._link(to, self.in_keys(to))

    @cache
    def link_range(self, to: Side) -> tuple[str, ...]:
        """Fill in the references of the rows between `_first` and `_last` to rows that have come since."""
        return self._link(to, self.in_range(to))

    def _link(self, to: Side, which: ColumnElement[bool]) -> tuple[str, ...]:
        own, steps = self.table_of(to), list[str]()
        for of in self.pair.references(to):
            meant, there = alias(self.table_of(to.other)), alias(own)
            mine = [self.pair.key_in(meant, to.other) == self.key_of(to), *self.selected(to.other, meant)]
            columns = dict(zip(of.columns[to], of.columns[to.other], strict=True))
            values = {name: meant.c[columns[name]] for name in of.emptied}
            differs = or_(*(own.c[name].is_distinct_from(value) for name, value in values.items()))
            rows = meant.join(there, self.pair.key_in(there, to) == _named(of, to.other, meant))
            has_come = exists(literal_column("1")).select_from(rows).where(*mine, differs).correlate(own)
            filled = {n: select(value).where(*mine).correlate(own).scalar_subquery() for n, value in values.items()}
            steps.append(self.render(update(own).values(filled).where(which, has_come)))
        return tuple(steps)

    @cache
    def unlink(self, side: Side) -> tuple[str, ...]:
        """Empty the references of a side to the rows in `_keys`, which are about to go."""
        own = self.table_of(side)
        return tuple(
            self.render(update(own).values(dict.fromkeys(of.emptied, null())).where(in_keys(_named(of, side, own))))
            for of in self.pair.references(side)
        )

    @cache
    def ahead(self, to: Side) -> str | None:
        """The rows that those in `_keys` refer to, and these in turn, which a side does not have; they go ahead."""
        return self._ahead(to, in_keys)

    @cache
    def ahead_of_range(self, to: Side) -> str | None:
        """The rows that those between `_first` and `_last` refer to, and these in turn, which a side does not have."""
        return self._ahead(to, in_range)

    def _ahead(self, to: Side, within: Callable[[ColumnElement[Any]], ColumnElement[bool]]) -> str | None:
        if not (references := self.pair.references(to)):
            return None
        side = to.other
        row, above, again, further = (alias(self.table_of(side)) for _ in range(4))

        def named_by(low: FromClause, high: FromClause) -> ColumnElement[bool]:
            return or_(*(self.pair.key_in(high, side) == _named(of, side, low) for of in references))

        def is_lacking(high: FromClause) -> ColumnElement[bool]:
            there, key = alias(self.table_of(to)), self.pair.key_in(high, side)
            is_there = exists(literal_column("1")).where(self.pair.key_in(there, to) == key).correlate(high)
            return and_(usable(key), not_(is_there), not_(within(key)), *self.selected(side, high))

        mine = [within(self.pair.key_in(row, side)), *self.selected(side, row)]
        first = select(*self._columns_of(above, side)).select_from(row.join(above, named_by(row, above)))
        found = first.where(*mine, is_lacking(above)).cte("ahead", recursive=True)
        key = row_key([*found.c])
        source = found.join(again, self.pair.key_in(again, side) == key).join(further, named_by(again, further))
        rest = select(*self._columns_of(further, side)).select_from(source).where(is_lacking(further))
        found = found.union(rest)
        return self.render(select(row_key([*found.c])))

    @cache
    def dependents(self, to: Side) -> str | None:
        """The rows that refer to those in `_keys`, and those that refer to them; None where no row refers to another.

        A side cannot hold them without those in `_keys`.
        """
        return self._dependents(to.other, self.pair.references(to))

    @cache
    def cascaded(self, side: Side) -> str | None:
        """The rows of a side that are deleted with those in `_keys`; None where none are."""
        cascading = [of for of in self.pair.references(side) if of.cascades]
        return self._dependents(side, cascading)

    def _dependents(self, side: Side, references: Sequence[Reference]) -> str | None:
        if not references:
            return None
        row, below = (alias(self.table_of(side)) for _ in range(2))
        direct = [or_(*(in_keys(_named(of, side, row)) for of in references)), *self.selected(side, row)]
        found = select(*self._columns_of(row, side)).where(*direct).cte("dependents", recursive=True)
        key = row_key([*found.c])
        refers = or_(*(_named(of, side, below) == key for of in references))
        rest = select(*self._columns_of(below, side)).select_from(found.join(below, refers))
        found = found.union(rest.where(*self.selected(side, below)))
        key = row_key([*found.c])
        return self.render(select(key).where(not_(in_keys(key)), usable(key)))

    @cache
    def referring(self, side: Side) -> tuple[str, ...]:
        """The rows of a side that refer to those in `_keys`, each with the key that it refers to."""
        own = self.table_of(side)
        named = (_named(of, side, own) for of in self.pair.references(side))
        return tuple(self.render(select(self.key_of(side), of).where(in_keys(of))) for of in named)

    @cache
    def unheld(self, to: Side) -> tuple[str, ...]:
        """Those of the rows in `_keys` whose reference a side cannot have, each with the key that it refers to.

        The row of that key is not there, or is one of those in `_keys`.
        """
        own, steps = self.table_of(to.other), list[str]()
        for of in self.pair.references(to):
            named, there = _named(of, to.other, own), alias(self.table_of(to))
            is_there = exists(literal_column("1")).where(self.pair.key_in(there, to) == named).correlate(own)
            is_given = [own.c[name].is_not(None) for name in of.columns[to.other]]
            is_other = not_(self.key_of(to.other) == named)
            rows = select(self.key_of(to.other), named).where(self.in_keys(to.other), *is_given, is_other)
            steps.append(self.render(rows.where(or_(not_(is_there), in_keys(named)))))
        return tuple(steps)

    def _columns_of(self, rows: FromClause, side: Side) -> list[ColumnElement[Any]]:
        return [rows.c[name].label(f"key_{place}") for place, name in enumerate(self.pair.key_names(side))]


def _named(of: Reference, side: Side, rows: Any) -> ColumnElement[Any]:
    """The key that rows of a side refer to."""
    return row_key([rows.c[name] for name in of.columns[side]])
