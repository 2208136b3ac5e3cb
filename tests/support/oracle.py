"""An independent judge: raw SQL with typeof and hex, importing nothing of the package.

A cell is `(typeof, hex of its bytes)`; real numbers, whose text leaves digits out, are `("real", repr)`.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

Cell = tuple[str, str]
Row = tuple[Cell, ...]

LEGACY = ("consensus_artifacts", "consensus_synthesis")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file for reading only."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        yield connection


def sha256(path: Path) -> str:
    """The bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def untouched(path: Path) -> Iterator[None]:
    """Nothing in a file changes meanwhile, and nothing is left beside it."""
    before, beside = sha256(path), sorted(path.parent.iterdir())
    yield
    assert (sha256(path), sorted(path.parent.iterdir())) == (before, beside)


def _cells(names: list[str]) -> str:
    return ", ".join(
        f"typeof({name}), CASE typeof({name}) WHEN 'real' THEN printf('%!.20g', {name}) ELSE hex({name}) END"
        for name in names
    )


def query(connection: sqlite3.Connection, names: list[str], rest: str) -> list[Row]:
    """Read expressions as cells.

    Args:
        connection: Where.
        names: Columns or expressions.
        rest: FROM and what follows.
    """
    rows = connection.execute(f"SELECT {_cells(names)} {rest}")
    return [tuple(zip(row[::2], row[1::2], strict=True)) for row in rows]


def columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """The columns of a table, in their order."""
    return [f'"{row[1]}"' for row in connection.execute(f'PRAGMA table_info("{table}")')]


def rows(path: Path, table: str) -> list[Row]:
    """All rows of a table with their rowids, every cell in type and bytes."""
    with reading(path) as connection:
        return query(connection, ["rowid", *columns(connection, table)], f'FROM "{table}" ORDER BY rowid')


def tables(path: Path) -> list[str]:
    """The tables there are."""
    with reading(path) as connection:
        return [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
            )
        ]


def everything(path: Path) -> dict[str, list[Row]]:
    """All rows of all tables."""
    return {name: rows(path, name) for name in tables(path)}


def definitions(path: Path, *names: str) -> list[tuple[str, str, str, str | None]]:
    """What the schema says of some tables: type, name, table and SQL of each object, in their order."""
    with reading(path) as connection:
        everything = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid").fetchall()
    return [entry for entry in everything if entry[2] in names]


def sequences(path: Path) -> dict[str, int]:
    """The highest id ever given, by table."""
    with reading(path) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
            return {}
        return dict(connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())


def user_version(path: Path) -> int:
    """PRAGMA user_version."""
    with reading(path) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def image(path: Path, *names: str) -> tuple[object, ...]:
    """All there is to say of some tables: definitions, rows, sequences. Two equal images are equal tables."""
    given = sequences(path)
    return (
        definitions(path, *names),
        {name: rows(path, name) for name in names},
        {name: given.get(name) for name in names},
    )


ARTIFACTS = ("id", "spec_id", "stage", "agent_name", "content_json", "response_text", "run_id", "created_at")
SYNTHESES = (
    "id", "spec_id", "stage", "output_markdown", "output_path", "status", "artifacts_count", "agreements",
    "conflicts", "degraded", "run_id", "created_at",
)  # fmt: skip


Query = Callable[[list[str], str], list[Row]]


def legacy_of(query: Query) -> dict[str, list[Row]]:
    """The rows of the legacy side, by a query for expressions and what follows them."""
    return {
        "artifacts": query(list(ARTIFACTS), "FROM consensus_artifacts ORDER BY id"),
        "syntheses": query(list(SYNTHESES), "FROM consensus_synthesis ORDER BY id"),
    }


def normalized_of(query: Query) -> dict[str, list[Row]]:
    """The rows of the normalized side, in the shape of the legacy one."""

    def shaped(columns: tuple[str, ...], own: str, table: str, **renamed: str) -> list[Row]:
        of_the_run = {"spec_id", "stage", "run_id"}
        names = [f"{'r' if c in of_the_run else own}.{renamed.get(c, c)}" for c in columns]
        return query(names, f"FROM {table} AS {own} JOIN consensus_runs AS r ON r.id = {own}.run_id ORDER BY {own}.id")

    return {
        "artifacts": shaped(ARTIFACTS, "o", "agent_outputs", content_json="content"),
        "syntheses": shaped(SYNTHESES, "s", "consensus_syntheses"),
    }


def legacy(path: Path) -> dict[str, list[Row]]:
    """The rows of the legacy side."""
    with reading(path) as connection:
        return legacy_of(partial(query, connection))


def normalized(path: Path) -> dict[str, list[Row]]:
    """The rows of the normalized side, in the shape of the legacy one."""
    with reading(path) as connection:
        return normalized_of(partial(query, connection))
