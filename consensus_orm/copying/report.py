"""The report of a copy: what was copied, and the rows that the target cannot hold, without their contents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consensus_orm.phase import Phase

__all__ = ["CopiedTable", "CopyReport", "Unfit"]


@dataclass(frozen=True)
class Unfit:
    """A row that the target cannot hold.

    Attributes:
        table: Its table.
        key: Its key; None if the key itself cannot be held.
        column: The column that cannot be held.
        reason: Why.
        pair: The pair its reject is listed under.
        parents: The tables and keys of the parents that it refers to.
    """

    table: str
    key: Any
    column: str
    reason: str
    pair: str
    parents: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class CopiedTable:
    """One table: its rows in the target, and how many this call wrote and deleted there."""

    name: str
    rows: int
    written: int
    deleted: int


@dataclass(frozen=True)
class CopyReport:
    """What a copy did.

    Attributes:
        source: The database that was read.
        target: The database that was written.
        phase: The phase of both.
        finished: Whether the target is open; False after a call that only caught up.
        tables: What was copied.
        unfit: Rows left behind as rejects.
        passes: The number of passes through the source, the last one included.
        verified: Rows that were compared with the source in type and bytes at the end.
        locked: Seconds the write lock of the source was held; None where it was not taken.
        seconds: The duration of the copy.
    """

    source: str
    target: str
    phase: Phase
    finished: bool
    tables: tuple[CopiedTable, ...]
    unfit: tuple[Unfit, ...]
    passes: int
    verified: int
    locked: float | None
    seconds: float

    @property
    def rows(self) -> int:
        """Rows in the target."""
        return sum(table.rows for table in self.tables)
