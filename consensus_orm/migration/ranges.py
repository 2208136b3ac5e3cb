"""Ranges of keys: a table is compared in them, and counted without any in the same snapshot.

Whatever the ranges do, a row that lies in none is then missed out loud.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

__all__ = ["CHUNK_ROWS", "Counted", "Look", "Moment", "Ranges", "Readers", "Statements"]

CHUNK_ROWS = 5000
"""Rows compared by one statement; between 1000 and 10,000 the rate is the same (measured)."""

Rows = list[tuple[Any, ...]]

Look = Callable[..., Rows]
"""Runs a statement and gives its rows: in one snapshot, or each by itself."""

Moment = Callable[[], AbstractContextManager[Look]]
"""Opens a snapshot for several statements."""

Chunk = tuple[dict[str, Any], int]
"""The first and last key of a range, as parameters, and how many rows it has in the order of keys."""


@dataclass(frozen=True)
class Counted:
    """The rows of one table, counted without any range, and what became of them.

    Attributes:
        table: The name of the table.
        rows: All of its rows.
        looked_at: Those in the ranges of keys that were looked through.
        keyless: Those that no range can hold, because they cannot be named by their key: each is a reject.
    """

    table: str
    rows: int
    looked_at: int
    keyless: int

    @property
    def missed(self) -> int:
        """Rows that the verify cannot account for."""
        return abs(self.rows - self.looked_at - self.keyless)


@dataclass(frozen=True)
class Statements:
    """The statements on one table.

    Attributes:
        table: The name of the table.
        bounds: Finds the first range; finds the next one behind it.
        compare: Compares a range: how many rows it has, and the keys of the wrong ones as JSON.
        between: Counts the rows of a range.
        rows: Counts all rows.
        keyless: Counts those that cannot be named by their key; None where none may be.
    """

    table: str
    bounds: tuple[str, str]
    compare: str
    between: str
    rows: str
    keyless: str | None = None


class Ranges:
    """The ranges of one table, as of one snapshot.

    Args:
        look: Looks into the snapshot.
        statements: The statements on the table.
    """

    def __init__(self, look: Look, statements: Statements) -> None:
        self.look = look
        self.sql = statements
        self.rows: int = look(statements.rows)[0][0]
        self._looked_at = 0
        self._ahead: tuple[list[Chunk], int] | None = None

    def look_ahead(self) -> None:
        """Find and count all of them now, while the snapshot lasts."""
        chunks = [(chunk, int(self.look(self.sql.between, chunk)[0][0])) for chunk, _ in self]
        self._ahead = chunks, self._keyless(sum(rows for _, rows in chunks))

    def __iter__(self) -> Iterator[Chunk]:
        if self._ahead is not None:
            yield from self._ahead[0]
            return
        sql, after = self.sql.bounds[0], None
        while (found := self.look(sql, {"_after": after, "_rows": CHUNK_ROWS})[0])[2]:
            yield {"_first": found[0], "_last": found[1]}, found[2]
            sql, after = self.sql.bounds[1], found[1]

    def settled(self, chunk: Chunk, compared: Rows, moment: Moment) -> tuple[list[Any], int]:
        """The keys of the wrong rows of a range that was compared, and how many rows were.

        Args:
            chunk: The range.
            compared: What the comparison gave.
            moment: Opens the snapshot, or a later one where it is gone.
        """
        ((rows, wrong),) = compared
        bounds, expected = chunk
        if rows != expected:  # others have written since, or the comparison sees other rows than there are
            with moment() as look:
                ((rows, wrong),) = look(self.sql.compare, bounds)
                there = look(self.sql.between, bounds)[0][0]
            rows += 0 if self._ahead is None else expected - there
        self._looked_at += rows
        return json.loads(wrong or "[]"), rows

    def _keyless(self, looked_at: int) -> int:
        """Rows that cannot be named; all rows are looked at for them, so only where some are left over."""
        if self.sql.keyless is None or looked_at == self.rows:
            return 0
        return int(self.look(self.sql.keyless)[0][0])

    @property
    def counted(self) -> Counted:
        """What became of all rows, once every range was compared."""
        keyless = self._keyless(self._looked_at) if self._ahead is None else self._ahead[1]
        return Counted(self.sql.table, self.rows, self._looked_at, keyless)


class Readers:
    """What compares the ranges of a table, several at a time; without any, what finds the ranges does.

    Args:
        looks: Each compares one range at a time.
        moment: Opens a snapshot for a second look.
    """

    def __init__(self, looks: list[Look], moment: Moment) -> None:
        self._looks = looks
        self._moment = moment

    def compare(self, ranges: Ranges) -> Iterator[tuple[list[Any], int]]:
        """Compare every range; the keys of its wrong rows, and how many were compared."""
        for chunk, compared in self._compared(ranges):
            yield ranges.settled(chunk, compared, self._moment)

    def _compared(self, ranges: Ranges) -> Iterator[tuple[Chunk, Rows]]:
        if not self._looks:
            yield from ((chunk, ranges.look(ranges.sql.compare, chunk[0])) for chunk in ranges)
            return
        free: SimpleQueue[Look] = SimpleQueue()
        for look in self._looks:
            free.put(look)

        def run(bounds: dict[str, Any]) -> Rows:
            look = free.get()
            try:
                return look(ranges.sql.compare, bounds)
            finally:
                free.put(look)

        with ThreadPoolExecutor(len(self._looks)) as pool:
            ahead: deque[tuple[Chunk, Future[Rows]]] = deque()
            for chunk in ranges:
                ahead.append((chunk, pool.submit(run, chunk[0])))
                if len(ahead) > 2 * len(self._looks):
                    first, done = ahead.popleft()
                    yield first, done.result()
            yield from ((chunk, done.result()) for chunk, done in ahead)
