"""The gates: the conditions under which the next phase opens, and for each that is not met the command that helps.

A gate opens on the certificate of a verify. `force` skips waiting, and never a condition without which rows would be
lost.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Column, func, select

from consensus_orm.databases import guard_record
from consensus_orm.declaration.keys import LARGEST, is_word, usable
from consensus_orm.formats import count, duration
from consensus_orm.ledgers import (
    audit,
    backfill_progress,
    certificates,
    changes,
    control,
    dependencies,
    guards,
    mismatches,
    rejects,
)
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.migration.demands import Demands, began_in_future, in_force, soak_left
from consensus_orm.phase import Phase, Side
from consensus_orm.times import credible
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Obstacle", "known_from_the_start", "obstacles", "undecided_text"]


@dataclass(frozen=True)
class Obstacle:
    """A condition that is not met, so that a gate is shut.

    Attributes:
        reason: What is missing.
        command: The command that helps; empty where none does.
        waiting: Whether time alone meets it, so that `force` may skip it.
        soak: Whether it is the soak of the phase.
    """

    reason: str
    command: str = ""
    waiting: bool = False
    soak: bool = False

    @property
    def text(self) -> str:
        """The reason, with the command."""
        return f"{self.reason}; run: {self.command}" if self.command else self.reason


def obstacles(uow: UnitOfWork, flaws: list[guards.Flaw] | None = None) -> list[Obstacle]:
    """The conditions of the next phase that are not met; none where the gate is open.

    Args:
        uow: Sees the state of the migration; under the lock where the flip follows.
        flaws: What is wrong with the guards of the phase, where they were compared already.
    """
    phase, demanded = uow.phase, in_force(uow)
    found = [Obstacle(flaw.text, flaw.command) for flaw in (guards.look(uow) if flaws is None else flaws)]
    if guard_record.lost(uow):
        return found  # the next conditions are read from these tables
    if hidden := [Obstacle(text) for text in uow.catalog.unseen(uow)]:
        return [*found, *hidden]  # nothing that follows from rows would be true
    if (why := control.held(uow)) is not None:
        found.append(Obstacle(why, control.HOLD))
    if not phase.writes_normalized:
        found += _missing_tables(uow)
    else:
        found += _not_carried(uow)
        found += _unsettled(uow)  # before a verify, which would find the same again
        found += _uncertified(uow, demanded)
    found += _unfit_keys(uow, phase)
    found += _undeclared_references(uow, phase)
    if phase.freezes_legacy:
        found += _unknown_columns(uow)
    found += _dependencies(uow, phase.next)
    return [*found, *_soak(uow, demanded)]


def known_from_the_start(uow: UnitOfWork, phase: Phase) -> list[Obstacle]:
    """What will keep a gate shut, from this phase to the last, by what the catalog of the database knows today.

    Args:
        uow: Reads a database that need not be prepared.
        phase: The phase it is in, or begins with.
    """
    if hidden := [Obstacle(text) for text in uow.catalog.unseen(uow)]:
        return hidden
    found = [Obstacle(text) for text in uow.catalog.muted(uow)]
    found += _unfit_keys(uow, phase)
    found += _undeclared_references(uow, phase)
    if phase.has_legacy:
        found += _unknown_columns(uow)
    return [*found, *_dependencies(uow, Phase.CONTRACT)]


def _soak(uow: UnitOfWork, demanded: Demands) -> Iterator[Obstacle]:
    if not (left := soak_left(uow, demanded)):
        return
    why = ""
    if began_in_future(uow):
        why = ", counted from now: the phase began at a date that lies in the future, so the clock was set back"
    elif Demands.of(uow.settings, uow.phase).soak < demanded.soak:  # longer than the settings make one expect
        why = f", of the {duration(demanded.soak)} that were demanded when it began"
    yield Obstacle(f"the soak of {uow.phase.name} lasts {duration(left)} more{why}", waiting=True, soak=True)


def _missing_tables(uow: UnitOfWork) -> Iterator[Obstacle]:
    there = {name.lower() for name in uow.catalog.tables(uow)}
    known = {guard.name.lower() for guard in guard_record.recorded(uow)}  # of those the flaws have told
    for table in guard_record.normalized_tables(uow.statements.moves):
        if table.name.lower() not in there | known:
            command = f"consensus-orm reconcile --rebuild {Side.NORMALIZED}"
            yield Obstacle(f"table {table.name} does not exist", command)


def _unfit_keys(uow: UnitOfWork, phase: Phase) -> Iterator[Obstacle]:
    """Keys that do not identify rows, cannot be ordered or stored, or have reached the largest number."""
    moves, there = uow.statements.moves, {name.lower() for name in uow.catalog.tables(uow)}
    keys: list[tuple[tuple[Column[Any], ...], list[str]]]
    keys = [((parent.key,), [parent.key.name]) for parent in moves.parents]
    keys += [(pair.keys, [*pair.unique]) for pair in moves.of_tables(Side.NORMALIZED)]
    legacy = moves.of_tables(Side.LEGACY) if phase.has_legacy else ()
    keys += [(tuple(pair.legacy_table.c[name] for name in pair.legacy_keys), [*pair.legacy_keys]) for pair in legacy]
    frozen_tables = {pair.legacy_table for pair in legacy}
    for columns, unique in keys:
        key = columns[0]
        if key.table.name.lower() not in there:
            continue
        faults = [*uow.catalog.key_faults(uow, columns, unique)]
        for column, fault in faults:
            yield Obstacle(f"column {column} of {key.table.name} cannot be the key of this move: it {fault}")
        name = f"column {key.name} of {key.table.name}"
        frozen = phase.freezes_legacy and key.table in frozen_tables  # no row is added to it, and a look would count
        is_number = len(columns) == 1 and not is_word(key)
        if not faults and not frozen and is_number and _highest(uow, key) >= LARGEST:
            yield Obstacle(
                f"{name} has reached {LARGEST}, the largest number there is, so no row can be added; give that row"
                " another id, and set the sequence of the table to the highest one that is left"
            )


def _undeclared_references(uow: UnitOfWork, phase: Phase) -> Iterator[Obstacle]:
    """Foreign keys of a table to itself that its class does not declare: rows are carried without regard to them."""
    moves, there = uow.statements.moves, {name.lower() for name in uow.catalog.tables(uow)}
    sides = [side for side in Side if side is Side.NORMALIZED or phase.has_legacy]
    for at, pair in ((side, pair) for side in sides for pair in moves.of_tables(side)):
        if (name := pair.table_name(at)).lower() not in there:
            continue
        known = {(frozenset(map(str.lower, of.columns[at])), of.on_delete) for of in pair.references(at)}
        for columns, on_delete in uow.catalog.references(uow, name):
            if (columns, on_delete) not in known:
                yield Obstacle(
                    f"{', '.join(sorted(columns))} of {name} refers to {name} itself ON DELETE {on_delete}, which its"
                    " class does not declare; declare this foreign key, or drop it"
                )


def _highest(uow: UnitOfWork, key: Column[Any]) -> int:
    """The highest number that a key has, or that was ever given as one."""
    last = uow._rows(uow.statements.rendering.render(select(func.max(key)).where(usable(key))))[0][0]
    return max(last or 0, uow.catalog.sequence(uow, key.table.name) or 0)


def _not_carried(uow: UnitOfWork) -> Iterator[Obstacle]:
    if uow.phase.compares and uow.phase.truth.other == "normalized":
        for pair in uow.statements.moves:
            if not backfill_progress.of(uow, pair).finished:
                yield Obstacle(f"the backfill of {pair.name} is not complete", "consensus-orm backfill")


def _uncertified(uow: UnitOfWork, demanded: Demands) -> Iterator[Obstacle]:
    seen, verify = certificates.newest(uow), "consensus-orm verify"
    if seen is None or seen.epoch != uow.epoch:
        yield Obstacle("nothing was verified in this phase", verify)
        return
    if seen.mapping != uow.statements.fingerprint:
        yield Obstacle("the declaration has changed since the last verify", verify)
    if seen.differences:
        yield Obstacle(
            f"the last verify found {count(seen.differences, 'differing row')}", _about_differences(uow, seen)
        )
    if seen.missed or seen.missed is None:
        yield Obstacle(
            f"the last verify cannot account for {seen.missed or 'all'} rows, which were not compared", verify
        )
    if not seen.compared and (seen.legacy_rows or seen.normalized_rows):
        yield Obstacle("the last verify compared no row", verify)
    if uow.phase.compares and uow.catalog.last_change(uow) != seen.changes:
        yield Obstacle("rows were written around the repositories since the last verify", verify)
    if mismatches.newest(uow) != seen.last_mismatch and not seen.differences:
        yield Obstacle("a mismatch was found since the last verify", verify)
    if rejects.newest(uow) != seen.last_reject:
        yield Obstacle("a row was rejected since the last verify", verify)
    if not credible(seen.at, uow.now):
        yield Obstacle("the last verify has a date in the future: the clock was set back", verify)
        return
    age = timedelta(milliseconds=milliseconds(uow) - seen.at)
    if age > demanded.certificate_max_age:
        yield Obstacle(f"the last clean verify is {duration(age)} old", verify, waiting=True)


def _about_differences(uow: UnitOfWork, seen: certificates.Seen) -> str:
    """The command that helps where rows differed: once they are settled, only a verify can say that they agree."""
    settled = audit.newest(uow, "reconcile") >= seen.at and not mismatches.count_open(uow)
    return "consensus-orm verify" if settled else "consensus-orm reconcile"


def _unsettled(uow: UnitOfWork) -> Iterator[Obstacle]:
    if uow.phase.compares and (unseen := changes.count(uow, unseen=True)):
        yield Obstacle(
            count(unseen, "write of other programs is not adopted", "writes of other programs are not adopted"),
            "consensus-orm reconcile",
        )
    if uow.phase.compares and (undecided := changes.undecided(uow)):
        yield Obstacle(undecided_text(undecided, uow.phase), "consensus-orm reconcile --dry-run")
    if differing := mismatches.count_open(uow):
        yield Obstacle(count(differing, "mismatch is open", "mismatches are open"), "consensus-orm reconcile")
    if rejected := rejects.count_open(uow):
        yield Obstacle(count(rejected, "reject is open", "rejects are open"), "consensus-orm rejects")


def undecided_text(rows: int, phase: Phase) -> str:
    """The reason of an obstacle: rows that wait for a choice."""
    shadow = phase.truth.other
    return (
        f"another program changed or deleted {count(rows, 'row')} on the {shadow} side, which is not read:"
        " take them over with reconcile --adopt, or put them back with reconcile --repair"
    )


def _unknown_columns(uow: UnitOfWork) -> Iterator[Obstacle]:
    for pair in uow.statements.moves:
        there = uow.catalog.columns(uow, pair.legacy_table.name)
        known = set(map(uow.catalog.folded, (*pair.legacy_columns, *pair.without, *pair.only[Side.LEGACY])))
        for name in sorted(name for name in there if uow.catalog.folded(name) not in known):
            yield Obstacle(
                f"{pair.legacy_table.name} has a column {name!r} that no move speaks of, so it would be lost;"
                " declare it in the move (`columns` or `without`) or drop it"
            )


def _dependencies(uow: UnitOfWork, following: Phase | None) -> Iterator[Obstacle]:
    """What others use of the legacy tables, and the way to a phase would take from them."""
    for each in dependencies.found(uow):
        if following is None or each.shuts > following or each.accepted is not None:
            continue
        name = shlex.quote(f"{each.kind} {each.name}")
        accept = f"consensus-orm dependencies accept {name} --reason TEXT"
        if each.grants:
            yield Obstacle(f"{each.told} (or accept that it is cut off: {accept})", "consensus-orm upgrade")
        else:
            yield Obstacle(f"{each.told}: {each.remedy or 'remove it, or accept it'}", "" if each.remedy else accept)
