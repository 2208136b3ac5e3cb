"""The flip: one short transaction in which the phase changes, and with it what the triggers do.

A writing unit of work holds the write lock from its first statement, and so does the flip: it waits for the
writers of the phase before it, and they for it. This is the fence.
"""

from __future__ import annotations

from typing import Any

from consensus_orm import ledger, triggers
from consensus_orm.phase import Phase
from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["flip", "install_triggers", "level_sequences", "set_sequence"]


def flip(uow: UnitOfWork, to: Phase, *, action: str, reason: str | None, forced: bool = False, **detail: Any) -> None:
    """Change the phase, the triggers, and the sequences; and say so in the audit.

    Args:
        uow: Holds the write lock; it is the last thing this unit of work does.
        to: The phase to come.
        action: advance or rollback.
        reason: Why, for the audit.
        forced: Whether waiting was skipped.
        **detail: Facts for the audit; no contents of rows.
    """
    install_triggers(uow, to)
    if to.has_legacy:
        level_sequences(uow)
    if not to.writes_normalized:
        uow._execute("DELETE FROM consensus_orm_backfill")  # legacy rows will come that nobody carries
    uow._execute(
        "UPDATE consensus_orm_state SET phase = :phase, epoch = epoch + 1, since = :at, mapping = :mapping,"
        " step = NULL",
        {"phase": to.value, "at": ledger.milliseconds(uow), "mapping": uow.statements.fingerprint},
    )
    ledger.audit(uow, action, to=to, reason=reason, forced=forced, **detail)


def install_triggers(uow: UnitOfWork, phase: Phase) -> None:
    """Replace our triggers by those of a phase."""
    for statement in triggers.drop_all([name for (name,) in uow._rows(triggers.INSTALLED)]):
        uow._execute(statement)
    for statement in triggers.for_phase(phase, uow.statements):
        uow._execute(statement)


def level_sequences(uow: UnitOfWork) -> None:
    """Let both sides go on above the highest id that either has given (rule 3)."""
    for pair in uow.statements.mapping.pairs:
        names = (pair.legacy_table.name, pair.table.name)
        given = dict(uow._rows("SELECT name, seq FROM sqlite_sequence WHERE name IN (?, ?)", names))
        for name in names:
            if given and given.get(name, -1) < max(given.values()):
                set_sequence(uow, name, max(given.values()))


def set_sequence(uow: UnitOfWork, table: str, value: int) -> None:
    """Let a table go on above an id."""
    if not uow._execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (value, table)).rowcount:
        uow._execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, value))
