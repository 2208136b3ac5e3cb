"""The ledger of images: rows as they were before a repair or an adoption overwrote or deleted them (rule 12).

An image is the whole row, each column with its type and its bytes. It is kept in the transaction that changes the row,
by a statement that also locks the row, so that no other version of it is overwritten.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.expressions import concatenated, exact_hex, type_name
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.row_keys import parts
from consensus_orm.ledgers import audit
from consensus_orm.ledgers.binding import Key, among, as_written, milliseconds
from consensus_orm.models.base import LedgerKey
from consensus_orm.models.control import RowImage
from consensus_orm.phase import Side
from consensus_orm.statements.pairs import PairStatements
from consensus_orm.statements.parents import ParentStatements
from consensus_orm.statements.rendering import Rendering, in_keys, quoted

__all__ = [
    "Cells",
    "Image",
    "cells",
    "count",
    "keep",
    "keep_completed",
    "keep_parents",
    "now",
    "print_statements",
    "set_restored",
    "take",
    "text_of",
    "value_of",
]

Cells = dict[str, tuple[str, str]]
"""A row: for each column the type it is stored with, and its bytes in hexadecimal digits."""

KEPT = ("pair", "key", "side", "table_name", "image", "cause", "at", "by")
"""What is known of an image when it is kept."""

_COUNT = select(func.count()).where(RowImage.restored_at.is_(None))
_TAKE = select(RowImage.pair, RowImage.key, RowImage.side, RowImage.image).where(RowImage.id == bindparam("number"))
_SET_RESTORED = update(RowImage).where(RowImage.id == bindparam("number")).values(restored_at=bindparam("restored_at"))


# Keeping --------------------------------------------------------------------------------------------------


def keep(uow: Transaction, pair: Move, keys: Iterable[Key], side: Side, cause: str) -> set[Key]:
    """Image the rows that a side has of some keys before they change, and lock them; returns the keys of these rows."""
    return _keep_rows(uow, pair, keys, side, cause, "keep")


def keep_completed(uow: Transaction, pair: Move, keys: Iterable[Key], cause: str) -> None:
    """Keep those of some normalized rows in which an adoption replaces a value instead of only filling in others."""
    _keep_rows(uow, pair, keys, Side.NORMALIZED, cause, "complete")


def _keep_rows(uow: Transaction, pair: Move, keys: Iterable[Key], side: Side, cause: str, what: str) -> set[Key]:
    wanted = list(keys)
    if not wanted:
        return set()
    kept = _kept(uow.statements[pair], side, what, _unknown(uow, pair, side))
    return _run(uow, kept, wanted, pair.name, side, _table(pair, side), cause)


def keep_parents(uow: Transaction, parent: ParentStatements, keys: Iterable[Key], cause: str) -> set[Key]:
    """Keep those of some parents that have no rows, or values other than those derived from their rows."""
    wanted = list(keys)
    if not wanted:
        return set()
    of = parent.parent.table
    return _run(uow, _kept_parents(parent), wanted, of.name, Side.NORMALIZED, of, cause)


def print_statements(sql: PairStatements, parents: Iterable[ParentStatements]) -> None:
    """Compile the statements that keep images before a lock is taken."""
    for side in Side:
        _kept(sql, side, "keep", ())
    _kept(sql, Side.NORMALIZED, "complete", ())
    for parent in parents:
        _kept_parents(parent)


def _run(uow: Transaction, kept: _Statement, keys: list[Key], pair: str, side: Side, of: Table, cause: str) -> set[Key]:
    facts: dict[str, Any] = {"pair": pair, "side": side.value, "table": of.name, "cause": cause}
    facts |= {"at": milliseconds(uow), "by": audit.whoami()}
    return {key for (key,) in uow._execute(kept.sql, facts | among(keys) | kept.names).fetchall()}


@dataclass(frozen=True)
class _Statement:
    """A statement, and the names of columns that are bound to it."""

    sql: str
    names: dict[str, str]


@cache
def _kept(sql: PairStatements, side: Side, what: str, unknown: tuple[str, ...]) -> _Statement:
    columns, source = _columns(sql, side, unknown)
    of = _table(sql.pair, side)
    rows = _facts(sql.rendering, sql.key_of(side), columns).select_from(source)
    rows = rows.where(sql.in_keys(side), *([sql.loses_by_adopting] if what == "complete" else []))
    return _keeping(sql.rendering, rows.with_for_update(of=of), columns)


@cache
def _kept_parents(parent: ParentStatements) -> _Statement:
    of = parent.parent.table
    columns: dict[str, ColumnElement[Any]] = {c.name: c for c in of.columns}
    key = parent.parent.key
    rows = _facts(parent.rendering, key, columns).where(in_keys(key), parent.wrong)
    return _keeping(parent.rendering, rows.with_for_update(of=of), columns)


def _facts(rendering: Rendering, key: ColumnElement[Any], columns: dict[str, ColumnElement[Any]]) -> Select[Any]:
    def bound(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
        return rendering.typed(bindparam(name, type_=type_), type_)

    text, number = Text(), Integer()
    facts: list[Any] = [bound("pair", text), LedgerKey(key), bound("side", text), bound("table", text)]
    facts += [_image(rendering, columns), bound("cause", text), bound("at", number), bound("by", text)]
    return cast("Select[Any]", select(*facts))


def _keeping(rendering: Rendering, rows: Select[Any], columns: dict[str, ColumnElement[Any]]) -> _Statement:
    statement = insert(RowImage).from_select(KEPT, rows, include_defaults=False).returning(RowImage.key)
    return _Statement(rendering.render(statement), _names(columns))


def _image(rendering: Rendering, columns: dict[str, ColumnElement[Any]]) -> ColumnElement[Any]:
    """A row as JSON: column -> [type, bytes in hexadecimal digits]; names may contain anything, so they are bound."""

    def piece(name: str) -> ColumnElement[Any]:
        return rendering.typed(bindparam(name, type_=Text()), Text())

    pieces = [piece("_name0")]
    for at, value in enumerate(columns.values()):
        pieces += [type_name(value), piece("_between"), exact_hex(value), piece(f"_name{at + 1}")]
    return concatenated(*pieces)


def _names(columns: dict[str, ColumnElement[Any]]) -> dict[str, str]:
    names = list(map(json.dumps, columns))
    begins = ["{" + f'{names[0]}: ["', *(f'"], {name}: ["' for name in names[1:]), '"]}']
    return {"_between": '", "'} | {f"_name{at}": text for at, text in enumerate(begins)}


def _table(pair: Move, side: Side) -> Table:
    return pair.legacy_table if side is Side.LEGACY else pair.table


def _columns(
    sql: PairStatements, side: Side, unknown: tuple[str, ...]
) -> tuple[dict[str, ColumnElement[Any]], FromClause]:
    """All columns of the rows of a side, and where they stand.

    A column that both sides have goes by its legacy name, and one that only the normalized side keeps by its own; any
    other name is prefixed with the name of its table.
    """
    pair, of = sql.pair, _table(sql.pair, side)
    row = sql.legacy_row() if side is Side.LEGACY else sql.normalized_row()
    columns = dict(zip(pair.legacy_keys, parts(sql.key_of(side)), strict=True)) | {name: row[name] for name in row}
    source: FromClause = of
    if side is Side.NORMALIZED:
        columns |= {kept.key: kept for kept in pair.kept}
        shown = set(map(id, columns.values()))
        columns |= {f"{of.name}.{c.name}": c for c in of.columns if id(c) not in shown}
        columns |= {f"{c.table.name}.{c.name}": c for p in pair.parts for c in p.table.columns if id(c) not in shown}
        source = sql.whole()
        columns |= {f"{above.table.name}.{above.key}": above for above in pair.above}
    columns |= {name: of.c[name] for name in pair.only[Side.LEGACY]} if side is Side.LEGACY else {}
    columns |= {f"{of.name}.{name}": literal_column(quoted(of.name, name), Text()) for name in unknown}
    return columns, source


def _unknown(uow: Transaction, pair: Move, side: Side) -> tuple[str, ...]:
    """Columns that another program has added to a table: no model declares them."""
    of = _table(pair, side)
    known = {c.name.lower() for c in of.columns}
    return tuple(sorted(name for name in uow.catalog.columns(uow, of.name) if name.lower() not in known))


# Looking --------------------------------------------------------------------------------------------------


@cache
def _now(sql: PairStatements, side: Side, unknown: tuple[str, ...]) -> _Statement:
    columns, source = _columns(sql, side, unknown)
    row = select(_image(sql.rendering, columns)).select_from(source).where(sql.in_keys(side))
    return _Statement(sql.rendering.render(row), _names(columns))


def now(uow: Transaction, pair: Move, key: Key, side: Side) -> Cells | None:
    """A row as a side has it now; None where it has none."""
    look = _now(uow.statements[pair], side, _unknown(uow, pair, side))
    rows = uow._rows(look.sql, among([key]) | look.names)
    return cells(rows[0][0]) if rows else None


@as_written("consensus_orm_images or consensus_orm_rejects")
def cells(image: str) -> Cells:
    """An image as it is kept, of a reject too."""
    return {name: (str(type_), str(digits)) for name, (type_, digits) in json.loads(image).items()}


@as_written("consensus_orm_images or consensus_orm_rejects")
def text_of(type_: str, digits: str, encoding: str) -> str:
    """A value of an image as text; a blob in hexadecimal digits."""
    if type_ == "blob":
        return digits
    if type_ == "integer":  # SQLite writes digits in ASCII whatever the encoding of its texts
        encoding = "utf-8"
    return bytes.fromhex(digits).decode(encoding, "surrogateescape" if encoding == "utf-8" else "surrogatepass")


@as_written("consensus_orm_images or consensus_orm_rejects")
def value_of(type_: str, digits: str, encoding: str) -> Any:
    """A value of an image as the driver binds it."""
    if type_ == "null":
        return None
    if type_ == "blob":
        return bytes.fromhex(digits)
    text = text_of(type_, digits, encoding)
    if type_ == "real":
        return float(text)
    if type_ == "integer":
        with contextlib.suppress(ValueError):  # on a server it may be of a type that Python does not know
            return int(text)
    return text


def count(uow: Transaction) -> int:
    """How many images were not put back."""
    return int(uow._rows(_COUNT)[0][0])


@dataclass(frozen=True)
class Image:
    """A row that was overwritten or deleted; `pair` is the name of its pair, or of a parent table."""

    pair: str
    key: Key
    side: Side
    cells: Cells


def take(uow: Transaction, number: int) -> Image:
    """The image of a number.

    Raises:
        InvalidValueError: There is none.
    """
    rows = uow._rows(_TAKE, {"number": number})
    if not rows:
        raise errors.InvalidValueError(f"there is no image {number}", hint="see: consensus-orm images", field="id")
    pair, key, side, image = rows[0]
    with as_written(RowImage.__tablename__):
        return Image(pair, key, Side(side), cells(image))


def set_restored(uow: Transaction, number: int) -> None:
    """Record that the row of an image was put back; the image stays."""
    uow._execute(_SET_RESTORED, {"restored_at": milliseconds(uow), "number": number})
