"""The rules for values in the SQL of PostgreSQL; `declaration.expressions` defines them.

A column has one type here. So a value is text, an integer or NULL, and any other value that SQLite may have in such a
column cannot be stored: `copy` lists it, and nothing converts it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    Time,
    Uuid,
    cast,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import NullType, TypeEngine

from consensus_orm.declaration.expressions import (
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
from consensus_orm.declaration.keys import InOrder, Usable
from consensus_orm.declaration.row_keys import KeyPart, RowKey, parts
from consensus_orm.declaration.stored_types import as_stored
from consensus_orm.models.base import BoundKey, Key, LedgerKey, StoredKey, Told, Verbatim
from consensus_orm.statements.rendering import InKeys, literal

__all__: list[str] = []

_FRACTION = r"(?:\.[0-9]+)?"

_POSSIBLE = (
    f"^[0-9]{{4}}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01]) (?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]{_FRACTION}$"
)


EXACT = (Boolean, Date, DateTime, Integer, LargeBinary, NullType, Time, Uuid, Verbatim)
"""Types whose values are stored alike where `=` takes them for equal. That of others does not tell 1.1 from 1.10, 0.0
from -0.0, a day from 24 hours or boxes of one area apart, or they have none (json): they are compared as texts."""


def is_text(type_: TypeEngine[Any]) -> bool:
    """Whether columns of a type are text on PostgreSQL."""
    stored = as_stored(type_, "postgresql")
    return isinstance(stored, String) or (isinstance(stored, Verbatim) and stored.name == "TIMESTAMP")


def is_exact(type_: TypeEngine[Any]) -> bool:
    """Whether values of a type that are equal are also stored alike."""
    return isinstance(as_stored(type_, "postgresql"), EXACT) and not is_text(type_)


def sql_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type to which values of a column are cast, without its length, to which a cast would silently cut them."""
    stored = as_stored(type_, "postgresql")
    if is_text(stored) and not (isinstance(stored, Enum) and stored.native_enum):
        return Text()
    return BigInteger() if isinstance(stored, Integer | Verbatim) else stored


def _equal(element: Any, compiler: Any, **kw: Any) -> str:
    """Equal in bytes, NULL-safe: "C" compares the bytes of texts whatever the collation of their columns.

    The cast removes the equality of another type, such as citext.
    """
    a, b = arguments(element, compiler, **kw)
    if all(is_exact(clause.type) for clause in element.clauses):
        return f"({a} IS NOT DISTINCT FROM {b})"
    return _as_text(a, b)


def _as_text(a: str, b: str) -> str:
    return f'(CAST({a} AS TEXT) COLLATE "C" IS NOT DISTINCT FROM CAST({b} AS TEXT) COLLATE "C")'


@compiles(same, "postgresql")
def _same(element: Any, compiler: Any, **kw: Any) -> str:
    return _equal(element, compiler, **kw)


@compiles(holds, "postgresql")
def _holds(element: Any, compiler: Any, **kw: Any) -> str:
    """A computed value is converted to the type of its column when it is stored; a fraction is rounded, for example."""
    column, value = element.clauses
    if is_text(column.type) or isinstance(column.type, Boolean):
        return _equal(element, compiler, **kw)
    stored = compiler.process(cast(value, sql_type(column.type)), **kw)
    if is_exact(column.type):
        return f"({compiler.process(column, **kw)} IS NOT DISTINCT FROM {stored})"
    return _as_text(compiler.process(column, **kw), stored)


@compiles(milliseconds, "postgresql")
def _milliseconds(element: Any, compiler: Any, **kw: Any) -> str:
    """A cast would fail for a day that does not exist, so the date is checked first.

    A regular expression for the whole calendar took 13 us a value instead of 1.7 (measured); the length of the month
    and the fraction are computed only where they matter.
    """
    (x,) = arguments(element, compiler, **kw)
    year, month, day = f"substr({x}, 1, 4)", f"substr({x}, 6, 2)", f'substr({x}, 9, 2) COLLATE "C"'
    number = f"CAST({year} AS INTEGER)"
    leap = f"{number} % 4 = 0 AND ({number} % 100 <> 0 OR {number} % 400 = 0)"
    last = (
        f"CASE WHEN {month} IN ('04', '06', '09', '11') THEN '30' WHEN {month} <> '02' THEN '31'"
        f" WHEN {leap} THEN '29' ELSE '28' END"
    )
    seconds = f"CAST(extract(epoch FROM CAST(substr({x}, 1, 19) AS TIMESTAMP)) AS BIGINT) * 1000"
    fraction = f"CAST(substr(substr({x}, 21) || '000', 1, 3) AS INTEGER)"
    return (
        f"(CASE WHEN ({x} COLLATE \"C\" ~ '{_POSSIBLE}') IS NOT TRUE THEN 0"
        f" WHEN {year} = '0000' OR ({day} > '28' AND {day} > {last}) THEN 0"
        f" WHEN length({x}) = 19 THEN {seconds} ELSE {seconds} + {fraction} END)"
    )


@compiles(time_from, "postgresql")
def _time_from(element: Any, compiler: Any, **kw: Any) -> str:
    (ms,) = arguments(element, compiler, **kw)
    rest = f"((({ms}) % 1000 + 1000) % 1000)"
    second = f"(TIMESTAMP '1970-01-01' + make_interval(secs => ((({ms}) - {rest}) / 1000)))"
    return (
        f"(CASE WHEN ({ms}) BETWEEN -62135596800000 AND 253402300799999"
        f" THEN to_char({second}, 'YYYY-MM-DD HH24:MI:SS')"
        f" || (CASE {rest} WHEN 0 THEN '' ELSE '.' || lpad(CAST({rest} AS TEXT), 3, '0') END)"
        f" ELSE CAST({ms} AS TEXT) END)"
    )


@compiles(type_name, "postgresql")
def _type_name(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    (clause,) = element.clauses
    names = ((Integer, "integer"), (Boolean, "integer"), (Float, "real"), (LargeBinary, "blob"))
    kind = next((name for type_, name in names if isinstance(sql_type(clause.type), type_)), "text")
    return f"(CASE WHEN {x} IS NULL THEN 'null' ELSE '{kind}' END)"


@compiles(concatenated, "postgresql")
def _concatenated(element: Any, compiler: Any, **kw: Any) -> str:
    return nested(lambda texts: f"concat({', '.join(texts)})", arguments(element, compiler, **kw))


@compiles(exact_hex, "postgresql")
def _exact_hex(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    (clause,) = element.clauses
    data = x if isinstance(sql_type(clause.type), LargeBinary) else f"convert_to(CAST({x} AS TEXT), 'UTF8')"
    return f"coalesce(upper(encode({data}, 'hex')), '')"


def _path(path: tuple[str, ...]) -> str:
    return f"ARRAY[{', '.join(map(literal, path))}]"


def _readable(document: str) -> str:
    """A document as jsonb, which has no NUL in texts; NULL where there is one."""
    return f"(CASE WHEN strpos(CAST({document} AS TEXT), '\\u0000') = 0 THEN CAST({document} AS JSONB) END)"


def _at(document: str, path: tuple[str, ...], type_: TypeEngine[Any], compiler: Any) -> str:
    found = f"{_readable(document)} #> {_path(path)}"
    text, kind = f"{_readable(document)} #>> {_path(path)}", f"jsonb_typeof({found})"
    stored = compiler.dialect.type_compiler_instance.process(sql_type(type_))
    if isinstance(type_, JSON):
        return f"(CASE WHEN {kind} <> 'null' THEN CAST({found} AS {stored}) END)"
    if isinstance(type_, String):
        return f"(CASE WHEN {kind} = 'string' THEN {text} END)"
    if isinstance(type_, Boolean):
        return f"(CASE WHEN {kind} = 'boolean' THEN CAST({text} AS BOOLEAN) END)"
    digits = 18 if isinstance(type_, BigInteger) else 4 if isinstance(type_, SmallInteger) else 9
    shape = f"^-?[0-9]{{1,{digits}}}$" if isinstance(type_, Integer) else r"^-?[0-9]{1,30}(?:\.[0-9]{1,30})?$"
    return f"(CASE WHEN {kind} = 'number' AND {text} ~ '{shape}' THEN CAST({text} AS {stored}) END)"


@compiles(json_at, "postgresql")
def _json_at(element: Any, compiler: Any, **kw: Any) -> str:
    document, _ = arguments(element, compiler, **kw)
    return _at(document, element.path, element.type, compiler)


NOWHERE = "ARRAY['consensus_orm nowhere']"
"""A path whose removal changes nothing; so each document is written only once in the SQL."""


@compiles(json_patched, "postgresql")
def _json_patched(element: Any, compiler: Any, **kw: Any) -> str:
    old = compiler.process(element.document, **kw)
    readable = _readable(old)
    patched = f"coalesce(CASE jsonb_typeof({readable}) WHEN 'object' THEN {readable} END, '{{}}')"
    values = [(path, type_, compiler.process(value, **kw)) for path, type_, value in element.values]
    changed = {path: _differs(new, _at(old, path, type_, compiler), type_) for path, type_, new in values}
    above = {path[:length]: None for path, *_ in values for length in range(1, len(path))}
    for part in above:  # an object that a value is to stand in
        needed = " OR ".join(
            f"({changed[path]} AND {new} IS NOT NULL)" for path, _, new in values if path[: len(part)] == part != path
        )
        missing = f"jsonb_typeof({readable} #> {_path(part)}) IS DISTINCT FROM 'object' AND ({needed})"
        patched = (
            f"jsonb_set_lax({patched}, CASE WHEN {missing} THEN {_path(part)} ELSE {NOWHERE} END,"
            f" CASE WHEN {missing} THEN CAST('{{}}' AS JSONB) END, true, 'delete_key')"
        )
    for path, _, new in values:
        where = f"CASE WHEN {changed[path]} THEN {_path(path)} ELSE {NOWHERE} END"
        patched = (
            f"jsonb_set_lax({patched}, {where}, CASE WHEN {changed[path]} THEN to_jsonb({new}) END, true, 'delete_key')"
        )
    stored = compiler.dialect.type_compiler_instance.process(element.type)
    nothing = " AND ".join(f"{each} IS NULL" for each in (old, *(new for _, _, new in values)))
    return f"(CASE WHEN {nothing} THEN NULL ELSE CAST({patched} AS {stored}) END)"


def _differs(one: str, other: str, type_: TypeEngine[Any]) -> str:
    if isinstance(type_, JSON):
        return f"CAST({one} AS TEXT) IS DISTINCT FROM CAST({other} AS TEXT)"
    return f"{one} IS DISTINCT FROM {other}"


@compiles(json_split, "postgresql")
def _json_split(element: Any, compiler: Any, **kw: Any) -> str:
    value, _ = arguments(element, compiler, **kw)
    parts = f"CAST(to_json(string_to_array({value}, {literal(element.separator)})) AS TEXT)"
    return f"(CASE {value} WHEN '' THEN '[\"\"]' ELSE {parts} END)"  # an empty text would have no parts


@compiles(json_of_array, "postgresql")
def _json_of_array(element: Any, compiler: Any, **kw: Any) -> str:
    (value,) = arguments(element, compiler, **kw)
    readable = _readable(value)
    elements = f"jsonb_array_elements({readable}) WITH ORDINALITY AS e(x, n)"
    texts = f"(SELECT CAST(to_json(array_agg(x #>> '{{}}' ORDER BY n)) AS TEXT) FROM {elements})"
    others = f"EXISTS (SELECT 1 FROM {elements} WHERE jsonb_typeof(x) <> 'string')"
    array = f"CASE WHEN {others} THEN 'no list of texts' ELSE {texts} END"
    return (
        f"(CASE WHEN {value} IS NULL THEN NULL WHEN jsonb_typeof({readable}) = 'array' THEN {array}"
        " ELSE 'no list of texts' END)"
    )


@compiles(json_listed, "postgresql")
def _json_listed(element: Any, compiler: Any, **kw: Any) -> str:
    item, position = arguments(element, compiler, **kw)
    return f"CAST(to_json(array_agg(CAST({item} AS TEXT) ORDER BY {position})) AS TEXT)"


@compiles(json_from, "postgresql")
def _json_from(element: Any, compiler: Any, **kw: Any) -> str:
    (text,) = arguments(element, compiler, **kw)
    return f"CAST({text} AS {compiler.dialect.type_compiler_instance.process(element.type)})"


@compiles(text_joined, "postgresql")
def _text_joined(element: Any, compiler: Any, **kw: Any) -> str:
    item, position, separator = arguments(element, compiler, **kw)
    return f"string_agg({item}, {separator} ORDER BY {position})"


@compiles(InKeys, "postgresql")
def _in_keys(element: Any, compiler: Any, **kw: Any) -> str:
    (first, bound) = element.clauses
    keys = compiler.process(bound, **kw)
    if isinstance(first.type, Key):
        texts = f"SELECT CAST(value AS TEXT) FROM jsonb_array_elements(CAST({keys} AS JSONB))"
        return f"{compiler.process(first, **kw)} = ANY (ARRAY({texts}))"
    columns = [(compiler.process(of, **kw), _kind(of, compiler)) for of in parts(first)]
    values = f"json_array_elements_text(CAST({keys} AS JSON))"
    if len(columns) == 1:
        ((column, kind),) = columns
        return f"{column} = ANY (ARRAY(SELECT CAST(value AS {kind}) FROM {values}))"
    named, kinds = zip(*columns, strict=True)
    each = (f"CAST(CAST(value AS JSON) ->> {n} AS {kind})" for n, kind in enumerate(kinds))
    return f"({', '.join(named)}) IN (SELECT {', '.join(each)} FROM {values})"


def _kind(of: Any, compiler: Any) -> str:
    return str(compiler.dialect.type_compiler_instance.process(sql_type(of.type)))


@compiles(RowKey, "postgresql")
def _row_key(element: Any, compiler: Any, **kw: Any) -> str:
    """Not a jsonb, whose text has blanks: it is the text that SQLite and Python make."""
    columns = [_digits(compiler.process(of, **kw), of.type) for of in element.parts]
    if len(columns) == 1:
        return columns[0]
    return "('[' || " + " || ',' || ".join(f"CAST(to_json({of}) AS TEXT)" for of in columns) + " || ']')"


def _digits(column: str, type_: TypeEngine[Any]) -> str:
    return f"replace(CAST({column} AS TEXT), '-', '')" if isinstance(type_, Uuid) else column


@compiles(KeyPart, "postgresql")
def _key_part(element: Any, compiler: Any, **kw: Any) -> str:
    (text,) = arguments(element, compiler, **kw)
    value = text if element.is_alone else f"CAST({text} AS JSON) ->> {element.number}"
    return f"CAST({value} AS {_kind(element, compiler)})"


@compiles(LedgerKey, "postgresql")
def _ledger_key(element: Any, compiler: Any, **kw: Any) -> str:
    (key,) = arguments(element, compiler, **kw)
    (of,) = element.clauses
    return f"CAST({key} AS TEXT)" if isinstance(of.type, Integer) else f"CAST(to_json(CAST({key} AS TEXT)) AS TEXT)"


@compiles(StoredKey, "postgresql")
def _stored_key(element: Any, compiler: Any, **kw: Any) -> str:
    (key,) = arguments(element, compiler, **kw)
    return f"CAST({key} AS JSONB)"


@compiles(Told, "postgresql")
def _told(element: Any, compiler: Any, **kw: Any) -> str:
    (key,) = arguments(element, compiler, **kw)
    kind = _kind(element, compiler)
    return f"CAST({key} AS {kind})" if isinstance(element.type, Integer) else f"(CAST({key} AS JSONB) #>> '{{}}')"


@compiles(BoundKey, "postgresql")
def _bound_key(element: Any, compiler: Any, **kw: Any) -> str:
    (key,) = arguments(element, compiler, **kw)
    return f"CAST({key} AS TEXT)"


@compiles(InOrder, "postgresql")
@compiles(Usable, "postgresql")
def _usable(element: Any, compiler: Any, **kw: Any) -> str:
    """The type of the column was checked before; a unique column can still have several NULLs."""
    (key,) = arguments(element, compiler, **kw)
    return f"({key} IS NOT NULL)"
