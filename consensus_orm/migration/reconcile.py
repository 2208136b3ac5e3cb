"""Reconcile: repair the side that is not the source of truth, adopt what only the other side has.

A row that another program wrote is carried from where it was written. A row that differs without anybody
having noted a write is made what the truth says. A row that stands on one side only came from somebody:
it is carried to the other side, never deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from consensus_orm import ledger
from consensus_orm.mapping import Pair
from consensus_orm.migration.carry import CHANGES_IN_ONE_TRANSACTION, carry, drain, noted, reject_unequal
from consensus_orm.migration.pace import Pace, catch_up
from consensus_orm.migration.progress import Watch
from consensus_orm.migration.units import Units
from consensus_orm.migration.verify import Seen, require_epoch, scan
from consensus_orm.phase import Side
from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["ReconcileReport", "Repair", "reconcile", "repair_open"]

KEYS_IN_ONE_TRANSACTION = 200


@dataclass(frozen=True)
class Repair:
    """One thing that reconcile does, or would do.

    Attributes:
        pair: The pair, or the name of a parent table.
        key: The key of the row.
        action: carry, adopt, or derive.
        source: The side it is carried from.
    """

    pair: str
    key: Any
    action: str
    source: Side


@dataclass(frozen=True)
class ReconcileReport:
    """What reconcile did, or would do.

    Attributes:
        dry_run: Whether nothing was written.
        adopted: Writes of other programs that were carried.
        repairs: Rows that were made equal.
        rejects: Rows that could not be.
    """

    dry_run: bool
    adopted: int
    repairs: tuple[Repair, ...]
    rejects: int


def reconcile(
    reading: Units,
    writing: Units,
    *,
    dry_run: bool = False,
    progress: Watch = None,
) -> ReconcileReport:
    """Make both sides equal.

    Args:
        reading: Opens a read-only unit of work.
        writing: Opens a writing one.
        dry_run: Only tell what would be done.
        progress: Called after each chunk of the comparison.

    Returns:
        What was done.

    Raises:
        WrongPhaseError: There are no two sides.
    """
    if dry_run:
        seen = scan(reading, progress)
        with reading() as uow:
            waiting = uow._rows("SELECT count(*) FROM consensus_orm_changes")[0][0] if uow.phase.compares else 0
            return ReconcileReport(True, waiting, tuple(_planned(uow, seen)), 0)
    adopted = catch_up(writing, _drained)
    seen = reading.repeat(lambda: scan(reading, progress))
    return _repair(writing, seen, adopted)


def _drained(uow: UnitOfWork, limit: int = CHANGES_IN_ONE_TRANSACTION) -> int:
    return drain(uow, limit=limit) if uow.phase.compares else 0


def _planned(uow: UnitOfWork, seen: Seen) -> Iterator[Repair]:
    for pair in uow.statements.mapping.pairs:
        for key in seen.doubtful[pair.name]:
            source = _source(uow, pair, key)
            yield Repair(pair.name, key, "carry" if source is uow.phase.truth else "adopt", source)
    for parent, keys in seen.parents.items():
        for key in keys:
            yield Repair(parent, key, "derive", Side.NORMALIZED)


def _source(uow: UnitOfWork, pair: Pair, key: Any) -> Side:
    """The truth, or the only side that has a row which we did not delete."""
    if ledger.was_deleted(uow, pair, key):
        return uow.phase.truth
    for _, kind in ledger.differences(uow, pair, key):
        if kind == f"missing_{uow.phase.truth}":
            return uow.phase.truth.other
    return uow.phase.truth


def _repair(writing: Units, seen: Seen, adopted: int) -> ReconcileReport:
    repairs: list[Repair] = []
    rejects, pace = 0, Pace(KEYS_IN_ONE_TRANSACTION)
    for name, keys in seen.doubtful.items():
        start = 0
        while start < len(keys):
            done, new = writing.run(partial(_repair_chunk, seen=seen, name=name, start=start, pace=pace))
            pace.end()
            repairs += done
            rejects, start = rejects + new, start + pace.size
            pace.rest()
    last = writing.run(partial(_finish, seen=seen, adopted=adopted, repaired=len(repairs), rejects=rejects))
    return ReconcileReport(False, adopted + last.adopted, (*repairs, *last.repairs), rejects + last.rejects)


def _repair_chunk(uow: UnitOfWork, *, seen: Seen, name: str, start: int, pace: Pace) -> tuple[list[Repair], int]:
    require_epoch(uow, seen)
    pace.begin(uow)
    return repair_rows(uow, uow.statements.mapping[name], seen.doubtful[name][start : start + pace.size])


def _finish(uow: UnitOfWork, *, seen: Seen, adopted: int, repaired: int, rejects: int) -> ReconcileReport:
    """Repair the parents and whatever is open besides, and keep in the audit what was done."""
    require_epoch(uow, seen)
    late = _drained(uow)
    repairs: list[Repair] = []
    for parent, keys in seen.parents.items():
        for statement in uow.statements.parents[parent].settle:
            uow._execute(statement, {"_keys": json.dumps(keys)})
        repairs += [Repair(parent, key, "derive", Side.NORMALIZED) for key in keys]
    new = repair_open(uow)
    ledger.audit(uow, "reconcile", adopted=adopted + late, repaired=repaired + len(repairs), rejects=rejects + new)
    return ReconcileReport(False, late, tuple(repairs), new)


def repair_rows(uow: UnitOfWork, pair: Pair, keys: list[Any]) -> tuple[list[Repair], int]:
    """Make rows equal on both sides.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys; rows that agree by now are left alone.

    Returns:
        The repairs, and how many rows became rejects.
    """
    by_source: dict[Side, list[Any]] = {side: [] for side in Side}
    if uow.phase.compares:  # what another program has written since is adopted, not repaired
        later = noted(uow, pair, keys)
        keys = [key for key in keys if key not in later]
    for key in keys:
        if ledger.differences(uow, pair, key):
            by_source[_source(uow, pair, key)].append(key)
    repairs, rejects = [], 0
    for source, found in by_source.items():
        with uow.catalog.legacy_unfrozen(uow) if source is Side.NORMALIZED else nullcontext():
            carry(uow, pair, found, source.other)
        rejects += reject_unequal(uow, pair, found, source)
        action = "carry" if source is uow.phase.truth else "adopt"
        repairs += [Repair(pair.name, key, action, source) for key in found]
    unequal = {key for found in by_source.values() for key in found if ledger.differences(uow, pair, key)}
    ledger.settle(uow, pair, set(keys) - unequal, "repaired", "carried from the source of truth")
    ledger.settle(uow, pair, unequal, "rejected", "it cannot be carried; see the rejects")
    return repairs, rejects


def repair_open(uow: UnitOfWork) -> int:
    """Repair the rows of all open mismatches; those that agree by now are settled.

    Args:
        uow: Holds the write lock.

    Returns:
        How many rows became rejects.
    """
    sql = "SELECT DISTINCT key FROM consensus_orm_mismatches WHERE pair = ? AND state IN ('found', 'confirmed')"
    rejects = 0
    for pair in uow.statements.mapping.pairs:
        keys = [key for (key,) in uow._rows(sql, (pair.name,)) if key is not None]
        rejects += repair_rows(uow, pair, keys)[1]
    uow._execute(  # entries that stand for many rows, all of which were looked at by now
        "UPDATE consensus_orm_mismatches SET state = 'repaired', settled_at = ? WHERE key IS NULL"
        " AND state IN ('found', 'confirmed')",
        (ledger.milliseconds(uow),),
    )
    return rejects
