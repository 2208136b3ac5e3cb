"""The rules for values in the SQL of SQLite; `declaration.expressions` and `declaration.keys` define them."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import JSON, Boolean, ColumnElement, Float, Integer, LargeBinary, String
from sqlalchemy.ext.compiler import compiles

from consensus_orm.declaration.expressions import (
    AlwaysText,
    arguments,
    concatenated,
    exact_hex,
    holds,
    json_at,
    json_from,
    json_listed,
    json_of_array,
    json_patched,
    json_split,
    milliseconds,
    nested,
    same,
    text_joined,
    time_from,
    type_name,
)
from consensus_orm.declaration.keys import LARGEST, InOrder, Usable, is_word
from consensus_orm.declaration.row_keys import KeyPart, RowKey, parts
from consensus_orm.declaration.stored_types import as_stored
from consensus_orm.models.base import BoundKey, LedgerKey, StoredKey, Told
from consensus_orm.statements.rendering import InKeys, literal

__all__ = ["in_triggers", "is_well_formed"]


def is_well_formed(x: str) -> str:
    """SQL for whether a text is valid in the encoding of its file; other values count as valid.

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
    stored = as_stored(first.type, "sqlite")
    if isinstance(stored, String):
        text = f"CAST({value} AS TEXT)"
        if not isinstance(second.type, AlwaysText):  # bytes stay bytes
            text = f"(CASE typeof({value}) WHEN 'blob' THEN {value} ELSE {text} END)"
        return f"(+{column} COLLATE BINARY IS +{text})"
    if isinstance(stored, LargeBinary):
        return _same(element, compiler, **kw)
    if isinstance(second, milliseconds):
        return _holds_milliseconds(column, value, *arguments(second, compiler, **kw))
    numbers = "'integer', 'null'" if isinstance(stored, Integer | Boolean) else "'integer', 'real', 'null'"
    exactly = f"typeof({column}) IN ({numbers}) OR typeof({column}) = typeof({value})"
    if isinstance(stored, Float):
        value = f"(CASE typeof({value}) WHEN 'integer' THEN CAST({value} AS REAL) ELSE {value} END)"
    return f"({column} COLLATE BINARY IS {value} AND ({exactly}))"


def _holds_milliseconds(column: str, value: str, time: str) -> str:
    """Nearly all times are whole seconds of a valid date, for which formatting a number costs half of parsing text."""
    text = f"typeof({column}) = 'integer' AND {column} % 1000 = 0 AND datetime({column} / 1000, 'unixepoch')"
    held = f"(typeof({column}) IN ('integer', 'null') AND {column} IS {value})"
    return f"(CASE WHEN +{time} >= '0001' AND {text} = +{time} COLLATE BINARY THEN 1 ELSE {held} END)"


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


@compiles(time_from, "sqlite")
def _time_from(element: Any, compiler: Any, **kw: Any) -> str:
    (ms,) = arguments(element, compiler, **kw)
    rest = f"((({ms}) % 1000 + 1000) % 1000)"  # % in SQL keeps the sign of the dividend
    second = f"datetime((({ms}) - {rest}) / 1000, 'unixepoch')"
    return (
        f"(CASE WHEN {second} >= '0001' AND typeof({ms}) = 'integer' THEN {second}"
        f" || (CASE {rest} WHEN 0 THEN '' ELSE printf('.%03d', {rest}) END) ELSE {ms} END)"
    )


@compiles(type_name, "sqlite")
def _type_name(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    return f"typeof({x})"


@compiles(concatenated, "sqlite")
def _concatenated(element: Any, compiler: Any, **kw: Any) -> str:
    def call(texts: list[str]) -> str:
        return f"printf('{'%s' * len(texts)}', {', '.join(texts)})"

    return nested(call, arguments(element, compiler, **kw))


@compiles(exact_hex, "sqlite")
def _exact_hex(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    return f"hex(CASE typeof({x}) WHEN 'real' THEN printf('%!.20g', {x}) ELSE {x} END)"


def _path(path: tuple[str, ...]) -> str:
    return literal("$" + "".join(f'."{name}"' for name in path))


def _at(document: str, path: tuple[str, ...], type_: Any) -> str:
    place = _path(path)
    kinds = "'text'"
    value = f"json_extract({document}, {place})"
    if isinstance(type_, JSON):
        kinds, value = "'object', 'array', 'text', 'integer', 'real', 'true', 'false'", f"{document} -> {place}"
    elif isinstance(type_, Boolean):
        kinds = "'true', 'false'"
    elif isinstance(type_, Integer):
        kinds = "'integer'"
    elif isinstance(type_, Float):
        kinds, value = "'integer', 'real'", f"CAST({value} AS REAL)"
    found = f"CASE WHEN json_type({document}, {place}) IN ({kinds}) THEN {value} END"
    return f"(CASE WHEN json_valid({document}) THEN {found} END)"


@compiles(json_at, "sqlite")
def _json_at(element: Any, compiler: Any, **kw: Any) -> str:
    document, _ = arguments(element, compiler, **kw)
    return _at(document, element.path, element.type)


NOWHERE = """'$."consensus_orm nowhere"'"""
"""A path that is set and removed again where nothing is to be done; so each value is written only once in the SQL."""


@compiles(json_patched, "sqlite")
def _json_patched(element: Any, compiler: Any, **kw: Any) -> str:
    old = compiler.process(element.document, **kw)
    document = f"CASE WHEN json_valid({old}) THEN CASE json_type({old}) WHEN 'object' THEN {old} END END"
    nothing, sets, removes = [f"{old} IS NULL"], "", ""
    for path, type_, value in element.values:
        new, place = compiler.process(value, **kw), _path(path)
        changed = f"{new} COLLATE BINARY IS NOT {_at(old, path, type_)}"
        told = new
        if isinstance(type_, Boolean):
            told = f"json(CASE WHEN {new} THEN 'true' ELSE 'false' END)"
        elif isinstance(type_, JSON):
            told = f"json({new})"
        nothing.append(f"{new} IS NULL")
        sets += f", CASE WHEN {changed} AND {new} IS NOT NULL THEN {place} ELSE {NOWHERE} END, {told}"
        removes += f", CASE WHEN {changed} AND {new} IS NULL THEN {place} ELSE {NOWHERE} END"
    patched = f"json_remove(json_set(coalesce({document}, '{{}}'){sets}){removes}, {NOWHERE})"
    return f"(CASE WHEN {' AND '.join(nothing)} THEN NULL ELSE {patched} END)"


NO_LIST = "'no list of texts'"
"""What no list of texts is equal to."""


@compiles(json_split, "sqlite")
def _json_split(element: Any, compiler: Any, **kw: Any) -> str:
    """Between the quotes of a text in JSON stands each of its characters, or an escape that begins with a backslash."""
    value, _ = arguments(element, compiler, **kw)
    separator = literal(element.separator)
    array = f"'[' || replace(json_quote({value}), {separator}, '\",\"') || ']'"
    return f"(CASE typeof({value}) WHEN 'text' THEN {array} WHEN 'null' THEN NULL ELSE {NO_LIST} END)"


@compiles(json_of_array, "sqlite")
def _json_of_array(element: Any, compiler: Any, **kw: Any) -> str:
    (value,) = arguments(element, compiler, **kw)
    texts = f"(SELECT nullif(json_group_array(value), '[]') FROM json_each({value}))"
    others = f"EXISTS (SELECT 1 FROM json_each({value}) WHERE type <> 'text')"
    array = f"CASE WHEN json_type({value}) <> 'array' OR {others} THEN {NO_LIST} ELSE {texts} END"
    return f"(CASE WHEN {value} IS NULL THEN NULL WHEN json_valid({value}) THEN {array} ELSE {NO_LIST} END)"


@compiles(json_listed, "sqlite")
def _json_listed(element: Any, compiler: Any, **kw: Any) -> str:
    item, _ = arguments(element, compiler, **kw)
    return f"nullif(json_group_array(CASE typeof({item}) WHEN 'text' THEN {item} END), '[]')"


@compiles(json_from, "sqlite")
def _json_from(element: Any, compiler: Any, **kw: Any) -> str:
    """As it is: a cast to the type of the column would make a number of it."""
    (text,) = arguments(element, compiler, **kw)
    return f"({text})"


@compiles(text_joined, "sqlite")
def _text_joined(element: Any, compiler: Any, **kw: Any) -> str:
    item, _, separator = arguments(element, compiler, **kw)
    return f"group_concat({item}, {separator})"


@compiles(Usable, "sqlite")
def _usable(element: Any, compiler: Any, **kw: Any) -> str:
    (key,) = arguments(element, compiler, **kw)
    (column,) = element.clauses
    if not is_word(column):
        return f"(typeof({key}) = 'integer')"
    return f"(typeof({key}) = 'text' AND instr({key}, char(0)) = 0 AND {is_well_formed(key)})"


@compiles(InOrder, "sqlite")
def _in_order(element: Any, compiler: Any, **kw: Any) -> str:
    """A function of each key costs seven times as much as this comparison (measured), which is false for NULL, too.

    With a lower bound as well, SQLite would begin each range there instead of after the range before.
    """
    (key,) = arguments(element, compiler, **kw)
    (column,) = element.clauses
    return _usable(element, compiler, **kw) if is_word(column) else f"({key} <= {LARGEST})"


@compiles(InKeys, "sqlite")
def _in_json(element: Any, compiler: Any, **kw: Any) -> str:
    (first, bound) = element.clauses
    keys = compiler.process(bound, **kw)
    columns = [compiler.process(of, **kw) for of in parts(first)]
    if len(columns) == 1:
        return f"{columns[0]} IN (SELECT value FROM json_each({keys}))"
    values = (f"json_extract(value, '$[{n}]')" for n in range(len(columns)))
    return f"({', '.join(columns)}) IN (SELECT {', '.join(values)} FROM json_each({keys}))"


@compiles(RowKey, "sqlite")
def _row_key(element: Any, compiler: Any, **kw: Any) -> str:
    """A trigger must not fail the write of another program, and JSON holds no blobs: such a key is not usable."""
    columns = [str(compiler.process(of, **kw)) for of in element.parts]
    if len(columns) == 1:
        return columns[0]
    safe = (f"CASE typeof({x}) WHEN 'blob' THEN NULL ELSE {x} END" for x in columns)
    return f"(json_array({', '.join(safe)}) || '')"  # a text: json_group_array would take it for an array


def in_triggers(key: ColumnElement[Any], compiler: Any) -> str:
    """The text of a key in a trigger: a schema that is not trusted calls no JSON functions (before SQLite 3.42).

    Args:
        key: The key.
        compiler: Renders its columns.
    """
    columns = [compiler(of) for of in parts(key)]
    if len(columns) == 1:
        return str(columns[0])
    return "'[' || " + " || ',' || ".join(map(_in_json_text, columns)) + " || ']'"


def _in_json_text(x: str) -> str:
    """A number or a text as JSON, whose letters with a sign of their own are the same in every program."""
    plain = f"replace(replace({x}, '\\', '\\\\'), '\"', '\\\"')"
    short = " ".join(f"WHEN {ord(sign)} THEN '{json.dumps(sign)[1:-1]}'" for sign in "\b\t\n\f\r")
    escaped = (
        f"(WITH RECURSIVE told (n, x) AS (SELECT 1, {plain} UNION ALL SELECT n + 1, replace(x, char(n),"
        f" CASE n {short} ELSE printf('\\u%04x', n) END) FROM told WHERE n < 32) SELECT x FROM told WHERE n = 32)"
    )
    odd = f"{x} GLOB '*[' || char(1) || '-' || char(31) || ']*'"
    text = f"typeof({x}) = 'text' AND instr({x}, char(0)) = 0"
    return (
        f"CASE WHEN typeof({x}) = 'integer' THEN CAST({x} AS TEXT) WHEN {text} THEN"
        f" '\"' || (CASE WHEN {odd} THEN {escaped} ELSE {plain} END) || '\"' ELSE 'null' END"
    )


@compiles(KeyPart, "sqlite")
def _key_part(element: Any, compiler: Any, **kw: Any) -> str:
    (text,) = arguments(element, compiler, **kw)
    return text if element.is_alone else f"json_extract({text}, '$[{element.number}]')"


@compiles(LedgerKey, "sqlite")
@compiles(StoredKey, "sqlite")
@compiles(Told, "sqlite")
@compiles(BoundKey, "sqlite")
def _as_it_is(element: Any, compiler: Any, **kw: Any) -> str:
    """A column of a ledger has no type."""
    (key,) = arguments(element, compiler, **kw)
    return key
