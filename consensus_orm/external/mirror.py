"""Mirror: a store and an external store beside it, through the stages OFF, IMPORT, MIRROR and DETACHED, and back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases.lock import Lock
from consensus_orm.external import comparison, findings, gates, importing, outbox, rows, state
from consensus_orm.external.comparison import Certificate, ComparisonReport
from consensus_orm.external.findings import Finding
from consensus_orm.external.importing import ImportReport, Read, read_own
from consensus_orm.external.outbox import attach
from consensus_orm.external.relay import Relay
from consensus_orm.external.sink import InTurn, Sink
from consensus_orm.external.stage import Stage
from consensus_orm.ledgers import audit, outboxes
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.store import Store
from consensus_orm.times import milliseconds as in_milliseconds
from consensus_orm.times import when
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Mirror", "MirrorStatus"]


class MirrorStatus(BaseModel):
    """Where an external store stands; durations are `timedelta`.

    `late` says that more waits, or for longer, than the settings allow without an alarm.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    sink: str
    stage: Stage
    since: datetime | None
    provable: bool | None
    waiting: int
    oldest: timedelta | None
    late: bool
    sent: int
    lag_p99: timedelta | None
    paused: bool
    relay: str | None
    rejects: int
    mismatches: int
    imported: int
    compared_at: datetime | None
    compared_rows: int | None
    differences: int | None
    gate: list[str]


class Mirror:
    """A store, and an external store that mirrors it.

    Making one attaches the store: from then on its units of work write the outbox while the stage is MIRROR.

    Args:
        store: The store.
        sink: The external store.
        read: Reads entries that only the external store holds as rows.

    Attributes:
        relay: Sends the outbox.
    """

    def __init__(self, store: Store[Any], sink: Sink, *, read: Read = read_own) -> None:
        self._store = check.instance("store", store, Store)
        self._units = store._units
        self.sink = check.instance("sink", sink, Sink)  # type: ignore[type-abstract]  # a protocol
        self._read = check.callback("read", read)
        attach(store)
        self._in_turn = InTurn(sink)
        self.relay = Relay(store, self._in_turn)

    # Stages ---------------------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """The stage now."""
        return self._state().at

    def status(self) -> MirrorStatus:
        """Where the external store stands; calls nothing outside of the database."""
        return self._units.look(partial(_status, sink=self.sink.name, gate=self._gate))

    def _gate(self, uow: UnitOfWork) -> tuple[bool, list[str]]:
        capabilities = self.sink.capabilities
        return capabilities.provable, [each.text for each in gates.obstacles(uow, self.sink.name, capabilities)]

    def advance(self, to: Stage | str | int | None = None, *, reason: str | None = None, force: bool = False) -> Stage:
        """Go to the next stage, or step by step to a later one; each gate must be open.

        Args:
            to: The stage to reach; the next one where left out.
            reason: Why, for the audit; required with `force`.
            force: Do not wait for the soak, the lag or a fresh comparison; opens no other gate.

        Returns:
            The stage reached.

        Raises:
            GateClosedError: A gate is shut; its reasons say what would help.
            SinkError: The external store cannot be read.
            InvalidValueError: There is no such stage, it lies behind, or the reason is missing.
        """
        if force and not (reason or "").strip():
            raise errors.InvalidValueError("force needs a reason", hint="say why: --reason TEXT", field="reason")
        self._store.upgrade()
        now = self.stage
        target = Stage.parse(to) if to is not None else now.next or now
        if target < now:
            raise errors.InvalidValueError(
                f"{target.name} lies behind {now.name}",
                hint=f"run: consensus-orm external rollback {target.name.lower()}",
                field="to",
            )
        for following in [stage for stage in Stage if now < stage <= target]:
            if following < Stage.DETACHED:
                self._in_turn.list()  # a server that cannot be started is refused here, and nothing was changed
            self._flip(partial(self._pass_gate, force=force), now, following, "advance", reason, forced=force)
            now = following
            if now.records:
                self.export()
        return now

    def rollback(self, to: Stage | str | int | None = None, *, reason: str | None = None) -> Stage:
        """Go back one stage, or step by step to an earlier one.

        Back at MIRROR all rows are put into the outbox again. Entries of rows that were deleted at DETACHED are left:
        `verify` finds them, and `repair` has the relay delete them.

        Args:
            to: The stage to reach; the one before where left out.
            reason: Why, for the audit.

        Returns:
            The stage reached.

        Raises:
            MigrationError: There is nothing to go back to.
            InvalidValueError: There is no such stage, or it lies ahead.
        """
        now = self.stage
        wanted = now.previous if to is None else to  # OFF is 0
        if wanted is None:
            raise errors.MigrationError("OFF is the first stage", hint="there is nothing to go back to")
        target = Stage.parse(wanted)
        if target > now:
            raise errors.InvalidValueError(
                f"{target.name} lies ahead of {now.name}",
                hint=f"run: consensus-orm external advance {target.name.lower()}",
                field="to",
            )
        for following in reversed([stage for stage in Stage if target <= stage < now]):
            self._flip(lambda uow: {}, now, following, "rollback", reason)
            now = following
            if now.records:
                self.export()
        return now

    def _flip(self, gate: Any, now: Stage, to: Stage, action: str, reason: str | None, *, forced: bool = False) -> None:
        """Change the stage while no other unit of work writes."""

        def once() -> None:
            with self._units.on_primary(lock=Lock.FLIP) as uow:
                found = state.get(uow, self.sink.name)
                if found.at is not now:
                    raise errors.PhaseChangedError(
                        f"{self.sink.name} is at {found.at.name}, no longer at {now.name}", expected=now
                    )
                facts = gate(uow)
                soak = in_milliseconds(uow.settings.soak_mirror) if to.records else None
                state.put(
                    uow,
                    self.sink.name,
                    stage=to.value,
                    epoch=found.epoch + 1,
                    since=milliseconds(uow),
                    soak=soak,
                    exported_at=None,
                )
                audit.add(
                    uow,
                    f"sink {action}",
                    reason=reason,
                    forced=forced,
                    sink=self.sink.name,
                    before=now.name,
                    after=to.name,
                    **facts,
                )

        self._units.retrier.call(once, name="sink stage")

    def _pass_gate(self, uow: UnitOfWork, *, force: bool) -> dict[str, Any]:
        found = gates.obstacles(uow, self.sink.name, self.sink.capabilities)
        skipped = [each.text for each in found if each.waiting and force]
        shut = [each.text for each in found if each.text not in skipped]
        if shut:
            to = state.get(uow, self.sink.name).at.next
            raise errors.GateClosedError(
                f"the gate to {to.name if to else ''} is shut", hint="; ".join(shut), reasons=shut, to=to
            )
        return {"skipped": skipped} if skipped else {}

    # Steps ----------------------------------------------------------------------------------------------

    def import_entries(self, *, own: bool = False) -> ImportReport:
        """Let entries come in that only the external store holds; each comes in once, others become rejects.

        Args:
            own: Take in entries, too, that are named as rows of this database and have no row: those of a database
                that is lost. Rows that were deleted here would come back.

        Raises:
            MigrationError: The stage is neither IMPORT nor MIRROR.
            SinkError: The external store cannot be read; what came in stays.
        """
        self._require("import", Stage.IMPORT, Stage.MIRROR)
        return importing.move_in(self._store, self._in_turn, self._read, importing.every_item(self._in_turn), own=own)

    def export(self) -> int:
        """Put all rows into the outbox, in chunks; returns how many. It may be repeated at any time.

        Raises:
            MigrationError: The stage is not MIRROR.
        """
        self._require("export", Stage.MIRROR)
        count = sum(self._export(pair) for pair in self._units.statements.moves)
        self._store.run(lambda uow: state.put(uow, self.sink.name, exported_at=milliseconds(uow)))
        return count

    def _export(self, pair: Any) -> int:
        count, after = 0, None
        size = self._store.settings.chunk_rows
        while keys := self._units.look(partial(rows.page_of_keys, pair=pair, after=after, size=size)):
            add = partial(outbox.enqueue, sink=self.sink.name, pair=pair.name, keys=keys, op="export")
            count += self._store.run(add)
            after = keys[-1]
        return count

    def verify(self) -> ComparisonReport:
        """Compare all rows with all entries, keep what differs as findings, and write a certificate.

        Raises:
            MigrationError: The stage is not MIRROR.
            SinkError: The external store cannot be read.
        """
        self._require("verify", Stage.MIRROR)
        return comparison.compare(self._store, self._in_turn)

    def repair(self, *, reason: str | None = None) -> int:
        """Put the rows of all open findings into the outbox, so that the relay makes the external store equal.

        What the external store held is kept with the finding. Entries that did not come in, or have changed since,
        are left: import or accept them.

        Args:
            reason: Why, for the audit.

        Returns:
            How many findings were settled.

        Raises:
            MigrationError: The stage is not MIRROR.
        """
        self._require("repair", Stage.MIRROR)
        return self._store.run(partial(self._repair, reason=reason))

    def _repair(self, uow: UnitOfWork, reason: str | None) -> int:
        sink = self.sink.name
        found = [each for each in findings.listed(uow, sink) if each.pair is not None]
        for each in found:
            outbox.enqueue(uow, sink, str(each.pair), [each.key], "repair")
            findings.settle(uow, sink, each.id, "settled", "put into the outbox again")
        if found:
            audit.add(uow, "sink repair", reason=reason, sink=sink, findings=[each.id for each in found])
        return len(found)

    def findings(self, *, everything: bool = False) -> list[Finding]:
        """Rejects and mismatches, oldest first.

        Args:
            everything: The settled ones, too.
        """
        return self._units.look(lambda uow: findings.listed(uow, self.sink.name, everything=everything))

    def kept(self, number: int) -> str | None:
        """What the external store held when a finding was made: JSON with name and content; None where it held nothing.

        Args:
            number: The number of the finding.

        Raises:
            InvalidValueError: There is none of this number.
        """
        wanted = check.position("number", number)
        return self._units.look(lambda uow: findings.content(uow, self.sink.name, wanted))

    def accept(self, number: int, *, reason: str) -> None:
        """Leave a finding as it is; what the external store held is kept.

        Args:
            number: The number of the finding.
            reason: Why, for the audit.

        Raises:
            InvalidValueError: There is no open finding of this number, or the reason is missing.
        """
        self.accept_many([check.position("number", number)], reason=reason)

    def accept_many(self, numbers: Iterable[int], *, reason: str) -> None:
        """Leave several findings as they are; all of them are accepted, or none.

        Args:
            numbers: The numbers of the findings.
            reason: Why, for the audit.

        Raises:
            InvalidValueError: A number is that of no open finding, or the reason is missing.
        """
        why = check.reason("reason", reason)
        wanted = sorted({check.position("numbers", number) for number in check.several("numbers", numbers)})

        def work(uow: UnitOfWork) -> None:
            findings.require_open(uow, self.sink.name, wanted)
            for number in wanted:
                findings.settle(uow, self.sink.name, number, "accepted", why)
                audit.add(uow, "sink accept", reason=why, sink=self.sink.name, finding=number)

        self._store.run(work)

    def pause(self, *, reason: str | None = None) -> None:
        """Stop the relay after the entry that it sends, wherever it runs; the outbox goes on filling."""
        self._pause(True, reason)

    def resume(self, *, reason: str | None = None) -> None:
        """Let the relay go on."""
        self._pause(False, reason)

    def _pause(self, paused: bool, reason: str | None) -> None:
        def work(uow: UnitOfWork) -> None:
            state.put(uow, self.sink.name, paused=paused)
            audit.add(uow, "sink pause" if paused else "sink resume", reason=reason, sink=self.sink.name)

        self._store.run(work)

    def _state(self) -> state.State:
        return self._units.look(lambda uow: state.get(uow, self.sink.name))

    def _require(self, step: str, *stages: Stage) -> None:
        if (now := self.stage) not in stages:
            names = " or ".join(stage.name for stage in stages)
            raise errors.MigrationError(
                f"{self.sink.name} is at stage {now.name}, and {step} needs {names}",
                hint="see: consensus-orm external status",
            )


def _status(uow: UnitOfWork, sink: str, gate: Any) -> MirrorStatus:
    found = state.get(uow, sink)
    behind = outboxes.of(uow, sink, found.since, paused=bool(found.paused))
    listed = findings.listed(uow, sink)
    certificate: Certificate | None = comparison.newest_certificate(uow, sink)
    provable, reasons = gate(uow)
    return MirrorStatus(
        sink=sink,
        stage=found.at,
        since=None if not found.since else found.begun,
        provable=provable,
        **behind.model_dump(exclude={"sink"}),
        relay=found.holder if (found.lease_until or 0) >= milliseconds(uow) else None,
        rejects=sum(each.is_reject for each in listed),
        mismatches=sum(not each.is_reject for each in listed),
        imported=len(importing.imported(uow, sink)),
        compared_at=None if certificate is None else when(certificate.at),
        compared_rows=None if certificate is None else certificate.rows,
        differences=None if certificate is None else certificate.differences,
        gate=reasons,
    )
