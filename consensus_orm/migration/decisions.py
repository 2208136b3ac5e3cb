"""The decisions of an operator on single rows, as methods of `Migration`: rejects, mismatches, images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.ledgers import audit, dependencies, mismatches, rejects
from consensus_orm.ledgers.dependencies import DependencyEntry
from consensus_orm.ledgers.rejects import OpenReject
from consensus_orm.ledgers.selection import Selection
from consensus_orm.migration.carrying import carry_reject, require_carriable
from consensus_orm.migration.records import MigrationRecords
from consensus_orm.models.control import Mismatch, Reject, RowImage
from consensus_orm.phase import Side
from consensus_orm.unit_of_work.unit import UnitOfWork

if TYPE_CHECKING:
    from consensus_orm.migration.restoring import Restored

__all__ = ["Decisions"]


@check.checked
class Decisions(MigrationRecords):
    """Takes the decisions of an operator."""

    def accept_reject(self, number: int, *, reason: str) -> None:
        """Let the migration go on without a rejected row; its image is kept.

        Args:
            number: Its number in `rejects`.
            reason: Why it is not needed on the normalized side.

        Raises:
            InvalidValueError: There is no such open reject, or the reason is missing.
        """
        _require_reason(reason)

        def accept(uow: UnitOfWork) -> None:
            accepted = rejects.accept(uow, number, reason)
            audit.add(uow, "accept reject", reason=reason, number=number, pair=accepted.pair.name, key=accepted.key)

        self._repairing.run(accept)

    def accept_rejects(
        self,
        numbers: Iterable[int | range] = (),
        *,
        table: str | None = None,
        all_of: str | None = None,
        reason: str,
    ) -> list[int]:
        """Let the migration go on without several rejected rows; all of them are accepted, or none.

        Args:
            numbers: Their numbers in `rejects`, or ranges of numbers, of which those that are open are accepted.
            table: Accept every open reject of this pair or table; not together with numbers.
            all_of: Accept every open reject that has exactly this reason, too; together with a table, those of it.
            reason: Why they are not needed on the normalized side.

        Returns:
            The numbers that were accepted, in order.

        Raises:
            InvalidValueError: A number is that of no open reject, a range, the table or that reason has none, or the
                reason is missing.
        """
        _require_reason(reason)
        selection = Selection.of(numbers, table, all_of)

        def accept(uow: UnitOfWork) -> list[int]:
            chosen = [entry.number for entry in selection.entries(uow, Reject)]
            for number in chosen:
                rejects.accept(uow, number, reason)
            audit.add(uow, "accept rejects", reason=reason, numbers=chosen, table=table, all_of=all_of)
            return chosen

        return self._repairing.run(accept)

    def resolve_reject(self, number: int) -> bool:
        """Try again to carry a rejected row, after its fault was repaired.

        Args:
            number: Its number in `rejects`.

        Returns:
            Whether it was carried; False where it still cannot be.

        Raises:
            InvalidValueError: There is no such open reject, or nothing is left to carry.
        """
        return self.resolve_rejects([number])[number]

    def resolve_rejects(
        self, numbers: Iterable[int | range] = (), *, table: str | None = None, all_of: str | None = None
    ) -> dict[int, bool]:
        """Try again to carry several rejected rows, in one transaction.

        Rows that refer to each other are carried whatever the order of their numbers.

        Args:
            numbers: Their numbers in `rejects`, or ranges of numbers, of which those that are open are tried.
            table: Try every open reject of this pair or table; not together with numbers.
            all_of: Try every open reject that has exactly this reason, too; together with a table, those of it.

        Returns:
            Of each number, in order, whether its row was carried; False where it still cannot be.

        Raises:
            InvalidValueError: A number is that of no open reject, a range, the table or that reason has none, or
                nothing is left to carry of one; nothing was carried.
            WrongPhaseError: Rows are not carried in this phase; nothing was carried.
        """
        return self._repairing.run(partial(_resolve, selection=Selection.of(numbers, table, all_of)))

    def restore_image(self, number: int, *, reason: str | None = None) -> Restored:
        """Put back a row that was overwritten or deleted: write it to the sides of the phase, and compare it.

        The row that has its key now is kept as an image first.

        Args:
            number: Its number in `images`.
            reason: Why, for the audit.

        Returns:
            The row, and the columns that were not put back: derived values are derived again.

        Raises:
            InvalidValueError: There is no such image, or it is of a parent table, whose rows are derived.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        return self.restore_images([number], reason=reason)[number]

    def restore_images(self, numbers: Iterable[int | range], *, reason: str | None = None) -> dict[int, Restored]:
        """Put back several rows that were overwritten or deleted; all of them are put back, or none.

        Args:
            numbers: Their numbers in `images`, or ranges of numbers, of which those not yet put back are. They are put
                back in order: of several images of one row the newest counts.
            reason: Why, for the audit.

        Returns:
            Of each number, in order, the row, and the columns that were not put back.

        Raises:
            InvalidValueError: There is no image of a number, a range has none, or one is of a parent table.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        from consensus_orm.migration.restoring import restore

        selection = Selection.of(numbers)

        def put_back(uow: UnitOfWork) -> dict[int, Restored]:
            return {entry.number: restore(uow, entry.number, reason) for entry in selection.entries(uow, RowImage)}

        return self._writing.run(put_back)

    def accept_dependencies(self, names: Iterable[str], *, reason: str) -> list[DependencyEntry]:
        """Let the migration go on although others use the legacy tables; all of it is accepted, or nothing.

        Reads are accepted up to now: later ones shut the gate again.

        Args:
            names: What uses them, as in `dependencies`: each by its name, or by its kind and name.
            reason: Why the gate may open all the same.

        Returns:
            What was accepted.

        Raises:
            InvalidValueError: There is none of a name, it cannot be accepted, or the reason is missing.
        """
        _require_reason(reason)
        given = [check.text("names", name) for name in check.several("names", names)]

        def accept(uow: UnitOfWork) -> list[DependencyEntry]:
            accepted = dependencies.accept(uow, given, reason)
            told = [f"{each.kind} {each.name}" for each in accepted]
            audit.add(uow, "accept dependencies", reason=reason, names=told)
            return accepted

        return self._repairing.run(accept)

    def accept_mismatch(self, number: int, *, reason: str) -> None:
        """Leave a mismatch as it is.

        Args:
            number: Its number in `mismatches`.
            reason: Why it does not matter.

        Raises:
            InvalidValueError: There is no such open mismatch, or the reason is missing.
        """
        self.accept_mismatches([number], reason=reason)

    def accept_mismatches(
        self, numbers: Iterable[int | range] = (), *, table: str | None = None, reason: str
    ) -> list[int]:
        """Leave several mismatches as they are; all of them are accepted, or none.

        Args:
            numbers: Their numbers in `mismatches`, or ranges of numbers, of which those that are open are accepted.
            table: Accept every open mismatch of this pair or table; not together with numbers.
            reason: Why they do not matter.

        Returns:
            The numbers that were accepted, in order.

        Raises:
            InvalidValueError: A number is that of no open mismatch, a range or the table has none, or the reason is
                missing.
        """
        _require_reason(reason)
        selection = Selection.of(numbers, table)

        def accept(uow: UnitOfWork) -> list[int]:
            chosen = [entry.number for entry in selection.entries(uow, Mismatch)]
            for number in chosen:
                mismatches.accept(uow, number, reason)
            audit.add(uow, "accept mismatches", reason=reason, numbers=chosen, table=table)
            return chosen

        return self._repairing.run(accept)


def _resolve(uow: UnitOfWork, selection: Selection) -> dict[int, bool]:
    chosen = {entry.number: rejects.take(uow, entry.number) for entry in selection.entries(uow, Reject)}
    for reject in chosen.values():
        if not (uow.phase.compares or _is_on_the_way_back(uow, reject)):
            raise errors.WrongPhaseError(
                f"rows are carried while both sides are there, and the phase is {uow.phase.name}",
                hint="accept it with a reason, or roll back",
                phase=uow.phase,
            )
    require_carriable(uow, chosen)
    carried: set[int] = set()
    while new := {n for n, reject in chosen.items() if n not in carried and _is_carried(uow, reject)}:
        carried |= new  # again, because others may refer to what was carried
    for number in sorted(carried):
        reject = chosen[number]
        rejects.resolve(uow, number)
        if reject.key is not None:
            mismatches.settle(uow, reject.pair, [reject.key], "repaired", "a reject was resolved")
        audit.add(uow, "resolve reject", number=number, pair=reject.pair.name, key=reject.key)
    return {number: number in carried for number in chosen}


def _is_carried(uow: UnitOfWork, reject: OpenReject) -> bool:
    with uow.catalog.legacy_unfrozen(uow) if _is_on_the_way_back(uow, reject) else contextlib.nullcontext():
        return carry_reject(uow, reject)


def _is_on_the_way_back(uow: UnitOfWork, reject: OpenReject) -> bool:
    return uow.phase.freezes_legacy and reject.side is Side.NORMALIZED


def _require_reason(reason: str | None) -> None:
    if not (reason or "").strip():
        raise errors.InvalidValueError("this needs a reason", hint="say why: --reason TEXT", field="reason")
