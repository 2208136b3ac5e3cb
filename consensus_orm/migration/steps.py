"""The steps of a migration: forward through its gates, and back from every phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases import state
from consensus_orm.ledgers import changes, guards, mismatches
from consensus_orm.migration import gates, shapes
from consensus_orm.migration.agreement import Agreement
from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.migration.carrying import Drained, drain, print_statements
from consensus_orm.migration.flip import flip
from consensus_orm.migration.pace import catch_up
from consensus_orm.migration.reconcile import repair_open
from consensus_orm.migration.verify import VerifyReport
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.unit import UnitOfWork

if TYPE_CHECKING:
    from consensus_orm.migration.rehearsal_report import RehearsalReport, RehearsalStep

__all__ = ["Step", "Steps"]


@dataclass(frozen=True)
class Step:
    """One finished step.

    Attributes:
        action: upgrade, backfill, verify or advance.
        phase: The phase after it.
        result: What the method of that name returned: revisions, a report, or the phase reached.
        seconds: How long it took.
    """

    action: str
    phase: Phase
    result: list[str] | BackfillReport | VerifyReport | Phase
    seconds: float


@check.checked
class Steps(Agreement):
    """Takes a database from phase to phase."""

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
        for step in self._steps(target, soak=soak, reason=reason, progress=progress):
            taken.append(step)
            if tell is not None:
                tell(step)
        return taken

    def _steps(self, to: Phase, *, soak: bool, reason: str | None, progress: Watch) -> Iterator[Step]:
        """Take one step after the other; nothing is repaired, since differences are for people to look at."""

        def take(action: str, work: Callable[[], list[str] | BackfillReport | VerifyReport | Phase]) -> Step:
            started = time.monotonic()
            result = work()
            return Step(action, self.phase, result, time.monotonic() - started)

        yield take("upgrade", partial(self._upgrade.run_if_needed, progress))
        while (now := self.phase) < to:
            if now.compares and now.truth is Side.LEGACY:
                yield take("backfill", partial(self.backfill, progress))
            if now.writes_normalized:
                yield take("verify", partial(self.verify, progress))
            yield take("advance", partial(self.advance, now.next, reason=reason, soak=soak, progress=progress))
        # Finishes what an interrupted call left behind, and refuses to go backwards.
        self.advance(to, reason=reason, soak=soak, progress=progress)

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


def _drain_in(phase: Phase, uow: UnitOfWork, limit: int) -> Drained:
    _expect_guarded(uow, phase)
    return drain(uow, limit=limit)


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
