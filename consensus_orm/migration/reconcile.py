"""Reconcile: make both sides equal, as the planner says (`planning`), and keep whatever that overwrites or deletes.

A look at both sides says which rows differ, and the planner what is to be done about them: that is the preview. Whoever
acts asks the same planner again, under the lock and for the same rows, and does what it says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import bindparam, select

from consensus_orm.ledgers import changes, images, mismatches
from consensus_orm.migration.carrying import CHANGES_IN_ONE_TRANSACTION, Outcome, print_statements, settle_rows
from consensus_orm.migration.pace import Pace
from consensus_orm.migration.planning import Action, Choice, Undecided, What, Why, plan_rows, require_choice
from consensus_orm.migration.rebuild import Adopted, Rebuilt
from consensus_orm.migration.transactions import Transactions
from consensus_orm.migration.verify import Seen, require_epoch, scan
from consensus_orm.models.control import Mismatch
from consensus_orm.phase import Side
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["ReconcileReport", "reconcile", "repair_open"]


@dataclass(frozen=True)
class ReconcileReport:
    """What reconcile did, or would do.

    Attributes:
        dry_run: Whether nothing was written.
        actions: What was done to which row, or would be.
        undecided: Rows that another program changed or deleted on the side that is not the truth: they stay as they
            are until somebody chooses to adopt or to repair them.
        images: How many rows were kept before they were overwritten or deleted; 0 where nothing was written.
        rejects: Rows that could not be carried.
        rebuilt: What was done to make a side again, where that was asked for.
        adopted_tables: What was done with the rows of legacy tables that another program made at CONTRACT.
    """

    dry_run: bool
    actions: tuple[Action, ...]
    undecided: tuple[Undecided, ...]
    images: int
    rejects: int
    rebuilt: Rebuilt | None = None
    adopted_tables: tuple[Adopted, ...] = ()

    @property
    def adopted(self) -> int:
        """How many rows were settled that another program had written."""
        return sum(action.why.foreign for action in self.actions)

    @property
    def repairs(self) -> tuple[Action, ...]:
        """What was done about rows whose sides differed though no other program was noticed."""
        return tuple(action for action in self.actions if not action.why.foreign)


@dataclass(frozen=True)
class _Survey:
    """What a look at both sides found, and what the planner says about it."""

    seen: Seen
    keys: dict[str, list[Any]] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    undecided: list[Undecided] = field(default_factory=list)

    @property
    def parents(self) -> Iterator[Action]:
        for parent, keys in self.seen.parents.items():
            yield from (Action(parent, key, What.DERIVE, Side.NORMALIZED, Why.DERIVED) for key in keys)


def reconcile(
    reading: Transactions,
    writing: Transactions,
    *,
    foreign: Choice = None,
    dry_run: bool = False,
    progress: Watch = None,
) -> ReconcileReport:
    """Make both sides equal.

    Args:
        reading: Opens a read-only unit of work.
        writing: Opens a writing one.
        foreign: What is done with rows that another program changed or deleted on the side that is not the truth:
            adopt them, repair them, or (None) leave them as they are.
        dry_run: Only tell what would be done.
        progress: Called after each chunk of the comparison.

    Returns:
        What was done.

    Raises:
        WrongPhaseError: There are no two sides.
        InvalidValueError: There is no such choice.
    """
    require_choice(foreign)
    survey = reading.repeat(lambda: _look(reading, foreign, progress))
    if survey.actions and not dry_run:
        print_statements(writing.statements)
    if dry_run:
        actions = (*survey.actions, *survey.parents)
        return ReconcileReport(True, actions, tuple(survey.undecided), images=0, rejects=0)
    done, pace = Outcome(), Pace(CHANGES_IN_ONE_TRANSACTION)
    for name, keys in survey.keys.items():
        start = 0
        while start < len(keys):
            chunk = partial(_settle_chunk, seen=survey.seen, name=name, keys=keys, start=start, foreign=foreign)
            done.add(writing.run(partial(chunk, pace=pace)))
            pace.end()
            start += pace.size
            pace.rest()
    done = writing.run(partial(_finish, survey=survey, done=done, foreign=foreign))
    return ReconcileReport(False, tuple(done.actions), tuple(done.undecided), done.images, done.rejects)


def _look(reading: Transactions, foreign: Choice, progress: Watch) -> _Survey:
    survey = _Survey(scan(reading, progress))
    with reading() as uow:
        for pair in uow.statements.mapping:
            # In the other phases what is recorded is no write of another program: it waits for the way back.
            written = changes.keys_of(uow, pair) if uow.phase.compares else ()
            keys = list(dict.fromkeys((*written, *survey.seen.doubtful.get(pair.name, ()))))
            survey.keys[pair.name] = keys
            for start in range(0, len(keys), CHANGES_IN_ONE_TRANSACTION):
                plan = plan_rows(uow, pair, keys[start : start + CHANGES_IN_ONE_TRANSACTION], foreign)
                survey.actions.extend(plan.actions)
                survey.undecided.extend(plan.undecided)
    return survey


def _settle_chunk(
    uow: UnitOfWork, *, seen: Seen, name: str, keys: list[Any], start: int, foreign: Choice, pace: Pace
) -> Outcome:
    require_epoch(uow, seen)
    pace.begin(uow)
    return settle_rows(uow, uow.statements.mapping[name], keys[start : start + pace.size], foreign)


def _finish(uow: UnitOfWork, *, survey: _Survey, done: Outcome, foreign: Choice) -> Outcome:
    """Settle the parents and whatever was written or found meanwhile, and keep in the audit what was done."""
    require_epoch(uow, survey.seen)
    whole = Outcome()
    whole.add(done)
    for parent, keys in survey.seen.parents.items():
        of = uow.statements.parents[parent]
        whole.images += len(images.keep_parents(uow, of, keys, Why.DERIVED))
        for statement in of.settle:
            uow._execute(statement, {"_keys": json.dumps(keys)})
    whole.actions += survey.parents
    whole.add(repair_open(uow))
    foreigners = sum(action.why.foreign for action in whole.actions)
    mismatches.audit(
        uow,
        "reconcile",
        foreign=foreign,
        adopted=foreigners,
        repaired=len(whole.actions) - foreigners,
        undecided=len(whole.undecided),
        images=whole.images,
        rejects=whole.rejects,
    )
    return whole


_MISMATCHED = (
    select(Mismatch.key)
    .where(Mismatch.pair == bindparam("pair"), Mismatch.state.in_(mismatches.OPEN), Mismatch.key.is_not(None))
    .distinct()
)


def repair_open(uow: UnitOfWork) -> Outcome:
    """Settle what nobody has looked at yet, and the rows of all open mismatches.

    Args:
        uow: Holds the write lock.

    Returns:
        What was done; rows that wait for a choice go on waiting.
    """
    done = Outcome()
    unseen = changes.waiting(uow, CHANGES_IN_ONE_TRANSACTION)[0] if uow.phase.compares else {}
    for pair in uow.statements.mapping if uow.phase.has_legacy else ():
        found = [key for (key,) in uow._rows(_MISMATCHED, {"pair": pair.name})]
        waiting = changes.undecided_among(uow, pair, found) if uow.phase.compares else set()
        keys = dict.fromkeys((*unseen.get(pair.name, ()), *(key for key in found if key not in waiting)))
        done.add(settle_rows(uow, pair, keys, None))
        if not (uow.phase.compares and changes.some_undecided(uow, pair)):
            mismatches.settle_storms(uow, pair)
    return done
