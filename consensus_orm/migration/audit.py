"""What the ledgers hold, as records for people and programs."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from consensus_orm.phase import Phase
from consensus_orm.times import when
from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["HistoryEntry", "MismatchEntry", "RejectEntry", "history", "mismatches", "rejects"]


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
    """A row that could not be carried; its image stays in the database."""

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


def _when(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else when(milliseconds)


def _phase(number: int | None) -> Phase | None:
    return None if number is None else Phase(number)


def history(uow: UnitOfWork) -> list[HistoryEntry]:
    """The audit, oldest first."""
    rows = uow._rows(
        "SELECT id, action, from_phase, to_phase, at, by, reason, forced, detail FROM consensus_orm_history ORDER BY id"
    )
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


def mismatches(uow: UnitOfWork, everything: bool) -> list[MismatchEntry]:
    """Mismatches, oldest first; only the open ones unless everything is asked for."""
    where = "" if everything else " WHERE state IN ('found', 'confirmed')"
    rows = uow._rows(
        "SELECT id, pair, key, column_name, kind, state, found_by, found_at, seen, settled_at, note"
        f" FROM consensus_orm_mismatches{where} ORDER BY id"
    )
    names = list(MismatchEntry.model_fields)
    return [
        MismatchEntry(**dict(zip(names, row, strict=True)) | {"found_at": when(row[7]), "settled_at": _when(row[9])})
        for row in rows
    ]


def rejects(uow: UnitOfWork, everything: bool) -> list[RejectEntry]:
    """Rejects, oldest first; only the open ones unless everything is asked for."""
    where = "" if everything else " WHERE state = 'open'"
    rows = uow._rows(
        "SELECT id, pair, key, table_name, reason, state, found_at, settled_at, note"
        f" FROM consensus_orm_rejects{where} ORDER BY id"
    )
    names = list(RejectEntry.model_fields)
    return [
        RejectEntry(**dict(zip(names, row, strict=True)) | {"found_at": when(row[6]), "settled_at": _when(row[7])})
        for row in rows
    ]
