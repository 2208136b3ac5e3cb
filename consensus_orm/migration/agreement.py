"""The part of `Migration` that makes both sides equal: backfill, verify, reconcile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.ledgers import guards, signs
from consensus_orm.ledgers.selection import Selection
from consensus_orm.migration import demands
from consensus_orm.migration.backfill import BackfillReport, backfill
from consensus_orm.migration.carrying import require_dual_write
from consensus_orm.migration.planning import Choice
from consensus_orm.migration.rebuild import rebuild as rebuild_side
from consensus_orm.migration.reconcile import ReconcileReport, reconcile
from consensus_orm.migration.records import MigrationRecords
from consensus_orm.migration.strays import Adopted, adopt_strays
from consensus_orm.migration.verify import VerifyReport, require_two_sides, verify
from consensus_orm.phase import Side
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Agreement"]


@check.checked
class Agreement(MigrationRecords):
    """Makes both sides equal, and certifies that they are."""

    def backfill(self, progress: Watch = None, *, workers: int | None = None) -> BackfillReport:
        """Carry the rows that were there before the dual write; continues where an earlier run stopped.

        Args:
            progress: Called after each chunk.
            workers: On a server, how many workers carry rows at the same time; each takes a connection of the pool.
                They share the ranges of keys with the workers of every other process and host that was given a number,
                1 included, and a throttle limits all of them together. Where left out, this process carries all rows.

        Returns:
            What was done, by the workers of this process.

        Raises:
            WrongPhaseError: Both sides are not being written.
            InvalidValueError: More than one worker for a file, or more than the pool has connections.
            ConfigurationError: `MAX_LAG` is set, and the role may not see how far the replicas are behind.
        """
        if workers is not None and check.position("workers", workers) < 1:
            raise check.invalid("workers", "must be above 0")
        require_dual_write(self.phase)  # before a writing unit of work would prepare the file
        return backfill(self._reading, self._writing, progress, workers=workers)

    def verify(self, progress: Watch = None) -> VerifyReport:
        """Compare both sides whole and certify what was seen.

        Args:
            progress: Called after each chunk.

        Returns:
            What was seen; `clean` where nothing differs.

        Raises:
            WrongPhaseError: There is only one side.
            GuardsBrokenError: A trigger or a table that guards the phase is not in place.
        """
        if self._reading.run(self._may_verify):
            self._flipping.run(demands.count_from_now)
        self._note_reads()
        return verify(self._reading, self._writing, progress)

    def _may_verify(self, uow: UnitOfWork) -> bool:
        """Refuse before the long comparison what would be refused after it; whether the phase began in the future."""
        require_two_sides(self._phase_of(uow))
        guards.require(uow)
        return demands.began_in_future(uow)

    def reconcile(
        self,
        numbers: Iterable[int | range] = (),
        *,
        table: str | None = None,
        reason: str | None = None,
        foreign: Choice = None,
        rebuild: Side | str | None = None,
        dry_run: bool = False,
        progress: Watch = None,
    ) -> ReconcileReport:
        """Make both sides equal: repair the side that is not read, and adopt rows that only this side has.

        Rows that another program changed or deleted on the side that is not read need a choice. Without one they
        stay as they are, and the gate stays shut. Whatever is overwritten or deleted is kept first (`images`).

        Args:
            numbers: Numbers in `mismatches`, or ranges of numbers: only their rows are looked at. Everything where
                left out.
            table: Look only at the rows of this pair or table; not together with numbers.
            reason: Why, for the audit.
            foreign: "adopt" makes the side that is read what those rows are on the other one, "repair" puts them
                back; None leaves them.
            rebuild: The side, `legacy` or `normalized`, to make again from the other one, after another program
                dropped tables of one of them. Tables that are missing are made. Rows that were written to a table
                that was dropped and made again stay, under new ids where their own were given before; rows of the
                side that lost nothing, and that have no equal on the other one, are kept as images and deleted.
            dry_run: Only list what would be done; not together with `rebuild`, as little as numbers or a table.
            progress: Called after each chunk.

        Returns:
            What was done to which row, and which rows wait for a choice.

        Raises:
            WrongPhaseError: There is only one side.
            InvalidValueError: There is no such choice, or a number, a range or the table selects no open mismatch.
            GuardsBrokenError: A table was dropped, or dropped and made again, by another program: `rebuild` says
                which rows count.
            MigrationError: There is nothing to make again, or nothing to make it from.
        """
        selection = Selection.of(numbers, table)
        if rebuild is not None:
            return self._rebuild(_side(rebuild), foreign, selection, dry_run=dry_run, reason=reason, progress=progress)
        phase = self.phase
        adopted = () if dry_run or selection or phase.has_legacy else self._adopt_strays(progress)
        if self._mend(dry_run=dry_run) and not phase.writes_normalized:
            return ReconcileReport(dry_run)  # there is nothing else to do
        require_two_sides(phase)
        self._note_reads()
        report = reconcile(
            self._reading,
            self._repairing,
            selection,
            foreign=foreign,
            dry_run=dry_run,
            reason=reason,
            progress=progress,
        )
        return replace(report, adopted_tables=adopted) if adopted else report

    def _adopt_strays(self, progress: Watch) -> tuple[Adopted, ...]:
        """Carry the rows of legacy tables that another program made at CONTRACT, and put up the views again."""
        if not self._reading.run(signs.strays):
            return ()
        return tuple(adopt_strays(self._repairing, self._flipping, progress))

    def _rebuild(
        self, side: Side, foreign: Choice, selection: Selection, *, dry_run: bool, reason: str | None, progress: Watch
    ) -> ReconcileReport:
        if selection:
            raise errors.InvalidValueError(
                "a side is made again whole", hint="leave out the numbers and the table", field="rebuild"
            )
        if dry_run:
            raise errors.InvalidValueError(
                "a side is made again or not; there is no preview of it",
                hint="run: consensus-orm rehearse",
                field="dry_run",
            )
        self._upgrade.run_if_needed(progress)
        rebuilt = rebuild_side(self._repairing, self._flipping, side, progress)
        report = ReconcileReport(False)
        if self.phase.writes_normalized:
            report = reconcile(
                self._reading, self._repairing, selection, foreign=foreign, reason=reason, progress=progress
            )
        return replace(report, rebuilt=rebuilt)

    def _mend(self, *, dry_run: bool) -> bool:
        """Install the triggers of the phase again where they are not in place; returns whether they were not."""
        flaws = self._reading.run(_mendable)
        if flaws and not dry_run:
            self._flipping.run(guards.mend)
        return bool(flaws)


def _mendable(uow: UnitOfWork) -> list[guards.Flaw]:
    """What is wrong with the guards of the phase; refuses where rows of a table may be missing."""
    flaws = guards.look(uow)
    if any(flaw.side for flaw in flaws):
        raise guards.broken(uow, flaws)
    return flaws


def _side(name: Side | str) -> Side:
    try:
        return Side(str(name).lower())
    except ValueError:
        raise errors.InvalidValueError(
            f"there is no side {name!r:.40}", hint=f"use {Side.LEGACY} or {Side.NORMALIZED}", field="rebuild"
        ) from None
