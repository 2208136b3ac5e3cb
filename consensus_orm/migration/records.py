"""The read-only part of `Migration`: where it stands, and the entries of its ledgers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from consensus_orm import validation as check
from consensus_orm.databases import guard_record
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.opening import catalog
from consensus_orm.databases.step_backups import StepBackups
from consensus_orm.ledgers import dependencies, entries, guards, reads
from consensus_orm.ledgers.dependencies import DependencyEntry
from consensus_orm.migration import details, gates
from consensus_orm.migration.details import RowDetail
from consensus_orm.migration.status import MigrationStatus, collect
from consensus_orm.migration.transactions import Transactions
from consensus_orm.phase import Phase
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork
from consensus_orm.unit_of_work.upgrade import Upgrade

if TYPE_CHECKING:
    from consensus_orm.migration.rehearsal_report import RehearsalReport

__all__ = ["MigrationRecords"]


@check.checked
class MigrationRecords:
    """Reads where the migration of a database stands.

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
    def _looking(self) -> Transactions:
        """For what has to be told even where some rows cannot be seen."""
        return Transactions(self._units, read_only=True, whole=False)

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
        for phase in Phase:  # compiled before the lock is taken: writers waited 10 ms for it
            guard_record.triggers(catalog(statements.rendering.name), phase, statements)
        return Transactions(self._units, lock=Lock.FLIP)

    def _note_reads(self) -> None:
        """Keep the reads of others up to now, before this package reads frozen tables itself."""
        if self._looking.run(lambda uow: uow.catalog.counts_reads and uow.prepared and uow.phase.freezes_legacy):
            self._writing.run(reads.note)

    @property
    def phase(self) -> Phase:
        """The phase the database is in now.

        Of a database that was never upgraded, the phase it begins with, by the tables it has; nothing is written.
        """
        return self._looking.run(self._phase_of)

    def _phase_of(self, uow: UnitOfWork) -> Phase:
        return uow.phase if uow.prepared else self._units.initial_phase

    def status(self) -> MigrationStatus:
        """Everything there is to know before the next step; writes nothing.

        Returns:
            Phase, rows on each side, backfill, certificate, open mismatches and rejects, and what keeps the next
            gate shut.
        """
        rewrite = self._upgrade.pending_rewrite() if self._units.identity.rewritten else None
        told = None if rewrite is None else str(rewrite)
        if self._units.identity.needs_upgrade:
            self._units.identity = self._units.inspect_patiently()  # another process may have upgraded it
        initial, needs_upgrade = self._units.initial_phase, self._units.identity.needs_upgrade

        def look(uow: UnitOfWork) -> MigrationStatus:
            outdated = uow.prepared and needs_upgrade
            return collect(uow, initial, told, outdated=outdated, others=self._units.application.unmapped)

        return self._looking.run(look)

    def check(self) -> list[str]:
        """What will keep a gate shut on the way to CONTRACT, as far as the catalog knows today; writes nothing.

        It needs no upgrade before it, and comes before everything else: what others use of the legacy tables, keys that
        are none, columns that no move speaks of, rows that this role does not see, and what other programs have taken
        away since the upgrade.

        Returns:
            Each obstacle, with the command that helps.
        """

        def look(uow: UnitOfWork) -> list[str]:
            flaws = [flaw.told for flaw in guards.look(uow)] if uow.prepared else []
            return flaws or [obstacle.text for obstacle in gates.known_from_the_start(uow, self._phase_of(uow))]

        return self._looking.run(look)

    def history(self) -> list[entries.HistoryEntry]:
        """The audit: every change of phase and every repair, oldest first; writes nothing."""
        return self._looking.run(entries.history)

    def dependencies(self) -> list[DependencyEntry]:
        """What others have made upon the legacy tables, and who still reads those that are frozen; writes nothing."""
        return self._looking.run(dependencies.found)

    def mismatches(self, *, everything: bool = False) -> list[entries.MismatchEntry]:
        """Mismatches, oldest first.

        Args:
            everything: Include those that are settled.
        """
        return self._looking.run(lambda uow: entries.mismatches(uow, everything))

    def rejects(self, *, everything: bool = False) -> list[entries.RejectEntry]:
        """Rows that could not be carried, oldest first.

        Args:
            everything: Include those that are settled.
        """
        return self._looking.run(lambda uow: entries.rejects(uow, everything))

    def images(self, *, everything: bool = False) -> list[entries.ImageEntry]:
        """Rows that were kept before they were overwritten or deleted, oldest first.

        Args:
            everything: Include those that were put back.
        """
        return self._looking.run(lambda uow: entries.images(uow, everything))

    def mismatch(self, number: int, *, contents: bool = False) -> RowDetail:
        """One mismatch, and its row as both sides have it now, column by column.

        Args:
            number: Its number in `mismatches`.
            contents: Show the values, and not only their types and sizes.

        Raises:
            InvalidValueError: There is no such mismatch.
        """
        return self._looking.run(lambda uow: details.of_mismatch(uow, number, contents=contents))

    def reject(self, number: int, *, contents: bool = False) -> RowDetail:
        """One reject, its row as it was kept, and as both sides have it now, column by column.

        Args:
            number: Its number in `rejects`.
            contents: Show the values, and not only their types and sizes.

        Raises:
            InvalidValueError: There is no such reject.
        """
        return self._looking.run(lambda uow: details.of_reject(uow, number, contents=contents))

    def image(self, number: int, *, contents: bool = False) -> RowDetail:
        """One image, and its row as both sides have it now, column by column.

        Args:
            number: Its number in `images`.
            contents: Show the values, and not only their types and sizes.

        Raises:
            InvalidValueError: There is no such image.
        """
        return self._looking.run(lambda uow: details.of_image(uow, number, contents=contents))
