"""Images: what is in a table, in type and bytes, read by raw SQL past everything this package believes.

Nothing here goes through the statements of the mapping but the names of columns. A digest is kept for each
thousand rows, so that a difference can be pointed at without keeping the rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from consensus_orm.mapping import Mapping, Pair
from consensus_orm.phase import Side
from consensus_orm.rehearsal.records import Identity
from consensus_orm.triggers import PREFIX

__all__ = ["Image", "identity", "schema_objects", "select", "take"]

ROWS = 1000
"""Rows under one digest."""

Rows = Callable[[str], list[tuple[Any, ...]]]
"""Runs a statement: of a raw connection, or of a unit of work."""


@dataclass(frozen=True)
class Image:
    """The rows of one side of a pair.

    Attributes:
        parts: First key, last key, number and digest of each thousand rows.
    """

    parts: tuple[tuple[Any, Any, int, bytes], ...] = ()

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(count for *_, count, _ in self.parts)

    @property
    def digest(self) -> str:
        """Over all of them."""
        return hashlib.sha256(b"".join(digest for *_, digest in self.parts)).hexdigest()

    @property
    def last(self) -> Any:
        """The highest key; None where there is no row."""
        return self.parts[-1][1] if self.parts else None

    def difference(self, later: Image) -> str | None:
        """Where a later image is not the same; None where it is."""
        for mine, theirs in itertools.zip_longest(self.parts, later.parts):
            if mine != theirs:
                first, last, *_ = mine or theirs
                return f"rows {first} to {last} are not what they were ({self.rows:,} rows then, {later.rows:,} now)"
        return None


def take(
    connection: sqlite3.Connection,
    pair: Pair,
    side: Side,
    *,
    skip: Collection[Any] = (),
    until: Any = None,
    undeclared: bool = False,
) -> Image:
    """Read one side of a pair.

    Args:
        connection: A raw connection.
        pair: The pair.
        side: Which side.
        skip: Keys to leave out.
        until: The highest key to read; None reads all.
        undeclared: Read legacy columns that the mapping does not know, too.
    """
    columns = list(_columns(connection, pair, side, undeclared=undeclared).values())
    if not columns:
        return Image()
    cells = ", ".join(f"typeof({c}), {_exact(c)}" for c in columns)
    where = "" if until is None else f" WHERE {columns[0]} <= :until"
    sql = f"SELECT {columns[0]}, {cells} FROM {_source(pair, side)}{where} ORDER BY {columns[0]}"
    cursor = connection.cursor()
    # Nothing is decoded: text need not be UTF-8, and may hold NUL.
    before, connection.text_factory = connection.text_factory, bytes
    try:
        rows = (row for row in cursor.execute(sql, {"until": until}) if _key(row[0]) not in skip)
        return Image(tuple(_digests(rows)))
    finally:
        connection.text_factory = before


def _digests(rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, Any, int, bytes]]:
    while part := list(itertools.islice(rows, ROWS)):
        digest = hashlib.sha256()
        for row in part:
            for cell in row[1:]:
                value = b"" if cell is None else cell
                digest.update(len(value).to_bytes(8, "big") + value)
        yield _key(part[0][0]), _key(part[-1][0]), len(part), digest.digest()


def _key(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def select(connection: sqlite3.Connection, pair: Pair, side: Side, column: str, *, after: Any) -> dict[Any, Any]:
    """One column of the rows above a key, by key.

    Args:
        connection: A raw connection.
        pair: The pair.
        side: Which side.
        column: Its legacy name.
        after: The key; None reads all rows.
    """
    columns = _columns(connection, pair, side)
    if not columns:
        return {}
    key = columns[pair.key.name]
    where = "" if after is None else f" WHERE {key} > :after"
    sql = f"SELECT {key}, {columns[column]} FROM {_source(pair, side)}{where}"
    return dict(connection.execute(sql, {"after": after}).fetchall())


def _exact(column: str) -> str:
    # A real number as text has 15 digits, which is not all of it.
    whole = f"CAST(printf('%!.20g', {column}) AS BLOB)"
    return f"CASE typeof({column}) WHEN 'real' THEN {whole} ELSE CAST({column} AS BLOB) END"


def _quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def _columns(connection: sqlite3.Connection, pair: Pair, side: Side, *, undeclared: bool = False) -> dict[str, str]:
    """The columns by their legacy names, the key first; none where the table does not exist."""
    table = pair.legacy_name if side is Side.LEGACY else pair.table.name
    there = {name.lower() for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    if not there:
        return {}
    if side is Side.NORMALIZED:
        columns = {name: pair.column(attribute) for name, attribute in pair.carried.items()}
        return {name: _quoted(c.table.name, c.name) for name, c in ({pair.key.name: pair.key} | columns).items()}
    names = [pair.key.name, *pair.carried]
    more = sorted(there - {name.lower() for name in names}) if undeclared else []
    return {name: _quoted(table, name) for name in names + more}


def _source(pair: Pair, side: Side) -> str:
    if side is Side.LEGACY:
        return _quoted(pair.legacy_name)
    source = _quoted(pair.table.name)
    if pair.parent is not None and pair.link is not None:
        parent, link = pair.parent, pair.column(pair.link)
        on = f"{_quoted(parent.table.name, parent.key.name)} = {_quoted(pair.table.name, link.name)}"
        source += f" LEFT JOIN {_quoted(parent.table.name)} ON {on}"
    return source


# What a file is -------------------------------------------------------------------------------------------


def schema_objects(rows: Rows, mapping: Mapping) -> frozenset[tuple[str, str, str]]:
    """The legacy tables with their indexes and the triggers of other programs, as they were written.

    Args:
        rows: Runs a statement.
        mapping: Names the legacy tables.
    """
    names = {pair.legacy_name.lower() for pair in mapping.pairs}
    found = rows(
        "SELECT type, name, sql, lower(tbl_name) FROM sqlite_master WHERE sql IS NOT NULL"
        f" AND NOT (type = 'trigger' AND name GLOB '{PREFIX}*')"
    )
    objects = frozenset((kind, name, sql) for kind, name, sql, table in found if table in names)
    if any(kind == "table" for kind, _, _ in objects) or "consensus_orm_saved_schema" not in {f[1] for f in found}:
        return objects
    return frozenset((row[0], row[1], row[2]) for row in rows("SELECT type, name, sql FROM consensus_orm_saved_schema"))


def identity(rows: Rows, mapping: Mapping) -> Identity:
    """Say which database this is.

    Args:
        rows: Runs a statement.
        mapping: Names the tables.
    """
    objects = schema_objects(rows, mapping)
    spelled = json.dumps(sorted(objects))
    there = {name.lower(): name for (name,) in rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    wanted = [pair.legacy_name for pair in mapping.pairs] + [pair.table.name for pair in mapping.pairs]
    counted = [there[name.lower()] for name in wanted if name.lower() in there]
    return Identity(
        schema_hash=hashlib.sha256(spelled.encode()).hexdigest()[:16] if objects else None,
        rows={name: rows(f"SELECT count(*) FROM {_quoted(name)}")[0][0] for name in counted},
    )
