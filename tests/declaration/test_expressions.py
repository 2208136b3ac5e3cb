"""Rules 4 and 5 as SQL, held against an independent reading in Python that shares nothing with them."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Boolean,
    Date,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Text,
    bindparam,
    column,
    not_,
    select,
)
from sqlalchemy.sql.expression import ColumnElement

from consensus_orm.consensus.expressions import flagged, run_key, says, synthesis_json
from consensus_orm.databases.opening import rendering
from consensus_orm.declaration.expressions import concatenated, holds, milliseconds, same, time_from
from consensus_orm.models.base import Verbatim
from consensus_orm.statements.rendering import in_keys
from consensus_orm.times import time_of, time_text
from tests.field.rows import CONTENTS, TIMES, Sql

render = rendering("sqlite").render

SHAPE = re.compile(rb"(\d\d\d\d)-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d+))?")
EPOCH = date(1970, 1, 1).toordinal()
TIMESTAMP, BOOLEAN = Verbatim("TIMESTAMP"), Verbatim("BOOLEAN")

MORE_TIMES: list[Any] = [
    "2025-11-04 02:23:58.0",
    "2025-11-04 02:23:58.9",
    "2025-11-04 02:23:58.99",
    "2025-11-04 02:23:58.000999",
    "2025-11-04 02:23:60",
    "2025-11-04 02:60:00",
    "2025-11-04 23:59:59.9999",
    "2025-11-04 24:00:00.5",
    "2025-11-31 00:00:00",
    "2025-13-01 00:00:00",
    "2025-00-01 00:00:00",
    "2025-01-00 00:00:00",
    "2024-02-29 12:00:00",
    "1900-02-29 12:00:00",
    "2000-02-29 12:00:00",
    "0000-01-01 00:00:00.5",
    "0000-12-31 23:59:59",
    "0001-01-01 00:00:00",
    "1970-01-01 00:00:00",
    "1970-01-01 00:00:00.001",
    "1969-12-31 23:59:59",
    "9999-12-31 23:59:59",
    "10000-01-01 00:00:00",
    "-2025-11-04 02:23:58",
    "2025-11-04 02:23:58.1x",
    "2025-11-04 02:23:58.1\0",
    "2025-11-04 02:23:58\0.1",
    "2025-11-04 02:23:58.\0",
    "\0002025-11-04 02:23:58",
    "2025-11-04 02:23:58.١",
    "2025-11-04 02:23",
    "2025-11-04T02:23:58",
    "2025-11-04 02:23:58Z",
    "2025-11-04 02:23:58+00:00",
    "2025-11-04 02:23:58.5+02:00",
    " 2025-11-04 02:23:58",
    "2025-11-04  02:23:58",
    "2025/11/04 02:23:58",
    "2025-11-4 02:23:58",
    "now",
    "12:00",
    "2460000.5",
    "-1",
    "0",
    0,
    -1,
    2460000,
    2460000.5,
    1e300,
    float("inf"),
    b"",
    b"now",
    b"\xff",
]
ALL_TIMES = [*(t for t in TIMES.values() if not isinstance(t, Sql)), *MORE_TIMES]


def python_ms(kind: str, data: bytes) -> int:
    """Rule 4 in Python: milliseconds of a stored value, from its type and bytes alone."""
    match = SHAPE.fullmatch(data) if kind == "text" else None
    if match is None or not data.isascii():
        return 0
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        days = date(year, month, day).toordinal() - EPOCH
    except ValueError:
        return 0
    if hour > 23 or minute > 59 or second > 59:
        return 0
    fraction = int(((match[7] or b"") + b"000")[:3])
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + fraction


def python_identity(run: tuple[str, bytes], at: tuple[str, bytes]) -> tuple[str, ...] | tuple[str, str, bytes]:
    """Rule 4 in Python: the identity of a run within spec and stage."""
    if run[0] != "null":
        return ("run", *run)
    if at[0] == "text" and at[1].isascii() and SHAPE.fullmatch(at[1]):
        return ("second", "", at[1][:19])
    return ("as it is", *at)


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    """A table whose columns have the affinities and collation traps of the field."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (run TEXT, at TIMESTAMP, flag BOOLEAN, words TEXT COLLATE NOCASE, any)")
        connection.create_function("consensus_is_text", 2, is_text, deterministic=True)
        yield connection


def is_text(value: Any, encoding: str) -> bool:
    assert encoding == "UTF-8"
    try:
        return value is None or bool(bytes(value).decode() or True)
    except UnicodeDecodeError:
        return False


def cell(database: sqlite3.Connection, name: str) -> tuple[str, bytes]:
    """Type and bytes of a stored value; a real number by its bits, its text leaves digits out."""
    kind, data, value = database.execute(f"SELECT typeof({name}), CAST({name} AS BLOB), {name} FROM t").fetchone()
    return kind, struct.pack(">d", value) if kind == "real" else data or b""


def store(database: sqlite3.Connection, **values: Any) -> None:
    database.execute("DELETE FROM t")
    names = ", ".join(values)
    database.execute(f"INSERT INTO t ({names}) VALUES ({', '.join(':' + n for n in values)})", values)


def evaluate(database: sqlite3.Connection, expression: ColumnElement[Any], **parameters: Any) -> Any:
    """An expression on the row of the table, or on bound values."""
    return database.execute(f"SELECT {render(expression)} FROM t", parameters).fetchone()[0]


def check_milliseconds(database: sqlite3.Connection, value: Any) -> None:
    store(database, at=value)
    kind, data = cell(database, "at")
    expected = python_ms(kind, data)
    stored = database.execute("SELECT at FROM t").fetchone()[0]
    assert evaluate(database, milliseconds(column("at", TIMESTAMP))) == expected
    # Bound, as the dual write has it: no affinity, the same answer.
    assert evaluate(database, milliseconds(bindparam("x", type_=TIMESTAMP)), x=stored) == expected
    read = time_of(stored)
    assert (read is None) == (expected == 0) or data.startswith(b"1970-01-01 00:00:00")
    if read is not None:
        assert (read - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) == expected


@pytest.mark.parametrize("value", ALL_TIMES, ids=ascii)
def test_milliseconds_are_lexical(database: sqlite3.Connection, value: Any) -> None:
    """Only valid text of the shape gives milliseconds, truncated; in SQL (stored and bound) as in Python."""
    check_milliseconds(database, value)


def test_many_texts_are_put_together(database: sqlite3.Connection) -> None:
    """More texts than a function takes arguments follow each other in order, and a NULL is left out."""
    store(database, words="\u00e9%s")
    pieces = [bindparam(f"x{number}", type_=Text()) for number in range(200)]
    bound: dict[str, Any] = {piece.key: f"{number} " for number, piece in enumerate(pieces)}
    told = evaluate(database, concatenated(column("words", Text()), *pieces), **bound | {"x1": None})
    assert told == "\u00e9%s" + "".join(f"{number} " for number in range(200) if number != 1)


digits = st.text("0123456789", max_size=12)
shaped = st.builds(
    "{}-{}-{} {}:{}:{}{}".format,
    st.integers(0, 9999).map("{:04}".format),
    st.integers(0, 14).map("{:02}".format),
    st.integers(0, 32).map("{:02}".format),
    st.integers(0, 25).map("{:02}".format),
    st.integers(0, 61).map("{:02}".format),
    st.integers(0, 61).map("{:02}".format),
    st.one_of(st.just(""), digits.map(".{}".format), st.sampled_from(["Z", "+02:00", " ", "\0", ".5Z", ".5\0"])),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=25)
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda d: d.isoformat(" "))
stored_times = st.one_of(
    shaped,
    moments,
    texts,
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=25),
)
run_ids = st.one_of(
    st.none(), st.just(""), texts, shaped.map("at:{}".format), st.binary(max_size=5), st.integers(0, 20)
)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(value=stored_times)
def test_milliseconds_of_anything(database: sqlite3.Connection, value: Any) -> None:
    """Whatever is stored as a time, SQL and Python read the same milliseconds from it."""
    check_milliseconds(database, value)


def identities(database: sqlite3.Connection, run: Any, at: Any) -> tuple[str, tuple[str, ...] | tuple[str, str, bytes]]:
    """The run key of a row in SQL (stored, and as bound by the dual write), and its identity in Python."""
    store(database, run=run, at=at)
    key = evaluate(database, run_key(column("run", Text), column("at", TIMESTAMP)))
    stored_run, stored_at = database.execute("SELECT run, at FROM t").fetchone()
    bound = run_key(bindparam("r", type_=TIMESTAMP), bindparam("a", type_=TIMESTAMP))
    assert evaluate(database, bound, r=stored_run, a=stored_at) == key
    assert isinstance(key, str)
    return key, python_identity(cell(database, "run"), cell(database, "at"))


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(
    run_a=run_ids, run_b=run_ids, at_a=stored_times, at_b=stored_times, same_run=st.booleans(), same_at=st.booleans()
)
def test_two_rows_share_a_run_exactly_when_rule_4_says_so(
    database: sqlite3.Connection, run_a: Any, run_b: Any, at_a: Any, at_b: Any, same_run: bool, same_at: bool
) -> None:
    """Run keys are equal exactly where run ids are equal or, without them, seconds (or odd values) are."""
    key_a, identity_a = identities(database, run_a, at_a)
    key_b, identity_b = identities(database, run_a if same_run else run_b, at_a if same_at else at_b)

    assert (key_a == key_b) == (identity_a == identity_b)


def test_run_keys_of_all_odd_times_differ(database: sqlite3.Connection) -> None:
    """Among the odd times of the field and more, keys tell apart exactly what differs in second, type or bytes."""
    runs: list[Any] = [None, "", "now", "at:2025-11-04 02:23:58", b"", b"now"]
    found = [identities(database, run, at) for run in runs for at in ALL_TIMES]

    assert len({key for key, _ in found}) == len({identity for _, identity in found})
    assert len(set(found)) == len({key for key, _ in found})


def test_null_and_empty_run_ids_are_two(database: sqlite3.Connection) -> None:
    """A run id of '' is a run id; NULL is none, and the second counts."""
    null, _ = identities(database, None, "2025-11-04 02:23:58")
    empty, _ = identities(database, "", "2025-11-04 02:23:58")
    later, _ = identities(database, "", "2025-11-04 02:23:59")

    assert null != empty == later


@given(
    moment=st.datetimes(
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=2)), timezone(-timedelta(minutes=90))]),
        min_value=datetime(1, 1, 2),
        max_value=datetime(9999, 12, 30),
    )
)
def test_times_are_written_so_that_they_are_read(moment: datetime) -> None:
    """A time written as text is the same time when it is read, to the microsecond, whatever its zone."""
    text = time_text(moment)

    assert time_of(text) == moment
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{6})?", text)


@settings(max_examples=200, deadline=None)
@given(ms=st.one_of(st.integers(-62135596800000, 253402300799999), st.integers(-(2**62), 2**62)))
def test_a_time_made_from_milliseconds_gives_them_back(database: sqlite3.Connection, ms: int) -> None:
    """Times made for adopted rows are read as the milliseconds they were made from, in the years 1 to 9999."""
    store(database, any=ms)
    made = evaluate(database, time_from(column("any")))
    if -62135596800000 <= ms <= 253402300799999:
        assert python_ms("text", made.encode()) == ms
        assert made.endswith(f".{ms % 1000:03}") == bool(ms % 1000)
    else:
        assert made == ms


VALUES: list[Any] = [
    None, "", "7", "007", "7.0", "a", "A", "a ", "a\0", "a\0b", "\0", "é", "e\u0301", 7, 7.0, 0, 0.0, -0.0, 0.1,
    0.1 + 2e-17, 0.1 + 1e-16, 1e300, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, b"", b"7", b"a", b"a\0",
    b"\xff", "true",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("type_", [Text(), TIMESTAMP, BOOLEAN, Integer(), Boolean()], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("name", ["run", "at", "flag", "words", "any"])
def test_same_means_the_same_type_and_bytes(database: sqlite3.Connection, name: str, type_: Any) -> None:
    """A stored and a bound value are the same exactly in type and bytes: no affinity, collation or tolerance."""
    expression = same(column(name, type_), bindparam("x", type_=type_))
    for stored in VALUES:
        store(database, **{name: stored})
        mine = cell(database, name)
        if isinstance(type_, Text) and mine[0] in ("integer", "real"):
            continue  # a column declared TEXT holds no number
        for other in VALUES:
            database.execute("CREATE TEMP TABLE o AS SELECT ? AS x", (other,))
            kind, data = database.execute("SELECT typeof(x), CAST(x AS BLOB) FROM o").fetchone()
            database.execute("DROP TABLE o")
            theirs = kind, struct.pack(">d", other) if kind == "real" else data or b""
            answer = evaluate(database, expression, x=other)
            if {stored, other} <= {0.0} and mine[0] == theirs[0] == "real":
                continue  # -0.0 is stored as 0.0
            assert answer == (mine == theirs), (stored, other)


def test_same_is_the_same_between_two_columns(database: sqlite3.Connection) -> None:
    """Two stored values are compared as one stored and one bound."""
    for left in VALUES:
        for right in VALUES:
            store(database, at=left, flag=right)
            expression = same(column("at", TIMESTAMP), column("flag", BOOLEAN))
            assert evaluate(database, expression) == (cell(database, "at") == cell(database, "flag")), (left, right)


@pytest.mark.parametrize("stored", [None, 5, "5", b"5", 5.5, "a", "A", b"a"], ids=repr)
@pytest.mark.parametrize("meant", [None, 5, "5", "a"], ids=repr)
def test_a_column_holds_a_computed_value_in_its_type(database: sqlite3.Connection, stored: Any, meant: Any) -> None:
    """A computed integer, text or NULL is held exactly, never by an equal of another type or case."""
    type_: Any = Text() if isinstance(meant, str) else Integer()
    store(database, any=stored)
    expected = type(stored) is type(meant) and stored == meant

    assert bool(evaluate(database, holds(column("any", type_), bindparam("x", type_=type_)), x=meant)) is expected


COLUMNS = {
    "INTEGER": Integer(), "BOOLEAN": Boolean(), "REAL": Float(), "NUMERIC": Numeric(), "TEXT": Text(),
    "VARCHAR(9) COLLATE NOCASE": String(9), "BLOB": LargeBinary(), "DATE": Date(),
}  # fmt: skip


@pytest.mark.parametrize(("declared", "type_"), COLUMNS.items(), ids=COLUMNS)
def test_a_column_holds_what_storing_the_value_gives(declared: str, type_: Any) -> None:
    """Whatever becomes of a computed value in a column is what the column must hold, and nothing else."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, x {declared})")
        connection.executemany("INSERT INTO t (x) VALUES (?)", [(value,) for value in VALUES])
        cells = connection.execute("SELECT typeof(x), CAST(x AS BLOB) FROM t ORDER BY id").fetchall()
        held = render(select(holds(column("x", type_), bindparam("meant", type_=type_)).label("held")))
        for meant, wanted in zip(VALUES, cells, strict=True):
            answers = connection.execute(f"{held} FROM t ORDER BY id", {"meant": meant}).fetchall()
            found = [cell for cell, (answer,) in zip(cells, answers, strict=True) if answer]
            assert set(found) == {wanted}, meant


@pytest.mark.parametrize("time", ALL_TIMES, ids=repr)
def test_a_column_holds_the_milliseconds_of_a_time_and_no_others(database: sqlite3.Connection, time: Any) -> None:
    """However a time is compared with a number, what agrees is what reading it gives, in type and value."""
    store(database, at=time)
    right = evaluate(database, milliseconds(column("at", TIMESTAMP)))
    seconds = database.execute("SELECT strftime('%s', at) * 1000 FROM t").fetchone()[0]
    near = (right, right + 1, right - 1, right + 1000, 0, 1, 86_400_000, seconds, None, str(right), right + 0.5)
    for held in near:
        store(database, at=time, any=held)
        agrees = evaluate(database, holds(column("any", Integer()), milliseconds(column("at", TIMESTAMP))))
        assert bool(agrees) is (type(held) is int and held == right), held


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, 0), (0, 0), (1, 1), (2, 1), (-1, 1), (0.5, 1), (0.0, 0), ("", 0), ("true", 1), ("TRUE", 1),
     ("yes", 0), (b"\x01", 0)],
)  # fmt: skip
def test_a_flag_is_set_by_a_number_or_the_word(database: sqlite3.Connection, value: Any, expected: int) -> None:
    """A stored flag counts where it is a number other than 0, or the word true."""
    store(database, flag=value)

    assert evaluate(database, flagged(column("flag", BOOLEAN))) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("failed", 1), ("Partially FAILED", 1), ("fail", 0), ("ok", 0), ("", 0), (None, None),
     (b"failed", 1), ("ok\0failed", 1)],
)  # fmt: skip
def test_a_status_says_a_word(database: sqlite3.Connection, value: Any, expected: int | None) -> None:
    """A status says a word in any case of letters, in any type, also behind a NUL."""
    store(database, any=value)

    assert evaluate(database, says(column("any"), bindparam("w")), w="failed") == expected


CONTENT_VALUES = [value for value in CONTENTS.values() if not isinstance(value, Sql)]


@pytest.mark.parametrize("content", CONTENT_VALUES, ids=lambda c: ascii(c)[:20])
def test_a_synthesis_as_json_says_what_it_holds(database: sqlite3.Connection, content: Any) -> None:
    """synthesis_json is JSON with the values themselves, or NULL where JSON has no word for them."""
    store(database, any=content)
    columns = [column("any", Text), *(bindparam(name) for name in "bcdef")]
    made = evaluate(database, synthesis_json(*columns), b=None, c="ok", d=3, e='["a"]', f="")
    expected: Any = database.execute("SELECT any FROM t").fetchone()[0]

    if isinstance(content, bytes):
        assert made is None
    else:
        keys = ("output_markdown", "output_path", "status", "artifacts_count", "agreements", "conflicts")
        assert json.loads(made, strict=False) == dict(zip(keys, (expected, None, "ok", 3, '["a"]', ""), strict=True))


@pytest.mark.parametrize("data", [b"\xff", b"\xed\xa0\x80", "é".encode()[:1]])
def test_a_synthesis_that_json_cannot_say_is_null(database: sqlite3.Connection, data: bytes) -> None:
    """Text that is no UTF-8 gives no half-broken JSON."""
    store(database, any=None)
    database.execute("UPDATE t SET any = CAST(? AS TEXT)", (data,))
    columns = [column("any", Text), *(bindparam(name) for name in "bcdef")]

    assert evaluate(database, synthesis_json(*columns), b=None, c="ok", d=3, e=None, f=None) is None


@pytest.mark.parametrize(
    "condition",
    [
        same(column("a"), column("b")),
        holds(column("a", Integer), column("b")),
        flagged(column("a")),
        says(column("a"), column("b")),
        in_keys(column("a")),
    ],
    ids=lambda condition: condition.name,
)
def test_a_condition_is_not_compared_with_one(condition: ColumnElement[bool]) -> None:
    """SQLAlchemy writes `= 1` behind a function of boolean type on SQLite, and then no index serves it."""
    alone = render(condition)
    assert render(select(column("a")).where(condition, column("c") == column("d"))).endswith(f"WHERE {alone} AND c = d")
    assert render(not_(condition)) == f"NOT {alone}"
