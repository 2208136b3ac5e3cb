"""The gates: what must be true before a phase opens. Each reason comes with the command that would help.

A gate opens on a certificate, not on a memory. `force` skips waiting, never a gate behind which rows would be
lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from consensus_orm import ledger, phase_guards
from consensus_orm.ledgers import changes
from consensus_orm.migration.backfill import is_finished
from consensus_orm.phase import Phase, Side
from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["Obstacle", "obstacles", "soak_left"]


@dataclass(frozen=True)
class Obstacle:
    """One thing that keeps a gate shut.

    Attributes:
        text: What is missing, and what would help.
        waiting: Whether it only asks for patience, so that `force` may skip it.
    """

    text: str
    waiting: bool = False


def obstacles(uow: UnitOfWork, *, soak: bool = True) -> list[Obstacle]:
    """What keeps the gate to the next phase shut.

    Args:
        uow: Sees the state of the migration; under the lock where the flip follows.
        soak: Whether soak times count.

    Returns:
        The obstacles; empty where the gate is open.
    """
    phase = uow.phase
    found = [Obstacle(flaw.told) for flaw in phase_guards.look(uow)]
    if not phase.writes_normalized:
        found += _missing_tables(uow)
    else:
        found += _not_carried(uow)
        found += _uncertified(uow)
        found += _unsettled(uow)
    if phase.freezes_legacy:
        found += _unknown_columns(uow)
        found += _referring_tables(uow)
    if soak and (left := soak_left(uow)):
        found.append(Obstacle(f"the soak of {phase.name} lasts {_words(left)} more", waiting=True))
    return found


def soak_left(uow: UnitOfWork) -> timedelta:
    """How much longer the phase has to last; nothing where its time is over."""
    settings = uow.settings
    soaks = {
        Phase.DUAL_WRITE: settings.soak_dual_write,
        Phase.CUTOVER: settings.soak_cutover,
        Phase.NORMALIZED: settings.soak_normalized,
    }
    since = uow._rows("SELECT since FROM consensus_orm_state")[0][0]
    # A clock that was set back must not make a soak longer than it is, nor give one to a phase that has none.
    lasted = max(timedelta(milliseconds=ledger.milliseconds(uow) - since), timedelta(0))
    return max(soaks.get(uow.phase, timedelta(0)) - lasted, timedelta(0))


def _words(duration: timedelta) -> str:
    return str(timedelta(seconds=-(-duration // timedelta(seconds=1))))


def _missing_tables(uow: UnitOfWork) -> Iterator[Obstacle]:
    there = {name.lower() for name in uow.catalog.tables(uow)}
    known = {guard.name.lower() for guard in phase_guards.recorded(uow)}  # of those the flaws have told
    for table in phase_guards.normalized_tables(uow.statements.mapping):
        if table.name.lower() not in there | known:
            yield Obstacle(
                f"table {table.name} does not exist; run: consensus-orm reconcile --rebuild {Side.NORMALIZED}"
            )


def _not_carried(uow: UnitOfWork) -> Iterator[Obstacle]:
    if uow.phase.compares and uow.phase.truth.other == "normalized":
        for pair in uow.statements.mapping.pairs:
            if not is_finished(uow, pair):
                yield Obstacle(f"the backfill of {pair.name} is not complete; run: consensus-orm backfill")


def _uncertified(uow: UnitOfWork) -> Iterator[Obstacle]:
    rows = uow._rows(
        "SELECT at, mapping, epoch, legacy_rows, normalized_rows, compared, differences, changes"
        " FROM consensus_orm_certificates ORDER BY id DESC LIMIT 1"
    )
    verify = "run: consensus-orm verify"
    if not rows or rows[0][2] != uow.epoch:
        yield Obstacle(f"nothing was verified in this phase; {verify}")
        return
    at, mapping, _, legacy, normalized, compared, differences, changes = rows[0]
    if mapping != uow.statements.fingerprint:
        yield Obstacle(f"the mapping has changed since the last verify; {verify}")
    if differences:
        yield Obstacle(f"the last verify found {differences} differing rows; run: consensus-orm reconcile")
    if not compared and (legacy or normalized):
        yield Obstacle(f"the last verify compared no row; {verify}")
    if uow.phase.compares and uow.catalog.last_change(uow) != changes:
        yield Obstacle(f"rows were written around the repositories since the last verify; {verify}")
    if _count(uow, f"SELECT count(*) FROM consensus_orm_mismatches WHERE found_at >= {at}") and not differences:
        yield Obstacle(f"a mismatch was found since the last verify; {verify}")
    if _count(uow, f"SELECT count(*) FROM consensus_orm_rejects WHERE found_at > {at}"):
        yield Obstacle(f"a row was rejected since the last verify; {verify}")
    age = timedelta(milliseconds=ledger.milliseconds(uow) - at)
    if age > uow.settings.certificate_max_age:
        yield Obstacle(f"the last clean verify is {_words(age)} old; {verify}", waiting=True)


def _unsettled(uow: UnitOfWork) -> Iterator[Obstacle]:
    if uow.phase.compares and (unseen := changes.count(uow, unseen=True)):
        yield Obstacle(f"{unseen} writes of other programs are not adopted; run: consensus-orm reconcile")
    if uow.phase.compares and (undecided := changes.undecided(uow)):
        yield Obstacle(undecided_text(undecided, uow.phase) + "; run: consensus-orm reconcile --dry-run")
    if mismatches := ledger.open_mismatches(uow):
        yield Obstacle(f"{mismatches} mismatches are open; run: consensus-orm reconcile")
    if rejects := ledger.open_rejects(uow):
        yield Obstacle(f"{rejects} rejects are open; run: consensus-orm rejects")


def undecided_text(rows: int, phase: Phase) -> str:
    """What is said of rows that wait for a choice."""
    shadow = phase.truth.other
    return (
        f"another program changed or deleted {rows} rows on the {shadow} side, which is not read:"
        " take them over with reconcile --adopt, or put them back with reconcile --repair"
    )


def _unknown_columns(uow: UnitOfWork) -> Iterator[Obstacle]:
    for pair in uow.statements.mapping.pairs:
        names = uow.catalog.columns(uow, pair.legacy_table.name)
        for name in sorted(names - {pair.key.name, *pair.carried}):
            yield Obstacle(
                f"{pair.legacy_table.name} has a column {name!r} that nobody knows and that would be lost;"
                " declare it in the mapping or drop it"
            )


def _referring_tables(uow: UnitOfWork) -> Iterator[Obstacle]:
    """Emptying a table that others refer to would delete their rows, or fail."""
    for pair in uow.statements.mapping.pairs:
        for name in uow.catalog.referring(uow, pair.legacy_table.name):
            yield Obstacle(f"table {name!r} refers to {pair.legacy_table.name} by a foreign key; drop that first")


def _count(uow: UnitOfWork, sql: str) -> Any:
    return uow._rows(sql)[0][0]
