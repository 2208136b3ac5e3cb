"""The catalog of a SQLite file: tables, columns, triggers, sequences, and writes that went around the repositories."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import bindparam, delete, select
from sqlalchemy.schema import CreateTable

from consensus_orm import errors
from consensus_orm.databases import state
from consensus_orm.databases.base import (
    KIND,
    MARK,
    Catalog,
    ColumnFacts,
    ReadCounter,
    Relations,
    Standing,
    Transaction,
    Trigger,
)
from consensus_orm.databases.guard_record import GUARDS, ours
from consensus_orm.databases.sqlite.dependencies import dependencies
from consensus_orm.databases.sqlite.key_faults import key_faults
from consensus_orm.databases.sqlite.legacy_tables import SQLiteLegacyTables
from consensus_orm.databases.sqlite.parameters import codec
from consensus_orm.databases.sqlite.references import references
from consensus_orm.databases.sqlite.triggers import for_phase
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.keys import LARGEST
from consensus_orm.declaration.move import Move
from consensus_orm.models.control import Change, GuardRecord
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.pairs import Statements
from consensus_orm.statements.rendering import quoted

__all__ = ["SQLiteCatalog"]


_CHANGES_AFTER = delete(Change).where(Change.id > bindparam("mark"))
SESSION_MARK = (
    "SELECT max(CAST(seq AS INTEGER)), EXISTS (SELECT 1 FROM consensus_orm_changes) FROM sqlite_sequence"
    " WHERE name = 'consensus_orm_changes'"
)
_WRITTEN_AFTER = (
    select(Change.pair, Change.key, Change.id, Change.side, Change.op)
    .where(Change.id > bindparam("mark"))
    .order_by(Change.id)
)
_CHANGES_OF_ROW = delete(Change).where(Change.pair == bindparam("pair"), Change.key == bindparam("key"))


class SQLiteCatalog(Catalog):
    """The catalog of a SQLite file, seen from within a unit of work."""

    needs_triggers = False
    leaves_triggers = False
    others_write_meanwhile = False
    counts_reads = False
    longest_chunk = (0.025, 1)
    legacy = SQLiteLegacyTables()
    key_faults = staticmethod(key_faults)
    references = staticmethod(references)
    dependencies = staticmethod(dependencies)

    @staticmethod
    def relations(connection: sqlite3.Connection) -> Relations:
        """Kind and columns of each table and view."""
        rows = connection.execute(f"SELECT name, {KIND} FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        return {name: (kind, partial(_column_facts, connection, name)) for name, kind in rows}

    @staticmethod
    def user_version(connection: sqlite3.Connection) -> int:
        """The user_version of the file."""
        return int(connection.execute("PRAGMA user_version").fetchone()[0])

    def tables(self, uow: Transaction) -> set[str]:
        """Names of the tables, in lower case."""
        return {name for (name,) in uow._rows(f"SELECT lower(name) FROM sqlite_master WHERE {KIND} = 'table'")}

    def sizes(self, uow: Transaction) -> dict[str, int]:
        """Bytes of the tables with their indexes; empty if SQLite was built without dbstat."""
        sql = (
            "SELECT lower(m.tbl_name), sum(d.pgsize) FROM dbstat AS d JOIN sqlite_master AS m ON m.name = d.name"
            " WHERE d.aggregate = TRUE GROUP BY 1"
        )
        try:
            return dict(uow._rows(sql))
        except errors.StorageError:
            return {}

    def columns(self, uow: Transaction, table: str, *, computed: bool = False) -> set[str]:
        """Names of the columns of a table."""
        every = "SELECT name FROM pragma_table_xinfo(?) WHERE hidden <> 1"  # 1 are those of a virtual table
        return {name for (name,) in uow._rows(every if computed else "SELECT name FROM pragma_table_info(?)", (table,))}

    @staticmethod
    def folded(name: str) -> str:
        """The name in lower case."""
        return name.lower()

    def reads(self, uow: Transaction) -> list[ReadCounter]:
        """Nothing: SQLite does not count."""
        return []

    def own_reads(self, uow: Transaction) -> dict[str, int]:
        """Nothing: SQLite does not count."""
        return {}

    def expect_reads(self, uow: Transaction, own: Mapping[str, int]) -> None:
        """Nothing: SQLite does not count."""

    def tell_reads(self, uow: Transaction) -> None:
        """Nothing: SQLite does not count."""

    def readers(self, uow: Transaction, table: str) -> str:
        """Nothing: SQLite keeps no queries."""
        return ""

    def count_unnoticed(self, uow: Transaction, table: str) -> int:
        """Rows of a table."""
        return int(uow._rows(f"SELECT count(*) FROM {quoted(table)}")[0][0])

    def require_whole(self, uow: Transaction) -> None:
        """Nothing: SQLite hides no rows."""

    def unseen(self, uow: Transaction) -> Iterator[str]:
        """Nothing: SQLite hides no rows."""
        yield from ()

    def lacking_rights(self, uow: Transaction) -> list[str]:
        """Nothing: a file has no roles."""
        return []

    def give_rights(self, uow: Transaction, tables: Collection[str] | None = None) -> list[str]:
        """Nothing: a file has no roles."""
        return []

    def keeps_writers_waiting(self, uow: Transaction) -> bool:
        """Whether writers cannot commit during a read, as without a write-ahead log."""
        return uow._rows("PRAGMA journal_mode")[0][0] not in ("wal", "memory")

    def keep_out(self, uow: Transaction) -> None:
        """Nothing: the write lock blocks every other writer."""

    def begin_scan(self, uow: Transaction, others: Sequence[Transaction] = ()) -> None:
        """Nothing: plans do not need it, and connections cannot share a snapshot."""

    def analyze(self, uow: Transaction, pair: Move) -> None:
        """Nothing: plans do not depend on how many rows there are."""

    def text_encoding(self, uow: Transaction) -> str:
        """Python's name of the encoding of the file."""
        return codec(uow._rows("PRAGMA encoding")[0][0])

    def has_relation(self, uow: Transaction, name: str) -> bool:
        """Whether a name is taken, so that no index can have it."""
        return bool(uow._rows("SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE", (name,)))

    # Triggers and sequences -------------------------------------------------------------------------------

    def triggers(self, phase: Phase, statements: Statements) -> Iterator[Trigger]:
        """The triggers of a phase."""
        return for_phase(phase, statements)

    def before_triggers(self, uow: Transaction) -> None:
        """Nothing: the write lock blocks every other writer."""

    def silence(self, uow: Transaction, triggers: Iterable[Standing]) -> None:
        """Drop triggers of this package."""
        self.run(uow, (f"DROP TRIGGER {quoted(trigger.name)}" for trigger in triggers))

    def standing(self, uow: Transaction) -> list[Standing]:
        """All triggers, tables, views and virtual tables.

        A table that was created again is younger than the record, which is itself created again whenever guards are
        recorded; SQLite keeps the order of tables, also through VACUUM and a backup. A trigger that was created again
        is younger than a view; these keep their order among each other (VACUUM puts both behind tables).
        """
        older = f"rowid < (SELECT rowid FROM sqlite_master WHERE type = 'table' AND name = '{GUARDS}')"
        since = f"rowid < (SELECT rowid FROM sqlite_master WHERE type = 'view' AND name = '{MARK}')"
        found = uow._rows(
            f"SELECT {KIND}, name, tbl_name, iif(type = 'table', iif({older}, 'older', 'younger'), sql),"
            f" iif(type = 'trigger', iif({since}, 'older', 'younger'), '')"
            " FROM sqlite_master WHERE type IN ('table', 'trigger', 'view') ORDER BY rowid"
        )
        return [Standing(*row) for row in found]

    def elsewhere(self, uow: Transaction, table: Standing) -> str | None:
        """None: a file has no schemas."""
        return None

    def cookie(self, uow: Transaction) -> int:
        """SQLite's counter of changes of the schema."""
        return int(uow._rows("PRAGMA schema_version")[0][0])

    def muted(self, uow: Transaction) -> list[str]:
        """No setting of a file keeps triggers from firing."""
        return []

    def go_on_without(self, uow: Transaction, tables: Collection[str]) -> None:
        """Drop the triggers that read tables which were dropped: with them each write of another table would fail."""
        there = self.tables(uow)
        gone = [name for table in tables if table.lower() not in there for name in (quoted(table), table)]
        self.silence(uow, [each for each in ours(uow) if any(name in each.definition for name in gone)])

    def names_taken(self, uow: Transaction, triggers: Iterable[Trigger]) -> list[tuple[str, str]]:
        """The triggers that have the name of one of these, whose own triggers are dropped, with their tables."""
        wanted = {trigger.name.lower() for trigger in triggers}
        standing = uow._rows("SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'")
        return [(name, table) for name, table in standing if name.lower() in wanted]

    def forget_guards(self, uow: Transaction) -> None:
        """Create the record again, younger than every table, and the view `MARK`, younger than every trigger.

        Raises:
            MigrationError: Another program has made something else of that name.
        """
        if uow._rows("SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type <> 'view'", (MARK,)):
            raise errors.MigrationError(
                f"what another program made has the name {MARK}, which a view of this package needs",
                hint="nothing was changed; drop it, or create it again under another name",
                table=MARK,
            )
        uow._execute(f"DROP TABLE IF EXISTS {GUARDS}")
        uow._execute(str(CreateTable(table_of(GuardRecord)).compile(dialect=uow.statements.rendering.dialect)))
        uow._execute(f"DROP VIEW IF EXISTS {MARK}")
        uow._execute(f"CREATE VIEW {MARK} AS SELECT 'triggers younger than this view were made again' AS told")

    def level_sequences(self, uow: Transaction) -> None:
        """Have both sides assign ids above the highest that either has assigned (rule 3)."""
        for pair in uow.statements.moves:
            # A key that is no primary key is not given by the table, whose sequence counts something else.
            names = (pair.legacy_table.name, pair.table.name if pair.own_id is None else pair.legacy_table.name)
            given = dict(
                uow._rows(
                    "SELECT lower(name), max(coalesce(CAST(seq AS INTEGER), 0)) FROM sqlite_sequence"
                    " WHERE name COLLATE NOCASE IN (?, ?) GROUP BY 1",
                    names,
                )
            )
            for name in names:
                if given and given.get(name.lower(), -1) < max(given.values()):
                    self.set_sequence(uow, name, max(given.values()))

    def next_key_of(self, uow: Transaction, pair: Move, side: Side) -> int:
        """The next id if the table of the other side is gone: above every id that this side has, or ever assigned."""
        found: list[int | None] = []
        for each in uow.statements.moves.sharing(pair, Side.LEGACY):
            table = each.table_name(side)
            found.append(uow._rows(f"SELECT max({quoted(*each.key_names(side))}) FROM {quoted(table)}")[0][0])
            given = (each.legacy_name, *([each.table.name] if each.own_id is None else []))
            found += [self.sequence(uow, name) for name in given]
        return max(value or 0 for value in found) + 1

    def free_key(self, uow: Transaction, pair: Move) -> Any:
        """An id above every id that either side has, or ever assigned."""
        return uow._execute(uow.statements[pair].next_key).fetchone()[0]

    def key_to_give(self, uow: Transaction, pair: Move) -> Any:
        """An id above every id of the normalized side, for a row whose table does not give it."""
        return self.next_key_of(uow, pair, Side.NORMALIZED)

    def go_on_above(self, uow: Transaction, pair: Move) -> None:
        """Nothing: SQLite always assigns ids above those of a table."""

    def draw_from_own(self, uow: Transaction, pair: Move, *, above: int = 1) -> None:
        """Nothing: each table has its own sequence."""

    def sequence(self, uow: Transaction, table: str) -> int | None:
        """The highest id that a table has assigned; None if it never assigned one."""
        # Any program may write to that table: NULL and text count as 0, as they do for SQLite itself.
        given = "SELECT max(coalesce(CAST(seq AS INTEGER), 0)) FROM sqlite_sequence WHERE name = ? COLLATE NOCASE"
        found: int | None = uow._rows(given, (table,))[0][0]
        return found

    def set_sequence(self, uow: Transaction, table: str, value: int) -> None:
        """Have a table assign ids above an id."""
        own = "UPDATE sqlite_sequence SET seq = ? WHERE name = ? COLLATE NOCASE"
        if not uow._execute(own, (value, table)).rowcount:
            # SQLite looks for the very letters of the table, which another program may have chosen.
            spelled = "SELECT name FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE"
            uow._execute(
                f"INSERT INTO sqlite_sequence (name, seq) VALUES (coalesce(({spelled}), ?1), ?2)", (table, value)
            )

    def used_up(self, uow: Transaction) -> str | None:
        """A mapped table that has assigned its last id, which SQLite reports as a full disk; None if there is none.

        The failure may have ended the transaction.
        """
        moves = uow.statements.moves
        names = [parent.table.name for parent in moves.parents]
        names += [pair.table_name(side) for pair in moves for side in Side]
        given = (
            "SELECT name FROM sqlite_sequence"
            " WHERE seq >= ? AND name COLLATE NOCASE IN (SELECT value FROM json_each(?))"
        )
        found = uow._connected.execute(given, (LARGEST, json.dumps(names))).fetchone()
        return None if found is None else str(found[0])

    # Writes that went around the repositories -------------------------------------------------------------

    def session_mark(self, uow: Transaction) -> tuple[int, bool]:
        """The counter of records: the unit of work holds the lock, so that the later ones are of its session."""
        mark, any_there = uow._rows(SESSION_MARK)[0]
        return mark or 0, bool(any_there)

    def written_since(self, uow: Transaction, mark: int) -> list[tuple[Any, ...]]:
        """The records after the mark."""
        return uow._rows(_WRITTEN_AFTER, {"mark": mark})

    def inserted(self, uow: Transaction, side: Side) -> int:
        """How many rows the tables of a side have: the write lock keeps other transactions out."""
        names = sorted({pair.table_name(side) for pair in uow.statements.moves})
        return sum(uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0][0] for name in names)

    def triggers_of_others(self, uow: Transaction) -> list[str]:
        """Names of the triggers on mapped tables that this package has not made."""
        moves, mine = uow.statements.moves, {s.name for s in ours(uow)}
        mapped = moves.tables(Side.LEGACY) | moves.tables(Side.NORMALIZED)
        found = "SELECT name, lower(tbl_name) FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
        return [name for name, table in uow._rows(found) if name not in mine and table in mapped]

    def forget_changes(self, uow: Transaction, *, after: int) -> None:
        """Delete what the triggers recorded after a mark: the writes of this unit of work itself, which holds the lock.

        The counter goes back to the mark too, or a delete by this package would void a certificate.
        """
        if uow._execute(_CHANGES_AFTER, {"mark": after}).rowcount:
            self.set_sequence(uow, "consensus_orm_changes", after)

    def forget_row(self, uow: Transaction, pair: Move, key: object) -> None:
        """Delete what the triggers recorded of a row that this unit of work wrote."""
        uow._execute(_CHANGES_OF_ROW, {"pair": pair.name, "key": key})

    def unnoticed(self, uow: Transaction, pair: Move, side: Side) -> contextlib.AbstractContextManager[None]:
        """Set that flag while a row is inserted that its triggers would take for another program's.

        Of the normalized side it is one whose legacy row follows, unless it has a mark.
        """
        recorded = pair.is_recorded_blindly or (side is Side.NORMALIZED and pair.marker is None)
        return self.legacy_unfrozen(uow) if recorded else contextlib.nullcontext()

    @contextlib.contextmanager
    def legacy_unfrozen(self, uow: Transaction) -> Iterator[None]:
        """Set the flag with which the triggers accept writes; no other transaction ever sees it."""
        state.put(uow, carrying=True)
        yield  # after an error the transaction is rolled back, and the flag with it
        state.put(uow, carrying=False)


def _column_facts(connection: sqlite3.Connection, table: str) -> dict[str, ColumnFacts]:
    rows = connection.execute(
        'SELECT lower(name), upper(type), "notnull" AND dflt_value IS NULL, pk FROM pragma_table_info(?)', (table,)
    )
    return {column: ColumnFacts(type_, bool(needed), bool(pk)) for column, type_, needed, pk in rows}
