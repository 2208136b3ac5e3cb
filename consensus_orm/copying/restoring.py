"""Restores the backup of a server into an empty database of a server: as it was, or not at all.

The tables are made as a copy makes them, from their declaration, unless they are there already, and empty. Rows are
loaded in one transaction, which also sets the phase: until it commits the database is closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from consensus_orm import errors
from consensus_orm.copying.finish import set_phase
from consensus_orm.copying.source import State
from consensus_orm.copying.target import CHECKPOINTS, Target
from consensus_orm.databases import guard_record
from consensus_orm.databases.postgresql import backup
from consensus_orm.databases.postgresql.backup import Manifest, TableFile
from consensus_orm.databases.saved_rows import dropped
from consensus_orm.ledgers import audit, guards, signs
from consensus_orm.models.control import GuardRecord
from consensus_orm.phase import Phase, Side
from consensus_orm.schema.inspection import VERSION_TABLE, is_control
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["restore_to_server"]

MADE_ANEW = (VERSION_TABLE, GuardRecord.__tablename__)
"""Tables that say what the database itself has, and not what was backed up."""


def restore_to_server(units: UnitOfWorkFactory[Any], folder: Path) -> dict[str, int]:
    """Load the backup of a server into an empty database.

    Args:
        units: The units of work of the database.
        folder: The backup.

    Returns:
        The number of rows of each table.

    Raises:
        RestoreError: The backup cannot be used, the database is not empty, or a table has no place for a column.
        StorageError: The server failed, or refused a row.
    """
    manifest = backup.read(folder)
    _require_known(units, manifest, folder)
    state = State(
        prepared=manifest.phase is not None,
        phase=Phase.EXPAND if manifest.phase is None else Phase(manifest.phase),
        reversible=manifest.reversible,
    )
    target = Target(units, f"the backup {folder.name}", state)
    shape = [table.model_dump(mode="json") for table in manifest.tables]
    try:
        if not target.is_begun(shape):
            target.prepare(shape, ())
    except errors.CopyError as error:
        raise errors.RestoreError(error.message, hint=error.hint, path=folder) from error
    target.again(partial(_fill, target, manifest, folder))
    units.identity = target.again(units.inspect)
    return {table.name: table.rows for table in manifest.tables}


def _fill(target: Target, manifest: Manifest, folder: Path) -> None:
    with target.unit(durable=True) as uow:
        foreign_keys = target.restored(uow)
        loaded = list(_with_place(uow, manifest, folder))
        for table in loaded:
            if is_control(table.name):
                uow._execute(f"DELETE FROM {quoted(table.name)}")
            backup.load(uow, folder, table)
        if not target.state.prepared:
            set_phase(uow, target.state)
        elif uow._rows("SELECT phase FROM consensus_orm_state") != [(target.state.phase,)]:
            raise errors.RestoreError(
                f"the backup {folder} says two phases: its manifest {target.state.phase.name}, its rows another one",
                hint="no row was restored; give another backup",
                path=folder,
            )
        for statement in foreign_keys:
            uow._execute(statement)
        _level(uow, loaded)
        guard_record.install(uow, target.state.phase)
        guards.void(uow)
        if not target.state.phase.has_legacy:
            signs.put_up(uow)
        audit.add(uow, "restore", backup=folder.name, rows={table.name: table.rows for table in loaded})
        uow._execute(f"DROP TABLE {CHECKPOINTS}")


def _require_known(units: UnitOfWorkFactory[Any], manifest: Manifest, folder: Path) -> None:
    """Refuse a backup with rows of other tables: a manifest may name those of another application (rule 13)."""
    moves = units.statements.moves
    others = (*moves.originals, *units.application.unmapped)
    own = {*moves.tables(Side.LEGACY), *moves.tables(Side.NORMALIZED), *(table.name.lower() for table in others)}
    for name in (table.name for table in manifest.tables):
        if not is_control(name) and name.lower() not in own:
            raise errors.RestoreError(
                f"the backup {folder} holds rows of {name!r:.60}, a table that is in no move",
                hint="nothing was restored; give a backup of these moves, or name its own (--mapping)",
                path=folder,
            )


def _with_place(uow: UnitOfWork, manifest: Manifest, folder: Path) -> Iterator[TableFile]:
    """The tables to load, each of whose columns the database has."""
    for table in manifest.tables:
        if table.name in MADE_ANEW:
            continue
        there = uow.catalog.columns(uow, table.name)
        if missing := [column for column in table.columns if column not in there]:
            what = f"column {missing[0]!r:.60} of {table.name}" if there else f"table {table.name}"
            raise errors.RestoreError(
                f"the database has no {what}, which was backed up",
                hint="no row was restored; create that table with its own definition in an empty database, and restore"
                " the backup there",
                path=folder,
            )
        yield table


def _level(uow: UnitOfWork, tables: list[TableFile]) -> None:
    """Have ids assigned above those that were ever given; both sides had them from one sequence."""
    given = {table.name: table.sequence or 0 for table in tables}
    for pair in uow.statements.moves:
        names = (pair.table.name, pair.legacy_name, dropped(pair.legacy_name))
        given |= dict.fromkeys(given.keys() & names, max(given.get(name, 0) for name in names))
    for name, highest in given.items():
        if highest > 0:
            uow.catalog.set_sequence(uow, name, highest)
    if uow.phase.has_legacy and uow.phase.writes_normalized:
        uow.catalog.level_sequences(uow)
