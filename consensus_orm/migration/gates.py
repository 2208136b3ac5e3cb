"""The gates: what must be true before a phase opens. Each reason comes with the command that would help.

A gate opens on a certificate, not on a memory. `force` skips waiting, never a gate behind which rows would be
lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Column, func, select

from consensus_orm import errors
from consensus_orm.databases import guard_record, state
from consensus_orm.declaration.keys import LARGEST, usable
from consensus_orm.declaration.move import Move, single_key
from consensus_orm.declaration.rules import is_text
from consensus_orm.ledgers import certificates, changes, mismatches
from consensus_orm.migration import keyless, shapes
from consensus_orm.migration.backfill import is_finished
from consensus_orm.migration.demands import Demands, in_force
from consensus_orm.models.control import PhaseChange
from consensus_orm.phase import Phase, Side
from consensus_orm.times import credible, when
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = [
    "Obstacle",
    "began_in_future",
    "clock_set_back",
    "count_from_now",
    "obstacles",
    "require_carried_back",
    "soak_left",
]

SET_BACK = "clock set back"
"""What the audit says where a phase was let begin once more."""


@dataclass(frozen=True)
class Obstacle:
    """One thing that keeps a gate shut.

    Attributes:
        reason: What is missing.
        command: What helps; empty where no command does.
        waiting: Whether it only asks for patience, so that `force` may skip it.
        soak: Whether it asks for the time that the phase lasts.
    """

    reason: str
    command: str = ""
    waiting: bool = False
    soak: bool = False

    @property
    def text(self) -> str:
        """The reason, with the command."""
        return f"{self.reason}; run: {self.command}" if self.command else self.reason


def obstacles(uow: UnitOfWork) -> list[Obstacle]:
    """What keeps the gate to the next phase shut.

    Args:
        uow: Sees the state of the migration; under the lock where the flip follows.

    Returns:
        The obstacles; empty where the gate is open.
    """
    phase = uow.phase
    found = [Obstacle(flaw.text, flaw.command) for flaw in shapes.look(uow)]
    if guard_record.lost(uow):
        return found  # they hold what is asked next
    if not phase.writes_normalized:
        found += _missing_tables(uow)
    else:
        found += _not_carried(uow)
        found += _uncertified(uow)
        found += _unsettled(uow)
    found += _unfit_keys(uow)
    if phase.freezes_legacy:
        found += _unknown_columns(uow)
        found += _referring_tables(uow)
    if left := soak_left(uow):
        text = f"the soak of {phase.name} lasts {_words(left)} more{_why(uow)}"
        found.append(Obstacle(text, waiting=True, soak=True))
    return found


def require_carried_back(uow: UnitOfWork, to: Phase) -> None:
    """Refuse the way back while rows of the truth are missing, or different, on the legacy side.

    Such a row is an open reject. One that an operator has accepted is in nobody's way, as on the way forward.

    Args:
        uow: Holds the lock of a flip; all that was written since was carried back.
        to: The phase to come.

    Raises:
        GateClosedError: There are some.
    """
    left = {pair: _left_behind(uow, pair) for pair in uow.statements.mapping}
    found = [
        Obstacle(
            f"{rows} rows of {pair.table.name} could not be carried back to {pair.legacy_name}, which does not hold"
            " them equal",
            "consensus-orm rejects",
        )
        for pair, rows in left.items()
        if rows
    ]
    if found:
        raise errors.GateClosedError(
            f"the way back to {to.name} is shut: " + "; ".join(obstacle.reason for obstacle in found),
            hint="run: consensus-orm rejects, then resolve each, or accept it with a reason",
            reasons=[obstacle.text for obstacle in found],
            phase=uow.phase,
            to=to,
        )


def _left_behind(uow: UnitOfWork, pair: Move) -> int:
    """How many rows of the normalized side are open rejects, and stand without an equal on the legacy side."""
    rejects = list(mismatches.open_rejects_of(uow, pair, Side.NORMALIZED))
    named = [reject.key for reject in rejects if reject.key is not None]
    keyless_ones = [reject for reject in rejects if keyless.concerns(reject)]
    unequal = sum(bool(mismatches.differences(uow, pair, key)) for key in named)
    return unequal + sum(keyless.stands(uow, reject) for reject in keyless_ones)


def soak_left(uow: UnitOfWork) -> timedelta:
    """How much longer the phase has to last: all of it where the date it began at lies in the future."""
    since, *earlier = _beginnings(uow)
    lasted = timedelta(0)
    if credible(since, uow.now):
        began = max(date for date in (since, *earlier) if credible(date, uow.now))
        lasted = max(uow.now - when(began), timedelta(0))
    return max(in_force(uow).soak - lasted, timedelta(0))


def clock_set_back(uow: UnitOfWork) -> bool:
    """Whether the phase began, or was verified, at a date that lies in the future: the clock was set back since."""
    if guard_record.lost(uow):
        return began_in_future(uow)
    return began_in_future(uow) or not all(credible(date, uow.now) for date in _certified(uow))


def began_in_future(uow: UnitOfWork) -> bool:
    """Whether the phase began at a date that lies in the future, or is none."""
    return not credible(_beginnings(uow)[0], uow.now)


def count_from_now(uow: UnitOfWork) -> None:
    """Let a phase begin now that began in the future: its soak counts from now on, and its certificate is void.

    Args:
        uow: Holds the lock of a flip.
    """
    if began_in_future(uow):
        since = _beginnings(uow)[0]
        state.turn_epoch(uow, since=mismatches.milliseconds(uow))
        mismatches.audit(uow, SET_BACK, since=since if isinstance(since, int) else None)


_FLIPPED = select(func.coalesce(func.max(PhaseChange.id), 0)).where(PhaseChange.to_phase.is_not(None))
_SET_BACK = select(PhaseChange.detail).where(
    PhaseChange.action == SET_BACK, PhaseChange.id > _FLIPPED.scalar_subquery()
)


def _beginnings(uow: UnitOfWork) -> list[Any]:
    """When the phase began; and before, when it was said to begin until the clock was set back.

    Where that date is not in the future any more, the clock was wrong only while it was back, and the date counts.
    """
    since = state.get(uow, "since")
    assert since is not None
    return [since[0], *(json.loads(detail)["since"] for (detail,) in uow._rows(_SET_BACK))]


def _certified(uow: UnitOfWork) -> list[Any]:
    """When the newest certificate of this phase was made; nothing where there is none."""
    newest = certificates.newest_of(uow, uow.epoch)
    return [] if newest is None else [newest.at]


def _why(uow: UnitOfWork) -> str:
    """Why a soak lasts longer than the settings make one expect."""
    if began_in_future(uow):
        return ", counted from now: the phase began at a date that lies in the future, so the clock was set back"
    asked, demanded = Demands.of(uow.settings, uow.phase).soak, in_force(uow).soak
    return f", of the {_words(demanded)} that were demanded when it began" if asked < demanded else ""


def _words(duration: timedelta) -> str:
    return str(timedelta(seconds=-(-duration // timedelta(seconds=1))))


def _missing_tables(uow: UnitOfWork) -> Iterator[Obstacle]:
    there = {name.lower() for name in uow.catalog.tables(uow)}
    known = {guard.name.lower() for guard in guard_record.recorded(uow)}  # of those the flaws have told
    for table in guard_record.normalized_tables(uow.statements.mapping):
        if table.name.lower() not in there | known:
            command = f"consensus-orm reconcile --rebuild {Side.NORMALIZED}"
            yield Obstacle(f"table {table.name} does not exist", command)


def _unfit_keys(uow: UnitOfWork) -> Iterator[Obstacle]:
    """Keys by which rows cannot be told apart, put in order or written down, and those that no other can follow."""
    mapping, there = uow.statements.mapping, {name.lower() for name in uow.catalog.tables(uow)}
    tables = [parent.table for parent in mapping.parents] + [pair.table for pair in mapping]
    tables += [pair.legacy_table for pair in mapping if uow.phase.has_legacy]
    for key in (single_key(table) for table in tables if table.name.lower() in there):
        name = f"column {key.name} of {key.table.name}"
        faults = list(uow.catalog.key_faults(uow, key.table.name, key))
        for fault in faults:
            yield Obstacle(f"{name} cannot be the key of this move: it {fault}")
        if not faults and not is_text(key) and _highest(uow, key) >= LARGEST:
            yield Obstacle(
                f"{name} has reached {LARGEST}, the largest number there is, so no row can be added; give that row"
                " another id, and set the sequence of the table to the highest one that is left"
            )


def _highest(uow: UnitOfWork, key: Column[Any]) -> int:
    """The highest number that a key has or that was given as one."""
    last = uow._rows(uow.statements.rendering.render(select(func.max(key)).where(usable(key))))[0][0]
    return max(last or 0, uow.catalog.sequence(uow, key.table.name) or 0)


def _not_carried(uow: UnitOfWork) -> Iterator[Obstacle]:
    if uow.phase.compares and uow.phase.truth.other == "normalized":
        for pair in uow.statements.mapping:
            if not is_finished(uow, pair):
                yield Obstacle(f"the backfill of {pair.name} is not complete", "consensus-orm backfill")


def _uncertified(uow: UnitOfWork) -> Iterator[Obstacle]:
    seen, verify = certificates.newest(uow), "consensus-orm verify"
    if seen is None or seen.epoch != uow.epoch:
        yield Obstacle("nothing was verified in this phase", verify)
        return
    if seen.mapping != uow.statements.fingerprint:
        yield Obstacle("the mapping has changed since the last verify", verify)
    if seen.differences:
        yield Obstacle(f"the last verify found {seen.differences} differing rows", "consensus-orm reconcile")
    if seen.missed or seen.missed is None:
        yield Obstacle(
            f"the last verify cannot account for {seen.missed or 'all'} rows, which were not compared", verify
        )
    if not seen.compared and (seen.legacy_rows or seen.normalized_rows):
        yield Obstacle("the last verify compared no row", verify)
    if uow.phase.compares and uow.catalog.last_change(uow) != seen.changes:
        yield Obstacle("rows were written around the repositories since the last verify", verify)
    if mismatches.last_mismatch(uow) != seen.last_mismatch and not seen.differences:
        yield Obstacle("a mismatch was found since the last verify", verify)
    if mismatches.last_reject(uow) != seen.last_reject:
        yield Obstacle("a row was rejected since the last verify", verify)
    if not credible(seen.at, uow.now):
        yield Obstacle("the last verify has a date in the future: the clock was set back", verify)
        return
    age = timedelta(milliseconds=mismatches.milliseconds(uow) - seen.at)
    if age > in_force(uow).certificate_max_age:
        yield Obstacle(f"the last clean verify is {_words(age)} old", verify, waiting=True)


def _unsettled(uow: UnitOfWork) -> Iterator[Obstacle]:
    if uow.phase.compares and (unseen := changes.count(uow, unseen=True)):
        yield Obstacle(f"{unseen} writes of other programs are not adopted", "consensus-orm reconcile")
    if uow.phase.compares and (undecided := changes.undecided(uow)):
        yield Obstacle(undecided_text(undecided, uow.phase), "consensus-orm reconcile --dry-run")
    if differing := mismatches.open_mismatches(uow):
        yield Obstacle(f"{differing} mismatches are open", "consensus-orm reconcile")
    if rejects := mismatches.open_rejects(uow):
        yield Obstacle(f"{rejects} rejects are open", "consensus-orm rejects")


def undecided_text(rows: int, phase: Phase) -> str:
    """What is said of rows that wait for a choice."""
    shadow = phase.truth.other
    return (
        f"another program changed or deleted {rows} rows on the {shadow} side, which is not read:"
        " take them over with reconcile --adopt, or put them back with reconcile --repair"
    )


def _unknown_columns(uow: UnitOfWork) -> Iterator[Obstacle]:
    for pair in uow.statements.mapping:
        names = uow.catalog.columns(uow, pair.legacy_table.name)
        for name in sorted(names - {*pair.legacy_columns, *pair.without}):
            yield Obstacle(
                f"{pair.legacy_table.name} has a column {name!r} that no move speaks of, so it would be lost;"
                " declare it in the move (`columns` or `without`) or drop it"
            )


def _referring_tables(uow: UnitOfWork) -> Iterator[Obstacle]:
    """Emptying a table that others refer to would delete their rows, or fail."""
    for pair in uow.statements.mapping:
        for name in uow.catalog.referring(uow, pair.legacy_table.name):
            yield Obstacle(f"table {name!r} refers to {pair.legacy_table.name} by a foreign key; drop that first")


def _count(uow: UnitOfWork, sql: str) -> Any:
    return uow._rows(sql)[0][0]
