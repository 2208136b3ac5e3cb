"""Reconcile: makes both sides equal as planned (`planning`), and keeps an image of whatever that overwrites or deletes.

A comparison of both sides says which rows differ, and the plan says what is to be done about them: that is the preview.
To act, reconcile plans again for the same rows under the lock, and carries out that plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from consensus_orm import errors
from consensus_orm.ledgers import audit, changes, images, mismatches
from consensus_orm.ledgers.binding import Key, among
from consensus_orm.ledgers.selection import Selection
from consensus_orm.migration.carrying import print_statements
from consensus_orm.migration.pace import Pace
from consensus_orm.migration.planning import Action, Choice, Undecided, What, Why, plan_rows, require_choice
from consensus_orm.migration.rebuild import Rebuilt
from consensus_orm.migration.settling import CHANGES_IN_ONE_TRANSACTION, Outcome, settle_open, settle_rows
from consensus_orm.migration.strays import Adopted
from consensus_orm.migration.transactions import Transactions
from consensus_orm.migration.verify import Seen, require_epoch, require_two_sides, scan
from consensus_orm.models.control import Mismatch
from consensus_orm.phase import Side
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["ReconcileReport", "reconcile"]


@dataclass(frozen=True)
class ReconcileReport:
    """What reconcile did, or would do.

    Attributes:
        dry_run: Whether nothing was written.
        actions: What was done to which row, or would be.
        undecided: Rows that another program changed or deleted on the side that is not the truth: they stay as they
            are until the operator chooses to adopt or to repair them.
        images: How many rows were kept before they were overwritten or deleted; 0 where nothing was written.
        rejects: Rows that could not be carried.
        rebuilt: What was done to make a side again, where that was asked for.
        adopted_tables: What was done with the rows of legacy tables that another program made at CONTRACT.
    """

    dry_run: bool
    actions: tuple[Action, ...] = ()
    undecided: tuple[Undecided, ...] = ()
    images: int = 0
    rejects: int = 0
    rebuilt: Rebuilt | None = None
    adopted_tables: tuple[Adopted, ...] = ()

    @property
    def adopted(self) -> int:
        """How many rows were settled that another program had written."""
        return sum(action.why.foreign for action in self.actions)

    @property
    def repairs(self) -> tuple[Action, ...]:
        """What was done about rows whose sides differed although no write of another program was noticed."""
        return tuple(action for action in self.actions if not action.why.foreign)


@dataclass(frozen=True)
class _Survey:
    """What a comparison of both sides found, and what is planned about it."""

    seen: Seen
    keys: dict[str, list[Key]] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    undecided: list[Undecided] = field(default_factory=list)

    @property
    def parents(self) -> Iterator[Action]:
        for parent, keys in self.seen.parents.items():
            yield from (Action(parent, key, What.DERIVE, Side.NORMALIZED, Why.DERIVED) for key in keys)


def reconcile(
    reading: Transactions,
    writing: Transactions,
    selection: Selection,
    *,
    foreign: Choice = None,
    dry_run: bool = False,
    reason: str | None = None,
    progress: Watch = None,
) -> ReconcileReport:
    """Make both sides equal, or the selected rows of them; see `Migration.reconcile`."""
    require_choice(foreign)
    survey = reading.repeat(lambda: _look(reading, selection, foreign, progress))
    if dry_run:
        return ReconcileReport(True, (*survey.actions, *survey.parents), tuple(survey.undecided))
    if survey.actions:
        print_statements(writing.statements)
    done = Outcome()
    for chunk in _settled(writing, survey, foreign):
        done += chunk
    done = writing.run(lambda uow: _finish(uow, survey, done, selection, foreign=foreign, reason=reason))
    return ReconcileReport(False, done.actions, done.undecided, done.images, done.rejects)


def _look(reading: Transactions, selection: Selection, foreign: Choice, progress: Watch) -> _Survey:
    survey = _Survey(_selected(reading, selection) if selection.numbers else scan(reading, progress, selection))
    with reading() as uow:
        for name in selection.pairs(uow):
            pair = uow.statements.moves[name]
            # In the other phases the records are of all writes, and wait for the way back.
            written = changes.recorded_keys(uow, pair) if uow.phase.compares and not selection.numbers else ()
            known = mismatches.open_keys(uow, pair) if selection.table is not None else ()
            keys = list(dict.fromkeys((*written, *known, *survey.seen.doubtful.get(pair.name, ()))))
            survey.keys[pair.name] = keys
            for start in range(0, len(keys), CHANGES_IN_ONE_TRANSACTION):
                plan = plan_rows(uow, pair, keys[start : start + CHANGES_IN_ONE_TRANSACTION], foreign)
                survey.actions.extend(plan.actions)
                survey.undecided.extend(plan.undecided)
    return survey


def _selected(reading: Transactions, selection: Selection) -> Seen:
    """The rows of some mismatches, without a comparison of all others."""
    with reading() as uow:
        require_two_sides(uow.phase)
        seen = Seen(epoch=uow.epoch)
        for entry in selection.entries(uow, Mismatch):
            if entry.key is None:
                raise errors.InvalidValueError(
                    f"mismatch {entry.number} stands for many rows",
                    hint=f"run: consensus-orm reconcile --table {entry.pair}",
                    field="numbers",
                )
            seen.doubtful.setdefault(entry.pair, []).append(entry.key)
        return seen


def _settled(writing: Transactions, survey: _Survey, foreign: Choice) -> Iterator[Outcome]:
    """Settle the rows of the survey in short transactions."""
    pace = Pace(writing, CHANGES_IN_ONE_TRANSACTION)

    def settle(uow: UnitOfWork, name: str, keys: list[Key]) -> Outcome:
        require_epoch(uow, survey.seen)
        pace.begin(uow)
        return settle_rows(uow, uow.statements.moves[name], keys[: pace.size], foreign)

    for name, keys in survey.keys.items():
        left = keys
        while left:
            yield writing.run(partial(settle, name=name, keys=left))
            pace.end()
            left = left[pace.size :]
            pace.rest()


def _finish(
    uow: UnitOfWork, survey: _Survey, done: Outcome, selection: Selection, *, foreign: Choice, reason: str | None
) -> Outcome:
    """Settle the parents and whatever was written or found meanwhile, and add an entry to the audit.

    Of a selection nothing is settled that was not selected.
    """
    require_epoch(uow, survey.seen)
    kept = 0
    for parent, keys in survey.seen.parents.items():
        of = uow.statements.parents[parent]
        kept += len(images.keep_parents(uow, of, keys, Why.DERIVED))
        for statement in of.settle:
            uow._execute(statement, among(keys))
    whole = done + Outcome(tuple(survey.parents), images=kept)
    if not selection:
        whole += settle_open(uow)
    elif selection.table is not None:
        _settle_storms(uow, selection)
    foreigners = sum(action.why.foreign for action in whole.actions)
    audit.add(
        uow,
        "reconcile",
        reason=reason,
        **_named(selection),
        foreign=foreign,
        adopted=foreigners,
        repaired=len(whole.actions) - foreigners,
        undecided=len(whole.undecided),
        images=whole.images,
        rejects=whole.rejects,
    )
    return whole


def _settle_storms(uow: UnitOfWork, selection: Selection) -> None:
    """Close the entries that stand for many rows of a table, all of which were compared."""
    for name in selection.pairs(uow):
        pair = uow.statements.moves[name]
        if not (uow.phase.compares and changes.some_undecided(uow, pair)):
            mismatches.settle_storms(uow, pair)


def _named(selection: Selection) -> dict[str, Any]:
    """What was selected, for the audit."""
    if not selection:
        return {}
    numbers = [str(n) if isinstance(n, int) else f"{n[0]}-{n[-1]}" for n in selection.numbers]
    return {"selected": selection.table or numbers}
