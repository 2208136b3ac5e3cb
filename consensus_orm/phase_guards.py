"""What guards a phase: recorded when it is put in place, and looked at again before a step stands on it (rule 11).

The triggers of a phase notice, record or refuse the writes of other programs. Another program may drop them, or the
tables they stand on, at any moment, and whatever it writes then is noticed by nobody. So each installation of triggers
records what it left behind, and status, gates, verify and reconcile compare the record with the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from consensus_orm import errors
from consensus_orm.phase import Phase
from consensus_orm.triggers import PREFIX, Trigger

if TYPE_CHECKING:
    from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["GUARDS", "Standing", "ours", "record", "recorded"]

GUARDS = "consensus_orm_guards"
"""The table that holds the record."""


class Standing(NamedTuple):
    """Something that guards a phase, as it stands in the catalog or as it was recorded.

    Attributes:
        kind: trigger or table.
        name: Its name.
        table: The table it belongs to.
        definition: The text of a trigger; of a table, what tells it from another table made under its name.
        enabled: Whether a trigger fires.
    """

    kind: str
    name: str
    table: str
    definition: str
    enabled: bool = True


def recorded(uow: UnitOfWork) -> list[Standing]:
    """What was put in place when the triggers were last installed; nothing in a database that was never upgraded."""
    if GUARDS not in uow.catalog.tables(uow):
        return []
    return [
        Standing(*row) for row in uow._rows(f"SELECT kind, name, table_name, definition FROM {GUARDS} ORDER BY 1, 2")
    ]


def record(uow: UnitOfWork, phase: Phase, triggers: Iterable[Trigger]) -> None:
    """Record the triggers that were just installed, and the tables they guard.

    Args:
        uow: Has installed them, and holds the lock of a flip.
        phase: The phase they are for.
        triggers: The triggers.
    """
    uow.catalog.forget_guards(uow)
    wanted = {("trigger", trigger.name) for trigger in triggers}
    wanted |= {("table", name.lower()) for name in _guarded_tables(uow, phase)}
    for found in uow.catalog.standing(uow):
        if (found.kind, found.name if found.kind == "trigger" else found.name.lower()) in wanted:
            uow._execute(f"INSERT INTO {GUARDS} (kind, name, table_name, definition) VALUES (?, ?, ?, ?)", found[:4])


def _guarded_tables(uow: UnitOfWork, phase: Phase) -> Iterator[str]:
    mapping = uow.statements.mapping
    yield from (parent.table.name for parent in mapping.parents)
    for pair in mapping.pairs:
        yield pair.table.name
        if phase.has_legacy:
            yield pair.legacy_name


def ours(uow: UnitOfWork) -> list[Standing]:
    """Those of the standing triggers that this package installed.

    They are told by the record of their names and tables, never by how a name begins: another program may call its
    triggers as it likes. Where the record does not have them (it is younger than the triggers, or they were left
    behind, disabled, by another phase), they are those that the declaration would install in any phase.
    """
    standing = [s for s in uow.catalog.standing(uow) if s.kind == "trigger" and s.name.startswith(PREFIX)]
    known = {(r.name, r.table.lower()) for r in recorded(uow)}
    if (not known or uow.catalog.leaves_triggers) and any((s.name, s.table.lower()) not in known for s in standing):
        known |= set(_expected(uow))
    return [s for s in standing if (s.name, s.table.lower()) in known]


def require_free(uow: UnitOfWork, triggers: Iterable[Trigger]) -> None:
    """Refuse to install a trigger whose name another program has given to one of its own.

    Raises:
        MigrationError: There is one.
    """
    for trigger in triggers:
        if (table := uow.catalog.name_taken(uow, trigger)) is not None:
            raise errors.MigrationError(
                f"a trigger of another program on {table} has the name {trigger.name}, which ours needs",
                hint="nothing was changed; drop it, or create it again under another name",
                table=table,
                trigger=trigger.name,
            )


def _expected(uow: UnitOfWork) -> Iterator[tuple[str, str]]:
    if uow._rows("SELECT 1 FROM consensus_orm_state WHERE mapping IS NULL"):
        return  # none was ever installed
    for phase in Phase:
        for trigger in uow.catalog.triggers(phase, uow.statements):
            yield trigger.name, trigger.table.lower()
