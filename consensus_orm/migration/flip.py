"""The flip: one short transaction in which the phase changes, and with it what the triggers do.

A writing unit of work holds the write lock from its first statement, and so does the flip: it waits for the
writers of the phase before it, and they for it. This is the fence.
"""

from __future__ import annotations

from typing import Any

from consensus_orm.databases import guard_record, state
from consensus_orm.ledgers import backfill_progress, mismatches
from consensus_orm.migration.demands import Demands
from consensus_orm.phase import Phase
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["flip"]


def flip(uow: UnitOfWork, to: Phase, *, action: str, reason: str | None, forced: bool = False, **detail: Any) -> None:
    """Change the phase, the triggers, the sequences, and what the phase demands; and say so in the audit.

    Args:
        uow: Holds the write lock; it is the last thing this unit of work does.
        to: The phase to come.
        action: advance or rollback.
        reason: Why, for the audit.
        forced: Whether waiting was skipped.
        **detail: Facts for the audit; no contents of rows.
    """
    if to.writes_normalized:
        there = uow.catalog.tables(uow)
        uow.catalog.create(uow, [table for table in uow.statements.mapping.originals if table.name not in there])
    guard_record.install(uow, to)
    if to.has_legacy:
        uow.catalog.level_sequences(uow)
        uow.catalog.legacy.remember(uow)
    if not to.writes_normalized:
        backfill_progress.forget(uow)  # legacy rows will come that nobody carries
    state.turn_epoch(
        uow,
        phase=to.value,
        since=mismatches.milliseconds(uow),
        mapping=guard_record.made_from(uow, to),
        step=None,
        **Demands.of(uow.settings, to).stored(),
    )
    mismatches.audit(uow, action, to=to, reason=reason, forced=forced, **detail)
