"""The legacy tables of a PostgreSQL database: put away at CONTRACT, and brought back exactly as they were.

The server has no definition of a table that could be saved verbatim: it would have to be composed of types, indexes,
privileges, comments, and views that read it. So the emptied table itself stays, renamed. At CONTRACT no statement uses
it, and nothing depends on it: `finish_contract` drops it for good.
"""

from __future__ import annotations

from collections.abc import Callable

from consensus_orm import errors
from consensus_orm.databases.base import Cells, LegacyTables, SavedRow, Transaction
from consensus_orm.databases.saved_rows import aside, dropped, unsafe
from consensus_orm.declaration.move import Move
from consensus_orm.statements.rendering import quoted

__all__ = ["PostgresLegacyTables"]


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
    " WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(quote_ident(?)) AND d.deptype = 'n'"
    " AND coalesce(r.ev_class, c.conrelid, 0) <> d.refobjid ORDER BY 1"
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
        name = aside(pair.legacy_name, uow.catalog.tables(uow))
        uow._execute(f"ALTER TABLE {quoted(pair.legacy_name)} RENAME TO {quoted(name)}")
        return name

    def complete_again(self, uow: Transaction, pair: Move) -> None:
        """Nothing: what was dropped was not saved."""

    def put_away(self, uow: Transaction, pair: Move) -> None:
        """Rename a table out of the way, which takes milliseconds whatever its size."""
        name = pair.legacy_name
        self._let_go_of_sequence(uow, pair, name)
        uow._execute(f"ALTER TABLE {quoted(name)} RENAME TO {quoted(dropped(name))}")

    def _let_go_of_sequence(self, uow: Transaction, pair: Move, table: str) -> None:
        """Have the normalized table own the sequence that it takes its ids from, so that the other one can be dropped.

        It cannot own the sequence of an identity column, nor one of another role or schema: then it takes its ids from
        its own sequence, above those that were given.
        """
        for sequence, movable in uow._rows(_SHARED, (pair.table.name, table)):
            if movable:
                uow._execute(f"ALTER SEQUENCE {sequence} OWNED BY {quoted(pair.table.name, pair.key.name)}")
            else:
                uow.catalog.draw_from_own(uow, pair, above=uow.catalog.sequence(uow, table) or 1)

    def _take_sequence_back(self, uow: Transaction, pair: Move) -> None:
        """Have a table own the sequence again that was moved at CONTRACT."""
        for (sequence,) in uow._rows(_MOVED, (pair.legacy_name, pair.legacy_key, pair.table.name)):
            uow._execute(f"ALTER SEQUENCE {sequence} OWNED BY {quoted(pair.legacy_name, pair.legacy_key)}")

    def away(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and still have rows."""
        return [n for n in self.kept(uow) if uow._rows(f"SELECT EXISTS (SELECT 1 FROM {quoted(n)})")[0][0]]

    def old_place(self, uow: Transaction, pair: Move) -> str:
        """The quoted name of a table, with the schema in which it was: programs look for it there."""
        schema = "SELECT CAST(CAST(relnamespace AS regnamespace) AS TEXT) FROM pg_class"
        found = uow._rows(f"{schema} WHERE oid = to_regclass(quote_ident(?))", (dropped(pair.legacy_name),))
        return f"{found[0][0]}.{quoted(pair.legacy_name)}" if found else quoted(pair.legacy_name)

    def kept(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and are still there."""
        there = uow.catalog.tables(uow)
        return [name for name in (dropped(pair.legacy_name) for pair in uow.statements.mapping) if name in there]

    def dependents(self, uow: Transaction, name: str) -> list[str]:
        """Views, foreign keys, functions and defaults that use a renamed table, in the words of the server."""
        return [what for (what,) in uow._rows(_DEPENDENTS, (name,))]

    def drop(self, uow: Transaction, name: str) -> None:
        """Drop a renamed table for good, without its sequence, which the normalized table uses."""
        for pair in uow.statements.mapping:
            if dropped(pair.legacy_name) == name:  # an earlier release has left it the sequence
                self._let_go_of_sequence(uow, pair, name)
        uow._execute(f"DROP TABLE {quoted(name)}")

    def empty(self, uow: Transaction, name: str, rows: int) -> int:
        """Truncate a renamed table, which no other program uses."""
        (count,) = uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0]
        uow._execute(f"TRUNCATE TABLE {quoted(name)}")
        return int(count)

    def bring_back(self, uow: Transaction) -> None:
        """Rename the tables back, empty, with everything that belongs to them.

        Raises:
            MigrationError: A name is taken, or a table was dropped for good.
        """
        there = uow.catalog.tables(uow)
        for pair in uow.statements.mapping:
            name = pair.legacy_name
            if dropped(name) not in there or name in there:
                raise errors.MigrationError(
                    f"{name} cannot be brought back: {dropped(name)} was dropped, or something else took its name",
                    hint="stay at CONTRACT",
                )
            uow._execute(f"ALTER TABLE {quoted(dropped(name))} RENAME TO {quoted(name)}")
            self._take_sequence_back(uow, pair)

    def drop_again(self, uow: Transaction, pair: Move) -> None:
        """Undo `bring_back`, with whatever rows the table has."""
        uow._execute(f"TRUNCATE TABLE {quoted(pair.legacy_name)}")
        self.put_away(uow, pair)

    def complete(self, uow: Transaction, kind: str, name: str, table: str, sql: str, sequence: int | None) -> None:
        """Nothing: triggers and sequence stayed with the table."""

    @staticmethod
    def values(table: str, row: Cells) -> list[object]:
        """The values of a saved row as text, which the server converts to the type of the column."""
        try:
            return [_VALUES[kind](bytes.fromhex(digits)) for kind, digits in row.values()]
        except (KeyError, ValueError) as error:
            raise unsafe("row", table) from error

    def put_back(self, uow: Transaction, saved: SavedRow) -> None:
        """Insert a saved row, unless there is one with its key."""
        columns, places = ", ".join(map(quoted, saved.cells)), ", ".join("?" * len(saved.cells))
        sql = f"INSERT INTO {quoted(saved.table)} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING"
        uow._execute(sql, saved.values)


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
    "blob": bytes.decode,  # as the server prints it
}
