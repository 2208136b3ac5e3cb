"""Settling rows whose sides differ: what is planned for them is done, and what was recorded of them is forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from consensus_orm.declaration.keys import is_usable
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, mismatches, rejects
from consensus_orm.ledgers.binding import Key
from consensus_orm.migration import keyless
from consensus_orm.migration.carrying import (
    ID_TAKEN_TWICE,
    Rejected,
    carry_fitting,
    reject,
    reject_unequal,
    rejected_dependents,
    unequal_among,
)
from consensus_orm.migration.planning import Action, Choice, Plan, Undecided, What, Why, plan_rows
from consensus_orm.phase import Side
from consensus_orm.repository.carrying import derive, mark_known
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["CHANGES_IN_ONE_TRANSACTION", "Drained", "Outcome", "drain", "settle_open", "settle_rows"]

CHANGES_IN_ONE_TRANSACTION = 500
"""Changes drained at once: 28 to 37 ms of write lock with rows of 8 KB (measured)."""


@dataclass(frozen=True)
class Outcome:
    """What was done about some rows.

    Attributes:
        actions: What was done.
        undecided: Rows that wait for a choice.
        images: How many rows were imaged before they were overwritten or deleted.
        rejects: How many rows became rejects.
        left: How many changes that were not looked at before wait for a choice.
    """

    actions: tuple[Action, ...] = ()
    undecided: tuple[Undecided, ...] = ()
    images: int = 0
    rejects: int = 0
    left: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.actions + other.actions,
            self.undecided + other.undecided,
            self.images + other.images,
            self.rejects + other.rejects,
            self.left + other.left,
        )


class Drained(NamedTuple):
    """How many changes were looked at, and how many of them are settled: the others wait for a choice."""

    looked_at: int
    carried: int


def drain(uow: UnitOfWork, *, limit: int = CHANGES_IN_ONE_TRANSACTION) -> Drained:
    """Settle at most so many changes of which only one side was written, as far as that needs no choice.

    Returns:
        How many changes there were; none where all that are left wait for a choice.
    """
    waiting, looked_at = changes.waiting(uow, limit)
    left = sum(settle_rows(uow, uow.statements.moves[name], keys, None).left for name, keys in waiting.items())
    return Drained(looked_at, looked_at - left)


def settle_open(uow: UnitOfWork) -> Outcome:
    """Settle changes that were not looked at yet, and the rows of all open mismatches, under the write lock.

    Rows that wait for a choice go on waiting.
    """
    done = Outcome()
    compares = uow.phase.compares
    unseen = changes.waiting(uow, CHANGES_IN_ONE_TRANSACTION)[0] if compares else {}
    for pair in uow.statements.moves if uow.phase.has_legacy else ():
        found = mismatches.open_keys(uow, pair)
        waiting = changes.undecided_among(uow, pair, found) if compares else set()
        keys = dict.fromkeys((*unseen.get(pair.name, ()), *(key for key in found if key not in waiting)))
        done += settle_rows(uow, pair, keys, None)
        if not (compares and changes.some_undecided(uow, pair)):
            mismatches.settle_storms(uow, pair)
    return done


def settle_rows(uow: UnitOfWork, pair: Move, keys: Iterable[Key], choice: Choice) -> Outcome:
    """Do what is planned for some rows, under the write lock, and settle what was found of them before."""
    wanted = list(keys)
    for side in Side if wanted else ():
        wanted += rejected_dependents(uow, pair, wanted, side)
    plan = plan_rows(uow, pair, wanted, choice)
    may_be_nameless = any(pair.only.values()) or not all(is_usable(pair, key) for key in wanted)
    new_rejects = keyless.settle(uow, pair) if wanted and may_be_nameless else 0
    left = _leave_undecided(uow, plan)
    _forget_settled(uow, plan)
    for key in [action.key for action in plan.actions if action.why is Why.TWICE]:
        new_rejects += rejects.reject(uow, pair, key, uow.phase.truth.other, ID_TAKEN_TWICE)
    images = 0
    with uow.catalog.legacy_unfrozen(uow) if plan.actions else contextlib.nullcontext():
        for (derives, side, why), found in _grouped(plan.actions).items():
            kept, rejected = _act(uow, pair, found, derives, side, why)
            images += kept
            new_rejects += rejected.new
            mismatches.settle(uow, pair, set(found) - rejected.keys, "repaired", why)
            mismatches.settle(uow, pair, rejected.keys, "rejected", "it cannot be carried; see the rejects")
    return Outcome(tuple(plan.actions), tuple(plan.undecided), images, new_rejects, left)


def _leave_undecided(uow: UnitOfWork, plan: Plan) -> int:
    """Mark the changes that wait for a choice, and record their rows; returns how many changes are new."""
    new = {row.key: row.did for row in plan.undecided if plan.written[row.key].unseen}
    if new:
        changes.leave(uow, [plan.written[key] for key in new])
        mismatches.record_undecided(uow, plan.pair, new)
    return sum(plan.written[key].unseen for key in new)


def _forget_settled(uow: UnitOfWork, plan: Plan) -> None:
    """Forget what was recorded of rows that need no choice, and close the mismatches of those that agree by now."""
    waits = {row.key for row in plan.undecided}
    # Before anything is carried: what is recorded from now on was not looked at.
    changes.forget(uow, [written for key, written in plan.written.items() if key not in waits])
    if of_others := [key for key in plan.settled if key in plan.written]:
        mark_known(uow, plan.pair, of_others)
    mismatches.settle(uow, plan.pair, plan.settled, "repaired", "both sides agree")


def _grouped(actions: list[Action]) -> dict[tuple[bool, Side, Why], list[Key]]:
    groups: dict[tuple[bool, Side, Why], list[Key]] = {}
    for action in actions:
        groups.setdefault((action.what is What.DERIVE, action.side, action.why), []).append(action.key)
    return groups


def _act(uow: UnitOfWork, pair: Move, keys: list[Key], derives: bool, side: Side, why: Why) -> tuple[int, Rejected]:
    """Do the same thing to some rows; returns how many images were kept, and what could not be carried."""
    truth = uow.phase.truth
    if derives:
        kept = derive(uow, pair, keys, why)
        return kept, reject_unequal(uow, pair, keys, truth)
    if side is truth:
        return _take_over(uow, pair, keys, side, why)
    kept = carry_fitting(uow, pair, keys, side, why)
    return kept, reject_unequal(uow, pair, keys, side.other)


def _take_over(uow: UnitOfWork, pair: Move, keys: list[Key], to: Side, why: Why) -> tuple[int, Rejected]:
    """Carry rows to the side that reads are answered from, each exactly or not at all."""
    left, unequal = list(keys), set[Key]()
    uow._execute("SAVEPOINT taken_over")
    kept = carry_fitting(uow, pair, left, to, why)
    while found := unequal_among(uow, pair, left):  # again, because others may refer to those that are left out
        unequal |= found
        left = [key for key in left if key not in found]
        uow._execute("ROLLBACK TO SAVEPOINT taken_over")
        kept = carry_fitting(uow, pair, left, to, why)
    uow._execute("RELEASE SAVEPOINT taken_over")
    return kept, reject(uow, pair, unequal, to.other)
