"""What a case of the gallery is: two schemas, a declaration and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import MetaData

from consensus_orm import Moves

ONE, TWO, THREE = (UUID(int=number << 100) for number in (1, 0xABCDEF, 3))
PLACES = ["a", "B", "é", '"', "\\", "[1]", "a b", "'", "", "\n", "\U0001f600", "10", "9"]


@dataclass(frozen=True)
class Case:
    """One refactoring.

    Attributes:
        moves: Its declaration.
        metadata: The tables of both sides.
        rows: Rows of each legacy table, by column, as any program may have written them; a list where there is one.
        new: A row for the repository of each move, of one where there is one; `{n}` in a text, and `...`, become a
            number that goes up.
        foreign: Statements of another program, by side: what it writes on the one that it knows; and `before` all.
        rejected: How many of the rows of each move cannot be carried.
        judged: What queries of another program give in phases that write a side.
    """

    moves: Moves
    metadata: MetaData
    rows: Any
    new: dict[str, Any]
    foreign: dict[str, Sequence[str]] = field(default_factory=dict)
    rejected: Any = 0
    judged: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows_of(self, table: str) -> Sequence[dict[str, Any]]:
        """The rows of a legacy table."""
        found: Sequence[dict[str, Any]] = self.rows.get(table, ()) if isinstance(self.rows, dict) else self.rows
        return found

    def new_in(self, move: str, n: int) -> dict[str, Any]:
        """The nth row for a repository."""
        row = self.new[move] if len(self.moves) > 1 else self.new
        made = {name: value.format(n=n) if isinstance(value, str) else value for name, value in row.items()}
        return {name: n if value is ... else value for name, value in made.items()}

    def rejected_of(self, move: str) -> int:
        """How many of the rows of a move cannot be carried."""
        found: int = self.rejected.get(move, 0) if isinstance(self.rejected, dict) else self.rejected
        return found
