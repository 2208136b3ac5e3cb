"""Who still reads the frozen legacy tables, by the counters of a server.

The server counts the scans of each table, whoever makes them, and a connection reports its scans when it is idle, up to
about ten seconds later. So reads of this package are counted within its own transactions, and taken off. From version
16 on the server also tells when a table was read last: counts that grew without a later read stem from earlier reads.
On version 15, reads that were made just before the tables were frozen may be counted as those of others.

SQLite has no such counters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, delete, insert, select, update

from consensus_orm.databases.base import ReadCounter, Transaction
from consensus_orm.databases.engine import source_of
from consensus_orm.declaration.attributes import table_of
from consensus_orm.ledgers.binding import bound
from consensus_orm.models.control import ReadCount
from consensus_orm.phase import Phase, Side

__all__ = ["Reads", "begin", "expect", "look", "note"]

GRACE = 12_000
"""Milliseconds for which the server may learn of reads from before the tables were frozen: a connection that is idle
reports after ten seconds."""

MARGIN = 250
"""Milliseconds that a transaction of this package may take to end, after it has counted what it read itself."""


class Reads(NamedTuple):
    """Reads of a legacy table by other programs since it was frozen.

    Attributes:
        table: The table.
        scans: How many there were.
        last: When the last one was, ms; None where the server does not tell.
    """

    table: str
    scans: int
    last: int | None


class _Kept(NamedTuple):
    """A row of the ledger: the columns of `models.control.ReadCount`."""

    table_name: str
    counted: int
    own: int
    others: int
    at: int
    last: int | None


_ALL = select(*(table_of(ReadCount).c[name] for name in _Kept._fields)).order_by(ReadCount.table_name)
_ALL_LOCKED = _ALL.with_for_update()
_FORGET = delete(ReadCount)
_CHANGE = (
    update(ReadCount).values(**bound(*_Kept._fields[1:])).where(table_of(ReadCount).c.table_name == bindparam("table"))
)
_KEEP = insert(ReadCount).inline().values(**bound(*_Kept._fields))


def begin(uow: Transaction, to: Phase) -> None:
    """Begin to count where a phase freezes the legacy tables, and forget what was counted where it does not."""
    uow._execute(_FORGET)
    for counter in uow.catalog.reads(uow) if to.freezes_legacy else ():
        _keep(uow, _Kept(counter.table, counter.scans, 0, 0, counter.now + GRACE, None))


def look(uow: Transaction) -> list[Reads]:
    """The reads of other programs up to now, of each table that has any; writes nothing."""
    pending = source_of(uow.engine).own_reads
    found = [_grown(kept, counter, pending[counter.table]) for kept, counter in _counted(uow)]
    return [Reads(each.table_name, each.others, each.last) for each in found if each.others]


def note(uow: Transaction) -> None:
    """Store the reads up to now, and subtract those of this transaction from what the server will count."""
    if not (uow.prepared and uow.phase.has_legacy and uow.phase.truth is Side.NORMALIZED):
        return
    own = uow.catalog.own_reads(uow)  # has them reported at once, also before the tables are frozen
    if not uow.phase.freezes_legacy:
        return
    if uow.read_only:
        uow.catalog.expect_reads(uow, own)
        return
    pending = source_of(uow.engine).own_reads
    for kept, counter in _counted(uow, _ALL_LOCKED):  # else it would forget what another process tells meanwhile
        more = own.get(counter.table, 0)
        found = _grown(kept, counter, pending.pop(counter.table, 0))
        at = max(found.at, counter.now + MARGIN * bool(more))
        _keep(uow, found._replace(counted=counter.scans, own=found.own + more, at=at))


def expect(uow: Transaction) -> None:
    """Subtract the reads of a transaction that will be rolled back from what the server will count."""
    if uow.prepared and uow.phase.freezes_legacy:
        uow.catalog.expect_reads(uow, uow.catalog.own_reads(uow))


def _counted(uow: Transaction, every: Select[Any] = _ALL) -> list[tuple[_Kept, ReadCounter]]:
    """What was kept of each legacy table, and what is counted now."""
    counters = uow.catalog.reads(uow)
    if not counters or table_of(ReadCount).name not in uow.catalog.tables(uow):
        return []
    kept = {row[0]: _Kept(*row) for row in uow._rows(every)}
    # A database that an earlier release froze has no rows: reads count from the first look on.
    return [(kept.get(each.table, _Kept(each.table, each.scans, 0, 0, each.now, None)), each) for each in counters]


def _grown(kept: _Kept, counter: ReadCounter, pending: int) -> _Kept:
    """What is to be kept after a look; `pending` reads of this package are not kept yet."""
    # A smaller count is that of a server which lost its statistics in a crash, or was told to.
    grown = counter.scans - kept.counted if counter.scans >= kept.counted else counter.scans
    own = kept.own + pending
    left = kept._replace(own=max(own - grown, 0))
    if (counter.last if counter.last is not None else counter.now) <= kept.at:
        return left  # read before the last look, and reported since
    others = max(grown - own, 0)
    return left._replace(others=kept.others + others, last=counter.last) if others else left


def _keep(uow: Transaction, kept: _Kept) -> None:
    # Never deleted and inserted: who waits meanwhile to tell of a read would find no row.
    table, *values = kept
    if not uow._execute(_CHANGE, {"table": table, **dict(zip(kept._fields[1:], values, strict=True))}).rowcount:
        uow._execute(_KEEP, kept._asdict())
