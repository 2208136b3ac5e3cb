"""Constants in a declaration: whatever a rule says is what the database is told, on both kinds of it.

First each constant by itself, then a move whose rules are full of them, through every phase and back; what the tables
hold is judged by raw SQL against values that Python computes.
"""

from __future__ import annotations

import contextlib
import enum
import math
import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import (
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Text,
    UniqueConstraint,
    bindparam,
    case,
    column,
    create_engine,
    false,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import ConsensusStore, Phase
from consensus_orm.databases.opening import parse_url, rendering
from consensus_orm.databases.postgresql.parameters import spelled
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.rules import Computed, Latest
from consensus_orm.errors import ConfigurationError
from consensus_orm.models.base import BIG, Verbatim
from consensus_orm.settings import Settings
from consensus_orm.statements.pairs import Statements
from tests.support.databases import Database

# Each by itself -------------------------------------------------------------------------------------------


class State(enum.Enum):
    DONE = "done"


class Word(enum.StrEnum):
    ODD = "it's"


class Number(enum.IntEnum):
    LOW = -7


TEXTS = [
    "",
    "it's",
    "''",
    '"',
    "100%",
    "%s %(x)s",
    ":x ::text",
    "?",
    "\\",
    "\\'",
    "a\\nb",
    "\x01\t\n\r\x7f",
    "é – 🎉",
    "$$ --",
]
VALUES: list[Any] = [
    *TEXTS, None, True, False, 0, 1, -1, 2**31, 2**63 - 1, -(2**63), 0.5, -0.25, 1e300, 5e-324, b"", b"\0'\xff%\\",
    Decimal("1.10"), Decimal("-2"), date(2025, 11, 4), datetime(2025, 11, 4, 2, 23, 58, 9), time(2, 23),
    Word.ODD, Number.LOW,
]  # fmt: skip
ON_SERVERS: list[Any] = [
    2**63, Decimal("12345678901234567890.123456789"), datetime(2025, 11, 4, tzinfo=UTC), timedelta(hours=-1),
    UUID(int=5),
]  # fmt: skip


def told(database: Database, *values: Any) -> dict[str, Any]:
    """What the database is told of constants, beside a parameter that is bound as in every statement of ours."""
    statements = [rendering(database.kind).render(select(literal(v), bindparam("_x", type_=Text))) for v in values]
    found = [_run(database, statement) for statement in statements]
    assert {bound for _, bound in found} == {"100%"}
    return {repr(value): said for value, (said, _) in zip(values, found, strict=True)}


def _run(database: Database, statement: str) -> Any:
    if isinstance(database.where, Path):
        with contextlib.closing(sqlite3.connect(database.where)) as file:
            return file.execute(statement, {"_x": "100%"}).fetchone()
    with psycopg.connect(database.where) as server:
        return server.execute(spelled(statement).encode(), {"_x": "100%"}).fetchone()


def stored(kind: str, value: Any) -> Any:
    """What a driver gives back of a value; SQLite has no decimals or times, and a server takes digits for a decimal."""
    if isinstance(value, enum.Enum):
        return value.value
    if kind == "postgresql" and isinstance(value, float):
        return Decimal(repr(value))
    if kind == "sqlite" and isinstance(value, Decimal):
        return float(value) if "." in str(value) else int(value)
    if kind == "sqlite" and isinstance(value, datetime):
        return value.isoformat(" ", "microseconds")
    if kind == "sqlite" and isinstance(value, date | time):
        return str(value) if isinstance(value, date) else value.isoformat("microseconds")
    return value


def test_a_constant_is_what_the_database_is_told(new_database: Database) -> None:
    """In value and in kind, whatever stands in a text, and beside a parameter."""
    kind = new_database.kind
    values = VALUES if kind == "sqlite" else VALUES + ON_SERVERS
    found = told(new_database, *values)
    assert found == {repr(value): stored(kind, value) for value in values}
    assert [type(v) for v in found.values() if isinstance(v, bytes)] == [bytes, bytes]


REFUSED: dict[str, tuple[Any, str]] = {
    "NUL": ("a\0b", "NUL"),
    "surrogate": ("a\ud800", "surrogate"),
    "infinity": (math.inf, "-?inf cannot"),
    "minus infinity": (-math.inf, "inf cannot"),
    "nan": (math.nan, "nan cannot"),
    "decimal nan": (Decimal("NaN"), "NaN cannot"),
    "decimal infinity": (Decimal("-Infinity"), "Infinity cannot"),
    "an enum without its type": (State.DONE, "type of a State is not known"),
    "a list": ([1], "type of a list is not known"),
    "a fraction": (literal(1.5, Integer), "1.5 is no integer"),
}
REFUSED_BY_FILES: dict[str, tuple[Any, str]] = {
    "too large": (2**63, "64 bits"),
    "too small": (-(2**63) - 1, "64 bits"),
    "too large a decimal": (Decimal(2**63), "64 bits"),
    "too many digits": (Decimal("0.12345678901234567890"), "more digits"),
    "a zone": (datetime(2025, 11, 4, tzinfo=UTC), "zone"),
    "a duration": (timedelta(1), "timedelta"),
}


# In a declaration -----------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class JobFlat(Base):
    __tablename__ = "jobs_flat"

    no: Mapped[int] = mapped_column(BIG, primary_key=True)
    state: Mapped[str] = mapped_column(String(40))
    note: Mapped[str | None] = mapped_column(Text)
    price: Mapped[int | None] = mapped_column(BIG)


class Group(Base):
    __tablename__ = "job_groups"
    __table_args__ = (UniqueConstraint("name"), {"sqlite_autoincrement": True})

    no: Mapped[int] = mapped_column(BIG, primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    newest: Mapped[str | None] = mapped_column(String(80))


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = ({"sqlite_autoincrement": True},)

    no: Mapped[int] = mapped_column(BIG, primary_key=True)
    group_no: Mapped[int] = mapped_column(ForeignKey("job_groups.no", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(String(40))
    note: Mapped[str | None] = mapped_column(Text)
    price: Mapped[int | None] = mapped_column(BIG)
    ours: Mapped[bool] = mapped_column(Boolean, server_default=false())

    found: Mapped[int | None] = mapped_column(Integer)
    is_done: Mapped[int] = mapped_column(BIG)
    is_dear: Mapped[bool] = mapped_column(Boolean)
    label: Mapped[str] = mapped_column(String(80))
    said: Mapped[str | None] = mapped_column(Text)
    cents: Mapped[int | None] = mapped_column(BIG)
    half: Mapped[float | None] = mapped_column(Float)
    taxed: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    rounded: Mapped[int | None] = mapped_column(BIG)
    mark: Mapped[bytes] = mapped_column(LargeBinary)
    day: Mapped[date | None] = mapped_column(Date)
    at: Mapped[datetime | None] = mapped_column(DateTime)
    kind: Mapped[State | None] = mapped_column(Enum(State, native_enum=False))


ODD = """it's 100% :x "\\" ?"""


def declaration(kind: str, label: Any = None) -> Moves:
    position = func.instr if kind == "sqlite" else func.strpos
    state, note, price = JobFlat.state, JobFlat.note, JobFlat.price
    groups = Parent(
        Group,
        link=Job.group_no,
        by={Group.name: Computed("of: " + state)},
        derived={Group.newest: Latest("jobs", case((price > 10, "dear's"), else_=state))},
    )
    rules: dict[Any, Any] = {
        Job.found: position(state, "state"),
        Job.is_done: case((state == "done", 1), else_=0),
        Job.is_dear: case((price > 10, True), else_=False),
        Job.label: func.coalesce(note, "-") if label is None else label,
        Job.said: note + ODD,
        Job.cents: price * 100,
        Job.half: price * 0.5,
        Job.taxed: price * Decimal("1.25"),
        Job.rounded: price - -1,
        Job.mark: case((state.in_(["done", ODD]), b"\0'\xff"), else_=b""),
        Job.day: case((price == -3, date(2025, 11, 4)), else_=None),
        Job.at: case((price == -3, datetime(2025, 11, 4, 2, 23)), else_=None),
        Job.kind: case((state == "done", literal(State.DONE, Enum(State, native_enum=False)))),
    }
    jobs = Move(
        f"jobs_flat={__name__}:JobFlat",
        Job,
        name="jobs",
        key={"no": Job.no},
        columns={Job.state: "state", Job.note: "note", Job.price: "price"}
        | {target: Computed(rule) for target, rule in rules.items()},
        parts=[groups],
        marker=Job.ours,
    )
    return Moves(jobs)


def expected(state: str, note: str | None, price: int | None) -> tuple[Any, ...]:
    """What the rules make of a row, said in Python."""
    return (
        state.find("state") + 1,
        int(state == "done"),
        price is not None and price > 10,
        "-" if note is None else note,
        None if note is None else note + ODD,
        *((None,) * 4 if price is None else (price * 100, price * 0.5, price * 1.25, price + 1)),
        b"\0'\xff" if state in ("done", ODD) else b"",
        *((date(2025, 11, 4), datetime(2025, 11, 4, 2, 23)) if price == -3 else (None, None)),
        "DONE" if state == "done" else None,
        f"of: {state}",
    )


ROWS: list[tuple[str, str | None, int | None]] = [
    ("done", None, 5), ("done", "it's", -3), ("no state", "", 11), ("x", "n", None), (ODD, "50%", 2**31),
    ("-", ":x", 0),
]  # fmt: skip
SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0)


@pytest.fixture
def database(new_database: Database) -> Database:
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(JobFlat), [dict(zip(("state", "note", "price"), row, strict=True)) for row in ROWS])
    engine.dispose()
    return new_database


@contextlib.contextmanager
def opened(database: Database, folder: Path) -> Iterator[ConsensusStore]:
    settings = SETTINGS.model_copy(update={"backup_dir": folder})
    with ConsensusStore.open(database.where, settings=settings, moves=declaration(database.kind)) as store:
        store.upgrade()
        yield store


def judge(database: Database, rows: list[tuple[str, str | None, int | None]]) -> None:
    """The normalized side is what the rules make of the rows, value by value."""
    computed = ", ".join(f"j.{attribute.key}" for attribute in declaration(database.kind)["jobs"].computed)
    found = database.rows_of(
        f"SELECT j.state, j.note, j.price, {computed}, g.name FROM jobs AS j JOIN job_groups AS g ON g.no = j.group_no"
        " ORDER BY j.no"
    )
    files = database.kind == "sqlite"
    assert found == [row + tuple(stored("sqlite", v) if files else v for v in expected(*row)) for row in rows]
    newest = {f"of: {state}": "dear's" if price and price > 10 else state for state, _, price in rows}
    assert dict(database.rows_of("SELECT name, newest FROM job_groups")) == newest


def forward(store: ConsensusStore, to: Phase) -> None:
    while (now := store.migration.phase) < to:
        if now.compares:
            assert store.migration.backfill().rejects == 0
        if now.writes_normalized:
            assert store.migration.verify().clean
        store.migration.advance()


@pytest.mark.long
def test_rules_full_of_constants_go_through_all_phases_and_back(database: Database, tmp_path: Path) -> None:
    """Rows are written, carried and compared by the same constants, and the legacy table ends with each of them."""
    rows = list(ROWS)
    with opened(database, tmp_path) as store:

        def add(state: str, note: str | None, price: int | None) -> None:
            with store.unit_of_work() as uow:
                uow.repository("jobs").add({"state": state, "note": note, "price": price})
            rows.append((state, note, price))
            if store.migration.phase.writes_normalized:
                judge(database, rows)

        add("done", "in EXPAND", 12)
        # The backup of a server before CONTRACT is a file, and takes no decimals and no times.
        last = Phase.CONTRACT if database.kind == "sqlite" else Phase.NORMALIZED
        there = [phase for phase in Phase if phase <= last]
        for phase in there[1:]:
            forward(store, phase)
            if phase is Phase.DUAL_WRITE:
                assert store.migration.backfill().rejects == 0
            add(ODD, f"%{phase.name}", 12)
            add("done", None, -3)
        for phase in reversed(there[:-1]):
            assert store.migration.rollback() is phase
            add("state's", phase.name, None)
        assert store.migration.mismatches(everything=True) == []
        assert store.migration.rejects(everything=True) == []
    assert database.rows_of("SELECT state, note, price FROM jobs_flat ORDER BY no") == rows


@pytest.mark.postgresql
def test_no_setting_of_a_database_changes_a_constant(database: Database, tmp_path: Path) -> None:
    """A database may have been told, long ago, that a backslash in a text is more than itself."""
    (name,) = database.rows_of("SELECT current_database()")[0]
    for setting in ("standard_conforming_strings = off", "extra_float_digits = -5", "bytea_output = 'escape'"):
        database.script(f'ALTER DATABASE "{name}" SET {setting}')
    with opened(database, tmp_path) as store:
        forward(store, Phase.CUTOVER)
        assert store.migration.verify().clean
    database.script(f'ALTER DATABASE "{name}" RESET ALL')
    judge(database, ROWS)


DAMAGE = (
    "found = 9", "is_done = 1 - is_done", "label = 'x'", "said = 'x'", "cents = 7", "half = 0.25", "taxed = 7",
    "rounded = 7", "kind = 'x'", "is_dear = NOT is_dear", "day = '2000-01-01'", "at = '2000-01-01 00:00:00'",
)  # fmt: skip


@pytest.mark.long
def test_what_differs_from_a_rule_is_found_and_repaired(database: Database, tmp_path: Path) -> None:
    """Whichever computed column is damaged: verify sees it, and reconcile makes of it what the rule says."""
    with opened(database, tmp_path) as store:
        forward(store, Phase.CUTOVER)
        for damage in DAMAGE:
            database.unnoticed(f"UPDATE jobs SET {damage} WHERE no = 5")
            (difference,) = store.migration.verify().differences
            assert difference.columns == (damage.partition(" ")[0],)
            store.migration.reconcile()
            judge(database, ROWS)
        assert store.migration.verify().clean


@pytest.mark.sqlite
def test_a_trigger_compares_with_constants_too(database: Database, tmp_path: Path) -> None:
    """A write that leaves both sides equal is not noticed, and one that does not is; by rules full of constants."""
    with opened(database, tmp_path) as store:
        forward(store, Phase.CUTOVER)
        database.script("UPDATE jobs_flat SET state = state, note = note, price = price")
        database.script("UPDATE jobs SET label = label, kind = kind, price = price, is_done = is_done, mark = mark")
        assert store.migration.status().foreign_writes == 0
        database.script("UPDATE jobs_flat SET state = 'done' WHERE no = 3; UPDATE jobs SET is_done = 0 WHERE no = 1")
        assert store.migration.status().foreign_writes == 2


# What cannot be written -----------------------------------------------------------------------------------


def _with(rule: Any) -> Moves:
    return declaration("sqlite", rule)


@pytest.mark.parametrize(("value", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_constant_that_cannot_be_written_is_refused_at_once(kind: str, value: Any, reason: str) -> None:
    """When the statements are made, with the reason; never at a later step, and never as another value."""
    with pytest.raises(ConfigurationError, match=reason):
        Statements(_with(func.coalesce(JobFlat.note, value)), rendering(kind))


@pytest.mark.parametrize(("value", "reason"), REFUSED_BY_FILES.values(), ids=REFUSED_BY_FILES)
def test_a_constant_that_sqlite_cannot_hold_is_refused_at_once(value: Any, reason: str) -> None:
    """SQLite would take each of them for another value."""
    with pytest.raises(ConfigurationError, match=reason):
        Statements(_with(func.coalesce(JobFlat.note, value)), rendering("sqlite"))


def test_a_parameter_that_nobody_binds_is_refused_at_once(kind: str) -> None:
    """A rule is an expression on the row alone."""
    with pytest.raises(ConfigurationError, match="parameter 'limit' without a value"):
        Statements(_with(func.coalesce(JobFlat.note, bindparam("limit"))), rendering(kind))


def test_a_refused_constant_keeps_the_store_from_opening(new_database: Database) -> None:
    """The first moment at which a caller can hear of it, and nothing is made."""
    with pytest.raises(ConfigurationError, match="nan"):
        ConsensusStore.open(new_database.where, moves=_with(JobFlat.price * math.nan))
    made = new_database.where.exists() if isinstance(new_database.where, Path) else new_database.tables()
    assert not made


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_columns_that_keep_any_value_are_compared_with_constants(kind: str) -> None:
    """A column without a Python type writes a constant by the type of the constant."""
    at = column("at", Verbatim("TIMESTAMP"))
    render = rendering(kind).render
    assert render(at == "it's") == "at = 'it''s'"
    assert render(at.in_([1, 2.5])) == "at IN (1, 2.5)"
    assert render(at == date(2025, 11, 4)) == "at = '2025-11-04'"
    assert render(at.is_(None)) == "at IS NULL"
    assert render(-(at - -5)) == "-(at - (-5))"
