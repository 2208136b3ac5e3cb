"""Carrying rows from one side to the other: the one step that backfill, reconcile and every way back are made of.

A row is carried by the same mapping that writes and compares it. Afterwards it is compared; what does not come
out equal becomes a reject and is not left half carried.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement, bindparam, exists, select
from sqlalchemy.orm import aliased

from consensus_orm import errors
from consensus_orm.declaration.keys import is_usable
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, images, mismatches
from consensus_orm.migration import keyless
from consensus_orm.migration.planning import Action, Choice, Plan, Undecided, What, Why, differing, plan_rows
from consensus_orm.models.control import Change
from consensus_orm.phase import Side
from consensus_orm.statements.pairs import Statements
from consensus_orm.statements.rendering import in_keys, in_range
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = [
    "DELETED_IN_RANGE",
    "Drained",
    "Outcome",
    "adopt_range",
    "carry",
    "carry_reject",
    "drain",
    "follow_deletes",
    "keys_of",
    "noted",
    "print_statements",
    "reject_unequal",
    "settle_rows",
]

CHANGES_IN_ONE_TRANSACTION = 500
"""Changes drained at once: 28 to 37 ms of write lock with rows of 8 KB (measured)."""

_LATER = aliased(Change)
DELETED = (
    select(Change.key)
    .where(Change.pair == bindparam("pair"), Change.side == bindparam("side"), Change.op == "delete")
    .where(
        ~exists()
        .where(_LATER.pair == Change.pair, _LATER.side == Change.side, _LATER.key == Change.key)
        .where(_LATER.id > Change.id, _LATER.op != "delete")
    )
    .distinct()
)
DELETED_AMONG_KEYS = DELETED.where(in_keys(mismatches.KEY))
DELETED_IN_RANGE = DELETED.where(in_range(mismatches.KEY))
"""Rows that another program deleted last: of those in `_keys`, and between `_first` and `_last`."""

NOT_EXACT = "it does not come out equal in type and bytes on the {side} side"
ID_TAKEN_TWICE = "both sides gave its id to different rows"


def carry(uow: UnitOfWork, pair: Move, keys: Iterable[Any], to: Side, why: str) -> int:
    """Make rows on one side what they are on the other: insert, overwrite, or delete.

    What is overwritten or deleted is kept first, and only that is: a row that another program adds meanwhile stands.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys.
        to: The side to write. Rows the other side does not have are deleted from it.
        why: The cause that the images are kept with; no contents.

    Returns:
        How many images were kept.
    """
    wanted = list(keys)
    if not wanted:
        return 0
    sql = uow.statements[pair]
    mark = uow.catalog.last_change(uow)
    kept = images.keep(uow, pair, wanted, to, why)
    parameters = {"_keys": json.dumps(wanted)}
    there = {key for (key,) in uow._rows(sql.present(to.other), parameters)}
    gone, there_too, new = kept - there, kept & there, there - kept
    if to is Side.NORMALIZED:
        with _parents_kept(uow, pair, parameters, why) as touched:
            _run(uow, [sql.delete(to)], gone)
            touched |= _run(uow, sql.overwrite_normalized, there_too)
            touched |= _run(uow, sql.insert_normalized_rows, new)
    else:
        _adopt(uow, pair, wanted, why)
        _run(uow, [sql.delete(to)], gone)
        _run(uow, [sql.overwrite_legacy], there_too)
        _run(uow, [sql.insert_legacy_rows], new)
    follow_deletes(uow, pair, to, DELETED_AMONG_KEYS, parameters)
    uow.catalog.forget_changes(uow, after=mark)
    return len(kept)


def _run(uow: UnitOfWork, statements: Iterable[str], keys: set[Any]) -> set[Any]:
    return keys_of(uow, statements, {"_keys": json.dumps(list(keys))}) if keys else set()


def derive(uow: UnitOfWork, pair: Move, keys: Iterable[Any], why: str) -> int:
    """Compute again what follows from the columns of normalized rows that hold the carried values already.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys.
        why: The cause that the images are kept with; no contents.

    Returns:
        How many images were kept.
    """
    wanted = list(keys)
    if not wanted:
        return 0
    mark = uow.catalog.last_change(uow)
    kept = images.keep(uow, pair, wanted, Side.NORMALIZED, why)
    _complete(uow, pair, wanted, why)
    uow.catalog.forget_changes(uow, after=mark)
    return len(kept)


def mark_known(uow: UnitOfWork, pair: Move, keys: Iterable[Any]) -> None:
    """Mark normalized rows of other programs that agree with the legacy side: nothing has to be carried."""
    before = uow.catalog.last_change(uow)
    uow._execute(uow.statements[pair].mark, {"_keys": json.dumps(list(keys))})
    uow.catalog.forget_changes(uow, after=before)


def adopt_range(uow: UnitOfWork, pair: Move, first: Any, last: Any) -> None:
    """Complete the normalized rows of a range of keys that a program of the founding schema wrote.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        first: The first key.
        last: The last key.
    """
    sql = uow.statements[pair]
    keys = [key for (key,) in uow._rows(sql.foreign_in_range, {"_first": first, "_last": last})]
    if not keys:
        return
    mark = uow.catalog.last_change(uow)
    _adopt(uow, pair, keys, "adopted on the way back")
    uow.catalog.forget_changes(uow, after=mark)


def _adopt(uow: UnitOfWork, pair: Move, keys: list[Any], why: str) -> None:
    images.keep_completed(uow, pair, keys, why)
    _complete(uow, pair, keys, why)


def _complete(uow: UnitOfWork, pair: Move, keys: list[Any], why: str) -> None:
    parameters = {"_keys": json.dumps(keys)}
    with _parents_kept(uow, pair, parameters, why) as touched:
        touched |= keys_of(uow, uow.statements[pair].adopt, parameters)


def keys_of(uow: UnitOfWork, statements: Iterable[str], parameters: dict[str, Any]) -> set[Any]:
    """Run statements that carry rows; the keys of the parents that they made, where they tell."""
    made: set[Any] = set()
    for statement in statements:
        cursor = uow._execute(statement, parameters)
        if cursor.description is not None:
            made |= {key for (key,) in cursor.fetchall()}
    return made


def follow_deletes(uow: UnitOfWork, pair: Move, side: Side, deleted: ClauseElement, parameters: dict[str, Any]) -> None:
    """Delete again what another program deleted from a side while it was carried there.

    An insert waits for whoever deletes a row of the same key, and then brings it back; and a range of rows that is
    carried may hold one whose deletion nobody has decided on.

    Args:
        uow: Has carried rows to the side.
        pair: The pair of the rows.
        side: The side.
        deleted: Which of the rows that were carried were deleted last.
        parameters: Its parameters.
    """
    facts = {**parameters, "pair": pair.name, "side": side.value}
    if not (back := [key for (key,) in uow._rows(deleted, facts)]):
        return
    gone = {"_keys": json.dumps(back)}
    with _parents_kept(uow, pair, gone, None) if side is Side.NORMALIZED else contextlib.nullcontext():
        uow._execute(uow.statements[pair].delete(side), gone)


@contextlib.contextmanager
def _parents_kept(uow: UnitOfWork, pair: Move, parameters: dict[str, Any], why: str | None) -> Iterator[set[Any]]:
    """Derive again, or remove, the parents that rows had before or have after a change, and those that it made.

    Parents that hold something else than follows from their rows are kept first, where there is a cause to name.
    """
    parent = uow.statements.of_parent(pair)
    if parent is None:
        yield set()
        return
    sql = uow.statements[pair].parents_of
    touched = {key for (key,) in uow._rows(sql, parameters)}
    if why is not None:
        images.keep_parents(uow, parent, touched, why)
    yield touched
    touched |= {key for (key,) in uow._rows(sql, parameters)}
    for statement in parent.settle:
        uow._execute(statement, {"_keys": json.dumps(list(touched))})


class Rejected(NamedTuple):
    """The keys of rows that did not come out equal, and how many of them are new among the rejects."""

    keys: set[Any]
    new: int


def reject_unequal(uow: UnitOfWork, pair: Move, keys: Iterable[Any], source: Side) -> Rejected:
    """Reject those of some rows that were carried and did not come out equal, unless somebody wrote them since.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys.
        source: The side they were carried from, which keeps them.

    Returns:
        The rejects.
    """
    unequal = _unequal(uow, pair, keys)
    rejected = _reject(uow, pair, unequal, source)
    if unequal and source is Side.LEGACY:
        mark = uow.catalog.last_change(uow)
        parameters = {"_keys": json.dumps(list(unequal))}
        with _parents_kept(uow, pair, parameters, None) as touched:
            uow._execute(uow.statements[pair].delete(Side.NORMALIZED), parameters)
            if pair.parent is not None:  # one may have been made for a row that was not taken
                touched |= {key for (key,) in uow._rows(uow.statements[pair].parents_meant, parameters)}
        uow.catalog.forget_changes(uow, after=mark)
    return rejected


def _unequal(uow: UnitOfWork, pair: Move, keys: Iterable[Any]) -> set[Any]:
    unequal = set(differing(uow, pair, keys))
    return unequal - noted(uow, pair, unequal)


def _reject(uow: UnitOfWork, pair: Move, keys: set[Any], source: Side) -> Rejected:
    reason = NOT_EXACT.format(side=source.other)
    return Rejected(keys, sum(mismatches.reject(uow, pair, key, source, reason) for key in keys))


_NOTED = select(Change.key).where(Change.pair == bindparam("pair"), in_keys(mismatches.KEY, "keys"))


def noted(uow: UnitOfWork, pair: Move, keys: Iterable[Any]) -> set[Any]:
    """Those of some rows that another program has written and that are still to be carried for it.

    On a server it may have written them since this unit of work looked at them.
    """
    if not (wanted := list(keys)):
        return set()
    return {key for (key,) in uow._rows(_NOTED, {"pair": pair.name, "keys": json.dumps(wanted)})}


def carry_reject(uow: UnitOfWork, reject: mismatches.OpenReject) -> bool:
    """Carry a rejected row from where it stands to the other side.

    Args:
        uow: Holds the write lock, in a phase in which both sides are written.
        reject: The reject.

    Returns:
        Whether it came out equal; where it did not, nothing has changed. Of a row whose key could not be used,
        whether it has another one by now, or is gone.

    Raises:
        InvalidValueError: Its row stands nowhere any more: it was deleted, or another one has its id.
    """
    pair, key, side, reason, _ = reject
    if keyless.concerns(reject):
        return not keyless.stands(uow, reject)
    present = uow.statements[pair].present(side)
    if key is None or reason == ID_TAKEN_TWICE or not uow._rows(present, {"_keys": json.dumps([key])}):
        raise errors.InvalidValueError(
            "nothing is left to carry of this reject", hint="its image is kept; accept it with a reason", field="id"
        )
    carry(uow, pair, [key], side.other, "a reject was resolved")
    reject_unequal(uow, pair, [key], side)
    return not differing(uow, pair, [key])


def print_statements(statements: Statements) -> None:
    """Have all that carries rows by keys ready before a lock is taken: the first use of it would keep writers out."""
    for pair in statements.mapping:
        sql, parent = statements[pair], statements.of_parent(pair)
        _ = sql.both_sides, sql.foreign_in_keys, sql.mark, sql.adopt
        _ = sql.overwrite_normalized, sql.insert_normalized_rows, sql.overwrite_legacy, sql.insert_legacy_rows
        for side in Side:
            _ = sql.present(side), sql.delete(side)
        if parent is not None:
            _ = sql.parents_of, sql.parents_meant, parent.settle
        images.print_statements(sql, parent)


class Drained(NamedTuple):
    """How many changes were looked at, and how many of them are settled: the others wait for a choice."""

    looked_at: int
    carried: int


def drain(uow: UnitOfWork, *, limit: int = CHANGES_IN_ONE_TRANSACTION) -> Drained:
    """Settle rows that one side alone was written with, as far as that needs no choice (`planning`).

    Args:
        uow: Holds the write lock; in phase NORMALIZED the legacy tables are unfrozen for it.
        limit: At most so many changes.

    Returns:
        How many changes there were; none where all that are left wait for a choice.
    """
    waiting, looked_at = changes.waiting(uow, limit)
    done = [settle_rows(uow, uow.statements.mapping[name], keys, None) for name, keys in waiting.items()]
    left = sum(outcome.left for outcome in done)
    return Drained(looked_at, looked_at - left)


@dataclass
class Outcome:
    """What was done about some rows.

    Attributes:
        actions: What was done.
        undecided: Rows that wait for a choice.
        images: How many rows were kept before they were overwritten or deleted.
        rejects: How many rows became rejects.
        left: How many changes that were not looked at before wait for a choice.
    """

    actions: list[Action] = field(default_factory=list)
    undecided: list[Undecided] = field(default_factory=list)
    images: int = 0
    rejects: int = 0
    left: int = 0

    def add(self, other: Outcome) -> None:
        """Count what was done besides."""
        self.actions += other.actions
        self.undecided += other.undecided
        self.images += other.images
        self.rejects += other.rejects
        self.left += other.left


def settle_rows(uow: UnitOfWork, pair: Move, keys: Iterable[Any], choice: Choice) -> Outcome:
    """Do about some rows what is planned for them, and settle what was found of them before.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys.
        choice: What is done with writes of other programs to the side that is not the truth.

    Returns:
        What was done.
    """
    wanted = list(keys)
    plan = plan_rows(uow, pair, wanted, choice)
    outcome = Outcome(plan.actions, plan.undecided)
    if not all(is_usable(pair, key) for key in wanted):
        outcome.rejects += keyless.settle(uow, pair)
    _leave_undecided(uow, plan, outcome)
    waits = {row.key for row in plan.undecided}
    # Before anything is carried: what is recorded from now on was not looked at.
    changes.forget(uow, [written for key, written in plan.written.items() if key not in waits])
    of_others = [key for key in plan.settled if key in plan.written]
    if of_others:
        mark_known(uow, pair, of_others)
    mismatches.settle(uow, pair, plan.settled, "repaired", "both sides agree")
    for key in [action.key for action in plan.actions if action.why is Why.TWICE]:
        outcome.rejects += mismatches.reject(uow, pair, key, uow.phase.truth.other, ID_TAKEN_TWICE)
    with uow.catalog.legacy_unfrozen(uow) if plan.actions else contextlib.nullcontext():
        for (derives, side, why), found in _grouped(plan.actions).items():
            kept, rejected = _act(uow, pair, found, derives, side, why)
            outcome.images += kept
            outcome.rejects += rejected.new
            mismatches.settle(uow, pair, set(found) - rejected.keys, "repaired", why)
            mismatches.settle(uow, pair, rejected.keys, "rejected", "it cannot be carried; see the rejects")
    return outcome


def _leave_undecided(uow: UnitOfWork, plan: Plan, outcome: Outcome) -> None:
    new = {row.key: row.did for row in plan.undecided if plan.written[row.key].unseen}
    if new:
        outcome.left = sum(plan.written[key].unseen for key in new)
        changes.leave(uow, [plan.written[key] for key in new])
        mismatches.record_undecided(uow, plan.pair, new)


def _grouped(actions: list[Action]) -> dict[tuple[bool, Side, Why], list[Any]]:
    groups: dict[tuple[bool, Side, Why], list[Any]] = {}
    for action in actions:
        groups.setdefault((action.what is What.DERIVE, action.side, action.why), []).append(action.key)
    return groups


def _act(uow: UnitOfWork, pair: Move, keys: list[Any], derives: bool, side: Side, why: Why) -> tuple[int, Rejected]:
    """Do one thing to some rows; gives how many images were kept, and what could not be carried."""
    if derives:
        kept = derive(uow, pair, keys, why)
        return kept, reject_unequal(uow, pair, keys, uow.phase.truth)
    if side is uow.phase.truth:
        return _take_over(uow, pair, keys, side, why)
    kept = carry(uow, pair, keys, side, why)
    return kept, reject_unequal(uow, pair, keys, side.other)


def _take_over(uow: UnitOfWork, pair: Move, keys: list[Any], to: Side, why: Why) -> tuple[int, Rejected]:
    """Carry rows to the side that reads are answered from, each exactly or not at all."""
    uow._execute("SAVEPOINT taken_over")
    kept = carry(uow, pair, keys, to, why)
    unequal = _unequal(uow, pair, keys)
    if unequal:
        uow._execute("ROLLBACK TO SAVEPOINT taken_over")
        kept = carry(uow, pair, [key for key in keys if key not in unequal], to, why)
    uow._execute("RELEASE SAVEPOINT taken_over")
    return kept, _reject(uow, pair, unequal, to.other)
