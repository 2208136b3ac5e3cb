"""What others still use of the legacy tables, and which of it an operator has accepted."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy import bindparam, delete, insert, select

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.formats import count, series
from consensus_orm.ledgers import audit, reads
from consensus_orm.ledgers.binding import bound, milliseconds
from consensus_orm.models.control import Acceptance
from consensus_orm.phase import Phase
from consensus_orm.times import when

__all__ = ["READS", "DependencyEntry", "accept", "found"]

READS = "reads"
"""The kind of what is known only by the counters of a server: that a table is read."""

_ACCEPTED = select(Acceptance.kind, Acceptance.name, Acceptance.table_name, Acceptance.seen, Acceptance.reason)
_FORGET = delete(Acceptance).where(
    *(table_of(Acceptance).c[name] == bindparam(name) for name in ("kind", "name", "table_name"))
)
_ADD = insert(Acceptance).inline().values(**bound("kind", "name", "table_name", "seen", "reason", "at", "by"))


class DependencyEntry(BaseModel):
    """What another program has made upon a legacy table, or that it reads one which is frozen."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    kind: str
    """view, rule, publication, ... as the manual of the database calls it; or reads."""
    name: str
    """Its name, with its schema where it has one; for reads, the table."""
    table: str
    shuts: Phase
    """It keeps the gate to this phase shut, and those to the phases after it, until it is gone or accepted."""
    remedy: str = ""
    """What has to be done about it where it cannot be accepted."""
    grants: tuple[str, ...] = ()
    """For a role, the statements that give it the rights that it lacks."""
    reads: int = 0
    """How often the table was read by others since it was frozen."""
    last_read: datetime | None = None
    """When it was read last, where the server tells."""
    by: str = ""
    """The roles whose queries name the table, where pg_stat_statements knows them."""
    accepted: str | None = None
    """The reason for which it was accepted."""

    @property
    def told(self) -> str:
        """What it is, in words."""
        if self.grants:
            return f"role {self.name} may use {self.table}, and lacks rights besides: {'; '.join(self.grants)}"
        if self.kind != READS:
            return f"{self.kind} {self.name} depends on {self.table}"
        last = "" if self.last_read is None else f", last at {self.last_read:%Y-%m-%d %H:%M:%S} UTC"
        by = f"; pg_stat_statements has queries that name it of {self.by}" if self.by else ""
        return f"other programs have read {self.table} {count(self.reads, 'time')} since it was frozen{last}{by}"


def found(uow: Transaction) -> list[DependencyEntry]:
    """All that the catalog and the counters of the database know, with what was accepted."""
    if not (uow.prepared is False or uow.phase.has_legacy):
        return []
    there = uow.catalog.tables(uow)
    accepted = {}
    if table_of(Acceptance).name in there:
        accepted = {(kind, name, table): rest for kind, name, table, *rest in uow._rows(_ACCEPTED)}
    entries = []
    for each in uow.catalog.dependencies(uow):
        _, reason = accepted.get((each.kind, each.name, each.table), (0, None))
        entries.append(DependencyEntry(**each._asdict(), accepted=reason))
    for read in reads.look(uow) if uow.prepared and uow.phase.freezes_legacy else ():
        seen, reason = accepted.get((READS, read.table, read.table), (0, None))
        entries.append(
            DependencyEntry(
                kind=READS,
                name=read.table,
                table=read.table,
                shuts=Phase.CONTRACT,
                reads=read.scans,
                last_read=None if read.last is None else when(read.last),
                by=uow.catalog.readers(uow, read.table),
                accepted=reason if seen >= read.scans else None,
            )
        )
    return entries


def accept(uow: Transaction, names: Collection[str], reason: str) -> list[DependencyEntry]:
    """Accept dependencies, all of them or none.

    Args:
        uow: Holds the write lock.
        names: Their names, each alone or behind its kind.
        reason: Why they are in nobody's way.

    Raises:
        InvalidValueError: There is none of a name, or it cannot be accepted.
    """
    entries = found(uow)
    named = {name: [e for e in entries if name in (e.name, f"{e.kind} {e.name}")] for name in names}
    if absent := [f"{name!r:.100}" for name, those in named.items() if not those]:
        raise errors.InvalidValueError(
            f"nothing named {series(absent)} depends on a legacy table",
            hint="nothing was done; give a name as it is listed: consensus-orm dependencies",
            field="names",
        )
    chosen = list(dict.fromkeys(each for those in named.values() for each in those))
    for each in chosen:
        if each.remedy:
            raise errors.InvalidValueError(f"{each.told}: {each.remedy}", hint=each.remedy, field="names")
    for each in chosen:
        place = {"kind": each.kind, "name": each.name, "table_name": each.table}
        uow._execute(_FORGET, place)
        facts = {"seen": each.reads, "reason": reason, "at": milliseconds(uow), "by": audit.whoami()}
        uow._execute(_ADD, place | facts)
    return chosen
