"""The flip: one short transaction in which the phase changes, and with it the triggers.

A writing unit of work holds the write lock from its first statement, and so does the flip: it waits for the writers of
the phase before it, and later writers wait for it. This is the fence.
"""

from __future__ import annotations

from consensus_orm import errors
from consensus_orm.databases import guard_record, state
from consensus_orm.ledgers import audit, backfill_progress, control, reads
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.migration.demands import Demands
from consensus_orm.phase import Phase
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["expect", "flip"]


def expect(uow: UnitOfWork, phase: Phase) -> None:
    """Refuse to go on where another process has changed the phase."""
    if uow.phase is not phase:
        raise errors.PhaseChangedError(
            f"the phase is {uow.phase.name} by now, not {phase.name}", expected=phase, phase=uow.phase
        )


def flip(
    uow: UnitOfWork, to: Phase, *, action: str, reason: str | None, forced: bool = False, **detail: object
) -> None:
    """Change the phase with its triggers, sequences and demands, and add an entry to the audit.

    Args:
        uow: Holds the write lock; it is the last thing this unit of work does.
        to: The next phase.
        action: advance or rollback.
        reason: Why, for the audit.
        forced: Whether waiting was skipped.
        **detail: Facts for the audit; no contents of rows.

    Raises:
        GateClosedError: Changes of phase are on hold.
    """
    if to.writes_normalized:
        there = {name.lower() for name in uow.catalog.tables(uow)}
        missing = [table for table in uow.statements.moves.originals if table.name.lower() not in there]
        uow.catalog.create(uow, missing)
    guard_record.install(uow, to)
    _require_released(uow, to)
    if to.has_legacy:
        uow.catalog.level_sequences(uow)
        uow.catalog.legacy.remember(uow)
    reads.begin(uow, to)
    if not to.writes_normalized:
        backfill_progress.forget(uow)  # from now on legacy rows are written without their counterparts
    state.turn_epoch(
        uow,
        phase=to.value,
        since=milliseconds(uow),
        mapping=guard_record.made_from(uow, to),
        step=None,
        **Demands.of(uow.settings, to).stored(),
    )
    audit.add(uow, action, to=to, reason=reason, forced=forced, **detail)


def _require_released(uow: UnitOfWork, to: Phase) -> None:
    """Refuse every change of phase, in either direction, until an operator releases it.

    Raises:
        GateClosedError: Changes of phase are on hold.
    """
    if (why := control.held(uow)) is not None:
        reason = f"{why}; run: {control.HOLD}"
        raise errors.GateClosedError(
            f"the gate to {to.name} is shut", hint=reason, reasons=[reason], phase=uow.phase, to=to
        )
