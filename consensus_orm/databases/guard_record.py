"""The record of the guards of a phase: its triggers by name and text, and its tables by identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache

from sqlalchemy import Table, bindparam, insert, select

from consensus_orm import errors
from consensus_orm.databases import state
from consensus_orm.databases.base import PREFIX, Catalog, Standing, Transaction, Trigger
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.moves import Moves
from consensus_orm.models.control import REPLACEABLE, GuardRecord
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.pairs import Statements

__all__ = [
    "GUARDS",
    "install",
    "keep",
    "lost",
    "made_from",
    "normalized_tables",
    "ours",
    "record",
    "recorded",
    "require_free",
    "tables_of",
    "triggers",
]

GUARDS = "consensus_orm_guards"
"""The table with the record."""


@cache
def triggers(catalog: Catalog, phase: Phase, statements: Statements) -> tuple[Trigger, ...]:
    """The triggers of a phase; cached, because rendering them takes longer than installing them."""
    return tuple(catalog.triggers(phase, statements))


def made_from(uow: Transaction, phase: Phase) -> str:
    """The version of the triggers of a phase: fingerprints of the declaration, and of their text in this release."""
    printed = "\n".join(text for each in triggers(uow.catalog, phase, uow.statements) for text in each.statements)
    return f"{uow.statements.fingerprint}:{hashlib.sha256(printed.encode()).hexdigest()[:16]}"


def install(uow: Transaction, phase: Phase) -> None:
    """Replace the triggers of this package by those of a phase, and record them.

    Args:
        uow: Holds the lock of a flip.
        phase: The phase.

    Raises:
        MigrationError: A trigger of another program has one of their names.
    """
    uow.catalog.before_triggers(uow)
    uow.catalog.create(uow, lost(uow))
    uow.catalog.silence(uow, ours(uow))
    new = triggers(uow.catalog, phase, uow.statements)
    require_free(uow, new)
    uow.catalog.run(uow, (command for trigger in new for command in trigger.statements))
    record(uow, phase, new)


def lost(uow: Transaction) -> list[Table]:
    """Control tables that another program has dropped, and that can be created again."""
    there = uow.catalog.tables(uow)
    return [table for table in map(table_of, REPLACEABLE) if table.name not in there]


_RECORDED = select(table_of(GuardRecord)).order_by(GuardRecord.kind, GuardRecord.name)
_COLUMNS = tuple(table_of(GuardRecord).columns.keys())
_KEEP = insert(GuardRecord).values({name: bindparam(name) for name in _COLUMNS})


def recorded(uow: Transaction) -> list[Standing]:
    """The guards at the last installation of triggers; none in a database that was never upgraded."""
    if GUARDS not in uow.catalog.tables(uow):
        return []
    return [Standing(*row) for row in uow._rows(_RECORDED)]


def record(uow: Transaction, phase: Phase, triggers: Iterable[Trigger]) -> None:
    """Record newly installed triggers, and the tables that they guard.

    Args:
        uow: Has installed them, and holds the lock of a flip.
        phase: Their phase.
        triggers: The triggers.
    """
    signs = [r for r in recorded(uow) if r.kind == "view" and not phase.has_legacy]
    uow.catalog.forget_guards(uow)
    wanted = {("trigger", trigger.name.lower(), trigger.table.lower()) for trigger in triggers}
    wanted |= {("table", name.lower(), name.lower()) for name in _guarded_tables(uow, phase)}
    keep(uow, [*signs, *(found for found in uow.catalog.standing(uow) if found.place in wanted)])


def keep(uow: Transaction, guards: Iterable[Standing]) -> None:
    """Add to the record."""
    uow._execute_each(_KEEP, [dict(zip(_COLUMNS, guard[:5], strict=True)) for guard in guards])
    state.put(uow, schema_version=uow.catalog.cookie(uow))


def _guarded_tables(uow: Transaction, phase: Phase) -> Iterator[str]:
    yield from tables_of(uow.statements.moves, Side.NORMALIZED)
    if phase.has_legacy:
        yield from tables_of(uow.statements.moves, Side.LEGACY)


def normalized_tables(moves: Moves) -> list[Table]:
    """The normalized tables: parents first, parts last."""
    moved = [*(pair.table for pair in moves.of_tables(Side.NORMALIZED)), *moves.tables_beside]
    return [*(parent.table for parent in moves.parents), *moved]


def tables_of(moves: Moves, side: Side) -> list[str]:
    """The names of the tables of a side."""
    if side is Side.LEGACY:
        return [pair.legacy_name for pair in moves.of_tables(side)]
    return [table.name for table in normalized_tables(moves)]


def ours(uow: Transaction) -> list[Standing]:
    """The triggers that this package installed.

    The record has their names; a prefix alone may be the choice of another program. Triggers that are not in the record
    (it is younger, or they are disabled ones of another phase) are this package's if the declaration would install
    them in any phase.
    """
    standing = [s for s in uow.catalog.standing(uow) if s.kind == "trigger" and s.name.startswith(PREFIX)]
    known = {r.name for r in recorded(uow) if r.kind == "trigger"}
    if (not known or uow.catalog.leaves_triggers) and any(s.name not in known for s in standing):
        known |= set(_expected(uow))
    return [s for s in standing if s.name in known]


def require_free(uow: Transaction, triggers: Iterable[Trigger]) -> None:
    """Refuse to install a trigger whose name a trigger of another program has.

    Raises:
        MigrationError: There is one.
    """
    for name, table in uow.catalog.names_taken(uow, triggers):
        raise errors.MigrationError(
            f"a trigger of another program on {table} has the name {name}, which ours needs",
            hint="nothing was changed; drop it, or create it again under another name",
            table=table,
            trigger=name,
        )


def _expected(uow: Transaction) -> Iterator[str]:
    if state.get(uow, "mapping") == (None,):
        return  # none was ever installed
    for phase in Phase:
        yield from (trigger.name for trigger in triggers(uow.catalog, phase, uow.statements))
