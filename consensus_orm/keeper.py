"""The keeper: looks after a database between two changes of phase; of all hosts, one process acts at a time.

It verifies, reconciles by the policy of the settings, makes and rotates verified backups, vacuums and watches the
health. When one of these fails, the keeper reports it and tries again. It never changes the phase.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from consensus_orm import errors, files
from consensus_orm import validation as check
from consensus_orm.events import AlarmEvent
from consensus_orm.ledgers import keeping, mismatches, rejects
from consensus_orm.migration.health import Health
from consensus_orm.migration.reconcile import ReconcileReport
from consensus_orm.migration.verify import VerifyReport
from consensus_orm.models.control import KeeperState
from consensus_orm.phase import Phase
from consensus_orm.settings import Reconciling
from consensus_orm.store import Store
from consensus_orm.unit_of_work.lease import Lease
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Keeper", "KeeperReport", "Kept"]

BEATS = 3
"""How often a lease is prolonged while it lasts."""

STAMP = "%Y%m%dT%H%M%S.%fZ"
"""The time in the name of a backup; names sort by it."""


@dataclass(frozen=True)
class Kept:
    """Something that a keeper did or noticed.

    Attributes:
        action: verify, reconcile, backup or vacuum; begin (the keeper acts) or standby (another one does); health,
            phase, open, pause or resume where that changed; or what failed.
        result: The report of the action; the holder of the lease; the health; the phases before and after; or the
            numbers of open mismatches and rejects.
        seconds: How long it took.
        error: Why it failed; None where it did not.
    """

    action: str
    result: Any = None
    seconds: float = 0.0
    error: errors.ConsensusError | OSError | None = None


@dataclass(frozen=True)
class KeeperReport:
    """What one run of a keeper did.

    Attributes:
        verifies: Times that both sides were compared.
        reconciled: Rows that were settled.
        backups: Backups that were made.
        removed: Older backups that were removed.
        vacuums: Times that free space was returned.
        failures: Duties that failed.
        clean: Whether the last verify was clean; None where there was none.
    """

    verifies: int = 0
    reconciled: int = 0
    backups: int = 0
    removed: int = 0
    vacuums: int = 0
    failures: int = 0
    clean: bool | None = None


class Keeper:
    """Looks after the database of a store.

    Args:
        store: The store; its settings named `keep_` say how often, and what is done about differences.
        tell: Called with whatever the keeper does or notices.
    """

    def __init__(self, store: Store[Any], tell: Callable[[Kept], object] | None = None) -> None:
        self._store = check.instance("store", store, Store)
        self._settings = store.settings
        self._units = store._units
        self._lease = Lease(KeeperState, keeping.ONLY, self._settings.keep_lease)
        self._listener = check.callback("tell", tell, optional=True)
        self._report = KeeperReport()
        self._tries: dict[str, tuple[int, float]] = {}
        self._holder: str | None = None
        self._problems: tuple[str, ...] = ()
        self._phase: Phase | None = None
        self._open = (0, 0)
        self._paused = False
        self._duties = {
            "verify": (self._settings.keep_verify, self._verify),
            "backup": (self._settings.keep_backup, self._back_up),
            "vacuum": (self._settings.keep_vacuum, self._vacuum),
        }

    def run(self, *, once: bool = False, cancel: threading.Event | None = None) -> KeeperReport:
        """Do what is due, again and again; while another keeper acts, stand by to take over.

        Args:
            once: Do what is due now, and end; another keeper that acts is then an error.
            cancel: An event; once it is set, the keeper stops after the duty under way.

        Returns:
            What was done.

        Raises:
            KeeperLeaseError: Another keeper acts, and `once` is set.
            ConsensusError: The database could not be used when the keeper began.
        """
        stop = cancel or threading.Event()
        self._report = KeeperReport()
        began = False
        while not stop.is_set():
            try:
                holder = self._units.run(self._take)
            except (errors.ConsensusError, OSError) as error:
                if once or not began:
                    raise
                self._fail("take its lease", error)
            else:
                began, before, self._holder = True, self._holder, holder
                mine = holder == self._lease.me
                if once and not mine:
                    raise errors.KeeperLeaseError(f"{holder} keeps {self._store.name}", holder=holder)
                if holder != before:
                    self._tell(Kept("begin" if mine else "standby", holder))
                if mine:
                    self._act(stop, once=once)
            if once:
                break
            stop.wait(min(self._settings.keep_health, self._lease.length / BEATS).total_seconds())
        return self._report

    # The lease ------------------------------------------------------------------------------------------

    def _take(self, uow: UnitOfWork) -> str | None:
        """Take the lease; returns who has it."""
        keeping.add_row(uow)
        before = self._lease.holder(uow)
        if not self._lease.take(uow):
            return before
        if before != self._lease.me:
            keeping.begin(uow)
        return self._lease.me

    def _prolong(self, uow: UnitOfWork, duty: str | None = None) -> None:
        """Prolong the lease, and note what was done, unless another keeper has taken over."""
        if not self._lease.prolong(uow):
            raise errors.KeeperLeaseError(f"{self._lease.holder(uow)} has taken over {self._store.name}")
        if duty is not None:
            keeping.note(uow, duty)

    @contextlib.contextmanager
    def _holding(self) -> Iterator[threading.Event]:
        """Prolong the lease on a thread, because a duty may take hours; yields an event that is set when it is lost."""
        lost, done = threading.Event(), threading.Event()

        def beat() -> None:
            while not done.wait((self._lease.length / BEATS).total_seconds()):
                try:
                    self._units.run(self._prolong)
                except errors.KeeperLeaseError:
                    lost.set()
                    return
                except errors.ConsensusError:
                    continue  # if this lasts, the lease ends by itself

        thread = threading.Thread(target=beat, name="consensus_orm-keeper", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(errors.ConsensusError):
                self._units.run(self._lease.release)

    # Duties ---------------------------------------------------------------------------------------------

    def _act(self, stop: threading.Event, *, once: bool) -> None:
        """Do what is due until the keeper is stopped or has lost its lease."""
        with self._holding() as lost:
            while not (stop.is_set() or lost.is_set()):
                for duty in self._due():
                    if not (stop.is_set() or lost.is_set() or self._is_paused()):
                        self._do(duty)
                if once:
                    return
                stop.wait(self._idle().total_seconds())

    def _due(self) -> list[str]:
        """The duties whose time has come; none while the database cannot be used, or the keeper is paused."""
        health = self._store.health()
        self._watch_health(health)
        if not (health.reachable and health.schema_current):
            return []
        try:
            phase, undecided, done, now = self._units.look(_look)
            self._watch(phase, undecided)
            paused = self._is_paused()
        except (errors.ConsensusError, OSError) as error:
            self._fail("look", error)
            return []
        return [] if paused else [duty for duty in self._duties if self._is_due(duty, done.get(duty), now)]

    def _watch_health(self, health: Health) -> None:
        before, self._problems = self._problems, health.problems
        if health.problems == before:
            return
        self._tell(Kept("health", health))
        if health.problems:
            self._alarm("the database is not healthy; run: consensus-orm health")

    def _watch(self, phase: Phase, undecided: tuple[int, int]) -> None:
        """Tell of a change of phase, and of more mismatches and rejects that wait for an operator."""
        before, self._phase = self._phase, phase
        if before not in (None, phase):
            self._tell(Kept("phase", (before, phase)))
        known, self._open = self._open, undecided
        if any(now > then for now, then in zip(undecided, known, strict=True)):
            self._tell(Kept("open", undecided))
            self._alarm(f"open mismatches: {undecided[0]}, open rejects: {undecided[1]}")

    def _is_paused(self) -> bool:
        before, self._paused = self._paused, self._store.migration.control().paused_at is not None
        if self._paused is not before:
            self._tell(Kept("pause" if self._paused else "resume"))
        return self._paused

    def _is_due(self, duty: str, last: int | None, now: datetime) -> bool:
        interval, phase = self._duties[duty][0], self._phase
        if not interval or time.monotonic() < self._tries.get(duty, (0, 0.0))[1]:
            return False
        if duty == "verify" and not (phase and phase.writes_normalized and phase.has_legacy):
            return False  # there are no two sides
        return keeping.due_at(last, interval, now) <= now

    def _idle(self) -> timedelta:
        """How long to wait before looking again: no longer than the shortest interval."""
        every = [interval for interval, _ in self._duties.values() if interval]
        return min(self._settings.keep_health, self._lease.length / BEATS, *every)

    def _do(self, duty: str) -> None:
        started = time.monotonic()
        try:
            result = self._duties[duty][1]()
            self._units.run(lambda uow: self._prolong(uow, duty))
        except (errors.ConsensusError, OSError) as error:
            self._fail(duty, error)
        else:
            self._tries.pop(duty, None)
            self._tell(Kept(duty, result, time.monotonic() - started))

    def _fail(self, duty: str, error: errors.ConsensusError | OSError) -> None:
        """Report a failure, and wait before the next try: twice as long each time, no longer than until it is due."""
        tries = self._tries.get(duty, (0, 0.0))[0] + 1
        interval = self._duties[duty][0] if duty in self._duties else self._settings.keep_health
        wait = min(self._settings.keep_health * 2 ** min(tries - 1, 10), interval)
        self._tries[duty] = (tries, time.monotonic() + wait.total_seconds())
        self._count(failures=1)
        self._tell(Kept(duty, error=error))
        code = error.code if isinstance(error, errors.ConsensusError) else type(error).__name__
        self._alarm(f"the keeper could not {duty}: {code}")

    def _verify(self) -> VerifyReport:
        report = self._store.migration.verify()
        self._count(verifies=1)
        policy = self._settings.keep_reconcile
        if policy is not Reconciling.NONE and (report.differences or self._open[0]):
            self._reconcile(policy)
            report = self._store.migration.verify()
            self._count(verifies=1)
        self._report = replace(self._report, clean=report.clean)
        return report

    def _reconcile(self, policy: Reconciling) -> ReconcileReport:
        started = time.monotonic()
        foreign: Any = None if policy is Reconciling.SETTLE else policy.value
        report = self._store.migration.reconcile(foreign=foreign, reason=f"keep: {policy}")
        self._count(reconciled=len(report.actions))
        self._tell(Kept("reconcile", report, time.monotonic() - started))
        return report

    def _back_up(self) -> Any:
        mark = f".kept-{hashlib.sha256(self._store.name.encode()).hexdigest()[:8]}-"
        path = self._store._backups.path(f"{mark}{datetime.now(UTC):{STAMP}}")
        report = self._store.maintenance.backup(path)
        self._count(backups=1)
        for old in _backups(path, mark)[: -self._settings.keep_backups]:
            files.remove(old)
            self._count(removed=1)
        return report

    def _vacuum(self) -> Any:
        report = self._store.maintenance.vacuum()
        self._count(vacuums=1)
        return report

    # What is told ---------------------------------------------------------------------------------------

    def _tell(self, kept: Kept) -> None:
        if self._listener is not None:
            self._listener(kept)

    def _alarm(self, reason: str) -> None:
        self._store.telemetry.tell(AlarmEvent(reason))

    def _count(self, **more: int) -> None:
        self._report = replace(self._report, **{name: getattr(self._report, name) + n for name, n in more.items()})


def _look(uow: UnitOfWork) -> tuple[Phase, tuple[int, int], dict[str, int], datetime]:
    """The phase, the numbers of open mismatches and rejects, when each duty was last done, and the time."""
    return uow.phase, (mismatches.count_open(uow), rejects.count_open(uow)), keeping.done(uow), uow.now


def _backups(newest: Path, mark: str) -> list[Path]:
    """The backups of the keeper of this database beside its newest one, oldest first."""
    name = re.escape(newest.name.partition(mark)[0] + mark)
    whole = re.compile(rf"{name}\d{{8}}T\d{{6}}\.\d{{6}}Z")
    return sorted(each for each in newest.parent.iterdir() if whole.fullmatch(each.name))
