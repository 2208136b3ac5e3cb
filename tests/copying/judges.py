"""Sources of copies, and what both sides of a copy hold, by raw SQL."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from consensus_orm import ConsensusStore, Phase
from consensus_orm.copying import CopyReport
from consensus_orm.progress import Progress
from consensus_orm.settings import Settings
from tests.field import builders, rows, server
from tests.support import oracle, oracle_of_servers

NO_TIME = timedelta(0)
SETTINGS = Settings(soak_dual_write=NO_TIME, soak_cutover=NO_TIME, soak_normalized=NO_TIME, chunk_pause=NO_TIME)
SMALL = SETTINGS.model_copy(update={"chunk_rows": 4})
"""Small chunks, so that a few dozen rows are many transactions."""

LEGACY = ("consensus_artifacts", "consensus_synthesis")
SIDES = (*LEGACY, "consensus_runs", "agent_outputs", "consensus_syntheses", "agent_executions")
CHILDREN = ("agent_outputs", "consensus_syntheses")
LEDGERS = ("consensus_orm_mismatches", "consensus_orm_rejects", "consensus_orm_backfill", "consensus_orm_changes")
NUMBERS = {"id", "rowid", "artifacts_count", "degraded"}


def fitting_history(path: Path) -> None:
    """A legacy file with every odd row that PostgreSQL can hold, and ids that were given and are gone."""
    builders.build_legacy(path, columns=9, altered=True)
    with builders.writing(path) as connection:
        for table, odd in zip(LEGACY, (rows.ODD_ARTIFACTS, rows.ODD_SYNTHESES), strict=True):
            for name, columns in odd.items():
                # SQLite makes a number of this text in its column of times.
                if server.fits(columns) and name not in ("big", "long", "time_numeric_text"):
                    rows.insert(connection, table, columns)
        last = rows.insert(connection, "consensus_synthesis", {**rows.SYNTHESIS, "output_markdown": "soon gone"})
        connection.execute("DELETE FROM consensus_synthesis WHERE id = ?", (last,))


def odd_history(path: Path) -> None:
    """A legacy file with every odd row there is, which a build of the field has marked as its own."""
    builders.build_legacy(path, columns=11, user_version=2)
    with builders.writing(path) as connection:
        rows.insert_odd_rows(connection)


Sources = Callable[[Callable[[Path], None], Phase], Path]


def moved(source: Path | str, target: Path | str, settings: Settings = SETTINGS, **options: Any) -> CopyReport:
    """Copy from place to place."""
    with (
        ConsensusStore.open(source, settings=settings) as origin,
        ConsensusStore.open(target, settings=settings) as store,
    ):
        return origin.copy_to(store, **options)


def held(cell: oracle.Cell, column: str) -> bool:
    """Whether PostgreSQL holds a cell of a SQLite file, in a column of its name."""
    kind, digits = cell
    if kind == "null" or column in NUMBERS:
        return kind in ("null", "integer")
    data = bytes.fromhex(digits) if kind == "text" else b"\0"
    return b"\0" not in data and data.decode("utf-8", "replace").encode() == data


def names(path: Path, table: str) -> list[str]:
    with oracle.reading(path) as connection:
        return ["rowid", *(name.strip('"') for name in oracle.columns(connection, table))]


def unheld(path: Path) -> set[tuple[str, int]]:
    """Table and id of the legacy rows of a file that PostgreSQL cannot hold."""
    found = set()
    for table in LEGACY:
        for row in oracle.rows(path, table):
            if not all(map(held, row, names(path, table))):
                found.add((table, int(bytes.fromhex(row[0][1]))))
    return found


def cells_of_server(url: str, table: str) -> list[dict[str, oracle.Cell]]:
    """The rows of a table by column, in SQLite's names of types."""
    with oracle_of_servers.reading(url) as connection:
        columns = [name.strip('"') for name in oracle_of_servers.columns(connection, table)]
    found = [dict(zip(columns, row, strict=True)) for row in oracle_of_servers.rows(url, table)]
    keys = {"key", "last_key"} if table.startswith("consensus_orm_") else set()
    return [{column: _key(cell) if column in keys else _plain(cell) for column, cell in row.items()} for row in found]


def _key(cell: oracle.Cell) -> oracle.Cell:
    """The key of a row in a ledger, which a server keeps as JSON."""
    kind, digits = cell
    if kind != "text":
        return _plain(cell)
    key = json.loads(bytes.fromhex(digits))
    return ("text" if isinstance(key, str) else "integer"), str(key).encode().hex()


def _plain(cell: oracle.Cell) -> oracle.Cell:
    kind, digits = cell
    if kind == "boolean":
        return "integer", (b"1" if bytes.fromhex(digits) in (b"t", b"true") else b"0").hex()
    return {"bigint": "integer"}.get(kind, kind), digits


def cells_of_file(path: Path, table: str) -> list[dict[str, oracle.Cell]]:
    """The rows of a table by column."""
    columns = names(path, table)
    return [dict(zip(columns[1:], row[1:], strict=True)) for row in oracle.rows(path, table)]


def assert_same_rows(path: Path, url: str, *tables: str) -> None:
    """A file and a database of a server hold the same, columns that one has and nobody filled aside."""
    for table in tables:
        here, there = cells_of_file(path, table), cells_of_server(url, table)
        shared = set(here[0] if here else ()) & set(there[0] if there else ())
        by = next(iter(here[0])) if here else ""
        assert sorted(({c: row[c] for c in shared} for row in here), key=lambda row: row[by]) == sorted(
            ({c: row[c] for c in shared} for row in there), key=lambda row: row[by]
        ), table
        assert all(row[c] == ("null", "") for row in there for c in row.keys() - shared), table


def foreign_definitions(path: Path, *tables: str) -> list[Any]:
    """What the schema says of some tables, without our triggers."""
    found = [d for d in oracle.definitions(path, *tables) if not d[1].startswith("consensus_orm_")]
    return sorted(found, key=str)


def state_of(place: Path | str) -> tuple[Any, ...]:
    sql = "SELECT phase, epoch, since, step, user_version FROM consensus_orm_state"
    if isinstance(place, str):
        with psycopg.connect(place) as server_connection:
            return tuple(server_connection.execute(sql.encode()).fetchall())
    with oracle.reading(place) as connection:
        return tuple(connection.execute(sql).fetchall())


def sides(phase: Phase) -> tuple[str, ...]:
    return SIDES if phase.has_legacy else SIDES[2:]


def _copied(source: Path, target: Path) -> Path:
    with contextlib.closing(sqlite3.connect(source)) as here, contextlib.closing(sqlite3.connect(target)) as there:
        here.backup(there)
    return target


def _id(row: dict[str, oracle.Cell]) -> int:
    return int(bytes.fromhex(row["id"][1]))


def _add_one(uow: Any) -> Any:
    return uow.artifacts.add(spec_id="SPEC-LIVE", stage="s", agent_name="a", content_json="{}")


class _Once:
    """Does something once, when so many rows of a table are left in a pass."""

    def __init__(self, table: str, left: int, work: Callable[[], object]) -> None:
        self.table, self.left, self.work = table, left, work
        self.is_done = False

    def __call__(self, seen: Progress) -> None:
        if seen.pair == self.table and seen.total - seen.done <= self.left and not self.is_done:
            self.is_done = True
            self.work()
