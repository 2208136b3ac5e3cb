"""Parts: further normalized tables that hold what is said of a row of a move."""

from __future__ import annotations

import copy
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from sqlalchemy import Column, ColumnElement, FromClause, Table, literal, select
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute

from consensus_orm import errors
from consensus_orm.declaration.attributes import column_of, single_key, table_of
from consensus_orm.declaration.expressions import (
    NeverNull,
    json_from,
    json_listed,
    json_of_array,
    json_split,
    text_joined,
)
from consensus_orm.declaration.rules import Computed, Earliest, Expression, Latest, Named

__all__ = ["JsonItems", "Many", "Parent", "Part", "Split"]

Attribute = InstrumentedAttribute[Any]


class Parent:
    """A normalized table whose rows stand for what several rows have in common.

    A parent row exists exactly as long as a row belongs to it. Which one that is, is a pure function of the row.

    Args:
        model: The mapped class; it has a single integer primary key.
        link: The column of the moved rows that refers to it.
        by: The columns that tell one parent from another, declared unique together in the model, and what they hold.
        columns: Further columns, and what they hold: the same for all rows of a parent.
        derived: Columns that follow from all rows of the parent together. All moves whose rows share a parent say the
            same.
    """

    def __init__(
        self,
        model: type[DeclarativeBase],
        *,
        link: Attribute,
        by: Dict[Attribute, Named | Computed],
        columns: Dict[Attribute, Named | Computed] | None = None,
        derived: Dict[Attribute, Earliest | Latest] | None = None,
    ) -> None:
        self.model = model
        self.link = link
        self.by = dict(by)
        self.columns = dict(columns or {})
        self.derived = dict(derived or {})

    def __repr__(self) -> str:
        return f"<Parent {self.table.name}>"

    @cached_property
    def table(self) -> Table:
        """The table of the model."""
        return table_of(self.model)

    @cached_property
    def key(self) -> Column[Any]:
        """The primary key column."""
        return single_key(self.table)

    @cached_property
    def at(self) -> FromClause:
        """What stands for the table beside the rows of a move."""
        return self.table

    @cached_property
    def name_at(self) -> str:
        """The name of that."""
        return self.table.name

    @cached_property
    def key_at(self) -> ColumnElement[Any]:
        """The primary key beside the rows of a move."""
        return self.standing(self.key)

    @cached_property
    def refers(self) -> Column[Any]:
        """The column of the moved rows that refers to it."""
        return column_of(self.link)

    @property
    def is_optional(self) -> bool:
        """Whether a row without any value of it has none: the link can be NULL."""
        return bool(self.refers.nullable)

    def beside(self, others: Sequence[Parent]) -> Parent:
        """The same as one of several parents of a move: under a name of its own where the table is theirs, too.

        Args:
            others: The parents before it.
        """
        if all(other.table is not self.table for other in others):
            return self
        again = copy.copy(self)
        again.name_at = f"{self.table.name}_{self.refers.name}"
        again.at = self.table.alias(again.name_at)
        return again

    def standing(self, of: Column[Any]) -> Column[Any]:
        """A column of the table beside the rows of a move."""
        return cast("Column[Any]", self.at.c[of.key]) if of.table is self.table else of

    def of(self, own: Any) -> ColumnElement[bool]:
        """Whether it is the one that a row refers to.

        Args:
            own: The normalized table, or what stands for it.
        """
        refers: ColumnElement[bool] = self.key_at == own.c[self.refers.key]
        return refers

    @cached_property
    def identity(self) -> tuple[Column[Any], ...]:
        """The columns that tell one parent from another."""
        return tuple(column_of(attribute) for attribute in self.by)

    @cached_property
    def tells_nulls_apart(self) -> bool:
        """Whether its unique index takes NULLs for different, where NULLs are one value here."""
        return any(column_of(of).nullable and not _is_never_null(rule) for of, rule in self.by.items())

    @cached_property
    def derived_columns(self) -> dict[Column[Any], Earliest | Latest]:
        """What is derived, by column."""
        return {column_of(attribute): rule for attribute, rule in self.derived.items()}

    @cached_property
    def _followed(self) -> frozenset[str]:
        return frozenset(rule.move for rule in self.derived.values() if isinstance(rule, Latest))

    def depends_on(self, move: str) -> bool:
        """Whether something is derived from the newest row of a move."""
        return move in self._followed


def _is_never_null(rule: Named | Computed) -> bool:
    return isinstance(rule, Computed) and isinstance(rule.up, NeverNull)


class Part:
    """A normalized table that holds some columns of a row, in one row or in none; the table of a subclass, too.

    Args:
        model: The mapped class.
        by: Its column that refers to the key of the moved row: unique, and best its primary key.
        columns: Its columns, or several of them together, and what they hold: a legacy column, or a rule.
        when: A condition on legacy columns: whether a row has its part. Where left out, it has one if one of the
            columns holds a value.
    """

    def __init__(
        self,
        model: type[DeclarativeBase],
        *,
        by: Attribute,
        columns: Dict[Any, Any],
        when: Expression | None = None,
    ) -> None:
        self.model = model
        self._by = by
        self.columns = dict(columns)
        self.when = when

    def __repr__(self) -> str:
        return f"<Part {self.table.name}>"

    @cached_property
    def table(self) -> Table:
        """The table of the model; of a subclass the one that it adds."""
        return table_of(self.model)

    @cached_property
    def by(self) -> Column[Any]:
        """The column that refers to the key of the moved row."""
        return column_of(self._by)


@dataclass(frozen=True, eq=False)
class Split:
    """The items of a text with separators between them: "a,b,c". NULL has none, and an empty text one, which is empty.

    Args:
        source: The legacy column, as attribute or name.
        separator: What stands between two items; printable, and neither a letter, a digit, a quote nor a backslash.
    """

    source: Named
    separator: str = ","

    keeps = False
    """Whether the original is kept where it is written in another way than the items would be."""

    def __post_init__(self) -> None:
        if not self.separator or any(c.isalnum() or not c.isprintable() or c in '"\\' for c in self.separator):
            raise errors.ConfigurationError(
                f"{self.separator!r} cannot separate items",
                hint="use a printable separator without letters, digits, quotes and backslashes",
            )

    def listed(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        """The items of a legacy value as the text of a JSON array; NULL where it has none."""
        return json_split(value, self.separator)

    def written(self, item: ColumnElement[Any], position: ColumnElement[Any], type_: Any) -> ColumnElement[Any]:
        """The legacy value of some items, as an aggregate over them."""
        return text_joined(item, position, literal(self.separator))


@dataclass(frozen=True, eq=False)
class JsonItems:
    """The items of a JSON array of texts. The original is kept where it is written in another way, NULL too.

    Args:
        source: The legacy column, as attribute or name: of type JSON; on SQLite it may be a text.
    """

    source: Named

    keeps = True

    def listed(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        """The items of a legacy value as the text of a JSON array; NULL where it has none."""
        return json_of_array(value)

    def written(self, item: ColumnElement[Any], position: ColumnElement[Any], type_: Any) -> ColumnElement[Any]:
        """The legacy value of some items, as an aggregate over them."""
        return json_from(json_listed(item, position), type_)


class Many:
    """A normalized table with a row for each item of one legacy column; its rows have no identity of their own.

    They are replaced where the items differ, and compared in the order of their positions, whatever these are.

    Args:
        model: The mapped class.
        by: Its column that refers to the key of the moved row; the first one of an index.
        position: Its column that orders the items of a row; written from 0.
        item: What holds the item, a text: a column of the class, or of the parent that it refers to.
        items: How the legacy column is read.
        parents: For many-to-many the table of the items: Parent(Tag, link=PostTag.tag_id, by={Tag.name: Post.tags}).
            Its rows are found or made by the item, and stay when no row refers to them any more.
    """

    def __init__(
        self,
        model: type[DeclarativeBase],
        *,
        by: Attribute,
        position: Attribute,
        item: Attribute,
        items: Split | JsonItems,
        parents: Sequence[Parent] = (),
    ) -> None:
        self.model = model
        self._by, self._position, self._item = by, position, item
        self.items = items
        self.parents = tuple(parents)

    def __repr__(self) -> str:
        return f"<Many {self.table.name}>"

    @cached_property
    def table(self) -> Table:
        """The table of the model."""
        return table_of(self.model)

    @cached_property
    def by(self) -> Column[Any]:
        """The column that refers to the key of the moved row."""
        return column_of(self._by)

    @cached_property
    def position(self) -> Column[Any]:
        """The column that orders the items."""
        return column_of(self._position)

    @cached_property
    def item(self) -> Column[Any]:
        """The column that holds the item."""
        return column_of(self._item)

    @cached_property
    def parent(self) -> Parent | None:
        """The table of the items, in many-to-many."""
        return self.parents[0] if self.parents else None

    @property
    def link(self) -> Column[Any] | None:
        """The column that refers to it."""
        return None if self.parent is None else column_of(self.parent.link)

    def listed(self, key: ColumnElement[Any]) -> ColumnElement[Any]:
        """The items of a row, as the text of a JSON array; NULL where it has none.

        Args:
            key: The key of the row.
        """
        return self._gathered(key, json_listed)

    def given_back(self, key: ColumnElement[Any], type_: Any) -> ColumnElement[Any]:
        """The legacy value of the items of a row.

        Args:
            key: The key of the row.
            type_: The type of the legacy column.
        """
        return self._gathered(key, lambda item, position: self.items.written(item, position, type_))

    def _gathered(self, key: ColumnElement[Any], aggregate: Any) -> ColumnElement[Any]:
        source: FromClause = self.table
        if self.parent is not None:
            source = source.join(self.parent.table, self.parent.key == self.link)
        rows = select(self.item.label("item"), self.position.label("position")).select_from(source)
        # In the subquery, since an aggregate of SQLite has no order of its own before 3.44.
        rows = rows.where(self.by == key).order_by(self.position, *self.table.primary_key)
        of = getattr(key, "table", None)
        ordered = (rows if of is None else rows.correlate(of)).subquery()
        return select(aggregate(ordered.c.item, ordered.c.position)).select_from(ordered).scalar_subquery()
