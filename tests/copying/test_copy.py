"""Copies between databases, judged by raw SQL on both: every row in type and bytes, nothing written to the source."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import ConsensusStore, Move, Moves, Parent, Phase
from consensus_orm.cli import main
from consensus_orm.copying.target import CHECKPOINTS
from consensus_orm.progress import Progress
from consensus_orm.testing.phases import take_to
from tests.copying.judges import (
    LEDGERS,
    LEGACY,
    SETTINGS,
    SIDES,
    SMALL,
    Sources,
    _add_one,
    _copied,
    _id,
    assert_same_rows,
    cells_of_server,
    fitting_history,
    foreign_definitions,
    moved,
    odd_history,
    sides,
    state_of,
)
from tests.field import builders, rows, server
from tests.support import oracle, oracle_of_servers, servers, shop

# There and back ---------------------------------------------------------------------------------------------


@pytest.mark.long
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
        copied = b.execute("SELECT detail FROM consensus_orm_history WHERE action = 'copy' ORDER BY id").fetchall()
    assert there[: len(here)] == here
    assert [row[1] for row in there[len(here) :]] == ["copy", "copy"]
    assert json.loads(copied[0][0])["from"] == str(source)
    assert oracle.sha256(source) == before


@pytest.mark.long
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


def in_other_letters(path: Path) -> None:
    """Two rows that agree in all but the id and the agent, in tables and columns that SQLite takes for the usual."""
    with builders.writing(path) as connection:
        renamed = builders.ARTIFACTS.replace("consensus_artifacts", "Consensus_Artifacts")
        connection.executescript(renamed.replace("id INTEGER", "ID INTEGER").replace("spec_id", "Spec_Id"))
        connection.executescript(builders.SYNTHESIS)
        connection.execute(f"CREATE TABLE Agent_Executions ({builders.EXECUTIONS_CREATED[11].upper()})")
        for agent in ("a", "b"):
            rows.insert(connection, "consensus_artifacts", {**rows.ROUND, "content_json": "x", "agent_name": agent})
            rows.insert(connection, "agent_executions", {**builders.EXECUTIONS[0], "agent_id": agent})


@pytest.mark.long
@pytest.mark.parametrize(
    "phase", [Phase.EXPAND, Phase.DUAL_WRITE, Phase.CONTRACT], ids=lambda phase: phase.name.lower()
)
def test_names_in_other_letters_are_copied_as_the_same(
    sources: Sources, url: str, tmp_path: Path, phase: Phase
) -> None:
    """A server has the declared names, a file its own ones; neither loses a row, or gets a column twice."""
    source, original = sources(in_other_letters, phase), sources(in_other_letters, Phase.EXPAND)
    moved(source, url)
    moved(url, tmp_path / "round.db")
    moved(source, tmp_path / "direct.db")
    for copy in (tmp_path / "round.db", tmp_path / "direct.db"):
        for table in sides(phase):
            assert oracle.rows(copy, table) == oracle.rows(source, table), table
        with ConsensusStore.open(copy, settings=SETTINGS) as store:
            take_to(store, Phase.EXPAND)
        assert oracle.legacy(copy) == oracle.legacy(original)
        assert foreign_definitions(copy, *LEGACY) == foreign_definitions(original, *LEGACY)
        assert len(oracle.rows(copy, "agent_executions")) == 2


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


def take_to_expand(path: Path) -> None:
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        take_to(store, Phase.EXPAND)


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_another_mapping(path: Path, tmp_path: Path) -> None:
    """The copy knows no table by name: another move goes along with its definitions, triggers and sequences."""
    shop.build(path)
    with ConsensusStore.open(path, settings=SETTINGS, moves=shop.MOVES) as source:
        source.migration.migrate(Phase.CUTOVER, soak=False)
        with ConsensusStore.open(tmp_path / "copy.db", settings=SMALL, moves=shop.MOVES) as target:
            assert source.copy_to(target).finished
            assert target.migration.verify().clean
    tables = (*shop.LEGACY_TABLES, "addresses", "customers", "orders")
    for table in tables:
        assert oracle.rows(tmp_path / "copy.db", table) == oracle.rows(path, table)
    assert foreign_definitions(tmp_path / "copy.db", *tables) == foreign_definitions(path, *tables)
    given = {t: n for t, n in oracle.sequences(path).items() if t in tables}
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


CUSTOMERS = Move(
    f"customers_flat={__name__}:CustomerFlat",
    Customer,
    name="customers",
    key={"id": Customer.id},
    columns={Customer.name: "name", Customer.weight: "weight", Customer.photo: "photo"},
    parts=[Parent(City, link=Customer.city_id, by={City.city: "city"})],
    marker=Customer.ours,
)
OTHER = Moves(CUSTOMERS)


@pytest.mark.long
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
    with ConsensusStore.open(source, settings=SETTINGS, moves=OTHER) as store:
        store.migration.migrate(Phase.CUTOVER, soak=False)
        with ConsensusStore.open(url, settings=SETTINGS, moves=OTHER) as target:
            assert store.copy_to(target).unfit == ()
            with ConsensusStore.open(tmp_path / "back.db", settings=SETTINGS, moves=OTHER) as back:
                assert target.copy_to(back).unfit == ()
                assert back.migration.verify().clean
    tables = ("customers_flat", "cities", "customers")
    for table in tables:
        assert oracle.rows(tmp_path / "back.db", table) == oracle.rows(source, table)
    assert foreign_definitions(tmp_path / "back.db", *tables) == foreign_definitions(source, *tables)


# The command, and the backup --------------------------------------------------------------------------------


@pytest.mark.long
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


@pytest.mark.long
def test_a_server_is_backed_up_before_contract(
    sources: Sources, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step to CONTRACT leaves a backup from which another server continues, and says so in the audit."""
    source = sources(fitting_history, Phase.NORMALIZED)
    moved(source, url)
    monkeypatch.chdir(tmp_path)
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        store.migration.verify()
        store.migration.advance(soak=False)
        (told,) = [entry.detail["backup"] for entry in store.migration.history() if "backup" in entry.detail][-1:]
    (backup,) = tmp_path.iterdir()
    assert Path(told) == backup
    with servers.database() as other:
        done = CliRunner().invoke(main, ["--url", other, "restore", str(backup)])
        assert (done.exit_code, "verified" in done.output) == (0, True)
        with (
            ConsensusStore.open(other, settings=SETTINGS) as store,
            ConsensusStore.open(tmp_path / "back.db", settings=SETTINGS) as back,
        ):
            assert store.migration.phase is Phase.NORMALIZED
            store.copy_to(back)
        for table in SIDES:
            assert oracle.rows(tmp_path / "back.db", table) == oracle.rows(source, table)


@pytest.mark.long
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
