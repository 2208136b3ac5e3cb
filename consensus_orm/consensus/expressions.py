"""SQL expressions that only the consensus tables need, for SQLite and PostgreSQL.

Like those of `declaration.expressions`, they take and give SQLAlchemy expressions.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from consensus_orm.databases.sqlite.expressions import is_well_formed
from consensus_orm.declaration.expressions import AlwaysText, Condition, NeverNull, arguments

__all__ = ["SYNTHESIS_FIELDS", "flagged", "run_key", "run_key_of", "says", "synthesis_json"]


SYNTHESIS_FIELDS = ("output_markdown", "output_path", "status", "artifacts_count", "agreements", "conflicts")
"""The fields of a synthesis in `synthesis_json`, in order."""


class run_key(NeverNull, FunctionElement[str]):
    """The identity of a run within spec and stage: its run id, else the second of created_at (rule 4)."""

    name = "run_key"
    type = AlwaysText()
    inherit_cache = True


def run_key_of(run_id: str | None, created_at: str) -> str:
    """What `run_key` gives for a row of a repository, whose time has the shape `YYYY-MM-DD HH:MM:SS[.f]`."""
    return f"at:{created_at[:19]}" if run_id is None else f"run:{run_id}"


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


# SQLite ---------------------------------------------------------------------------------------------------

_DIGIT = "[0-9]"
_SECOND = f"{_DIGIT * 4}-{_DIGIT * 2}-{_DIGIT * 2} {_DIGIT * 2}:{_DIGIT * 2}:{_DIGIT * 2}"


def _shaped(x: str) -> str:
    """Whether `x` is text of the shape `YYYY-MM-DD HH:MM:SS[.f]`; GLOB alone would stop at a NUL."""
    return (
        f"(typeof({x}) = 'text' AND instr({x}, char(0)) = 0 AND ({x} GLOB '{_SECOND}'"
        f" OR ({x} GLOB '{_SECOND}.[0-9]*' AND substr({x}, 21) NOT GLOB '*[^0-9]*')))"
    )


def _verbatim_text(x: str) -> str:
    """A value of any type as text that is unique among the values of that type."""
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
    pairs = ", ".join(f"'{key}', {value}" for key, value in zip(SYNTHESIS_FIELDS, values, strict=True))
    speakable = " AND ".join(f"typeof({value}) <> 'blob' AND {is_well_formed(value)}" for value in values)
    return f"(CASE WHEN {speakable} THEN json_object({pairs}) END)"


# PostgreSQL -----------------------------------------------------------------------------------------------

_CLOCK = "[0-9]{2}:[0-9]{2}:[0-9]{2}"
_FRACTION = r"(?:\.[0-9]+)?"
_TIME = f"'^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}} {_CLOCK}{_FRACTION}$'"


@compiles(run_key, "postgresql")
def _postgresql_run_key(element: Any, compiler: Any, **kw: Any) -> str:
    run, at = arguments(element, compiler, **kw)
    return (
        f"(CASE WHEN {run} IS NOT NULL THEN 'run:' || {run}"
        f" WHEN {at} COLLATE \"C\" ~ {_TIME} THEN 'at:' || substr({at}, 1, 19)"
        f" WHEN {at} IS NULL THEN 'at-null:' ELSE 'at-text:' || {at} END)"
    )


@compiles(flagged, "postgresql")
def _postgresql_flagged(element: Any, compiler: Any, **kw: Any) -> str:
    (x,) = arguments(element, compiler, **kw)
    return f"coalesce({x} <> 0, FALSE)"


@compiles(says, "postgresql")
def _postgresql_says(element: Any, compiler: Any, **kw: Any) -> str:
    x, word = arguments(element, compiler, **kw)
    return f'(position({word} IN lower({x} COLLATE "C")) > 0)'


@compiles(synthesis_json, "postgresql")
def _postgresql_synthesis_json(element: Any, compiler: Any, **kw: Any) -> str:
    """Built by hand: json_build_object writes spaces that the founding program did not."""
    values = zip(SYNTHESIS_FIELDS, arguments(element, compiler, **kw), strict=True)
    pairs = " || ',".join(f"\"{key}\":' || coalesce(CAST(to_json({value}) AS TEXT), 'null')" for key, value in values)
    return f"('{{{pairs} || '}}')"
