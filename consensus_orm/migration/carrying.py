"""Carrying rows from one side to the other: what backfill, reconcile and every way back are made of.

A row is carried by the declaration that also writes and compares it. Afterwards it is compared; a row that does not
come out equal becomes a reject, and is not left half carried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from consensus_orm import errors
from consensus_orm.declaration.move import Move
from consensus_orm.formats import count, series
from consensus_orm.ledgers import changes, images, rejects
from consensus_orm.ledgers.binding import Key, among, keys_of
from consensus_orm.migration import keyless
from consensus_orm.migration.planning import differing
from consensus_orm.migration.ranges import Range
from consensus_orm.phase import Phase, Side
from consensus_orm.repository.carrying import adopt, carry, follow_deletes, linked_range, parents_settled
from consensus_orm.statements.pairs import Statements
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = [
    "ID_TAKEN_TWICE",
    "Rejected",
    "adopt_range",
    "carry_fitting",
    "carry_range",
    "carry_reject",
    "is_newer",
    "print_statements",
    "reject",
    "reject_unequal",
    "rejected_dependents",
    "require_carriable",
    "require_dual_write",
    "settle_unequal",
    "unequal_among",
    "unless_refused",
]

T = TypeVar("T")

NOT_EXACT = "it does not come out equal in type and bytes on the {side} side"
REFERS_TO_NONE = "it refers to row {key}, which is not on the {side} side"
ID_TAKEN_TWICE = "both sides gave its id to different rows"


def require_dual_write(phase: Phase) -> None:
    """Refuse a phase in which rows would be missed, or have nowhere to go."""
    if not phase.compares:
        hint = "run: consensus-orm advance dual_write" if phase < Phase.DUAL_WRITE else "there is nothing to do"
        raise errors.WrongPhaseError(
            f"the backfill runs while both sides are written, and the phase is {phase.name}",
            hint=hint,
            phase=phase,
        )


# By ranges of keys ----------------------------------------------------------------------------------------


def carry_range(uow: UnitOfWork, pair: Move, of: Range) -> None:
    """Carry the legacy rows of a range of keys that have no normalized row; none where one of them is refused."""
    unless_refused(uow, lambda: _carry_range(uow, pair, of))


def _carry_range(uow: UnitOfWork, pair: Move, of: Range) -> None:
    sql, parents = uow.statements[pair], uow.statements.of_parents(pair)
    # A trigger of another program may have changed a row meanwhile; no such write is adopted: the legacy side decides.
    with changes.not_recorded(uow):
        if sql.carry_new is not None:
            (parent,), ((doubtful,),) = parents, uow._rows(sql.carry_new, of.bounds)
            for statement in () if doubtful is None else parent.settle:
                uow._execute(statement, {"_keys": doubtful})
        else:
            refresh = [statement for parent in parents for statement in parent.refresh_in_range(sql.pair)]
            with linked_range(uow, pair, of.bounds, Side.NORMALIZED):
                for statement in (*sql.backfill, *refresh):
                    uow._execute(statement, of.bounds)
        deleted = changes.deleted_between(uow, pair, Side.NORMALIZED, of.first, of.last)
        follow_deletes(uow, pair, Side.NORMALIZED, deleted)


def carry_fitting(uow: UnitOfWork, pair: Move, keys: Iterable[Key], to: Side, why: str) -> int:
    """Carry rows by their keys as far as the other side takes them; the rows that it refuses stay unequal.

    A constraint or a type that refuses one row fails the statement for all of them. Where that happens the rows are
    carried by halves, until the refused ones are found.

    Returns:
        How many rows there were on that side; each is kept as an image, also where its successor was refused.
    """
    wanted = list(keys)
    if not wanted:
        return 0
    with _not_echoed(uow, to) if to is uow.phase.truth else contextlib.nullcontext():
        kept = unless_refused(uow, lambda: carry(uow, pair, wanted, to, why))
    if kept is not None:
        return kept
    if len(wanted) == 1:
        return len(images.keep(uow, pair, wanted, to, why))
    half = len(wanted) // 2
    return sum(carry_fitting(uow, pair, part, to, why) for part in (wanted[:half], wanted[half:]))


@contextlib.contextmanager
def _not_echoed(uow: UnitOfWork, to: Side) -> Iterator[None]:
    """Refuse triggers of other programs that insert rows on one side while rows of it are adopted by the other.

    Such rows would have to be adopted in turn, without end.

    Raises:
        MigrationError: There are such triggers.
    """
    if not (names := uow.catalog.triggers_of_others(uow)):
        yield
        return
    before = uow.catalog.inserted(uow, to.other)
    yield
    if (rows := uow.catalog.inserted(uow, to.other) - before) > 0:
        raise errors.MigrationError(
            f"while rows were adopted by the {to} side, a trigger of another program inserted"
            f" {count(rows, 'row')} on the {to.other} side, which would have to be adopted in turn",
            hint=f"nothing of this step was kept; drop or disable it ({series(names)}), then try again",
            triggers=names,
        )


def unless_refused(uow: UnitOfWork, work: Callable[[], T]) -> T | None:
    """Do some work in a savepoint; None where the database refuses one of its rows, and then nothing was done."""
    uow._connected.savepoint("SAVEPOINT fitting")
    done = None
    try:
        done = work()
    except errors.ConsensusError as error:
        if not _is_refusal(uow, error):
            raise
        try:
            uow._connected.savepoint("ROLLBACK TO SAVEPOINT fitting")
        except uow._connected.Error:  # a trigger has ended the whole transaction
            raise error from None
    uow._connected.savepoint("RELEASE SAVEPOINT fitting")
    return done


def _is_refusal(uow: UnitOfWork, error: errors.ConsensusError) -> bool:
    """Whether a database refused a row for its contents: by a constraint or a type.

    An error that a trigger raises may say anything, of every row of the table: the step ends, and the operator looks.
    """
    driver, cause = uow.engine.dialect.loaded_dbapi, error.__cause__
    is_raised = getattr(cause, "sqlite_errorname", "") == "SQLITE_CONSTRAINT_TRIGGER"
    of_values = isinstance(cause, (driver.IntegrityError, driver.DataError))
    return of_values and not is_raised and not isinstance(error, errors.KeysUsedUpError)


def adopt_range(uow: UnitOfWork, pair: Move, of: Range) -> None:
    """Complete the normalized rows of a range of keys that a program of the founding schema wrote."""
    if keys := keys_of(uow, uow.statements[pair].foreign_in_range, of.bounds):
        with changes.not_recorded(uow):
            adopt(uow, pair, keys, "adopted on the way back")


def is_newer(uow: UnitOfWork, pair: Move, of: Range, until: Key) -> bool:
    """Whether the rows of a range were written since the run began: on both sides, or recorded.

    Without this, writers that are faster than the backfill would keep it from its end.
    """
    # The database compares: ranges follow the order of its keys, which is not always that of Python.
    return bool(uow._rows(uow.statements[pair].comes_after, {"_first": of.first, "_until": until}))


def settle_unequal(uow: UnitOfWork, pair: Move, doubtful: list[Key]) -> int:
    """Carry rows that did not come out equal once more, and reject those that still do not; returns how many."""
    if not doubtful:
        return 0
    unequal = keys_of(uow, uow.statements[pair].unequal_in_keys, among(doubtful))
    # A row that another program wrote is carried later, with its change.
    known = rejects.on_one_side(uow, pair, Side.LEGACY) | changes.recorded_among(uow, pair, unequal)
    stale = [key for key in unequal if key not in known]
    carry_fitting(uow, pair, stale, Side.NORMALIZED, "the backfill carried the legacy row")
    return reject_unequal(uow, pair, stale, Side.LEGACY).new


# Rejects --------------------------------------------------------------------------------------------------


class Rejected(NamedTuple):
    """The keys of rows that did not come out equal, and how many of them are new among the rejects."""

    keys: set[Key]
    new: int


def reject_unequal(uow: UnitOfWork, pair: Move, keys: Iterable[Key], source: Side) -> Rejected:
    """Reject those of some carried rows that did not come out equal, unless another program wrote them since.

    They stay on the source, and are deleted from the normalized side where that is the other one. So are the rows that
    refer to them.
    """
    sql, wanted = uow.statements[pair], list(keys)
    unequal = unequal_among(uow, pair, wanted)
    if wanted and (dependents := sql.dependents(source.other)) is not None:
        unequal |= _dependent(uow, pair, dependents, wanted, unequal, source)
    rejected = reject(uow, pair, unequal, source)
    if unequal and source is Side.LEGACY:
        with changes.not_recorded(uow), parents_settled(uow, pair, unequal, None) as touched:
            for statement in (*sql.unlink(Side.NORMALIZED), *sql.delete(Side.NORMALIZED)):
                uow._execute(statement, among(unequal))
            for parent in pair.parents:  # one may have been made for a row that is now rejected
                meant = keys_of(uow, sql.parents_meant(parent), among(unequal))
                touched |= {(parent.table.name, key) for key in meant}
    return rejected


def _dependent(
    uow: UnitOfWork, pair: Move, dependents: str, keys: list[Key], unequal: set[Key], source: Side
) -> set[Key]:
    """The rows that refer to some that the other side does not have, or will not keep, directly or through others."""
    there = set(keys_of(uow, uow.statements[pair].present(source.other), among(keys)))
    gone = {*keys} - there | (unequal if source is Side.LEGACY else set())
    found = keys_of(uow, dependents, among(gone)) if gone else []
    return (
        set(found) - changes.recorded_among(uow, pair, found)
        if source is Side.LEGACY
        else unequal_among(uow, pair, found)
    )


def rejected_dependents(uow: UnitOfWork, pair: Move, keys: list[Key], side: Side) -> list[Key]:
    """The rejects among the rows that refer to some rows, directly or through others; they may be carried by now."""
    dependents = uow.statements[pair].dependents(side.other)
    if dependents is None or not (known := rejects.unresolved(uow, pair, side)):
        return []
    return [key for key in keys_of(uow, dependents, among(keys)) if key in known]


def unequal_among(uow: UnitOfWork, pair: Move, keys: Iterable[Key]) -> set[Key]:
    """Those of some rows whose sides differ, less those that another program wrote: they are still to be carried.

    On a server it may have written them since this unit of work looked at them.
    """
    unequal = set(differing(uow, pair, keys))
    return unequal - changes.recorded_among(uow, pair, unequal) if unequal else unequal


def reject(uow: UnitOfWork, pair: Move, keys: set[Key], source: Side) -> Rejected:
    """Reject rows that stand on the source and do not come out equal on the other side."""
    unheld = uow.statements[pair].unheld(source.other) if keys else ()
    missing = {key: named for sql in unheld for key, named in uow._rows(sql, among(keys))}
    reason = NOT_EXACT.format(side=source.other)
    reasons = {key: REFERS_TO_NONE.format(key=named, side=source.other) for key, named in missing.items()}
    return Rejected(keys, sum(rejects.reject(uow, pair, key, source, reasons.get(key, reason)) for key in keys))


def require_carriable(uow: UnitOfWork, chosen: Mapping[int, rejects.OpenReject]) -> None:
    """Refuse rejects whose row stands nowhere any more: it was deleted, or another one has its id.

    Raises:
        InvalidValueError: There are such; it names their numbers.
    """
    lost = [number for number, reject in chosen.items() if not _is_carriable(uow, reject)]
    if lost:
        raise errors.InvalidValueError(
            f"nothing is left to carry of reject{'' if len(lost) == 1 else 's'} {series(lost)}",
            hint="nothing was done; their images are kept: accept them with a reason",
            field="id",
        )


def _is_carriable(uow: UnitOfWork, of: rejects.OpenReject) -> bool:
    if keyless.concerns(of):
        return True
    usable = of.key is not None and of.reason != ID_TAKEN_TWICE
    return usable and bool(uow._rows(uow.statements[of.pair].present(of.side), among([of.key])))


def carry_reject(uow: UnitOfWork, of: rejects.OpenReject) -> bool:
    """Carry a rejected row from where it stands to the other side, while both sides are written.

    Returns:
        Whether it came out equal; where it did not, nothing has changed. Of a row whose key could not be used,
        whether it has another one by now, or is gone.
    """
    pair, key, side, *_ = of
    if keyless.concerns(of):
        return not keyless.stands(uow, of)
    keys = [key, *rejected_dependents(uow, pair, [key], side)]
    carry_fitting(uow, pair, keys, side.other, "a reject was resolved")
    reject_unequal(uow, pair, keys, side)
    return not differing(uow, pair, [key])


def print_statements(statements: Statements) -> None:
    """Compile all statements that carry rows by key before a lock is taken: compiling them would keep writers out."""
    for pair in statements.moves:
        sql, parents = statements[pair], statements.of_parents(pair)
        _ = sql.both_sides, sql.foreign_in_keys, sql.mark, sql.adopt
        _ = sql.overwrite_normalized, sql.insert_normalized_rows, sql.overwrite_legacy, sql.insert_legacy_rows
        for side in Side:
            _ = sql.present(side), sql.delete(side)
        for of in pair.parents:
            _ = sql.parents_of(of), sql.parents_meant(of)
        for parent in parents:
            _ = parent.settle
        images.print_statements(sql, parents)
