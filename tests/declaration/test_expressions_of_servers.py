"""Rules 4 and 5 as PostgreSQL's SQL, held against the same independent reading in Python as SQLite's.

A column has one type here, so a value is text without NUL, an integer, or NULL. Every rule is tried on columns of each
collation that the server has: none may change an answer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    CHAR,
    REAL,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Text,
    bindparam,
    case,
    column,
    literal,
    null,
    select,
    true,
)
from sqlalchemy.sql.expression import ColumnElement

from consensus_orm.consensus.expressions import flagged, run_key, says, synthesis_json
from consensus_orm.databases.opening import rendering
from consensus_orm.databases.postgresql.parameters import spelled
from consensus_orm.declaration.expressions import concatenated, exact_hex, holds, milliseconds, same, time_from
from consensus_orm.times import time_of
from tests.declaration.test_expressions import (
    ALL_TIMES,
    BOOLEAN,
    TIMESTAMP,
    VALUES,
    moments,
    python_identity,
    python_ms,
    shaped,
    texts,
)
from tests.field.rows import CONTENTS
from tests.support import servers
from tests.support.databases import holds as can_hold

TIMES = [time for time in ALL_TIMES if time is None or (isinstance(time, str) and can_hold("postgresql", time))]
TEXTS = [value for value in VALUES if value is None or (isinstance(value, str) and can_hold("postgresql", value))]
NUMBERS = [value for value in VALUES if value is None or (isinstance(value, int) and value < 2**63)]
COLLATIONS = (
    "SELECT quote_ident(collname) FROM pg_collation WHERE collprovider IN ('b', 'c')"
    " AND collencoding IN (-1, pg_char_to_encoding('UTF8')) AND collnamespace = 'pg_catalog'::regnamespace ORDER BY 1"
)

held = texts.filter(lambda text: can_hold("postgresql", text))
stored_times = st.one_of(shaped.filter(lambda text: can_hold("postgresql", text)), moments, held, st.none())
run_ids = st.one_of(st.none(), st.just(""), held, moments.map("at:{}".format))


@pytest.fixture(scope="module")
def database() -> Iterator[psycopg.Connection[Any]]:
    """For each collation a table of texts; and one of numbers."""
    with servers.database() as url, psycopg.connect(url, autocommit=True) as connection:
        for (collation,) in connection.execute(COLLATIONS.encode()).fetchall():
            columns = ", ".join(f"{name} TEXT COLLATE {collation}" for name in ("run", "at", "words", "other"))
            connection.execute(f"CREATE TABLE {_table(collation)} ({columns}, number BIGINT, flag BIGINT)".encode())
        yield connection


def _table(collation: str) -> str:
    return '"in ' + collation.strip('"') + '"'


def tables(database: psycopg.Connection[Any]) -> list[str]:
    found = database.execute("SELECT quote_ident(relname) FROM pg_class WHERE relname ^@ 'in '").fetchall()
    assert len(found) >= 3
    return [name for (name,) in found]


def evaluate(database: psycopg.Connection[Any], expression: ColumnElement[Any], **row: Any) -> Any:
    """An expression on a stored row, which must be the same in every collation."""
    sql = spelled(rendering("postgresql").render(expression))
    names = [name for name in row if not name.startswith("bound_")]
    answers = []
    for table in tables(database):
        with database.transaction(force_rollback=True):
            values = ", ".join(f"%({name})s" for name in names)
            database.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})".encode(), row)
            ((answer,),) = database.execute(f"SELECT {sql} FROM {table}".encode(), row).fetchall()
        answers.append(answer)
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def typed(name: str, type_: Any) -> ColumnElement[Any]:
    """A bound value, as the statements have it."""
    return rendering("postgresql").typed(bindparam(f"bound_{name}", type_=type_), type_)


def kind(value: str | None) -> tuple[str, bytes]:
    return ("null", b"") if value is None else ("text", value.encode())


def check_milliseconds(database: psycopg.Connection[Any], value: str | None) -> None:
    expected = python_ms(*kind(value))
    assert evaluate(database, milliseconds(column("at", TIMESTAMP)), at=value) == expected
    assert evaluate(database, milliseconds(typed("at", TIMESTAMP)), run="", bound_at=value) == expected
    read = time_of(value)
    assert (0 if read is None else (read - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)) == expected


@pytest.mark.parametrize("value", TIMES, ids=ascii)
def test_milliseconds_are_lexical(database: psycopg.Connection[Any], value: str | None) -> None:
    """Only valid text of the shape gives milliseconds, truncated; in SQL (stored and bound) as in Python."""
    check_milliseconds(database, value)


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(value=stored_times)
def test_milliseconds_of_anything(database: psycopg.Connection[Any], value: str | None) -> None:
    """Whatever is stored as a time, SQL and Python read the same milliseconds from it."""
    check_milliseconds(database, value)


def identities(database: psycopg.Connection[Any], run: str | None, at: str | None) -> tuple[str, object]:
    """The run key of a row in SQL (stored, and as bound by the dual write), and its identity in Python."""
    key = evaluate(database, run_key(column("run", Text), column("at", TIMESTAMP)), run=run, at=at)
    bound = run_key(typed("r", Text()), typed("a", TIMESTAMP))
    assert evaluate(database, bound, run="", bound_r=run, bound_a=at) == key
    assert isinstance(key, str)
    return key, python_identity(kind(run), kind(at))


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(run_a=run_ids, run_b=run_ids, at_a=stored_times, at_b=stored_times, one_run=st.booleans(), one_at=st.booleans())
def test_two_rows_share_a_run_exactly_when_rule_4_says_so(
    database: psycopg.Connection[Any], run_a: Any, run_b: Any, at_a: Any, at_b: Any, one_run: bool, one_at: bool
) -> None:
    """Run keys are equal exactly where run ids are equal or, without them, seconds (or odd values) are."""
    key_a, identity_a = identities(database, run_a, at_a)
    key_b, identity_b = identities(database, run_a if one_run else run_b, at_a if one_at else at_b)

    assert (key_a == key_b) == (identity_a == identity_b)


@pytest.mark.long
def test_run_keys_of_all_odd_times_differ(database: psycopg.Connection[Any]) -> None:
    """Among the odd times of the field and more, keys tell apart exactly what differs in second or bytes."""
    found = [identities(database, run, at) for run in (None, "", "now", "at:2025-11-04 02:23:58") for at in TIMES]

    assert len({key for key, _ in found}) == len({identity for _, identity in found})
    assert len(set(found)) == len({key for key, _ in found})


@pytest.mark.long
def test_run_keys_are_those_of_sqlite(database: psycopg.Connection[Any]) -> None:
    """A row has the same run key on both kinds of database, so that a copy needs none made anew."""
    expression = run_key(typed("r", Text()), typed("a", TIMESTAMP))
    bound = run_key(bindparam("r", type_=Text()), bindparam("a", type_=TIMESTAMP))
    with closing(sqlite3.connect(":memory:")) as there:
        for run in (None, "", "r", "007"):
            for at in TIMES:
                (key,) = there.execute(f"SELECT {rendering('sqlite').render(bound)}", {"r": run, "a": at}).fetchone()
                assert evaluate(database, expression, run="", bound_r=run, bound_a=at) == key, (run, at)


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(ms=st.one_of(st.integers(-62135596800000, 253402300799999), st.integers(-(2**62), 2**62)))
def test_a_time_made_from_milliseconds_gives_them_back(database: psycopg.Connection[Any], ms: int) -> None:
    """Times made for adopted rows are read as the milliseconds they were made from; others are the number as text."""
    made = evaluate(database, time_from(column("number", Integer())), number=ms)
    if -62135596800000 <= ms <= 253402300799999:
        assert python_ms("text", made.encode()) == ms
        assert made.endswith(f".{ms % 1000:03}") == bool(ms % 1000)
    else:
        assert made == str(ms)


@pytest.mark.parametrize("stored", TEXTS, ids=ascii)
def test_same_means_the_same_bytes(database: psycopg.Connection[Any], stored: str | None) -> None:
    """Two texts are the same exactly in their bytes, stored or bound: no collation, case or normal form counts."""
    for other in TEXTS:
        expected = stored == other
        between = same(column("words", Text()), column("other", Text()))
        bound = same(column("words", Text()), typed("x", Text()))
        assert evaluate(database, between, words=stored, other=other) is expected, other
        assert evaluate(database, bound, words=stored, bound_x=other) is expected, other
        assert evaluate(database, holds(column("words", Text()), typed("x", Text())), words=stored, bound_x=other) is (
            expected
        )


@pytest.mark.parametrize("stored", NUMBERS, ids=repr)
def test_numbers_are_the_same_without_tolerance(database: psycopg.Connection[Any], stored: int | None) -> None:
    """Integers of 64 bits are compared as they are, and NULL is the same as NULL alone."""
    for other in NUMBERS:
        expression = same(column("number", Integer()), typed("x", Integer()))
        assert evaluate(database, expression, number=stored, bound_x=other) is (stored == other), other


def test_bytes_in_hexadecimal(database: psycopg.Connection[Any]) -> None:
    """The exact bytes of a text are told, not those that a cast to bytea would read into its backslashes."""
    for text in (*TEXTS, "\\x41", "\\101", "a\\b", "\U0001f600"):
        expected = "" if text is None else text.encode().hex().upper()
        assert evaluate(database, exact_hex(column("words", Text())), words=text) == expected


def test_many_texts_are_put_together(database: psycopg.Connection[Any]) -> None:
    """More texts than a function takes arguments follow each other."""
    assert evaluate(database, concatenated(*[column("words", Text())] * 200), words="\u00e9") == "\u00e9" * 200


@pytest.mark.parametrize(("value", "expected"), [(None, False), (0, False), (1, True), (2, True), (-1, True)])
def test_a_flag_is_set_by_a_number(database: psycopg.Connection[Any], value: int | None, expected: bool) -> None:
    """A stored flag counts where it is a number other than 0; NULL does not."""
    assert evaluate(database, flagged(column("flag", BOOLEAN)), flag=value) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("failed", True), ("Partially FAILED", True), ("fail", False), ("", False), (None, None), ("FA\u0130LED", False)],
)
def test_a_status_says_a_word(database: psycopg.Connection[Any], value: str | None, expected: bool | None) -> None:
    """A status says a word in any case of ASCII letters, whatever the collation makes of others."""
    said = evaluate(database, says(column("words", Text()), typed("w", Text())), words=value, bound_w="failed")
    assert said is expected


@pytest.mark.parametrize(
    "content", [c for c in CONTENTS.values() if isinstance(c, str) and can_hold("postgresql", c)], ids=ascii
)
def test_a_synthesis_as_json_says_what_it_holds(database: psycopg.Connection[Any], content: str) -> None:
    """synthesis_json is JSON with the values themselves, spelled without blanks as the founding program did."""
    columns = [column("words", Text()), *(typed(name, Text()) for name in "bc"), typed("d", Integer())]
    columns += [typed(name, Text()) for name in "ef"]
    values = {"bound_b": None, "bound_c": "ok", "bound_d": 3, "bound_e": '["a"]', "bound_f": ""}
    made = evaluate(database, synthesis_json(*columns), words=content, **values)

    keys = ["output_markdown", "output_path", "status", "artifacts_count", "agreements", "conflicts"]
    expected = dict(zip(keys, [content, None, "ok", 3, '["a"]', ""], strict=True))
    assert json.loads(made) == expected
    assert list(json.loads(made)) == keys
    assert made.startswith('{"output_markdown":"')


COMPUTED: dict[str, tuple[Any, list[Any]]] = {
    "BIGINT": (BigInteger(), [2, 2.5, -2.5, Decimal("3.49"), None]),
    "SMALLINT": (SmallInteger(), [2.5]),
    "DOUBLE PRECISION": (Float(), [0.1, Decimal("0.1"), 3, 1e300]),
    "REAL": (REAL(), [0.1, 16777217]),
    "NUMERIC(12, 2)": (Numeric(12, 2), [Decimal("0.125"), 1.005, 7]),
    "VARCHAR(9)": (String(9), ["it's", "", "1"]),
    "CHAR(5)": (CHAR(5), ["a", "abcde"]),
    "DATE": (Date(), [date(2025, 11, 4)]),
    "TIMESTAMP(0)": (DateTime(), [datetime(2025, 11, 4, 2, 23)]),
    "BYTEA": (LargeBinary(), [b"", b"\0'\xff"]),
    "BOOLEAN": (Boolean(), [True, False, None]),
}


@pytest.mark.parametrize(("declared", "type_", "values"), [(n, *c) for n, c in COMPUTED.items()], ids=COMPUTED)
def test_a_column_holds_what_storing_the_value_gives(
    database: psycopg.Connection[Any], declared: str, type_: Any, values: list[Any]
) -> None:
    """Whatever becomes of a computed value in a column, rounded or padded, is what the column must hold."""
    render = rendering("postgresql").render
    database.execute(f"CREATE TEMP TABLE computed (x {declared})".encode())
    try:
        for value in values:
            computed: Any = null() if value is None else case((true(), literal(value)))
            database.execute(f"TRUNCATE computed; INSERT INTO computed {render(select(computed))}".encode())
            held = f"{render(select(holds(column('x', type_), computed)))} FROM computed".encode()
            assert database.execute(held).fetchall() == [(True,)], value
            database.execute(b"UPDATE computed SET x = " + (b"NULL" if value is not None else OTHER[declared]))
            assert database.execute(held).fetchall() == [(False,)], value
    finally:
        database.execute(b"DROP TABLE computed")


OTHER = {"BIGINT": b"1", "BOOLEAN": b"FALSE"}
