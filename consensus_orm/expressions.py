"""What the rules say about values, as SQL: the same words in every statement, for each database its own form.

Every function here takes and gives SQLAlchemy expressions, so that a rule holds for the columns of a table,
for bound values and for the NEW row of a trigger alike. `milliseconds` and `time_of` state rule 4's lexical
reading of a time once in SQL and once in Python; a test holds them against each other.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Boolean, Float, Integer, LargeBinary, String, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

__all__ = [
    "Condition",
    "exact_hex",
    "flagged",
    "holds",
    "milliseconds",
    "run_key",
    "same",
    "says",
    "synthesis_json",
    "time_from",
    "time_of",
    "time_text",
    "type_name",
]

_DIGIT = "[0-9]"
_SECOND = f"{_DIGIT * 4}-{_DIGIT * 2}-{_DIGIT * 2} {_DIGIT * 2}:{_DIGIT * 2}:{_DIGIT * 2}"
_TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2}) ([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?")


def time_of(value: object) -> datetime | None:
    """Read a stored time: text shaped `YYYY-MM-DD HH:MM:SS[.f]` that is a valid date, in UTC.

    Args:
        value: The value as stored.

    Returns:
        The time, its fraction truncated to microseconds; None for everything else.
    """
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    *parts, fraction = match.groups(default="")
    try:
        return datetime(*map(int, parts), int(f"{fraction:0<6.6}"), tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError:
        return None


def time_text(moment: datetime) -> str:
    """Write a time as the legacy tables hold it: `YYYY-MM-DD HH:MM:SS[.ffffff]` in UTC.

    Args:
        moment: An aware time.

    Returns:
        The text; a fraction only where there is one.
    """
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ")


class AlwaysText(Text):
    """The type of an expression that gives a text or NULL, and never bytes, whatever it is given."""


class Condition(FunctionElement[bool]):
    """A function that is a condition by itself.

    SQLAlchemy writes `... = 1` behind every other one on SQLite, which has no type for booleans; then no index
    serves it, and every comparison has one step more.
    """

    type = Boolean()
    _is_implicitly_boolean = True


class same(Condition):
    """Equal in type and bytes, NULL-safe, without tolerance (rule 5).

    `=` and `IS` convert by affinity, follow collations and take 1 and 1.0 for equal. `+` takes the affinity
    away and BINARY the collation: texts and blobs are then equal only in type and bytes, and never to a number.
    What sorts below every text is a number; there `typeof` tells the types apart, the BLOB cast compares the
    text, and `IS` the digits that it leaves out. So a long text is neither copied nor cast, which halves the
    comparison of a row of 1 KB and takes two thirds off one of 8 KB (measured).
    """

    name = "same"
    inherit_cache = True


class holds(Condition):
    """Whether a column holds a computed value as it is stored there: `same`, with the value evaluated only once.

    The type of a column decides what becomes of a value in it: a number of a column of texts is a text, and one of a
    column of integers stays a real only where it has a fraction.
    """

    name = "holds"
    inherit_cache = True


class milliseconds(FunctionElement[int]):
    """A stored time in ms since 1970 UTC, truncated; 0 for whatever is no valid time (rule 4).

    Integer arithmetic on the text: strftime would turn 'now' into the clock, round 58.9999 up, and make
    30 February a day in March. So the second must come out of datetime() as it went in, which proves shape and
    date at once, and the fraction is cut from the text; GLOB alone would stop at a NUL. Years of less than four
    digits come back too: they sort below '0001', as numbers do; and so does hour 24.
    The modifier matters: without it, SQLite before 3.43 gives 30 February back as it went in. julianday is
    exact to 40 us, so the rounded second is the one in the text; it costs 0.3 us where strftime('%s') costs
    1.1 (measured).
    """

    name = "milliseconds"
    type = Integer()
    inherit_cache = True


class run_key(FunctionElement[str]):
    """The identity of a run within spec and stage: its run id, else the second of created_at (rule 4)."""

    name = "run_key"
    type = AlwaysText()
    inherit_cache = True


class time_from(FunctionElement[Any]):
    """A stored time made from ms: `YYYY-MM-DD HH:MM:SS[.fff]`; the number itself outside years 1 to 9999."""

    name = "time_from"
    inherit_cache = True


class type_name(FunctionElement[str]):
    """The type a value is stored with, in SQLite's words: null, integer, real, text or blob."""

    name = "type_name"
    type = AlwaysText()
    inherit_cache = True


class exact_hex(FunctionElement[str]):
    """The bytes of a value in hexadecimal digits; of a number, those of its text with all its digits."""

    name = "exact_hex"
    type = AlwaysText()
    inherit_cache = True


class flagged(Condition):
    """Whether a stored flag is set: a number other than 0, or the word true."""

    name = "flagged"
    inherit_cache = True


class says(Condition):
    """Whether a text contains a word, in any case of letters."""

    name = "says"
    inherit_cache = True


class synthesis_json(FunctionElement[str]):
    """A synthesis as the founding program wrote it into `synthesis_json`; NULL where it cannot be JSON."""

    name = "synthesis_json"
    type = AlwaysText()
    inherit_cache = True


def arguments(element: Any, compiler: Any, **kw: Any) -> list[str]:
    """The arguments of one of these functions, as SQL."""
    return [compiler.process(clause, **kw) for clause in element.clauses]


def is_well_formed(x: str) -> str:
    """Whether a text of SQLite's is what the encoding of its file allows, as SQL; of other values it says nothing.

    Args:
        x: SQL of the value.
    """
    return f"consensus_is_text(CAST({x} AS BLOB), (SELECT encoding FROM pragma_encoding))"


@compiles(same, "sqlite")
def _same(element: Any, compiler: Any, **kw: Any) -> str:
    a, b = arguments(element, compiler, **kw)
    numbers = f"typeof({a}) = typeof({b}) AND +{a} IS +{b} AND CAST({a} AS BLOB) IS CAST({b} AS BLOB)"
    return f"(CASE WHEN +{a} < '' THEN {numbers} ELSE +{a} COLLATE BINARY IS +{b} END)"


@compiles(holds, "sqlite")
def _holds(element: Any, compiler: Any, **kw: Any) -> str:
    column, value = arguments(element, compiler, **kw)
    (first, second) = element.clauses
    if isinstance(first.type, String):
        text = f"CAST({value} AS TEXT)"
        if not isinstance(second.type, AlwaysText):  # bytes stay bytes
            text = f"(CASE typeof({value}) WHEN 'blob' THEN {value} ELSE {text} END)"
        return f"(+{column} COLLATE BINARY IS +{text})"
    if isinstance(first.type, LargeBinary):
        return _same(element, compiler, **kw)
    if isinstance(second, milliseconds):
        return _holds_milliseconds(column, value, *arguments(second, compiler, **kw))
    numbers = "'integer', 'null'" if isinstance(first.type, Integer | Boolean) else "'integer', 'real', 'null'"
    as_stored = f"typeof({column}) IN ({numbers}) OR typeof({column}) = typeof({value})"
    if isinstance(first.type, Float):
        value = f"(CASE typeof({value}) WHEN 'integer' THEN CAST({value} AS REAL) ELSE {value} END)"
    return f"({column} COLLATE BINARY IS {value} AND ({as_stored}))"


def _holds_milliseconds(column: str, value: str, time: str) -> str:
    """Nearly all times are whole seconds of a valid date, and to write a number as one costs half of reading it."""
    text = f"typeof({column}) = 'integer' AND {column} % 1000 = 0 AND datetime({column} / 1000, 'unixepoch')"
    held = f"(typeof({column}) IN ('integer', 'null') AND {column} IS {value})"
    return f"(CASE WHEN +{time} >= '0001' AND {text} = +{time} COLLATE BINARY THEN 1 ELSE {held} END)"


def _shaped(x: str) -> str:
    """Whether `x` is text of the shape `YYYY-MM-DD HH:MM:SS[.f]`; GLOB alone would stop at a NUL."""
    return (
        f"(typeof({x}) = 'text' AND instr({x}, char(0)) = 0 AND ({x} GLOB '{_SECOND}'"
        f" OR ({x} GLOB '{_SECOND}.[0-9]*' AND substr({x}, 21) NOT GLOB '*[^0-9]*')))"
    )


@compiles(milliseconds, "sqlite")
def _milliseconds(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    second = f"substr({x}, 1, 19)"
    fraction = f"instr({x}, char(0)) = 0 AND substr({x}, 20) GLOB '.[0-9]*' AND substr({x}, 21) NOT GLOB '*[^0-9]*'"
    return (
        f"(CASE WHEN +{x} < '0001' OR substr({x}, 12, 2) = '24' THEN 0"
        f" WHEN datetime({x}, '+0 seconds') = +{x} COLLATE BINARY THEN {_unix_ms(x)}"
        f" WHEN datetime({second}, '+0 seconds') = {second} AND {fraction}"
        f" THEN {_unix_ms(second)} + CAST(substr(substr({x}, 21) || '000', 1, 3) AS INTEGER) ELSE 0 END)"
    )


def _unix_ms(second: str) -> str:
    return f"CAST(round((julianday({second}) - 2440587.5) * 86400) AS INTEGER) * 1000"


def _verbatim_text(x: str) -> str:
    """A value of any type as text that no other value of that type gives."""
    return (
        f"(CASE typeof({x}) WHEN 'null' THEN '' WHEN 'blob' THEN hex({x})"
        f" WHEN 'real' THEN printf('%!.20g', {x}) ELSE CAST({x} AS TEXT) END)"
    )


@compiles(run_key, "sqlite")
def _run_key(element: Any, compiler: Any, **kw: Any) -> str:
    run, at = arguments(element, compiler, **kw)
    return (
        f"(CASE WHEN typeof({run}) = 'text' THEN 'run:' || {run}"
        f" WHEN {run} IS NOT NULL THEN 'run-' || typeof({run}) || ':' || hex({run})"
        f" WHEN {_shaped(at)} THEN 'at:' || substr({at}, 1, 19)"
        f" ELSE 'at-' || typeof({at}) || ':' || {_verbatim_text(at)} END)"
    )


@compiles(time_from, "sqlite")
def _time_from(element: Any, compiler: Any, **kw: Any) -> str:
    (ms,) = arguments(element, compiler, **kw)
    rest = f"((({ms}) % 1000 + 1000) % 1000)"  # SQL's % keeps the sign of what it divides
    second = f"datetime((({ms}) - {rest}) / 1000, 'unixepoch')"
    return (
        f"(CASE WHEN {second} >= '0001' AND typeof({ms}) = 'integer' THEN {second}"
        f" || (CASE {rest} WHEN 0 THEN '' ELSE printf('.%03d', {rest}) END) ELSE {ms} END)"
    )


@compiles(type_name, "sqlite")
def _type_name(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    return f"typeof({x})"


@compiles(exact_hex, "sqlite")
def _exact_hex(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    return f"hex(CASE typeof({x}) WHEN 'real' THEN printf('%!.20g', {x}) ELSE {x} END)"


@compiles(flagged, "sqlite")
def _flagged(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    return (
        f"(CASE WHEN typeof({x}) IN ('integer', 'real') THEN {x} <> 0"
        f" WHEN typeof({x}) = 'text' THEN lower({x}) = 'true' ELSE 0 END)"
    )


@compiles(says, "sqlite")
def _says(element: Any, compiler: Any, **kw: Any) -> str:
    x, word = arguments(element, compiler, **kw)
    return f"(instr(lower(CAST({x} AS TEXT)), {word}) > 0)"


@compiles(synthesis_json, "sqlite")
def _synthesis_json(element: Any, compiler: Any, **kw: Any) -> str:
    values = arguments(element, compiler, **kw)
    keys = ("output_markdown", "output_path", "status", "artifacts_count", "agreements", "conflicts")
    pairs = ", ".join(f"'{key}', {value}" for key, value in zip(keys, values, strict=True))
    speakable = " AND ".join(f"typeof({value}) <> 'blob' AND {is_well_formed(value)}" for value in values)
    return f"(CASE WHEN {speakable} THEN json_object({pairs}) END)"
