"""The passes of a copy: each reads the source in the order of keys, and makes the target equal.

The first pass fills the target. Later ones read the source again, and the target only where the digest of a range of
keys has changed. So the last pass, under the lock, costs one read of the source, or nothing if nothing was written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from consensus_orm import errors
from consensus_orm.copying.reading import in_utf16, rows_between
from consensus_orm.copying.report import CopiedTable, Unfit
from consensus_orm.copying.source import Source
from consensus_orm.copying.tables import Copied
from consensus_orm.copying.target import Target
from consensus_orm.copying.values import Checker, Values, checker, digest
from consensus_orm.progress import Tally, Watch

__all__ = ["Passes", "Range", "Sieve"]

CHUNK_BYTES = 4 * 2**20
"""The size of a chunk, which limits the number of large rows in it."""

FIRST_ROWS = 8
"""Rows of the first chunk, before their size is known."""

INDEXED_BYTES = 2600
"""An index entry of PostgreSQL takes at most 2704 bytes after compression; this limit holds without it."""


@dataclass(frozen=True)
class Range:
    """The result of a pass for a range of keys.

    Attributes:
        after: The key before it; None for the start.
        upto: Its last key; None for the end.
        count: Rows of the source.
        seen: Digest of all of them; empty if the target does not hold them yet.
        kept: Digest of those that the target holds.
        held: Their number.
        unfit: The others.
    """

    after: Any = None
    upto: Any = None
    count: int = 0
    seen: bytes = b""
    kept: bytes = b""
    held: int = 0
    unfit: tuple[Unfit, ...] = ()


Missing = dict[int, frozenset[Any]]
"""For each link of a table the keys of parents that it refers to, and that are not there."""


class Sieve:
    """Separates the rows of a table that the target can hold from the others.

    Args:
        table: The table.
        source: The kind of database it comes from.
        target: The kind of database it goes to.
        indexes: Columns that are indexed together.
        missing: For each link of the table the keys of parents that are not in the target.
        utf16: Whether the source stores text in UTF-16.
    """

    def __init__(
        self,
        table: Copied,
        source: str,
        target: str,
        indexes: list[frozenset[str]],
        missing: Missing,
        *,
        utf16: bool = False,
    ) -> None:
        self.table = table
        self.missing = missing
        checks = ((place, checker(field, source, target, utf16=utf16)) for place, field in enumerate(table.fields))
        self.checks: list[tuple[int, Checker]] = [(place, check) for place, check in checks if check is not None]
        names = [field.name for field in table.fields]
        typed = source != target and target == "postgresql"
        self.indexes = [[n for n, name in enumerate(names) if name in index] for index in indexes] if typed else []

    def sift(self, rows: list[Values]) -> tuple[list[Values], tuple[Unfit, ...]]:
        """The rows that the target can hold, and why it cannot hold the others."""
        odd = [found for row in rows if (found := self._unfit(row)) is not None]
        if not odd:
            return rows, ()
        keys = {found.key for found in odd}
        return [row for row in rows if self.table.key_of(row) not in keys], tuple(odd)

    def _unfit(self, row: Values) -> Unfit | None:
        for place, check in self.checks:
            if (reason := check(row[place])) is not None:
                return self._said(row, place, reason)
        for places in self.indexes:
            if sum(_size(row[place]) for place in places) > INDEXED_BYTES:
                longest = max(places, key=lambda place: _size(row[place]))
                return self._said(row, longest, "longer than an index of PostgreSQL may take")
        for place, parent in self.table.links:
            if row[place] in self.missing[place]:
                return self._said(row, place, f"its row in {parent} is not there, or is not copied")
        return None

    def _said(self, row: Values, place: int, reason: str) -> Unfit:
        parents = tuple((parent, row[link]) for link, parent in self.table.links if row[link] is not None)
        key, column = self.table.key_of(row), self.table.fields[place].name
        return Unfit(self.table.name, key, column, reason, self.table.pair, parents)


def _size(value: Any) -> int:
    return len(value.encode("utf-8", "surrogateescape")) if isinstance(value, str) else 0


class Passes:
    """The passes of one copy.

    Args:
        source: The source.
        kind: The kind of the target.
        tables: The tables, parents first.
        indexes: Columns that are indexed together, by table.
        progress: Called after each chunk.
    """

    def __init__(
        self,
        source: Source,
        kind: str,
        tables: list[Copied],
        indexes: dict[str, list[frozenset[str]]],
        progress: Watch,
    ) -> None:
        self.source = source
        self.kind = kind
        self.tables = tables
        self.indexes = indexes
        self.progress = progress
        self.known: dict[str, list[Range]] = {}
        self.written = dict.fromkeys((table.name for table in tables), 0)
        self.deleted = dict(self.written)
        self.missing: dict[str, Missing] = {}
        self.postponed = False
        self.changed = 0
        self.done = 0

    @property
    def unfit(self) -> list[Unfit]:
        """Rows that the target cannot hold, by the last pass."""
        return [odd for table in self.tables for range_ in self.known.get(table.name, ()) for odd in range_.unfit]

    def report(self) -> tuple[CopiedTable, ...]:
        """What was copied of each table so far."""
        return tuple(
            CopiedTable(name, sum(r.held for r in self.known.get(name, ())), self.written[name], self.deleted[name])
            for name in self.written
        )

    def run(self, target: Target | None, what: str = "") -> None:
        """Read the source once.

        Args:
            target: The target; None only looks for rows that it cannot hold.
            what: A prefix for the names of tables in the progress.
        """
        self.postponed, self.changed = False, 0
        self.done += target is not None
        missing: dict[str, frozenset[Any]] = {}
        utf16 = in_utf16(self.source)
        for table in self.tables:
            orphans = self.source.orphans(table)
            gone = {place: missing.get(parent, frozenset()) | orphans[place] for place, parent in table.links}
            sieve = Sieve(table, self.source.kind, self.kind, self.indexes.get(table.name, []), gone, utf16=utf16)
            tally = Tally(self.progress, f"{what}{table.name}")
            tally.expect(lambda: self.source.count(table))  # noqa: B023 - called at once
            found = [*self._strange(table), *self._ranges(table, sieve, target, tally)]
            self.missing[table.name] = gone
            missing[table.name] = frozenset(odd.key for range_ in found for odd in range_.unfit)
            self.known[table.name] = found

    def _strange(self, table: Copied) -> Iterator[Range]:
        """Rows without a place in the order of keys, if any, as a range of which the target holds none."""
        if count := self.source.strange_keys(table):
            kind = "whole number" if table.is_numbered else "text" if table.width == 1 else "key of texts and numbers"
            odd = Unfit(table.name, None, table.key[0].name, f"{count} keys that are no {kind}", table.pair)
            yield Range(count=count, seen=b"strange", kept=b"", unfit=(odd,))

    def _ranges(self, table: Copied, sieve: Sieve, target: Target | None, tally: Tally) -> Iterator[Range]:
        size = min(FIRST_ROWS, self.source.settings.chunk_rows)
        for was in [r for r in self.known.get(table.name, ()) if r.seen != b"strange"] or [Range()]:
            after = was.after
            while True:
                limit = size + was.count
                rows = rows_between(self.source, table, after, was.upto, limit)
                upto = table.key_of(rows[-1]) if len(rows) == limit else was.upto
                yield self._settled(Range(after, upto, len(rows), digest(rows)), rows, was, sieve, target)
                tally.add(len(rows))
                size = self._fitting(rows, size)
                if len(rows) < limit:
                    break
                after = upto

    def _fitting(self, rows: list[Values], size: int) -> int:
        """The number of rows of the next chunk: as many as fit, and at most twice as many as in the last."""
        heavy = sum(len(value) for row in rows for value in row if isinstance(value, str | bytes))
        fitting = size * 2 if not heavy else len(rows) * CHUNK_BYTES // heavy
        return max(1, min(size * 2, fitting, self.source.settings.chunk_rows))

    def _settled(self, now: Range, rows: list[Values], was: Range, sieve: Sieve, target: Target | None) -> Range:
        same = (was.after, was.upto, was.seen) == (now.after, now.upto, now.seen)
        if same and sieve.missing == self.missing.get(sieve.table.name):
            return was
        fit, odd = sieve.sift(rows)
        kept = now.seen if not odd else digest(fit)
        seen = now.seen
        if target is None:
            seen = b""
        else:
            try:
                written, deleted = target.settle(sieve.table, now.after, now.upto, fit)
            except errors.StorageError as error:
                if not _collides(error):
                    raise
                seen, self.postponed = b"", True
            else:
                self.written[sieve.table.name] += written
                self.deleted[sieve.table.name] += deleted
                self.changed += written + deleted
        return Range(now.after, now.upto, now.count, seen, kept, len(fit), odd)

    def verify(self, target: Target) -> int:
        """Compare every row of the target with the source in type and bytes; returns the number of rows.

        Raises:
            CopyError: A row differs.
        """
        compared = 0
        for table in self.tables:
            tally = Tally(self.progress, f"verifying {table.name}")
            tally.expect(lambda: target.count(table))  # noqa: B023 - called at once
            for range_ in self.known[table.name]:
                if range_.seen == b"strange":
                    continue
                rows = target.rows(table, range_.after, range_.upto)
                if len(rows) != range_.held or digest(rows) != range_.kept:
                    raise errors.CopyError(
                        f"{table.name} differs from the source after key {range_.after!r:.40},"
                        f" up to {range_.upto!r:.40}",
                        hint="the source is untouched; look for triggers in the target, and copy to an empty database",
                        table=table.name,
                    )
                compared += len(rows)
                tally.add(len(rows))
        return compared


def _collides(error: errors.StorageError) -> bool:
    """Whether a row collides with one that a later pass removes from the target."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return bool(code & 0xFF == sqlite3.SQLITE_CONSTRAINT)
    return getattr(error, "sqlstate", None) == "23505"
