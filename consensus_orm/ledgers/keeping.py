"""The row of the keeper: which process keeps a database, and when it last verified, backed up and vacuumed."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ClauseElement, bindparam, select, update
from sqlalchemy.dialects.postgresql import insert

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.formats import duration
from consensus_orm.ledgers import audit
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.models.control import KeeperState
from consensus_orm.phase import Phase
from consensus_orm.times import credible, when

__all__ = ["DUTIES", "ONLY", "KeeperStatus", "add_row", "begin", "done", "due_at", "look", "note"]

ONLY = 1
"""The id of the row."""

DUTIES = {"verify": "verified_at", "backup": "backed_up_at", "vacuum": "vacuumed_at"}
"""What the keeper does from time to time, each with the column that says when it was last done."""

BEGAN = "keep"
"""What the audit says of a process that begins to look after the database."""

_ROW = select(*(table_of(KeeperState).c[column] for column in ("holder", "lease_until", *DUTIES.values()))).where(
    KeeperState.id == ONLY
)
_ADD = insert(KeeperState).values(id=ONLY).on_conflict_do_nothing()


class KeeperStatus(BaseModel):
    """Which process looks after the database, and what is due by the settings of the process that asks.

    Attributes:
        holder: The process that acts now: user, host, process, and a random part; None where there is none.
        since: Since when it acts, UTC; None where no process does.
        done: When each duty was last done, UTC; those that never were are left out.
        due: When each duty is due, UTC; those that are switched off, or have no place in the phase, are left out.
        overdue: The duties whose time has passed while no process acts, in a phase with two sides.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    holder: str | None = None
    since: datetime | None = None
    done: dict[str, datetime] = {}
    due: dict[str, datetime] = {}
    overdue: list[str] = []

    def told(self, now: datetime) -> str:
        """The status in words, with the command that helps."""
        who = "no process keeps this database" if self.holder is None else f"{self.holder.rpartition(' ')[0]} acts"
        if self.since is not None and self.since <= now:
            who += f" for {duration(now - self.since)}"
        last = [f"{duty} {duration(now - at)} ago" for duty, at in self.done.items() if at <= now]
        told = [who, f"last {', '.join(last)}" if last else "nothing done yet"]
        if self.overdue:
            return "; ".join([*told, f"due: {', '.join(self.overdue)}; run: consensus-orm keep"])
        later = [(at, duty) for duty, at in self.due.items() if at > now]
        return "; ".join([*told, *(f"next {duty} in {duration(at - now)}" for at, duty in sorted(later)[:1])])


def look(uow: Transaction, phase: Phase) -> KeeperStatus | None:
    """Which process keeps the database; None where none ever did and none has to, because there are not two sides."""
    two_sides = phase.writes_normalized and phase.has_legacy
    rows = uow._rows(_ROW) if table_of(KeeperState).name in uow.catalog.tables(uow) else []
    if not rows and not two_sides:
        return None
    now, last = uow.now, done(uow) if rows else {}
    holder, until = rows[0][:2] if rows else (None, None)
    acts = holder is not None and until is not None and when(until) >= now
    intervals = {duty: getattr(uow.settings, f"keep_{duty}") for duty in DUTIES if duty != "verify" or two_sides}
    due = {duty: due_at(last.get(duty), each, now) for duty, each in intervals.items() if each}
    return KeeperStatus(
        holder=holder if acts else None,
        since=when(began) if acts and (began := audit.newest(uow, BEGAN)) else None,
        done={duty: when(at) for duty, at in last.items()},
        due=due,
        overdue=[duty for duty, at in due.items() if at <= now] if two_sides and not acts else [],
    )


def due_at(last: int | None, interval: timedelta, now: datetime) -> datetime:
    """When a duty is due that was last done at a time in ms: now, where it never was or that time cannot be."""
    return when(last) + interval if last is not None and credible(last, now) else now


def begin(uow: Transaction) -> None:
    """Note in the audit that this process looks after the database from now on."""
    audit.add(uow, BEGAN)


def add_row(uow: Transaction) -> None:
    """Make the row, if there is none."""
    uow._execute(_ADD)


def done(uow: Transaction) -> dict[str, int]:
    """When each duty was last done, in ms since 1970 UTC; those that never were are left out."""
    rows = uow._rows(_ROW)
    return {duty: at for duty, at in zip(DUTIES, rows[0][2:], strict=True) if at is not None} if rows else {}


def note(uow: Transaction, duty: str) -> None:
    """Note that a duty is done now."""
    uow._execute(_noted(duty), {"at": milliseconds(uow)})


@cache
def _noted(duty: str) -> ClauseElement:
    return update(KeeperState).where(KeeperState.id == ONLY).values({DUTIES[duty]: bindparam("at")})
