"""Names are data: whatever tables, columns, pairs and triggers are called, SQL of ours means what it says.

The tables of a move are named to end a string or an identifier, to begin a comment, and to look like a parameter;
beside them stand tables and triggers that would be hit by SQL that was pasted together.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Table,
    Text,
    UniqueConstraint,
    column,
    create_engine,
    func,
    literal_column,
    text,
)
from sqlalchemy.orm import DeclarativeBase

from consensus_orm import Computed, ConsensusStore, Latest, Move, Moves, Parent, Phase
from consensus_orm.errors import MigrationError, WrongPhaseError
from consensus_orm.models.base import BIG
from consensus_orm.settings import Settings
from tests.support.databases import Database, build_legacy
from tests.support.dependencies import accept_dependencies

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0)

# Names of at most 63 bytes, which is what PostgreSQL keeps of one.
FLAT = 'le"ga\'cy=""; DROP TABLE letters; -- 50% :id ? $1'
KEY = "i\"d' :_key"
NAME = "na'me\" ?"
PLACE = "pl\"ace' -- %s"
PLACES = "pa're\"nt :p $$"
PLACE_ID = "ke\"y' %(k)s"
PLACE_KEY = 'place "key" 100%'
NEWEST = "ne'west\""
OWN = "own'\"; -- :t"
LINK = "li\"nk'?"
MARKER = "ma'rk\"ed"
KEPT = "ke'pt\" :x"
PAIR = 'it\'s "a" pair -- ? :p 100% $$'
LONG = "a_table_whose_name_is_as_long_as_the_server_allows_it_to_be_xyz"
LONG_OWN = "a_table_whose_name_is_as_long_as_the_server_allows_it_to_be_own"
LONG_PAIR = "a pair whose name is longer than all that a server keeps of a name"
VIEW = 'v" -- '
SMILE = "été \U0001f600"
OURS = {"key": "k", "limit": "l", "first": "f", "keys": "s"}
"""Columns that are called what parameters of the package are called."""


class Base(DeclarativeBase):
    pass


class Flat(Base):
    __table__ = Table(
        FLAT,
        Base.metadata,
        Column(KEY, BIG, primary_key=True, autoincrement=True),
        Column(NAME, Text),
        Column(PLACE, Text),
        Index("i'n\"dex :i", NAME),
        sqlite_autoincrement=True,
    )


class Place(Base):
    __table__ = Table(
        PLACES,
        Base.metadata,
        Column(PLACE_ID, BIG, primary_key=True, autoincrement=True),
        Column(PLACE_KEY, Text, nullable=False),
        Column(PLACE, Text),
        Column(NEWEST, Text),
        UniqueConstraint(PLACE_KEY),
        sqlite_autoincrement=True,
    )


class Own(Base):
    __table__ = Table(
        OWN,
        Base.metadata,
        Column(KEY, BIG, primary_key=True, autoincrement=True),
        Column(LINK, BIG, ForeignKey(Place.__table__.c[PLACE_ID], ondelete="CASCADE"), nullable=False),
        Column(NAME, Text),
        Column(KEPT, Text),
        Column(MARKER, Boolean, nullable=False, server_default=text("FALSE")),
        sqlite_autoincrement=True,
    )


class LongFlat(Base):
    __table__ = Table(
        LONG,
        Base.metadata,
        Column("n", BIG, primary_key=True),
        Column(SMILE, Text),
        *(Column(name, Text) for name in OURS),
        sqlite_autoincrement=True,
    )


class LongOwn(Base):
    __table__ = Table(
        LONG_OWN,
        Base.metadata,
        Column("n", BIG, primary_key=True),
        Column(SMILE, Text),
        *(Column(name, Text) for name in OURS),
        Column("mirrored", Boolean, nullable=False, server_default=text("FALSE")),
        sqlite_autoincrement=True,
    )


def of(model: Any, name: str) -> Any:
    return getattr(model, name)


PARENT = Parent(
    Place,
    link=of(Own, LINK),
    by={of(Place, PLACE_KEY): Computed(func.coalesce(column(PLACE), literal_column("'-'")))},
    columns={of(Place, PLACE): PLACE},
    derived={of(Place, NEWEST): Latest(PAIR, column(NAME))},
)
MOVES = Moves(
    Move(
        f"{FLAT}={__name__}:Flat",
        Own,
        name=PAIR,
        key={KEY: of(Own, KEY)},
        columns={of(Own, NAME): NAME},
        parts=[PARENT],
        marker=of(Own, MARKER),
    ),
    Move(
        f"{LONG}={__name__}:LongFlat",
        LongOwn,
        name=LONG_PAIR,
        key={"n": of(LongOwn, "n")},
        columns={of(LongOwn, name): name for name in (SMILE, *OURS)},
        marker=of(LongOwn, "mirrored"),
    ),
)


def q(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def run(database: Database, *statements: str) -> list[tuple[Any, ...]]:
    """Run raw SQL in which nothing stands for a parameter; gives the rows of the last statement."""
    rows: list[tuple[Any, ...]] = []
    if database.kind == "sqlite":
        with contextlib.closing(sqlite3.connect(database.where)) as file, file:
            for sql in statements:
                rows = file.execute(sql).fetchall()
        return rows
    with psycopg.connect(str(database.where)) as server:
        for sql in statements:
            cursor = server.execute(sql.encode())
            rows = cursor.fetchall() if cursor.description else []
    return rows


ROWS = (
    f"""INSERT INTO {q(FLAT)} ({q(NAME)}, {q(PLACE)}) VALUES ('Ada', 'Berlin'), ('it''s', NULL), ('"', 'a''b'),
    ('100%', ':x ?'), ('$$', 'Berlin')""",
    f"INSERT INTO {q(LONG)} ({q(SMILE)}, \"key\", \"limit\", \"first\", keys) VALUES ('é', '1', '2', '3', '4')",
)


@pytest.fixture
def database(new_database: Database) -> Database:
    """The tables of the move with their rows, and one that a hostile name would drop."""
    where = new_database.where
    url = f"sqlite:///{where}" if isinstance(where, Path) else where.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
    run(new_database, "CREATE TABLE letters (n INTEGER)", *ROWS)
    return new_database


def legacy(database: Database) -> list[list[tuple[Any, ...]]]:
    return [run(database, f"SELECT * FROM {q(name)} ORDER BY 1") for name in (FLAT, LONG)]


def normalized(database: Database) -> list[list[tuple[Any, ...]]]:
    """The normalized rows in the shape of the legacy ones."""
    joined = f"FROM {q(OWN)} AS o JOIN {q(PLACES)} AS p ON p.{q(PLACE_ID)} = o.{q(LINK)} ORDER BY 1"
    names = ", ".join(map(q, ("n", SMILE, *OURS)))
    return [
        run(database, f"SELECT o.{q(KEY)}, o.{q(NAME)}, p.{q(PLACE)} {joined}"),
        run(database, f"SELECT {names} FROM {q(LONG_OWN)} ORDER BY 1"),
    ]


@pytest.mark.long
def test_names_of_a_move_may_hold_anything(database: Database) -> None:
    """All phases and back: rows of every phase are on both sides, found by their values, and nothing else is hit."""
    run(database, f"CREATE VIEW {q(VIEW)} AS SELECT {q(NAME)} FROM {q(FLAT)}")
    with ConsensusStore.open(database.where, settings=SETTINGS, moves=MOVES) as store:
        migration = store.migration
        migration.upgrade()
        accept_dependencies(store)

        def write(label: str) -> None:
            with store.unit_of_work() as uow:
                flat, long = uow.repository(PAIR), uow.repository(LONG_PAIR)
                key = flat.add({NAME: label, PLACE: "new", KEPT: "kept"})
                number = long.add({SMILE: label} | OURS)
                flat.add({NAME: "gone", PLACE: "gone"})
                assert flat.delete({NAME: "gone"}) == 1
                assert flat.get(key)[1:3] == (label, "new")  # type: ignore[index]
                assert long.rows({SMILE: label, "limit": "l"}, limit=1) == [(number, label, *OURS.values())]
                assert flat.count({PLACE: "new"}) > 0

        write("EXPAND")
        while (now := migration.phase).next:
            if now.compares:
                run(database, f"INSERT INTO {q(FLAT)} ({q(NAME)}) VALUES ('foreign')")
                run(database, f"UPDATE {q(PLACES)} SET {q(PLACE)} = 'moved', {q(PLACE_KEY)} = 'moved' WHERE FALSE")
                migration.backfill()
            if now.writes_normalized:
                assert migration.verify().clean
            migration.advance()
            write(f"to {migration.phase.name}")
            assert migration.status().phase is migration.phase
            if migration.phase is Phase.CUTOVER:
                assert legacy(database) == normalized(database)
        for phase in reversed(list(Phase)[:-1]):
            assert migration.rollback() is phase
            write(f"back {phase.name}")
        assert migration.mismatches(everything=True) == []
    names = [row[1] for row in legacy(database)[0]]
    assert names[:5] == ["Ada", "it's", '"', "100%", "$$"]
    assert [name for name in names if name.startswith(("EXPAND", "to", "back"))] == [
        "EXPAND", *(f"to {p.name}" for p in list(Phase)[1:]), *(f"back {p.name}" for p in reversed(list(Phase)[:-1])),
    ]  # fmt: skip
    assert names.count("foreign") == 2
    assert run(database, "SELECT count(*) FROM letters") == [(0,)]
    assert len(run(database, f"SELECT * FROM {q(VIEW)}")) == len(names)


def test_a_copy_takes_any_names(database: Database, tmp_path: Path) -> None:
    """Rows of both sides come out equal in a file, whatever they are called."""
    with (
        ConsensusStore.open(database.where, settings=SETTINGS, moves=MOVES) as store,
        ConsensusStore.open(tmp_path / "copy.db", settings=SETTINGS, moves=MOVES) as target,
    ):
        store.migration.migrate(Phase.CUTOVER)
        assert store.copy_to(target).finished
    from tests.support.databases import File

    assert legacy(File(tmp_path / "copy.db")) == legacy(database)
    assert normalized(File(tmp_path / "copy.db")) == normalized(database)


# Triggers of other programs -------------------------------------------------------------------------------

NAMES = ("consensus_orm_mine", 'my"trg', 'consensus_orm_" --', 'consensus_orm_victim" --', "consensus_orm_artifacts_x")
"""Of triggers on the legacy table."""

VICTIMS = ("consensus_orm_", "consensus_orm_victim", "my")
"""Of triggers on another table, which a name pasted into DROP TRIGGER would name."""


def make(database: Database, name: str, table: str) -> None:
    """Make a trigger that counts what is inserted, as another program would."""
    body = "INSERT INTO counted VALUES (1)"
    if database.kind == "sqlite":
        run(database, f"CREATE TRIGGER {q(name)} AFTER INSERT ON {table} BEGIN {body}; END")
        return
    function = f"CREATE FUNCTION {q(name)}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; RETURN NULL; END$$"
    trigger = f"CREATE TRIGGER {q(name)} AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {q(name)}()"
    run(database, function, trigger)


def triggers(database: Database) -> list[tuple[Any, ...]]:
    """Name, table, text and state of the triggers that make() made."""
    if database.kind == "sqlite":
        found = run(database, "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY 1")
    else:
        found = run(
            database,
            "SELECT tgname, relname, pg_get_triggerdef(t.oid), tgenabled FROM pg_trigger AS t JOIN pg_class AS c"
            " ON c.oid = tgrelid WHERE NOT tgisinternal ORDER BY 1",
        )
    return [row for row in found if row[0] in (*NAMES, *VICTIMS)]


def test_triggers_of_others_are_theirs_whatever_they_are_called(new_database: Database) -> None:
    """They are there, and in force, in every phase that has their table, and after the way back as at first."""
    database = new_database
    build_legacy(database.where)
    run(database, "CREATE TABLE letters (n INTEGER)", "CREATE TABLE counted (n INTEGER)")
    for name in NAMES:
        make(database, name, "consensus_artifacts")
    for name in VICTIMS:
        make(database, name, "letters")
    before = triggers(database)
    assert len(before) == len(NAMES) + len(VICTIMS)
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        migration = store.migration
        while (now := migration.phase).next:
            if now.compares:
                migration.backfill()
            if now.writes_normalized:
                assert migration.verify().clean
            migration.advance()
            if migration.phase.has_legacy:
                assert triggers(database) == before
        assert [t[:2] for t in triggers(database) if t[1] == "letters"] == [(name, "letters") for name in VICTIMS]
        for _ in range(4):
            migration.rollback()
    assert triggers(database) == before
    run(database, "DELETE FROM counted", "INSERT INTO letters VALUES (1)")
    assert run(database, "SELECT count(*) FROM counted") == [(len(VICTIMS),)]


def test_a_name_of_ours_that_another_program_took_is_refused(new_database: Database) -> None:
    """A trigger of another program is not replaced by ours of the same name: the step is refused, and names it."""
    database = new_database
    build_legacy(database.where)
    run(database, "CREATE TABLE counted (n INTEGER)")
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.upgrade()
        name = "consensus_orm_artifacts_legacy" + ("_insert" if database.kind == "sqlite" else "")
        if database.kind == "sqlite":
            make(database, name, "consensus_artifacts")
        else:
            make(database, "theirs", "counted")
            run(
                database,
                f"DROP TRIGGER IF EXISTS {name} ON consensus_artifacts",
                f"CREATE TRIGGER {name} AFTER INSERT ON consensus_artifacts FOR EACH ROW EXECUTE FUNCTION theirs()",
            )
        # On a server ours was there before it, and is missed first.
        step = store.migration.advance if database.kind == "sqlite" else store.migration.reconcile
        with pytest.raises(MigrationError, match=f"has the name {name}, which ours needs"):
            step()
        assert store.migration.phase is Phase.EXPAND
        run(database, f"DROP TRIGGER {name}" + ("" if database.kind == "sqlite" else " ON consensus_artifacts"))
        if database.kind == "postgresql":
            store.migration.reconcile()
        assert store.migration.advance() is Phase.DUAL_WRITE


@pytest.mark.sqlite
def test_no_trigger_is_let_through_for_its_name(new_database: Database) -> None:
    """A trigger of another program that writes a side that is not open is refused, also with a name like ours."""
    database = new_database
    build_legacy(database.where)
    run(
        database,
        "CREATE TABLE letters (n INTEGER)",
        "CREATE TRIGGER consensus_orm_evil AFTER INSERT ON letters BEGIN DELETE FROM consensus_artifacts; END",
    )
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.migrate(Phase.NORMALIZED, soak=False)
        with pytest.raises(WrongPhaseError), store.unit_of_work() as uow:
            uow.session.execute(text("INSERT INTO letters VALUES (1)"))
        assert run(database, "SELECT count(*) > 0 FROM consensus_artifacts") == [(1,)]
