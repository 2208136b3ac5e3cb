"""The legacy tables of a PostgreSQL database: put away at CONTRACT, and brought back exactly as they were.

The server has no definition of a table that could be saved verbatim: it would have to be composed of types, indexes,
privileges, comments, and views that read it. So the emptied table itself stays, renamed. At CONTRACT no statement uses
it, and nothing depends on it: `finish_contract` drops it for good.

Triggers and rules of other programs are off from then on, until the rows are back: they would fire when the table is
emptied, and change what is carried back. Nor is anything of this published. The table leaves the publications that name
it, and comes back to them with its rows. One that publishes all tables, or those of a schema, lacks unlogged tables: so
the table becomes one before it is emptied. On the way back it is published again before it is filled, so that its
subscribers get all rows: they have to empty their table first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from consensus_orm import errors
from consensus_orm.databases import saved_schema
from consensus_orm.databases.base import PREFIX, Cells, LegacyTables, SavedRow, Transaction
from consensus_orm.databases.saved_rows import aside, dropped, unsafe
from consensus_orm.declaration.move import Move
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import quoted

__all__ = ["PostgresLegacyTables"]


_WITH_REFERRING = (
    "WITH RECURSIVE t(oid) AS (SELECT CAST(to_regclass(quote_ident(?)) AS oid) UNION SELECT c.conrelid"
    " FROM pg_constraint AS c JOIN t ON c.confrelid = t.oid WHERE c.contype = 'f')"
    " SELECT relname FROM pg_class JOIN t USING (oid) WHERE pg_table_is_visible(oid)"
)
"""A table, and all that refer to it by foreign keys."""

_DRAWN = (
    " FROM pg_attrdef AS e JOIN pg_attribute AS a ON a.attrelid = e.adrelid AND a.attnum = e.adnum"
    " JOIN pg_depend AS u ON u.classid = 'pg_attrdef'::regclass AND u.objid = e.oid"
    " JOIN pg_class AS s ON s.oid = u.refobjid AND s.relkind = 'S'"
    " JOIN pg_depend AS o ON o.objid = s.oid AND o.classid = 'pg_class'::regclass AND o.deptype IN ('a', 'i')"
)
"""Sequences that a column draws from (its table `e.adrelid`), and the tables that own them (`o.refobjid`)."""

_SHARED = (
    "SELECT DISTINCT CAST(CAST(s.oid AS regclass) AS TEXT), o.deptype = 'a' AND s.relnamespace = n.relnamespace"
    f" AND s.relowner = n.relowner{_DRAWN} JOIN pg_class AS n ON n.oid = e.adrelid"
    " WHERE e.adrelid = to_regclass(quote_ident(?)) AND o.refobjid = to_regclass(quote_ident(?))"
)
"""Sequences that the first table draws from and the second one owns, and whether the first can own them."""

_MOVED = (
    f"SELECT DISTINCT CAST(CAST(s.oid AS regclass) AS TEXT){_DRAWN} WHERE e.adrelid = to_regclass(quote_ident(?))"
    " AND a.attname = ? AND o.refobjid = to_regclass(quote_ident(?))"
)
"""Sequences that a column of the first table draws from and the second table owns."""

_DEPENDENTS = (
    "SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend AS d"
    " LEFT JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid"
    " LEFT JOIN pg_constraint AS c ON d.classid = 'pg_constraint'::regclass AND c.oid = d.objid"
    " WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(quote_ident(:name)) AND d.deptype = 'n'"
    " AND coalesce(r.ev_class, c.conrelid, 0) NOT IN"
    " (SELECT CAST(to_regclass(quote_ident(k)) AS oid) FROM unnest(CAST(:kept AS text[])) AS k) ORDER BY 1"
)


class PostgresLegacyTables(LegacyTables):
    """Puts the legacy tables of a database away, and brings them back."""

    def save(self, uow: Transaction, pair: Move) -> list[tuple[str, str, str, int | None]]:
        """The name of the table and its sequence; everything else stays with the renamed table."""
        name = pair.legacy_table.name
        return [("table", name, quoted(dropped(name)), uow.catalog.sequence(uow, name))]

    def remember(self, uow: Transaction) -> None:
        """Nothing: there is no definition to save."""

    def make_again(self, uow: Transaction, pair: Move) -> None:
        """Create a legacy table that another program dropped, from its model."""
        uow.catalog.create(uow, [pair.legacy_table])

    def set_aside(self, uow: Transaction, pair: Move) -> str:
        """Rename a table that cannot be used any more, with its rows."""
        name = aside(pair.legacy_name, {name.lower() for name in uow.catalog.tables(uow)})
        uow._execute(f"ALTER TABLE {quoted(pair.legacy_name)} RENAME TO {quoted(name)}")
        return name

    def complete_again(self, uow: Transaction, pair: Move) -> None:
        """Nothing: what was dropped was not saved."""

    def put_away(self, uow: Transaction, pair: Move) -> None:
        """Rename a table out of the way, which takes milliseconds whatever its size."""
        name = pair.legacy_name
        self._let_go_of_sequence(uow, pair, name)
        self._silence(uow, name)
        self._leave_publications(uow, name)
        uow._execute(f"ALTER TABLE {quoted(name)} RENAME TO {quoted(dropped(name))}")

    def _let_go_of_sequence(self, uow: Transaction, pair: Move, table: str) -> None:
        """Have the normalized table own the sequence that it takes its ids from, so that the other one can be dropped.

        It cannot own the sequence of an identity column, nor one of another role or schema: then it takes its ids from
        its own sequence, above those that were given.
        """
        for sequence, movable in uow._rows(_SHARED, (pair.table.name, table)):
            if movable:
                uow._execute(f"ALTER SEQUENCE {sequence} OWNED BY {quoted(pair.table.name, pair.keys[0].name)}")
            else:
                uow.catalog.draw_from_own(uow, pair, above=uow.catalog.sequence(uow, table) or 1)

    def _take_sequence_back(self, uow: Transaction, pair: Move) -> None:
        """Have a table own the sequence again that was moved at CONTRACT."""
        for (sequence,) in uow._rows(_MOVED, (pair.legacy_name, pair.legacy_keys[0], pair.table.name)):
            uow._execute(f"ALTER SEQUENCE {sequence} OWNED BY {quoted(pair.legacy_name, pair.legacy_keys[0])}")

    def away(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and still have rows."""
        return [n for n in self.kept(uow) if uow._rows(f"SELECT EXISTS (SELECT 1 FROM {quoted(n)})")[0][0]]

    def old_place(self, uow: Transaction, pair: Move) -> str:
        """The quoted name of a table, with the schema in which it was: programs look for it there."""
        schema = "SELECT CAST(CAST(relnamespace AS regnamespace) AS TEXT) FROM pg_class"
        found = uow._rows(f"{schema} WHERE oid = to_regclass(quote_ident(?))", (dropped(pair.legacy_name),))
        return f"{found[0][0]}.{quoted(pair.legacy_name)}" if found else quoted(pair.legacy_name)

    def show_sign(self, uow: Transaction, place: str) -> None:
        """Let every role read the view that stands where a legacy table was."""
        uow._execute(f"GRANT SELECT ON {place} TO PUBLIC")

    def kept(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and are still there."""
        there = uow.catalog.tables(uow)
        # A later one may refer to an earlier one, and goes before it.
        names = [dropped(pair.legacy_name) for pair in reversed(list(uow.statements.moves))]
        return [name for name in names if name in there]

    def dependents(self, uow: Transaction, name: str) -> list[str]:
        """Views, foreign keys, functions and defaults that use a renamed table, in the words of the server."""
        return [what for (what,) in uow._rows(_DEPENDENTS, {"name": name, "kept": self.kept(uow)})]

    def drop(self, uow: Transaction, name: str) -> None:
        """Drop a renamed table for good, without its sequence, which the normalized table uses."""
        for pair in uow.statements.moves:
            if dropped(pair.legacy_name) == name:  # an earlier release has left it the sequence
                self._let_go_of_sequence(uow, pair, name)
        uow._execute(f"DROP TABLE {quoted(name)}")

    def empty(self, uow: Transaction, name: str, rows: int) -> int:
        """Truncate a renamed table, which no other program uses."""
        (count,) = uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0]
        self._truncate(uow, name)
        return int(count)

    def bring_back(self, uow: Transaction) -> None:
        """Rename the tables back, empty, with everything that belongs to them.

        Raises:
            MigrationError: A name is taken, or a table was dropped for good.
        """
        there = uow.catalog.tables(uow)
        for pair in uow.statements.moves.of_tables(Side.LEGACY):
            name = pair.legacy_name
            if dropped(name) not in there or name in there:
                raise errors.MigrationError(
                    f"{name} cannot be brought back: {dropped(name)} was dropped, or something else took its name",
                    hint="stay at CONTRACT",
                )
            self._log_again(uow, dropped(name))
            uow._execute(f"ALTER TABLE {quoted(dropped(name))} RENAME TO {quoted(name)}")
            self._take_sequence_back(uow, pair)
            self._silence(uow, name)  # those that are there since then, or were left on by an earlier release
        uow.catalog.give_rights(uow, [pair.legacy_name for pair in uow.statements.moves])  # roles may be newer

    def drop_again(self, uow: Transaction, pair: Move) -> None:
        """Undo `bring_back`, with whatever rows the table has."""
        self._truncate(uow, pair.legacy_name)
        self.put_away(uow, pair)

    def complete(self, uow: Transaction, kind: str, name: str, table: str, sql: str, sequence: int | None) -> None:
        """Switch a trigger or rule on again, or publish the table again, where that was not dropped meanwhile."""
        if kind in ("trigger", "rule"):
            schema, of, enabled = _facts(kind, table, sql)
            if enabled not in _ENABLE:
                raise unsafe(kind, table)
            if uow._rows(_ANY[kind], {"schema": schema, "table": of, "name": name}):
                on = f"ALTER TABLE {quoted(schema)}.{quoted(of)} {_ENABLE[enabled]} {kind.upper()} {quoted(name)}"
                uow._execute(on)
        elif kind == "publication":
            columns = _facts(kind, table, sql)
            there = "SELECT 1 FROM pg_publication WHERE pubname = ?"
            if uow._rows(there, (name,)) and name not in dict(self._publications(uow, table)):
                listed = f" ({', '.join(map(quoted, columns))})" if columns else ""
                uow._execute(f"ALTER PUBLICATION {quoted(name)} ADD TABLE {quoted(table)}{listed}")

    def _silence(self, uow: Transaction, table: str) -> None:
        """Switch off the triggers and rules of other programs, and save which were on."""
        for kind, schema, of, name, enabled in uow._rows(_ENABLED, {"table": table, "prefix": PREFIX}):
            saved_schema.append(uow, kind, name, table, json.dumps([schema, of, enabled]))
            uow._execute(f"ALTER TABLE {quoted(schema)}.{quoted(of)} DISABLE {kind.upper()} {quoted(name)}")

    def _leave_publications(self, uow: Transaction, table: str) -> None:
        """Take a table out of the publications that name it, and save which."""
        for name, columns in self._publications(uow, table):
            saved_schema.append(uow, "publication", name, table, json.dumps(columns))
            uow._execute(f"ALTER PUBLICATION {quoted(name)} DROP TABLE {quoted(table)}")

    def _publications(self, uow: Transaction, table: str) -> list[tuple[str, list[str]]]:
        """The publications that name a table, each with the columns that it names."""
        return [(name, columns) for name, columns in uow._rows(_NAMED_IN, {"table": table})]

    def _truncate(self, uow: Transaction, table: str) -> None:
        """Empty a table, its partitions one by one, with the legacy tables that refer to it, which go, too."""
        whole = [part for (of,) in uow._rows(_WITH_REFERRING, (table,)) for part in self._parts(uow, of)]
        if whole:
            uow._execute(f"TRUNCATE TABLE {', '.join(whole)}")

    def _parts(self, uow: Transaction, table: str) -> Iterator[str]:
        """The quoted names of what stores the rows of a table; unlogged from now on, where it would be published."""
        stored = uow._rows(_STORED, {"table": table})
        published = bool(uow._rows(_PUBLISHED, {"table": table}))
        for schema, name, logged in stored:
            if logged and published:
                saved_schema.append(uow, "unlogged", name, table, schema)
                uow._execute(f"ALTER TABLE {quoted(schema)}.{quoted(name)} SET UNLOGGED")
            yield f"{quoted(schema)}.{quoted(name)}"

    def _log_again(self, uow: Transaction, table: str) -> None:
        """Make an empty table that is unlogged for its publications a logged one."""
        unlogged = {(entry.sql, entry.name) for entry in saved_schema.entries(uow) if entry.type == "unlogged"}
        for schema, name, logged in uow._rows(_STORED, {"table": table}):
            if not logged and (schema, name) in unlogged:
                uow._execute(f"ALTER TABLE {quoted(schema)}.{quoted(name)} SET LOGGED")
        saved_schema.forget_of(uow, "unlogged", table)

    @staticmethod
    def values(table: str, row: Cells) -> list[object]:
        """The values of a saved row as text, which the server converts to the type of the column."""
        try:
            return [_VALUES[kind](bytes.fromhex(digits)) for kind, digits in row.values()]
        except (KeyError, ValueError) as error:
            raise unsafe("row", table) from error

    def put_back(self, uow: Transaction, saved: SavedRow) -> bool:
        """Insert a saved row, unless there is one with its key; returns whether it was inserted."""
        columns, places = ", ".join(map(quoted, saved.cells)), ", ".join("?" * len(saved.cells))
        sql = f"INSERT INTO {quoted(saved.table)} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING"
        return uow._execute(sql, saved.values).rowcount > 0


_PARTS = (
    "(SELECT to_regclass(quote_ident(:table)) AS oid UNION SELECT relid FROM"
    " pg_partition_tree(to_regclass(quote_ident(:table))) AS p)"
)
_STORED = (
    "SELECT n.nspname, c.relname, c.relpersistence = 'p' FROM pg_class AS c"
    f" JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.oid IN {_PARTS} ORDER BY 1, 2"
)
"""The tables in which the rows of a table are, and whether they are logged: itself, or its partitions."""
_PUBLISHED = (
    "SELECT 1 FROM pg_publication_tables AS p JOIN pg_namespace AS n ON n.nspname = p.schemaname"
    f" JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename WHERE c.oid IN {_PARTS} LIMIT 1"
)
_NAMED_IN = (
    "SELECT p.pubname, ARRAY(SELECT CAST(a.attname AS TEXT) FROM pg_attribute AS a"
    " WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs) ORDER BY a.attnum)"
    " FROM pg_publication_rel AS r JOIN pg_publication AS p ON p.oid = r.prpubid"
    " WHERE r.prrelid = to_regclass(quote_ident(:table)) ORDER BY 1"
)
_ENABLED = (
    "SELECT 'trigger', n.nspname, c.relname, t.tgname, CAST(t.tgenabled AS TEXT) FROM pg_trigger AS t"
    " JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " JOIN pg_proc AS f ON f.oid = t.tgfoid WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled <> 'D'"
    f" AND NOT (starts_with(t.tgname, :prefix) AND f.proname = t.tgname) AND c.oid IN {_PARTS}"
    " UNION ALL SELECT 'rule', n.nspname, c.relname, r.rulename, CAST(r.ev_enabled AS TEXT) FROM pg_rewrite AS r"
    " JOIN pg_class AS c ON c.oid = r.ev_class JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    f" WHERE r.ev_enabled <> 'D' AND c.oid IN {_PARTS} ORDER BY 1 DESC, 4"
)
"""The triggers and rules of other programs on a table and its partitions that are on."""
_ENABLE = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}
_OF = "to_regclass(quote_ident(:schema) || '.' || quote_ident(:table)) AND"
_ANY = {
    "trigger": f"SELECT 1 FROM pg_trigger WHERE tgrelid = {_OF} tgname = :name",
    "rule": f"SELECT 1 FROM pg_rewrite WHERE ev_class = {_OF} rulename = :name",
}


def _facts(kind: str, table: str, text: str) -> list[str]:
    """What was saved of a trigger, rule or publication.

    Raises:
        UnsafeDefinitionError: It is none of that.
    """
    try:
        found = json.loads(text)
        right = isinstance(found, list) and all(isinstance(each, str) for each in found)
        if right and (kind == "publication" or len(found) == 3):
            return list(found)
    except ValueError:
        pass
    raise unsafe(kind, table)


def _number(data: bytes) -> str:
    """A number, or a boolean, which SQLite keeps as one."""
    text = data.decode("ascii")
    if text not in ("true", "false"):
        float(text)
    return text


_VALUES: dict[str, Callable[[bytes], str | None]] = {
    "null": lambda _: None,
    "integer": _number,
    "real": _number,
    "text": bytes.decode,
    "blob": lambda data: f"\\x{data.hex()}",  # as the server reads it
}
