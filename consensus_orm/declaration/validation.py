"""What moves must say before anything is made of them: what can be known here is never found later.

Each fault is a `ConfigurationError` that names the move and the column. What depends on a live database is looked at by
the gate of EXPAND; what a database cannot say in SQL is refused when the statements are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Index, Table, UniqueConstraint
from sqlalchemy.sql.elements import ColumnClause

from consensus_orm import errors
from consensus_orm.declaration.move import Move, Parent
from consensus_orm.declaration.rules import Latest, columns_of, expression, spelled

__all__ = ["validate"]


def validate(moves: Sequence[Move]) -> None:
    """Refuse moves that cannot be made as they are declared.

    Args:
        moves: All moves of a database.

    Raises:
        ConfigurationError: One cannot be made; the message names it, and the column.
    """
    _names(moves)
    for move in moves:
        _key(move)
        _rules(move)
        if move.parent is not None:
            _parent(move, move.parent)
        _filled(move)
        if move.knows_legacy:
            move.require_legacy()
        _references(move)
    _shared(moves)


# One declaration ------------------------------------------------------------------------------------------


def _references(move: Move) -> None:
    """Refuse a table that refers to itself: ranges of keys are carried in order, each in a transaction of its own."""
    for table in [move.table, *([move.legacy_table] if move.knows_legacy else [])]:
        for key in table.foreign_key_constraints:
            if key.referred_table is table:
                names = ", ".join(key.column_keys)
                raise move.fault(
                    key.column_keys[0],
                    f"{names} of {table.name} refers to {table.name} itself, and a row may be carried before the one"
                    " that it refers to",
                    "leave this foreign key out until CONTRACT, and add it then",
                )


def _names(moves: Sequence[Move]) -> None:
    for name, times in Counter(move.name for move in moves).items():
        if times > 1:
            raise errors.ConfigurationError(
                f"{times} moves are called {name!r}", hint="give each move a name of its own: Move(..., name=...)"
            )


def _rules(move: Move) -> None:
    """Refuse rules that speak of the wrong side."""
    parent = None if move.parent is None else move.parent.table
    ours = {move.table.name, *([] if parent is None else [parent.name])}
    for target, rule in (*move.computed.items(), *move.above.items()):
        for of in columns_of(rule):
            if (table := _table(of)) in ours and table != move.legacy_name:
                raise move.fault(
                    target.name,
                    f"the rule of {target.name} speaks of {table}.{of.name}, which is on the normalized side",
                    "say with legacy columns what a normalized column holds",
                )
    for name, rule in (*move.restored.items(), *move.adopted.items()):
        for of in columns_of(rule):
            if _table(of) != move.table.name:
                raise move.fault(
                    name,
                    f"the way back of {name} speaks of {of.name}, which is no column of {move.table.name}",
                    "say with normalized attributes what a legacy column holds",
                )
    for target in (*move.computed, *(of for of in move.carried.values()), *move.above):
        if target.table not in (move.table, parent):
            raise move.fault(
                target.name,
                f"{target.table.name}.{target.name} is neither a column of {move.table.name} nor of its parent",
                "fill columns of the normalized class in `columns`, and those of a parent in Parent",
            )


def _key(move: Move) -> None:
    """Refuse a key whose image tells no rows apart."""
    wanted = {of.name for of in move.keys}
    if any(of.table is not move.table for of in move.keys):
        raise move.fault(
            move.keys[0].name, f"its key is not in {move.table.name}", "declare columns of the normalized class"
        )
    if not any(wanted == {of.name for of in columns} for columns in _unique(move.table)):
        names = ", ".join(of.name for of in move.keys)
        raise move.fault(
            move.keys[0].name,
            f"{names} of {move.table.name}, the image of its key, is not declared unique",
            "declare it as primary key, or a UniqueConstraint of exactly these columns",
        )


def _filled(move: Move) -> None:
    """Refuse a table with a column that must hold a value, and that nothing fills."""
    parent = move.parent
    filled = {*move.keys, move.link, move.marker, *move.carried.values(), *move.computed, *move.above}
    tables = [move.table] if parent is None else [move.table, parent.table]
    derived = set() if parent is None else {parent.key, *parent.derived_columns}
    for of in (of for table in tables for of in table.columns):
        if (
            of in filled
            or of in derived
            or of.nullable
            or of.server_default is not None
            or of.computed is not None
            or _has_value(of)
        ):
            continue
        raise move.fault(
            of.name,
            f"nothing fills {of.table.name}.{of.name}, which is NOT NULL",
            "fill it in `columns`, or give it a server_default",
        )


def _has_value(of: Column[Any]) -> bool:
    """Whether a column holds a value that nobody gives."""
    is_constant = of.default is not None and of.default.is_scalar
    return is_constant or of.server_default is not None or of.computed is not None


def _parent(move: Move, parent: Parent) -> None:
    if move.link is None or move.link.table is not move.table:
        raise move.fault(
            parent.link.key, f"{parent.link} is no column of {move.table.name}", "link a column of the move"
        )
    wanted = {of.name for of in parent.identity}
    if not any(wanted == {of.name for of in columns} for columns in _unique(parent.table)):
        raise move.fault(
            ", ".join(sorted(wanted)),
            f"{parent.table.name} has no unique index of the columns that tell its rows apart: {sorted(wanted)}",
            "declare a UniqueConstraint of exactly the columns in `by`",
        )


def _shared(moves: Sequence[Move]) -> None:
    """Refuse moves that write one table without telling their rows apart, or see one parent in two ways."""
    for side, tables in (("normalized", [m.table.name for m in moves]), ("legacy", [m.legacy_name for m in moves])):
        for name, times in Counter(tables).items():
            if times > 1:
                raise errors.ConfigurationError(
                    f"{times} moves have the {side} table {name}, and nothing tells their rows apart",
                    hint="declare one move for it",
                    table=name,
                )
    seen: dict[str, tuple[Move, Any]] = {}
    for move in moves:
        if move.parent is None:
            continue
        first, said = seen.setdefault(move.parent.table.name, (move, _said(move.parent)))
        if said != _said(move.parent):
            raise errors.ConfigurationError(
                f"moves {first.name!r} and {move.name!r} share the parent {move.parent.table.name} and say different"
                " things of it",
                hint="let both tell its rows apart by the same columns, and derive the same columns",
                table=move.parent.table.name,
            )
    names = {move.name for move in moves}
    for move, parent in ((move, move.parent) for move in moves if move.parent is not None):
        for of, rule in parent.derived_columns.items():
            if isinstance(rule, Latest) and rule.move not in names:
                raise move.fault(
                    of.name,
                    f"{of.table.name}.{of.name} is derived from the move {rule.move!r}, which is not declared",
                    "declare that move too, or derive the column from another one",
                )


# What is read off it --------------------------------------------------------------------------------------


def _said(parent: Parent) -> Any:
    derived = {
        of.name: [rule.move, spelled(expression(rule.value)), rule.otherwise] if isinstance(rule, Latest) else []
        for of, rule in parent.derived_columns.items()
    }
    return {of.name for of in parent.identity}, derived


def _table(of: ColumnClause[Any]) -> str | None:
    return getattr(of.table, "name", None)


def _unique(table: Table) -> list[list[Column[Any]]]:
    constraints = [list(each.columns) for each in table.constraints if isinstance(each, UniqueConstraint)]
    indexes = [list(each.columns) for each in table.indexes if isinstance(each, Index) and each.unique]
    return [*constraints, *indexes, list(table.primary_key.columns)]
