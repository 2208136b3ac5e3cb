"""The rules of a move: how the columns of one side follow from those of the other, as SQLAlchemy expressions.

A rule is an expression on mapped attributes, and no Python function: so it can be put on a table, on bound values and
on the NEW row of a trigger alike, its columns can be found by walking through it, and its constants have types. The
columns of a legacy class that is given by name are written as `column("name")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, String, Table, case, column, func, literal, null
from sqlalchemy.orm import InstrumentedAttribute, QueryableAttribute
from sqlalchemy.sql import coercions, roles, visitors
from sqlalchemy.sql.elements import BindParameter, ClauseElement, ColumnClause

from consensus_orm import errors
from consensus_orm.declaration.expressions import json_at, json_patched

__all__ = [
    "Computed",
    "Convert",
    "Default",
    "Earliest",
    "EnumMap",
    "Explode",
    "Expression",
    "Latest",
    "Row",
    "columns_of",
    "expression",
    "is_text",
    "on",
    "original",
    "original_name",
    "spelled",
]

Attribute = InstrumentedAttribute[Any]
"""A mapped attribute of a class of the user's."""

Named = Attribute | QueryableAttribute[Any] | ColumnClause[Any] | str
"""A column of the legacy side: an attribute of its class; where the class is given by name, the name of the column, or
`column(name, type)`."""

Expression = ColumnElement[Any] | QueryableAttribute[Any]
"""A value as an expression on the columns of one side."""


class Row:
    """A row of one side as expressions, wherever it stands: in a table, in bound values, or as NEW in a trigger.

    Args:
        columns: Column name to expression.
    """

    def __init__(self, columns: Dict[str, ColumnElement[Any]]) -> None:
        self._columns = dict(columns)

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __or__(self, columns: Dict[str, ColumnElement[Any]]) -> Row:
        return Row({**self._columns, **columns})


def expression(value: Any) -> ColumnElement[Any]:
    """A rule as an expression: an attribute as its column, a plain value as a constant.

    Args:
        value: What was declared.
    """
    found: ColumnElement[Any] = coercions.expect(roles.ExpressionElementRole, value)
    return literal(found) if not isinstance(found, ColumnElement) else found


def columns_of(rule: ColumnElement[Any]) -> list[ColumnClause[Any]]:
    """The columns that an expression speaks of, each as often as it does."""
    return [each for each in visitors.iterate(rule) if isinstance(each, ColumnClause) and not each.is_literal]


def on(rule: ColumnElement[Any], row: Row) -> ColumnElement[Any]:
    """Put a rule on a row: its columns become those of the row.

    Args:
        rule: The expression as declared.
        row: The row, under the names of its columns.

    Raises:
        ConfigurationError: The row has no column of such a name.
    """

    def replaced(element: Any, **_: Any) -> Any:
        if not isinstance(element, ColumnClause) or element.is_literal:
            return None
        place = f"{getattr(element.table, 'name', '')}.{element.name}"  # of a part, which may have columns of one name
        if place in row:
            return row[place]
        if element.name not in row:
            raise errors.ConfigurationError(
                f"a rule speaks of a column {element.name!r}, which the row does not have where the rule is used",
                hint="speak of columns that the move carries into the table of that rule",
                column=element.name,
            )
        return row[element.name]

    moved: ColumnElement[Any] = visitors.replacement_traverse(rule, {}, replaced)
    return moved


@dataclass(frozen=True, eq=False, init=False)
class Convert:
    """A value that is written in another way on each side, with SQL both ways.

    Args:
        *sources: The legacy columns, as attributes or names.
        up: The value of the normalized column as an expression on them; a tuple where the rule fills several.
        down: The value of the legacy column as an expression on normalized attributes; a tuple for several sources.
        keep: What becomes of a row whose value does not come back in type and bytes (`down(up(x))` is not x). False:
            it becomes a reject, and a unit of work that writes one is refused. True: its original is kept in a table
            of ours, and comes back as long as the normalized value is still what follows from it.
    """

    sources: tuple[Named, ...]
    up: tuple[Expression, ...]
    down: tuple[Expression, ...]
    keep: bool

    def __init__(
        self,
        *sources: Named,
        up: Expression | tuple[Expression, ...],
        down: Expression | tuple[Expression, ...],
        keep: bool = False,
    ) -> None:
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "up", up if isinstance(up, tuple) else (up,))
        object.__setattr__(self, "down", down if isinstance(down, tuple) else (down,))


@dataclass(frozen=True, eq=False)
class EnumMap:
    """A value of a fixed list that the sides write in different words; NULL is NULL on both.

    Args:
        source: The legacy column, as attribute or name.
        values: What each legacy value is on the normalized side.
        keep: Whether a value that is not in the list is NULL on the normalized side and its original is kept, as in
            `Convert`; a row with one becomes a reject otherwise.
    """

    source: Named
    values: Dict[Any, Any]
    keep: bool = False

    def __post_init__(self) -> None:
        if len(set(self.values.values())) != len(self.values):
            raise errors.ConfigurationError(
                f"the EnumMap of {self.source} has one value for two legacy ones, so there is no way back",
                hint="map each legacy value to a value of its own",
            )

    def converting(self, target: Column[Any], source: ColumnElement[Any]) -> Convert:
        """The map as SQL for one normalized column.

        Args:
            target: The normalized column.
            source: The legacy column.
        """
        up = [(source == value, literal(other, target.type)) for value, other in self.values.items()]
        down = [(target == other, literal(value, source.type)) for value, other in self.values.items()]
        nothing: ColumnElement[Any] = null()
        return Convert(self.source, up=case(*up, else_=nothing), down=case(*down, else_=nothing), keep=self.keep)


@dataclass(frozen=True, eq=False)
class Default:
    """A NULL that becomes a value; the original is always kept, so NULL comes back as NULL.

    Args:
        source: The legacy column, as attribute or name.
        value: What stands for NULL on the normalized side.
    """

    source: Named
    value: Any

    def converting(self, target: Column[Any], source: ColumnElement[Any]) -> Convert:
        """The rule as SQL for one normalized column.

        Args:
            target: The normalized column.
            source: The legacy column.
        """
        return Convert(self.source, up=func.coalesce(source, literal(self.value, target.type)), down=target, keep=True)


def original(source: Named) -> ColumnElement[Any]:
    """The kept original of a legacy column, in `down` of a `Convert` that keeps it; NULL where none is kept.

    So a change of the normalized value can be patched into what the legacy side held.

    Args:
        source: The legacy column, as attribute or name.
    """
    of = column(source) if isinstance(source, str) else expression(source)
    return column(original_name(of.name), of.type)


def original_name(source: str) -> str:
    """The name under which a row has the original of a legacy column."""
    return f"original of {source}"


@dataclass(frozen=True, eq=False, init=False)
class Explode:
    """The values under some paths of a JSON object, each in a column; NULL where there is none of that type.

    The object is kept as it was written, and comes back in type and bytes; where a column was changed on the normalized
    side, the change alone is patched into it.

    Args:
        source: The legacy column, of type JSON; on SQLite it may be a text.
        *paths: For each normalized column the names that lead to its value, with dots between them.
    """

    source: Named
    paths: tuple[tuple[str, ...], ...]

    def __init__(self, source: Named, *paths: str) -> None:
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "paths", tuple(tuple(path.removeprefix("$.").split(".")) for path in paths))

    def converting(self, targets: Sequence[Column[Any]], source: ColumnElement[Any]) -> Convert:
        """The rule as SQL for as many normalized columns as there are paths.

        Args:
            targets: The normalized columns.
            source: The legacy column.
        """
        pairs = list(zip(self.paths, targets, strict=False))
        up = tuple(json_at(source, path, target.type) for path, target in pairs)
        down = json_patched(original(self.source), pairs, source.type)
        return Convert(self.source, up=up, down=down, keep=True)


@dataclass(frozen=True, eq=False)
class Computed:
    """A value that only the normalized side has: an expression on legacy columns; the way back leaves it out.

    Args:
        up: The expression.
    """

    up: Expression


@dataclass(frozen=True)
class Earliest:
    """A derived column of a parent: the smallest `newest` value of all its rows, of every move."""


@dataclass(frozen=True, eq=False)
class Latest:
    """A derived column of a parent: an expression on the newest row of one move.

    Args:
        move: Name of the move whose newest row (by its `newest` column, then key) counts.
        value: The expression, on the legacy columns of that row.
        otherwise: The value where the parent has no such row: a constant.
    """

    move: str
    value: Expression
    otherwise: Any = None


def is_text(of: ColumnElement[Any]) -> bool:
    """Whether a column is declared as text."""
    return isinstance(of.type, String)


def spelled(element: ClauseElement) -> list[Any]:
    """An expression as its parts: what it is, what it is called, its constant, and what it is made of."""
    facts: Dict[str, Any] = {
        "name": getattr(element, "name", None) if not isinstance(element, BindParameter) else None,
        "operator": _operator(element),
        "value": repr(element.value) if isinstance(element, BindParameter) else None,
        "type": repr(getattr(element, "type", None)) if element.__visit_name__ in _TYPED else None,
        "text": getattr(element, "text", None),
    }
    # A column leads to its table, and so to all there is.
    parts = [] if _is_column(element) else [spelled(part) for part in element.get_children()]
    return [element.__visit_name__, {name: fact for name, fact in facts.items() if fact is not None}, parts]


_TYPED = ("column", "bindparam", "cast", "type_coerce")
"""Expressions whose type is part of what they say; that of the others follows from their parts."""


def _operator(element: ClauseElement) -> str | None:
    found = getattr(element, "operator", None) or getattr(element, "modifier", None)
    return None if found is None else str(getattr(found, "opstring", None) or getattr(found, "__name__", found))


def _is_column(element: ClauseElement) -> bool:
    return element.__visit_name__ == "column" or isinstance(element, Table)
