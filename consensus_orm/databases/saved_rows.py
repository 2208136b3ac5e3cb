"""Rows of the legacy side alone, which were saved before CONTRACT; they are data, never SQL."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator

from consensus_orm import errors
from consensus_orm.databases import saved_schema
from consensus_orm.databases.base import Cells, SavedRow, Transaction
from consensus_orm.statements.rendering import fitting

__all__ = [
    "ASIDE",
    "DROPPED",
    "IMAGE",
    "ROWS",
    "aside",
    "cells",
    "dropped",
    "image",
    "own_name",
    "saved_rows",
    "unsafe",
]

IMAGE = "image"
"""The type of a saved row, which exists on the legacy side alone because it could not be carried."""

ROWS = (IMAGE, "row")
"""The types of saved rows; a database contracted by an earlier release has the text of an INSERT instead."""

DROPPED = "consensus_orm_dropped_"
"""Prefix of legacy tables that are being dropped."""

ASIDE = "consensus_orm_aside_"
"""Prefix of legacy tables that another program made unusable; they keep their rows."""


def dropped(table: str) -> str:
    """The name of a legacy table while it is being dropped."""
    return fitting(DROPPED + table)


def aside(table: str, taken: Collection[str]) -> str:
    """The name of a legacy table that is set aside.

    Args:
        table: The table.
        taken: The names of all tables, in lower case.
    """
    names = (fitting(f"{ASIDE}{number}_{table}") for number in itertools.count(1))
    return next(name for name in names if name.lower() not in taken)


def unsafe(kind: str, table: str) -> errors.UnsafeDefinitionError:
    """The error for a saved definition or row that is something else.

    Args:
        kind: The kind under which it was saved.
        table: The table under which it was saved.
    """
    return errors.UnsafeDefinitionError(f"what was saved as a {kind} of {table} says something else", table=table)


_NAME = r'"(?:[^"]|"")+"'
_INSERT = re.compile(
    rf"INSERT (?:OR IGNORE )?INTO ({_NAME}) \(({_NAME}(?:, {_NAME})*)\) VALUES \((.*)\)(?: ON CONFLICT DO NOTHING)?",
    re.DOTALL,
)
_LITERAL = re.compile(
    r"(?P<null>NULL)|X'(?P<blob>[0-9A-Fa-f]*)'|CAST\(X'(?P<text>[0-9A-Fa-f]*)' AS TEXT\)"
    r"|convert_from\(decode\('(?P<server>[0-9A-Fa-f]*)', 'hex'\), 'UTF8'\)"
    r"|(?P<integer>-?[0-9]+)(?=,|$)|(?P<other>[-+.0-9A-Za-z]+)"
)
"""A value in a statement of an earlier release."""


def image(row: Cells) -> str:
    """The text under which a row is saved."""
    return json.dumps({name: list(cell) for name, cell in row.items()})


def cells(kind: str, table: str, text: str) -> dict[str, tuple[str, str]]:
    """Read a saved row.

    Args:
        kind: Its type, one of `ROWS`.
        table: Its table.
        text: Its text.

    Raises:
        UnsafeDefinitionError: It is not a row of the table.
    """
    try:
        found = dict(_parsed(table, text)) if kind != IMAGE else json.loads(text)
        return {str(name): (str(type_), str(digits)) for name, (type_, digits) in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise unsafe("row", table) from error


def _parsed(table: str, sql: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """The values of an INSERT of an earlier release, which are literals."""
    whole = _INSERT.fullmatch(sql)
    if whole is None or _name(whole[1]) != table:
        raise ValueError(table)
    names, values, at = [_name(quoted) for quoted in re.findall(_NAME, whole[2])], whole[3], 0
    for number, name in enumerate(names):
        if number:
            at = _behind(values, at, ", ")
        literal = _LITERAL.match(values, at)
        if literal is None:
            raise ValueError(name)
        at = literal.end()
        yield name, _cell(literal)
    if at != len(values):
        raise ValueError(table)


def _name(quoted: str) -> str:
    return quoted[1:-1].replace('""', '"')


def _behind(text: str, at: int, separator: str) -> int:
    if not text.startswith(separator, at):
        raise ValueError(separator)
    return at + len(separator)


def _cell(literal: re.Match[str]) -> tuple[str, str]:
    kind = str(literal.lastgroup)
    value = literal[kind]
    if kind in ("blob", "text"):
        return kind, value
    if kind == "server":
        return "text", value
    if kind == "null":
        return "null", ""
    return ("real" if kind == "other" else "integer"), value.encode().hex()


def saved_rows(uow: Transaction) -> list[SavedRow]:
    """The saved rows, read as values.

    Raises:
        UnsafeDefinitionError: One of them is not a row of a legacy table.
    """
    found = []
    for entry in saved_schema.entries(uow):
        if entry.type in ROWS:
            name = own_name(uow, entry.table, "row")
            row = cells(entry.type, name, entry.sql)
            found.append(SavedRow(name, row, uow.catalog.legacy.values(name, row)))
    return found


def own_name(uow: Transaction, table: str, kind: str) -> str:
    """The declared name of a legacy table.

    Args:
        uow: Knows the moves.
        table: The saved name.
        kind: The kind of what was saved, for the error.

    Raises:
        UnsafeDefinitionError: No legacy table has that name.
    """
    for pair in uow.statements.moves:
        if pair.legacy_name.lower() == str(table).lower():
            return pair.legacy_name
    raise unsafe(kind, str(table))
