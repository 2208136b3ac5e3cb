"""All moves of a database, declared once: from them follows everything.

The dual write, the comparison, the triggers, the backfill, verify, reconcile and the way back. No module of the package
but `consensus` names a consensus table.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from sqlalchemy import Table

from consensus_orm import errors
from consensus_orm.declaration.move import Move, Parent
from consensus_orm.declaration.validation import validate
from consensus_orm.phase import Side

__all__ = ["Moves"]


class Moves:
    """All moves of a database, in the order in which they are carried.

    Args:
        *moves: The moves.

    Raises:
        ConfigurationError: They cannot be made together.
    """

    def __init__(self, *moves: Move) -> None:
        self._moves = moves
        validate(moves)

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
            if move.parent is not None:
                found.setdefault(move.parent.table.name, move.parent)
        return tuple(found.values())

    @cached_property
    def schemas(self) -> tuple[str, ...]:
        """The schemas of a server that models name (`__table_args__ = {"schema": ...}`), each once.

        That of a legacy class which is given by its name is not known.
        """
        legacy = [move.legacy_table for move in self if move.knows_legacy]
        tables = [*legacy, *(move.table for move in self), *(parent.table for parent in self.parents), *self.originals]
        return tuple(dict.fromkeys(table.schema for table in tables if table.schema))

    @cached_property
    def originals(self) -> tuple[Table, ...]:
        """The tables of ours that keep the originals of what a rule cannot give back."""
        return tuple(move.originals for move in self if move.originals is not None)

    def members(self, parent: Parent) -> tuple[Move, ...]:
        """The moves whose rows belong to a parent."""
        return tuple(move for move in self._moves if move.parent is not None and move.parent.table is parent.table)

    def tables(self, side: Side) -> frozenset[str]:
        """The names of the tables of a side, parents included, in small letters."""
        return self._tables[side]

    @cached_property
    def _tables(self) -> dict[Side, frozenset[str]]:
        names = {side: [move.table_name(side) for move in self] for side in Side}
        names[Side.NORMALIZED] += [parent.table.name for parent in self.parents]
        return {side: frozenset(map(str.lower, of)) for side, of in names.items()}

    def said_by(self, parent: Parent) -> list[str]:
        """Columns of a parent that say something of its rows, in order; what is derived follows from them instead."""
        members = self.members(parent)
        said = {of.key for move in members for of in (*move.carried.values(), *move.above) if of.table is parent.table}
        return sorted({parent.key.name, *said})
