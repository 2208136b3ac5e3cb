"""The repository of a move: its rows as records, written to the sides of the phase and read from the truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic

import typing_extensions

from consensus_orm import validation as check
from consensus_orm.declaration.move import Move
from consensus_orm.repository.dual_write import DualWrite, Values
from consensus_orm.repository.records import records_of
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Repository"]

R = typing_extensions.TypeVar("R", default=Any)


class Repository(Generic[R]):
    """The rows of one move within one unit of work, in every phase the same.

    Rows have the attributes of the legacy class, and the columns that the normalized side alone has. A row is given as
    a mapping or as a record, and comes back as a record: of the class that the move names, or a named tuple.

    Args:
        uow: The unit of work.
        move: The move.
    """

    def __init__(self, uow: UnitOfWork, move: Move[R]) -> None:
        self._rows = DualWrite(uow, move)
        self._records = records_of(move, uow.statements.rendering.name)

    def add(self, row: Any) -> Any:
        """Write one row, and compare the sides where there are two.

        Args:
            row: What is left out takes the default of its column, or NULL.

        Returns:
            Its key, the same on both sides.

        Raises:
            InvalidValueError: A name is not declared, or a value cannot be held.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        return self._records.told_key(self._rows.add(self._with_defaults(self._records.columns_of(row))))

    def _with_defaults(self, values: Values) -> Values:
        """A row whose fields that were left out hold the default of their column."""
        found = dict(values)
        for name, given in self._rows.sql.defaults.items():
            if name in values:
                continue
            if isinstance(given, str):
                ((found[name],),) = self._rows.uow._rows(given)
            else:
                found[name] = self._records.bound(name, given())
        return found

    def add_many(self, rows: Iterable[Any]) -> list[Any]:
        """Write several rows, in order.

        Args:
            rows: What `add` takes, several times.

        Returns:
            Their keys, in the same order.

        Raises:
            InvalidValueError: As `add` does; or they are not several.
        """
        rows = check.several("rows", rows)
        keys = self._rows.add_many(self._with_defaults(self._records.columns_of(row)) for row in rows)
        return [self._records.told_key(key) for key in keys]

    def update(self, key: Any, values: Any) -> bool:
        """Change some fields of a row, and compare the sides where there are two.

        Args:
            key: Its key, which stays.
            values: The fields that change.

        Returns:
            Whether there is such a row.

        Raises:
            InvalidValueError: As `add` does; or the key is among the values.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        changed = self._records.columns_of(values)
        stored = self._records.key_of(key)
        if self._rows.pair.key_from(self._rows.pair.key_values(stored) | changed) != stored:
            raise check.invalid(self._records.names[0], "is the key of the row, which stays", "add a row instead")
        return self._rows.update(stored, changed, self._records.storable)

    def put(self, row: Any) -> Any:
        """Write a row: change the one that has its key, or add it.

        Args:
            row: The row with its key; what is left out takes its default where it is added, and stays otherwise.

        Returns:
            Its key.

        Raises:
            InvalidValueError: As `add` does.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        values = self._records.columns_of(row)
        key = self._rows.pair.key_from(values)
        if key is None or not self._rows.update(key, values, self._records.storable):
            key = self._rows.add(self._with_defaults(values))
        return self._records.told_key(key)

    def delete(self, filters: Any = None, *, key: Any = None) -> int:
        """Delete rows from both sides: one by its key, or all that have some values.

        Args:
            filters: Fields and the values that the rows have; None is NULL.
            key: The key of one row.

        Returns:
            How many rows the source of truth lost.

        Raises:
            InvalidValueError: Neither is given, or a value cannot be held: it would be taken for that of other rows.
        """
        wanted = self._records.columns_of({} if filters is None else filters)
        if key is not None:
            wanted |= self._rows.pair.key_values(self._records.key_of(key))
        if not wanted:
            raise check.invalid("filters", "must say which rows to delete", "give a key, or fields and their values")
        return self._rows.delete(wanted)

    def get(self, key: Any) -> R | None:
        """The row under a key; None where there is none."""
        row = self._rows.get(self._records.key_of(key))
        return None if row is None else self._records.record(row)

    def get_many(self, keys: Iterable[Any]) -> list[R]:
        """The rows under some keys, in the order of the keys; those that are not there are left out."""
        wanted = [self._records.key_of(key) for key in check.several("keys", keys)]
        return [self._records.record(row) for row in self._rows.many(wanted)]

    def exists(self, key: Any) -> bool:
        """Whether there is a row under a key."""
        return self._rows.exists(self._records.key_of(key))

    def rows(
        self, filters: Any = None, *, limit: int | None = None, oldest_first: bool = False, after: Any = None
    ) -> list[R]:
        """Rows, newest first by the `newest` column of the move, ties by key.

        Args:
            filters: Fields and the values that the rows have; None is NULL.
            limit: At most so many.
            oldest_first: In the other order.
            after: The key of a row: only those that come behind it, for the next page.

        Raises:
            InvalidValueError: A name is not declared, a value cannot be held, or there is no row under `after`.
        """
        wanted = self._records.columns_of({} if filters is None else filters)
        check.flag("oldest_first", oldest_first)
        behind = None if after is None else self._records.key_of(after)
        limited = None if limit is None else check.position("limit", limit)
        found = self._rows.rows(wanted, limit=limited, oldest_first=oldest_first, after=behind)
        return [self._records.record(row) for row in found]

    def iterate(self, filters: Any = None, *, oldest_first: bool = False) -> Iterator[R]:
        """Rows one after the other, in the order of `rows`; a few are in memory at once, and the keys of all.

        Rows that are added or deleted meanwhile are left out; so rows may be changed and deleted as they come.

        Args:
            filters: As for `rows`.
            oldest_first: As for `rows`.

        Raises:
            InvalidValueError: As `rows` does.
        """
        wanted = self._records.columns_of({} if filters is None else filters)
        rows = self._rows.each(wanted, oldest_first=check.flag("oldest_first", oldest_first))
        return map(self._records.record, rows)

    def list_and_count(
        self, filters: Any = None, *, limit: int | None = None, oldest_first: bool = False, after: Any = None
    ) -> tuple[list[R], int]:
        """A page of rows, and how many rows there are in all.

        Args:
            filters: As for `rows`.
            limit: As for `rows`.
            oldest_first: As for `rows`.
            after: As for `rows`.

        Raises:
            InvalidValueError: As `rows` does.
        """
        page = self.rows(filters, limit=limit, oldest_first=oldest_first, after=after)
        return page, self.count(filters)

    def count(self, filters: Any = None) -> int:
        """How many rows have some values.

        Args:
            filters: Fields and the values that the rows have; None is NULL.
        """
        return self._rows.count(self._records.columns_of({} if filters is None else filters))

    def distinct(self, field: str) -> list[Any]:
        """The values of a field, each once, in order."""
        column = self._records.column_of(check.identifier("field", field))
        return [self._records.value(column, value) for value in self._rows.distinct(column)]
