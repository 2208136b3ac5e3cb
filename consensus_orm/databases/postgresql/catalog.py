"""The catalog of a PostgreSQL database: tables, columns, triggers, sequences.

A setting of the transaction (`consensus_orm.by`) tells the triggers which writes are the package's own. They do not
fire for these, so nothing has to be deleted afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from sqlalchemy import Table, delete

from consensus_orm import errors
from consensus_orm.databases.base import (
    PREFIX,
    Catalog,
    ColumnFacts,
    Dependency,
    ReadCounter,
    Relations,
    Standing,
    Transaction,
    Trigger,
)
from consensus_orm.databases.guard_record import ours
from consensus_orm.databases.postgresql import access, own_reads, rights, triggers
from consensus_orm.databases.postgresql.dependencies import dependencies
from consensus_orm.databases.postgresql.fence import COOKIE
from consensus_orm.databases.postgresql.key_faults import key_faults
from consensus_orm.databases.postgresql.legacy_tables import PostgresLegacyTables
from consensus_orm.databases.postgresql.references import references
from consensus_orm.declaration.move import Move
from consensus_orm.models.control import Change, GuardRecord
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.pairs import Statements
from consensus_orm.statements.rendering import literal, quoted

__all__ = ["PostgresCatalog"]

DRAWN_FROM = (
    "FROM pg_depend AS d JOIN pg_attrdef AS a ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid"
    " JOIN pg_class AS s ON s.oid = d.refobjid WHERE a.adrelid = to_regclass(quote_ident(?)) AND s.relkind = 'S'"
)
"""The sequence from which the default of a table takes its ids."""

STANDING = (
    "SELECT 'trigger', t.tgname, c.relname,"
    " replace(pg_get_triggerdef(t.oid), quote_ident(n.nspname) || '.', '') || chr(10) || p.prosrc,"
    " concat_ws(' ', t.oid, t.xmin, p.oid, p.xmin), t.tgenabled IN ('O', 'A')"
    " FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " JOIN pg_proc AS p ON p.oid = t.tgfoid"
    f" WHERE NOT t.tgisinternal AND t.tgname ^@ '{PREFIX}' AND p.proname = t.tgname AND pg_table_is_visible(c.oid)"
    " UNION ALL SELECT CASE WHEN relkind IN ('r', 'p') THEN 'table' ELSE 'view' END, relname, relname,"
    " CAST(oid AS TEXT), '', TRUE FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(oid)"
    " AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
)
"""Triggers with a function of the same name, as this package creates them; tables and views, with their oid.

`xmin` is the transaction that wrote an entry of the catalog last: disabling a trigger and enabling it again changes it.
"""

UNSEEN = (
    "SELECT c.relname, row_security_active(c.oid), current_user, ARRAY("
    "SELECT CAST(a.attname AS TEXT) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0"
    " AND NOT a.attisdropped AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT') ORDER BY a.attnum)"
    " FROM pg_class AS c WHERE c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid)"
    " AND (c.relname = ANY (:names) OR starts_with(c.relname, :prefix)) ORDER BY 1"
)
"""Whether rows or columns of the tables that this package reads are hidden from the role of this connection."""

# As JSON, because a server before version 16 lacks these columns.
_LAST = (
    "max(greatest(CAST(to_jsonb(s) ->> 'last_seq_scan' AS TIMESTAMPTZ),"
    " CAST(to_jsonb(s) ->> 'last_idx_scan' AS TIMESTAMPTZ)))"
)
_TIMES = "".join(f", CAST(extract(epoch FROM {time}) * 1000 AS BIGINT)" for time in (_LAST, "clock_timestamp()"))
READS = f"SELECT n.name, {own_reads.SCANS.format(times=_TIMES, view='pg_stat_user_tables')}"
"""The scans of the legacy tables and their indexes, by anybody."""

READERS = (
    "SELECT DISTINCT CAST(r.rolname AS TEXT) FROM pg_stat_statements AS s JOIN pg_roles AS r ON r.oid = s.userid"
    " WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND r.rolname <> current_user"
    " AND s.query ~* ('(?<!\\w)' || regexp_replace(:table, '(\\W)', '\\\\\\1', 'g') || '(?!\\w)') ORDER BY 1"
)

_REPLICATION = (
    "SELECT count(*) FILTER (WHERE state IS NULL), pg_current_wal_lsn() - '0/0', min(replay_lsn - '0/0') FILTER (WHERE"
    " state IN ('streaming', 'catchup')), coalesce(extract(epoch FROM max(replay_lag)), 0) FROM pg_stat_replication"
)
"""What a role without the right sees of a replica has no state."""

_FORGET_GUARDS = delete(GuardRecord)
_TAKE_WRITTEN = (
    delete(Change).where(Change.id < 0).returning(Change.pair, Change.key, Change.id, Change.side, Change.op)
)


_TABLES = (
    "(SELECT coalesce(p.relid, to_regclass(quote_ident(n.name))) AS relid FROM unnest(CAST(? AS TEXT[])) AS n(name)"
    " LEFT JOIN pg_partition_tree(to_regclass(quote_ident(n.name))) AS p ON true) AS mapped"
)
"""Tables with their partitions: only of partitioned ones does the function give rows."""
_INSERTED = f"SELECT coalesce(sum(pg_stat_get_xact_tuples_inserted(relid)), 0) FROM {_TABLES}"
_TRIGGERS = (
    f"SELECT t.tgname, c.relname FROM {_TABLES} JOIN pg_trigger AS t ON t.tgrelid = relid"
    " JOIN pg_class AS c ON c.oid = relid WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgparentid = 0"
)


class PostgresCatalog(Catalog):
    """The catalog of a database, with the tables that are visible without a schema name."""

    needs_triggers = True
    leaves_triggers = True
    others_write_meanwhile = True
    counts_reads = True
    longest_chunk = (0.3, 20)
    legacy = PostgresLegacyTables()
    key_faults = staticmethod(key_faults)
    references = staticmethod(references)
    missing_objects = staticmethod(access.missing)
    restore_objects = staticmethod(access.restore)

    @staticmethod
    def relations(connection: Any) -> Relations:
        """Kind and columns of each table and view that is visible without a schema name."""
        sql = (
            "SELECT c.relname, CASE WHEN c.relkind IN ('r', 'p') THEN 'table' ELSE 'view' END, a.attname,"
            " upper(format_type(a.atttypid, NULL)), a.attnotnull AND NOT a.atthasdef AND a.attidentity = '',"
            " coalesce(a.attnum = ANY (i.indkey), FALSE)"
            " FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary"
            " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(c.oid)"
            " AND c.relnamespace <> 'pg_catalog'::regnamespace AND c.relnamespace <> 'information_schema'::regnamespace"
            " ORDER BY c.relname, a.attnum"
        )
        found: dict[str, tuple[str, dict[str, ColumnFacts]]] = {}
        for name, kind, column, type_, required, primary in connection.execute(sql).fetchall():
            found.setdefault(name, (kind, {}))[1][column] = ColumnFacts(type_, required, primary)
        return {name: (kind, partial(dict, columns)) for name, (kind, columns) in found.items()}

    @staticmethod
    def dependencies(uow: Transaction) -> Iterator[Dependency]:
        """What other programs have made upon the legacy tables, and the roles that would be cut off."""
        yield from dependencies(uow)
        yield from rights.dependencies(uow)

    def replication(self, uow: Transaction) -> tuple[int, int, float] | None:
        """How far the replicas are that follow this server by streaming."""
        hidden, written, replayed, reported = uow._rows(_REPLICATION)[0]
        if hidden:
            raise errors.ConfigurationError(
                "MAX_LAG is set, and this role may not see how far the replicas are behind",
                hint="GRANT pg_read_all_stats TO the role that runs this step, or unset CONSENSUS_ORM_MAX_LAG",
            )
        return None if replayed is None else (int(written), int(replayed), float(reported))

    def lacking_rights(self, uow: Transaction) -> list[str]:
        """The GRANTs with which each role that may use tables of one side may use this package, too."""
        return rights.grants(rights.lacking(uow))

    def give_rights(self, uow: Transaction, tables: Collection[str] | None = None) -> list[str]:
        """Give the rights that roles lack, as far as the role of this connection can."""
        return rights.give(uow, tables)

    def create(self, uow: Transaction, tables: Collection[Table]) -> None:
        """Create tables as their models declare them, for the roles that have rights on the other side."""
        super().create(uow, tables)
        if tables:
            rights.give(uow, {table.name for table in tables})

    def tables(self, uow: Transaction) -> set[str]:
        """Names of the tables."""
        sql = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid)"
        return {name for (name,) in uow._rows(sql)}

    def sizes(self, uow: Transaction) -> dict[str, int]:
        """Bytes of the tables with their indexes."""
        sql = "SELECT lower(relname), pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r'"
        return dict(uow._rows(f"{sql} AND pg_table_is_visible(oid)"))

    def columns(self, uow: Transaction, table: str, *, computed: bool = False) -> set[str]:
        """Names of the columns of a table."""
        sql = (
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(:name))"
            " AND attnum > 0 AND NOT attisdropped"
        )
        return {name for (name,) in uow._rows(sql, {"name": table})}

    @staticmethod
    def folded(name: str) -> str:
        """The name as it is: this package quotes every name."""
        return name

    def reads(self, uow: Transaction) -> list[ReadCounter]:
        """How often each legacy table was read, with its partitions, whoever read it."""
        names = [pair.legacy_name for pair in uow.statements.moves]
        if uow._connected.in_transaction:
            uow._execute("SET LOCAL jit = off")
        return [ReadCounter(*row) for row in uow._rows(READS, {"names": names})]

    def own_reads(self, uow: Transaction) -> dict[str, int]:
        """How often this transaction has read each legacy table so far."""
        names = [pair.legacy_name for pair in uow.statements.moves]
        uow._rows("SELECT pg_stat_force_next_flush()")
        return dict(uow._rows(own_reads.OWN_READS, {"names": names}))

    def expect_reads(self, uow: Transaction, own: Mapping[str, int]) -> None:
        """Have reads of this transaction, before it ends, taken off what the server will count."""
        own_reads.expect(uow.engine, own)

    def tell_reads(self, uow: Transaction) -> None:
        """Tell of what was read through a connection pooler."""
        own_reads.tell(uow.engine)

    def readers(self, uow: Transaction, table: str) -> str:
        """The roles, other than that of this connection, whose queries in pg_stat_statements name a table."""
        if not uow._rows("SELECT 1 WHERE to_regclass('pg_stat_statements') IS NOT NULL"):
            return ""
        with contextlib.suppress(errors.StorageError), uow._connected.attempt():  # the library may not be loaded
            return ", ".join(role for (role,) in uow._rows(READERS, {"table": table}))
        return ""

    def count_unnoticed(self, uow: Transaction, table: str) -> int:
        """Rows of a table; the server does not count a sample as a scan, even one of all pages."""
        return int(uow._rows(f"SELECT count(*) FROM {quoted(table)} TABLESAMPLE SYSTEM (100)")[0][0])

    def require_whole(self, uow: Transaction) -> None:
        """Switch row security off, so that a read that it would filter is an error; as pg_dump does."""
        uow._execute("SET LOCAL row_security = off; SET LOCAL jit = off")  # catalog queries were compiled for seconds

    def unseen(self, uow: Transaction) -> Iterator[str]:
        """Tables whose row security applies to this role, or that have columns which it may not read."""
        names = {table.name for table in triggers.tables(Phase.EXPAND, uow.statements.moves)}
        for table, hides, role, unreadable in uow._rows(UNSEEN, {"names": sorted(names), "prefix": PREFIX}):
            if hides:
                yield (
                    f"the row security of {table} may hide rows from the role {role}; use a role with BYPASSRLS, or the"
                    " owner of the table without FORCE ROW LEVEL SECURITY"
                )
            if unreadable:
                yield (
                    f"the role {role} may not read {', '.join(unreadable)} of {table};"
                    f" GRANT SELECT ON {quoted(table)} TO {quoted(role)}"
                )

    def keeps_writers_waiting(self, uow: Transaction) -> bool:
        """False: writers can always commit during a read."""
        return False

    def keep_out(self, uow: Transaction) -> None:
        """Block writers, those of other programs too, from the mapped tables until the end of this unit of work."""
        connection: Any = uow._connected
        connection.keep_out(self._mapped(uow))

    def _mapped(self, uow: Transaction) -> set[str]:
        """Names of the mapped tables that are there."""
        return self.tables(uow) & {table.name for table in triggers.tables(Phase.EXPAND, uow.statements.moves)}

    def begin_scan(self, uow: Transaction, others: Sequence[Transaction] = ()) -> None:
        """Share the snapshot of a unit of work with others, and plan for ranges of many rows.

        Rows are found by their keys, in the order of the chunks: a hash join or a sort would copy every row that it
        compares, and read all parents for each chunk (8 us a row of a large table instead of 4; measured).
        """
        snapshot = uow._rows("SELECT pg_export_snapshot()")[0][0] if others else None
        for other in others:
            other._connected.rollback()
            other._connected.begin(write=False)
            other._execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        for each in (uow, *others):
            if each._whole:
                self.require_whole(each)
            each._execute("SET LOCAL plan_cache_mode = force_custom_plan")
            each._execute("SET LOCAL enable_hashjoin = off")
            each._execute("SET LOCAL enable_sort = off")
            each._execute("SET LOCAL random_page_cost = 1.1")  # rows with neighbouring keys are stored together
            each._execute("SET LOCAL max_parallel_workers_per_gather = 0")  # there are as many units as cores

    def analyze(self, uow: Transaction, pair: Move) -> None:
        """Run ANALYZE on the normalized side: a plan from the time when it was empty would scan all of it."""
        for table in dict.fromkeys((pair.table, *(parent.table for parent in pair.parents), *pair.tables_beside)):
            uow._execute(f"ANALYZE {quoted(table.name)}")

    def text_encoding(self, uow: Transaction) -> str:
        """UTF-8, in which the server sends text."""
        return "utf-8"

    def has_relation(self, uow: Transaction, name: str) -> bool:
        """Whether a name is taken, so that no index can have it."""
        return bool(uow._rows("SELECT 1 WHERE to_regclass(quote_ident(?)) IS NOT NULL", (name,)))

    # Triggers and sequences -------------------------------------------------------------------------------

    def triggers(self, phase: Phase, statements: Statements) -> Iterator[Trigger]:
        """The triggers of a phase."""
        return triggers.for_phase(phase, statements)

    def before_triggers(self, uow: Transaction) -> None:
        """Block other writers, and refuse columns in which different texts are equal."""
        self._require_places(uow)
        self.keep_out(uow)
        self._require_exact(uow)

    def run(self, uow: Transaction, commands: Iterable[str]) -> None:
        """Run commands in one message: while a flip waits for each answer, writers wait for the flip."""
        if message := "; ".join(commands):
            uow._execute(message)

    def silence(self, uow: Transaction, triggers: Iterable[Standing]) -> None:
        """Disable triggers of this package; DROP TRIGGER would wait for every reader of the table."""
        enabled = (trigger for trigger in triggers if trigger.enabled)
        self.run(uow, (f"ALTER TABLE {quoted(t.table)} DISABLE TRIGGER {quoted(t.name)}" for t in enabled))

    def standing(self, uow: Transaction) -> list[Standing]:
        """The triggers of this package, each with its function, and the visible tables and views."""
        return [Standing(*row) for row in uow._rows(STANDING)]

    def elsewhere(self, uow: Transaction, table: Standing) -> str | None:
        """The schema of a recorded table that is where it was, and which this connection does not look in."""
        rows = uow._rows(
            "SELECT CAST(CAST(relnamespace AS regnamespace) AS TEXT) FROM pg_class"
            " WHERE oid = CAST(? AS oid) AND relname = ? AND NOT pg_table_is_visible(oid)",
            (table.definition, table.name),
        )
        return str(rows[0][0]) if rows else None

    def cookie(self, uow: Transaction) -> int:
        """A number that differs after a change of the package's triggers, their functions or their tables."""
        return int(uow._rows(f"SELECT {COOKIE}")[0][0])

    def muted(self, uow: Transaction) -> list[str]:
        """Settings of databases and roles that keep triggers from firing."""
        rows = uow._rows(
            "SELECT coalesce(r.rolname, 'all roles') FROM pg_db_role_setting AS s"
            " LEFT JOIN pg_roles AS r ON r.oid = s.setrole CROSS JOIN unnest(s.setconfig) AS c(setting)"
            " WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))"
            " AND c.setting = 'session_replication_role=replica' ORDER BY 1"
        )
        return [
            f"session_replication_role is replica for {role}, so no trigger fires for what they write;"
            " reset it with ALTER ROLE or ALTER DATABASE"
            for (role,) in rows
        ]

    def go_on_without(self, uow: Transaction, tables: Collection[str]) -> None:
        """Have ids assigned above those assigned before, although the sequence was dropped with its legacy table."""
        for pair in (pair for pair in uow.statements.moves if pair.legacy_name in tables):
            own, key, there = pair.table.name, pair.keys[0].name, pair.legacy_name in self.tables(uow)
            if not pair.is_numbered or pair.own_id is not None:
                continue
            # Of the table created in its place.
            if there and self._sequence_of(uow, pair.legacy_name, pair.legacy_keys[0]) is not None:
                self._level(uow, pair)
            elif self._has_default(uow, own, key):
                continue
            else:
                self.draw_from_own(uow, pair)

    def draw_from_own(self, uow: Transaction, pair: Move, *, above: int = 1) -> None:
        """Have the normalized table take its ids from its own sequence, if it has one, above all that were given."""
        own, key = pair.table.name, pair.keys[0].name
        if (sequence := self._sequence_of(uow, own, key)) is not None:
            highest = uow._rows(f"SELECT max({quoted(key)}) FROM {quoted(own)}")[0][0]
            self.set_sequence(uow, own, max(highest or 1, self.sequence(uow, own) or 1, above))
            self._draw_from(uow, own, key, sequence)

    def _has_default(self, uow: Transaction, table: str, column: str) -> bool:
        sql = "SELECT atthasdef FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(?)) AND attname = ?"
        return any(found for (found,) in uow._rows(sql, (table, column)))

    def _draw_from(self, uow: Transaction, table: str, key: str, sequence: str) -> None:
        default = f"nextval(CAST({literal(sequence)} AS regclass))"
        uow._execute(f"ALTER TABLE {quoted(table)} ALTER COLUMN {quoted(key)} SET DEFAULT {default}")

    def names_taken(self, uow: Transaction, triggers: Iterable[Trigger]) -> list[tuple[str, str]]:
        """The triggers of other programs that have the name of one of these on its table, with the table."""
        sql = (
            "SELECT t.tgname, CAST(t.tgrelid AS regclass)::text FROM pg_trigger AS t"
            " JOIN pg_proc AS p ON p.oid = t.tgfoid JOIN unnest(CAST(? AS TEXT[]), CAST(? AS TEXT[])) AS n(place, name)"
            " ON t.tgrelid = to_regclass(quote_ident(n.place)) AND t.tgname = n.name"
            " WHERE p.proname <> t.tgname ORDER BY 2, 1"
        )
        wanted = list(triggers)
        return uow._rows(sql, ([t.table for t in wanted], [t.name for t in wanted]))

    def forget_guards(self, uow: Transaction) -> None:
        """Empty the record; `guard_record.install` has created it again if it was dropped."""
        uow._execute(_FORGET_GUARDS)

    def _require_places(self, uow: Transaction) -> None:
        """Refuse a table that is found in another schema than the one that its model names.

        Raises:
            UnknownSchemaError: There is one.
        """
        sql = (
            "SELECT CAST(relnamespace AS regnamespace) FROM pg_class WHERE oid = to_regclass(quote_ident(?))"
            " AND relnamespace <> CAST(quote_ident(?) AS regnamespace)"
        )
        for table in triggers.tables(Phase.EXPAND, uow.statements.moves):
            if table.schema and (found := uow._rows(sql, (table.name, table.schema))):
                raise errors.UnknownSchemaError(
                    f"{table.name} is found in schema {found[0][0]}, and its model names schema {table.schema}",
                    hint="nothing was changed; rename the other table, or let the role look in that schema first:"
                    " ALTER ROLE ... SET search_path",
                    table=table.name,
                )

    def _require_exact(self, uow: Transaction) -> None:
        """Refuse columns in which different texts are equal: a run, or a delete, would include rows of others.

        Raises:
            UnknownSchemaError: There is one.
        """
        names = {table.name for table in triggers.tables(Phase.EXPAND, uow.statements.moves)}
        found = uow._rows(
            "SELECT c.relname, a.attname, l.collname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid"
            " JOIN pg_collation AS l ON l.oid = a.attcollation WHERE NOT l.collisdeterministic"
            " AND pg_table_is_visible(c.oid) AND c.relkind IN ('r', 'p') AND c.relname = ANY (?) ORDER BY 1, 2",
            (sorted(names),),
        )
        for table, column, collation in found:
            raise errors.UnknownSchemaError(
                f"column {column} of {table} has the collation {collation}, in which different texts are equal",
                hint=f"no row was changed; ALTER TABLE {quoted(table)} ALTER COLUMN {quoted(column)}"
                ' TYPE TEXT COLLATE "default"',
                table=table,
                column=column,
            )

    def level_sequences(self, uow: Transaction) -> None:
        """Have both sides take ids from the sequence of the legacy table, above the highest id of either (rule 3)."""
        for pair in uow.statements.moves:
            if pair.is_numbered:  # other keys are not generated
                self._level(uow, pair)

    def _level(self, uow: Transaction, pair: Move) -> None:
        legacy, own, key, legacy_key = pair.legacy_name, pair.table.name, pair.keys[0].name, pair.legacy_keys[0]
        shared = self._sequence_of(uow, legacy, legacy_key)
        if shared is None:
            raise errors.MigrationError(
                f"column {legacy_key} of {legacy} has no sequence to draw ids from",
                hint=f"make one: CREATE SEQUENCE ... OWNED BY {legacy}.{legacy_key}, and give the column its default",
            )
        given = [self.sequence(uow, legacy), *([self.sequence(uow, own)] if pair.own_id is None else [])]
        keys = ((*pair.key_names(side), pair.table_name(side)) for side in Side)
        given += [uow._rows(f"SELECT max({quoted(of)}) FROM {quoted(table)}")[0][0] for of, table in keys]
        highest = max((value for value in given if value is not None), default=None)
        if highest is not None and highest > 0:  # a sequence begins at 1
            uow._execute("SELECT setval(CAST(:name AS regclass), :value)", {"name": shared, "value": highest})
            if pair.own_id is None:
                self.set_sequence(uow, own, highest)  # the shared one is dropped with the legacy table
        if pair.own_id is None and not self._draws_from(uow, own, key, shared):
            self._draw_from(uow, own, key, shared)

    def _sequence_of(self, uow: Transaction, table: str, column: str) -> str | None:
        name: str | None = uow._rows(
            "SELECT pg_get_serial_sequence(quote_ident(:table), :column)", {"table": table, "column": column}
        )[0][0]
        return name

    def _draws_from(self, uow: Transaction, table: str, column: str, sequence: str) -> bool:
        sql = (
            "SELECT 1 FROM pg_depend AS d"
            " JOIN pg_attrdef AS a ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid"
            " JOIN pg_attribute AS c ON c.attrelid = a.adrelid AND c.attnum = a.adnum"
            " WHERE a.adrelid = to_regclass(quote_ident(:table)) AND c.attname = :column"
            " AND d.refobjid = CAST(:sequence AS regclass)"
        )
        return bool(uow._rows(sql, {"table": table, "column": column, "sequence": sequence}))

    def next_key_of(self, uow: Transaction, pair: Move, side: Side) -> int:
        """The next id if the table of the other side is gone, and with it the shared sequence."""
        sharing = uow.statements.moves.sharing(pair, Side.LEGACY)
        alone = len(sharing) == 1 and pair.own_id is None
        drawn = (pair.table_name(side),)
        if alone and (rows := uow._rows(f"SELECT nextval(CAST(s.oid AS regclass)) {DRAWN_FROM}", drawn)):
            return int(rows[0][0])
        uow._execute("SELECT pg_advisory_xact_lock(hashtext('consensus_orm_next_key'))")
        found: list[int | None] = []
        for each in sharing:
            table = quoted(each.table_name(side))
            found.append(uow._rows(f"SELECT max({quoted(*each.key_names(side))}) FROM {table}")[0][0])
            found += [self.sequence(uow, each.table.name)] if each.own_id is None else []
        key = max(value or 0 for value in found) + 1
        for each in sharing if not alone else ():  # what other programs write takes its ids from these
            if each.own_id is None:
                self.set_sequence(uow, each.table.name, key)
        return key

    def free_key(self, uow: Transaction, pair: Move) -> Any:
        """The next id; at CONTRACT the sequence of a legacy table is another program's and is not used."""
        if uow.phase.has_legacy:
            return uow._execute(uow.statements[pair].next_key).fetchone()[0]
        return self.next_key_of(uow, pair, Side.NORMALIZED)

    def key_to_give(self, uow: Transaction, pair: Move) -> Any:
        """The next id, for a row whose table does not give it."""
        return self.free_key(uow, pair)

    def go_on_above(self, uow: Transaction, pair: Move) -> None:
        """Have ids assigned above those of the normalized side."""
        highest = uow._rows(uow.statements[pair].last_key(Side.NORMALIZED))[0][0]
        if pair.own_id is None and isinstance(highest, int) and highest > 0:
            last = "coalesce(pg_sequence_last_value(s.oid), 1)"
            uow._rows(
                f"SELECT setval(CAST(s.oid AS regclass), greatest({last}, {highest})) {DRAWN_FROM}", (pair.table.name,)
            )

    def sequence(self, uow: Transaction, table: str) -> int | None:
        """The highest id that a table has assigned; None if it never assigned one."""
        sql = (
            "SELECT pg_sequence_last_value(d.objid) FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid"
            " WHERE s.relkind = 'S' AND d.deptype IN ('a', 'i') AND d.refobjid = to_regclass(quote_ident(:table))"
        )
        rows = [value for (value,) in uow._rows(sql, {"table": table}) if value is not None]
        return max(rows, default=None)

    def set_sequence(self, uow: Transaction, table: str, value: int) -> None:
        """Have a table assign ids above an id."""
        sql = (
            "SELECT setval(CAST(d.objid AS regclass), :value) FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid"
            " WHERE s.relkind = 'S' AND d.deptype IN ('a', 'i') AND d.refobjid = to_regclass(quote_ident(:table))"
        )
        uow._execute(sql, {"table": table, "value": value})

    def used_up(self, uow: Transaction) -> str | None:
        """None: the server reports a sequence at its end by an error of its own."""
        return None

    # Writes that went around the repositories -------------------------------------------------------------

    def session_mark(self, uow: Transaction) -> tuple[int, bool]:
        """Nothing: records of a session have negative numbers, and no other transaction ever sees them."""
        return 0, True

    def written_since(self, uow: Transaction, mark: int) -> list[tuple[Any, ...]]:
        """Delete the records with negative numbers, and return them."""
        return sorted(uow._execute(_TAKE_WRITTEN).fetchall(), key=itemgetter(2), reverse=True)

    def inserted(self, uow: Transaction, side: Side) -> int:
        """How many rows this transaction has inserted; 0 where the server counts none."""
        names = sorted({pair.table_name(side) for pair in uow.statements.moves})
        return int(uow._rows(_INSERTED, (names,))[0][0])

    def triggers_of_others(self, uow: Transaction) -> list[str]:
        """Names of the triggers on mapped tables that this package has not made."""
        mapped = [table.name for table in triggers.tables(uow.phase, uow.statements.moves)]
        mine = {(s.name, s.table) for s in ours(uow)}
        found = uow._rows(_TRIGGERS, (mapped,))
        return sorted({name for name, table in found if (name, table) not in mine})

    def forget_changes(self, uow: Transaction, *, after: int) -> None:
        """Nothing: the package's own writes were never recorded, while other programs' may be meanwhile."""

    def forget_row(self, uow: Transaction, pair: Move, key: object) -> None:
        """Nothing: the package's own writes were never recorded."""

    def unnoticed(self, uow: Transaction, pair: Move, side: Side) -> contextlib.AbstractContextManager[None]:
        """Nothing: triggers know a repository by a setting of its transaction."""
        return contextlib.nullcontext()

    def legacy_unfrozen(self, uow: Transaction) -> contextlib.AbstractContextManager[None]:
        """Nothing: a transaction that carries rows may write frozen tables all along."""
        return contextlib.nullcontext()
