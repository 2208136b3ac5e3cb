"""What guards a phase: recorded when it is put in place, and looked at again before a step stands on it (rule 11).

The triggers of a phase notice, record or refuse the writes of other programs. Another program may drop them, or the
tables they stand on, at any moment, and whatever it writes then is noticed by nobody. So each installation of triggers
records what it left behind, and status, gates, verify and reconcile compare the record with the catalog.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import bindparam, delete, func, or_, select

from consensus_orm import errors
from consensus_orm.databases import guard_record, state
from consensus_orm.databases.base import SIGN, Standing, Transaction
from consensus_orm.databases.guard_record import keep, lost, normalized_tables, ours, recorded
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import certificates, mismatches
from consensus_orm.models.base import Base
from consensus_orm.models.control import REPLACEABLE, GuardRecord, PhaseChange
from consensus_orm.phase import Side
from consensus_orm.statements.rendering import literal, quoted

__all__ = [
    "REBUILD",
    "Flaw",
    "broken",
    "lacks_signs",
    "look",
    "mend",
    "missing_table",
    "not_installed",
    "notice",
    "put_up_signs",
    "require",
    "require_accounted",
    "strays",
    "take_down_signs",
    "void",
]

log = logging.getLogger("consensus_orm")

UPGRADE = "consensus-orm upgrade"
"""What makes again what holds no rows of users."""

RESTORE = "consensus-orm restore BACKUP"
"""What helps where a table held what stands nowhere else."""

REBUILD = "rebuild "
"""How the step is called in which a side is made again; the side follows."""


class Flaw(NamedTuple):
    """Something that guarded the phase and does so no more.

    Attributes:
        text: What it is.
        command: What puts it in place again; empty where no command does.
        side: The side whose table is not there, or is another one than before; None where the tables are the same.
        table: That table.
    """

    text: str
    command: str = "consensus-orm reconcile"
    side: Side | None = None
    table: str = ""

    @property
    def told(self) -> str:
        """What it is, and what helps."""
        return f"{self.text}; run: {self.command}" if self.command else self.text


# Signs -----------------------------------------------------------------------------------------------------


def sign(pair: Move) -> str:
    """A view that stands where a legacy table was, and says where its rows are.

    A program of the legacy side makes its tables again, IF NOT EXISTS, and then indexes on them: a view refuses the
    index, so the program stops before it writes a row that nobody reads.
    """
    where = pair.table.name if pair.parent is None else f"{pair.table.name} and {pair.parent.table.name}"
    told = f"consensus_orm: these rows are in {where}; read and write them through consensus_orm"
    return f"CREATE VIEW {quoted(pair.legacy_name)} AS SELECT {literal(told)} AS {SIGN}"


_FORGET_VIEWS = delete(GuardRecord).where(GuardRecord.kind == "view")
_FORGET_VIEW = _FORGET_VIEWS.where(GuardRecord.name == bindparam("view"))


def put_up_signs(uow: Transaction) -> None:
    """Let a view stand where each legacy table was, unless something else has its name."""
    signs = {r.place for r in recorded(uow) if r.kind == "view"}
    taken = {(s.name.lower(), s.kind) for s in uow.catalog.standing(uow) if s.kind in ("table", "view")}
    for pair in uow.statements.mapping:
        name = pair.legacy_name
        if not {(name.lower(), "table"), (name.lower(), "view")} & taken:
            uow._execute(sign(pair))
            uow._execute(_FORGET_VIEW, {"view": name})
            signs.add(("view", name.lower(), name.lower()))
        elif uow.catalog.columns(uow, name) == {SIGN}:  # ours, and the record of it was dropped
            signs.add(("view", name.lower(), name.lower()))
    new = [s for s in uow.catalog.standing(uow) if s.place in signs]
    uow._execute(_FORGET_VIEWS)
    keep(uow, new)


def lacks_signs(uow: Transaction) -> bool:
    """Whether nothing stands where a legacy table was, so that a program could make it again."""
    there = {s.name.lower() for s in uow.catalog.standing(uow) if s.kind in ("table", "view")}
    return _step(uow) != "rebuild" and any(p.legacy_name.lower() not in there for p in uow.statements.mapping)


def take_down_signs(uow: Transaction) -> None:
    """Drop the views that stand where legacy tables were."""
    standing = {s.place: s for s in uow.catalog.standing(uow)}
    for view in (r for r in recorded(uow) if r.kind == "view"):
        if (found := standing.get(view.place)) is not None and _plain(found.definition) == _plain(view.definition):
            uow._execute(f"DROP VIEW {quoted(found.name)}")
    uow._execute(_FORGET_VIEWS)


def strays(uow: Transaction) -> list[str]:
    """Legacy tables at CONTRACT: a program has made them again, and writes rows there that nobody reads."""
    if uow.phase.has_legacy or _step(uow) == "rebuild":
        return []
    there = {s.name.lower() for s in uow.catalog.standing(uow) if s.kind == "table"}
    return [pair.legacy_name for pair in uow.statements.mapping if pair.legacy_name.lower() in there]


def _signs(uow: Transaction, known: list[Standing], standing: dict[tuple[str, str, str], Standing]) -> Iterator[Flaw]:
    if uow.phase.has_legacy or _step(uow) == "rebuild":
        return
    there = strays(uow)
    for name in there:
        yield Flaw(f"table {name} was made by another program, and nobody reads its rows", table=name)
    for view in (r for r in known if r.kind == "view" and r.name not in there):
        if (found := standing.get(view.place)) is None:
            yield Flaw(f"the view {view.name}, which says where its rows are, was dropped", UPGRADE)
        elif _plain(found.definition) != _plain(view.definition):
            yield Flaw(f"{view.name} is a view of another program; drop or rename it", command="")


# Looking again ---------------------------------------------------------------------------------------------


def look(uow: Transaction) -> list[Flaw]:
    """Compare the record with the catalog.

    Args:
        uow: Sees both in one snapshot.

    Returns:
        What is missing or was changed; nothing where the phase is guarded, or where nothing ever guarded it.
    """
    known = recorded(uow)
    standing = {s.place: s for s in uow.catalog.standing(uow)}
    gone = [Flaw(f"table {table.name} was dropped or renamed by another program", UPGRADE) for table in lost(uow)]
    if gone and not known:
        return gone
    if not known:
        installed = state.get(uow, "mapping") not in (None, (None,))
        unknown = Flaw(f"what guards {uow.phase.name} was never recorded", UPGRADE)
        return [unknown] if installed and uow.phase.has_legacy else list(_signs(uow, known, standing))
    flaws = [*_under_way(uow), *gone, *_signs(uow, known, standing)]
    for table in (r for r in known if r.kind == "table"):
        triggers = [r for r in known if r.kind == "trigger" and r.table.lower() == table.name.lower()]
        flaws += _of_table(uow, table, triggers, standing)
    names = {r.name for r in known}
    left = [s for s in ours(uow) if s.enabled and s.name not in names] if uow.catalog.leaves_triggers else []
    flaws += [Flaw(f"trigger {s.name} on {s.table}, which is of another phase, was enabled") for s in left]
    # What makes a table again puts its triggers in place, too.
    tables = [flaw for flaw in flaws if flaw.side]
    others = [flaw._replace(command=tables[0].command) if tables else flaw for flaw in flaws if not flaw.side]
    return [*tables, *others, *(Flaw(text, command="") for text in uow.catalog.muted(uow))]


def _under_way(uow: Transaction) -> Iterator[Flaw]:
    step = _step(uow)
    if step.startswith(REBUILD):
        side = Side(step.removeprefix(REBUILD))
        yield Flaw(f"the {side} side is being made again", f"consensus-orm reconcile --rebuild {side}", side)


def _step(uow: Transaction) -> str:
    found = state.get(uow, "step")
    return str(found[0]) if found else ""


def not_installed(uow: Transaction) -> list[str]:
    """Names of the triggers of the phase that are not there: what can be said of a database without a record."""
    there = {s.name for s in uow.catalog.standing(uow) if s.kind == "trigger" and s.enabled}
    if state.get(uow, "mapping") == (None,):
        return []  # none was ever installed
    return [t.name for t in guard_record.triggers(uow.catalog, uow.phase, uow.statements) if t.name not in there]


def _of_table(
    uow: Transaction, table: Standing, triggers: list[Standing], standing: dict[tuple[str, str, str], Standing]
) -> list[Flaw]:
    """What is wrong with one table: as a whole, or with the triggers on it."""
    side = _side(uow, table.name)
    rebuild = f"consensus-orm reconcile --rebuild {side}"
    if not uow.phase.has_legacy:
        rebuild = RESTORE  # there is no other side to make it from
    now = standing.get(table.place)
    if now is None:
        return [Flaw(f"table {table.name} was dropped or renamed by another program", rebuild, side, table.name)]
    on_it = [standing.get(trigger.place) for trigger in triggers]
    if now.definition != table.definition and not any(on_it):
        return [Flaw(f"table {table.name} was dropped and made again by another program", rebuild, side, table.name)]
    flaws = [] if now.definition == table.definition else [Flaw(f"table {table.name} was replaced by another program")]
    for trigger, found in zip(triggers, on_it, strict=True):
        if (wrong := _wrong(trigger, found)) is not None:
            flaws.append(Flaw(f"trigger {trigger.name} on {table.name} {wrong}"))
    return flaws


def _wrong(trigger: Standing, found: Standing | None) -> str | None:
    if found is None:
        return "is missing"
    if _plain(found.definition) != _plain(trigger.definition):
        return "was changed"
    if not found.enabled:
        return "is disabled"
    if found.made == trigger.made:
        return None
    same = found.made.split()[0] == trigger.made.split()[0]  # on a server an oid comes first
    how = "replaced, or switched off and on again," if same else "dropped and made again"
    return f"was {how} by another program"


def _plain(definition: str) -> str:
    """A definition without quotes and spaces: SQLite puts quotes where a table is renamed, and back."""
    return "".join(definition.replace('"', "").split())


def _side(uow: Transaction, table: str) -> Side:
    legacy = {pair.legacy_name.lower() for pair in uow.statements.mapping}
    return Side.LEGACY if table.lower() in legacy else Side.NORMALIZED


def require(uow: Transaction) -> None:
    """Refuse to go on where something that guards the phase is not in place.

    Args:
        uow: Sees the catalog; under the lock where a step follows.

    Raises:
        GuardsBrokenError: Something is missing or was changed.
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

    Args:
        uow: Holds the lock of a flip.

    Raises:
        GuardsBrokenError: What was written meanwhile was noticed by nobody, and was not looked for either.
    """
    if uow._rows(_UNNOTICED) and certificates.newest_of(uow, uow._epoch) is None:
        raise broken(uow, [Flaw("for some time nobody noticed what was written", "consensus-orm verify")])


def broken(uow: Transaction, flaws: list[Flaw]) -> errors.GuardsBrokenError:
    """The error that names flaws, and the command that helps."""
    commands = dict.fromkeys(flaw.command for flaw in flaws if flaw.command)
    return errors.GuardsBrokenError(
        f"what guards {uow.phase.name} is not in place: " + "; ".join(flaw.text for flaw in flaws),
        hint="run: " + ", then: ".join(commands) if commands else "put it back as it was",
        reasons=[flaw.told for flaw in flaws],
        phase=uow.phase,
    )


def notice(uow: Transaction) -> None:
    """Look again after another program changed the schema; what is found never fails the work at hand (rule 6).

    A flaw makes the certificate void, for good: the epoch grows. What would fail every write because a table is gone
    is taken out of the way. Then the schema is known as it is, so that it is looked at once.

    Args:
        uow: A unit of work that writes, at its begin.
    """
    try:
        with uow._connected.attempt():
            if recorded(uow) or lost(uow):
                if flaws := look(uow):
                    _note(uow, flaws)
                elif uow.phase.has_legacy:
                    uow.catalog.legacy.remember(uow)
            state.put(uow, schema_version=uow.catalog.cookie(uow))
    except errors.StorageError:
        log.exception("what guards the phase could not be looked at")


def _note(uow: Transaction, flaws: list[Flaw]) -> None:
    texts = [flaw.text for flaw in flaws]
    log.warning("what guards %s is not in place: %s", uow.phase.name, "; ".join(texts))
    mismatches.audit(uow, "guards", found=texts)
    void(uow)
    uow.catalog.go_on_without(uow, [flaw.table for flaw in flaws if flaw.table and flaw.side])


def void(uow: Transaction) -> None:
    """Make every certificate void, and let each step that is under way begin again."""
    state.turn_epoch(uow)
    uow._epoch += 1


def mend(uow: Transaction) -> list[Flaw]:
    """Install the triggers of the phase again where they are not in place; the next verify has to look at everything.

    Args:
        uow: Holds the lock of a flip.

    Returns:
        What was mended.

    Raises:
        GuardsBrokenError: A table is not there, or is another one: somebody has to decide which rows count.
    """
    flaws = look(uow)
    if any(flaw.side for flaw in flaws) or any(not flaw.command for flaw in flaws):
        raise broken(uow, flaws)
    if flaws:
        replaced = {s.name: s.definition for s in ours(uow) if _is_changed(s, recorded(uow))}
        mismatches.audit(uow, "mend guards", found=[flaw.text for flaw in flaws], replaced=replaced)
        guard_record.install(uow, uow.phase)
        if not uow.phase.has_legacy:
            put_up_signs(uow)
        void(uow)
    return flaws


def _is_changed(trigger: Standing, known: list[Standing]) -> bool:
    return any(r.name == trigger.name and _plain(r.definition) != _plain(trigger.definition) for r in known)


# Tables that are gone --------------------------------------------------------------------------------------


def missing_table(uow: Transaction, error: Exception) -> errors.TableMissingError | None:
    """The error that names the table of ours whose absence made a statement fail; None where it failed otherwise.

    That a table was missing is told by the code of the error, which table by its name: neither is translated.

    Args:
        uow: Has run the statement.
        error: What the driver raised.
    """
    mapping = uow.statements.mapping
    sides = {pair.legacy_name: Side.LEGACY for pair in mapping}
    sides |= {table.name: Side.NORMALIZED for table in normalized_tables(mapping)}
    told = uow._connected.what_is_missing(error)
    named = [name for name in (*sides, *Base.metadata.tables) if name in told]
    replaceable = {model.__tablename__ for model in REPLACEABLE}
    for name in sorted(named, key=len, reverse=True):
        side = sides.get(name)
        helps = f"consensus-orm reconcile --rebuild {side}" if side and uow.phase.has_legacy else RESTORE
        helps = UPGRADE if name in replaceable else helps
        return errors.TableMissingError(
            f"table {name} was dropped or renamed by another program",
            hint=f"nothing of this unit of work was kept; run: {helps}",
            table=name,
        )
    return None
