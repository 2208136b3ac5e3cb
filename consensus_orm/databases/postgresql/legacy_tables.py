"""The legacy tables of a PostgreSQL database: put away at CONTRACT, and brought back exactly as they were.

The server has no definition of a table that could be saved verbatim: it would have to be composed of types, indexes,
privileges, comments, and views that read it. So the emptied table itself stays, renamed. At CONTRACT no statement uses
it, and an operator who will never go back may drop it.
"""

from __future__ import annotations

from collections.abc import Callable

from consensus_orm import errors
from consensus_orm.databases.base import Cells, LegacyTables, SavedRow, Transaction
from consensus_orm.databases.saved_rows import aside, dropped, unsafe
from consensus_orm.declaration.move import Move
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import quoted

__all__ = ["PostgresLegacyTables"]


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
        uow._execute(f"ALTER TABLE {quoted(name)} RENAME TO {quoted(dropped(name))}")

    def away(self, uow: Transaction) -> list[str]:
        """Names of the tables that were renamed and still have rows."""
        names = [dropped(pair.legacy_name) for pair in uow.statements.mapping.of_tables(Side.LEGACY)]
        there = uow.catalog.tables(uow)
        return [n for n in names if n in there and uow._rows(f"SELECT EXISTS (SELECT 1 FROM {quoted(n)})")[0][0]]

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
        for pair in uow.statements.mapping.of_tables(Side.LEGACY):
            name = pair.legacy_name
            if dropped(name) not in there or name in there:
                raise errors.MigrationError(
                    f"{name} cannot be brought back: {dropped(name)} was dropped, or something else took its name",
                    hint="stay at CONTRACT",
                )
            uow._execute(f"ALTER TABLE {quoted(dropped(name))} RENAME TO {quoted(name)}")

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
    text = data.decode("ascii")
    float(text)
    return text


_VALUES: dict[str, Callable[[bytes], str | None]] = {
    "null": lambda _: None,
    "integer": _number,
    "real": _number,
    "text": bytes.decode,
}
