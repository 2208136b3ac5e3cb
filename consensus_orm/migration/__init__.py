"""The migration of a store: where it stands, the steps forward, and the way back from every one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases import guard_record, state
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.opening import catalog
from consensus_orm.databases.step_backups import StepBackups
from consensus_orm.ledgers import audit as audit_records
from consensus_orm.ledgers import changes, guards, mismatches
from consensus_orm.migration import details, gates, shapes
from consensus_orm.migration.backfill import BackfillReport, backfill, require_dual_write
from consensus_orm.migration.carrying import Drained, carry_reject, drain, print_statements
from consensus_orm.migration.details import RowDetail
from consensus_orm.migration.flip import flip
from consensus_orm.migration.journey import Step, steps
from consensus_orm.migration.pace import catch_up
from consensus_orm.migration.planning import Choice
from consensus_orm.migration.rebuild import Adopted, adopt_strays
from consensus_orm.migration.rebuild import rebuild as rebuild_side
from consensus_orm.migration.reconcile import ReconcileReport, reconcile, repair_open
from consensus_orm.migration.status import MigrationStatus, collect
from consensus_orm.migration.transactions import Transactions
from consensus_orm.migration.verify import VerifyReport, require_two_sides, verify
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork
from consensus_orm.unit_of_work.upgrade import Upgrade

if TYPE_CHECKING:
    from consensus_orm.migration.rehearsal_report import RehearsalReport, RehearsalStep
    from consensus_orm.migration.restoring import Restored

__all__ = ["Migration"]


@check.checked
class Migration:
    """Moves a database from phase to phase.

    Args:
        units: Its units of work.
        upgrade: Brings its schema up to date.
        backups: Takes the backup before the legacy tables are dropped.
        rehearse: Takes a copy of it through all phases and back.
    """

    def __init__(
        self,
        units: UnitOfWorkFactory[UnitOfWork],
        upgrade: Upgrade,
        backups: StepBackups,
        rehearse: Callable[..., RehearsalReport],
    ) -> None:
        self._units = units
        self._upgrade = upgrade
        self._backups = backups
        self._rehearse = rehearse

    @property
    def _reading(self) -> Transactions:
        return Transactions(self._units, read_only=True)

    @property
    def _writing(self) -> Transactions:
        return Transactions(self._units, lock=Lock.CARRY)

    @property
    def _repairing(self) -> Transactions:
        return Transactions(self._units, lock=Lock.CARRY, durable=True)

    @property
    def _flipping(self) -> Transactions:
        statements = self._units.statements
        for phase in Phase:  # printed before the lock is taken: writers waited 10 ms for it
            guard_record.triggers(catalog(statements.rendering.name), phase, statements)
        return Transactions(self._units, lock=Lock.FLIP)

    # Where it stands ------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The phase the database is in now.

        A file that nobody prepared yet is told apart by looking at it, and nothing is written.
        """
        return self._reading.run(lambda uow: uow.phase if uow.prepared else self._units.initial_phase)

    def status(self) -> MigrationStatus:
        """Everything there is to know before the next step; writes nothing.

        Returns:
            Phase, rows on each side, backfill, certificate, open mismatches and rejects, and what the next
            gate still wants.
        """
        rewrite = self._upgrade.pending_rewrite() if self._units.identity.rewritten else None
        told = None if rewrite is None else str(rewrite)
        if self._units.identity.needs_upgrade:
            self._units.identity = self._units.inspect_patiently()  # another process may have upgraded it
        initial, needs_upgrade = self._units.initial_phase, self._units.identity.needs_upgrade

        def look(uow: UnitOfWork) -> MigrationStatus:
            return collect(uow, initial, told, outdated=uow.prepared and needs_upgrade)

        return self._reading.run(look)

    def history(self) -> list[audit_records.HistoryEntry]:
        """The audit: every change of phase and every repair, oldest first; writes nothing."""
        return self._reading.run(audit_records.history)

    def mismatches(self, *, everything: bool = False) -> list[audit_records.MismatchEntry]:
        """Mismatches, oldest first.

        Args:
            everything: Those that are settled, too.
        """
        return self._reading.run(lambda uow: audit_records.mismatches(uow, everything))

    def rejects(self, *, everything: bool = False) -> list[audit_records.RejectEntry]:
        """Rows that could not be carried, oldest first.

        Args:
            everything: Those that are settled, too.
        """
        return self._reading.run(lambda uow: audit_records.rejects(uow, everything))

    def images(self, *, everything: bool = False) -> list[audit_records.ImageEntry]:
        """Rows that were kept before they were overwritten or deleted, oldest first.

        Args:
            everything: Those that were put back, too.
        """
        with self._reading() as uow:
            return audit_records.images(uow, everything)

    def mismatch(self, number: int, *, contents: bool = False) -> RowDetail:
        """One mismatch, and its row as both sides have it now, column by column.

        Args:
            number: Its number in `mismatches`.
            contents: Show the values, and not only their types and sizes.

        Raises:
            InvalidValueError: There is no such mismatch.
        """
        with self._reading() as uow:
            return details.of_mismatch(uow, number, contents=contents)

    def reject(self, number: int, *, contents: bool = False) -> RowDetail:
        """One reject, its row as it was kept, and as both sides have it now, column by column.

        Args:
            number: Its number in `rejects`.
            contents: Show the values, and not only their types and sizes.

        Raises:
            InvalidValueError: There is no such reject.
        """
        with self._reading() as uow:
            return details.of_reject(uow, number, contents=contents)

    def image(self, number: int, *, contents: bool = False) -> RowDetail:
        """One image, and its row as both sides have it now, column by column.

        Args:
            number: Its number in `images`.
            contents: Show the values, and not only their types and sizes.

        Raises:
            InvalidValueError: There is no such image.
        """
        with self._reading() as uow:
            return details.of_image(uow, number, contents=contents)

    # Steps ----------------------------------------------------------------------------------------------

    def upgrade(self, progress: Watch = None, *, rewrite: bool = False, protect: bool | None = None) -> list[str]:
        """Bring the schema to the newest revision; safe at any time and in any phase.

        Args:
            progress: Called while a file is backed up whose tables are made anew.
            rewrite: Let tables be made anew that the dual-write or the final build made, after a verified backup
                (`store.pending_rewrite` says which); those programs fail on them from then on.
            protect: Whether to set the user_version of a file of consensus data to 3, which the dual-write and the
                final build refuse; the setting where left out. What it was, `alembic downgrade base` gives back.

        Returns:
            The revisions that were applied; empty where there was nothing to do.

        Raises:
            SchemaError: The file cannot be adopted; it is untouched.
            RewriteNotConfirmedError: Tables would be made anew, and `rewrite` is not given; it is untouched.
        """
        return self._upgrade.run(progress, rewrite=rewrite, protect=protect)

    def backfill(self, progress: Watch = None) -> BackfillReport:
        """Carry the rows that were there before the dual write; goes on where an earlier one stopped.

        Args:
            progress: Called after each chunk.

        Returns:
            What was done.

        Raises:
            WrongPhaseError: Both sides are not being written.
        """
        require_dual_write(self.phase)  # before a unit of work that writes would prepare the file
        return backfill(self._reading, self._writing, progress)

    def verify(self, progress: Watch = None) -> VerifyReport:
        """Compare both sides whole and certify what was seen.

        Args:
            progress: Called after each chunk.

        Returns:
            What was seen; `clean` where nothing differs.

        Raises:
            WrongPhaseError: There is only one side.
        """
        require_two_sides(self.phase)
        self._mind_clock()
        return verify(self._reading, self._writing, progress)

    def reconcile(
        self,
        *,
        foreign: Choice = None,
        rebuild: Side | str | None = None,
        dry_run: bool = False,
        progress: Watch = None,
    ) -> ReconcileReport:
        """Make both sides equal: repair the side that is not read, adopt rows that it alone has.

        Rows that another program changed or deleted on the side that is not read need a choice. Without one they
        stay as they are, and the gate stays shut. Whatever is overwritten or deleted is kept first (`images`).

        Args:
            foreign: "adopt" makes the side that is read what those rows are on the other one, "repair" puts them
                back; None leaves them.
            rebuild: The side, `legacy` or `normalized`, to make again from the other one, after another program
                dropped tables of one of them. Tables that are missing are made. Rows that were written to a table
                that was dropped and made again stay, under new ids where their own were given before; rows of the
                side that lost nothing, and that have no equal on the other one, are kept as images and go.
            dry_run: Only list what would be done; not together with `rebuild`.
            progress: Called after each chunk.

        Returns:
            What was done to which row, and which rows wait for a choice.

        Raises:
            WrongPhaseError: There is only one side.
            InvalidValueError: There is no such choice.
            GuardsBrokenError: A table was dropped, or dropped and made again, by another program: `rebuild` says
                which rows count.
            MigrationError: There is nothing to make again, or nothing to make it from.
        """
        if rebuild is not None:
            return self._rebuild(_side(rebuild), foreign, dry_run, progress)
        adopted = () if dry_run or self.phase.has_legacy else self._adopt_strays(progress)
        if self._mend(dry_run=dry_run) and not self.phase.writes_normalized:
            return ReconcileReport(dry_run, (), (), 0, 0)  # there was nothing else to do
        require_two_sides(self.phase)
        report = reconcile(self._reading, self._repairing, foreign=foreign, dry_run=dry_run, progress=progress)
        return replace(report, adopted_tables=adopted) if adopted else report

    def _adopt_strays(self, progress: Watch) -> tuple[Adopted, ...]:
        """Carry the rows of legacy tables that another program made at CONTRACT, and let views stand there again."""
        with self._reading() as uow:
            if not guards.strays(uow):
                return ()
        return tuple(adopt_strays(self._repairing, self._flipping, progress))

    def _rebuild(self, side: Side, foreign: Choice, dry_run: bool, progress: Watch) -> ReconcileReport:
        if dry_run:
            raise errors.InvalidValueError(
                "a side is made again or not; there is no preview of it",
                hint="run: consensus-orm rehearse",
                field="dry_run",
            )
        self._upgrade.run_if_needed(progress)
        rebuilt = rebuild_side(self._repairing, self._flipping, side, progress)
        report = ReconcileReport(False, (), (), 0, 0)
        if self.phase.writes_normalized:
            report = reconcile(self._reading, self._repairing, foreign=foreign, progress=progress)
        return replace(report, rebuilt=rebuilt)

    def _mend(self, *, dry_run: bool) -> bool:
        """Install the triggers of the phase again where another program dropped or changed them; whether one had."""
        flaws = self._reading.run(_mendable)
        if flaws and not dry_run:
            self._flipping.run(guards.mend)
        return bool(flaws)

    def advance(
        self,
        to: Phase | str | int | None = None,
        *,
        reason: str | None = None,
        force: bool = False,
        soak: bool = True,
        progress: Watch = None,
    ) -> Phase:
        """Go to the next phase, or step by step to a later one; each gate must be open.

        Args:
            to: The phase to reach; the next one where left out.
            reason: Why, for the audit; wanted where `force` is given.
            force: Do not wait for soak times or for a fresh certificate. Never opens a gate behind which rows
                would be lost.
            soak: Whether soak times count; False is for a database that nobody is using, and is kept in the audit.
            progress: Called after each chunk where a file is backed up, or legacy tables are emptied.

        Returns:
            The phase reached.

        Raises:
            GateClosedError: A gate is shut; its reasons say what would help.
            PhaseChangedError: Somebody else changed the phase meanwhile.
            InvalidValueError: There is no such phase, it lies behind, or the reason is missing.
        """
        if force and not (reason or "").strip():
            raise errors.InvalidValueError("force needs a reason", hint="say why: --reason TEXT", field="reason")
        now = self.phase
        target = _not_behind(now, Phase.parse(to) if to is not None else now.next or now)
        self._upgrade.run_if_needed(progress)  # only now: what is refused has written nothing
        self._finish_interrupted(progress)
        while now < target:
            assert now.next is not None
            self._advance(now, now.next, reason=reason, force=force, soak=soak, progress=progress)
            now = now.next
        return now

    def migrate(
        self,
        to: Phase | str | int = Phase.CONTRACT,
        *,
        soak: bool = True,
        reason: str | None = None,
        progress: Watch = None,
        tell: Callable[[Step], object] | None = None,
    ) -> list[Step]:
        """Take every step up to a phase: upgrade, advance, backfill, verify; stops at the first shut gate.

        Each step that was done stays done, and the next call goes on behind it. Differences are not repaired:
        they shut the gate, for somebody to look at (`mismatches`, then `reconcile`).

        Args:
            to: The phase to reach.
            soak: Whether soak times count; False is for a database that nobody is using, and is kept in the audit.
            reason: Why, for the audit.
            progress: Called after each chunk.
            tell: Called after each step.

        Returns:
            The steps, in order.

        Raises:
            GateClosedError: A gate is shut; its reasons say what would help.
            PhaseChangedError: Somebody else changed the phase meanwhile.
            InvalidValueError: There is no such phase, or it lies behind.
        """
        target = _not_behind(self.phase, Phase.parse(to))
        taken: list[Step] = []
        for step in steps(self, self._upgrade, target, soak=soak, reason=reason, progress=progress):
            taken.append(step)
            if tell is not None:
                tell(step)
        return taken

    def rehearse(
        self,
        *,
        keep: Path | str | None = None,
        writers: int = 0,
        progress: Watch = None,
        tell: Callable[[RehearsalStep], object] | None = None,
    ) -> RehearsalReport:
        """Take a copy through all phases and back, and prove that its rows come out as they went in.

        The database itself is read once and never written. Gates are as in the real migration, soak times are
        skipped.

        Args:
            keep: A folder for the copy and for a second copy of the evidence; nothing is kept of the copy
                where left out.
            writers: Threads that write to the copy meanwhile.
            progress: Called after each chunk.
            tell: Called after each step.

        Returns:
            What was found; kept as JSON beside the database, too, and of a server where its backups go.

        Raises:
            MigrationError: The database never had legacy tables, so there is nothing to rehearse.
            InvalidValueError: Writers were asked for, and how these tables are written is not known.
            StorageError: There is not room enough, or the copy could not be made.
        """
        return self._rehearse(keep=keep, writers=writers, progress=progress, tell=tell)

    def _mind_clock(self) -> None:
        """Let the phase begin now where it began in the future; read first, since that is rare."""
        if self._reading.run(lambda uow: uow.prepared and gates.began_in_future(uow)):
            self._flipping.run(gates.count_from_now)

    def _advance(self, now: Phase, to: Phase, *, reason: str | None, force: bool, soak: bool, progress: Watch) -> None:
        facts: dict[str, Any] = {}
        self._mind_clock()
        if not to.has_legacy:
            self._reading.run(partial(_pass_gate, to=to, force=force, soak=soak))
            facts = self._backup_in(now, progress)

        def step(uow: UnitOfWork) -> None:
            uow.catalog.keep_out(uow)
            _expect(uow, now)
            skipped = _pass_gate(uow, to, force=force, soak=soak)
            if to.has_legacy:
                flip(uow, to, action="advance", reason=reason, forced=force, **facts, **skipped)
                return
            from consensus_orm.migration.contraction import contract

            contract(uow, reason=reason, forced=force, **facts, **skipped)

        self._flipping.run(step)
        if not to.has_legacy:
            self._finish_interrupted(progress)

    def _backup_in(self, now: Phase, progress: Watch) -> dict[str, Any]:
        try:
            return self.backup_before("contract", progress)
        except errors.BackupError:
            with contextlib.suppress(errors.StorageError):
                # Else this is why: somebody else takes the step, and has it by the time the lock is ours.
                self._flipping.run(lambda uow: _expect(uow, now))
            raise

    def _finish_interrupted(self, progress: Watch) -> None:
        """Finish the emptying of dropped tables, or undo a rebuild, that an earlier call left behind."""
        found = self._reading.run(lambda uow: state.get(uow, "step"))
        if found is None or found[0] is None:
            return
        from consensus_orm.migration import contraction

        self._flipping.run(contraction.undo_rebuild)
        self._empty_dropped(progress)

    def _empty_dropped(self, progress: Watch) -> None:
        from consensus_orm.migration import contraction

        contraction.empty_dropped(self._writing, progress)

    def backup_before(self, step: str, progress: Watch = None) -> dict[str, Any]:
        """Take a verified backup before a step that drops or rewrites tables.

        Args:
            step: The step, for the name of the file: `DATABASE.before-STEP-TIME`, in `backup_dir` or beside it. Of a
                server it is a copy to SQLite, in `backup_dir` or the current folder.
            progress: Called after each chunk.

        Returns:
            Facts for the audit; none for a database in memory.

        Raises:
            BackupError: It could not be made; the step is not taken.
        """
        return self._backups.take(step, progress)

    def rollback(
        self,
        to: Phase | str | int | None = None,
        *,
        reason: str | None = None,
        progress: Watch = None,
    ) -> Phase:
        """Go back to the phase before, or step by step to an earlier one; nothing is lost on the way.

        Args:
            to: The phase to reach; the one before where left out.
            reason: Why, for the audit.
            progress: Called after each chunk where rows are carried.

        Returns:
            The phase reached.

        Raises:
            GateClosedError: A row could not be carried back; its reject may be resolved, or accepted with a reason.
            MigrationError: There is nothing to go back to.
            InvalidValueError: There is no such phase, or it lies ahead.
        """
        now = self.phase
        if to is None and now.previous is None:
            raise errors.MigrationError("EXPAND is the first phase", hint="there is nothing to go back to")
        target = Phase.parse(to) if to is not None else now.previous or now
        if target > now:
            raise errors.InvalidValueError(
                f"{target.name} lies ahead of {now.name}",
                hint=f"run: consensus-orm advance {target.name.lower()}",
                field="to",
            )
        self._upgrade.run_if_needed(progress)  # only now: what is refused has written nothing
        while now > target:
            assert now.previous is not None
            self._roll_back(now, now.previous, reason, progress)
            now = now.previous
        return now

    def _roll_back(self, now: Phase, to: Phase, reason: str | None, progress: Watch) -> None:
        print_statements(self._units.statements)
        if not now.has_legacy:
            from consensus_orm.migration import contraction

            self._empty_dropped(progress)
            self._adopt_strays(progress)
            contraction.expand_again(self._writing, self._flipping, reason=reason, progress=progress)
            return
        catch_up(self._writing, partial(_drain_in, now), progress)
        self._flipping.run(partial(_flip_back, now=now, to=to, reason=reason))

    # Decisions ------------------------------------------------------------------------------------------

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
            pair, key = mismatches.accept_reject(uow, number, reason)
            mismatches.audit(uow, "accept reject", reason=reason, number=number, pair=pair, key=key)

        self._repairing.run(accept)

    def accept_rejects(self, numbers: Iterable[int] = (), *, all_of: str | None = None, reason: str) -> list[int]:
        """Let the migration go on without several rejected rows; all of them are accepted, or none.

        Args:
            numbers: Their numbers in `rejects`.
            all_of: Accept every open reject that has exactly this reason, too.
            reason: Why they are not needed on the normalized side.

        Returns:
            The numbers that were accepted, in order.

        Raises:
            InvalidValueError: One of them is no open reject, none has that reason, or the reason is missing.
        """
        _require_reason(reason)
        given = _positions(numbers)

        def accept(uow: UnitOfWork) -> list[int]:
            chosen = sorted(given | (set() if all_of is None else mismatches.rejected_for(uow, all_of)))
            for number in chosen:
                mismatches.accept_reject(uow, number, reason)
            mismatches.audit(uow, "accept rejects", reason=reason, numbers=chosen, all_of=all_of)
            return chosen

        return self._repairing.run(accept)

    def resolve_reject(self, number: int) -> bool:
        """Try again to carry a rejected row, after what was wrong with it has been mended.

        Args:
            number: Its number in `rejects`.

        Returns:
            Whether it was carried; False where it still cannot be.

        Raises:
            InvalidValueError: There is no such open reject, or nothing is left to carry.
        """

        def resolve(uow: UnitOfWork) -> bool:
            reject = mismatches.take_reject(uow, number)
            on_the_way_back = uow.phase.freezes_legacy and reject.side is Side.NORMALIZED
            if not (uow.phase.compares or on_the_way_back):
                raise errors.WrongPhaseError(
                    f"rows are carried while both sides are there, and the phase is {uow.phase.name}",
                    hint="accept it with a reason, or roll back",
                    phase=uow.phase,
                )
            with uow.catalog.legacy_unfrozen(uow) if on_the_way_back else contextlib.nullcontext():
                if not carry_reject(uow, reject):
                    return False
            mismatches.resolve_reject(uow, number)
            if reject.key is not None:
                mismatches.settle(uow, reject.pair, [reject.key], "repaired", "a reject was resolved")
            mismatches.audit(uow, "resolve reject", number=number, pair=reject.pair.name, key=reject.key)
            return True

        return self._repairing.run(resolve)

    def restore_image(self, number: int, *, reason: str | None = None) -> Restored:
        """Put back a row that was overwritten or deleted: write it to the sides of the phase, and compare it there.

        A row that stands under its key now is kept as an image first.

        Args:
            number: Its number in `images`.
            reason: Why, for the audit.

        Returns:
            The row, and the columns that were not put back: a value that follows from others is derived again.

        Raises:
            InvalidValueError: There is no such image, or it is of a parent table, whose rows follow from others.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        from consensus_orm.migration.restoring import restore

        return self._writing.run(partial(restore, number=number, reason=reason))

    def accept_mismatch(self, number: int, *, reason: str) -> None:
        """Leave a mismatch as it is.

        Args:
            number: Its number in `mismatches`.
            reason: Why it does not matter.

        Raises:
            InvalidValueError: There is no such open mismatch, or the reason is missing.
        """
        _require_reason(reason)

        def accept(uow: UnitOfWork) -> None:
            mismatches.accept_mismatch(uow, number, reason)
            mismatches.audit(uow, "accept mismatch", reason=reason, number=number)

        self._repairing.run(accept)


def _drain_in(phase: Phase, uow: UnitOfWork, limit: int) -> Drained:
    _expect_guarded(uow, phase)
    return drain(uow, limit=limit)


def _mendable(uow: UnitOfWork) -> list[guards.Flaw]:
    """What guards the phase and is not in place; refuses where rows may be missing for it."""
    flaws = shapes.look(uow)
    if any(flaw.side for flaw in flaws):
        raise guards.broken(uow, flaws)
    return flaws


def _flip_back(uow: UnitOfWork, *, now: Phase, to: Phase, reason: str | None) -> None:
    uow.catalog.keep_out(uow)
    _expect_guarded(uow, now)
    while drain(uow).looked_at:
        pass
    if now.compares and (undecided := changes.undecided(uow)):
        _refuse_undecided(undecided, now)
    stuck = repair_open(uow).rejects if now.compares else 0
    if stuck or mismatches.open_mismatches(uow):
        raise errors.GateClosedError(
            f"{stuck or mismatches.open_mismatches(uow)} rows cannot be carried to the {to.truth} side",
            hint="run: consensus-orm reconcile",
            reasons=["rows differ that cannot be repaired; run: consensus-orm reconcile"],
        )
    if now.truth is Side.NORMALIZED:
        gates.require_carried_back(uow, to)
    flip(uow, to, action="rollback", reason=reason)


def _refuse_undecided(rows: int, now: Phase) -> None:
    """Refuse a flip that would settle what nobody has decided: which side is read changes with it."""
    reason = gates.undecided_text(rows, now)
    raise errors.GateClosedError(reason, hint="run: consensus-orm reconcile --dry-run", reasons=[reason], phase=now)


def _side(name: Side | str) -> Side:
    try:
        return Side(str(name).lower())
    except ValueError:
        raise errors.InvalidValueError(
            f"there is no side {name!r:.40}", hint=f"use {Side.LEGACY} or {Side.NORMALIZED}", field="rebuild"
        ) from None


def _positions(numbers: Iterable[int]) -> set[int]:
    return {check.position("numbers", number) for number in check.several("numbers", numbers)}


def _require_reason(reason: str | None) -> None:
    if not (reason or "").strip():
        raise errors.InvalidValueError("this needs a reason", hint="say why: --reason TEXT", field="reason")


def _not_behind(now: Phase, target: Phase) -> Phase:
    if target < now:
        raise errors.InvalidValueError(
            f"{target.name} lies behind {now.name}",
            hint=f"run: consensus-orm rollback {target.name.lower()}",
            field="to",
        )
    return target


def _expect(uow: UnitOfWork, phase: Phase) -> None:
    if uow.phase is not phase:
        raise errors.PhaseChangedError(
            f"the phase is {uow.phase.name} by now, not {phase.name}", expected=phase, phase=uow.phase
        )


def _expect_guarded(uow: UnitOfWork, phase: Phase) -> None:
    """Expect a phase, and that rows of both sides are what its triggers have seen."""
    _expect(uow, phase)
    shapes.require(uow)
    if phase.truth is Side.NORMALIZED:
        guards.require_accounted(uow)


def _pass_gate(uow: UnitOfWork, to: Phase, *, force: bool, soak: bool) -> dict[str, Any]:
    """Refuse to go on where the gate is shut.

    Returns:
        Facts for the audit: what the phase demanded and was skipped.
    """
    found = gates.obstacles(uow)
    skipped = [o.text for o in found if (force and o.waiting) or (o.soak and not soak)]
    shut = [o.text for o in found if o.text not in skipped]
    if shut:
        raise errors.GateClosedError(
            f"the gate to {to.name} is shut", hint="; ".join(shut), reasons=shut, phase=uow.phase, to=to
        )
    return {"skipped": skipped} if skipped else {}
