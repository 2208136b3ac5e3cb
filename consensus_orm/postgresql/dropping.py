"""What becomes of the legacy tables at CONTRACT, and how they come back exactly as they were: on PostgreSQL.

There is no definition of a table to keep verbatim, and what would have to be put together again (types, indexes,
privileges, comments, views that read it) the server itself keeps best. So the emptied table stays, renamed, as its
own saved schema; at CONTRACT no statement of ours touches it, and whoever will never go back may drop it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus_orm import errors
from consensus_orm.dropping import LegacyTables, dropped
from consensus_orm.mapping import Pair
from consensus_orm.sql import literal, quoted

if TYPE_CHECKING:
    from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["PostgresLegacyTables"]


class PostgresLegacyTables(LegacyTables):
    """The legacy tables of a database on their way out, and back."""

    def save(self, uow: UnitOfWork, pair: Pair) -> list[tuple[str, str, str, int | None]]:
        """That there was a table, and its sequence; all else stays with the renamed table."""
        name = pair.legacy_table.name
        return [("table", name, quoted(dropped(name)), uow.catalog.sequence(uow, name))]

    def put_away(self, uow: UnitOfWork, pair: Pair) -> None:
        """Take a table out of the way, which takes milliseconds whatever it holds."""
        name = pair.legacy_name
        uow._execute(f"ALTER TABLE {quoted(name)} RENAME TO {quoted(dropped(name))}")

    def away(self, uow: UnitOfWork) -> list[str]:
        """Names of the tables that were put away and still hold rows."""
        names = [dropped(pair.legacy_name) for pair in uow.statements.mapping.pairs]
        there = uow.catalog.tables(uow)
        return [n for n in names if n in there and uow._rows(f"SELECT EXISTS (SELECT 1 FROM {quoted(n)})")[0][0]]

    def empty(self, uow: UnitOfWork, name: str, rows: int) -> int:
        """Empty a table that was put away: at once, since nobody else uses it.

        Returns:
            How many rows there were.
        """
        (count,) = uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0]
        uow._execute(f"TRUNCATE TABLE {quoted(name)}")
        return int(count)

    def bring_back(self, uow: UnitOfWork) -> None:
        """Give the tables their names again, empty, with everything that belongs to them.

        Raises:
            MigrationError: Something took a name, or somebody dropped the table for good.
        """
        there = uow.catalog.tables(uow)
        for pair in uow.statements.mapping.pairs:
            name = pair.legacy_name
            if dropped(name) not in there or name in there:
                raise errors.MigrationError(
                    f"{name} cannot be brought back: {dropped(name)} was dropped, or something else took its name",
                    hint="stay at CONTRACT",
                )
            uow._execute(f"ALTER TABLE {quoted(dropped(name))} RENAME TO {quoted(name)}")

    def drop_again(self, uow: UnitOfWork, pair: Pair) -> None:
        """Undo `bring_back`, whatever the table holds by now."""
        uow._execute(f"TRUNCATE TABLE {quoted(pair.legacy_name)}")
        self.put_away(uow, pair)

    def complete(self, uow: UnitOfWork, kind: str, name: str, sql: str, sequence: int | None) -> None:
        """Nothing: triggers and sequence never left the table."""

    def insert(self, table: str, columns: str, values: str) -> str:
        """A statement that inserts a row where there is none."""
        return f"INSERT INTO {quoted(table)} ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING"

    def literal(self, kind: str, value: str) -> str:
        """A stored value as SQL, from its type and bytes."""
        if kind == "null":
            return "NULL"
        if kind == "text":
            return f"convert_from(decode({literal(value)}, 'hex'), 'UTF8')"
        return bytes.fromhex(value).decode("ascii")
