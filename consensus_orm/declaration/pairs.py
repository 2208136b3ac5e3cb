"""The words in which a correspondence between two schemas is declared: one declaration drives everything.

A `Pair` says where each column of a legacy table lives on the normalized side. A `Parent` says which rows of
a pair (or of several) belong together, and what is derived from them. A `Mapping` is all pairs of a move.
From it come the dual write, the comparison, the triggers, the backfill, verify, reconcile and the way back.
No SQL is written here, and no module of this package but `consensus` names a consensus table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from sqlalchemy import Column, ColumnElement, String, Table
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute

from consensus_orm import errors
from consensus_orm.phase import Side

__all__ = ["Earliest", "Expression", "Latest", "Mapping", "Pair", "Parent", "Row", "is_text"]


class Row:
    """A legacy row as expressions, wherever it stands: in a table, in bound values, or as NEW in a trigger.

    Columns are attributes under their legacy names, so one rule speaks of all of these alike.

    Args:
        columns: Legacy column name to expression.
    """

    def __init__(self, columns: Dict[str, ColumnElement[Any]]) -> None:
        self._columns = dict(columns)

    def __getattr__(self, name: str) -> ColumnElement[Any]:
        try:
            return self._columns[name]
        except KeyError:
            raise AttributeError(f"the declaration speaks of a legacy column {name!r}, unknown here") from None

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)


Expression = Callable[[Row], ColumnElement[Any]]
"""A value as a function of a legacy row."""

Attribute = InstrumentedAttribute[Any]


@dataclass(frozen=True)
class Earliest:
    """A derived column of a parent: the smallest `newest` value of all its rows, of every pair."""


@dataclass(frozen=True)
class Latest:
    """A derived column of a parent: an expression on the newest row of one pair.

    Args:
        pair: Name of the pair whose newest row (by its `newest` column, then key) counts.
        value: The expression on that row.
        otherwise: The value as SQL where the parent has no such row.
    """

    pair: str
    value: Expression
    otherwise: str


@dataclass(frozen=True, eq=False)
class Parent:
    """A normalized table whose rows stand for what several rows have in common.

    A parent row exists exactly as long as a row belongs to it. Which one that is, is a pure function of the
    row: the columns of `identity` are declared unique together in the model.

    Args:
        model: The mapped class; it has a single integer primary key.
        identity: The columns that tell one parent from another.
        computed: Columns that are expressions on a legacy row. Constants in them, as in all that is computed or
            derived, are written into the SQL; opening a store refuses those that the database cannot hold.
        derived: Columns that follow from all rows of the parent together.
    """

    model: type[DeclarativeBase]
    identity: tuple[Attribute, ...]
    computed: Dict[Attribute, Expression] = field(default_factory=dict)
    derived: Dict[Attribute, Earliest | Latest] = field(default_factory=dict)

    @cached_property
    def table(self) -> Table:
        """The table of the model."""
        return table_of(self.model)

    @cached_property
    def key(self) -> Column[Any]:
        """The primary key column."""
        return single_key(self.table)

    @cache  # noqa: B019 - a declaration lives as long as the process
    def depends_on(self, pair: Pair) -> bool:
        """Whether something is derived from the newest row of a pair."""
        return any(isinstance(rule, Latest) and rule.pair == pair.name for rule in self.derived.values())


@dataclass(frozen=True, eq=False)
class Pair:
    """A legacy table and the normalized table that holds the same rows under the same ids.

    Args:
        name: How commands, ledgers and errors call it.
        legacy: The legacy table and its mapped class as "table=module:Class"; the class is imported only while
            a phase needs it.
        normalized: The normalized mapped class.
        carried: Legacy column to the normalized column (of the model or its parent) that holds its value, in
            type and bytes. Every legacy column but the key is here, or the move would lose it.
        computed: Normalized columns that are expressions on a legacy row.
        kept: Columns that only the normalized side has; the way back leaves them standing.
        parent: What the rows have in common, if anything.
        link: The column that refers to the parent.
        marker: A boolean column, 1 in rows whose writer wrote the legacy side too, 0 by default: this is how
            a row of a program that knows the normalized side alone is noticed.
        newest: The column that orders rows "newest first" (ties by key); by key alone where left out.
        adopted: Carried columns that a program knowing only the founding normalized schema leaves NULL, and
            what they are made from, as a function of the normalized table.
    """

    name: str
    legacy: str
    normalized: type[DeclarativeBase]
    carried: Dict[str, Attribute]
    marker: Attribute
    computed: Dict[Attribute, Expression] = field(default_factory=dict)
    kept: tuple[Attribute, ...] = ()
    parent: Parent | None = None
    link: Attribute | None = None
    newest: Attribute | None = None
    adopted: Dict[str, Callable[[Table], ColumnElement[Any]]] = field(default_factory=dict)

    @cached_property
    def table(self) -> Table:
        """The normalized table."""
        return table_of(self.normalized)

    @cached_property
    def key(self) -> Column[Any]:
        """The primary key of the normalized table; the legacy table has one of the same name."""
        return single_key(self.table)

    @cached_property
    def legacy_model(self) -> type[DeclarativeBase]:
        """The legacy mapped class; imported at the first use."""
        module, _, name = self.legacy.rpartition("=")[2].partition(":")
        model: type[DeclarativeBase] = getattr(importlib.import_module(module), name)
        return model

    @cached_property
    def legacy_table(self) -> Table:
        """The legacy table; imported at the first use.

        Raises:
            ConfigurationError: Its key is not declared as that of the normalized table is.
        """
        table = table_of(self.legacy_model)
        key = single_key(table)
        if key.name != self.key.name or is_text(key) != is_text(self.key):
            raise errors.ConfigurationError(
                f"pair {self.name!r}: the key of {table.name} is declared as {key.name} {key.type!r}, that of"
                f" {self.table.name} as {self.key.name} {self.key.type!r}",
                hint="both sides have the same key: declare it with one name, both as whole numbers or both as text",
                table=table.name,
                column=key.name,
            )
        return table

    @property
    def legacy_name(self) -> str:
        """The name of the legacy table, known without importing its model."""
        return self.legacy.rpartition("=")[0]

    def table_name(self, side: Side) -> str:
        """The name of the table of a side, known without importing the legacy model."""
        return self.legacy_name if side is Side.LEGACY else self.table.name

    def column(self, attribute: Attribute) -> Column[Any]:
        """The column behind an attribute of the model or of its parent."""
        for model in (self.normalized, self.parent.model if self.parent else None):
            if model is not None and attribute.class_ is model:
                return table_of(model).c[attribute.key]
        raise TypeError(f"pair {self.name!r}: {attribute} belongs to neither its model nor its parent")

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names under which a row is read and written: the key, the legacy columns, and what is kept."""
        return (self.key.name, *self.carried, *(attribute.key for attribute in self.kept))


@dataclass(frozen=True, eq=False)
class Mapping:
    """All pairs of one move.

    Args:
        pairs: The pairs, in the order in which they are carried.
    """

    pairs: tuple[Pair, ...]

    def __getitem__(self, name: str) -> Pair:
        for pair in self.pairs:
            if pair.name == name:
                return pair
        known = ", ".join(pair.name for pair in self.pairs)
        raise errors.InvalidValueError(f"there is no pair {name!r:.40}", hint=f"use one of: {known}", field="pair")

    @cached_property
    def parents(self) -> tuple[Parent, ...]:
        """The parents, each once."""
        return tuple({id(p.parent): p.parent for p in self.pairs if p.parent is not None}.values())

    def members(self, parent: Parent) -> tuple[Pair, ...]:
        """The pairs whose rows belong to a parent."""
        return tuple(pair for pair in self.pairs if pair.parent is parent)

    def said_by(self, parent: Parent) -> list[str]:
        """Columns of a parent that say something of its rows, in order; what is derived follows from them instead."""
        carried = {a.key for pair in self.members(parent) for a in pair.carried.values() if a.class_ is parent.model}
        return sorted({parent.key.name, *carried, *(a.key for a in parent.computed)})


def table_of(model: type[DeclarativeBase]) -> Table:
    """The table of a mapped class."""
    table = model.__table__
    assert isinstance(table, Table)
    return table


def single_key(table: Table) -> Column[Any]:
    """The one primary key column of a table.

    Raises:
        ConfigurationError: It has none, or one of several columns.
    """
    columns = list(table.primary_key.columns)
    if len(columns) != 1:
        names = ", ".join(column.name for column in columns) or "no column"
        raise errors.ConfigurationError(
            f"the primary key of {table.name} is declared as {names}; rows are told apart by one column",
            hint="declare one column as primary key: a number or a text that is unique in the table",
            table=table.name,
        )
    return columns[0]


def is_text(column: ColumnElement[Any]) -> bool:
    """Whether a column is declared as text."""
    return isinstance(column.type, String)
