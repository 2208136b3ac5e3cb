"""Reads that are answered from the source of truth of the phase, and compared with the other side (rule 10)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.declaration.move import Move
from consensus_orm.events import ComparisonEvent
from consensus_orm.ledgers import backfill_progress
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import parameter
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["RoutedReads", "Values", "is_of_the_whole"]

Values = dict[str, Any]
"""A row under its legacy column names."""

_OF_THE_WHOLE = (
    errors.DatabaseBusyError,
    errors.DatabaseFullError,
    errors.KeysUsedUpError,
    errors.CorruptDatabaseError,
    errors.ReadOnlyDatabaseError,
)
"""Failures of the database as a whole: the unit of work fails, whichever side it was writing."""

INSUFFICIENT_PRIVILEGE = "42501"
"""The SQLSTATE of a role that lacks a right, perhaps on one side alone."""


def is_of_the_whole(error: errors.StorageError) -> bool:
    """Whether a failure is one of the database as a whole, so that the unit of work fails, whichever side it wrote."""
    return isinstance(error, _OF_THE_WHOLE) and getattr(error, "sqlstate", None) != INSUFFICIENT_PRIVILEGE


STREAMED = 200
"""Rows that are in memory at once while rows are given one after the other."""


class RoutedReads:
    """The rows of one move within one unit of work, as they are read.

    Args:
        uow: The unit of work.
        pair: The move.
    """

    def __init__(self, uow: UnitOfWork, pair: Move) -> None:
        self.uow = uow
        self.pair = pair
        self.sql = uow.statements[pair]

    def get(self, key: Any) -> tuple[Any, ...] | None:
        """The row under a key, in the order of `pair.fields`; None where there is none."""
        rows = self._read(lambda side: self.sql.get(side), {"_key": key})
        return rows[0] if rows else None

    def rows(
        self,
        filters: Values,
        *,
        limit: int | None = None,
        more: tuple[str, ...] = (),
        oldest_first: bool = False,
        after: Any = None,
    ) -> list[tuple[Any, ...]]:
        """Rows in the order of `pair.fields`, newest first, ties by key.

        Args:
            filters: Legacy column names and the values that the rows have.
            limit: At most so many.
            more: Columns of the parents to read as well, after the fields.
            oldest_first: In the other order.
            after: The key of a row; rows that come behind it in that order.

        Raises:
            InvalidValueError: There is no row under `after`.
        """
        found = self._found(filters, limit=limit, more=more, oldest_first=oldest_first, after=after)
        if after is not None and not found and not self.exists(after):
            raise check.invalid("after", "is the key of no row, which may have been deleted", "begin with a first page")
        return found

    def _found(
        self, filters: Values, *, limit: int | None = None, after: Any = None, **options: Any
    ) -> list[tuple[Any, ...]]:
        """Rows that have some values, in order; the options are those of `ReadStatements.read`."""
        names, limited, behind = tuple(filters), limit is not None, after is not None
        empty = frozenset(name for name, value in filters.items() if value is None)
        parameters = {parameter(name): value for name, value in filters.items()}
        statement = partial(self.sql.read, filters=names, limited=limited, empty=empty, behind=behind, **options)
        return self._read(statement, parameters | {"_limit": limit, "_after": after})

    def many(self, keys: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows under some keys, in the order of the keys; those that are not there are left out."""
        found = {
            self.pair.key_of_row(row): row for row in self._read(self.sql.get_many, {"_keys": json.dumps(list(keys))})
        }
        return [found[key] for key in dict.fromkeys(keys) if key in found]

    def exists(self, key: Any) -> bool:
        """Whether there is a row under a key; nothing else of it is read."""
        return bool(self.uow._rows(self.sql.present(self._truth), {"_keys": json.dumps([key])}))

    def keys(self, filters: Values, *, more: tuple[str, ...] = (), oldest_first: bool = False) -> list[Any]:
        """The keys of rows, newest first; the arguments are those of `rows`."""
        return [key for (key,) in self._found(filters, more=more, oldest_first=oldest_first, keys_alone=True)]

    def each(self, filters: Values, *, oldest_first: bool = False) -> Iterator[tuple[Any, ...]]:
        """Rows one after the other, of which a few are in memory at once, and the keys of all.

        Rows that are deleted meanwhile are left out, and those added meanwhile, too.

        Args:
            filters: As for `rows`.
            oldest_first: As for `rows`.
        """
        keys = self.keys(filters, oldest_first=oldest_first)
        for first in range(0, len(keys), STREAMED):
            yield from self.many(keys[first : first + STREAMED])

    def count(self, filters: Values) -> int:
        """How many rows have the given values."""
        parameters = {parameter(name): value for name, value in filters.items()}
        empty = frozenset(name for name, value in filters.items() if value is None)
        rows = self.uow._rows(self.sql.count(self._truth, tuple(filters), empty), parameters)
        return rows[0][0] if rows else 0

    def distinct(self, column: str) -> list[Any]:
        """The values of a column, each once, in order."""
        return [value for (value,) in self.uow._rows(self.sql.distinct(self._truth, column))]

    def parents(self, filters: Values, *, limit: int | None = None, **options: Any) -> list[tuple[Any, ...]]:
        """Identity and keys of the newest rows of the parents whose rows have the given values, newest first.

        Args:
            filters: As for `rows`.
            limit: At most so many.
            **options: Those of `Statements.parents_by_age`.
        """
        (parent,) = self.pair.parents
        parameters = {parameter(name): value for name, value in filters.items()}
        sql = self.uow.statements.parents_by_age(
            parent, self._truth, tuple(filters), limited=limit is not None, **options
        )
        return self.uow._rows(sql, parameters | {"_limit": limit})

    @property
    def _truth(self) -> Side:
        # A file that nobody prepared can hold nothing but legacy rows.
        return self.uow.phase.truth if self.uow.prepared else Side.LEGACY

    def _read(self, statement: Callable[[Side], str], parameters: Values) -> list[tuple[Any, ...]]:
        truth = self._truth
        rows = self.uow._rows(statement(truth), parameters)
        share = self.uow.settings.shadow_reads
        if share and self.uow.prepared and self.uow.phase.compares and random.random() < share:
            try:
                with self.uow._connected.attempt():
                    shadow = self.uow._rows(statement(truth.other), parameters)
            except errors.StorageError as error:
                if is_of_the_whole(error):
                    raise
                return rows  # status names it, and each write keeps a mismatch of it
            self._shadow_read(rows, shadow)
        return rows

    def _shadow_read(self, rows: list[tuple[Any, ...]], shadow: list[tuple[Any, ...]]) -> None:
        """Compare a read of both sides; what differs is confirmed under the lock after this unit of work."""
        self.uow._tell(ComparisonEvent(self.pair.name, "shadow_read", len(rows)))
        width, key = len(self.pair.legacy_columns), self.pair.key_of_row
        # What is kept on one side only has no counterpart.
        seen, other = ({key(row): row[:width] for row in side} for side in (rows, shadow))
        doubtful = {key for key in seen.keys() | other.keys() if seen.get(key) != other.get(key)}
        if doubtful and self._is_being_carried():
            doubtful &= other.keys()  # what the backfill has not come to yet is no mismatch
        if doubtful:
            self.uow._doubt(self.pair, doubtful)

    def _is_being_carried(self) -> bool:
        """Whether legacy rows may still stand without a counterpart, as of this unit of work."""
        progress = backfill_progress.of(self.uow, self.pair)
        return self._truth is Side.LEGACY and not (progress and progress.finished)
