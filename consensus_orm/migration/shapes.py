"""What guards a phase, and the columns of the tables it stands on: another program may drop or rename one.

The record of the guards (`ledgers.guards`) tells whether a table is the one that it was; here it is held against what
the statements need of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from consensus_orm.databases import guard_record
from consensus_orm.ledgers import guards
from consensus_orm.ledgers.guards import Flaw
from consensus_orm.phase import Side
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["lacking", "look", "require"]


def look(uow: UnitOfWork) -> list[Flaw]:
    """What guards the phase and is not in place, and the columns that are gone.

    Args:
        uow: Sees the catalog in one snapshot.
    """
    flaws = guards.look(uow)
    named = {flaw.table for flaw in flaws if flaw.side}
    columns = [flaw for flaw in _columns(uow) if flaw.table not in named]
    # What makes a table again puts its triggers in place, too.
    return [*columns, *(flaw._replace(command=columns[0].command) if columns else flaw for flaw in flaws)]


def require(uow: UnitOfWork) -> None:
    """Refuse to go on where something that guards the phase is not in place, or a column is gone.

    Raises:
        GuardsBrokenError: That is so.
    """
    if flaws := look(uow):
        raise guards.broken(uow, flaws)


def lacking(uow: UnitOfWork, side: Side) -> dict[str, list[str]]:
    """The tables of a side that are there and lack columns which the statements need, and those columns."""
    there = {name.lower() for name in uow.catalog.tables(uow)}
    mapping = uow.statements.mapping
    needed = {table.name: {c.name for c in table.columns} for table in guard_record.normalized_tables(mapping)}
    if side is Side.LEGACY:
        needed = {pair.legacy_name: set(pair.legacy_columns) for pair in mapping}
    found = {}
    for table in (table for table in needed if table.lower() in there):
        has = {name.lower() for name in uow.catalog.columns(uow, table)}
        if missing := sorted(name for name in needed[table] if name.lower() not in has):
            found[table] = missing
    return found


def _columns(uow: UnitOfWork) -> Iterator[Flaw]:
    if not uow.phase.has_legacy:
        return
    for table, missing in lacking(uow, Side.LEGACY).items():
        text = f"column {', '.join(missing)} of table {table} was dropped or renamed by another program"
        if uow.phase.truth is Side.LEGACY:  # no other side can say what stood there
            yield Flaw(f"{text}: give it its name again", "consensus-orm restore BACKUP", Side.LEGACY, table)
        else:
            yield Flaw(text, f"consensus-orm reconcile --rebuild {Side.LEGACY}", Side.LEGACY, table)
