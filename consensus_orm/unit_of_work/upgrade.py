"""The upgrade of a database: its schema to the newest revision, and its triggers to those of the current moves."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

from consensus_orm import errors
from consensus_orm.databases import engine, guard_record, state
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.sqlite.write_ahead_log import occupants
from consensus_orm.databases.step_backups import StepBackups
from consensus_orm.ledgers import audit, guards, signs
from consensus_orm.progress import Watch
from consensus_orm.retrying.repetition import Repeat, once
from consensus_orm.schema import revisions
from consensus_orm.schema.application import Rewrite
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Upgrade"]


class Upgrade:
    """Brings a database up to date.

    Args:
        units: Its units of work.
        backups: Takes the backup before tables of another program are made anew.
    """

    def __init__(self, units: UnitOfWorkFactory[UnitOfWork], backups: StepBackups) -> None:
        self._units = units
        self._backups = backups
        self._prepared = False

    def pending_rewrite(self) -> Rewrite | None:
        """Tell what an upgrade will do to tables that another program made; writes nothing.

        Returns:
            None where an upgrade leaves all such tables alone.
        """
        units = self._units
        identity = units.identity = units.inspect_patiently()
        if identity.made_by is None:
            return None
        own = len(engine.source_of(units.engine).connections)
        return Rewrite(
            file=units.name,
            made_by=identity.made_by,
            rows=units.look(self._rows_rewritten),
            backup=None if units.path is None else str(self._backups.place("upgrade", "TIME")),
            others=() if units.path is None else tuple(occupants(units.path, own=own)),
        )

    def _rows_rewritten(self, uow: UnitOfWork) -> dict[str, int]:
        names = sorted(uow.catalog.tables(uow).intersection(self._units.identity.rewritten))
        return {name: int(uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0][0]) for name in names}

    def run(self, progress: Watch = None, *, rewrite: bool = False, protect: bool | None = None) -> list[str]:
        """Bring the schema to the newest revision; see `Migration.upgrade`."""
        repeat = partial(self._units.retrier.call, name="upgrade")
        return self._run(repeat, progress, rewrite=rewrite, protect=protect)

    def _run(
        self, repeat: Repeat, progress: Watch = None, *, rewrite: bool = False, protect: bool | None = None
    ) -> list[str]:
        units = self._units
        units.identity = repeat(units.inspect)  # another process may have upgraded it
        facts: dict[str, Any] = {}
        if units.identity.rewritten:
            if not rewrite:
                found = self.pending_rewrite()
                raise errors.RewriteNotConfirmedError(str(found) if found else None, rewrite=found)
            facts = self._backups.take("upgrade", progress)
        again, lost = bool(units.identity.rewritten), units.identity.lost
        applied = repeat(
            lambda: revisions.upgrade(units.engine, units.settings, units.application, rewrite=again, protected=protect)
        )
        units.identity = repeat(units.inspect)
        if facts:
            repeat(lambda: self._audit_backup(facts))
        if lost:
            repeat(lambda: self._note_restored(lost))
        repeat(self._renew_triggers)
        repeat(self._give_rights)
        return applied

    def run_if_needed(self, progress: Watch = None) -> list[str]:
        """Upgrade before another step; a file at the newest revision that is not protected stays so."""
        units = self._units
        units.identity = units.inspect_patiently()
        if units.identity.needs_upgrade:
            return self.run(progress)
        units.retrier.call(self._renew_triggers, name="upgrade")
        return []

    def before_writing(self) -> None:
        """Bring the schema of a file up to date, and ask for WAL, before the first unit of work that writes.

        The schema of a server is changed only by an explicit upgrade.
        """
        units = self._units
        if units.engine.dialect.name != "sqlite":
            if not self._prepared and units.inspect().version != revisions.head():
                raise errors.SchemaOutdatedError(f"{units.name} is not at revision {revisions.head()}")
            if not self._prepared:
                self._renew_triggers()
        elif units.identity.needs_upgrade:
            self._run(once)  # it is repeated with the unit of work
        elif not self._prepared:
            engine.prepare(units.engine)
        self._prepared = True

    def _audit_backup(self, facts: dict[str, Any]) -> None:
        with self._units.bare() as uow:
            audit.add(uow, "backup", **facts)

    def _note_restored(self, lost: tuple[str, ...]) -> None:
        """Void every certificate: roles may have changed ledgers while what keeps them from it was gone."""
        with self._units.bare(lock=Lock.FLIP) as uow:
            audit.add(uow, "mend guards", found=[f"{name} was dropped" for name in lost])
            guards.void(uow)

    def _give_rights(self) -> None:
        """Give each role that may use the legacy tables of a server the rights on what was put beside them."""
        with self._units.bare(read_only=True) as uow:
            lacking = uow.catalog.lacking_rights(uow)
        if lacking:
            # Who may not write here may not give rights either; the gates name what is left.
            with contextlib.suppress(errors.ReadOnlyDatabaseError), self._units.bare(lock=Lock.CARRY) as uow:
                if given := uow.catalog.give_rights(uow):
                    audit.add(uow, "grant", given=given)

    def _renew_triggers(self) -> None:
        with self._units.bare(read_only=True) as uow:
            stale = _stale_triggers(uow) or _stale_moves(uow)
        if stale:
            with self._units.bare(lock=Lock.FLIP) as uow:
                if _stale_moves(uow):
                    state.put(uow, moves=state.moved(uow))
                if _stale_triggers(uow):
                    _install_triggers(uow)


def _stale_moves(uow: UnitOfWork) -> bool:
    """Whether the state names other legacy tables: some were added to the moves, or taken from them."""
    return state.get(uow, "moves") != (state.moved(uow),)


def _stale_triggers(uow: UnitOfWork) -> bool:
    """Whether the installed triggers were made from another mapping than the current one, or were never recorded."""
    found = state.get(uow, "mapping")
    made_from = found[0] if found else uow.phase  # raises: a copy that is not finished has no state
    if guard_record.lost(uow):
        return True
    if not uow.phase.has_legacy:
        # No trigger refers to the legacy side, whose models are not imported; views say where its rows are.
        recorded = bool(guard_record.recorded(uow)) or state.step(uow) == state.EXPANDING
        return (made_from is None and uow.catalog.needs_triggers) or not recorded or signs.are_missing(uow)
    if made_from is None:
        return uow.catalog.needs_triggers
    recorded = bool(guard_record.recorded(uow))
    # Where a guard is missing an operator has to decide; new triggers would hide that.
    return not recorded or (made_from != guard_record.made_from(uow, uow.phase) and not guards.look(uow))


def _install_triggers(uow: UnitOfWork) -> None:
    """Install the triggers of the phase from the current moves."""
    found = [f"table {table.name} was dropped" for table in guard_record.lost(uow)]
    if not guard_record.recorded(uow):
        found += [f"trigger {name} is missing" for name in guards.not_installed(uow)]
    guard_record.install(uow, uow.phase)
    if uow.phase.has_legacy:
        uow.catalog.legacy.remember(uow)
    else:
        signs.put_up(uow)
    if uow.phase.has_legacy or uow.catalog.needs_triggers:
        state.put(uow, mapping=guard_record.made_from(uow, uow.phase))
    if found:  # writes went unnoticed meanwhile
        audit.add(uow, "mend guards", found=found)
        guards.void(uow)
