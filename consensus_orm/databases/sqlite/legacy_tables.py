"""The legacy tables of a SQLite file: dropped at CONTRACT, and brought back exactly as they were.

Their definitions are saved verbatim, and the tables are renamed, emptied in chunks and dropped. The way back creates
them from their definitions; rows that the normalized side does not have are saved by value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection

from consensus_orm import errors
from consensus_orm.databases import saved_schema
from consensus_orm.databases.base import LegacyTables, SavedRow, Transaction
from consensus_orm.databases.engine import translated
from consensus_orm.databases.guard_record import ours
from consensus_orm.databases.saved_rows import aside, dropped, own_name, unsafe
from consensus_orm.databases.saved_schema import Entry
from consensus_orm.databases.sqlite.saved_schema import bound, make
from consensus_orm.declaration.move import Move
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import quoted

if TYPE_CHECKING:
    import sqlite3

    from alembic.operations import Operations


__all__ = ["SQLiteLegacyTables", "objects", "operations"]

OBJECTS = (
    "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL"
    " ORDER BY rowid"
)


def objects(uow: Transaction, table: str) -> Iterator[tuple[str, str, str]]:
    """Type, name and definition of a table, of its indexes, and of the triggers of other programs on it."""
    known = {trigger.name for trigger in ours(uow)}
    for kind, name, _, sql in uow._rows(OBJECTS, (table,)):
        if kind != "trigger" or name not in known:
            yield kind, name, sql


def operations(uow: Transaction) -> Operations:
    """Alembic's operations in the transaction of a unit of work."""
    from alembic.migration import MigrationContext  # costs 50 ms, and only these steps need it
    from alembic.operations import Operations

    connection = Connection(uow.engine, connection=uow._pooled)
    connection.begin()
    return Operations(MigrationContext.configure(connection))


def _number(kind: str, table: str, sequence: object) -> int | None:
    """A saved sequence; SQLite does not enforce the type of the column, so it may hold any value.

    Raises:
        UnsafeDefinitionError: It is not a number.
    """
    if sequence is None or isinstance(sequence, int):
        return sequence
    raise unsafe(kind, table)


_REFERENCES = (
    'SELECT DISTINCT f."from" FROM pragma_foreign_key_list(:name) AS f JOIN pragma_table_info(:name) AS c'
    ' ON c.name = f."from" COLLATE NOCASE WHERE f."table" = :name COLLATE NOCASE AND c.pk = 0 AND c."notnull" = 0'
)
"""The columns of a table that refer to other rows of it, and can be NULL."""


class SQLiteLegacyTables(LegacyTables):
    """Drops the legacy tables of a SQLite file, and brings them back."""

    values = staticmethod(bound)

    def save(self, uow: Transaction, pair: Move) -> list[tuple[str, str, str, int | None]]:
        """What is needed to create a table again: type, name, definition and sequence of each of its objects."""
        name = pair.legacy_table.name
        sequence = uow.catalog.sequence(uow, name)
        return [(kind, own, sql, sequence) for kind, own, sql in objects(uow, name)]

    def put_away(self, uow: Transaction, pair: Move) -> None:
        """Rename a table out of the way, which takes milliseconds whatever its size."""
        self._rename(uow, pair.legacy_name, dropped(pair.legacy_name))

    def set_aside(self, uow: Transaction, pair: Move) -> str:
        """Rename a table that cannot be used any more, with its rows, and drop its indexes."""
        name = aside(pair.legacy_name, uow.catalog.tables(uow))
        self._rename(uow, pair.legacy_name, name)
        for kind, index, _ in list(objects(uow, name)):
            if kind == "index":
                uow._execute(f"DROP INDEX {quoted(index)}")  # the new table needs its name
        return name

    def _rename(self, uow: Transaction, name: str, to: str) -> None:
        op = operations(uow)
        for (trigger,) in uow._rows(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE", (name,)
        ):
            uow._execute(f"DROP TRIGGER {quoted(trigger)}")  # it would fire while the table is emptied
        with self._only_the_table_itself(uow):
            op.rename_table(name, to)

    @contextlib.contextmanager
    def _only_the_table_itself(self, uow: Transaction) -> Iterator[None]:
        """Rename a table as SQLite did before 3.25.

        Since then SQLite also rewrites the views and triggers of other programs, which would then name the renamed
        table for ever, and refuses to rename a table while one of them is broken.
        """
        uow._execute("PRAGMA legacy_alter_table = ON")
        try:
            yield
        finally:
            uow._execute("PRAGMA legacy_alter_table = OFF")

    def away(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and still have to be emptied."""
        return self.kept(uow)

    def old_place(self, uow: Transaction, pair: Move) -> str:
        """The quoted name of a table."""
        return quoted(pair.legacy_name)

    def kept(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and are still there: once emptied, they are dropped."""
        there = uow.catalog.tables(uow)
        # A later one may refer to an earlier one, and is emptied before it.
        names = [dropped(pair.legacy_name) for pair in reversed(uow.statements.moves.of_tables(Side.LEGACY))]
        return [name for name in names if name.lower() in there]

    def dependents(self, uow: Transaction, name: str) -> list[str]:
        """Nothing: views find their tables by name, and the gate to CONTRACT refuses foreign keys."""
        return []

    def drop(self, uow: Transaction, name: str) -> None:
        """Drop a renamed table for good."""
        operations(uow).drop_table(name)

    def empty(self, uow: Transaction, name: str, rows: int) -> int:
        """Delete at most so many rows of a renamed table, and drop the table if it has none.

        Where rows refer to other rows of the table, these references are emptied first.
        """
        row = ", ".join(self._row_identity(uow, name))
        for (column,) in uow._rows(_REFERENCES, {"name": name}):
            referring = f"SELECT {row} FROM {quoted(name)} WHERE {quoted(column)} IS NOT NULL LIMIT ?"
            empty = f"UPDATE {quoted(name)} SET {quoted(column)} = NULL WHERE ({row}) IN ({referring})"
            if emptied := uow._execute(empty, (rows,)).rowcount:
                return int(emptied)
        chunk = f"SELECT {row} FROM {quoted(name)} LIMIT ?"
        deleted = uow._execute(f"DELETE FROM {quoted(name)} WHERE ({row}) IN ({chunk})", (rows,)).rowcount
        if not deleted:
            self.drop(uow, name)
        return deleted

    def _row_identity(self, uow: Transaction, name: str) -> list[str]:
        """The columns that identify a row: the rowid, or the primary key of a table WITHOUT ROWID."""
        try:
            uow._rows(f"SELECT rowid FROM {quoted(name)} LIMIT 0")
        except errors.StorageError:
            keys = uow._rows("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (name,))
            return [quoted(key) for (key,) in keys]
        return ["rowid"]

    def bring_back(self, uow: Transaction) -> None:
        """Create the tables again, empty, with their indexes.

        Raises:
            UnsafeDefinitionError: One of the definitions, those of triggers included, would do something else, or a
                sequence is not a number.
        """
        saved = saved_schema.entries(uow)
        for entry in saved:
            _number(entry.type, entry.table, entry.sequence)
        for entry in saved:
            if entry.type in ("table", "index"):
                self._make(uow, entry.type, entry.table, entry.sql)
        # Triggers are created after the rows were inserted; that they can be created is tested now.
        uow._execute("SAVEPOINT consensus_orm_triggers")
        for entry in saved:
            if entry.type == "trigger":
                self._make(uow, entry.type, entry.table, entry.sql)
        uow._execute("ROLLBACK TO consensus_orm_triggers")
        uow._execute("RELEASE consensus_orm_triggers")

    def remember(self, uow: Transaction) -> None:
        """Save the definitions of the legacy tables as they are now, because another program may drop them."""
        pairs = uow.statements.moves.of_tables(Side.LEGACY)
        kept = {pair: self.save(uow, pair) if self._is_whole(uow, pair) else None for pair in pairs}
        saved = {pair: self._saved(uow, pair) if found is None else found for pair, found in kept.items()}
        saved_schema.forget(uow)
        position = 0
        for pair, found in saved.items():
            for kind, name, sql, sequence in found:
                position += 1
                saved_schema.add(uow, Entry(position, kind, name, pair.legacy_name, sql, sequence))

    def _is_whole(self, uow: Transaction, pair: Move) -> bool:
        """Whether a table has its declared columns; if another program dropped one, the saved definition is better."""
        there = {name.lower() for name in uow.catalog.columns(uow, pair.legacy_name, computed=True)}
        return there.issuperset(name.lower() for name in pair.legacy_columns)

    def make_again(self, uow: Transaction, pair: Move) -> None:
        """Create a legacy table that another program dropped, from its saved definition or else from its model."""
        saved = self._saved(uow, pair)
        if not any(kind == "table" for kind, *_ in saved):
            uow.catalog.create(uow, [pair.legacy_table])
            return
        for kind, name, sql, _ in saved:
            if kind == "table" or (kind == "index" and not uow.catalog.has_relation(uow, name)):
                self._make(uow, kind, pair.legacy_name, sql)

    def complete_again(self, uow: Transaction, pair: Move) -> None:
        """Bring the sequence back, and the triggers of other programs, once the rows are there."""
        for kind, name, sql, sequence in self._saved(uow, pair):
            if kind == "table" or (kind == "trigger" and not uow.catalog.has_relation(uow, name)):
                self.complete(uow, kind, name, pair.legacy_name, sql, sequence)

    def _saved(self, uow: Transaction, pair: Move) -> list[tuple[Any, ...]]:
        saved = saved_schema.entries_of(uow, pair.legacy_name)
        for entry in saved:
            _number(entry.type, pair.legacy_name, entry.sequence)
        return [(entry.type, entry.name, entry.sql, entry.sequence) for entry in saved]

    def _make(self, uow: Transaction, kind: str, table: str, sql: str) -> None:
        with translated(uow.engine):
            make(cast("sqlite3.Connection", uow._connected), kind, own_name(uow, table, kind), sql)

    def drop_again(self, uow: Transaction, pair: Move) -> None:
        """Undo `bring_back`, with whatever rows the table has."""
        operations(uow).drop_table(pair.legacy_table.name)

    def complete(self, uow: Transaction, kind: str, name: str, table: str, sql: str, sequence: int | None) -> None:
        """Restore a saved trigger or sequence, after the rows were inserted."""
        if kind == "trigger":
            self._make(uow, kind, table, sql)
        elif kind == "table" and (last := _number(kind, table, sequence)) is not None:
            uow.catalog.set_sequence(uow, table, max(last, uow.catalog.sequence(uow, table) or 0))

    def put_back(self, uow: Transaction, saved: SavedRow) -> bool:
        """Insert a saved row, unless there is one with its key; returns whether it was inserted."""
        columns = ", ".join(map(quoted, saved.cells))
        # With an empty blob appended, the bytes are cast in the encoding of the file; without it they count as UTF-8.
        places = ", ".join("CAST(? || X'' AS TEXT)" if kind == "text" else "?" for kind, _ in saved.cells.values())
        sql = f"INSERT OR IGNORE INTO {quoted(saved.table)} ({columns}) VALUES ({places})"
        return uow._execute(sql, saved.values).rowcount > 0
