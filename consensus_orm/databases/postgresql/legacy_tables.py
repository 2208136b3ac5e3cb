"""What becomes of the legacy tables at CONTRACT, and how they come back exactly as they were: on PostgreSQL.

There is no definition of a table to keep verbatim, and what would have to be put together again (types, indexes,
privileges, comments, views that read it) the server itself keeps best. So the emptied table stays, renamed, as its
own saved schema; at CONTRACT no statement of ours touches it, and whoever will never go back may drop it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consensus_orm import errors
from consensus_orm.databases.base import Cells, LegacyTables, SavedRow, Transaction
from consensus_orm.databases.saved_rows import aside, dropped, unsafe
from consensus_orm.declaration.move import Move
from consensus_orm.statements.rendering import quoted

__all__ = ["PostgresLegacyTables"]


class PostgresLegacyTables(LegacyTables):
    """The legacy tables of a database on their way out, and back."""

    def save(self, uow: Transaction, pair: Move) -> list[tuple[str, str, str, int | None]]:
        """That there was a table, and its sequence; all else stays with the renamed table."""
        name = pair.legacy_table.name
        return [("table", name, quoted(dropped(name)), uow.catalog.sequence(uow, name))]

    def remember(self, uow: Transaction) -> None:
        """Nothing: there is no definition to keep."""

    def make_again(self, uow: Transaction, pair: Move) -> None:
        """Make a legacy table that another program dropped, from its model."""
        uow.catalog.create(uow, [pair.legacy_table])

    def set_aside(self, uow: Transaction, pair: Move) -> str:
        """Take a table out of the way that cannot be used any more, with its rows."""
        name = aside(pair.legacy_name, uow.catalog.tables(uow))
        uow._execute(f"ALTER TABLE {quoted(pair.legacy_name)} RENAME TO {quoted(name)}")
        return name

    def complete_again(self, uow: Transaction, pair: Move) -> None:
        """Nothing: what was dropped was kept nowhere."""

    def put_away(self, uow: Transaction, pair: Move) -> None:
        """Take a table out of the way, which takes milliseconds whatever it holds."""
        name = pair.legacy_name
        uow._execute(f"ALTER TABLE {quoted(name)} RENAME TO {quoted(dropped(name))}")

    def away(self, uow: Transaction) -> list[str]:
        """Names of the tables that were put away and still hold rows."""
        names = [dropped(pair.legacy_name) for pair in uow.statements.mapping]
        there = uow.catalog.tables(uow)
        return [n for n in names if n in there and uow._rows(f"SELECT EXISTS (SELECT 1 FROM {quoted(n)})")[0][0]]

    def empty(self, uow: Transaction, name: str, rows: int) -> int:
        """Empty a table that was put away: at once, since nobody else uses it.

        Returns:
            How many rows there were.
        """
        (count,) = uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0]
        uow._execute(f"TRUNCATE TABLE {quoted(name)}")
        return int(count)

    def bring_back(self, uow: Transaction) -> None:
        """Give the tables their names again, empty, with everything that belongs to them.

        Raises:
            MigrationError: Something took a name, or somebody dropped the table for good.
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

    def drop_again(self, uow: Transaction, pair: Move) -> None:
        """Undo `bring_back`, whatever the table holds by now."""
        uow._execute(f"TRUNCATE TABLE {quoted(pair.legacy_name)}")
        self.put_away(uow, pair)

    def complete(self, uow: Transaction, kind: str, name: str, table: str, sql: str, sequence: int | None) -> None:
        """Nothing: triggers and sequence never left the table."""

    def values(self, table: str, row: Cells) -> list[Any]:
        """The values of a saved row as text, which the server reads as the type of their column."""
        try:
            return [_VALUES[kind](bytes.fromhex(digits)) for kind, digits in row.values()]
        except (KeyError, ValueError) as error:
            raise unsafe("row", table) from error

    def put_back(self, uow: Transaction, saved: SavedRow) -> None:
        """Insert a row again that was saved, where there is none under its key."""
        columns, places = ", ".join(map(quoted, saved.cells)), ", ".join("?" * len(saved.cells))
        sql = f"INSERT INTO {quoted(saved.table)} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING"
        uow._execute(sql, saved.values)


def _number(data: bytes) -> str:
    text = data.decode("ascii")
    float(text)
    return text


_VALUES: dict[str, Callable[[bytes], str | None]] = {
    "null": lambda _: None,
    "integer": _number,
    "real": _number,
    "text": bytes.decode,
}
