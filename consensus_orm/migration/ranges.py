"""Ranges of keys, in which tables are carried and compared.

A comparison also counts each table without ranges, in the same snapshot: a row that lies in no range is reported as
missed, whatever is wrong with the ranges.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple

from consensus_orm.declaration.move import Move
from consensus_orm.ledgers.binding import Key
from consensus_orm.phase import Side
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["CHUNK_ROWS", "Counted", "Look", "Moment", "Range", "Ranges", "Readers", "TableStatements", "next_range"]

CHUNK_ROWS = 5000
"""Rows compared by one statement; between 1000 and 10,000 the rate is the same (measured)."""

Rows = list[tuple[Any, ...]]

Look = Callable[..., Rows]
"""Runs a statement and returns its rows: in one snapshot, or each by itself."""

Moment = Callable[[], AbstractContextManager[Look]]
"""Opens a snapshot for several statements."""


class Range(NamedTuple):
    """The first and last key of a range, and how many rows it has in the order of keys."""

    first: Key
    last: Key
    rows: int

    @property
    def bounds(self) -> dict[str, Key]:
        """The parameters of a statement on the range."""
        return {"_first": self.first, "_last": self.last}


def next_range(uow: UnitOfWork, pair: Move, side: Side, after: Key, rows: int) -> Range | None:
    """The next range of a side behind a key, or the first one; None where there are no more rows."""
    statement = uow.statements[pair].next_chunk(side)[0 if after is None else 1]
    found = Range(*uow._rows(statement, {"_after": after, "_rows": rows})[0])
    return found if found.rows else None


@dataclass(frozen=True)
class Counted:
    """The rows of one table, counted without any range, and what became of them.

    Attributes:
        table: The name of the table.
        rows: All of its rows.
        looked_at: Those in the ranges that were compared.
        keyless: Those without a usable key, which no range can hold: each is a reject.
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
class TableStatements:
    """The statements that compare one table.

    Attributes:
        table: The name of the table.
        bounds: Finds the first range; finds the next one behind it.
        compare: Compares a range: how many rows it has, and the keys of the wrong ones as JSON.
        between: Counts the rows of a range.
        rows: Counts all rows.
        keyless: Counts those without a usable key; None where none can exist.
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

    def __init__(self, look: Look, statements: TableStatements) -> None:
        self.look = look
        self.sql = statements
        self.rows: int = look(statements.rows)[0][0]
        self._looked_at = 0
        self._ahead: tuple[list[Range], int] | None = None

    def look_ahead(self) -> None:
        """Find and count all of them now, while the snapshot lasts."""
        found = [of._replace(rows=int(self.look(self.sql.between, of.bounds)[0][0])) for of in self]
        self._ahead = found, self._keyless(sum(of.rows for of in found))

    def __iter__(self) -> Iterator[Range]:
        if self._ahead is not None:
            yield from self._ahead[0]
            return
        sql, after = self.sql.bounds[0], None
        while (found := Range(*self.look(sql, {"_after": after, "_rows": CHUNK_ROWS})[0])).rows:
            yield found
            sql, after = self.sql.bounds[1], found.last

    def settled(self, of: Range, compared: Rows, moment: Moment) -> tuple[list[Key], int]:
        """The keys of the wrong rows of a range that was compared, and how many rows were.

        Where others have written meanwhile the range is compared again, in a later snapshot where this one is gone.
        """
        ((rows, wrong),) = compared
        if rows != of.rows:  # others have written since, or the comparison sees other rows than there are
            with moment() as look:
                ((rows, wrong),) = look(self.sql.compare, of.bounds)
                there = look(self.sql.between, of.bounds)[0][0]
            rows += 0 if self._ahead is None else of.rows - there
        self._looked_at += rows
        return json.loads(wrong or "[]"), rows

    def _keyless(self, looked_at: int) -> int:
        """Rows without a usable key: counted only where rows are left over, since it scans the table."""
        if self.sql.keyless is None or looked_at == self.rows:
            return 0
        return int(self.look(self.sql.keyless)[0][0])

    @property
    def counted(self) -> Counted:
        """What became of all rows, once every range was compared."""
        keyless = self._keyless(self._looked_at) if self._ahead is None else self._ahead[1]
        return Counted(self.sql.table, self.rows, self._looked_at, keyless)


class Readers:
    """Units of work that compare the ranges of a table, several at a time; without them, `Ranges` compares in turn.

    Args:
        looks: Each compares one range at a time.
        moment: Opens a snapshot for a second look.
    """

    def __init__(self, looks: list[Look], moment: Moment) -> None:
        self._looks = looks
        self._moment = moment

    def compare(self, ranges: Ranges) -> Iterator[tuple[list[Key], int]]:
        """Compare every range; yields the keys of its wrong rows, and how many rows were compared."""
        for of, compared in self._compared(ranges):
            yield ranges.settled(of, compared, self._moment)

    def _compared(self, ranges: Ranges) -> Iterator[tuple[Range, Rows]]:
        if not self._looks:
            yield from ((of, ranges.look(ranges.sql.compare, of.bounds)) for of in ranges)
            return
        free: SimpleQueue[Look] = SimpleQueue()
        for look in self._looks:
            free.put(look)

        def run(of: Range) -> Rows:
            look = free.get()
            try:
                return look(ranges.sql.compare, of.bounds)
            finally:
                free.put(look)

        with ThreadPoolExecutor(len(self._looks)) as pool:
            ahead: deque[tuple[Range, Future[Rows]]] = deque()
            for of in ranges:
                ahead.append((of, pool.submit(run, of)))
                if len(ahead) > 2 * len(self._looks):
                    first, done = ahead.popleft()
                    yield first, done.result()
            yield from ((of, done.result()) for of, done in ahead)
