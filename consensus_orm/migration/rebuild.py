"""Rebuild: makes a side again, whose tables another program dropped or replaced, from the other side.

Where one side was lost, the two may say different things of the same ids, and only an operator who knows what happened
can say which rows count. So this is a choice of its own, never part of a plain reconcile:

| the side to make again | a row of it that has no equal on the other side |
|---|---|
| was lost | came later: it is carried over, under a new id where its own was given before |
| is in place, and the other one was lost | belongs to what was lost: it is kept as an image, and goes |

What the other side has is carried afterwards. Nothing is overwritten or deleted without an image (rule 12), and each
step is a chain of short transactions: the same call continues an interrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from sqlalchemy import select

from consensus_orm import errors
from consensus_orm.databases import guard_record, state
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import audit, backfill_progress, changes, guards, images, rejects
from consensus_orm.ledgers.binding import Key, among, keys_of
from consensus_orm.migration.carrying import ID_TAKEN_TWICE, adopt_range, carry_range, reject_unequal
from consensus_orm.migration.pace import in_chunks
from consensus_orm.migration.ranges import Range, next_range
from consensus_orm.migration.transactions import Transactions
from consensus_orm.models.control import PhaseChange
from consensus_orm.phase import Side
from consensus_orm.progress import Tally, Watch
from consensus_orm.repository.carrying import carry, linked_range
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Rebuilt", "highest_given", "rebuild", "unequal_in", "with_ids_of_their_own"]

RENUMBERED = "its id was given before; since then it is {key}"
REPLACED = "the {side} side was made again from the other side"


@dataclass(frozen=True)
class Rebuilt:
    """What was done to make a side again.

    Attributes:
        side: The side.
        tables: Its tables that were lost; where it had lost none, those of the other side.
        carried: Rows that were carried to it.
        renumbered: Rows of it that have new ids.
        replaced: Rows of it that were replaced or deleted, each kept as an image.
    """

    side: Side
    tables: tuple[str, ...]
    carried: int = 0
    renumbered: int = 0
    replaced: int = 0


@dataclass(frozen=True)
class _Plan:
    side: Side
    tables: tuple[str, ...]
    lost: bool
    """Whether it is the side itself that lost them."""
    given: dict[str, int] = field(default_factory=dict)
    """The highest id that was given for each pair before."""
    carries: bool = True
    """Whether rows are carried: in EXPAND a normalized side that is made anew begins empty."""

    def concerns(self, pair: Move) -> bool:
        """Whether rows of a pair stand in what was lost."""
        tables = {pair.legacy_name, pair.table.name, *(table.name for table in pair.tables_beside)}
        tables |= {parent.table.name for parent in pair.parents}
        return not tables.isdisjoint(self.tables)

    def came_later(self, pair: Move) -> bool:
        """Whether rows of a pair that only this side has were written after the loss."""
        return self.lost and pair.table_name(self.side) in self.tables


def rebuild(writing: Transactions, flipping: Transactions, side: Side, progress: Watch = None) -> Rebuilt:
    """Make a side again from the other one; see `Migration.reconcile`.

    Raises:
        WrongPhaseError: The legacy side does not exist in this phase.
        MigrationError: Nothing was lost; what is there cannot hold the rows; or the other side was lost, too.
    """
    plan = flipping.run(partial(_begin, side=side))
    done = Rebuilt(side, plan.tables)
    for pair in writing.statements.moves:
        if not (plan.carries and plan.concerns(pair)):
            continue
        later = plan.came_later(pair)
        settle = partial(_carry_over if later else _replace, pair=pair, plan=plan)
        settled = sum(
            sum(_chunks(writing, pair, from_side, partial(settle, from_side=from_side), None)) for from_side in Side
        )
        done = replace(
            done,
            renumbered=done.renumbered + (settled if later else 0),
            replaced=done.replaced + (0 if later else settled),
            carried=done.carried
            + sum(_chunks(writing, pair, side.other, partial(_fill, pair=pair, to=side), progress)),
        )
    writing.run(partial(_finish, done=done))
    return done


# Begin ----------------------------------------------------------------------------------------------------


def _begin(uow: UnitOfWork, *, side: Side) -> _Plan:
    """Make the tables that are missing, install the triggers, and record that the step is under way."""
    if not uow.phase.has_legacy:
        if flaws := [flaw for flaw in guards.look(uow) if flaw.side]:
            raise guards.broken(uow, flaws)
        raise errors.WrongPhaseError(
            f"in {uow.phase.name} there is one side, so there is nothing to make it from",
            hint="stay at CONTRACT, or run: consensus-orm rollback normalized",
            phase=uow.phase,
        )
    if (begun := _under_way(uow)) is not None:
        if begun.side is side:
            return begun
        raise errors.MigrationError(
            f"the {begun.side} side is being made again", hint=f"run: consensus-orm reconcile --rebuild {begun.side}"
        )
    plan = _planned(uow, side)
    uow.catalog.keep_out(uow)
    given = {pair.name: highest_given(uow, pair, side.other) for pair in uow.statements.moves}
    plan = replace(plan, given=given, carries=_carries(uow, plan))
    aside = _set_aside(uow, side)
    made = list(_make_missing(uow, side))
    _require_columns(uow, plan)
    guard_record.install(uow, uow.phase)
    uow.catalog.level_sequences(uow)
    if side is Side.NORMALIZED:
        backfill_progress.forget(uow)
    guards.void(uow)
    audit.add(uow, "rebuild", side=side, tables=plan.tables, lost=plan.lost, given=plan.given, made=made, aside=aside)
    state.put_step(uow, side)
    return plan


_BEGUN = select(PhaseChange.detail).where(PhaseChange.action == "rebuild").order_by(PhaseChange.id.desc()).limit(1)


def _under_way(uow: UnitOfWork) -> _Plan | None:
    """What an earlier call has begun and not finished."""
    if state.rebuilding(uow) is None:
        return None
    detail = json.loads(uow._rows(_BEGUN)[0][0])
    plan = _Plan(Side(detail["side"]), tuple(detail["tables"]), detail["lost"], detail["given"])
    return replace(plan, carries=_carries(uow, plan))


def _carries(uow: UnitOfWork, plan: _Plan) -> bool:
    return uow.phase.writes_normalized or plan.side is Side.LEGACY or not plan.lost


def highest_given(uow: UnitOfWork, pair: Move, side: Side) -> int:
    """The highest id that a side has, or has ever given; 0 for other keys, which are not generated."""
    if not pair.is_numbered:
        return 0
    found = uow._rows(uow.statements[pair].last_key(side))[0][0]
    return max(int(found or 0), uow.catalog.sequence(uow, pair.table_name(side)) or 0)


def _planned(uow: UnitOfWork, side: Side) -> _Plan:
    guards.require_in_sight(uow)
    _require_source(uow, side)
    flaws = guards.look(uow)
    lost = {where: tuple(flaw.table for flaw in flaws if flaw.side is where and flaw.table) for where in Side}
    there = {name.lower() for name in uow.catalog.tables(uow)}
    if missing := [table for table in lost[side.other] if table.lower() not in there]:
        raise errors.MigrationError(
            f"the {side} side cannot be made from {missing[0]}, which is not there",
            hint=f"run: consensus-orm reconcile --rebuild {side.other}",
            table=missing[0],
        )
    if lost[side]:
        return _Plan(side, lost[side], lost=True)
    if lost[side.other]:
        return _Plan(side, lost[side.other], lost=False)
    unrecorded = [name for name in guard_record.tables_of(uow.statements.moves, side) if name.lower() not in there]
    if unrecorded:
        return _Plan(side, tuple(unrecorded), lost=True)
    raise errors.MigrationError(
        f"the tables of the {side} side are in place, so there is nothing to make again",
        hint="run: consensus-orm reconcile",
    )


def _require_source(uow: UnitOfWork, side: Side) -> None:
    """Refuse to make a side from one that lacks columns: no other side has their values."""
    for table, missing in guards.lacking_columns(uow, side.other).items():
        raise errors.MigrationError(
            f"the {side} side cannot be made from {table}, which has no column {missing[0]!r:.60}",
            hint=f"nothing was changed; run: consensus-orm reconcile --rebuild {side.other}",
            table=table,
            column=missing[0],
        )


def _set_aside(uow: UnitOfWork, side: Side) -> list[str]:
    """Rename tables that lack columns and are not the truth, with their rows; returns their new names."""
    if side is not Side.LEGACY or uow.phase.truth is side:
        return []
    broken = guards.lacking_columns(uow, side)
    return [
        uow.catalog.legacy.set_aside(uow, p)
        for p in uow.statements.moves.of_tables(Side.LEGACY)
        if p.legacy_name in broken
    ]


def _make_missing(uow: UnitOfWork, side: Side) -> Iterator[str]:
    there = {name.lower() for name in uow.catalog.tables(uow)}
    missing = {name for name in guard_record.tables_of(uow.statements.moves, side) if name.lower() not in there}
    for name in sorted(missing):
        if uow.catalog.has_relation(uow, name):
            raise errors.MigrationError(
                f"a view of another program, or the like, has the name of table {name}",
                hint="nothing was changed; drop or rename it, then try again",
                table=name,
            )
    if side is Side.LEGACY:
        for pair in (p for p in uow.statements.moves.of_tables(Side.LEGACY) if p.legacy_name in missing):
            uow.catalog.legacy.make_again(uow, pair)
            yield pair.legacy_name
        return
    tables = [table for table in guard_record.normalized_tables(uow.statements.moves) if table.name in missing]
    uow.catalog.create(uow, tables)
    yield from (table.name for table in tables)


def _require_columns(uow: UnitOfWork, plan: _Plan) -> None:
    """Refuse a table that another program made and that cannot hold what is carried to it."""
    moves = uow.statements.moves
    models = [pair.legacy_table for pair in moves.of_tables(Side.LEGACY)] + guard_record.normalized_tables(moves)
    for table in (table for table in models if table.name in plan.tables):
        there = {name.lower() for name in uow.catalog.columns(uow, table.name, computed=True)}
        if missing := [c.name for c in table.columns if c.name.lower() not in there]:
            raise errors.MigrationError(
                f"{table.name}, which another program made or changed, has no column {missing[0]!r:.60}",
                hint="nothing was changed; give the column its name again, or rename that table (a file wants"
                " PRAGMA legacy_alter_table = ON"
                " first), then try again",
                table=table.name,
                column=missing[0],
            )


# Rows -----------------------------------------------------------------------------------------------------


def _chunks(
    writing: Transactions, pair: Move, side: Side, work: Callable[[UnitOfWork, Range], int], progress: Watch
) -> Iterator[int]:
    """Go through the rows of a side by ranges of keys, each in a transaction of its own; yields what `work` counted."""
    tally = Tally(progress, pair.name)
    after: Key = None

    def chunk(uow: UnitOfWork, size: int) -> tuple[tuple[int, Key], int] | None:
        if (of := next_range(uow, pair, side, after, size)) is None:
            return None
        tally.expect(lambda: uow._rows(uow.statements[pair].count(side, ()))[0][0])
        with uow.catalog.legacy_unfrozen(uow) if uow.phase.freezes_legacy else nullcontext():
            return (work(uow, of), of.last), of.rows

    for counted, last in in_chunks(writing, tally, chunk):
        after = last
        yield counted


def unequal_in(uow: UnitOfWork, pair: Move, side: Side, of: Range) -> list[Key]:
    """Keys of the rows of a side in a range that have no equal on the other side."""
    ((_, wrong),) = uow._rows(uow.statements[pair].compare_range(side, but_recorded=False), of.bounds)
    return [] if wrong is None else list(json.loads(wrong))


def _carry_over(uow: UnitOfWork, of: Range, *, pair: Move, from_side: Side, plan: _Plan) -> int:
    """Carry rows that were written to the side after the loss to the other one; returns how many have new ids."""
    side, why = plan.side, REPLACED.format(side=plan.side)
    later = keys_of(uow, uow.statements[pair].present(side), among(unequal_in(uow, pair, from_side, of)))
    if not later:
        return 0
    ids = with_ids_of_their_own(uow, pair, later, side, plan.given[pair.name])
    carry(uow, pair, ids.taken, side, why)
    for moved in (ids.free, ids.renumbered):
        carry(uow, pair, moved, side.other, why)
        reject_unequal(uow, pair, moved, side)
    return len(ids.renumbered)


class Ids(NamedTuple):
    """Rows of one side: their own ids are free; they have new ones; or their ids are taken and they are rejects."""

    free: list[Key]
    renumbered: list[Key]
    taken: list[Key]
    new_rejects: int


def with_ids_of_their_own(uow: UnitOfWork, pair: Move, keys: list[Key], side: Side, given: int) -> Ids:
    """Give new ids to rows whose ids the other side has, or has given before; reject those with other keys."""
    there = set(keys_of(uow, uow.statements[pair].present(side.other), among(keys)))
    taken = [key for key in keys if key in there or (isinstance(key, int) and key <= given)]
    free = [key for key in keys if key not in taken]
    if not pair.is_numbered or pair.references(side):  # there is no next one, or other rows may refer to this one
        return Ids(free, [], taken, sum(rejects.reject(uow, pair, key, side, ID_TAKEN_TWICE) for key in taken))
    return Ids(free, _renumber(uow, pair, taken, side), [], 0)


def _renumber(uow: UnitOfWork, pair: Move, keys: Iterable[Key], side: Side) -> list[Key]:
    """Give rows of one side ids that no row had before, and image them first; returns the new keys."""
    new = list[Key]()
    with changes.not_recorded(uow):
        for key in keys:
            free = _free(uow, pair, side)
            images.keep(uow, pair, [key], side, RENUMBERED.format(key=free))
            uow._execute(uow.statements[pair].renumber(side), {"_key": key, "_new": free})
            new.append(free)
    return new


def _free(uow: UnitOfWork, pair: Move, side: Side) -> Key:
    """An id that no row of either side has or had."""
    while True:
        free: Key = uow.catalog.free_key(uow, pair)
        if not uow._rows(uow.statements[pair].present(side), among([free])):
            return free


def _replace(uow: UnitOfWork, of: Range, *, pair: Move, from_side: Side, plan: _Plan) -> int:
    """Make rows of the side what they are on the other one; returns how many were replaced or deleted."""
    keys = unequal_in(uow, pair, from_side, of)
    kept = carry(uow, pair, keys, plan.side, REPLACED.format(side=plan.side))
    reject_unequal(uow, pair, keys, plan.side.other)
    return kept


def _fill(uow: UnitOfWork, of: Range, *, pair: Move, to: Side) -> int:
    """Carry the rows of a range that the side does not have; returns how many."""
    if to is Side.NORMALIZED:
        before = unequal_in(uow, pair, Side.LEGACY, of)
        carry_range(uow, pair, of)
        return len(before) - len(reject_unequal(uow, pair, before, Side.LEGACY).keys)
    adopt_range(uow, pair, of)
    with changes.not_recorded(uow), linked_range(uow, pair, of.bounds, to):
        return int(uow._execute(uow.statements[pair].fill_legacy, of.bounds).rowcount)


def _finish(uow: UnitOfWork, *, done: Rebuilt) -> None:
    if done.side is Side.LEGACY:
        for pair in (p for p in uow.statements.moves.of_tables(Side.LEGACY) if p.legacy_name in done.tables):
            uow.catalog.legacy.complete_again(uow, pair)
    uow.catalog.level_sequences(uow)
    if done.side is Side.NORMALIZED and uow.phase.compares:
        _set_backfilled(uow)
    audit.add(uow, "rebuilt", side=done.side, carried=done.carried, renumbered=done.renumbered, replaced=done.replaced)
    state.put_step(uow, None)


def _set_backfilled(uow: UnitOfWork) -> None:
    """Mark the backfill as finished: every legacy row was carried just now."""
    for pair in uow.statements.moves:
        if backfill_progress.of(uow, pair) == backfill_progress.NOT_BEGUN:
            backfill_progress.move(uow, pair, None, 0, finished=True)
