"""Entries of the ledgers and of the audit, as the records that `store.migration` returns."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ClauseElement, ColumnElement, bindparam, case, select

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.pairs import Earliest, table_of
from consensus_orm.models.base import Base
from consensus_orm.models.control import Mismatch, PhaseChange, Reject, RowImage
from consensus_orm.phase import Phase, Side
from consensus_orm.times import when

__all__ = [
    "HistoryEntry",
    "ImageEntry",
    "MismatchEntry",
    "RejectEntry",
    "history",
    "images",
    "mismatches",
    "rejects",
]


class HistoryEntry(BaseModel):
    """Who did what to the migration, when and why."""

    model_config = ConfigDict(frozen=True)

    id: int
    action: str
    from_phase: Phase | None
    to_phase: Phase | None
    at: datetime
    by: str
    reason: str | None
    forced: bool
    detail: dict[str, Any]


class MismatchEntry(BaseModel):
    """A difference between the sides, and what became of it."""

    model_config = ConfigDict(frozen=True)

    id: int
    pair: str
    key: Any
    column: str | None
    kind: str
    state: str
    found_by: str
    found_at: datetime
    seen: int
    settled_at: datetime | None
    note: str | None


class RejectEntry(BaseModel):
    """A row that could not be carried; its image stays in the database.

    `belongs_to` names a row that has no key: the columns that tell its parent, such as a run, from others, with its
    time in ms.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    pair: str
    key: Any
    table: str
    reason: str
    state: str
    found_at: datetime
    settled_at: datetime | None
    note: str | None
    belongs_to: dict[str, Any] = {}


class ImageEntry(BaseModel):
    """A row that was overwritten or deleted; it is kept whole in the database, and can be put back."""

    model_config = ConfigDict(frozen=True)

    id: int
    pair: str
    """Its pair, or the name of a parent table."""
    key: Any
    side: Side
    table: str
    cause: str
    at: datetime
    by: str
    restored_at: datetime | None


_IMAGE_OF_UNNAMED = case((Reject.key.is_(None), Reject.image))
"""It tells what a row without a key belongs to; of other rows, images may be large."""
UNSETTLED: dict[type[Base], ColumnElement[bool]] = {
    Mismatch: Mismatch.state.in_(("found", "confirmed")),
    Reject: Reject.state == "open",
    RowImage: RowImage.restored_at.is_(None),
}
"""Which entries of a ledger wait for a decision."""


@cache
def _listed(
    ledger: type[Mismatch] | type[Reject] | type[RowImage], everything: bool, one: bool, *more: Any
) -> ClauseElement:
    """Entries of a ledger without images, oldest first: all of them or those that wait, and of these one by number."""
    where = [] if everything else [UNSETTLED[ledger]]
    where += [ledger.id == bindparam("number")] if one else []
    columns = [column for column in table_of(ledger).columns if column.key != "image"]
    return select(*columns, *more).where(*where).order_by(ledger.id)


def _when(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else when(milliseconds)


def _phase(number: int | None) -> Phase | None:
    return None if number is None else Phase(number)


_HISTORY = select(table_of(PhaseChange)).order_by(PhaseChange.id)


def history(uow: Transaction) -> list[HistoryEntry]:
    """The audit, oldest first."""
    rows = uow._rows(_HISTORY)
    return [
        HistoryEntry(
            id=number,
            action=action,
            from_phase=_phase(before),
            to_phase=_phase(after),
            at=when(at),
            by=by,
            reason=reason,
            forced=bool(forced),
            detail=json.loads(detail) if detail else {},
        )
        for number, action, before, after, at, by, reason, forced, detail in rows
    ]


def mismatches(uow: Transaction, everything: bool, *, number: int | None = None) -> list[MismatchEntry]:
    """Mismatches, oldest first; only the open ones unless everything is asked for, or only the one of a number."""
    rows = uow._rows(_listed(Mismatch, everything, number is not None), {"number": number})
    names = list(MismatchEntry.model_fields)
    return [
        MismatchEntry(**dict(zip(names, row, strict=True)) | {"found_at": when(row[7]), "settled_at": _when(row[9])})
        for row in rows
    ]


def rejects(uow: Transaction, everything: bool, *, number: int | None = None) -> list[RejectEntry]:
    """Rejects, oldest first; only the open ones unless everything is asked for, or only the one of a number."""
    rows = uow._rows(_listed(Reject, everything, number is not None, _IMAGE_OF_UNNAMED), {"number": number})
    return [
        RejectEntry(
            id=number,
            pair=pair,
            key=key,
            table=table,
            reason=reason,
            state=state,
            found_at=when(found_at),
            settled_at=_when(settled_at),
            note=note,
            belongs_to={} if image is None else _parent(uow, pair, image),
        )
        for number, pair, key, table, reason, state, found_at, settled_at, note, image in rows
    ]


def _parent(uow: Transaction, name: str, image: str) -> dict[str, Any]:
    """What tells the parent of a row from others, out of the image of the row; that of a parent may be part of it."""
    parents = [pair.parent for pair in uow.statements.mapping.pairs if pair.name == name and pair.parent is not None]
    columns = [a.key for p in parents for a in p.identity if a not in p.computed]
    columns += [a.key for p in parents for a, rule in p.derived.items() if isinstance(rule, Earliest)]
    cells = {column.rpartition(".")[2]: cell for column, cell in json.loads(image).items()}
    return {column: _value(*cells[column]) for column in columns if column in cells}


def _value(kind: str, digits: str) -> Any:
    """A value of an image as far as JSON can say it."""
    data = bytes.fromhex(digits)
    if kind == "null":
        return None
    if kind == "integer":
        return int(data)
    return digits if kind == "blob" else data.decode(errors="replace")


def images(uow: Transaction, everything: bool, *, number: int | None = None) -> list[ImageEntry]:
    """Images, oldest first; only those not put back unless everything is asked for, or only the one of a number."""
    rows = uow._rows(_listed(RowImage, everything, number is not None), {"number": number})
    names = list(ImageEntry.model_fields)
    return [
        ImageEntry(**dict(zip(names, row, strict=True)) | {"at": when(row[6]), "restored_at": _when(row[8])})
        for row in rows
    ]
