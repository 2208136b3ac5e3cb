"""References: foreign keys of a table to itself, by which rows of a move refer to other rows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from consensus_orm.phase import Side

__all__ = ["Reference"]


@dataclass(frozen=True)
class Reference:
    """A foreign key of the table of one side to itself.

    Attributes:
        columns: For either side the columns that hold the key of another row, in the order of the key.
        emptied: Those of its own table that are NULL as long as the table does not have that row.
        on_delete: What it does to rows when the row that they refer to is deleted.
        on_update: What it does to them when that row gets another key.
    """

    columns: Mapping[Side, tuple[str, ...]]
    emptied: tuple[str, ...]
    on_delete: str
    on_update: str

    @property
    def cascades(self) -> bool:
        """Whether rows are deleted with the row that they refer to."""
        return self.on_delete == "CASCADE"
