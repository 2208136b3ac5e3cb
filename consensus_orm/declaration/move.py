"""One move: what in one legacy class corresponds to what in one normalized class, and by which rule.

A `Move` says where each column of a legacy class lives on the normalized side. A `Parent` says which rows of a move (or
of several) belong together, and what is derived from them. No SQL is written here.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Generic, NoReturn

import typing_extensions
from sqlalchemy import (
    Column,
    ColumnElement,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Null,
    String,
    Table,
    Uuid,
    and_,
    case,
    cast,
    column,
    false,
    func,
    inspect,
    literal,
    literal_column,
    not_,
    null,
    or_,
    true,
)
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ColumnClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeEngine

from consensus_orm import errors
from consensus_orm.declaration.attributes import column_of, table_of, unique_sets
from consensus_orm.declaration.expressions import holds, json_from, same
from consensus_orm.declaration.parts import Many, Parent, Part
from consensus_orm.declaration.references import Reference
from consensus_orm.declaration.row_keys import decoded, encoded, row_key
from consensus_orm.declaration.rules import (
    Computed,
    Convert,
    Default,
    EnumMap,
    Explode,
    Expression,
    Named,
    Row,
    columns_of,
    expression,
    on,
    original_name,
)
from consensus_orm.declaration.stored_types import DIALECTS, stored_differently
from consensus_orm.phase import Side

__all__ = ["Move"]

Attribute = InstrumentedAttribute[Any]

Rule = Named | Convert | EnumMap | Default | Explode | Computed
"""What a normalized column is filled with: a legacy column, in type and bytes, or a rule."""


@dataclass(frozen=True)
class Lossy:
    """A rule that cannot give every value back, so that the original is kept.

    Attributes:
        sources: The legacy columns.
        targets: The normalized columns.
        up: What these hold, as expressions on the legacy columns.
    """

    sources: tuple[str, ...]
    targets: tuple[Column[Any], ...]
    up: tuple[ColumnElement[Any], ...]


R = typing_extensions.TypeVar("R", default=Any)


class Move(Generic[R]):
    """What in one legacy class corresponds to what in one normalized class.

    Args:
        legacy: The legacy class; or "module:Class" where it must not be imported any more at CONTRACT, and its
            attributes are then names. The name of its table may precede it ("table=module:Class"), so that it is known
            without an import.
        normalized: The normalized class.
        key: The columns of the legacy primary key, and those that hold them on the normalized side, where they are
            unique together. Rows are ordered by them in the order of this declaration.
        columns: Normalized columns, or several of them together, and what they hold: a legacy column, carried in type
            and bytes, or a rule. Columns that are not named are those of the normalized side alone: rows are written
            with their default, and the way back leaves them standing.
        parts: What the rows have in common (`Parent`), and further tables that hold some of their columns (`Part`)
            or the items of one (`Many`).
        only: Columns of either side, by attribute, that hold one constant in all rows of this move: rows are selected
            by it, and it is written on its own side. So two moves fill one table, or one table is divided among two.
        without: Legacy columns that are given up, and why; they are not compared, and the way back leaves them NULL.
        record: The class of the records that repositories give: a dataclass or a pydantic model whose fields are named
            as legacy attributes (or as columns that the normalized side alone has). A named tuple where left out.
        name: How commands, ledgers and errors call the move; the name of the legacy table where left out.
        newest: The normalized column that orders rows "newest first" (ties by key); by key alone where left out.
        adopted: Carried columns that a program which knows the normalized side alone leaves NULL, and what they are
            made from, as an expression on normalized attributes.
        marker: A boolean column of the normalized class, 1 in rows whose writer wrote the legacy side too and 0 by
            default. It tells a row of a program that knew the normalized side alone where no trigger saw it.

    Raises:
        ConfigurationError: The move cannot be made as it is declared.
    """

    def __init__(
        self,
        legacy: type[DeclarativeBase] | str,
        normalized: type[DeclarativeBase],
        *,
        key: Dict[Any, Attribute],
        columns: Dict[Any, Rule],
        parts: Sequence[Parent | Part | Many] = (),
        only: Dict[Any, Any] | None = None,
        without: Dict[Any, str] | None = None,
        record: type[R] | None = None,
        name: str | None = None,
        newest: Attribute | None = None,
        adopted: Dict[Attribute, Expression] | None = None,
        marker: Attribute | None = None,
    ) -> None:
        self.dialects: Sequence[str] = DIALECTS
        """The kinds of databases that it is for; those of the moves that it is one of."""
        self._legacy = legacy
        self.normalized = normalized
        self.record = record
        self.name = name or self.legacy_name
        self.parents: tuple[Parent, ...] = ()
        for part in parts:
            self.parents += (part.beside(self.parents),) if isinstance(part, Parent) else ()
        self.parts: tuple[Part, ...] = tuple(part for part in parts if isinstance(part, Part))
        self.children: tuple[Many, ...] = tuple(part for part in parts if isinstance(part, Many))
        self.newest = None if newest is None else column_of(newest)
        self.marker = None if marker is None else column_of(marker)
        self.legacy_keys, self.keys = self._declared_key(key)
        self._require_known(parts)
        self.without = {self._name(given_up): why for given_up, why in (without or {}).items()}
        self.only = self._declared_constants(only or {})
        """For each side the columns that hold one constant in all rows of the move, by name."""
        self.carried: dict[str, Column[Any]] = {}
        """Legacy column to the normalized one, of the model or a parent, that holds its value in type and bytes."""
        self.computed: dict[Column[Any], ColumnElement[Any]] = {}
        """Normalized columns of the model whose value follows from legacy columns, by a rule."""
        self.restored: dict[str, ColumnElement[Any]] = {}
        """Legacy columns whose value follows from normalized columns, by a rule."""
        self.types: dict[str, TypeEngine[Any]] = {}
        """The types of legacy columns that a rule gives back."""
        self.lossy: list[Lossy] = []
        """The rules whose originals are kept."""
        self.above: dict[Column[Any], ColumnElement[Any]] = {}
        """Columns of parents whose value follows from legacy columns, by a rule."""
        self.beside: dict[Column[Any], ColumnElement[Any]] = {}
        """Columns of parts whose value follows from legacy columns, by a rule."""
        self.listed: dict[str, Many] = {}
        """Legacy columns whose items stand in a table of their own."""
        self._declare(columns)
        self.adopted = {self._carried_in(a): expression(made) for a, made in (adopted or {}).items()}

    def __repr__(self) -> str:
        return f"<Move {self.name}: {self.legacy_name} to {self.table.name}>"

    # What is declared -----------------------------------------------------------------------------------

    def _require_known(self, parts: Sequence[Any]) -> None:
        for part in parts:
            if not isinstance(part, Parent | Part | Many):
                raise self.fault(self.keys[0].name, f"{part!r:.60} is no part", "give Parent, Part and Many in `parts`")

    def _declared_key(self, key: Dict[Any, Attribute]) -> tuple[tuple[str, ...], tuple[Column[Any], ...]]:
        if not key:
            raise errors.ConfigurationError(
                f"move {self.name!r}: no key is declared, by which rows are told apart",
                hint="declare the columns of the legacy primary key: key={Legacy.id: New.id}",
                table=self.table.name,
            )
        return tuple(map(self._name, key)), tuple(map(column_of, key.values()))

    def _declared_constants(self, only: Dict[Any, Any]) -> dict[Side, dict[str, ColumnElement[Any]]]:
        found: dict[Side, dict[str, ColumnElement[Any]]] = {side: {} for side in Side}
        for attribute, value in only.items():
            of = self._expression(attribute)
            is_own = getattr(of, "table", None) is self.table
            name = column_of(attribute).name if is_own else self._name(attribute)
            found[Side.NORMALIZED if is_own else Side.LEGACY][name] = _constant(value, of.type)
        return found

    def selected(self, side: Side, columns: Callable[[str], ColumnElement[Any]]) -> ColumnElement[bool]:
        """Whether a row of a side is one of this move.

        Args:
            side: The side.
            columns: Gives the column of a name, of the row in question.
        """
        return and_(true(), *(_is(columns(name), value) for name, value in self.only[side].items()))

    def _declare(self, columns: Dict[Any, Rule]) -> None:
        for targets, rule in columns.items():
            self._fill(_several(targets), rule, self.computed)
        for part in self.parts:
            for targets, rule in part.columns.items():
                self._fill(_several(targets), rule, self.beside)
        for many in self.children:
            source = self._expression(many.items.source)
            self.listed[source.name] = many
            self.types |= {} if isinstance(source.type, NullType) else {source.name: source.type}
        for parent in self.parents:
            for target, rule in (parent.by | parent.columns).items():
                self._fill((parent.standing(column_of(target)),), rule, self.above)

    def _fill(
        self, targets: tuple[Column[Any], ...], rule: Rule, computed: dict[Column[Any], ColumnElement[Any]]
    ) -> None:
        if not isinstance(rule, Convert | Explode):
            self._require_one(targets)
        if isinstance(rule, EnumMap | Default):
            rule = rule.converting(targets[0], self._expression(rule.source))
        if isinstance(rule, Explode):
            self._require_as_many(targets, rule.paths, "Explode")
            rule = rule.converting(targets, self._expression(rule.source))
        if isinstance(rule, Computed):
            computed[targets[0]] = expression(rule.up)
        elif isinstance(rule, Convert):
            self._require_as_many(targets, rule.up, "`up` of a Convert")
            self._require_as_many(rule.sources, rule.down, "`down` of a Convert")
            computed.update(zip(targets, map(expression, rule.up), strict=True))
            names = tuple(self._name(source) for source in rule.sources)
            types = [self._expression(source).type for source in rule.sources]
            self.types |= {n: type_ for n, type_ in zip(names, types, strict=True) if not isinstance(type_, NullType)}
            self.restored.update(zip(names, map(expression, rule.down), strict=True))
            if rule.keep:
                self.lossy.append(Lossy(names, targets, tuple(map(expression, rule.up))))
        elif (name := self._name(rule)) in self.carried:  # given back from where it stands first
            computed[targets[0]] = column(name, targets[0].type)
        else:
            self.carried[name] = targets[0]

    def _require_one(self, targets: Sequence[Column[Any]]) -> None:
        if len(targets) > 1:
            raise self.fault(
                targets[1].name,
                f"one value is declared for {len(targets)} columns",
                "give a Convert whose `up` has an expression for each column",
            )

    def _require_as_many(self, columns: Sequence[Any], values: Sequence[Any], way: str) -> None:
        if len(columns) != len(values):
            raise errors.ConfigurationError(
                f"move {self.name!r}: {way} gives {len(values)} values for {len(columns)} columns",
                hint="give one expression for each column, as a tuple where they are several",
                table=self.table.name,
            )

    def _name(self, of: Any) -> str:
        """The column behind a legacy attribute, or behind its name."""
        if isinstance(of, str):
            return of
        return of.name if isinstance(of, ColumnClause) else column_of(of).name

    def _expression(self, of: Any) -> ColumnElement[Any]:
        return column(of) if isinstance(of, str) else expression(of)

    def _carried_in(self, attribute: Attribute) -> str:
        """The legacy column that a normalized one carries."""
        made = column_of(attribute)
        found = [name for name, of in self.carried.items() if of is made]
        if not found:
            raise self.fault(
                made.name, f"`adopted` fills {made.name}, which carries no legacy column", "name a carried column"
            )
        return found[0]

    # The two sides --------------------------------------------------------------------------------------

    @cached_property
    def table(self) -> Table:
        """The normalized table."""
        return table_of(self.normalized)

    @property
    def knows_legacy(self) -> bool:
        """Whether the legacy class is at hand without an import."""
        return not isinstance(self._legacy, str)

    @cached_property
    def legacy_model(self) -> type[DeclarativeBase]:
        """The legacy class; imported at the first use where it was given by name."""
        if not isinstance(self._legacy, str):
            return self._legacy
        module, _, name = self._legacy.rpartition("=")[2].partition(":")
        model: type[DeclarativeBase] = getattr(importlib.import_module(module), name)
        return model

    @cached_property
    def legacy_table(self) -> Table:
        """The legacy table; its class is imported at the first use.

        Raises:
            ConfigurationError: Its key is another one, a column is not moved, is not there, or would be stored as
                another value.
        """
        table = table_of(self.legacy_model)
        self._require_same_key(table)
        self._require_all_moved(table)
        self._require_same_types(table)
        return table

    def _require_same_key(self, table: Table) -> None:
        primary = {of.name: of for of in table.primary_key.columns}
        declared = dict(zip(self.legacy_keys, self.keys, strict=True))
        alike = primary.keys() == declared.keys() and all(
            _kind(of) is _kind(declared[name]) for name, of in primary.items()
        )
        if not alike:
            raise errors.ConfigurationError(
                f"move {self.name!r}: the key of {table.name} is declared as {_told(primary.values())}, that of"
                f" {self.table.name} as {_told(self.keys)}",
                hint="declare the primary key of the legacy table as key of the move, and columns of the same types"
                " on the normalized side",
                table=table.name,
                column=next(iter(primary), None),
            )

    def _require_all_moved(self, table: Table) -> None:
        known = {of.name for of in table.columns}
        moved = {*self.legacy_columns, *self.without, *self.only[Side.LEGACY]}
        rules = [*self.computed.values(), *self.above.values(), *self.beside.values()]
        rules += [expression(part.when) for part in self.parts if part.when is not None]
        spoken = moved | {of.name for rule in rules for of in columns_of(rule)}
        if unknown := sorted(spoken - known):
            raise self.fault(
                unknown[0],
                f"{table.name} has no column {unknown[0]!r}",
                "name columns that the legacy class declares",
            )
        if left := sorted(known - moved):
            raise self.fault(
                left[0],
                f"nothing says where {table.name}.{left[0]} goes",
                "carry it in `columns`, or give it up in `without` with the reason",
            )
        for of in (table.c[name] for name in self.without):
            if not of.nullable and of.server_default is None:
                raise self.fault(
                    of.name,
                    f"{table.name}.{of.name} is given up and NOT NULL, so no legacy row could be written without it",
                    "carry it, or let the database give it a default",
                )

    def _require_same_types(self, table: Table) -> None:
        for name, of in self.carried.items():
            for database in (kind for kind in self.dialects if stored_differently(table.c[name], of, kind)):
                raise self.fault(
                    name,
                    f"{table.name}.{name} is {table.c[name].type!r} and {of.table.name}.{of.name} is {of.type!r}:"
                    f" {database} would store another value",
                    "declare both with one type, or say with Convert how one becomes the other",
                )

    def fault(self, column: str, what: str, hint: str) -> errors.ConfigurationError:
        """What is wrong with the declaration of a column."""
        return errors.ConfigurationError(f"move {self.name!r}: {what}", hint=hint, table=self.table.name, column=column)

    @property
    def legacy_name(self) -> str:
        """The name of the legacy table, known without importing its class where it was given with it."""
        if isinstance(self._legacy, str) and "=" in self._legacy:
            return self._legacy.rpartition("=")[0]
        return table_of(self.legacy_model).name

    def table_name(self, side: Side) -> str:
        """The name of the table of a side."""
        return self.legacy_name if side is Side.LEGACY else self.table.name

    # Its key --------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> ColumnElement[Any]:
        """The key of the normalized table."""
        return row_key(self.keys)

    @property
    def is_numbered(self) -> bool:
        """Whether its key is one whole number, of which a database can give the next."""
        return len(self.keys) == 1 and isinstance(self.keys[0].type, Integer)

    def key_names(self, side: Side) -> tuple[str, ...]:
        """The names of the key columns of a side."""
        return self.legacy_keys if side is Side.LEGACY else tuple(of.name for of in self.keys)

    def key_in(self, table: Any, side: Side) -> ColumnElement[Any]:
        """The key of the rows of a side in what stands for its table.

        Args:
            table: It has the columns of the table.
            side: The side.
        """
        return row_key([table.c[name] for name in self.key_names(side)])

    def key_from(self, values: Dict[str, Any]) -> Any:
        """The key of a row as one value, from its values under legacy names; None where a part is missing."""
        return encoded([values.get(name) for name in self.legacy_keys])

    def key_of_row(self, row: Sequence[Any]) -> Any:
        """The key of a row in the order of `fields` as one value."""
        return encoded(row[: len(self.keys)])

    def key_values(self, key: Any) -> dict[str, Any]:
        """A key as values under legacy names, as the database stores them.

        Raises:
            InvalidValueError: It is not the key of such a row.
        """
        if (values := decoded(key, self.keys)) is None:
            raise errors.InvalidValueError(
                f"the key of a row of {self.name} has {len(self.keys)} parts: {', '.join(self.legacy_keys)}",
                hint="give them as a tuple, in this order",
                field=self.legacy_keys[0],
            )
        return dict(zip(self.legacy_keys, values, strict=True))

    # Its references -------------------------------------------------------------------------------------

    @cache  # noqa: B019 - a move lives as long as the process
    def references(self, side: Side) -> tuple[Reference, ...]:
        """The foreign keys of the table of a side to itself.

        Args:
            side: The side.

        Raises:
            ConfigurationError: Rows that refer to each other by one of them cannot be carried.
        """
        table = self.legacy_table if side is Side.LEGACY else self.table
        keys = sorted(table.foreign_key_constraints, key=lambda key: [*key.column_keys])
        return tuple(self._reference(key, side) for key in keys if key.referred_table is table)

    def _reference(self, key: ForeignKeyConstraint, side: Side) -> Reference:
        holding = {each.column.name: each.parent.name for each in key.elements}
        names = tuple(holding.get(name, "") for name in self.key_names(side))
        carried = [(name, of.name) for name, of in self.carried.items() if of.table is self.table]
        alike = dict((*zip(self.legacy_keys, self.key_names(Side.NORMALIZED), strict=True), *carried))
        if side is Side.NORMALIZED:
            alike = {own: legacy for legacy, own in alike.items()}
        if self.only[side]:
            self._refuse(key, "and its rows are selected by a constant")
        if len(holding) != len(names) or not all(names):
            self._refuse(key, f"by other columns than the key of the move: {', '.join(self.key_names(side))}")
        if changed := [name for name in names if name not in alike]:
            self._refuse(key, f"and {changed[0]} is not carried as it is")
        emptied = tuple(name for name in names if key.table.c[name].nullable and name not in self.key_names(side))
        if not emptied:
            self._refuse(key, "and cannot be NULL: a row may be carried before the one that it refers to")
        if key.ondelete == "RESTRICT" and "sqlite" in self.dialects:
            self._refuse(key, "ON DELETE RESTRICT, which SQLite checks row by row; NO ACTION refuses the same deletes")
        columns = {side: names, side.other: tuple(alike[name] for name in names)}
        return Reference(columns, emptied, key.ondelete or "NO ACTION", key.onupdate or "NO ACTION")

    def _refuse(self, key: ForeignKeyConstraint, why: str) -> NoReturn:
        names, table = ", ".join(key.column_keys), key.table.name
        raise self.fault(
            key.column_keys[0],
            f"{names} of {table} refers to {table} itself, {why}",
            "leave this foreign key out until CONTRACT, and add it then",
        )

    # Its columns ----------------------------------------------------------------------------------------

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Legacy columns to the attributes that they are mapped to, where these have other names."""
        if not self.knows_legacy:
            return {}
        mapped = inspect(self.legacy_model).column_attrs
        return {of.columns[0].name: of.key for of in mapped if of.columns[0].name != of.key}

    def type_of(self, name: str) -> TypeEngine[Any]:
        """The type of a legacy column, known without its class where a rule or the normalized column says it."""
        if name in self.types:
            return self.types[name]
        return self.carried[name].type if name in self.carried else self.legacy_table.c[name].type

    def declared(self, name: str) -> Column[Any] | None:
        """The column whose default holds for a field: of the legacy class where it is at hand, else what carries it."""
        if self.knows_legacy and name in self.legacy_table.c:
            return self.legacy_table.c[name]
        if name in self.legacy_keys:
            return self.keys[self.legacy_keys.index(name)]
        return self.carried.get(name) if name in self.carried else self.table.c.get(name)

    def is_own(self, of: Column[Any]) -> bool:
        """Whether a column is one of the normalized table itself, and not of a parent or part."""
        return of.table is self.table

    @cached_property
    def links(self) -> tuple[Column[Any], ...]:
        """The columns that refer to parents."""
        return tuple(parent.refers for parent in self.parents)

    def standing(self, of: Column[Any], own: Any) -> ColumnElement[Any]:
        """A normalized column where its row stands: in the table, in that of a part, or in a parent.

        Args:
            of: The column.
            own: The normalized table, or what stands for it; parts and parents are joined with it as they are.
        """
        found: ColumnElement[Any] = own.c[of.key] if self.is_own(of) else of
        return found

    @cached_property
    def kept(self) -> tuple[Column[Any], ...]:
        """Columns that only the normalized side has; the way back leaves them standing."""
        filled = {*self.keys, self.marker, *self.links, self.own_id, *self.carried.values(), *self.computed}
        constant = self.only[Side.NORMALIZED]
        return tuple(
            of for of in self.table.columns if of not in filled and of.computed is None and of.name not in constant
        )

    @cached_property
    def unique(self) -> tuple[str, ...]:
        """The normalized columns that tell the rows of the move apart: the key, and constants where it needs them."""
        key = {of.name for of in self.keys}
        found = (tuple(of.name for of in columns) for columns in unique_sets(self.table))
        fitting = (names for names in found if key <= {*names} <= {*self.only[Side.NORMALIZED], *key})
        return min(fitting, key=len, default=())

    @cached_property
    def own_id(self) -> Column[Any] | None:
        """A number that the database gives to normalized rows, where the key of the move is another column."""
        found = self.table.autoincrement_column
        return None if any(found is of for of in self.keys) else found

    @cached_property
    def columns(self) -> dict[str, ColumnElement[Any]]:
        """The legacy columns but the key, each as the normalized side gives it back."""
        own = self.keys[0]  # the only one, where there are items
        key = literal_column(f"{_quoted(self.table.name)}.{_quoted(own.name)}", own.type)
        items = {name: many.given_back(key, self.type_of(name)) for name, many in self.listed.items()}
        return {**self.carried, **self.restored, **items}

    @cached_property
    def is_recorded_blindly(self) -> bool:
        """Whether no trigger of a file compares rows with the other side.

        A row with parts is not whole before its last statement; and SQLite refuses JSON in the triggers of a file whose
        schema is not trusted.
        """
        if self.parts or self.children:
            return True
        rules = (*self.computed.values(), *self.restored.values(), *self.above.values())
        calls = (part for rule in rules for part in visitors.iterate(rule) if isinstance(part, FunctionElement))
        return any(str(call.name).lower().startswith("json") for call in calls)

    @cached_property
    def given_back_names(self) -> tuple[str, ...]:
        """Legacy columns that a normalized row may not give back: by a rule, or from a part that it has not."""
        tables = [part.table for part in self.parts]
        in_parts = (name for name, of in self.carried.items() if of.table in tables)
        return (*self.restored, *in_parts, *self.listed)

    @property
    def beside_rows(self) -> tuple[Part | Many, ...]:
        """The parts and the tables of items: what refers to the rows by their key."""
        return (*self.parts, *self.children)

    @cached_property
    def tables_beside(self) -> tuple[Table, ...]:
        """The tables of parts and of items, those that others refer to first."""
        parents = [of.table for many in self.children for of in many.parents]
        return (*(part.table for part in self.parts), *parents, *(many.table for many in self.children))

    @cached_property
    def lossy_columns(self) -> tuple[str, ...]:
        """Legacy columns that a rule cannot always give back."""
        by_rules = [name for rule in self.lossy for name in rule.sources]
        return tuple(dict.fromkeys([*by_rules, *(name for name, many in self.listed.items() if many.items.keeps)]))

    @cached_property
    def originals(self) -> Table | None:
        """The table of ours that keeps the originals of what a rule cannot give back; None where every rule can."""
        if not self.lossy_columns:
            return None
        columns = [Column(name, self.type_of(name)) for name in self.lossy_columns]
        key = [
            Column(name, of.type, primary_key=True, autoincrement=False)
            for name, of in zip(self.originals_key, self.keys, strict=True)
        ]
        return Table(originals_name(self.name), MetaData(), *key, *columns)

    @property
    def originals_key(self) -> tuple[str, ...]:
        """The names of the key columns of the originals."""
        return ("key", *(f"key_{place}" for place in range(2, len(self.keys) + 1)))

    @cached_property
    def legacy_columns(self) -> tuple[str, ...]:
        """All columns of the legacy table that are moved, the key first."""
        return (*self.legacy_keys, *self.columns)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names under which a row is read and written: the key, the legacy columns, and what is kept."""
        return (*self.legacy_columns, *(of.key for of in self.kept))

    def filled(self, row: Row) -> dict[str, ColumnElement[Any]]:
        """What the normalized table holds for a legacy row; without key, link, marker and what is kept.

        Args:
            row: The legacy row.
        """
        carried = {of.key: row[name] for name, of in self.carried.items() if self.is_own(of)}
        return carried | {of.key: on(rule, row) for of, rule in self.computed.items()}

    def filled_above(self, parent: Parent, row: Row) -> dict[str, ColumnElement[Any]]:
        """What a parent holds for a legacy row; without its key and what is derived.

        Args:
            parent: The parent.
            row: The legacy row.
        """
        carried = {of.key: row[name] for name, of in self.carried.items() if of.table is parent.at}
        return carried | {of.key: on(rule, row) for of, rule in self.above.items() if of.table is parent.at}

    def filled_in(self, part: Part, row: Row) -> dict[str, ColumnElement[Any]]:
        """What the table of a part holds for a legacy row; without its key.

        Args:
            part: The part.
            row: The legacy row.
        """
        carried = {of.key: row[name] for name, of in self.carried.items() if of.table is part.table}
        return carried | {of.key: on(rule, row) for of, rule in self.beside.items() if of.table is part.table}

    def has_part(self, part: Part, row: Row) -> ColumnElement[bool]:
        """Whether a legacy row has a part; never NULL.

        Args:
            part: The part.
            row: The legacy row.
        """
        if part.when is not None:
            return func.coalesce(on(expression(part.when), row), false())
        return or_(false(), *(value.is_not(None) for value in self.filled_in(part, row).values()))

    def given_back(self, own: Any) -> Row:
        """The legacy row that a normalized row and its parents stand for; without its key.

        Args:
            own: The normalized table, or what stands for it; what belongs to its rows is joined with it as it is.
        """
        carried = {name: self.standing(of, own) for name, of in self.carried.items()}
        if not (self.restored or self.listed):
            return Row(carried)
        originals = (
            {} if self.originals is None else {original_name(n): self.originals.c[n] for n in self.lossy_columns}
        )
        beside = {_qualified(of): of for part in self.parts for of in part.table.columns}
        restored = self.restored_from(Row({of.name: own.c[of.key] for of in self.table.columns} | originals | beside))
        key = own.c[self.keys[0].key]
        restored |= {name: many.given_back(key, self.type_of(name)) for name, many in self.listed.items()}
        if self.originals is not None:
            original = Row({of.name: of for of in self.originals.columns})
            for rule in self.lossy:
                filled = zip(rule.targets, rule.up, strict=True)
                follows = [holds(self.standing(of, own), on(up, original)) for of, up in filled]
                counts = and_(original["key"].is_not(None), *follows)
                restored |= {name: case((counts, original[name]), else_=restored[name]) for name in rule.sources}
            for name, many in ((name, many) for name, many in self.listed.items() if many.items.keeps):
                same_items = many.items.listed(original[name]).is_not_distinct_from(many.listed(key))
                counts = and_(original["key"].is_not(None), same_items)
                restored[name] = case((counts, original[name]), else_=restored[name])
        return Row(carried | restored)

    def restored_from(self, normalized: Row) -> dict[str, ColumnElement[Any]]:
        """Legacy columns as their rules alone give them back.

        Args:
            normalized: The normalized row.
        """
        return {name: on(rule, normalized) for name, rule in self.restored.items()}

    def loses(self, row: Row) -> ColumnElement[bool]:
        """Whether the rules alone do not give a legacy row back, so that its original is kept.

        Args:
            row: The legacy row.
        """
        filled = self.filled(row)
        nothing = {original_name(name): cast(null(), self.type_of(name)) for name in self.lossy_columns}
        values = {of.name: filled[of.key] for of in self.table.columns if of.key in filled}
        for part in self.parts:
            values |= {_qualified(part.table.c[name]): value for name, value in self.filled_in(part, row).items()}
        back = self.restored_from(Row(values | nothing))
        again = {name: back[name] for name in self.lossy_columns if name not in self.listed}
        for name in (name for name in self.lossy_columns if name in self.listed):
            again[name] = json_from(self.listed[name].items.listed(row[name]), self.type_of(name))
        return not_(and_(true(), *(holds(row[name], value) for name, value in again.items())))


def _constant(value: Any, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    return null() if value is None else literal(value, None if isinstance(type_, NullType) else type_)


def _kind(key: Column[Any]) -> type[TypeEngine[Any]]:
    """What the keys of a column are: numbers, texts, UUIDs, or something that no key can be."""
    return next((kind for kind in (Integer, String, Uuid) if isinstance(key.type, kind)), type(key.type))


def _told(key: Iterable[Column[Any]]) -> str:
    return ", ".join(f"{of.name} {of.type!r}" for of in key) or "no column"


def _is(of: ColumnElement[Any], value: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a column holds a constant: found by an index, and exact whatever the collation of the column."""
    return of.is_(None) if isinstance(value, Null) else and_(of == value, same(of, value))


def _several(targets: Any) -> tuple[Column[Any], ...]:
    return tuple(column_of(target) for target in (targets if isinstance(targets, tuple) else (targets,)))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _qualified(of: Column[Any]) -> str:
    return f"{of.table.name}.{of.name}"


def originals_name(move: str) -> str:
    """The name of the table that keeps the originals of a move; a long one ends in a hash."""
    name = f"consensus_orm_originals_{move}"
    return name if len(name.encode()) <= 63 else f"{name[:40]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
