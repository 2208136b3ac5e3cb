"""Digests of the rows of a table in type and bytes, read with raw SQL.

The declaration gives the names of columns and nothing else. There is a digest for each thousand rows, so that a
difference can be located without keeping the rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import literal_column

from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.row_keys import in_columns, row_key
from consensus_orm.migration.rehearsal_report import Identity
from consensus_orm.phase import Side
from consensus_orm.rehearsal.raw_sql import Look, SchemaObject
from consensus_orm.statements.rendering import quoted

__all__ = ["Image", "digested", "identity", "schema_objects", "select", "take"]

ROWS = 1000
"""Rows under one digest."""


@dataclass(frozen=True)
class Image:
    """The rows of one side of a pair: first key, last key, number and digest of each thousand."""

    parts: tuple[tuple[Any, Any, int, bytes], ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(count for *_, count, _ in self.parts)

    @property
    def digest(self) -> str:
        """The digest of all rows."""
        return hashlib.sha256(b"".join(digest for *_, digest in self.parts)).hexdigest()

    @property
    def last(self) -> Any:
        """The highest key; None where there is no row."""
        return self.parts[-1][1] if self.parts else None

    def difference(self, later: Image) -> str | None:
        """Where a later image differs; None where it is equal."""
        for mine, theirs in itertools.zip_longest(self.parts, later.parts):
            if mine != theirs:
                first, last, *_ = mine or theirs
                return f"rows {first} to {last} are not what they were ({self.rows:,} rows then, {later.rows:,} now)"
        return None


def take(
    look: Look,
    pair: Move,
    side: Side,
    *,
    skip: Collection[Any] = (),
    until: Any = None,
    undeclared: bool = False,
) -> Image:
    """Read one side of a pair.

    Args:
        look: Reads the database.
        pair: The pair.
        side: The side.
        skip: Keys to leave out, as text.
        until: The highest key to read; None reads all.
        undeclared: Read legacy columns that the declaration does not know, too.
    """
    columns = list(_columns(look, pair, side, undeclared=undeclared).values())
    if not columns:
        return Image()
    cells, key = ", ".join(map(look.cell, columns)), _KeySQL.of(look, pair, columns)
    where = _where(look, pair, side, None if until is None else key.compared("<="))
    sql = f"SELECT {key.told}, {cells} FROM {_source(pair, side)}{where} ORDER BY {key.order}"
    return digested(look.stream(sql, until), skip)


def digested(rows: Iterator[tuple[Any, ...]], skip: Collection[Any] = ()) -> Image:
    """The image of rows (key, then cells) in the order of their keys, without the keys in `skip`."""
    return Image(tuple(_digests(row for row in rows if str(_key(row[0])) not in skip)))


def _digests(rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, Any, int, bytes]]:
    while part := list(itertools.islice(rows, ROWS)):
        digest = hashlib.sha256()
        for row in part:
            for cell in row[1:]:
                value = cell.encode() if isinstance(cell, str) else cell or b""
                digest.update(len(value).to_bytes(8, "big") + value)
        yield _key(part[0][0]), _key(part[-1][0]), len(part), digest.digest()


def _key(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def select(look: Look, pair: Move, side: Side, column: str, *, after: Any) -> dict[Any, Any]:
    """One column, by its legacy name, of the rows after a key; of all rows where that is None."""
    columns = _columns(look, pair, side)
    if not columns:
        return {}
    key = _KeySQL.of(look, pair, list(columns.values()))
    where = _where(look, pair, side, None if after is None else key.compared(">"))
    sql = f"SELECT {key.told}, {columns[column]} FROM {_source(pair, side)}{where}"
    return {_key(own): _key(value) for own, value in look.stream(sql, after)}


@dataclass(frozen=True)
class _KeySQL:
    """The key of a row in SQL.

    Attributes:
        told: As one value, that of the ledgers.
        columns: Its columns.
        given: The columns of a key that is given as one value.
    """

    told: str
    columns: tuple[str, ...]
    given: tuple[str, ...]

    @classmethod
    def of(cls, look: Look, pair: Move, columns: Sequence[str]) -> _KeySQL:
        """The key of a pair whose columns come first among these."""
        own = columns[: len(pair.keys)]
        key = row_key([literal_column(name, of.type) for name, of in zip(own, pair.keys, strict=True)])
        given = map(look.spelled, in_columns(literal_column(look.parameter), key))
        return cls(look.spelled(key), tuple(own), tuple(given))

    @property
    def order(self) -> str:
        """What rows are put in order by."""
        return ", ".join(self.columns)

    def compared(self, operator: str) -> str:
        """The condition that a key comes before a given one, or after it."""
        if len(self.columns) == 1:
            return f"{self.columns[0]} {operator} {self.given[0]}"
        return f"({self.order}) {operator} ({', '.join(self.given)})"


def _columns(look: Look, pair: Move, side: Side, *, undeclared: bool = False) -> dict[str, str]:
    """The columns of a side by their legacy names, the key first; none where the table does not exist."""
    table = pair.legacy_name if side is Side.LEGACY else pair.table.name
    there = look.columns(table)
    if not there:
        return {}
    if side is Side.NORMALIZED:
        columns = dict(zip(pair.legacy_keys, pair.keys, strict=True)) | pair.columns
        return {name: look.spelled(of) for name, of in columns.items()}
    names = list(pair.legacy_columns)
    more = sorted(there.keys() - {name.lower() for name in names}) if undeclared else []
    return {name: quoted(table, there.get(name.lower(), name)) for name in names + more}


def _where(look: Look, pair: Move, side: Side, condition: str | None) -> str:
    table = pair.table_name(side)
    found = [] if condition is None else [condition]
    if pair.only[side]:
        found.append(look.spelled(pair.selected(side, lambda name: literal_column(quoted(table, name)))))
    return f" WHERE {' AND '.join(found)}" if found else ""


def _source(pair: Move, side: Side) -> str:
    if side is Side.LEGACY:
        return quoted(pair.legacy_name)
    source = quoted(pair.table.name)
    for parent in pair.parents:
        on = f"{quoted(parent.name_at, parent.key.name)} = {quoted(pair.table.name, parent.refers.name)}"
        # An alias would hide the name with its schema, by which rules refer to the table.
        alias = "" if parent.name_at == parent.table.name else f" AS {quoted(parent.name_at)}"
        source += f" LEFT JOIN {quoted(parent.table.name)}{alias} ON {on}"
    for part in pair.parts:
        on = f"{quoted(part.table.name, part.by.name)} = {quoted(pair.table.name, pair.keys[0].name)}"
        source += f" LEFT JOIN {quoted(part.table.name)} ON {on}"
    return source


# Identity of a database ---------------------------------------------------------------------------------------


def schema_objects(look: Look, moves: Moves) -> frozenset[SchemaObject]:
    """The definitions of the legacy tables and what belongs to them."""
    return look.objects({pair.legacy_name.lower() for pair in moves})


def identity(look: Look, moves: Moves) -> Identity:
    """What identifies a database: the definitions of its legacy tables, and its numbers of rows."""
    objects = schema_objects(look, moves)
    spelled = json.dumps(sorted(objects))
    there = look.tables()
    wanted = [pair.legacy_name for pair in moves] + [pair.table.name for pair in moves]
    counted = [there[name.lower()] for name in wanted if name.lower() in there]
    return Identity(
        schema_hash=hashlib.sha256(spelled.encode()).hexdigest()[:16] if objects else None,
        rows={name: look.rows(f"SELECT count(*) FROM {quoted(name)}")[0][0] for name in counted},
    )
