"""Copies between databases, judged by raw SQL on both: every row in type and bytes, nothing written to the source."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import ConsensusStore, Mapping, Pair, Parent, Phase, errors
from consensus_orm.cli import main
from consensus_orm.consensus.application import APPLICATION
from consensus_orm.copying import CopyReport
from consensus_orm.copying.target import CHECKPOINTS
from consensus_orm.progress import Progress
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings
from consensus_orm.testing.phases import take_to
from tests import oracle, oracle_of_servers, servers
from tests.field import builders, rows, server
from tests.test_second_pair import LEGACY_TABLES, MAPPING
from tests.test_second_pair import path as second_pair  # noqa: F401 - a fixture

NO_TIME = timedelta(0)
SETTINGS = Settings(soak_dual_write=NO_TIME, soak_cutover=NO_TIME, soak_normalized=NO_TIME, chunk_pause=NO_TIME)
SMALL = SETTINGS.model_copy(update={"chunk_rows": 4})
"""Small chunks, so that a few dozen rows are many transactions."""

LEGACY = ("consensus_artifacts", "consensus_synthesis")
SIDES = (*LEGACY, "consensus_runs", "agent_outputs", "consensus_syntheses", "agent_executions")
CHILDREN = ("agent_outputs", "consensus_syntheses")
LEDGERS = ("consensus_orm_mismatches", "consensus_orm_rejects", "consensus_orm_backfill", "consensus_orm_changes")
NUMBERS = {"id", "rowid", "artifacts_count", "degraded"}


# Sources and judges -----------------------------------------------------------------------------------------


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
    """A legacy file with every odd row there is."""
    builders.build_legacy(path, columns=11)
    with builders.writing(path) as connection:
        rows.insert_odd_rows(connection)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], None], Phase], Path]:
    """Files of a history at a phase, each made once."""
    made: dict[tuple[Callable[[Path], None], Phase], Path] = {}

    def source(history: Callable[[Path], None], phase: Phase) -> Path:
        if (history, phase) not in made:
            path = made[history, phase] = tmp_path_factory.mktemp("sources") / f"{phase.name.lower()}.db"
            history(path)
            with ConsensusStore.open(path, settings=SETTINGS) as store:
                take_to(store, phase)
                for reject in store.migration.rejects():
                    store.migration.accept_reject(reject.id, reason="test")
        return made[history, phase]

    return source


Sources = Callable[[Callable[[Path], None], Phase], Path]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """An empty database on a server."""
    with servers.database() as url:
        yield url


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
    return [{column: _plain(cell) for column, cell in row.items()} for row in found]


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
    sql = "SELECT phase, epoch, since, step FROM consensus_orm_state"
    if isinstance(place, str):
        with psycopg.connect(place) as server_connection:
            return tuple(server_connection.execute(sql.encode()).fetchall())
    with oracle.reading(place) as connection:
        return tuple(connection.execute(sql).fetchall())


def sides(phase: Phase) -> tuple[str, ...]:
    return SIDES if phase.has_legacy else SIDES[2:]


# There and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name.lower())
def test_a_copy_holds_what_its_source_held_and_goes_back(
    sources: Sources, url: str, tmp_path: Path, phase: Phase
) -> None:
    """In every phase the server holds every row, ledgers and phase; a copy back gives the file, definitions and all."""
    source, back = sources(fitting_history, phase), tmp_path / "back.db"
    before = oracle.sha256(source)
    report = moved(source, url, SMALL)
    assert (report.finished, report.unfit, report.phase) == (True, (), phase)
    assert (
        report.verified
        == report.rows
        == sum(len(oracle.rows(source, t)) for t in sides(phase))
        + sum(len(oracle.rows(source, t)) for t in (*LEDGERS, "consensus_orm_history"))
    )
    assert_same_rows(source, url, *sides(phase), *LEDGERS)
    assert state_of(source) == state_of(url)
    assert moved(url, back, SMALL).finished
    for table in (*sides(phase), *LEDGERS):
        assert oracle.rows(back, table) == oracle.rows(source, table), table
    assert state_of(back) == state_of(source)
    assert foreign_definitions(back, *sides(phase)) == foreign_definitions(source, *sides(phase))
    given = {table: oracle.sequences(source).get(table) for table in LEGACY if phase.has_legacy}
    if phase.freezes_legacy:  # both sides draw from one place by now
        given = {table: max(value or 0, 0) for table, value in given.items()}
    assert {table: oracle.sequences(back).get(table) for table in given} == given
    with oracle.reading(back) as b, oracle.reading(source) as s:
        told = "SELECT * FROM consensus_orm_history ORDER BY id"
        here, there = s.execute(told).fetchall(), b.execute(told).fetchall()
        saved = "SELECT type, name, table_name, sql FROM consensus_orm_saved_schema ORDER BY position"
        assert b.execute(saved).fetchall() == s.execute(saved).fetchall()
    assert there[: len(here)] == here
    assert [row[1] for row in there[len(here) :]] == ["copy", "copy"]
    assert oracle.sha256(source) == before


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name.lower())
def test_the_phases_go_on_behind_a_copy(sources: Sources, url: str, tmp_path: Path, phase: Phase) -> None:
    """From any phase the server goes to CONTRACT and back to EXPAND, and a file made of it has the legacy rows."""
    original, source = sources(fitting_history, Phase.EXPAND), sources(fitting_history, phase)
    moved(source, url)
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(url, settings=settings) as store:
        if phase.compares or phase.freezes_legacy:
            assert store.migration.verify().clean
        take_to(store, Phase.CONTRACT)
        take_to(store, Phase.EXPAND)
    moved(url, tmp_path / "back.db")
    assert oracle.legacy(tmp_path / "back.db") == oracle.legacy(original)
    assert foreign_definitions(tmp_path / "back.db", *LEGACY) == foreign_definitions(original, *LEGACY)


def test_the_way_back_from_contract_survives_a_copy(sources: Sources, url: str, tmp_path: Path) -> None:
    """A file at CONTRACT that went over a server rolls back to the legacy tables it once had, sequences and all."""
    original = sources(fitting_history, Phase.EXPAND)
    moved(sources(fitting_history, Phase.CONTRACT), url)
    moved(url, tmp_path / "back.db")
    with ConsensusStore.open(tmp_path / "back.db", settings=SETTINGS) as store:
        take_to(store, Phase.EXPAND)
    assert oracle.legacy(tmp_path / "back.db") == oracle.legacy(original)
    assert foreign_definitions(tmp_path / "back.db", *LEGACY) == foreign_definitions(original, *LEGACY)
    given = oracle.sequences(tmp_path / "back.db")
    assert {t: given[t] for t in LEGACY} == {t: oracle.sequences(original)[t] for t in LEGACY}


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name.lower())
def test_no_id_is_given_twice(sources: Sources, url: str, phase: Phase) -> None:
    """What is written after a copy has an id that no row ever had, deleted ones of the source included."""
    source = sources(fitting_history, phase)
    given = {
        table: oracle.sequences(source).get(table, 0) for table in (*LEGACY, "agent_outputs", "consensus_syntheses")
    }
    with oracle.reading(source) as connection:
        saved = dict(connection.execute("SELECT name, sequence FROM consensus_orm_saved_schema WHERE type = 'table'"))
    moved(source, url)
    with ConsensusStore.open(url, settings=SETTINGS) as store, store.unit_of_work() as uow:
        artifact = uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="{}")
        synthesis = uow.syntheses.add(spec_id="S", stage="s", output_markdown="#", status="ok")
    assert artifact.id > max(given["consensus_artifacts"], given["agent_outputs"], saved.get(LEGACY[0]) or 0)
    assert synthesis.id > max(given["consensus_synthesis"], given["consensus_syntheses"], saved.get(LEGACY[1]) or 0)


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name.lower())
def test_file_to_file(sources: Sources, tmp_path: Path, phase: Phase) -> None:
    """A copy of the same kind is equal in everything, whatever odd rows there are."""
    source, target = sources(odd_history, phase), tmp_path / "target.db"
    report = moved(source, target)
    assert (report.source, report.target, report.unfit) == (str(source), str(target), ())
    for table in (*sides(phase), *LEDGERS, "consensus_orm_saved_schema"):
        assert oracle.rows(target, table) == oracle.rows(source, table), table
    assert foreign_definitions(target, *sides(phase)) == foreign_definitions(source, *sides(phase))
    if phase.writes_normalized:  # before, a file has our triggers only when it came back from a later phase
        wanted = sorted(oracle.definitions(source, *sides(phase)), key=str)
        assert sorted(oracle.definitions(target, *sides(phase)), key=str) == wanted
    assert state_of(target) == state_of(source)
    take_to_expand(target)
    take_to_expand(reference := Path(_copied(source, tmp_path / "reference.db")))
    assert oracle.legacy(target) == oracle.legacy(reference)


def _copied(source: Path, target: Path) -> Path:
    with contextlib.closing(sqlite3.connect(source)) as here, contextlib.closing(sqlite3.connect(target)) as there:
        here.backup(there)
    return target


def take_to_expand(path: Path) -> None:
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        take_to(store, Phase.EXPAND)


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CONTRACT], ids=lambda phase: phase.name.lower())
def test_server_to_server(sources: Sources, url: str, tmp_path: Path, phase: Phase) -> None:
    """A copy from server to server is equal, and goes on to be a store that rolls back."""
    source = sources(fitting_history, phase)
    moved(source, url)
    with servers.database() as other:
        moved(url, other)
        assert_same_rows(source, other, *sides(phase), *LEDGERS)
        with ConsensusStore.open(other, settings=SETTINGS) as store:
            take_to(store, Phase.EXPAND)
        assert_same_rows(sources(fitting_history, Phase.EXPAND), other, *LEGACY)


def test_what_is_pending_goes_on_behind_a_copy(sources: Sources, url: str, tmp_path: Path) -> None:
    """Half a backfill, writes of other programs that nobody has adopted, open mismatches and rejects come along."""
    source = _copied(sources(fitting_history, Phase.EXPAND), tmp_path / "source.db")
    with ConsensusStore.open(source, settings=SMALL) as store:
        take_to(store, Phase.EXPAND)
        store.migration.advance(soak=False)
        with pytest.raises(RuntimeError):
            store.migration.backfill(_stop)
    with builders.writing(source) as connection:
        rows.insert(connection, LEGACY[0], {**rows.ROUND, "content_json": "of another program"})
        connection.execute("DELETE FROM consensus_artifacts WHERE id = 1")
        connection.execute(
            "INSERT INTO consensus_orm_mismatches (pair, key, column_name, kind, state, found_by, found_at)"
            " VALUES ('artifacts', 2, 'content_json', 'different', 'repaired', 'verify', 5)"
        )
        connection.execute(
            "INSERT INTO consensus_orm_rejects (pair, key, table_name, reason, image, state, found_at)"
            " VALUES ('artifacts', 4711, 'consensus_artifacts', 'test', '{}', 'open', 5)"
        )
    moved(source, url)
    assert_same_rows(source, url, *SIDES, *LEDGERS)
    assert cells_of_server(url, "consensus_orm_changes")
    (checkpoint,) = [row for row in cells_of_server(url, "consensus_orm_backfill") if row["last_key"][0] != "null"]
    assert checkpoint["finished"] == ("integer", b"0".hex())
    with ConsensusStore.open(url, settings=SETTINGS) as target:
        (reject,) = target.migration.rejects()
        target.migration.accept_reject(reject.id, reason="test")
        report = target.migration.backfill()
        assert 0 < report.rows < len(cells_of_server(url, LEGACY[0])) + len(cells_of_server(url, LEGACY[1]))
        assert target.migration.verify().clean
        take_to(target, Phase.CUTOVER)


def _stop(seen: Progress) -> None:
    if seen.done > 8:
        raise RuntimeError


def test_changes_since_the_freeze_are_carried_back_behind_a_copy(sources: Sources, url: str, tmp_path: Path) -> None:
    """What was written in NORMALIZED before a copy reaches the legacy tables by a rollback after it."""
    source = _copied(sources(fitting_history, Phase.NORMALIZED), tmp_path / "source.db")
    with ConsensusStore.open(source, settings=SETTINGS) as store:
        added = store.run(_add_one)
    moved(source, url)
    with ConsensusStore.open(url, settings=SETTINGS) as target:
        target.migration.rollback(Phase.CUTOVER)
        assert target.migration.verify().clean
    assert added.id in {_id(row) for row in cells_of_server(url, LEGACY[0])}


def test_databases_in_memory(sources: Sources, tmp_path: Path) -> None:
    """A database in memory is a source and a target like any other."""
    source = sources(fitting_history, Phase.DUAL_WRITE)
    with (
        ConsensusStore.open(source, settings=SETTINGS) as here,
        ConsensusStore.open(":memory:", settings=SMALL) as memory,
        ConsensusStore.open(tmp_path / "there.db", settings=SETTINGS) as there,
    ):
        here.copy_to(memory)
        assert memory.migration.verify().clean
        assert memory.copy_to(there).locked is None
    for table in SIDES:
        assert oracle.rows(tmp_path / "there.db", table) == oracle.rows(source, table)


def test_other_programs_are_noticed_behind_a_copy(sources: Sources, url: str) -> None:
    """The server does in the phase of a copy what it does in that phase: it notes foreign writes, or refuses them."""
    write = f"INSERT INTO {LEGACY[0]} (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', '{{}}')"
    moved(sources(fitting_history, Phase.DUAL_WRITE), url)
    with psycopg.connect(url) as connection:
        connection.execute(write.encode())
        assert connection.execute("SELECT count(*) FROM consensus_orm_changes").fetchall() == [(1,)]
    with servers.database() as other:
        moved(sources(fitting_history, Phase.NORMALIZED), other)
        with pytest.raises(psycopg.errors.RaiseException, match="frozen"), psycopg.connect(other) as connection:
            connection.execute(write.encode())


def test_a_store_that_was_born_on_a_server_gets_a_file(url: str, tmp_path: Path) -> None:
    """Where no SQLite file ever was, the legacy tables of a copy are those of the models."""
    with psycopg.connect(url) as connection:
        connection.execute(f"{server.ARTIFACTS}{server.SYNTHESIS}".encode())
        server.insert_plain_rows(connection)
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        take_to(store, Phase.DUAL_WRITE)
    moved(url, tmp_path / "file.db")
    assert_same_rows(tmp_path / "file.db", url, *LEGACY)
    with ConsensusStore.open(tmp_path / "file.db", settings=SETTINGS) as store:
        assert store.migration.verify().clean
        take_to(store, Phase.CONTRACT)
    with ConsensusStore.open(url, settings=SETTINGS.model_copy(update={"backup_dir": tmp_path})) as store:
        take_to(store, Phase.CONTRACT)
    moved(url, tmp_path / "late.db")
    with oracle.reading(tmp_path / "late.db") as connection:
        saved = connection.execute("SELECT name, sql FROM consensus_orm_saved_schema WHERE type = 'index'").fetchall()
    assert saved
    assert all(sql.startswith(f"CREATE INDEX {name} ") for name, sql in saved)


def test_another_mapping(second_pair: Path, tmp_path: Path) -> None:  # noqa: F811
    """The copy knows no table by name: another move goes along with its definitions, triggers and sequences."""
    with ConsensusStore.open(second_pair, settings=SETTINGS, mapping=MAPPING) as source:
        source.migration.migrate(Phase.CUTOVER, soak=False)
        with ConsensusStore.open(tmp_path / "copy.db", settings=SMALL, mapping=MAPPING) as target:
            assert source.copy_to(target).finished
            assert target.migration.verify().clean
    tables = (*LEGACY_TABLES, "addresses", "customers", "orders")
    for table in tables:
        assert oracle.rows(tmp_path / "copy.db", table) == oracle.rows(second_pair, table)
    assert foreign_definitions(tmp_path / "copy.db", *tables) == foreign_definitions(second_pair, *tables)
    given = {t: n for t, n in oracle.sequences(second_pair).items() if t in tables}
    assert {t: n for t, n in oracle.sequences(tmp_path / "copy.db").items() if t in tables} == given


class Base(DeclarativeBase):
    pass


class CustomerFlat(Base):
    __tablename__ = "customers_flat"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    city: Mapped[str | None]
    weight: Mapped[float | None]
    photo: Mapped[bytes | None]


class City(Base):
    __tablename__ = "cities"
    __table_args__ = (UniqueConstraint("city"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    city: Mapped[str | None]


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    city_id: Mapped[int] = mapped_column(ForeignKey("cities.id", ondelete="CASCADE"))
    name: Mapped[str]
    weight: Mapped[float | None]
    photo: Mapped[bytes | None]
    ours: Mapped[bool] = mapped_column(server_default="0")


CITIES = Parent(City, identity=(City.city,))
CUSTOMERS = Pair(
    "customers",
    legacy=f"customers_flat={__name__}:CustomerFlat",
    normalized=Customer,
    parent=CITIES,
    link=Customer.city_id,
    carried={"name": Customer.name, "city": City.city, "weight": Customer.weight, "photo": Customer.photo},
    marker=Customer.ours,
)
OTHER = Mapping((CUSTOMERS,))


def test_another_mapping_on_a_server(url: str, tmp_path: Path) -> None:
    """On a server the tables of another move are made by its models, and come back as they were defined in the file."""
    source = tmp_path / "source.db"
    with builders.writing(source) as connection:
        connection.executescript(
            """
            CREATE TABLE customers_flat (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT, weight REAL,
              photo BLOB);
            CREATE TABLE cities (id INTEGER PRIMARY KEY AUTOINCREMENT, city TEXT UNIQUE);
            CREATE TABLE customers (id INTEGER PRIMARY KEY, city_id INTEGER NOT NULL REFERENCES cities(id)
              ON DELETE CASCADE, name TEXT NOT NULL, weight REAL, photo BLOB, ours BOOLEAN NOT NULL DEFAULT 0);
            INSERT INTO customers_flat (name, city, weight, photo) VALUES
              ('Ada', 'Berlin', 0.1, x'00ff'), ('Bob', 'Berlin', -0.0, NULL), ('Cyd', 'K\u00f6ln', 1e300, x'');
            """
        )
    with ConsensusStore.open(source, settings=SETTINGS, mapping=OTHER) as store:
        store.migration.migrate(Phase.CUTOVER, soak=False)
        with ConsensusStore.open(url, settings=SETTINGS, mapping=OTHER) as target:
            assert store.copy_to(target).unfit == ()
            with ConsensusStore.open(tmp_path / "back.db", settings=SETTINGS, mapping=OTHER) as back:
                assert target.copy_to(back).unfit == ()
                assert back.migration.verify().clean
    tables = ("customers_flat", "cities", "customers")
    for table in tables:
        assert oracle.rows(tmp_path / "back.db", table) == oracle.rows(source, table)
    assert foreign_definitions(tmp_path / "back.db", *tables) == foreign_definitions(source, *tables)


# Rows that the target cannot hold ---------------------------------------------------------------------------


def test_every_odd_row_is_copied_or_listed(tmp_path: Path, url: str) -> None:
    """All rows that a server cannot hold are listed, without contents, before anything is written."""
    source = tmp_path / "odd.db"
    odd_history(source)
    before = oracle.sha256(source)
    with pytest.raises(errors.CopyRefusedError) as caught:
        moved(source, url)
    assert {(odd.table, odd.key) for odd in caught.value.rows} == unheld(source)
    assert len(caught.value.rows) == len(unheld(source)) > 40
    assert oracle_of_servers.tables(url) == []
    assert oracle.sha256(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["odd.db"]


def test_rows_that_are_left_behind_become_rejects(tmp_path: Path, url: str) -> None:
    """With `reject` all other rows are copied, and each of these is kept whole, in type and bytes."""
    source = tmp_path / "odd.db"
    odd_history(source)
    wanted = unheld(source)
    report = moved(source, url, reject=True)
    assert {(odd.table, odd.key) for odd in report.unfit} == wanted
    for table in LEGACY:
        kept = [row for row in cells_of_file(source, table) if (table, _id(row)) not in wanted]
        assert sorted(cells_of_server(url, table), key=_id) == sorted(kept, key=_id)
    with psycopg.connect(url) as connection:
        listed = connection.execute("SELECT table_name, key, image::json, state FROM consensus_orm_rejects").fetchall()
    images = {(table, key): image for table, key, image, _ in listed}
    assert {state for *_, state in listed} == {"open"}
    assert images.keys() == wanted
    for table in LEGACY:
        for row in cells_of_file(source, table):
            if (table, _id(row)) in wanted:
                image = images[table, _id(row)]
                assert {name: _cell(image[name]) for name in row} == {name: _cell(cell) for name, cell in row.items()}


def _id(row: dict[str, oracle.Cell]) -> int:
    return int(bytes.fromhex(row["id"][1]))


def _cell(cell: Any) -> Any:
    kind, digits = cell
    if kind != "real":
        return kind, digits.upper()
    try:
        return kind, float(bytes.fromhex(digits))  # images spell their bytes,
    except ValueError:
        return kind, float(digits)  # the judge the number


@pytest.mark.parametrize(
    "phase", [Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED, Phase.CONTRACT], ids=lambda phase: phase.name.lower()
)
def test_what_is_left_behind_leaves_nothing_half(sources: Sources, url: str, phase: Phase) -> None:
    """Where runs lose rows, or are left behind themselves with theirs, both sides agree in what is copied."""
    moved(sources(odd_history, phase), url, reject=True)
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        if phase.has_legacy:
            report = store.migration.verify()
            assert (report.differences, report.rejects > 0) == ((), True)
        with store.unit_of_work(read_only=True) as uow:
            for run in uow.runs.list(spec_id="SPEC-ODD"):
                assert run.outputs or run.syntheses


def test_text_that_looks_like_a_number(url: str, tmp_path: Path) -> None:
    """SQLite would store another type: such times of a server are listed, and become rejects."""
    with psycopg.connect(url) as connection:
        connection.execute(f"{server.ARTIFACTS}{server.SYNTHESIS}".encode())
        times = ["1762743600", " 1.5 ", "1e3", "-7", ".5", "2025", "not 7", "", "1 2", "0x10", "٧"]
        for at in times:
            server.insert(connection, "consensus_artifacts", {**rows.ROUND, "created_at": at, "content_json": "7"})
    with pytest.raises(errors.CopyRefusedError) as caught:
        moved(url, tmp_path / "file.db")
    assert [odd.key for odd in caught.value.rows] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "file.db").exists()
    moved(url, tmp_path / "file.db", reject=True)
    stored = [row["created_at"] for row in cells_of_file(tmp_path / "file.db", "consensus_artifacts")]
    assert stored == [("text", at.encode().hex().upper()) for at in times[6:]]


def test_executions_that_cannot_be_held(tmp_path: Path, url: str) -> None:
    """What an agent said with a NUL in it, and a row without a key, are listed and kept like any other row."""
    source = tmp_path / "file.db"
    builders.build_legacy(source, columns=11)
    with builders.writing(source) as connection:
        connection.execute("UPDATE agent_executions SET response_text = 'a' || char(0) WHERE rowid = 1")
        connection.execute(
            "INSERT INTO agent_executions (agent_id, spec_id, stage, phase_type, agent_name, spawned_at)"
            " VALUES (NULL, 'S', 's', 'p', 'a', 'now')"
        )
    report = moved(source, url, reject=True)
    assert [(odd.table, odd.column) for odd in report.unfit] == [
        ("agent_executions", "agent_id"),
        ("agent_executions", "response_text"),
    ]
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        listed = store.migration.rejects()
        assert [reject.table for reject in listed] == ["agent_executions"] * 2
        store.migration.accept_reject(listed[0].id, reason="known")
        with store.unit_of_work(read_only=True) as uow:
            assert len(uow.executions.list()) == 2


def test_a_key_that_is_no_utf8_goes_from_file_to_file(tmp_path: Path) -> None:
    """SQLite keeps any bytes as text: such a key has its place in the order of keys, and its row is copied."""
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    builders.build_legacy(source, columns=11)
    with builders.writing(source) as connection:
        connection.execute("UPDATE agent_executions SET agent_id = CAST(x'ff41' AS TEXT) WHERE rowid = 1")
    assert moved(source, target).unfit == ()
    copied, there = (sorted(row[1:] for row in oracle.rows(path, "agent_executions")) for path in (target, source))
    assert copied == there


# Killed in the middle ---------------------------------------------------------------------------------------

KILLED = """
import os, sys
from datetime import timedelta
from consensus_orm import ConsensusStore
from consensus_orm.settings import Settings

source, target, after = sys.argv[1], sys.argv[2], int(sys.argv[3])
settings = Settings(chunk_rows=4, chunk_pause=timedelta(0))
steps = 0


def step(_):
    global steps
    steps += 1
    if steps == after:
        os.kill(os.getpid(), 9)


with ConsensusStore.open(source, settings=settings) as here, ConsensusStore.open(target, settings=settings) as there:
    here.copy_to(there, progress=step)
"""


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_copy_that_is_killed_goes_on(sources: Sources, url: str, tmp_path: Path, way: str) -> None:
    """Killed again and again, each time a little later, a copy is closed to everybody, goes on, and comes out equal."""
    source: Path | str = sources(fitting_history, Phase.CUTOVER)
    target: Path | str = url
    if way == "back":
        moved(source, url)
        source, target = url, tmp_path / "back.db"
    looks = _progress_of_looking(source)
    for after in (looks + 2, looks + 9, looks + 25, looks + 60):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(source), str(target), str(after)], check=False)
        assert killed.returncode == -signal.SIGKILL
        with ConsensusStore.open(target, settings=SMALL) as store:
            for read_only in (False, True):
                with (
                    pytest.raises(errors.SchemaOutdatedError, match="copy that is not finished"),
                    store.unit_of_work(read_only=read_only),
                ):
                    pass
            with pytest.raises(errors.SchemaOutdatedError, match="copy that is not finished"):
                store.upgrade()
    report = moved(source, target, SMALL)
    written = sum(table.written for table in report.tables)
    assert 0 < written < report.rows  # it went on: what was there was not written again
    origin = sources(fitting_history, Phase.CUTOVER)
    if way == "back":
        for table in (*SIDES, *LEDGERS):
            assert oracle.rows(Path(target), table) == oracle.rows(origin, table)
    else:
        assert_same_rows(origin, url, *SIDES, *LEDGERS)
    with ConsensusStore.open(target, settings=SETTINGS) as store:
        assert store.migration.verify().clean


def _progress_of_looking(source: Path | str) -> int:
    """How often a copy tells of its progress before it writes anything."""
    told: list[Progress] = []

    def stop_behind(seen: Progress) -> None:
        told.append(seen)
        if not seen.pair.startswith("looking at"):
            raise RuntimeError

    with servers.database() as other, pytest.raises(RuntimeError):
        moved(source, other, SMALL, progress=stop_behind)
    return len(told) - 1


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_server_that_is_killed_under_a_copy(sources: Sources, tmp_path: Path, way: str) -> None:
    """Between two chunks a target may go away and come back; of a source the copy says so, and goes on when called."""
    origin = sources(fitting_history, Phase.CUTOVER)
    source: Path | str = origin
    target: Path | str = tmp_path / "back.db"
    with servers.Server() as own:
        if way == "back":
            moved(source, own.url())
            source = own.url()
        else:
            target = own.url()

        def kill() -> None:
            own.kill()
            own.start()

        once = _Once("consensus_artifacts", 9, kill)
        if way == "there":
            assert moved(source, target, SMALL, progress=once).finished
            assert once.is_done
            assert_same_rows(origin, own.url(), *SIDES, *LEDGERS)
            return
        with pytest.raises(errors.DatabaseUnavailableError):
            moved(source, target, SMALL, progress=once)
        report = moved(source, target, SMALL)
    assert 0 < sum(table.written for table in report.tables) < report.rows
    for table in (*SIDES, *LEDGERS):
        assert oracle.rows(tmp_path / "back.db", table) == oracle.rows(origin, table)


# A source in use --------------------------------------------------------------------------------------------


class Meddler:
    """Writes to a source at chosen moments of a copy: between its chunks."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self.works = list(works)
        self.told = 0

    def __call__(self, seen: Progress) -> None:
        if seen.pair.startswith(("looking at", "verifying")):
            return
        self.told += 1
        if self.told % 3 == 0 and self.works:
            self.works.pop(0)()


@pytest.mark.parametrize("way", ["there", "back", "file"])
def test_a_source_in_use(sources: Sources, url: str, tmp_path: Path, way: str) -> None:
    """Rows added, changed and deleted between the chunks of a copy come out as they stand at its end."""
    source: Path | str = _copied(sources(fitting_history, Phase.CUTOVER), tmp_path / "source.db")
    target: Path | str = url if way == "there" else tmp_path / "target.db"
    if way == "back":
        moved(source, url)
        source = url
    with ConsensusStore.open(source, settings=SETTINGS) as writer:

        def add() -> None:
            with writer.unit_of_work() as uow:
                for n in range(3):
                    uow.artifacts.add(
                        spec_id="SPEC-NEW", stage="s", agent_name="a", content_json=f"{n}", run_id="same run"
                    )
                uow.executions.record_spawn(agent_id="zz", spec_id="S", stage="s", phase_type="p", agent_name="a")

        def delete() -> None:
            with writer.unit_of_work() as uow:
                uow.artifacts.delete(spec_id="SPEC-NEW")
                uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-plan")
                uow.executions.record_completion("zz", "done")

        meddler = Meddler(add, delete, add, delete, add)
        report = moved(source, target, SMALL, progress=meddler)
        assert meddler.works == []
        assert report.passes > 1
        assert report.locked is not None
        with writer.unit_of_work(read_only=True) as uow:
            wanted = (
                uow.artifacts.list(),
                uow.syntheses.list(),
                uow.executions.list(),
                uow.runs.list(spec_id="SPEC-NEW"),
            )
    with ConsensusStore.open(target, settings=SETTINGS) as store:
        with store.unit_of_work(read_only=True) as uow:
            found = uow.artifacts.list(), uow.syntheses.list(), uow.executions.list(), uow.runs.list(spec_id="SPEC-NEW")
        assert found == wanted
        assert store.migration.verify().clean


def test_what_comes_after_the_last_look(sources: Sources, url: str, tmp_path: Path) -> None:
    """What is written when a pass has gone by it is carried under the lock."""
    source = _copied(sources(fitting_history, Phase.CUTOVER), tmp_path / "source.db")
    with ConsensusStore.open(source, settings=SETTINGS) as writer:
        added: list[object] = []

        def add(seen: Progress) -> None:
            # behind the last table with rows, in the first pass and in the second
            if seen.pair == "consensus_orm_history" and seen.done == seen.total and len(added) < 2:
                added.append(writer.run(_add_one))

        report = moved(source, url, SMALL, progress=add)
    assert report.passes == 3
    assert_same_rows(source, url, *SIDES)


@pytest.mark.parametrize("way", ["there", "back"])
def test_the_last_pass_is_one_moment(sources: Sources, url: str, tmp_path: Path, way: str) -> None:
    """Under a steady writer a copy ends, and holds all that was written before one moment and nothing written after."""
    source: Path | str = _copied(sources(fitting_history, Phase.DUAL_WRITE), tmp_path / "source.db")
    target: Path | str = url
    if way == "back":
        moved(source, url)
        source, target = url, tmp_path / "back.db"
    stop, added = threading.Event(), list[int]()

    def write() -> None:
        with ConsensusStore.open(source, settings=SETTINGS) as store:
            while not stop.wait(0.002):
                added.append(store.run(_add_one).id)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        report = moved(source, target)
    finally:
        stop.set()
        thread.join()
    with ConsensusStore.open(target, settings=SETTINGS) as store:
        with store.unit_of_work(read_only=True) as uow:
            there = sorted(artifact.id for artifact in uow.artifacts.list(spec_id="SPEC-LIVE"))
        assert there == added[: len(there)]
        assert store.migration.verify().clean
    assert len(added) >= len(there) > 0
    assert report.locked is not None


def _add_one(uow: Any) -> Any:
    return uow.artifacts.add(spec_id="SPEC-LIVE", stage="s", agent_name="a", content_json="{}")


def test_catching_up_before_the_last_pass(sources: Sources, url: str, tmp_path: Path) -> None:
    """Without the last pass the target stays closed; later calls carry what changed, and the last one opens it."""
    source = _copied(sources(fitting_history, Phase.EXPAND), tmp_path / "source.db")
    first = moved(source, url, finish=False)
    assert not first.finished
    with builders.writing(source) as connection:
        connection.execute("DELETE FROM consensus_artifacts WHERE id = 1")
        connection.execute("UPDATE consensus_synthesis SET status = 'other' WHERE id = 1")
        rows.insert(connection, "consensus_artifacts", {**rows.ROUND, "content_json": "late"})
    second = moved(source, url, finish=False)
    changed = {table.name: (table.written, table.deleted) for table in second.tables if table.written or table.deleted}
    assert changed == {"consensus_artifacts": (1, 1), "consensus_synthesis": (1, 0)}
    last = moved(source, url)
    assert (last.finished, sum(table.written for table in last.tables)) == (True, 0)
    assert_same_rows(source, url, *SIDES)


def test_identities_that_move_from_row_to_row(sources: Sources, url: str, tmp_path: Path) -> None:
    """A run that is made again under another id while a copy goes on collides with nothing at the end."""
    source = _copied(sources(fitting_history, Phase.CONTRACT), tmp_path / "source.db")
    with ConsensusStore.open(source, settings=SETTINGS) as writer:
        with writer.unit_of_work() as uow:
            for n in range(40):
                uow.artifacts.add(spec_id=f"SPEC-{n}", stage="s", agent_name="a", content_json="{}", run_id="r")

        def again() -> None:
            with writer.unit_of_work() as uow:
                for n in range(40):
                    uow.artifacts.delete(spec_id=f"SPEC-{n}")
                    uow.artifacts.add(spec_id=f"SPEC-{n}", stage="s", agent_name="a", content_json="{}", run_id="r")

        report = moved(source, url, SMALL, progress=_Once("consensus_runs", 10, again))
    assert report.finished
    assert_same_rows(source, url, *sides(Phase.CONTRACT))


@pytest.mark.parametrize("spec", ["SPEC-MENDED", "SPEC-\0"], ids=["mended", "spoiled"])
def test_rows_follow_their_run_in_the_next_pass(sources: Sources, url: str, tmp_path: Path, spec: str) -> None:
    """Rows that did not change are copied, or left behind, as their run can be held by now."""
    source = _copied(sources(fitting_history, Phase.CONTRACT), tmp_path / "source.db")
    with oracle.reading(source) as connection:
        ((run,),) = connection.execute("SELECT min(run_id) FROM agent_outputs").fetchall()
        of_it = "SELECT id FROM {} WHERE run_id = ? ORDER BY id"
        rows_of_it = {table: connection.execute(of_it.format(table), (run,)).fetchall() for table in CHILDREN}

    def name(spec: str) -> None:
        with builders.writing(source) as connection:
            connection.execute("UPDATE consensus_runs SET spec_id = ? WHERE id = ?", (spec, run))

    name("SPEC-\0" if spec == "SPEC-MENDED" else "SPEC-FINE")
    report = moved(source, url, SMALL, reject=True, progress=_Once("consensus_syntheses", 0, lambda: name(spec)))
    is_held = "\0" not in spec
    with psycopg.connect(url) as server_connection:
        runs = server_connection.execute("SELECT spec_id FROM consensus_runs WHERE id = %s", (run,)).fetchall()
        found = {
            table: server_connection.execute(of_it.format(table).replace("?", "%s").encode(), (run,)).fetchall()
            for table in CHILDREN
        }
    assert runs == ([(spec,)] if is_held else [])
    assert found == (rows_of_it if is_held else {table: [] for table in CHILDREN})
    left_behind = {(odd.table, odd.key) for odd in report.unfit}
    assert left_behind == (
        set() if is_held else {(t, key) for t in CHILDREN for (key,) in rows_of_it[t]} | {("consensus_runs", run)}
    )


class _Once:
    """Does something once, when so many rows of a table are left in a pass."""

    def __init__(self, table: str, left: int, work: Callable[[], object]) -> None:
        self.table, self.left, self.work = table, left, work
        self.is_done = False

    def __call__(self, seen: Progress) -> None:
        if seen.pair == self.table and seen.total - seen.done <= self.left and not self.is_done:
            self.is_done = True
            self.work()


@pytest.mark.parametrize("mode", ["delete", "wal", "hot wal"])
def test_the_source_is_not_written(sources: Sources, url: str, tmp_path: Path, mode: str) -> None:
    """A file is byte for byte what it was, also one whose log nobody has carried into it."""
    source = tmp_path / "source.db"
    builders.build_legacy(source, columns=11)
    with contextlib.closing(sqlite3.connect(source)) as other:
        other.execute(f"PRAGMA journal_mode = {'delete' if mode == 'delete' else 'wal'}")
        other.execute("PRAGMA wal_autocheckpoint = 0")
        rows.insert(other, "consensus_artifacts", {**rows.ROUND, "content_json": "in the log"})
        other.commit()
        if mode == "hot wal":
            folder = tmp_path / "hot"
            folder.mkdir()
            for path in tmp_path.glob("source.db*"):
                (folder / path.name).write_bytes(path.read_bytes())
            source = folder / "source.db"
    before = oracle.sha256(source)
    report = moved(source, url)
    assert oracle.sha256(source) == before
    assert report.locked is not None
    if mode != "hot wal":
        assert [path.name for path in source.parent.iterdir() if path.is_file()] == ["source.db"]
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM consensus_artifacts WHERE content_json = 'in the log'")
        assert found.fetchall() == [(1,)]


def test_a_source_that_may_not_be_written(url: str, tmp_path: Path) -> None:
    """A file without a lock to be had is copied as of one snapshot."""
    source = tmp_path / "source.db"
    builders.build_legacy(source, columns=11)
    report = moved(source, url, lock=False)
    assert (report.finished, report.locked) == (True, None)
    assert_same_rows(source, url, *LEGACY)


# Refusals ---------------------------------------------------------------------------------------------------


def test_a_target_that_is_not_empty(sources: Sources, url: str, tmp_path: Path) -> None:
    """A target with rows or tables of ours is refused, and stays as it is."""
    source = sources(fitting_history, Phase.DUAL_WRITE)
    moved(source, url)
    before = oracle_of_servers.image(url, *SIDES)
    with pytest.raises(errors.CopyError, match="holds tables of ours already"):
        moved(source, url)
    assert oracle_of_servers.image(url, *SIDES) == before
    builders.build_legacy(tmp_path / "other.db", columns=8)
    sha = oracle.sha256(tmp_path / "other.db")
    with pytest.raises(errors.CopyError, match="holds tables of ours already"):
        moved(source, tmp_path / "other.db")
    assert oracle.sha256(tmp_path / "other.db") == sha


def test_an_unfinished_copy_of_another_source(sources: Sources, url: str, tmp_path: Path) -> None:
    """An unfinished copy goes on with its own source only, and with that in the same shape."""
    source = _copied(sources(fitting_history, Phase.NORMALIZED), tmp_path / "source.db")
    moved(source, url, finish=False)
    with pytest.raises(errors.CopyError, match="of another database"):
        moved(sources(fitting_history, Phase.NORMALIZED), url)
    with ConsensusStore.open(source, settings=SETTINGS) as store:
        take_to(store, Phase.CONTRACT)
    with pytest.raises(errors.CopyError, match="in another phase"):
        moved(source, url)


def test_a_phase_that_changes_meanwhile(sources: Sources, url: str, tmp_path: Path) -> None:
    """A step that takes tables away while a copy goes on is noticed at its end; one that does not comes along."""
    source = _copied(sources(fitting_history, Phase.NORMALIZED), tmp_path / "source.db")
    with ConsensusStore.open(source, settings=SETTINGS) as store:
        with servers.database() as other:
            step = _Once("consensus_artifacts", 9, lambda: take_to(store, Phase.CUTOVER))
            assert moved(source, other, SMALL, progress=step).phase is Phase.CUTOVER
            assert state_of(other) == state_of(source)
        step = _Once("agent_executions", 0, lambda: take_to(store, Phase.CONTRACT))
        with pytest.raises(errors.CopyError, match="another phase"):
            moved(source, url, SMALL, progress=step)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM consensus_orm_state").fetchall() == [(0,)]


def test_the_same_database_twice(sources: Sources, tmp_path: Path) -> None:
    """A database is not copied into itself, whatever it is called."""
    source = _copied(sources(fitting_history, Phase.EXPAND), tmp_path / "source.db")
    (tmp_path / "link.db").symlink_to(source)
    for target in (source, tmp_path / "link.db"):
        with pytest.raises(errors.ConfigurationError, match="the same database"):
            moved(source, target)


def test_sources_that_cannot_be_copied(sources: Sources, url: str, tmp_path: Path) -> None:
    """A file to be adopted first, one in the middle of a step, and a column without a place are refused by name."""
    builders.final_build(tmp_path / "final.db")
    with pytest.raises(errors.CopyError, match="not been prepared"):
        moved(tmp_path / "final.db", url)
    older = tmp_path / "older.db"
    builders.first_version(older)
    with ConsensusStore.open(older, settings=SETTINGS) as store:
        store.upgrade()
        revisions.downgrade(store.engine, "0002", APPLICATION)
    with pytest.raises(errors.CopyError, match="not been prepared"):
        moved(older, url)
    halfway = _copied(sources(fitting_history, Phase.CONTRACT), tmp_path / "halfway.db")
    with builders.writing(halfway) as connection:
        connection.execute("UPDATE consensus_orm_state SET step = 'rebuild'")
    with pytest.raises(errors.CopyError, match="middle of a step"):
        moved(halfway, url)
    builders.extra_column(tmp_path / "extra.db")
    with pytest.raises(errors.CopyError, match="'tokens' that nobody knows"):
        moved(tmp_path / "extra.db", url)
    assert oracle_of_servers.tables(url) == []
    moved(tmp_path / "extra.db", tmp_path / "copy.db")
    assert oracle.rows(tmp_path / "copy.db", LEGACY[0]) == oracle.rows(tmp_path / "extra.db", LEGACY[0])


def test_verify_looks_at_the_target(sources: Sources, url: str, tmp_path: Path) -> None:
    """A value that the target stored otherwise is found before the target is opened."""
    source = sources(fitting_history, Phase.EXPAND)
    moved(source, url, finish=False)
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " NEW.content_json := NEW.content_json || ' '; RETURN NEW; END $$;"
            " CREATE TRIGGER spoil BEFORE INSERT ON consensus_artifacts FOR EACH ROW EXECUTE FUNCTION spoil();"
            " DELETE FROM consensus_artifacts WHERE id = 100000"
        )
    with pytest.raises(errors.CopyError, match="consensus_artifacts differs"):
        moved(source, url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM consensus_orm_state").fetchall() == [(0,)]


# The command, and the backup --------------------------------------------------------------------------------


def test_the_command(sources: Sources, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`copy` ends with 0 where all is there, 1 where rows are listed or left behind, 2 where it was used wrongly."""
    odd = tmp_path / "odd.db"
    builders.build_legacy(odd, columns=11)
    with builders.writing(odd) as connection:
        rows.insert(connection, LEGACY[0], {**rows.ROUND, "content_json": "secret\0"})

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["copy", *words])
        return done.exit_code, done.output

    code, said = run(str(odd), url)
    assert (code, "a NUL character in text" in said, "--reject" in said, "secret" in said) == (1, True, True, False)
    assert '"reason": "a NUL character in text"' in run(str(odd), url, "--json")[1]
    assert run(str(odd), url, "--reject", "--catch-up")[0] == 1
    code, said = run(str(odd), url, "--reject", "--json")
    assert (code, '"finished": true' in said) == (1, True)
    good = sources(fitting_history, Phase.CUTOVER)
    monkeypatch.setenv("CONSENSUS_ORM_READ_URL", "postgresql://nobody@nowhere/nothing")  # it is of another database
    code, said = run("--create", str(good), str(tmp_path / "copy.db"))
    assert (code, "the phase is CUTOVER" in said, "compared in type and bytes" in said) == (0, True, True)
    assert run(str(good), str(tmp_path / "copy.db"))[0] == 1
    assert run(str(good), str(good))[0] == 2
    assert run(str(tmp_path / "nowhere.db"), url)[0] == 1
    assert run(str(good))[0] == 2


def test_a_server_is_backed_up_before_contract(
    sources: Sources, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step to CONTRACT leaves a SQLite file that holds all it takes to go back, and says so in the audit."""
    source = sources(fitting_history, Phase.NORMALIZED)
    moved(source, url)
    monkeypatch.chdir(tmp_path)
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        store.migration.verify()
        store.migration.advance(soak=False)
        (told,) = [entry.detail["backup"] for entry in store.migration.history() if "backup" in entry.detail][-1:]
    (backup,) = tmp_path.iterdir()
    assert Path(told) == backup
    for table in SIDES:
        assert oracle.rows(backup, table) == oracle.rows(source, table)
    with ConsensusStore.open(backup, settings=SETTINGS) as store:
        assert store.migration.phase is Phase.NORMALIZED


def test_nothing_of_the_copy_is_left(sources: Sources, url: str, tmp_path: Path) -> None:
    """A finished target has no table of the copy, and the constraints that a store has."""
    moved(sources(fitting_history, Phase.CUTOVER), url)
    assert CHECKPOINTS not in oracle_of_servers.tables(url)
    with servers.database() as other:
        with ConsensusStore.open(other, settings=SETTINGS) as store:
            store.upgrade()
        wanted = [d for d in oracle_of_servers.definitions(other, *SIDES[2:]) if d[1] == "constraint"]
    found = [d for d in oracle_of_servers.definitions(url, *SIDES[2:]) if d[1] == "constraint"]
    assert found == wanted
    assert any("FOREIGN KEY" in definition for *_, definition in found)


def test_a_server_has_a_name(url: str, tmp_path: Path) -> None:
    """Status calls a database of a server by its URL, without the password."""
    with ConsensusStore.open(url.replace("postgres@", "postgres:secret@"), settings=SETTINGS) as store:
        store.upgrade()
        assert store.name.startswith("postgresql://postgres:***@")
    said = CliRunner().invoke(main, ["--url", url, "status"]).output
    assert ":memory:" not in said
    assert url.partition("?")[0] in said
