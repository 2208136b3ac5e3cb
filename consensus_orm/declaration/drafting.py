"""The draft of a move from two mapped classes: what follows from names and types, and a comment for what does not."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import Column, Enum, Table, inspect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeEngine

from consensus_orm import errors
from consensus_orm.declaration.attributes import column_of, table_of, unique_sets
from consensus_orm.declaration.rules import is_text
from consensus_orm.declaration.stored_types import DIALECTS, stored_differently
from consensus_orm.declaration.validation import has_value

__all__ = ["Draft", "new_tables"]

OPEN = "# open: "
"""How the comment of a decision begins; the lines of code in comments below it are what it may become."""

_BRACES = ("{", "}")

VALUES: dict[type, str] = {int: "0", float: "0.0", str: "''", bool: "False", bytes: "b''"}
"""Values that stand for one of a type until somebody decides."""


@dataclass(frozen=True)
class _Line:
    """A line of an argument: code, a decision that is left open, or what may become code."""

    text: str
    is_open: bool = False
    is_drafted: bool = False

    def __str__(self) -> str:
        return f"{OPEN}{self.text}" if self.is_open else f"# {self.text}" if self.is_drafted else self.text


class _Class:
    """A mapped class under the name that the draft calls it by, and its attributes by column."""

    def __init__(self, model: type[DeclarativeBase], module: str, name: str, alias: str) -> None:
        self.model, self.table = model, table_of(model)
        self.module, self.imported = module, name if alias == name else f"{name} as {alias}"
        self.name = alias
        mapped = [of.class_attribute for of in inspect(model).column_attrs if isinstance(of.columns[0], Column)]
        known = {column_of(each): each.key for each in mapped}
        self.attributes = {of: known[of] for of in self.table.columns if of in known}

    def __getitem__(self, of: Column[Any]) -> str:
        return f"{self.name}.{self.attributes[of]}"

    def named_as(self, other: _Class, of: Column[Any], prefix: str = "") -> Column[Any] | None:
        """The column that is called as one of another class: the attribute, the column, or either in another style.

        Args:
            other: The other class.
            of: Its column.
            prefix: What may stand before its name here.
        """
        for wanted in ((other.attributes[of], of.name), (prefix + other.attributes[of], prefix + of.name)):
            for same in (str, _plain):
                for mine, attribute in self.attributes.items():
                    if same(wanted[0]) == same(attribute) or same(wanted[1]) == same(mine.name):
                        return mine
        return None


def _imports(names: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The lines that import some names of some modules."""
    by_module: dict[str, set[str]] = {}
    for module, name in names:
        by_module.setdefault(module, set()).add(name)
    yield from (f"from {module} import {', '.join(sorted(by_module[module]))}" for module in sorted(by_module))


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


@dataclass
class _Arguments:
    """The lines of each argument of the move."""

    key: list[_Line] = field(default_factory=list)
    columns: list[_Line] = field(default_factory=list)
    parts: list[_Line] = field(default_factory=list)
    without: list[_Line] = field(default_factory=list)


class Draft:
    """The draft of a move.

    Args:
        legacy: Module and name of the legacy class.
        normalized: Those of the normalized class.

    Raises:
        ConfigurationError: No columns of the normalized table can hold the key of the legacy table.
    """

    def __init__(
        self, legacy: tuple[str, str, type[DeclarativeBase]], normalized: tuple[str, str, type[DeclarativeBase]]
    ) -> None:
        self._legacy = _Class(legacy[2], legacy[0], legacy[1], legacy[1])
        alias = normalized[1] if normalized[1] != legacy[1] else f"New{normalized[1]}"
        self._own = _Class(normalized[2], normalized[0], normalized[1], alias)
        self._needed: dict[str, set[str]] = {}
        self._further: list[_Class] = []
        self._arguments = _Arguments()
        self._key = self._draft_key()
        self._draft_columns()

    @property
    def open(self) -> int:
        """How many decisions are left open."""
        lines = (line for of in vars(self._arguments).values() for line in of)
        return sum(line.is_open for line in lines)

    @cached_property
    def name(self) -> str:
        """The name of the move in the module."""
        name = re.sub(r"\W", "_", self._legacy.table.name).upper()
        return name if name.isidentifier() and name != "MOVES" else f"MOVE_{name}"

    def __str__(self) -> str:
        return "\n".join(self._module())

    def _module(self) -> Iterator[str]:
        yield f'"""The move of {self._legacy.table.name} to {self._own.table.name}, drafted from its classes."""'
        yield ""
        yield "from consensus_orm import Move, Moves"
        yield from _imports((each.module, each.imported) for each in (self._legacy, self._own))
        needed = [(module, name) for module, names in self._needed.items() for name in names]
        needed += [(each.module, each.imported) for each in self._further]
        yield from (f"# {line}" for line in _imports(needed))
        yield ""
        yield f"{self.name} = Move("
        yield f"    {self._legacy.name},"
        yield f"    {self._own.name},"
        for name, begin, end in (("key", *_BRACES), ("columns", *_BRACES), ("parts", "[", "]"), ("without", *_BRACES)):
            lines: list[_Line] = getattr(self._arguments, name)
            if lines or name == "columns":
                yield f"    {name}={begin}"
                yield from (f"        {line}" for line in lines)
                yield f"    {end},"
        yield ")"
        yield f"MOVES = Moves({self.name})"

    # The key ------------------------------------------------------------------------------------------------

    def _draft_key(self) -> dict[Column[Any], Column[Any]]:
        """Find what holds the legacy key: unique columns of its names, else some of its types, the own key first."""
        wanted = [*self._legacy.table.primary_key.columns]
        sets = [columns for columns in reversed(unique_sets(self._own.table)) if len(columns) == len(wanted)]
        holding = [self._holding(wanted, of) for of in sets if {*of} <= {*self._own.attributes}]
        if not holding:
            name, count = self._own.table.name, len(wanted)
            alone = f"column of {name} is unique alone"
            few = alone if count == 1 else f"{count} columns of {name} are unique together"
            raise errors.ConfigurationError(
                f"no {few}, to hold the key of {self._legacy.table.name}",
                hint="declare them as primary key, or as unique",
                table=name,
            )
        fitting = [key for key in holding if all(is_text(of) == is_text(own) for of, own in key.items())]
        named = {of: self._own.named_as(self._legacy, of) for of in wanted}
        found = max(fitting or holding, key=lambda key: sum(own is named[of] for of, own in key.items()))
        others = ", ".join(self._told([*key.values()]) for key in fitting if key is not found)
        if found in fitting and others and found != named:
            self._arguments.key.append(_Line(f"or does {others} hold the legacy key?", is_open=True))
        for of, own in found.items():
            if is_text(of) != is_text(own):
                what = f"{self._own[own]} is of another kind than {self._legacy[of]}"
                self._arguments.key.append(_Line(what, is_open=True))
            elif len(found) > 1 and own is not named[of]:
                self._arguments.key.append(_Line(f"does {self._own[own]} hold {self._legacy[of]}?", is_open=True))
            self._arguments.key.append(_Line(f"{self._legacy[of]}: {self._own[own]},"))
        return found

    def _holding(self, wanted: list[Column[Any]], columns: list[Column[Any]]) -> dict[Column[Any], Column[Any]]:
        """The legacy key columns, and which of some columns holds each: by name, else by type, else in their order."""

        def by_type(of: Column[Any], own: Column[Any]) -> bool:
            return is_text(own) == is_text(of)

        def by_name(of: Column[Any], own: Column[Any]) -> bool:
            return own is self._own.named_as(self._legacy, of) and by_type(of, own)

        found: dict[Column[Any], Column[Any]] = {}
        for fits in (by_name, by_type, None):
            for of in (of for of in wanted if of not in found):
                free = [own for own in columns if own not in {*found.values()} and (fits is None or fits(of, own))]
                if free:
                    found[of] = free[0]
        return {of: found[of] for of in wanted}

    def _told(self, columns: list[Column[Any]]) -> str:
        return " with ".join(map(self._own.__getitem__, columns))

    # The columns --------------------------------------------------------------------------------------------

    def _draft_columns(self) -> None:
        left = [of for of in self._legacy.attributes if of not in self._key]
        unfilled: list[Column[Any]] = []
        for of in self._own.attributes:
            if of in {*self._key.values()}:
                continue
            source = self._legacy.named_as(self._own, of)
            if source is not None and source in left:
                left.remove(source)
                self._arguments.columns += self._carried(of, source)
            elif not (of.nullable or has_value(of) or of is self._own.table.autoincrement_column):
                unfilled.append(of)
        for of in [each for each in self._own.attributes if each.foreign_keys]:
            if (parent := self._parent_of(of)) is not None and self._legacy.named_as(self._own, of) is None:
                self._draft_parent(of, parent, left)
                unfilled = [each for each in unfilled if each is not of]
        for of in unfilled:
            self._arguments.columns += self._unfilled(of)
        for of in left:
            self._arguments.without += self._left(of)

    def _carried(self, of: Column[Any], source: Column[Any]) -> Iterator[_Line]:
        target, legacy = self._own[of], self._legacy[source]
        if any(stored_differently(source, of, kind) for kind in DIALECTS):
            what = f"{legacy} is {source.type!r}, {target} is {of.type!r}: say how one becomes the other, and back"
            yield _Line(what, is_open=True)
            yield _Line(f"{target}: {self._converted(of, source)},", is_drafted=True)
        elif source.nullable and not of.nullable:
            yield _Line(
                f"{legacy} may be NULL, {target} may not: say what NULL becomes, or declare it so", is_open=True
            )
            value = self._value(of)
            yield _Line(f"{target}: {self._use('Default')}({legacy}, {value}),", is_drafted=True)
        else:
            yield _Line(f"{target}: {legacy},")

    def _converted(self, of: Column[Any], source: Column[Any]) -> str:
        target, legacy = self._own[of], self._legacy[source]
        kind = _python_type(source.type)
        if isinstance(of.type, Enum) and of.type.enums and kind in (int, str):
            values = range(len(of.type.enums)) if kind is int else of.type.enums
            members = getattr(of.type.enum_class, "__members__", {})
            told = {name: getattr(members.get(name), "value", None) for name in of.type.enums}
            if not all(isinstance(value, kind) for value in told.values()):
                told = dict(zip(of.type.enums, values, strict=True))
            listed = ", ".join(f"{value!r}: {name!r}" for name, value in told.items())
            return f"{self._use('EnumMap')}({legacy}, {{{listed}}})"
        self._use("cast", "sqlalchemy")
        up, down = (f"cast({a}, {self._type(b.type)})" for a, b in ((legacy, of), (target, source)))
        return f"{self._use('Convert')}({legacy}, up={up}, down={down})"

    def _unfilled(self, of: Column[Any]) -> Iterator[_Line]:
        target = self._own[of]
        yield _Line(
            f"nothing fills {target}, which is NOT NULL: say what it holds, or give it a server_default", is_open=True
        )
        filled = f"{self._use('Computed')}({self._use('literal', 'sqlalchemy')}({self._value(of)}))"
        yield _Line(f"{target}: {filled},", is_drafted=True)

    def _left(self, of: Column[Any]) -> Iterator[_Line]:
        if of.nullable or of.server_default is not None:
            yield _Line(f"nothing says where {self._legacy[of]} goes: carry it, or give it up", is_open=True)
            yield _Line(f"{self._legacy[of]}: 'why',", is_drafted=True)
        else:
            what = "carry it; it is NOT NULL and has no server_default, so it cannot be given up"
            yield _Line(f"nothing says where {self._legacy[of]} goes: {what}", is_open=True)

    # Parents ------------------------------------------------------------------------------------------------

    def _parent_of(self, of: Column[Any]) -> type[DeclarativeBase] | None:
        """The class of the table that a column refers to; None for its own table, and where no class has it."""
        referred = next(iter(of.foreign_keys)).column.table
        if referred in (self._own.table, self._legacy.table):
            return None
        mappers = (each for each in self._own.model.registry.mappers if each.local_table is referred)
        return next((each.class_ for each in mappers), None)

    def _draft_parent(self, link: Column[Any], model: type[DeclarativeBase], left: list[Column[Any]]) -> None:
        parent = _Class(model, model.__module__, model.__name__, self._free(model.__name__))
        prefix = self._own.attributes[link].removesuffix("id")
        held = {of: self._legacy.named_as(parent, of, prefix) for of in parent.attributes if not of.primary_key}
        found = {of: source for of, source in held.items() if source is not None and source in left}
        for source in found.values():
            left.remove(source)
        unique = [columns for columns in unique_sets(parent.table) if columns and {*columns} <= {*found}]
        by = unique[0] if unique else list(found)
        self._further.append(parent)
        self._use("Parent")
        why = "give it a UniqueConstraint of exactly the columns that tell its rows apart"
        why = "does a row of it stand for all rows that have these values in common?" if unique else why
        self._arguments.parts.append(_Line(f"{self._own[link]} refers to {parent.table.name}: {why}", is_open=True))
        told = {of: f"{parent[of]}: {self._legacy[source]}" for of, source in found.items()}
        drafted = f"Parent({parent.name}, link={self._own[link]}, by={{{', '.join(told.pop(of) for of in by)}}}"
        drafted += f", columns={{{', '.join(told.values())}}}" if told else ""
        self._arguments.parts.append(_Line(f"{drafted}),", is_drafted=True))

    def _free(self, name: str) -> str:
        taken = {self._legacy.name, self._own.name, *(each.name for each in self._further)}
        return name if name not in taken else f"Parent{name}"

    # Names --------------------------------------------------------------------------------------------------

    def _use(self, name: str, module: str = "consensus_orm") -> str:
        self._needed.setdefault(module, set()).add(name)
        return name

    def _type(self, type_: TypeEngine[Any]) -> str:
        return f"{self._use(type(type_).__name__, _home(type_))}{repr(type_).removeprefix(type(type_).__name__)}"

    def _value(self, of: Column[Any]) -> str:
        if isinstance(of.type, Enum) and of.type.enums:
            return repr(of.type.enums[0])
        kind = _python_type(of.type)
        if kind in VALUES:
            return VALUES[kind]
        if issubclass(kind, datetime.date):
            name = kind.__name__
            return f"{self._use(name, 'datetime')}(1970, 1, 1)"
        return "None"


def _python_type(type_: TypeEngine[Any]) -> type:
    try:
        return type_.python_type
    except NotImplementedError:
        return object


def _home(type_: TypeEngine[Any]) -> str:
    """The module from which a type is imported."""
    module = type(type_).__module__
    if module.startswith("sqlalchemy.dialects."):
        return ".".join(module.split(".")[:3])
    return "sqlalchemy" if module.startswith("sqlalchemy.") else module


def new_tables(legacy: type[DeclarativeBase], normalized: type[DeclarativeBase]) -> list[Table]:
    """The tables that a move needs and the legacy class does not know, those that others refer to first.

    Args:
        legacy: The legacy class.
        normalized: The normalized class.
    """
    there, wanted = _reached(table_of(legacy)), _reached(table_of(normalized))
    return [table for table in table_of(normalized).metadata.sorted_tables if table in wanted - there]


def _reached(table: Table) -> set[Table]:
    """A table, and those to which foreign keys lead from it."""
    found, ahead = set[Table](), [table]
    while ahead:
        if (each := ahead.pop()) not in found:
            found.add(each)
            ahead += [key.column.table for key in each.foreign_keys]
    return found
