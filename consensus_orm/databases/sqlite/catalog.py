"""What only the catalog of a database knows, and what only its own means can do: SQLite's words here.

Tables and their columns, triggers, sequences, and the count of writes that went around the repositories. What
another kind of database says instead is a class of the same methods (`postgresql.catalog`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Column, bindparam, delete
from sqlalchemy.schema import CreateTable

from consensus_orm import errors
from consensus_orm.databases import state
from consensus_orm.databases.base import MARK, Catalog, Standing, Transaction, Trigger
from consensus_orm.databases.guard_record import GUARDS, ours
from consensus_orm.databases.sqlite.key_faults import key_faults
from consensus_orm.databases.sqlite.legacy_tables import SQLiteLegacyTables
from consensus_orm.databases.sqlite.parameters import codec
from consensus_orm.databases.sqlite.triggers import for_phase
from consensus_orm.declaration.keys import LARGEST
from consensus_orm.declaration.pairs import Pair, table_of
from consensus_orm.models.control import Change, GuardRecord
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.pairs import Statements
from consensus_orm.statements.rendering import quoted

__all__ = ["SQLiteCatalog"]


_CHANGES_AFTER = delete(Change).where(Change.id > bindparam("mark"))
_CHANGES_OF_ROW = delete(Change).where(Change.pair == bindparam("pair"), Change.key == bindparam("key"))


class SQLiteCatalog(Catalog):
    """The catalog of a SQLite file, seen from within a unit of work."""

    needs_triggers = False
    """Whether there are triggers in every phase, also in one that nobody has flipped to."""

    leaves_triggers = False
    """Whether triggers of phases that are over stay behind, disabled."""

    others_write_meanwhile = False
    """Whether other programs can write while a unit of work of ours holds its lock."""

    longest_chunk = (0.025, 1)
    """Seconds a chunk of the backfill aims to take, half of what a writer should ever wait for the lock; and how often
    CHUNK_ROWS fits into it at most, where nobody else writes."""

    @property
    def legacy(self) -> SQLiteLegacyTables:
        """What becomes of the legacy tables at CONTRACT, and on the way back."""
        return SQLiteLegacyTables()

    def tables(self, uow: Transaction) -> set[str]:
        """Names of the tables, in small letters."""
        return {name for (name,) in uow._rows("SELECT lower(name) FROM sqlite_master WHERE type = 'table'")}

    def sizes(self, uow: Transaction) -> dict[str, int]:
        """Bytes of the tables with their indexes; none where SQLite was built without dbstat."""
        sql = (
            "SELECT lower(m.tbl_name), sum(d.pgsize) FROM dbstat AS d JOIN sqlite_master AS m ON m.name = d.name"
            " WHERE d.aggregate = TRUE GROUP BY 1"
        )
        try:
            return dict(uow._rows(sql))
        except errors.StorageError:
            return {}

    def columns(self, uow: Transaction, table: str) -> set[str]:
        """Names of the columns of a table."""
        return {name for (name,) in uow._rows("SELECT name FROM pragma_table_info(?)", (table,))}

    def referring(self, uow: Transaction, table: str) -> list[str]:
        """Names of the tables that refer to a table by a foreign key."""
        sql = (
            "SELECT DISTINCT t.name FROM sqlite_master AS t, pragma_foreign_key_list(t.name) AS f"
            " WHERE t.type = 'table' AND f.\"table\" = ? COLLATE NOCASE ORDER BY 1"
        )
        return [name for (name,) in uow._rows(sql, (table,))]

    def key_faults(self, uow: Transaction, table: str, key: Column[Any]) -> Iterator[str]:
        """What is wrong with a column as the key of a move, and what to do about it."""
        return key_faults(uow, table, key)

    def keeps_writers_waiting(self, uow: Transaction) -> bool:
        """Whether nobody can commit while a read is going on: that is so without a write-ahead log."""
        return uow._rows("PRAGMA journal_mode")[0][0] not in ("wal", "memory")

    def keep_out(self, uow: Transaction) -> None:
        """Keep every writer out of the mapped tables until the end of this unit of work: the write lock does."""

    def begin_scan(self, uow: Transaction, others: Sequence[Transaction] = ()) -> None:
        """Prepare read-only units of work for looking at many rows, if possible all of them in one snapshot."""

    def analyze(self, uow: Transaction, pair: Pair) -> None:
        """Let plans follow how many rows the normalized side has by now; SQLite's do not depend on it."""

    def text_encoding(self, uow: Transaction) -> str:
        """How the file writes its texts, in Python's words."""
        return codec(uow._rows("PRAGMA encoding")[0][0])

    def has_relation(self, uow: Transaction, name: str) -> bool:
        """Whether something has a name that an index would need."""
        return bool(uow._rows("SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE", (name,)))

    # Triggers and sequences -------------------------------------------------------------------------------

    def triggers(self, phase: Phase, statements: Statements) -> Iterator[Trigger]:
        """The triggers of a phase."""
        return for_phase(phase, statements)

    def before_triggers(self, uow: Transaction) -> None:
        """Nothing: the write lock keeps everybody out."""

    def silence(self, uow: Transaction, trigger: Standing) -> None:
        """Let a trigger of ours do nothing any more."""
        uow._execute(f"DROP TRIGGER {quoted(trigger.name)}")

    def standing(self, uow: Transaction) -> list[Standing]:
        """All triggers, tables and views there are.

        What tells a table from another one made under its name later: it is older than the record, which is made
        anew whenever something is recorded. SQLite keeps the order of tables, also through VACUUM and a backup. The
        same tells triggers from those made again; they keep their order among views (VACUUM puts both behind tables).
        """
        older = f"rowid < (SELECT rowid FROM sqlite_master WHERE type = 'table' AND name = '{GUARDS}')"
        since = f"rowid < (SELECT rowid FROM sqlite_master WHERE type = 'view' AND name = '{MARK}')"
        found = uow._rows(
            f"SELECT type, name, tbl_name, iif(type = 'table', iif({older}, 'older', 'younger'), sql),"
            f" iif(type = 'trigger', iif({since}, 'older', 'younger'), '')"
            " FROM sqlite_master WHERE type IN ('table', 'trigger', 'view') ORDER BY rowid"
        )
        return [Standing(*row) for row in found]

    def cookie(self, uow: Transaction) -> int:
        """What differs after any change of the schema: SQLite counts them."""
        return int(uow._rows("PRAGMA schema_version")[0][0])

    def muted(self, uow: Transaction) -> list[str]:
        """What keeps triggers from firing that are in place; nothing does here."""
        return []

    def go_on_without(self, uow: Transaction, tables: Collection[str]) -> None:
        """Drop our triggers that look into tables which are gone: each write of another table would fail."""
        there = self.tables(uow)
        tables = [table for table in tables if table.lower() not in there]
        for trigger in ours(uow):
            if any(quoted(table) in trigger.definition or table in trigger.definition for table in tables):
                self.silence(uow, trigger)

    def name_taken(self, uow: Transaction, trigger: Trigger) -> str | None:
        """The table on which another program has a trigger of this name; asked when there is none of ours."""
        sql = "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger' AND name = ? COLLATE NOCASE"
        rows = uow._rows(sql, (trigger.name,))
        return rows[0][0] if rows else None

    def forget_guards(self, uow: Transaction) -> None:
        """Make the record anew, empty and younger than every table; and the mark, younger than every trigger."""
        uow._execute(f"DROP TABLE IF EXISTS {GUARDS}")
        uow._execute(str(CreateTable(table_of(GuardRecord)).compile(dialect=uow.statements.rendering.dialect)))
        uow._execute(f"DROP VIEW IF EXISTS {MARK}")
        uow._execute(f"CREATE VIEW {MARK} AS SELECT 'triggers younger than this view were made again' AS told")

    def level_sequences(self, uow: Transaction) -> None:
        """Let both sides go on above the highest id that either has given (rule 3)."""
        for pair in uow.statements.mapping.pairs:
            names = (pair.legacy_table.name, pair.table.name)
            given = dict(
                uow._rows(
                    "SELECT name, coalesce(CAST(seq AS INTEGER), 0) FROM sqlite_sequence WHERE name IN (?, ?)", names
                )
            )
            for name in names:
                if given and given.get(name, -1) < max(given.values()):
                    self.set_sequence(uow, name, max(given.values()))

    def next_key_of(self, uow: Transaction, pair: Pair, side: Side) -> int:
        """The next id where the table of the other side is gone: above whatever one side has, or has ever given."""
        table = pair.legacy_name if side is Side.LEGACY else pair.table.name
        highest = uow._rows(f"SELECT max({quoted(pair.key.name)}) FROM {quoted(table)}")[0][0]
        given = (self.sequence(uow, name) for name in (pair.legacy_name, pair.table.name))
        return max(value or 0 for value in (highest, *given)) + 1

    def free_key(self, uow: Transaction, pair: Pair) -> Any:
        """An id above whatever either side has, or has ever given, whoever made the legacy table."""
        return uow._execute(uow.statements[pair].next_key).fetchone()[0]

    def go_on_above(self, uow: Transaction, pair: Pair) -> None:
        """Let ids be given above those that the normalized side has; SQLite sees to that by itself."""

    def sequence(self, uow: Transaction, table: str) -> int | None:
        """The highest id a table has given; None where it never gave one."""
        # Anybody may write to that table: NULL and words count as nothing given, as they do for SQLite itself.
        given = "SELECT max(coalesce(CAST(seq AS INTEGER), 0)) FROM sqlite_sequence WHERE name = ?"
        found: int | None = uow._rows(given, (table,))[0][0]
        return found

    def set_sequence(self, uow: Transaction, table: str, value: int) -> None:
        """Let a table go on above an id."""
        if not uow._execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (value, table)).rowcount:
            uow._execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, value))

    def used_up(self, uow: Transaction) -> str | None:
        """A mapped table that has given its last id, where there is one: SQLite calls that a full disk.

        It may be asked after the failure, which has ended the transaction.
        """
        mapping = uow.statements.mapping
        names = [parent.table.name for parent in mapping.parents]
        names += [pair.table_name(side) for pair in mapping.pairs for side in Side]
        given = "SELECT name FROM sqlite_sequence WHERE seq >= ? AND name IN (SELECT value FROM json_each(?))"
        found = uow._connected.execute(given, (LARGEST, json.dumps(names))).fetchone()
        return None if found is None else str(found[0])

    # Writes that went around the repositories -------------------------------------------------------------

    def forget_changes(self, uow: Transaction, *, after: int) -> None:
        """Forget what the triggers noted since a mark: this unit of work holds the lock, so it was its own doing.

        The counter goes back to the mark too, or a delete of ours would void a certificate.
        """
        if uow._execute(_CHANGES_AFTER, {"mark": after}).rowcount:
            self.set_sequence(uow, "consensus_orm_changes", after)

    def forget_row(self, uow: Transaction, pair: Pair, key: Any) -> None:
        """Forget what the triggers noted of one row that this unit of work wrote."""
        uow._execute(_CHANGES_OF_ROW, {"pair": pair.name, "key": key})

    def legacy_unfrozen(self, uow: Transaction) -> contextlib.AbstractContextManager[None]:
        """Let this transaction alone write frozen legacy tables; nobody else ever sees the flag set."""
        return _carrying(uow)


@contextlib.contextmanager
def _carrying(uow: Transaction) -> Iterator[None]:
    state.put(uow, carrying=True)
    yield  # after an error the transaction is rolled back, and the flag with it
    state.put(uow, carrying=False)
