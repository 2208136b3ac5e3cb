"""Making a side again whose tables another program dropped, or dropped and made again, from the other side.

Two sides, of which one was lost, say different things of the same ids, and only somebody who knows what happened can
say which rows count. So this is a choice of its own, never part of a plain reconcile:

| the side to make again | a row of it that has no equal on the other side |
|---|---|
| was lost | came later: it is carried over, under a new id where its own was given before |
| is in place, and the other one was lost | belongs to what was lost: it is kept as an image, and goes |

What the other side has is carried afterwards. Nothing is overwritten or deleted without an image (rule 12), and every
step is a chain of short transactions: what was interrupted is taken up by the same call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sqlalchemy import select

from consensus_orm import errors
from consensus_orm.databases import guard_record, state
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.rules import is_text
from consensus_orm.ledgers import backfill_progress, guards, images, mismatches
from consensus_orm.migration import keyless, shapes
from consensus_orm.migration.backfill import carry_range
from consensus_orm.migration.carrying import ID_TAKEN_TWICE, adopt_range, carry, reject_unequal
from consensus_orm.migration.pace import Pace
from consensus_orm.migration.transactions import Transactions
from consensus_orm.models.control import PhaseChange
from consensus_orm.phase import Side
from consensus_orm.progress import Tally, Watch
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Adopted", "Rebuilt", "adopt_strays", "rebuild"]

RENUMBERED = "its id was given before; since then it is {key}"
REPLACED = "the {side} side was made again from the other side"
ADOPTED = "written to a legacy table at CONTRACT"


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
        tables = {pair.legacy_name, pair.table.name, *([] if pair.parent is None else [pair.parent.table.name])}
        return not tables.isdisjoint(self.tables)

    def came_later(self, pair: Move) -> bool:
        """Whether what the side has of a pair, and the other one has not, was written after the loss."""
        own = pair.legacy_name if self.side is Side.LEGACY else pair.table.name
        return self.lost and own in self.tables


def rebuild(writing: Transactions, flipping: Transactions, side: Side, progress: Watch = None) -> Rebuilt:
    """Make a side again from the other one.

    Args:
        writing: Opens a unit of work that carries.
        flipping: Opens one that changes tables and triggers.
        side: The side to make again.
        progress: Called after each chunk.

    Returns:
        What was done.

    Raises:
        WrongPhaseError: The legacy side does not exist in this phase.
        MigrationError: Nothing was lost; what is there cannot hold the rows; or the other side was lost, too.
    """
    plan = flipping.run(partial(_begin, side=side))
    done = Rebuilt(side, plan.tables)
    for pair in (pair for pair in writing.statements.mapping if plan.concerns(pair)):
        if not plan.carries:
            break
        settle = _carry_over if plan.came_later(pair) else _replace
        for from_side in Side:
            for count in _chunks(writing, pair, from_side, partial(settle, pair=pair, of=from_side, plan=plan), None):
                done = _counted(done, plan.came_later(pair), count)
        for count in _chunks(writing, pair, side.other, partial(_fill, pair=pair, to=side), progress):
            done = replace(done, carried=done.carried + count)
    writing.run(partial(_finish, done=done))
    return done


def _counted(done: Rebuilt, later: bool, count: int) -> Rebuilt:
    if later:
        return replace(done, renumbered=done.renumbered + count)
    return replace(done, replaced=done.replaced + count)


# Begin ----------------------------------------------------------------------------------------------------


def _begin(uow: UnitOfWork, *, side: Side) -> _Plan:
    """Make the tables that are missing, put the triggers in place, and say what is under way."""
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
    given = {pair.name: _given(uow, pair, side.other) for pair in uow.statements.mapping}
    plan = replace(plan, given=given, carries=_carries(uow, plan))
    aside = _set_aside(uow, side)
    made = list(_make_missing(uow, side))
    _require_columns(uow, plan)
    guard_record.install(uow, uow.phase)
    uow.catalog.level_sequences(uow)
    if side is Side.NORMALIZED:
        backfill_progress.forget(uow)
    guards.void(uow)
    mismatches.audit(
        uow, "rebuild", side=side, tables=plan.tables, lost=plan.lost, given=plan.given, made=made, aside=aside
    )
    state.put(uow, step=guards.REBUILD + side)
    return plan


_BEGUN = select(PhaseChange.detail).where(PhaseChange.action == "rebuild").order_by(PhaseChange.id.desc()).limit(1)


def _under_way(uow: UnitOfWork) -> _Plan | None:
    """What an earlier call has begun and not finished."""
    found = state.get(uow, "step")
    if found is None or not str(found[0]).startswith(guards.REBUILD):
        return None
    detail = json.loads(uow._rows(_BEGUN)[0][0])
    plan = _Plan(Side(detail["side"]), tuple(detail["tables"]), detail["lost"], detail["given"])
    return replace(plan, carries=_carries(uow, plan))


def _carries(uow: UnitOfWork, plan: _Plan) -> bool:
    return uow.phase.writes_normalized or plan.side is Side.LEGACY or not plan.lost


def _given(uow: UnitOfWork, pair: Move, side: Side) -> int:
    """The highest id that a side has, or has ever given; texts are given by nobody."""
    if is_text(pair.key):
        return 0
    table = pair.legacy_name if side is Side.LEGACY else pair.table.name
    found = uow._rows(uow.statements[pair].last_key(side))[0][0]
    return max(int(found or 0), uow.catalog.sequence(uow, table) or 0)


def _planned(uow: UnitOfWork, side: Side) -> _Plan:
    _require_source(uow, side)
    flaws = shapes.look(uow)
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
    unrecorded = [name for name in _tables(uow, side) if name.lower() not in there]
    if unrecorded:
        return _Plan(side, tuple(unrecorded), lost=True)
    raise errors.MigrationError(
        f"the tables of the {side} side are in place, so there is nothing to make again",
        hint="run: consensus-orm reconcile",
    )


def _require_source(uow: UnitOfWork, side: Side) -> None:
    """Refuse to make a side from one that lacks columns: nobody else can say what stood there."""
    for table, missing in shapes.lacking(uow, side.other).items():
        raise errors.MigrationError(
            f"the {side} side cannot be made from {table}, which has no column {missing[0]!r:.60}",
            hint=f"nothing was changed; run: consensus-orm reconcile --rebuild {side.other}",
            table=table,
            column=missing[0],
        )


def _set_aside(uow: UnitOfWork, side: Side) -> list[str]:
    """Take tables out of the way that lack columns and are not the truth, with their rows; gives their new names."""
    if side is not Side.LEGACY or uow.phase.truth is side:
        return []
    broken = shapes.lacking(uow, side)
    return [uow.catalog.legacy.set_aside(uow, p) for p in uow.statements.mapping if p.legacy_name in broken]


def _tables(uow: UnitOfWork, side: Side) -> list[str]:
    mapping = uow.statements.mapping
    if side is Side.LEGACY:
        return [pair.legacy_name for pair in mapping]
    return [table.name for table in guard_record.normalized_tables(mapping)]


def _make_missing(uow: UnitOfWork, side: Side) -> Iterator[str]:
    there = {name.lower() for name in uow.catalog.tables(uow)}
    missing = {name for name in _tables(uow, side) if name.lower() not in there}
    if side is Side.LEGACY:
        for pair in (pair for pair in uow.statements.mapping if pair.legacy_name in missing):
            uow.catalog.legacy.make_again(uow, pair)
            yield pair.legacy_name
        return
    tables = [table for table in guard_record.normalized_tables(uow.statements.mapping) if table.name in missing]
    uow.catalog.create(uow, tables)
    yield from (table.name for table in tables)


def _require_columns(uow: UnitOfWork, plan: _Plan) -> None:
    """Refuse a table that another program made and that cannot hold what is carried to it."""
    mapping = uow.statements.mapping
    models = [pair.legacy_table for pair in mapping] + guard_record.normalized_tables(mapping)
    for table in (table for table in models if table.name in plan.tables):
        there = {name.lower() for name in uow.catalog.columns(uow, table.name)}
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
    writing: Transactions, pair: Move, side: Side, work: Callable[[UnitOfWork, Any, Any], int], progress: Watch
) -> Iterator[int]:
    """Go through the rows of a side by ranges of keys, each in a transaction of its own; gives what `work` counted."""
    tally, pace = Tally(progress, pair.name), Pace()
    after: Any = None

    def chunk(uow: UnitOfWork) -> tuple[int, Any, int] | None:
        pace.begin(uow)
        sql = uow.statements[pair]
        bounds = sql.next_chunk(side)[0 if after is None else 1]
        first, last, count = uow._rows(bounds, {"_after": after, "_rows": pace.size})[0]
        if not count:
            return None
        tally.expect(lambda: uow._rows(sql.count(side, ()))[0][0])
        with _unfrozen(uow):
            return work(uow, first, last), last, int(count)

    while (done := writing.run(chunk)) is not None:
        counted, after, rows = done
        pace.end()
        yield counted
        tally.add(rows)
        pace.rest()


def _unfrozen(uow: UnitOfWork) -> AbstractContextManager[None]:
    return uow.catalog.legacy_unfrozen(uow) if uow.phase.freezes_legacy else nullcontext()


def _unequal(uow: UnitOfWork, pair: Move, side: Side, first: Any, last: Any) -> list[Any]:
    """Keys of the rows of a side in a range that have no equal on the other side."""
    look = uow.statements[pair].compare_range(side, but_recorded=False)
    ((_, wrong),) = uow._rows(look, {"_first": first, "_last": last})
    return [] if wrong is None else list(json.loads(wrong))


def _carry_over(uow: UnitOfWork, first: Any, last: Any, *, pair: Move, of: Side, plan: _Plan) -> int:
    """Carry rows that were written to the side after the loss to the other one; gives how many have new ids."""
    keys = _unequal(uow, pair, of, first, last)
    side = plan.side
    later = [key for (key,) in uow._rows(uow.statements[pair].present(side), {"_keys": json.dumps(keys)})]
    if not later:
        return 0
    there = {key for (key,) in uow._rows(uow.statements[pair].present(side.other), {"_keys": json.dumps(later)})}
    taken = [key for key in later if key in there or _was_given(plan, pair, key)]
    if is_text(pair.key):  # there is no next one
        for key in taken:
            mismatches.reject(uow, pair, key, side, ID_TAKEN_TWICE)
        carry(uow, pair, taken, side, REPLACED.format(side=side))
        renumbered = []
    else:
        renumbered = _renumber(uow, pair, taken, side)
    free = [key for key in later if key not in taken]
    for moved in (free, renumbered):
        carry(uow, pair, moved, side.other, REPLACED.format(side=side))
        reject_unequal(uow, pair, moved, side)
    return len(renumbered)


def _was_given(plan: _Plan, pair: Move, key: Any) -> bool:
    return not is_text(pair.key) and bool(key <= plan.given[pair.name])


def _renumber(uow: UnitOfWork, pair: Move, keys: Iterable[Any], side: Side) -> list[Any]:
    """Give rows of one side ids that no row had before, and keep what they were; gives the new keys."""
    table = quoted(pair.legacy_name if side is Side.LEGACY else pair.table.name)
    column, mark, new = quoted(pair.key_name(side)), uow.catalog.last_change(uow), []
    for key in keys:
        free = _free(uow, pair, side)
        images.keep(uow, pair, [key], side, RENUMBERED.format(key=free))
        uow._execute(f"UPDATE {table} SET {column} = :new WHERE {column} = :old", {"new": free, "old": key})
        new.append(free)
    uow.catalog.forget_changes(uow, after=mark)
    return new


def _free(uow: UnitOfWork, pair: Move, side: Side) -> Any:
    """An id that no row of either side has or had."""
    while True:
        free = uow.catalog.free_key(uow, pair)
        if not uow._rows(uow.statements[pair].present(side), {"_keys": json.dumps([free])}):
            return free


def _replace(uow: UnitOfWork, first: Any, last: Any, *, pair: Move, of: Side, plan: _Plan) -> int:
    """Make rows of the side what they are on the other one; gives how many were replaced or deleted."""
    keys = _unequal(uow, pair, of, first, last)
    kept = carry(uow, pair, keys, plan.side, REPLACED.format(side=plan.side))
    reject_unequal(uow, pair, keys, plan.side.other)
    return kept


def _fill(uow: UnitOfWork, first: Any, last: Any, *, pair: Move, to: Side) -> int:
    """Carry the rows of a range that the side does not have; gives how many."""
    sql, bounds = uow.statements[pair], {"_first": first, "_last": last}
    if to is Side.NORMALIZED:
        before = _unequal(uow, pair, Side.LEGACY, first, last)
        carry_range(uow, pair, first, last)
        return len(before) - len(reject_unequal(uow, pair, before, Side.LEGACY).keys)
    adopt_range(uow, pair, first, last)
    mark = uow.catalog.last_change(uow)
    count: int = uow._execute(sql.fill_legacy, bounds).rowcount
    uow.catalog.forget_changes(uow, after=mark)
    return count


def _finish(uow: UnitOfWork, *, done: Rebuilt) -> None:
    if done.side is Side.LEGACY:
        for pair in (pair for pair in uow.statements.mapping if pair.legacy_name in done.tables):
            uow.catalog.legacy.complete_again(uow, pair)
    uow.catalog.level_sequences(uow)
    if done.side is Side.NORMALIZED and uow.phase.compares:
        _set_backfilled(uow)
    mismatches.audit(
        uow, "rebuilt", side=done.side, carried=done.carried, renumbered=done.renumbered, replaced=done.replaced
    )
    state.put(uow, step=None)


def _set_backfilled(uow: UnitOfWork) -> None:
    """Every legacy row was carried just now, so there is nothing left for the backfill."""
    for pair in uow.statements.mapping:
        if backfill_progress.of(uow, pair) is None:
            backfill_progress.move(uow, pair, None, 0, finished=True)


# Tables that came back at CONTRACT ------------------------------------------------------------------------


@dataclass(frozen=True)
class Adopted:
    """What was done with the rows of a legacy table that another program made at CONTRACT.

    Attributes:
        table: The table, which is gone again.
        rows: Rows that were carried to the normalized side.
        renumbered: Those among them that have new ids, since theirs were given before.
        known: Rows that the normalized side had already.
        rejects: Rows that could not be carried; each is kept whole among the rejects.
    """

    table: str
    rows: int = 0
    renumbered: int = 0
    known: int = 0
    rejects: int = 0

    def plus(self, more: Adopted) -> Adopted:
        """What was done to some rows and to others of the same table."""
        return Adopted(
            self.table,
            self.rows + more.rows,
            self.renumbered + more.renumbered,
            self.known + more.known,
            self.rejects + more.rejects,
        )


def adopt_strays(writing: Transactions, flipping: Transactions, progress: Watch = None) -> list[Adopted]:
    """Carry the rows of legacy tables that are there at CONTRACT, and let the views stand there again.

    Args:
        writing: Opens a unit of work that carries.
        flipping: Opens one that changes tables.
        progress: Called after each chunk.

    Returns:
        What was done, for each such table.
    """
    done: list[Adopted] = []
    while names := writing.run(guards.strays):  # again, where its program wrote on meanwhile
        for pair in (pair for pair in writing.statements.mapping if pair.legacy_name in names):
            adopted = Adopted(pair.legacy_name)
            for more in _emptied(writing, pair, progress):
                adopted = adopted.plus(more)
            if adopted != Adopted(pair.legacy_name):
                done.append(adopted)
        flipping.run(_drop_empty)
    return done


def _emptied(writing: Transactions, pair: Move, progress: Watch) -> Iterator[Adopted]:
    tally, pace = Tally(progress, pair.name), Pace()
    given = writing.run(lambda uow: _given(uow, pair, Side.NORMALIZED))

    def chunk(uow: UnitOfWork) -> Adopted | None:
        if pair.legacy_name not in guards.strays(uow):
            return None
        pace.begin(uow)
        tally.expect(lambda: uow._rows(uow.statements[pair].count(Side.LEGACY, ()))[0][0])
        first, last, count = uow._rows(uow.statements[pair].next_chunk(Side.LEGACY)[0], {"_rows": pace.size})[0]
        return _adopt(uow, pair, first, last, given) if count else None

    while (adopted := writing.run(chunk)) is not None:
        pace.end()
        yield adopted
        tally.add(adopted.rows + adopted.known + adopted.rejects)
        pace.rest()


def _adopt(uow: UnitOfWork, pair: Move, first: Any, last: Any, given: int) -> Adopted:
    """Carry the rows of a range, and delete them from the table that another program made."""
    sql = uow.statements[pair]
    keys = [key for (key,) in uow._rows(sql.keys_in_range(Side.LEGACY), {"_first": first, "_last": last})]
    new = _unequal(uow, pair, Side.LEGACY, first, last)
    there = {key for (key,) in uow._rows(sql.present(Side.NORMALIZED), {"_keys": json.dumps(new)})}
    taken = [key for key in new if key in there or (not is_text(pair.key) and key <= given)]
    rejects = 0
    if is_text(pair.key):
        rejects = sum(mismatches.reject(uow, pair, key, Side.LEGACY, ID_TAKEN_TWICE) for key in taken)
        renumbered = []
    else:
        renumbered = _renumber(uow, pair, taken, Side.LEGACY)
    carried = [*(key for key in new if key not in taken), *renumbered]
    carry(uow, pair, carried, Side.NORMALIZED, ADOPTED)
    uow.catalog.go_on_above(uow, pair)
    rejected = reject_unequal(uow, pair, carried, Side.LEGACY)
    if not uow._execute(sql.delete(Side.LEGACY), {"_keys": json.dumps([*keys, *renumbered])}).rowcount:
        raise errors.MigrationError(
            f"rows of {pair.legacy_name} cannot be deleted",
            hint="nothing of this step was kept; drop the triggers of other programs on it, then try again",
            table=pair.legacy_name,
        )
    return Adopted(
        pair.legacy_name,
        rows=len(carried) - len(rejected.keys),
        renumbered=len(renumbered),
        known=len(keys) - len(new),
        rejects=rejects + rejected.new,
    )


def _drop_empty(uow: UnitOfWork) -> None:
    """Drop the tables that hold nothing any more, and let views stand in their place, in one transaction."""
    uow.catalog.keep_out(uow)
    there = guards.strays(uow)
    for pair in (pair for pair in uow.statements.mapping if pair.legacy_name in there):
        if uow._rows(uow.statements[pair].next_chunk(Side.LEGACY)[0], {"_rows": 1})[0][2]:
            continue  # written since they were carried
        rejects = keyless.reject(uow, pair, Side.LEGACY)
        uow._execute(f"DROP TABLE {quoted(pair.legacy_name)}")
        mismatches.audit(uow, "adopt table", table=pair.legacy_name, keyless=rejects)
    guards.put_up_signs(uow)
