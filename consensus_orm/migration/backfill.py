"""The backfill: rows that were there before the dual write are carried, in chunks, beside live writers.

Each chunk is one short transaction of set-based SQL by key, and its checkpoint is committed with it. Whatever
kills the backfill, the next one goes on behind the last finished chunk. Running it twice changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from consensus_orm import errors, ledger
from consensus_orm.mapping import Pair
from consensus_orm.migration.carry import CHANGES_IN_ONE_TRANSACTION, carry, drain, reject_unequal
from consensus_orm.migration.progress import Progress, Watch
from consensus_orm.phase import Phase, Side
from consensus_orm.telemetry.events import BackfillEvent
from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["BackfillReport", "backfill", "is_finished", "require_dual_write"]

LOCK_GOAL = 0.025
"""Seconds a chunk aims to hold the write lock; half of what a writer should ever wait for it."""


@dataclass(frozen=True)
class BackfillReport:
    """What a backfill did: rows looked at in this run, rejects it added, changes it adopted, seconds."""

    rows: int
    rejects: int
    adopted: int
    seconds: float


def backfill(unit_of_work: Callable[[], UnitOfWork], progress: Watch = None) -> BackfillReport:
    """Carry every legacy row that the normalized side does not have.

    Args:
        unit_of_work: Opens a writing unit of work.
        progress: Called after each chunk.

    Returns:
        What was done.

    Raises:
        WrongPhaseError: Both sides are not being written, so rows would be missed.
    """
    started, rows, rejects, adopted = time.monotonic(), 0, 0, 0
    with unit_of_work() as uow:
        require_dual_write(uow.phase)
        pairs = uow.statements.mapping.pairs
    for pair in pairs:
        chunk = _Chunks(unit_of_work, pair, progress)
        while chunk.next():
            pass
        rows, rejects, adopted = rows + chunk.rows, rejects + chunk.rejects, adopted + chunk.adopted
    while drained := _drain_once(unit_of_work):
        adopted += drained
    return BackfillReport(rows, rejects, adopted, time.monotonic() - started)


def _drain_once(unit_of_work: Callable[[], UnitOfWork]) -> int:
    with unit_of_work() as uow:
        require_dual_write(uow.phase)
        return drain(uow)


def require_dual_write(phase: Phase) -> None:
    """Refuse a phase in which rows would be missed, or have nowhere to go."""
    if not phase.compares:
        hint = "run: consensus-orm advance dual_write" if phase < Phase.DUAL_WRITE else "there is nothing to do"
        raise errors.WrongPhaseError(
            f"the backfill runs while both sides are written, and the phase is {phase.name}",
            hint=hint,
            phase=phase,
        )


def is_finished(uow: UnitOfWork, pair: Pair) -> bool:
    """Whether the backfill of a pair has come to its end."""
    rows = uow._rows("SELECT finished FROM consensus_orm_backfill WHERE pair = ?", (pair.name,))
    return bool(rows and rows[0][0])


class _Chunks:
    """The chunks of one pair, as many rows in each as fit the time a writer may be kept waiting."""

    def __init__(
        self,
        unit_of_work: Callable[[], UnitOfWork],
        pair: Pair,
        progress: Watch,
    ) -> None:
        self.unit_of_work = unit_of_work
        self.pair = pair
        self.progress = progress
        self.rows = self.rejects = self.adopted = 0
        self.size = 0
        self.started = time.monotonic()
        self.total: int | None = None

    def next(self) -> bool:
        """Carry one more chunk; False where there is none."""
        with self.unit_of_work() as uow:
            require_dual_write(uow.phase)
            begun = time.monotonic()
            # First what others wrote: a row that one of them deleted would look like one to carry.
            drained = drain(uow)
            self.adopted += drained
            if drained >= CHANGES_IN_ONE_TRANSACTION:
                return True
            before = self.rows
            done, more = self._carry(uow)
            self.size = self._fitting(uow, time.monotonic() - begun)
            pause = uow.settings.chunk_pause.total_seconds()
            if self.progress is not None and self.total is None:  # counted once: it costs a look at every row
                self.total = uow._rows(uow.statements[self.pair].count(Side.LEGACY, ()))[0][0]
        if more:
            uow._tell(BackfillEvent(self.pair.name, self.rows - before))
        if self.progress is not None and self.total is not None:
            rate = self.rows / max(time.monotonic() - self.started, 1e-6)
            self.progress(Progress(self.pair.name, min(done, self.total), self.total, rate))
        if more and pause:
            time.sleep(pause)
        return more

    def _fitting(self, uow: UnitOfWork, seconds: float) -> int:
        if seconds > 2 * LOCK_GOAL:
            return max(self.size // 2, 1)
        return min(self.size * 2, uow.settings.chunk_rows) if seconds < LOCK_GOAL / 2 else self.size

    def _carry(self, uow: UnitOfWork) -> tuple[int, bool]:
        """Carry a chunk and move the checkpoint, in the same transaction."""
        at = ledger.milliseconds(uow)
        self.size = self.size or uow.settings.chunk_rows
        known = uow._rows(
            "SELECT last_key, rows, finished FROM consensus_orm_backfill WHERE pair = ?", (self.pair.name,)
        )
        after, done, finished = known[0] if known else (None, 0, 0)
        if finished:
            return done, False
        bounds = uow.statements[self.pair].next_chunk(Side.LEGACY)[0 if after is None else 1]
        first, last, count = uow._rows(bounds, {"_after": after, "_rows": self.size})[0]
        if count:
            self.rejects += carry_range(uow, self.pair, first, last)
        self.rows += count
        uow._execute(
            "INSERT INTO consensus_orm_backfill (pair, last_key, rows, finished, started_at, updated_at)"
            " VALUES (:pair, :last, :rows, :finished, :at, :at) ON CONFLICT (pair) DO UPDATE"
            " SET last_key = :last, rows = :rows, finished = :finished, updated_at = :at",
            {
                "pair": self.pair.name,
                "last": last if count else after,
                "rows": done + count,
                "finished": int(not count),
                "at": at,
            },
        )
        return done + count, bool(count)


def carry_range(uow: UnitOfWork, pair: Pair, first: Any, last: Any) -> int:
    """Carry the legacy rows of a range of keys, and compare them.

    Returns:
        How many became rejects.
    """
    parameters = {"_first": first, "_last": last}
    sql, parent = uow.statements[pair], uow.statements.of_parent(pair)
    mark = ledger.last_change(uow)
    for statement in sql.backfill:
        uow._execute(statement, parameters)
    if parent is not None:
        for statement in parent.refresh_in_range(sql):
            uow._execute(statement, parameters)
    # What a trigger of somebody else did to a row meanwhile is no write to adopt: the legacy side decides.
    ledger.forget_changes(uow, after=mark)
    unequal = [key for (key,) in uow._rows(sql.unequal_in_range(), parameters)]
    known = set_aside(uow, pair, Side.LEGACY)
    stale = [key for key in unequal if key not in known]
    carry(uow, pair, stale, Side.NORMALIZED)
    return reject_unequal(uow, pair, stale, Side.LEGACY)


def set_aside(uow: UnitOfWork, pair: Pair, side: Side) -> set[Any]:
    """Keys of the rejects, open or accepted, that stand on one side alone: nothing to compare them with.

    Args:
        uow: Sees both sides.
        pair: The pair of the rows.
        side: The side that has them.
    """
    table = pair.legacy_table if side is Side.LEGACY else pair.table
    sql = "SELECT key FROM consensus_orm_rejects WHERE pair = ? AND table_name = ? AND state <> 'resolved'"
    keys = {key for (key,) in uow._rows(sql, (pair.name, table.name)) if key is not None}
    return {key for key in keys if ledger.differences(uow, pair, key) == [(None, f"missing_{side.other}")]}
