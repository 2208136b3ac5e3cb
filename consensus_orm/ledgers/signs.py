"""Signs: at CONTRACT a view stands where each legacy table was, and says where its rows are.

A program of the legacy side makes its tables again, IF NOT EXISTS, and then indexes on them: a view refuses the index,
so that the program stops before it writes rows that no reader would see.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, delete

from consensus_orm.databases import state
from consensus_orm.databases.base import SIGN, Transaction
from consensus_orm.databases.guard_record import keep, recorded
from consensus_orm.declaration.move import Move
from consensus_orm.models.control import GuardRecord
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import literal, quoted

__all__ = ["are_missing", "put_up", "same_definition", "strays", "take_down"]

_FORGET_VIEWS = delete(GuardRecord).where(GuardRecord.kind == "view")
_FORGET_VIEW = _FORGET_VIEWS.where(GuardRecord.name == bindparam("view"))


def put_up(uow: Transaction) -> None:
    """Create a view where each legacy table was, unless another relation has its name."""
    signs = {r.place for r in recorded(uow) if r.kind == "view"}
    taken = _names(uow)
    for pair in uow.statements.moves.of_tables(Side.LEGACY):
        name = pair.legacy_name
        if name.lower() not in taken:
            moves = uow.statements.moves.sharing(pair, Side.LEGACY)
            place = uow.catalog.legacy.old_place(uow, pair)
            uow._execute(_sign(place, moves))
            uow.catalog.legacy.show_sign(uow, place)
            uow._execute(_FORGET_VIEW, {"view": name})
            signs.add(("view", name.lower(), name.lower()))
        elif uow.catalog.columns(uow, name) == {SIGN}:  # ours, and the record of it was dropped
            signs.add(("view", name.lower(), name.lower()))
    new = [s for s in uow.catalog.standing(uow) if s.place in signs]
    uow._execute(_FORGET_VIEWS)
    keep(uow, new)


def _sign(place: str, moves: Sequence[Move]) -> str:
    tables: list[str] = []
    for pair in moves:
        tables += [pair.table.name, *(table.name for table in pair.tables_beside)]
        tables += [parent.table.name for parent in pair.parents]
    where = " and ".join(dict.fromkeys(tables))
    told = f"consensus_orm: these rows are in {where}; read and write them through consensus_orm"
    return f"CREATE VIEW {place} AS SELECT {literal(told)} AS {SIGN}"


def take_down(uow: Transaction) -> None:
    """Drop the views that stand where legacy tables were."""
    standing = {s.place: s for s in uow.catalog.standing(uow)}
    for view in (r for r in recorded(uow) if r.kind == "view"):
        if (found := standing.get(view.place)) and same_definition(found.definition, view.definition):
            uow._execute(f"DROP VIEW {quoted(found.name)}")
    uow._execute(_FORGET_VIEWS)


def are_missing(uow: Transaction) -> bool:
    """Whether nothing stands where a legacy table was, so that a program could make it again."""
    if state.step(uow) == state.EXPANDING:
        return False
    there = _names(uow)
    return any(pair.legacy_name.lower() not in there for pair in uow.statements.moves)


def strays(uow: Transaction) -> list[str]:
    """Legacy tables at CONTRACT: another program has made them again, and writes rows that no reader sees."""
    if uow.phase.has_legacy or state.step(uow) == state.EXPANDING:
        return []
    there = uow.catalog.tables(uow)
    legacy = uow.statements.moves.of_tables(Side.LEGACY)
    return [pair.legacy_name for pair in legacy if pair.legacy_name.lower() in there]


def _names(uow: Transaction) -> set[str]:
    return {s.name.lower() for s in uow.catalog.standing(uow) if s.kind != "trigger"}


def same_definition(one: str, other: str) -> bool:
    """Whether two definitions differ at most in quotes and spaces: SQLite adds quotes where a table is renamed."""
    return _plain(one) == _plain(other)


def _plain(definition: str) -> str:
    return "".join(definition.replace('"', "").split())
