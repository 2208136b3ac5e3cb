"""One move: what in one legacy class corresponds to what in one normalized class, and by which rule.

A `Move` says where each column of a legacy class lives on the normalized side. A `Parent` says which rows of a move (or
of several) belong together, and what is derived from them. No SQL is written here.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic

import typing_extensions
from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    MetaData,
    String,
    Table,
    Uuid,
    and_,
    case,
    column,
    inspect,
    not_,
    true,
)
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute
from sqlalchemy.sql.elements import ColumnClause
from sqlalchemy.types import NullType, TypeEngine

from consensus_orm import errors
from consensus_orm.declaration.expressions import NeverNull, holds
from consensus_orm.declaration.row_keys import decoded, encoded, row_key
from consensus_orm.declaration.rules import (
    Computed,
    Convert,
    Default,
    Earliest,
    EnumMap,
    Expression,
    Latest,
    Named,
    Row,
    columns_of,
    expression,
    on,
)
from consensus_orm.declaration.stored_types import storing_differently
from consensus_orm.phase import Side

__all__ = ["Move", "Parent", "column_of", "single_key", "table_of"]

Attribute = InstrumentedAttribute[Any]

Rule = Named | Convert | EnumMap | Default | Computed
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

    def depends_on(self, move: Move) -> bool:
        """Whether something is derived from the newest row of a move."""
        return any(isinstance(rule, Latest) and rule.move == move.name for rule in self.derived.values())


def _is_never_null(rule: Named | Computed) -> bool:
    return isinstance(rule, Computed) and isinstance(rule.up, NeverNull)


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
        parts: What the rows have in common (`Parent`).
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
        parts: tuple[Parent, ...] | list[Parent] = (),
        without: Dict[Any, str] | None = None,
        record: type[R] | None = None,
        name: str | None = None,
        newest: Attribute | None = None,
        adopted: Dict[Attribute, Expression] | None = None,
        marker: Attribute | None = None,
    ) -> None:
        self._legacy = legacy
        self.normalized = normalized
        self.record = record
        self.name = name or self.legacy_name
        self.parent = parts[0] if parts else None
        self.newest = None if newest is None else column_of(newest)
        self.marker = None if marker is None else column_of(marker)
        self.legacy_keys, self.keys = self._declared_key(key)
        self.without = {self._name(given_up): why for given_up, why in (without or {}).items()}
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
        """Columns of the parent whose value follows from legacy columns, by a rule."""
        self._declare(columns)
        self.adopted = {self._carried_in(a): expression(made) for a, made in (adopted or {}).items()}

    def __repr__(self) -> str:
        return f"<Move {self.name}: {self.legacy_name} to {self.table.name}>"

    # What is declared -----------------------------------------------------------------------------------

    def _declared_key(self, key: Dict[Any, Attribute]) -> tuple[tuple[str, ...], tuple[Column[Any], ...]]:
        if not key:
            raise errors.ConfigurationError(
                f"move {self.name!r}: no key is declared, by which rows are told apart",
                hint="declare the columns of the legacy primary key: key={Legacy.id: New.id}",
                table=self.table.name,
            )
        return tuple(map(self._name, key)), tuple(map(column_of, key.values()))

    def _declare(self, columns: Dict[Any, Rule]) -> None:
        for targets, rule in columns.items():
            several = targets if isinstance(targets, tuple) else (targets,)
            self._fill(tuple(column_of(target) for target in several), rule, self.computed)
        if self.parent is not None:
            for target, rule in (self.parent.by | self.parent.columns).items():
                self._fill((column_of(target),), rule, self.above)

    def _fill(
        self, targets: tuple[Column[Any], ...], rule: Rule, computed: dict[Column[Any], ColumnElement[Any]]
    ) -> None:
        if isinstance(rule, EnumMap | Default):
            rule = rule.converting(targets[0], self._expression(rule.source))
        if isinstance(rule, Computed):
            computed[targets[0]] = expression(rule.up)
        elif isinstance(rule, Convert):
            self._require_as_many(targets, rule.up, "up")
            self._require_as_many(rule.sources, rule.down, "down")
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

    def _require_as_many(self, columns: Sequence[Any], values: Sequence[Any], way: str) -> None:
        if len(columns) != len(values):
            raise errors.ConfigurationError(
                f"move {self.name!r}: `{way}` of a Convert gives {len(values)} values for {len(columns)} columns",
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
        return next(name for name, of in self.carried.items() if of is column_of(attribute))

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
            ConfigurationError: Its key is not declared as that of the normalized table is.
        """
        table = table_of(self.legacy_model)
        self._require_same_key(table)
        self._require_all_moved(table)
        self._require_same_types(table)
        return table

    def require_legacy(self) -> None:
        """Refuse a move that does not speak of its legacy table as that is declared.

        Raises:
            ConfigurationError: Its key is another one, a column is not moved, is not there, or would be stored as
                another value.
        """
        assert self.legacy_table is not None

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
        moved = {*self.legacy_columns, *self.without}
        rules = (*self.computed.values(), *self.above.values())
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

    def _require_same_types(self, table: Table) -> None:
        for name, of in self.carried.items():
            if (database := storing_differently(table.c[name], of)) is not None:
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
        """Whether a column is one of the normalized table itself, and not of a parent."""
        return of.table is self.table

    @cached_property
    def link(self) -> Column[Any] | None:
        """The column that refers to the parent."""
        return None if self.parent is None else column_of(self.parent.link)

    @property
    def may_be_orphan(self) -> bool:
        """Whether a row without any value of its parent has none: its link can be NULL."""
        return self.link is not None and bool(self.link.nullable)

    @cached_property
    def kept(self) -> tuple[Column[Any], ...]:
        """Columns that only the normalized side has; the way back leaves them standing."""
        filled = {*self.keys, self.marker, self.link, *self.carried.values(), *self.computed}
        return tuple(of for of in self.table.columns if of not in filled and of.computed is None)

    @cached_property
    def columns(self) -> dict[str, ColumnElement[Any]]:
        """The legacy columns but the key, each as the normalized side gives it back."""
        return {**self.carried, **self.restored}

    @cached_property
    def lossy_columns(self) -> tuple[str, ...]:
        """Legacy columns that a rule cannot always give back."""
        return tuple(dict.fromkeys(name for rule in self.lossy for name in rule.sources))

    @cached_property
    def originals(self) -> Table | None:
        """The table of ours that keeps the originals of what a rule cannot give back; None where every rule can."""
        if not self.lossy:
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

    def filled_above(self, row: Row) -> dict[str, ColumnElement[Any]]:
        """What the parent holds for a legacy row; without its key and what is derived.

        Args:
            row: The legacy row.
        """
        carried = {of.key: row[name] for name, of in self.carried.items() if not self.is_own(of)}
        return carried | {of.key: on(rule, row) for of, rule in self.above.items()}

    def given_back(self, own: Any, parent: Any) -> Row:
        """The legacy row that a normalized row and its parent stand for; without its key.

        Args:
            own: The normalized table, or what stands for it; the originals are joined with it where there are some.
            parent: The table of the parent, or what stands for it; None where the move has none.
        """
        carried = {name: (own if self.is_own(of) else parent).c[of.key] for name, of in self.carried.items()}
        if not self.restored:
            return Row(carried)
        restored = self.restored_from(Row({of.name: own.c[of.key] for of in self.table.columns}))
        if self.originals is not None:
            original = Row({of.name: of for of in self.originals.columns})
            for rule in self.lossy:
                follows = [holds(own.c[of.key], on(up, original)) for of, up in zip(rule.targets, rule.up, strict=True)]
                counts = and_(original["key"].is_not(None), *follows)
                restored |= {name: case((counts, original[name]), else_=restored[name]) for name in rule.sources}
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
        back = self.restored_from(Row({of.name: filled[of.key] for of in self.table.columns if of.key in filled}))
        return not_(and_(true(), *(holds(row[name], back[name]) for name in self.lossy_columns)))


def _kind(key: Column[Any]) -> type[TypeEngine[Any]]:
    """What the keys of a column are: numbers, texts, UUIDs, or something that no key can be."""
    return next((kind for kind in (Integer, String, Uuid) if isinstance(key.type, kind)), type(key.type))


def _told(key: Iterable[Column[Any]]) -> str:
    return ", ".join(f"{of.name} {of.type!r}" for of in key) or "no column"


def originals_name(move: str) -> str:
    """The name of the table that keeps the originals of a move; a long one ends in a hash."""
    name = f"consensus_orm_originals_{move}"
    return name if len(name.encode()) <= 63 else f"{name[:40]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def table_of(model: type[DeclarativeBase]) -> Table:
    """The table of a mapped class."""
    table = model.__table__
    assert isinstance(table, Table)
    return table


def column_of(attribute: Any) -> Column[Any]:
    """The column behind a mapped attribute.

    Raises:
        ConfigurationError: It is something else.
    """
    found: list[Any] = getattr(getattr(attribute, "property", None), "columns", [])
    if len(found) != 1 or not isinstance(found[0], Column):
        raise errors.ConfigurationError(
            f"{attribute!r:.80} is no mapped column",
            hint="name an attribute of a mapped class that stands for one column",
        )
    column: Column[Any] = found[0]
    return column


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
