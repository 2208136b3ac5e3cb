"""The relay: sends the outbox of one external store, one call at a time, and believes only what it has read back.

It never runs in a unit of work of the application, and sends nothing that is not committed. One relay works at a time
for an external store: it holds a lease in the database, which ends by itself when the relay is killed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from consensus_orm import errors
from consensus_orm.events import AlarmEvent, RelayEvent
from consensus_orm.external import findings, outbox, rows, state
from consensus_orm.external.canonical import digest, name_of
from consensus_orm.external.outbox import Entry
from consensus_orm.external.sink import Sink
from consensus_orm.formats import count
from consensus_orm.ledgers import audit, outboxes
from consensus_orm.models.external import SinkState
from consensus_orm.retrying.circuit_breaker import CircuitBreaker
from consensus_orm.retrying.retrier import Retrier, RetryPolicy
from consensus_orm.store import Store
from consensus_orm.times import milliseconds
from consensus_orm.unit_of_work.lease import Lease
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Relay", "RelayReport"]

T = TypeVar("T")

CALLS = 6
"""Calls of an external store for which a lease suffices: one entry takes at most four, the others are for retries."""

BATCH = 100
"""Entries that are looked up at once."""

POLL = timedelta(milliseconds=500)
"""How long a relay waits when nothing is to be sent."""

NOBODY = "consensus_orm:nobody"
"""A name that no entry has, by which a store is asked whether it is there."""

PATIENCE = timedelta(seconds=1)
"""The first wait of an entry that was not read back; each further one is twice as long."""

KEPT = timedelta(days=1)
"""How long entries are kept beyond the soak, for which their lag counts."""


@dataclass(frozen=True)
class RelayReport:
    """What one run of a relay did.

    Attributes:
        sent: Entries that were sent and read back.
        postponed: Tries that failed, and are made again.
        rejected: Entries that became rejects.
        waiting: Entries that wait now.
    """

    sent: int = 0
    postponed: int = 0
    rejected: int = 0
    waiting: int = 0


class Relay:
    """Sends the outbox of one external store.

    Args:
        store: The store whose rows are sent.
        sink: The external store.
    """

    def __init__(self, store: Store[Any], sink: Sink) -> None:
        self._store = store
        self._units = store._units
        self._sink = sink
        self._settings = store.settings
        length = max(self._settings.relay_lease, CALLS * self._settings.sink_timeout)
        self._lease = Lease(SinkState, sink.name, length)
        self._report = RelayReport()
        self._retrier = Retrier(
            replace(RetryPolicy.from_settings(self._settings), budget=length / CALLS),
            telemetry=store.telemetry,
            breaker=CircuitBreaker.from_settings(self._settings),
        )

    def run(self, *, until_empty: bool = False, cancel: threading.Event | None = None) -> RelayReport:
        """Send what is in the outbox, and go on with what comes.

        Args:
            until_empty: Stop when nothing is left that may be sent now; an external store that is away is then an
                error. Otherwise the relay goes on until it is cancelled, and waits for the store to come back.
            cancel: Set it to stop after the entry that is being sent.

        Returns:
            What was done.

        Raises:
            SinkLeaseError: Another relay works for this external store.
            MigrationError: The external store is not at stage MIRROR, or its relay is paused.
            SinkContractError: The external store does not do what its declaration says; nothing was lost.
            SinkUnavailableError: It is away, and `until_empty` is set.
        """
        stop = cancel or threading.Event()
        self._report = RelayReport()
        self._take_lease()
        try:
            self._write(self._prune)
            while not stop.is_set():
                if not self._send_due(stop, until_empty=until_empty):
                    if until_empty:
                        break
                    stop.wait(POLL.total_seconds())
            return replace(self._report, waiting=self._look(lambda uow: outboxes.backlog(uow, self._sink.name)).entries)
        finally:
            self._write(self._lease.release)

    def _send_due(self, stop: threading.Event, *, until_empty: bool) -> bool:
        """Send the entries that may be sent now, oldest first; whether there was one."""
        self._hold_lease()
        here = self._look(lambda uow: state.get(uow, self._sink.name))
        self._require_stage(here)
        waiting = self._watch_backlog()
        if here.paused and until_empty:
            raise errors.MigrationError(
                f"the relay to {self._sink.name} is paused", hint="run: consensus-orm relay resume"
            )
        found = self._look(lambda uow: outbox.due(uow, self._sink.name, BATCH))
        for entry in found:
            if stop.is_set():
                break
            self._hold_lease()
            try:
                self._send(entry, waiting)
            except (errors.SinkUnavailableError, errors.CircuitOpenError) as error:
                if until_empty:
                    raise
                wait = getattr(error, "retry_after", None) or self._settings.retry_max
                stop.wait(min(wait, self._lease.length / CALLS).total_seconds())
                return True
        return bool(found) and not here.paused

    # One entry ------------------------------------------------------------------------------------------

    def _send(self, entry: Entry, waiting: int) -> None:
        """Send the row of an entry as it is now, and close all entries that were committed with it or before."""
        covered, content = self._look(partial(self._read, entry=entry))
        if not covered:
            return  # an entry of the same row has covered it, or the relay is paused
        numbers = json.dumps([number for number, _, _ in covered])
        tries = max(tries for _, tries, _ in covered) + 1
        name = name_of(self._units.statements.moves[entry.pair], entry.key)
        try:
            self._call(partial(self._put, name, content))
        except (errors.SinkContractError, errors.CircuitOpenError):
            raise
        except (errors.SinkError, errors.InvalidValueError) as error:
            final = tries >= self._settings.relay_attempts or isinstance(error, errors.InvalidValueError)
            if isinstance(error, errors.SinkUnavailableError):
                self._sink.get(NOBODY)  # fails, too, where the store is away; where it is not, this entry may be why
                final = final and self._look(lambda uow: outbox.is_overtaken(uow, self._sink.name, entry.id))
            outcome = "rejected" if final else "postponed"
            self._write(
                partial(self._failed, entry=entry, name=name, numbers=numbers, tries=tries, error=error, final=final)
            )
        else:
            outcome = "sent"
            self._write(partial(self._sent, numbers=numbers))
        self._count(outcome, len(covered))
        lag = self._settings.clock().timestamp() - min(at for _, _, at in covered) / 1000
        self._store.telemetry.tell(
            RelayEvent(self._sink.name, entry.pair, entry.key, outcome, max(lag, 0.0), max(waiting, 0))
        )

    def _read(self, uow: UnitOfWork, entry: Entry) -> tuple[list[tuple[int, int, int]], str | None]:
        """The waiting entries of a row, none while the relay is paused, and its text; both as of one moment."""
        pair = uow.statements.moves[entry.pair]
        if state.get(uow, self._sink.name).paused:
            return [], None
        covered = outbox.of_row(uow, self._sink.name, entry.pair, entry.key)
        return covered, rows.contents(uow, pair, [entry.key]).get(entry.key)

    def _put(self, name: str, content: str | None) -> None:
        """Make an entry of the external store what the row is, and read it back."""
        if content is None:
            self._sink.delete(name)
        else:
            self._sink.put(name, content)
        found = self._sink.get(name)
        wanted = None if content is None else digest(content)
        if (None if found is None else digest(found)) != wanted:
            what = "is still there" if content is None else "is missing" if found is None else "has another content"
            raise errors.SinkError(
                f"{name} {what} after {self._sink.name} said that all is well", sink=self._sink.name, item=name
            )

    def _sent(self, uow: UnitOfWork, numbers: str) -> None:
        self._prolong(uow)
        outbox.settle(uow, numbers, "sent")

    def _failed(
        self,
        uow: UnitOfWork,
        entry: Entry,
        name: str,
        numbers: str,
        tries: int,
        error: errors.ConsensusError,
        final: bool,
    ) -> None:
        self._prolong(uow)
        if not final:
            outbox.postpone(uow, numbers, PATIENCE * 2 ** min(tries - 1, 10))
            return
        outbox.settle(uow, numbers, "rejected")
        reason = f"{type(error).__name__} after {count(tries, 'try', 'tries')}: {error.message}"
        findings.add(uow, self._sink.name, "unsent", name, reason, pair=entry.pair, key=entry.key)

    def _count(self, outcome: str, entries: int) -> None:
        so_far = getattr(self._report, outcome)
        self._report = replace(self._report, **{outcome: so_far + (1 if outcome == "postponed" else entries)})

    def _call(self, work: Callable[[], T]) -> T:
        """Call the external store, and again while it is away."""
        return self._retrier.call(work, name=f"sink {self._sink.name}")

    # The lease ------------------------------------------------------------------------------------------

    def _take_lease(self) -> None:
        def take(uow: UnitOfWork) -> None:
            found = state.get(uow, self._sink.name)
            self._require_stage(found)
            if not self._lease.take(uow):
                raise errors.SinkLeaseError(f"{found.holder} sends to {self._sink.name}", sink=self._sink.name)

        self._write(take)

    def _hold_lease(self) -> None:
        """Prolong the lease where less of it is left than the calls of an entry and their retries may take."""
        if self._lease.left < self._lease.length * (CALLS - 1) / CALLS:
            self._write(self._prolong)

    def _prolong(self, uow: UnitOfWork) -> None:
        """Prolong the lease within a unit of work, which fails where another relay has taken it."""
        if not self._lease.prolong(uow):
            taker = self._lease.holder(uow)
            raise errors.SinkLeaseError(f"{taker} has taken over {self._sink.name}", sink=self._sink.name)

    def _require_stage(self, found: state.State) -> None:
        if not found.at.records:
            raise errors.MigrationError(
                f"{self._sink.name} is at stage {found.at.name}, so that nothing is sent to it",
                hint="run: consensus-orm external advance mirror",
            )

    # Alarms and upkeep ----------------------------------------------------------------------------------

    def _watch_backlog(self) -> int:
        """Sound the alarm where too much waits, or for too long; returns how many entries wait."""
        found = self._look(lambda uow: outboxes.backlog(uow, self._sink.name))
        now = self._settings.clock().timestamp() * 1000
        age = timedelta(milliseconds=0 if found.oldest is None else max(now - found.oldest, 0))
        if found.entries > self._settings.relay_alarm_entries or age > self._settings.relay_alarm_age:
            reason = (
                f"{count(found.entries, 'entry waits', 'entries wait')} for {self._sink.name}, the oldest for {age}"
            )
            self._write(partial(self._alarm, reason=reason))
        return found.entries

    def _alarm(self, uow: UnitOfWork, reason: str) -> None:
        now = int(uow.now.timestamp() * 1000)
        last = state.get(uow, self._sink.name).alarmed_at
        if last is not None and 0 <= now - last < milliseconds(self._settings.relay_alarm_age):
            return
        state.put(uow, self._sink.name, alarmed_at=now)
        audit.add(uow, "sink alarm", reason=reason, sink=self._sink.name)
        uow.on_commit(lambda: self._store.telemetry.tell(AlarmEvent(reason)))

    def _prune(self, uow: UnitOfWork) -> None:
        kept = max(self._settings.soak_mirror, timedelta(milliseconds=state.get(uow, self._sink.name).soak or 0)) + KEPT
        outbox.prune(uow, self._sink.name, int(uow.now.timestamp() * 1000) - milliseconds(kept))

    # Units of work --------------------------------------------------------------------------------------

    def _look(self, work: Callable[[UnitOfWork], T]) -> T:
        """Read on the primary, in one snapshot."""
        return self._units.look(work)

    def _write(self, work: Callable[[UnitOfWork], T]) -> T:
        return self._units.run(work)
