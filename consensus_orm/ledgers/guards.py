"""The guards of a phase, its triggers and tables: compared with their record before a step relies on them (rule 11).

The triggers of a phase record or refuse the writes of other programs. Another program may drop them, or the tables
they stand on, at any moment, and its writes go unnoticed from then on. So each installation of triggers records what it
made, and status, gates, verify and reconcile compare this record with the catalog.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import func, or_, select

from consensus_orm import errors
from consensus_orm.databases import guard_record, state
from consensus_orm.databases.base import Standing, Transaction
from consensus_orm.databases.guard_record import lost, normalized_tables, ours, recorded, tables_of
from consensus_orm.ledgers import audit, certificates, signs
from consensus_orm.models.base import Base
from consensus_orm.models.control import REPLACEABLE, PhaseChange
from consensus_orm.phase import Side

__all__ = [
    "Flaw",
    "broken",
    "lacking_columns",
    "look",
    "mend",
    "missing_table",
    "not_installed",
    "notice",
    "require",
    "require_accounted",
    "require_in_sight",
    "void",
]

log = logging.getLogger("consensus_orm")

UPGRADE = "consensus-orm upgrade"
"""The command that makes again what holds no rows of users."""

RESTORE = "consensus-orm restore BACKUP"
"""The command for a table whose rows stand nowhere else."""


class Flaw(NamedTuple):
    """A guard of the phase that is missing or was changed.

    Attributes:
        text: What is wrong.
        command: The command that repairs it; empty where no command does.
        side: The side whose table is gone, was replaced or lacks columns; None where the tables are the same.
        table: That table.
    """

    text: str
    command: str = "consensus-orm reconcile"
    side: Side | None = None
    table: str = ""

    @property
    def told(self) -> str:
        """What is wrong, and the command that repairs it."""
        return f"{self.text}; run: {self.command}" if self.command else self.text


# Comparison with the catalog -------------------------------------------------------------------------------


def look(uow: Transaction) -> list[Flaw]:
    """Compare the record with the catalog, in one snapshot.

    Returns:
        What is missing or was changed; empty where every guard is in place, or none was ever installed.
    """
    flaws = _of_record(uow)
    named = {flaw.table for flaw in flaws if flaw.side}
    of_tables = [*(flaw for flaw in _columns(uow) if flaw.table not in named), *(flaw for flaw in flaws if flaw.side)]
    others = [flaw for flaw in flaws if not flaw.side]
    if of_tables:  # the command that makes a table again puts its triggers in place, too
        others = [flaw._replace(command=of_tables[0].command) if flaw.command else flaw for flaw in others]
    return [*of_tables, *others]


def _of_record(uow: Transaction) -> list[Flaw]:
    known = recorded(uow)
    standing = {s.place: s for s in uow.catalog.standing(uow)}
    gone = [Flaw(f"table {table.name} was dropped or renamed by another program", UPGRADE) for table in lost(uow)]
    if gone and not known:
        return gone
    if not known:
        installed = state.get(uow, "mapping") not in (None, (None,))
        unknown = Flaw(f"what guards {uow.phase.name} was never recorded", UPGRADE)
        if installed and uow.phase.has_legacy:
            return [unknown]
        legacy = tables_of(uow.statements.moves, Side.LEGACY) if uow.phase.has_legacy else []
        missing = (_missing(uow, name, Side.LEGACY, standing) for name in legacy)
        return [*(flaw for flaw in missing if flaw is not None), *_of_signs(uow, known, standing)]
    flaws = [*_under_way(uow), *gone, *_of_signs(uow, known, standing)]
    for table in (r for r in known if r.kind == "table"):
        triggers = [r for r in known if r.kind == "trigger" and r.table.lower() == table.name.lower()]
        flaws += _of_table(uow, table, triggers, standing)
    if uow.catalog.leaves_triggers:
        names = {r.name for r in known}
        left = [s for s in ours(uow) if s.enabled and s.name not in names]
        flaws += [Flaw(f"trigger {s.name} on {s.table}, which is of another phase, was enabled") for s in left]
    return [*flaws, *(Flaw(text, command="") for text in uow.catalog.muted(uow))]


def _under_way(uow: Transaction) -> Iterator[Flaw]:
    if side := state.rebuilding(uow):
        yield Flaw(f"the {side} side is being made again", f"consensus-orm reconcile --rebuild {side}", side)


def _of_signs(
    uow: Transaction, known: list[Standing], standing: dict[tuple[str, str, str], Standing]
) -> Iterator[Flaw]:
    if uow.phase.has_legacy or state.step(uow) == state.EXPANDING:
        return
    there = signs.strays(uow)
    for name in there:
        yield Flaw(f"table {name} was made by another program, and nobody reads its rows", table=name)
    for view in (r for r in known if r.kind == "view" and r.name not in there):
        if (found := _relation(standing, view.name)) is None:
            yield Flaw(f"the view {view.name}, which says where its rows are, was dropped", UPGRADE)
        elif not signs.same_definition(found.definition, view.definition):
            yield Flaw(f"{view.name} is a {found.kind} of another program; drop or rename it", command="")


def _relation(standing: dict[tuple[str, str, str], Standing], name: str) -> Standing | None:
    """The table, view or virtual table of a name."""
    found = (s for s in standing.values() if s.kind != "trigger" and s.name.lower() == name.lower())
    return next(found, None)


def _out_of_sight(uow: Transaction, table: Standing) -> Flaw | None:
    if (schema := uow.catalog.elsewhere(uow, table)) is None:
        return None
    text = f"table {table.name} is in schema {schema}, which this connection does not look in"
    return Flaw(f"{text}: name it in the model (`schema`), or in search_path", command="")


def require_in_sight(uow: Transaction) -> None:
    """Refuse to make a table again that is where it was, in a schema in which this connection does not look.

    Raises:
        GuardsBrokenError: There is one.
    """
    there = {name.lower() for name in uow.catalog.tables(uow)}
    away = [r for r in recorded(uow) if r.kind == "table" and r.name.lower() not in there]
    if flaws := [flaw for table in away if (flaw := _out_of_sight(uow, table)) is not None]:
        raise broken(uow, flaws)


def _of_table(
    uow: Transaction, table: Standing, triggers: list[Standing], standing: dict[tuple[str, str, str], Standing]
) -> list[Flaw]:
    """What is wrong with one table: as a whole, or with the triggers on it."""
    legacy = {pair.legacy_name.lower() for pair in uow.statements.moves}
    side = Side.LEGACY if table.name.lower() in legacy else Side.NORMALIZED
    if (flaw := _missing(uow, table.name, side, standing)) is not None:
        return [_out_of_sight(uow, table) or flaw]
    now = standing[table.place]
    on_it = [standing.get(trigger.place) for trigger in triggers]
    if now.definition != table.definition and not any(on_it):
        text = f"table {table.name} was dropped and made again by another program"
        return [Flaw(text, _rebuild(uow, side), side, table.name)]
    flaws = [] if now.definition == table.definition else [Flaw(f"table {table.name} was replaced by another program")]
    for trigger, found in zip(triggers, on_it, strict=True):
        if (wrong := _wrong(trigger, found)) is not None:
            flaws.append(Flaw(f"trigger {trigger.name} on {table.name} {wrong}"))
    return flaws


def _missing(uow: Transaction, name: str, side: Side, standing: dict[tuple[str, str, str], Standing]) -> Flaw | None:
    found = _relation(standing, name)
    if found is not None and found.kind == "table":
        return None
    text = f"table {name} was dropped or renamed by another program"
    if found is None:
        return Flaw(text, _rebuild(uow, side), side, name)
    return Flaw(f"{text}, and a {found.kind} has its name: drop or rename that {found.kind}", "", side, name)


def _rebuild(uow: Transaction, side: Side) -> str:
    # At CONTRACT there is no other side to make it from.
    return f"consensus-orm reconcile --rebuild {side}" if uow.phase.has_legacy else RESTORE


def _wrong(trigger: Standing, found: Standing | None) -> str | None:
    if found is None:
        return "is missing"
    if found.definition != trigger.definition and not signs.same_definition(found.definition, trigger.definition):
        return "was changed"
    if not found.enabled:
        return "is disabled"
    if found.made == trigger.made:
        return None
    same = found.made.split()[0] == trigger.made.split()[0]  # on a server an oid comes first
    how = "replaced, or switched off and on again," if same else "dropped and made again"
    return f"was {how} by another program"


def _columns(uow: Transaction) -> Iterator[Flaw]:
    for side in Side if uow.phase.has_legacy else (Side.NORMALIZED,):
        rebuild = f"consensus-orm reconcile --rebuild {side}"
        for table, missing in lacking_columns(uow, side).items():
            text = f"column {', '.join(missing)} of table {table} was dropped or renamed by another program"
            if uow.phase.truth is side:  # no other side has its values
                yield Flaw(f"{text}: give it its name again", RESTORE, side, table)
            elif side is Side.LEGACY:
                yield Flaw(text, rebuild, side, table)
            else:
                yield Flaw(f"{text}: give it its name again; or drop the table, and run: {rebuild}", "", side, table)


def lacking_columns(uow: Transaction, side: Side) -> dict[str, list[str]]:
    """The tables of a side that exist and lack columns which the statements need, with these columns."""
    moves = uow.statements.moves
    needed = {table.name: {c.name for c in table.columns} for table in normalized_tables(moves)}
    if side is Side.LEGACY:
        needed = {}
        for pair in moves:
            needed.setdefault(pair.legacy_name, set()).update(pair.legacy_columns, pair.only[side])
    there = {name.lower() for name in uow.catalog.tables(uow)}
    found = {}
    for table in (table for table in needed if table.lower() in there):
        has = {name.lower() for name in uow.catalog.columns(uow, table, computed=True)}
        if missing := sorted(name for name in needed[table] if name.lower() not in has):
            found[table] = missing
    return found


def not_installed(uow: Transaction) -> list[str]:
    """Names of the triggers of the phase that do not exist, in a database without a record."""
    if state.get(uow, "mapping") == (None,):
        return []  # none was ever installed
    there = {s.name for s in uow.catalog.standing(uow) if s.kind == "trigger" and s.enabled}
    return [t.name for t in guard_record.triggers(uow.catalog, uow.phase, uow.statements) if t.name not in there]


# Refusals ---------------------------------------------------------------------------------------------------


def require(uow: Transaction) -> None:
    """Refuse a step where a guard of the phase is not in place; under the lock where a step follows.

    Raises:
        GuardsBrokenError: A guard is missing or was changed.
    """
    if flaws := look(uow):
        raise broken(uow, flaws)


_COMPARED = select(func.coalesce(func.max(PhaseChange.id), 0)).where(
    or_(PhaseChange.to_phase.is_not(None), PhaseChange.action == "reconcile")
)
_UNNOTICED = select(PhaseChange.id).where(
    PhaseChange.action.in_(("guards", "mend guards")), PhaseChange.id > _COMPARED.scalar_subquery()
)


def require_accounted(uow: Transaction) -> None:
    """Refuse to leave the truth of a phase whose guards were not in place, until both sides were compared since.

    Raises:
        GuardsBrokenError: Writes may have gone unnoticed meanwhile, and both sides were not compared since.
    """
    if uow._rows(_UNNOTICED) and certificates.newest_of(uow, uow.epoch) is None:
        raise broken(uow, [Flaw("for some time nobody noticed what was written", "consensus-orm verify")])


def broken(uow: Transaction, flaws: list[Flaw]) -> errors.GuardsBrokenError:
    """The error that names flaws, and the commands that repair them."""
    commands = dict.fromkeys(flaw.command for flaw in flaws if flaw.command)
    return errors.GuardsBrokenError(
        f"what guards {uow.phase.name} is not in place: " + "; ".join(flaw.text for flaw in flaws),
        hint="run: " + ", then: ".join(commands) if commands else "put it back as it was",
        reasons=[flaw.told for flaw in flaws],
        phase=uow.phase,
    )


def missing_table(uow: Transaction, error: Exception) -> errors.TableMissingError | None:
    """The error that names the missing table which made a statement fail; None where it failed for another reason.

    The code of the driver's error says that a table is missing, and its message which one: neither is translated.
    """
    moves = uow.statements.moves
    sides = {pair.legacy_name: Side.LEGACY for pair in moves}
    sides |= {table.name: Side.NORMALIZED for table in normalized_tables(moves)}
    told = uow._connected.what_is_missing(error)
    named = [name for name in (*sides, *Base.metadata.tables) if name in told]
    if not named:
        return None
    name = max(named, key=len)
    side = sides.get(name)
    helps = f"consensus-orm reconcile --rebuild {side}" if side and uow.phase.has_legacy else RESTORE
    helps = UPGRADE if name in {model.__tablename__ for model in REPLACEABLE} else helps
    return errors.TableMissingError(
        f"table {name} was dropped or renamed by another program",
        hint=f"nothing of this unit of work was kept; run: {helps}",
        table=name,
    )


# Repair -----------------------------------------------------------------------------------------------------


def notice(uow: Transaction) -> None:
    """Compare again after another program changed the schema, without ever failing the unit of work (rule 6).

    A flaw voids the certificate for good: the epoch grows. A trigger that would fail every write because its table is
    gone is dropped. Then the version of the schema is stored, so that each change of it is looked at once.

    Raises:
        TableMissingError: A view stands where a table of the source of truth was.
    """
    _require_tables_of_truth(uow)
    try:
        with uow._connected.attempt():
            if recorded(uow) or lost(uow):
                if flaws := look(uow):
                    _note(uow, flaws)
                elif uow.phase.has_legacy:
                    uow.catalog.legacy.remember(uow)
            state.put(uow, schema_version=uow.catalog.cookie(uow))
    except errors.ReadOnlyDatabaseError as error:  # the next step of an operator looks at them again
        log.warning("what guards the phase was looked at by a role that may not change it: %s", error)
    except errors.StorageError:
        log.exception("what guards the phase could not be looked at")


def _require_tables_of_truth(uow: Transaction) -> None:
    """Refuse to write where a view stands in place of a table that is read.

    SQLite (3.40) accepts an INSERT with RETURNING into a view, returns the row, and stores nothing.
    """
    standing = {s.place: s for s in uow.catalog.standing(uow)}
    for name in tables_of(uow.statements.moves, uow.phase.truth):
        if _relation(standing, name) and (flaw := _missing(uow, name, uow.phase.truth, standing)):
            raise errors.TableMissingError(flaw.text, hint="nothing of this unit of work was kept", table=name)


def _note(uow: Transaction, flaws: list[Flaw]) -> None:
    texts = [flaw.text for flaw in flaws]
    log.warning("what guards %s is not in place: %s", uow.phase.name, "; ".join(texts))
    audit.add(uow, "guards", found=texts)
    void(uow)
    uow.catalog.go_on_without(uow, [flaw.table for flaw in flaws if flaw.table and flaw.side])


def void(uow: Transaction) -> None:
    """Void every certificate, and make each step that is under way begin again."""
    state.turn_epoch(uow)
    uow._epoch += 1


def mend(uow: Transaction) -> list[Flaw]:
    """Install the triggers of the phase again where they are not in place, and void every certificate.

    Returns:
        What was mended.

    Raises:
        GuardsBrokenError: A table is gone or was replaced: an operator has to decide which rows count.
    """
    flaws = look(uow)
    if any(flaw.side or not flaw.command for flaw in flaws):
        raise broken(uow, flaws)
    if flaws:
        known = {r.name: r.definition for r in recorded(uow)}
        replaced = {
            s.name: s.definition
            for s in ours(uow)
            if s.name in known and not signs.same_definition(known[s.name], s.definition)
        }
        audit.add(uow, "mend guards", found=[flaw.text for flaw in flaws], replaced=replaced)
        guard_record.install(uow, uow.phase)
        if not uow.phase.has_legacy:
            signs.put_up(uow)
        void(uow)
    return flaws
