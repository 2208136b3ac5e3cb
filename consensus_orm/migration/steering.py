"""What an operator tells a migration that runs, from any process or machine, as methods of `Migration`."""

from __future__ import annotations

from consensus_orm import validation as check
from consensus_orm.ledgers import control
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.ledgers.control import Control
from consensus_orm.migration.records import MigrationRecords
from consensus_orm.migration.transactions import Transactions
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Steering"]


@check.checked
class Steering(MigrationRecords):
    """Steers long steps and changes of phase by a row in the database, which every step reads between its chunks."""

    def control(self) -> Control:
        """What was told; writes nothing. Nothing was, in a database that was never upgraded."""
        if self._units.identity.needs_upgrade:
            self._units.identity = self._units.inspect_patiently()  # another process may have upgraded it
        current = not self._units.identity.needs_upgrade
        return self._reading.run(lambda uow: control.read(uow) if uow.prepared and current else control.FREE)

    def pause(self, *, reason: str | None = None) -> Control:
        """Let every step that writes in chunks (backfill, reconcile, a rollback, the end of CONTRACT) wait.

        A step ends its chunk first, and holds neither lock nor transaction while it waits. A verify goes on, because it
        reads one snapshot.

        Args:
            reason: Why, for the audit.

        Returns:
            What is told now.
        """
        return self._put("pause", "paused_at", reason, now=True)

    def resume(self, *, reason: str | None = None) -> Control:
        """Let paused steps go on.

        Args:
            reason: Why, for the audit.

        Returns:
            What is told now.
        """
        return self._put("resume", "paused_at", reason)

    def throttle(self, rows_per_second: int | None, *, reason: str | None = None) -> Control:
        """Limit every step that writes in chunks to so many rows a second, from its next chunk on.

        Args:
            rows_per_second: The limit; None takes it away.
            reason: Why, for the audit.

        Returns:
            What is told now.

        Raises:
            InvalidValueError: It is not a number, or not above 0.
        """
        if rows_per_second is not None and check.position("rows_per_second", rows_per_second) < 1:
            raise check.invalid("rows_per_second", "must be above 0; None takes the limit away")
        transactions = Transactions(self._units)
        return transactions.run(lambda uow: control.put(uow, "throttle", "throttle", rows_per_second, reason))

    def hold(self, *, reason: str | None = None) -> Control:
        """Refuse every change of phase, forward and back, that of an alarm included, until `release`.

        Args:
            reason: Why; the gate repeats it.

        Returns:
            What is told now.
        """
        return self._put("hold", "held_at", reason, now=True)

    def release(self, *, reason: str | None = None) -> Control:
        """Let phases change again.

        Args:
            reason: Why, for the audit.

        Returns:
            What is told now.
        """
        return self._put("release", "held_at", reason)

    def _put(self, action: str, name: str, reason: str | None, *, now: bool = False) -> Control:
        def write(uow: UnitOfWork) -> Control:
            return control.put(uow, action, name, milliseconds(uow) if now else None, reason)

        return Transactions(self._units).run(write)
