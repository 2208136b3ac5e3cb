"""The details of a ledger entry: its row column by column, as each side has it now and as it was kept.

Contents are shown only on request; otherwise types and sizes, and whether the sides agree.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import bindparam, select

from consensus_orm import errors
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import entries, images, mismatches
from consensus_orm.ledgers.binding import Key
from consensus_orm.ledgers.entries import ImageEntry, MismatchEntry, RejectEntry
from consensus_orm.ledgers.images import Cells
from consensus_orm.models.control import Reject
from consensus_orm.phase import Side
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Cell", "ColumnDetail", "RowDetail", "of_image", "of_mismatch", "of_reject"]


class Cell(BaseModel):
    """A value as it is stored.

    Attributes:
        type: null, integer, real, text or blob.
        bytes: Its length; of a number, that of its digits.
        value: The value itself, where contents were requested; a blob in hexadecimal digits.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    type: str
    bytes: int
    value: str | None


class ColumnDetail(BaseModel):
    """One column of a row.

    Attributes:
        name: The legacy name; of a column that only the normalized side has, its own name.
        legacy: What the legacy side has now; None where it has no such row or column.
        normalized: What the normalized side has now.
        image: What was kept of it.
        differs: Whether the sides differ in it now.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    legacy: Cell | None
    normalized: Cell | None
    image: Cell | None
    differs: bool


class RowDetail(BaseModel):
    """An entry of a ledger, and its row.

    Attributes:
        entry: The entry.
        on: The sides that have the row now.
        columns: Its columns; none for an entry that stands for many rows.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    entry: MismatchEntry | RejectEntry | ImageEntry
    on: tuple[Side, ...]
    columns: tuple[ColumnDetail, ...]


def of_mismatch(uow: UnitOfWork, number: int, *, contents: bool) -> RowDetail:
    """A mismatch and its row as both sides have it now.

    Raises:
        InvalidValueError: There is no such mismatch.
    """
    entry = _only(entries.mismatches(uow, everything=True, number=number), "mismatch", "mismatches", number)
    return _detail(uow, entry, None, contents)


_IMAGE = select(Reject.image).where(Reject.id == bindparam("number"))


def of_reject(uow: UnitOfWork, number: int, *, contents: bool) -> RowDetail:
    """A reject, the row as it was kept, and as both sides have it now.

    Raises:
        InvalidValueError: There is no such reject.
    """
    entry = _only(entries.rejects(uow, everything=True, number=number), "reject", "rejects", number)
    kept = uow._rows(_IMAGE, {"number": number})[0][0]
    return _detail(uow, entry, images.cells(kept), contents)


def of_image(uow: UnitOfWork, number: int, *, contents: bool) -> RowDetail:
    """An image, and its row as both sides have it now.

    Raises:
        InvalidValueError: There is no such image.
    """
    entry = _only(entries.images(uow, everything=True, number=number), "image", "images", number)
    return _detail(uow, entry, images.take(uow, number).cells, contents)


Entry = TypeVar("Entry", MismatchEntry, RejectEntry, ImageEntry)


def _only(found: list[Entry], noun: str, command: str, number: int) -> Entry:
    if not found:
        raise errors.InvalidValueError(
            f"there is no {noun} {number}", hint=f"see: consensus-orm {command} --all", field="id"
        )
    return found[0]


def _detail(
    uow: UnitOfWork, entry: MismatchEntry | RejectEntry | ImageEntry, kept: Cells | None, contents: bool
) -> RowDetail:
    pair = next((pair for pair in uow.statements.moves if pair.name == entry.pair), None)
    now: dict[Side, Cells] = {}
    differing: set[str] = set()
    if pair is not None and entry.key is not None:
        now = {side: row for side in Side if (row := _now(uow, pair, entry.key, side)) is not None}
        if len(now) == len(Side):
            differing = _differing(uow, pair, entry.key)
    encoding = uow.catalog.text_encoding(uow)
    rows = [now.get(Side.LEGACY), now.get(Side.NORMALIZED), kept]
    columns = [
        ColumnDetail(
            name=name,
            legacy=cells[0],
            normalized=cells[1],
            image=cells[2],
            differs=name in differing,
        )
        for name in dict.fromkeys(name for row in rows for name in row or ())
        for cells in [[_cell(row, name, encoding, contents) for row in rows]]
    ]
    return RowDetail(entry=entry, on=tuple(now), columns=tuple(columns))


def _now(uow: UnitOfWork, pair: Move, key: Key, side: Side) -> Cells | None:
    there = {name.lower() for name in uow.catalog.tables(uow)}
    return images.now(uow, pair, key, side) if pair.table_name(side).lower() in there else None


def _differing(uow: UnitOfWork, pair: Move, key: Key) -> set[str]:
    """Names under which an image shows the columns that differ."""
    legacy_names = {
        of.key if pair.is_own(of) else f"{of.table.name}.{of.key}": name for name, of in pair.carried.items()
    }
    own = {of.key: f"{pair.table.name}.{of.key}" for of in pair.computed}
    found = [column for column, _ in mismatches.differences(uow, pair, key) if column is not None]
    return {legacy_names.get(column) or own.get(column, column) for column in found}


def _cell(row: Cells | None, name: str, encoding: str, contents: bool) -> Cell | None:
    if row is None or name not in row:
        return None
    type_, digits = row[name]
    value = images.text_of(type_, digits, encoding) if contents and type_ != "null" else None
    return Cell(type=type_, bytes=len(digits) // 2, value=value)
