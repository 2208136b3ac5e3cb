"""The part of `Migration` that changes the phase: forward through the gates, and back from every phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases import state
from consensus_orm.events import WaitingEvent
from consensus_orm.migration import demands, gates
from consensus_orm.migration.agreement import Agreement
from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.migration.carrying import print_statements
from consensus_orm.migration.contraction import begin_removal, contract, empty_dropped, finish_removal
from consensus_orm.migration.flip import expect, flip
from consensus_orm.migration.gates import Obstacle
from consensus_orm.migration.verify import VerifyReport
from consensus_orm.migration.way_back import expand_again, roll_back, undo_expansion
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.unit import UnitOfWork

if TYPE_CHECKING:
    from consensus_orm.migration.rehearsal_report import RehearsalReport, RehearsalStep

__all__ = ["Step", "Steps"]

LOOK_AGAIN = 1.0
"""Seconds after which a step that waits looks again at the gate."""


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
        wait: timedelta | None = None,
        keep_tables: bool = False,
        progress: Watch = None,
    ) -> Phase:
        """Go to the next phase, or step by step to a later one; each gate must be open.

        Args:
            to: The phase to reach; the next one where left out.
            reason: Why, for the audit; required with `force` and with `keep_tables`.
            force: Do not wait for soak times or for a fresh certificate. Never opens a gate behind which rows
                would be lost.
            soak: Whether soak times count; False is for a database that nobody is using, and is kept in the audit.
            wait: How long to wait for a gate that is shut, until time or another process has opened it; not at all
                where left out.
            keep_tables: Make no backup before CONTRACT, and keep the rows in the legacy tables, which are only renamed;
                `finish_contract` removes them, and the way back empties them first.
            progress: Called after each chunk where a file is backed up, or legacy tables are emptied.

        Returns:
            The phase reached.

        Raises:
            GateClosedError: A gate is shut, after the wait still; its reasons say what would help.
            PhaseChangedError: Another process changed the phase meanwhile.
            InvalidValueError: There is no such phase, it lies behind, or the reason is missing.
        """
        for name, given in (("force", force), ("keep_tables", keep_tables)):
            if given:
                _require_reason(name, reason)
        deadline = _deadline(wait)
        now = self.phase
        target = _not_behind(now, Phase.parse(to) if to is not None else now.next or now)
        self._upgrade.run_if_needed(progress)  # only now: a refusal has written nothing
        self._finish_interrupted(progress)
        for following in [phase for phase in Phase if now < phase <= target]:
            step = partial(
                self._advance,
                now,
                following,
                reason=reason,
                force=force,
                soak=soak,
                keep_tables=keep_tables,
                progress=progress,
            )
            self._once_open(step, deadline, lambda _, found: all(_is_skipped(o, force=force, soak=soak) for o in found))
            now = following
        return now

    def migrate(
        self,
        to: Phase | str | int = Phase.CONTRACT,
        *,
        soak: bool = True,
        reason: str | None = None,
        wait: timedelta | None = None,
        progress: Watch = None,
        tell: Callable[[Step], object] | None = None,
    ) -> list[Step]:
        """Take every step up to a phase: upgrade, advance, backfill, verify; stops at the first shut gate.

        Steps that were done stay done, and the next call continues behind them. Differences are not repaired: they
        shut the gate until an operator has looked at them (`mismatches`, then `reconcile`).

        Args:
            to: The phase to reach.
            soak: Whether soak times count; False is for a database that nobody is using, and is kept in the audit.
            reason: Why, for the audit.
            wait: How long to wait at gates that are shut, all together: until a soak is over, or what else kept the
                gate shut has changed; then the steps go on, with a new verify. Not at all where left out.
            progress: Called after each chunk.
            tell: Called after each step.

        Returns:
            The steps, in order.

        Raises:
            GateClosedError: A gate is shut, after the wait still; its reasons say what would help.
            PhaseChangedError: Another process changed the phase meanwhile.
            InvalidValueError: There is no such phase, or it lies behind.
        """
        target = _not_behind(self.phase, Phase.parse(to))
        deadline, taken = _deadline(wait), list[Step]()

        def go() -> None:
            for step in self._steps(target, soak=soak, reason=reason, progress=progress):
                taken.append(step)
                if tell is not None:
                    tell(step)

        self._once_open(go, deadline, partial(_has_changed, soak=soak))
        return taken

    def _once_open(
        self,
        step: Callable[[], object],
        deadline: float | None,
        may_go_on: Callable[[list[Obstacle], list[Obstacle]], bool],
    ) -> None:
        """Take a step; where its gate is shut, take it again once it may go on, until the deadline.

        Args:
            step: What is done.
            deadline: On the monotonic clock; None not to wait.
            may_go_on: Is given the obstacles at the refusal, and those now.
        """
        while True:
            try:
                step()
                return
            except errors.GateClosedError as refused:
                if deadline is None:
                    raise
                if time.monotonic() < deadline:
                    waits = f"{refused.message}, and this step waits: {'; '.join(refused.reasons)}"
                    self._reading.units.telemetry.tell(WaitingEvent(waits))
                before = self._reading.run(gates.obstacles)
                while not may_go_on(before, self._reading.run(gates.obstacles)):
                    if (left := deadline - time.monotonic()) <= 0:
                        raise
                    time.sleep(min(LOOK_AGAIN, left))

    def _steps(self, to: Phase, *, soak: bool, reason: str | None, progress: Watch) -> Iterator[Step]:
        """Take one step after the other."""

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
        # Finishes what an interrupted call left behind, and refuses a phase that lies behind.
        self.advance(to, reason=reason, soak=soak, progress=progress)

    def rehearse(
        self,
        *,
        keep: Path | str | None = None,
        writers: int = 0,
        progress: Watch = None,
        tell: Callable[[RehearsalStep], object] | None = None,
    ) -> RehearsalReport:
        """Take a copy through all phases and back, and check that its rows come out as they went in.

        The database itself is read once and never written. Gates are as in the real migration, soak times are
        skipped.

        Args:
            keep: A folder for the copy and for a second copy of the evidence; where left out, the copy is
                deleted.
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

    def _advance(
        self,
        now: Phase,
        to: Phase,
        *,
        reason: str | None,
        force: bool,
        soak: bool,
        keep_tables: bool,
        progress: Watch,
    ) -> None:
        facts: dict[str, Any] = {"tables_kept": True} if keep_tables and not to.has_legacy else {}
        if not (to.has_legacy or keep_tables):  # refused before the backup, too
            self._looking.run(partial(_pass_gate, to=to, force=force, soak=soak))
            facts = self._backup_in(now, progress)
        if not to.has_legacy:
            self._note_reads()

        def step(uow: UnitOfWork) -> None:
            uow.catalog.keep_out(uow)
            expect(uow, now)
            skipped = _pass_gate(uow, to, force=force, soak=soak)
            if to.has_legacy:
                flip(uow, to, action="advance", reason=reason, forced=force, **facts, **skipped)
            else:
                contract(uow, reason=reason, forced=force, keep=keep_tables, **facts, **skipped)

        self._flipping.run(step)
        if not (to.has_legacy or keep_tables):
            empty_dropped(self._writing, progress)

    def finish_contract(self, *, reason: str, progress: Watch = None) -> list[str]:
        """Remove for good what CONTRACT has put away: the legacy tables, and what it takes to make them again.

        From then on there is no way back from CONTRACT, and copies have none either.

        Args:
            reason: Why, for the audit.
            progress: Called after each chunk where tables are emptied that kept their rows.

        Returns:
            The names that the tables had.

        Raises:
            WrongPhaseError: The phase is not CONTRACT.
            MigrationError: Nothing is put away.
            GateClosedError: Something else uses a table, or a row has no other place; its reasons say what would help.
            InvalidValueError: The reason is missing.
        """
        _require_reason("finish_contract", reason)
        self._upgrade.run_if_needed(progress)
        self._flipping.run(begin_removal)
        empty_dropped(self._writing, progress)
        return self._flipping.run(partial(finish_removal, reason=reason))

    def _backup_in(self, now: Phase, progress: Watch) -> dict[str, Any]:
        try:
            return self.backup_before("contract", progress)
        except errors.BackupError:
            with contextlib.suppress(errors.StorageError):
                # Another process that takes the same step may be the cause, and have ended it once the lock is ours.
                self._flipping.run(lambda uow: expect(uow, now))
            raise

    def _finish_interrupted(self, progress: Watch) -> None:
        """Finish or undo the step of an interrupted call; and make a phase that began in the future begin now."""
        step, began_in_future = self._looking.run(
            lambda uow: (state.step(uow), uow.prepared and demands.began_in_future(uow))
        )
        if step:
            self._flipping.run(undo_expansion)
            empty_dropped(self._writing, progress)
        if began_in_future:
            self._flipping.run(demands.count_from_now)

    def backup_before(self, step: str, progress: Watch = None) -> dict[str, Any]:
        """Take a verified backup before a step that drops or rewrites tables.

        Args:
            step: The step, for the name of the file: `DATABASE.before-STEP-TIME`, in `backup_dir` or beside it. Of a
                server it is a folder with a file for each table, in `backup_dir` or the current folder.
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
        self._upgrade.run_if_needed(progress)  # only now: a refusal has written nothing
        print_statements(self._units.statements)
        for to in reversed([phase for phase in Phase if target <= phase < now]):
            self._roll_back(now, to, reason, progress)
            now = to
        return now

    def _roll_back(self, now: Phase, to: Phase, reason: str | None, progress: Watch) -> None:
        if now.has_legacy:
            roll_back(self._writing, self._flipping, now, to, reason=reason, progress=progress)
            return
        empty_dropped(self._writing, progress)
        self._adopt_strays(progress)
        expand_again(self._writing, self._flipping, reason=reason, progress=progress)


def _require_reason(what: str, reason: str | None) -> None:
    if not (reason or "").strip():
        raise errors.InvalidValueError(f"{what} needs a reason", hint="say why: --reason TEXT", field="reason")


def _not_behind(now: Phase, target: Phase) -> Phase:
    if target < now:
        raise errors.InvalidValueError(
            f"{target.name} lies behind {now.name}",
            hint=f"run: consensus-orm rollback {target.name.lower()}",
            field="to",
        )
    return target


def _deadline(wait: timedelta | None) -> float | None:
    return None if wait is None else time.monotonic() + wait.total_seconds()


def _has_changed(before: list[Obstacle], now: list[Obstacle], *, soak: bool) -> bool:
    """Whether the soak is over, and what else kept the gate shut is no longer what it was."""
    was, shut = ({o.reason for o in found if not o.waiting} for found in (before, now))
    return not (soak and any(o.soak for o in now)) and (not shut or shut != was)


def _is_skipped(obstacle: Obstacle, *, force: bool, soak: bool) -> bool:
    return (force and obstacle.waiting) or (obstacle.soak and not soak)


def _pass_gate(uow: UnitOfWork, to: Phase, *, force: bool, soak: bool) -> dict[str, list[str]]:
    """Refuse to go on where the gate is shut.

    Returns:
        Facts for the audit: what the phase demanded and was skipped.
    """
    found = gates.obstacles(uow)
    skipped = [o.text for o in found if _is_skipped(o, force=force, soak=soak)]
    shut = [o.text for o in found if o.text not in skipped]
    if shut:
        raise errors.GateClosedError(
            f"the gate to {to.name} is shut", hint="; ".join(shut), reasons=shut, phase=uow.phase, to=to
        )
    return {"skipped": skipped} if skipped else {}
