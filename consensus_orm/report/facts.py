"""The facts of a report: what the database stores about its migration, read in one snapshot, and timed reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from consensus_orm.databases.statistics import DatabaseStats
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import certificates, entries, samples
from consensus_orm.ledgers.certificates import Seen
from consensus_orm.ledgers.entries import HistoryEntry, MismatchEntry, RejectEntry
from consensus_orm.migration.status import MigrationStatus
from consensus_orm.migration.status import collect as collect_status
from consensus_orm.models.control import BackfillCheckpoint, Sample
from consensus_orm.phase import Side
from consensus_orm.rehearsal import Evidence, Latency, find
from consensus_orm.statements.rendering import parameter, quoted
from consensus_orm.times import when
from consensus_orm.unit_of_work.unit import UnitOfWork

if TYPE_CHECKING:
    from consensus_orm.store import Store

__all__ = ["Backfilled", "Facts", "ReadTimes", "TableUse", "collect"]

SAMPLES = 60
"""Reads timed for each pair, side and kind."""

LISTED = 100
"""The highest number of rows of a timed list."""


@dataclass(frozen=True)
class TableUse:
    """Rows of a table and its bytes, indexes included; `bytes` is None if SQLite cannot tell."""

    name: str
    side: Side
    rows: int
    bytes: int | None


@dataclass(frozen=True)
class Backfilled:
    """The checkpoint of a pair's backfill."""

    pair: str
    rows: int
    finished: bool
    started: datetime
    updated: datetime
    of: int | None
    """The legacy rows there are now; None where their table does not exist."""

    @property
    def rate(self) -> float | None:
        """Rows per second from the first chunk to the last; None if both have the same time."""
        seconds = (self.updated - self.started).total_seconds()
        return self.rows / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None where that is not known."""
        if self.finished or self.of is None or not self.rate:
            return None
        return max(self.of - self.rows, 0) / self.rate


@dataclass(frozen=True)
class ReadTimes:
    """Reads of one kind on one side, timed for this report."""

    pair: str
    kind: str
    side: Side
    latency: Latency


@dataclass(frozen=True)
class Facts:
    """All facts of a report."""

    database: str
    at: datetime
    mapping: str
    status: MigrationStatus
    stats: DatabaseStats | None
    tables: list[TableUse]
    history: list[HistoryEntry]
    mismatches: list[MismatchEntry]
    rejects: list[RejectEntry]
    backfills: list[Backfilled]
    certificates: list[Seen]
    reads: list[ReadTimes]
    """Empty where they were not timed."""
    samples: list[samples.Entry]
    evidence: Evidence | None


def collect(store: Store, *, timed: bool = True) -> Facts:
    """Read the facts of a store; writes nothing.

    Args:
        store: The store.
        timed: Whether to time reads, too, which takes about a second.
    """
    exists = store.path is None or store.path.exists()
    evidence = find(store._units)
    stats = store.maintenance.stats() if exists and store.path is not None else None
    return store._units.look(lambda uow: _seen(uow, store, stats, evidence, timed=timed))


def _seen(
    uow: UnitOfWork, store: Store, stats: DatabaseStats | None, evidence: Evidence | None, *, timed: bool
) -> Facts:
    there = uow.catalog.tables(uow)
    status = collect_status(uow, store.initial_phase)
    return Facts(
        database=store.name,
        at=uow.now,
        mapping=uow.statements.fingerprint,
        status=status,
        stats=stats,
        tables=list(_tables(uow)),
        history=entries.history(uow),
        mismatches=entries.mismatches(uow, everything=True),
        rejects=entries.rejects(uow, everything=True),
        backfills=_backfills(uow, {pair.name: pair.legacy_rows for pair in status.pairs}),
        certificates=certificates.every(uow),
        reads=[times for pair in uow.statements.moves if timed for times in _time_reads(uow, pair)],
        samples=samples.listed(uow) if table_of(Sample).name in there else [],
        evidence=evidence,
    )


def _tables(uow: UnitOfWork) -> Iterator[TableUse]:
    there = {name.lower() for name in uow.catalog.tables(uow)}
    sizes = uow.catalog.sizes(uow)
    moves = uow.statements.moves
    wanted = [(pair.legacy_name, Side.LEGACY) for pair in moves]
    tables = [parent.table for parent in moves.parents] + [pair.table for pair in moves]
    wanted += [(table.name, Side.NORMALIZED) for table in tables]
    for name, side in wanted:
        if name.lower() in there:
            rows = uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0][0]
            yield TableUse(name, side, rows, sizes.get(name.lower()))


_BACKFILLS = select(table_of(BackfillCheckpoint)).order_by(BackfillCheckpoint.pair)


def _backfills(uow: UnitOfWork, rows: dict[str, int | None]) -> list[Backfilled]:
    found = uow._rows(_BACKFILLS)
    return [Backfilled(pair, n, bool(done), when(a), when(b), rows.get(pair)) for pair, _, n, done, a, b in found]


# Reads, timed now -----------------------------------------------------------------------------------------


def _time_reads(uow: UnitOfWork, pair: Move) -> Iterator[ReadTimes]:
    """Time the same reads on both sides in turn, under the same caches and the same load."""
    if not _comparable(uow, pair):
        return
    sql = uow.statements[pair]
    keys = _sample(uow, pair)
    kinds: dict[str, tuple[Callable[[Side], str], list[dict[str, Any]]]] = {
        "by key": (sql.get, [{"_key": key} for key in keys])
    }
    if names := _shared(pair):
        filters = _filters(uow, pair, keys, names)
        kinds[f"by {', '.join(names)}"] = (lambda side: sql.read(side, names, limited=True), filters)
    for kind, (statement, parameters) in kinds.items():
        took: dict[Side, list[float]] = {side: [] for side in Side}
        for each in parameters:
            for side in Side:
                started = time.perf_counter()
                uow._rows(statement(side), each)
                took[side].append(time.perf_counter() - started)
        for side, seconds in took.items():
            # The first read of a kind prepares its statement.
            if len(seconds) > 1:
                yield ReadTimes(pair.name, kind, side, Latency.of(seconds[1:]))


def _comparable(uow: UnitOfWork, pair: Move) -> bool:
    """Whether both sides hold rows."""
    if not uow.prepared or not uow.phase.has_legacy:
        return False
    sides = (quoted(pair.legacy_name), quoted(pair.table.name))
    return all(uow._rows(f"SELECT 1 FROM {table} LIMIT 1") for table in sides)


def _sample(uow: UnitOfWork, pair: Move) -> list[Any]:
    legacy, key = quoted(pair.legacy_name), ", ".join(map(quoted, pair.legacy_keys))
    told = uow.statements.rendering.render(pair.key_in(pair.legacy_table, Side.LEGACY))
    total = uow._rows(f"SELECT count(*) FROM {legacy}")[0][0]
    every = max(total // SAMPLES, 1)
    numbered = f"SELECT {told} AS k, row_number() OVER (ORDER BY {key}) AS n FROM {legacy}"
    sql = f"SELECT k FROM ({numbered}) AS numbered WHERE n % ? = 0 LIMIT ?"
    keys = [found for (found,) in uow._rows(sql, (every, SAMPLES))]
    # Few rows are read repeatedly: the cache is warm in any case.
    return (keys * SAMPLES)[:SAMPLES]


def _shared(pair: Move) -> tuple[str, ...]:
    """The legacy columns that all rows of the first parent share, by which lists are filtered."""
    identity = {parent.standing(of) for parent in pair.parents[:1] for of in parent.identity}
    return tuple(name for name, of in pair.carried.items() if of in identity)


def _filters(uow: UnitOfWork, pair: Move, keys: list[Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    sql, filters = uow.statements[pair].get(Side.LEGACY), []
    for key in keys:
        row = dict(zip(pair.legacy_columns, uow._rows(sql, {"_key": key})[0], strict=False))
        filters.append({parameter(name): row[name] for name in names} | {"_limit": LISTED})
    return filters
