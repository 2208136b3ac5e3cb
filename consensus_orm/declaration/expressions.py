"""What the rules say about values, as SQL: the same words in every statement, for each database its own form.

Every function here takes and gives SQLAlchemy expressions, so that a rule holds for the columns of a table,
for bound values and for the NEW row of a trigger alike. `milliseconds` and `time_of` state rule 4's lexical
reading of a time once in SQL and once in Python; a test holds them against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Integer, Text, case, literal
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

__all__ = [
    "AlwaysText",
    "Condition",
    "NeverNull",
    "arguments",
    "concatenated",
    "exact_hex",
    "holds",
    "json_at",
    "json_from",
    "json_listed",
    "json_of_array",
    "json_patched",
    "json_split",
    "milliseconds",
    "nested",
    "same",
    "text_joined",
    "time_from",
    "type_name",
]


class AlwaysText(Text):
    """The type of an expression that gives a text or NULL, and never bytes, whatever it is given."""


class NeverNull:
    """What marks an expression that is never NULL, whatever it is given."""


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


class time_from(FunctionElement[Any]):
    """A stored time made from ms: `YYYY-MM-DD HH:MM:SS[.fff]`; the number itself outside years 1 to 9999."""

    name = "time_from"
    inherit_cache = True


class type_name(FunctionElement[str]):
    """The type a value is stored with, in SQLite's words: null, integer, real, text or blob."""

    name = "type_name"
    type = AlwaysText()
    inherit_cache = True


class concatenated(FunctionElement[str]):
    """Texts put together at once: a chain of `||` keeps what each of its steps made of a long one until the last."""

    name = "concatenated"
    type = AlwaysText()
    inherit_cache = True


class exact_hex(FunctionElement[str]):
    """The bytes of a value in hexadecimal digits; of a number, those of its text with all its digits."""

    name = "exact_hex"
    type = AlwaysText()
    inherit_cache = True


Path = tuple[str, ...]
"""The names that lead to a value in a JSON object."""


class json_at(FunctionElement[Any]):
    """The value under a path of a JSON object, in the type of a column; NULL for a value of another type.

    So that nothing is converted: what is NULL here stays in the original.

    Args:
        document: A text or a JSON value; one that is no JSON has no values.
        path: The path.
        type_: The type: of texts, integers, floats, booleans or JSON.
    """

    name = "json_at"
    inherit_cache = False

    def __init__(self, document: ColumnElement[Any], path: Path, type_: TypeEngine[Any]) -> None:
        super().__init__(document, literal(".".join(path)))
        self.path = path
        self.type = type_


class json_patched(FunctionElement[Any]):
    """A JSON object in which the values under some paths are others; what they were before stays as it was written.

    Args:
        document: The object, or NULL: then a new one is made, or none where all values are NULL.
        values: The values by their paths; one that is NULL is taken out of the object.
        type_: The type of the object.
    """

    name = "json_patched"
    inherit_cache = False

    def __init__(
        self, document: ColumnElement[Any], values: Sequence[tuple[Path, ColumnElement[Any]]], type_: TypeEngine[Any]
    ) -> None:
        parts = [part for path, value in values for part in (literal(".".join(path)), value)]
        super().__init__(document, *parts)
        self.paths = tuple(path for path, _ in values)
        self.types = tuple(value.type for _, value in values)
        self.type = type_

    @property
    def document(self) -> ColumnElement[Any]:
        """The object."""
        return next(iter(self.clauses))

    @property
    def values(self) -> list[tuple[Path, TypeEngine[Any], ColumnElement[Any]]]:
        """The values with their paths and types."""
        return list(zip(self.paths, self.types, list(self.clauses)[2::2], strict=True))


class json_split(FunctionElement[str]):
    """The parts of a text between separators, as the text of a JSON array; NULL for NULL.

    Args:
        value: The text.
        separator: The separator.
    """

    name = "json_split"
    type = AlwaysText()
    inherit_cache = False

    def __init__(self, value: ColumnElement[Any], separator: str) -> None:
        super().__init__(value, literal(separator))
        self.separator = separator


class json_of_array(FunctionElement[str]):
    """A JSON array of texts as the text of one in which all are written alike; NULL for NULL, and where it is empty.

    What is no array of texts becomes another text, which is never equal to one.
    """

    name = "json_of_array"
    type = AlwaysText()
    inherit_cache = True


class json_listed(FunctionElement[str]):
    """An aggregate: texts in the order of their positions, as the text of a JSON array; NULL where there is none."""

    name = "json_listed"
    type = AlwaysText()
    inherit_cache = True


class json_from(FunctionElement[Any]):
    """The text of a JSON array as a value of a column; an empty array for NULL, and for what is none.

    Args:
        text: The text.
        type_: The type of the column.
    """

    name = "json_from"
    inherit_cache = False

    def __init__(self, text: ColumnElement[Any], type_: TypeEngine[Any]) -> None:
        super().__init__(case((text.like("[%"), text), else_=literal("[]")))
        self.type = type_


class text_joined(FunctionElement[str]):
    """An aggregate: texts in the order of their positions, with a separator between them; NULL where there is none."""

    name = "text_joined"
    type = AlwaysText()
    inherit_cache = True


def arguments(element: Any, compiler: Any, **kw: Any) -> list[str]:
    """The arguments of one of these functions, as SQL."""
    return [compiler.process(clause, **kw) for clause in element.clauses]


def nested(call: Callable[[list[str]], str], texts: list[str]) -> str:
    """SQL that puts many texts together by calls of a function, which takes at most a hundred arguments."""
    while len(texts) > 1:
        texts = [call(texts[at : at + 90]) for at in range(0, len(texts), 90)]
    return texts[0]
