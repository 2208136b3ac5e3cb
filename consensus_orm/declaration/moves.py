"""All moves of a database, declared once: from them follows everything.

The dual write, the comparison, the triggers, the backfill, verify, reconcile and the way back. No module of the package
but `consensus` names a consensus table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import Column, ColumnElement, Table, false, func, not_, or_

from consensus_orm import errors
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.stored_types import DIALECTS
from consensus_orm.declaration.validation import validate
from consensus_orm.phase import Side

__all__ = ["Moves"]

Columns = Callable[[str], ColumnElement[Any]]
"""Gives the column of a name, of the row in question."""


class Moves:
    """All moves of a database, in the order in which they are carried.

    Args:
        *moves: The moves.
        dialects: The kinds of databases that they are for, as SQLAlchemy calls them.

    Raises:
        ConfigurationError: They cannot be made together, or not on one of these databases.
    """

    def __init__(self, *moves: Move, dialects: Sequence[str] = DIALECTS) -> None:
        self._moves = moves
        self.dialects = tuple(dialects)
        for move in moves:
            move.dialects = self.dialects
        validate(moves, self.dialects)

    def __len__(self) -> int:
        return len(self._moves)

    def __iter__(self) -> Iterator[Move]:
        return iter(self._moves)

    def __repr__(self) -> str:
        return f"<Moves {', '.join(move.name for move in self._moves)}>"

    def __getitem__(self, name: str) -> Move:
        for move in self._moves:
            if move.name == name:
                return move
        known = ", ".join(move.name for move in self._moves)
        raise errors.InvalidValueError(f"there is no move {name!r:.40}", hint=f"use one of: {known}", field="pair")

    @cached_property
    def parents(self) -> tuple[Parent, ...]:
        """The parents, each table once."""
        found: dict[str, Parent] = {}
        for move in self:
            for parent in move.parents:
                found.setdefault(parent.table.name, parent)
        return tuple(found.values())

    @cached_property
    def schemas(self) -> tuple[str, ...]:
        """The schemas of a server that models name (`__table_args__ = {"schema": ...}`), each once.

        That of a legacy class which is given by its name is not known.
        """
        legacy = [move.legacy_table for move in self if move.knows_legacy]
        tables = [*legacy, *(move.table for move in self), *(parent.table for parent in self.parents)]
        tables += [*self.tables_beside, *self.originals]
        return tuple(dict.fromkeys(table.schema for table in tables if table.schema))

    @cached_property
    def tables_beside(self) -> tuple[Table, ...]:
        """The tables of parts and of items of all moves, each once, those that others refer to first."""
        return tuple(dict.fromkeys(table for move in self for table in move.tables_beside))

    @cached_property
    def originals(self) -> tuple[Table, ...]:
        """The tables of ours that keep the originals of what a rule cannot give back."""
        return tuple(move.originals for move in self if move.originals is not None)

    def of_tables(self, side: Side) -> tuple[Move, ...]:
        """The first move of each table of a side: what is done to a whole table is done once."""
        found: dict[str, Move] = {}
        for move in self:
            found.setdefault(move.table_name(side), move)
        return tuple(found.values())

    def sharing(self, move: Move, side: Side) -> tuple[Move, ...]:
        """The moves that have the table of a side in common with a move, itself included."""
        return tuple(other for other in self if other.table_name(side) == move.table_name(side))

    def unselected(self, move: Move, side: Side, columns: Columns) -> ColumnElement[bool]:
        """Whether a row of a side is one of no move at all; asked of the first move of its table.

        Args:
            move: The move.
            side: The side.
            columns: Gives the column of a name, of the row in question.
        """
        sharing = self.sharing(move, side)
        if sharing[0] is not move or not all(other.only[side] for other in sharing):
            return false()
        return not_(func.coalesce(or_(*(other.selected(side, columns) for other in sharing)), false()))

    def members(self, parent: Parent) -> tuple[Move, ...]:
        """The moves whose rows belong to a parent."""
        return tuple(dict.fromkeys(move for move, _ in self.links(parent)))

    def links(self, parent: Parent) -> tuple[tuple[Move, Column[Any]], ...]:
        """The moves whose rows belong to a parent, each with the column by which they do; with each of several."""
        return tuple((move, of.refers) for move in self for of in move.parents if of.table is parent.table)

    def tables(self, side: Side) -> frozenset[str]:
        """The names of the tables of a side, parents included, in small letters."""
        return self._tables[side]

    @cached_property
    def _tables(self) -> dict[Side, frozenset[str]]:
        names = {side: [move.table_name(side) for move in self] for side in Side}
        names[Side.NORMALIZED] += [parent.table.name for parent in self.parents]
        names[Side.NORMALIZED] += [table.name for table in self.tables_beside]
        return {side: frozenset(map(str.lower, of)) for side, of in names.items()}

    def said_by(self, parent: Parent) -> list[str]:
        """Columns of a parent that say something of its rows, in order; what is derived follows from them instead."""
        told = {
            of.key
            for move in self.members(parent)
            for each in move.parents
            for of in (*move.carried.values(), *move.above)
            if each.table is parent.table and of.table is each.at
        }
        return sorted({parent.key.name, *told})
