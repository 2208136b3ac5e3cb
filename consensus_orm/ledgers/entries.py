"""Entries of the ledgers and of the audit, as the records that `store.migration` returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ClauseElement, ColumnElement, bindparam, case, select

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.rules import Earliest
from consensus_orm.ledgers.binding import as_written
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

    model_config = ConfigDict(frozen=True, defer_build=True)

    id: int
    action: str
    from_phase: Phase | None
    to_phase: Phase | None
    at: datetime
    by: str
    reason: str | None
    forced: bool
    detail: dict[str, Any]

    @property
    def why(self) -> str:
        """The reason, and in parentheses what was skipped for it, or the rate of a throttle."""
        notes = ["forced"] if self.forced else []
        if skipped := self.detail.get("skipped"):
            notes.append(f"skipped: {'; '.join(map(str, skipped))}")
        if rate := self.detail.get("rows_per_second"):
            notes.append(f"{rate:,} rows a second")
        return " ".join(filter(None, [self.reason, f"({', '.join(notes)})" if notes else ""]))


class MismatchEntry(BaseModel):
    """A difference between the sides, and what became of it."""

    model_config = ConfigDict(frozen=True, defer_build=True)

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

    `belongs_to` describes a row that has no key: the columns that identify its parent, such as a run, with the time
    of the parent in ms.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

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

    model_config = ConfigDict(frozen=True, defer_build=True)

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
"""Identifies the parent of a row without a key; the images of other rows, which may be large, are not read."""
UNSETTLED: dict[type[Base], ColumnElement[bool]] = {
    Mismatch: Mismatch.state.in_(("found", "confirmed")),
    Reject: Reject.state == "open",
    RowImage: RowImage.restored_at.is_(None),
}
"""The entries of each ledger that await a decision."""


@cache
def _listed(
    ledger: type[Mismatch] | type[Reject] | type[RowImage], everything: bool, one: bool, *more: Any
) -> ClauseElement:
    """Entries of a ledger without images, oldest first: all of them or the unsettled, and of these one by number."""
    where = [] if everything else [UNSETTLED[ledger]]
    where += [ledger.id == bindparam("number")] if one else []
    columns = [column for column in table_of(ledger).columns if column.key != "image"]
    return select(*columns, *more).where(*where).order_by(ledger.id)


E = TypeVar("E", bound=BaseModel)


def _entry(model: type[E], row: Sequence[Any], **read: Callable[[Any], object]) -> E:
    """A record of a row whose columns are in the order of its fields; `read` converts single ones."""
    facts = dict(zip(model.model_fields, row, strict=True))
    with as_written(_TABLES[model]):
        return model(**facts | {name: convert(facts[name]) for name, convert in read.items()})


_TABLES: dict[type[BaseModel], str] = {
    HistoryEntry: PhaseChange.__tablename__,
    MismatchEntry: Mismatch.__tablename__,
    RejectEntry: Reject.__tablename__,
    ImageEntry: RowImage.__tablename__,
}


def _when(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else when(milliseconds)


def _detail(stored: str | None) -> dict[str, Any]:
    return dict(json.loads(stored)) if stored else {}


_HISTORY = select(table_of(PhaseChange)).order_by(PhaseChange.id)


def history(uow: Transaction) -> list[HistoryEntry]:
    """The audit, oldest first."""
    return [_entry(HistoryEntry, row, at=when, detail=_detail) for row in uow._rows(_HISTORY)]


def mismatches(uow: Transaction, everything: bool, *, number: int | None = None) -> list[MismatchEntry]:
    """Mismatches, oldest first: all or only the open ones, or of these the one of a number."""
    rows = uow._rows(_listed(Mismatch, everything, number is not None), {"number": number})
    return [_entry(MismatchEntry, row, found_at=when, settled_at=_when) for row in rows]


def rejects(uow: Transaction, everything: bool, *, number: int | None = None) -> list[RejectEntry]:
    """Rejects, oldest first: all or only the open ones, or of these the one of a number."""
    rows = uow._rows(_listed(Reject, everything, number is not None, _IMAGE_OF_UNNAMED), {"number": number})
    return [
        _entry(RejectEntry, row, found_at=when, settled_at=_when, belongs_to=partial(_parent, uow, row[1]))
        for row in rows
    ]


def images(uow: Transaction, everything: bool, *, number: int | None = None) -> list[ImageEntry]:
    """Images, oldest first: all or only those that were not put back, or of these the one of a number."""
    rows = uow._rows(_listed(RowImage, everything, number is not None), {"number": number})
    return [_entry(ImageEntry, row, at=when, restored_at=_when) for row in rows]


def _parent(uow: Transaction, name: str, image: str | None) -> dict[str, Any]:
    """What identifies the parent of a row without a key, from the image of the row."""
    if image is None:
        return {}
    pairs = [(pair, parent) for pair in uow.statements.moves if pair.name == name for parent in pair.parents]
    columns = [of.key for pair, parent in pairs for of in parent.identity if parent.standing(of) not in pair.above]
    columns += [of.key for _, p in pairs for of, rule in p.derived_columns.items() if isinstance(rule, Earliest)]
    # The image may include the parent, whose columns have its name before theirs.
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
