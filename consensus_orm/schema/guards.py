"""What guards a phase: recorded when it is put in place, and looked at again before a step stands on it (rule 11).

The triggers of a phase notice, record or refuse the writes of other programs. Another program may drop them, or the
tables they stand on, at any moment, and whatever it writes then is noticed by nobody. So each installation of triggers
records what it left behind, and status, gates, verify and reconcile compare the record with the catalog.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Table

from consensus_orm import errors
from consensus_orm.consensus.programs import EXECUTIONS
from consensus_orm.databases.sqlite.triggers import PREFIX, Trigger
from consensus_orm.declaration.pairs import Mapping, Pair, table_of
from consensus_orm.models import control
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.rendering import literal, quoted

if TYPE_CHECKING:
    from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = [
    "GUARDS",
    "REBUILD",
    "Flaw",
    "Standing",
    "lacks_signs",
    "look",
    "mend",
    "notice",
    "ours",
    "put_up_signs",
    "record",
    "recorded",
    "require",
    "strays",
    "take_down_signs",
]

log = logging.getLogger("consensus_orm")

GUARDS = "consensus_orm_guards"
"""The table that holds the record."""

REBUILD = "rebuild "
"""How the step is called in which a side is made again; the side follows."""


class Standing(NamedTuple):
    """Something that guards a phase, as it stands in the catalog or as it was recorded.

    Attributes:
        kind: trigger, table or view.
        name: Its name.
        table: The table it belongs to.
        definition: The text of a trigger or a view; of a table, what tells it from another one made under its name.
        enabled: Whether a trigger fires.
    """

    kind: str
    name: str
    table: str
    definition: str
    enabled: bool = True

    @property
    def place(self) -> tuple[str, str, str]:
        """What it is found by: on a server tables may have triggers of the same name."""
        return self.kind, self.name.lower(), self.table.lower()


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
    signs = [r for r in recorded(uow) if r.kind == "view" and not phase.has_legacy]
    uow.catalog.forget_guards(uow)
    wanted = {("trigger", trigger.name.lower(), trigger.table.lower()) for trigger in triggers}
    wanted |= {("table", name.lower(), name.lower()) for name in _guarded_tables(uow, phase)}
    _keep(uow, [*signs, *(found for found in uow.catalog.standing(uow) if found.place in wanted)])


def _keep(uow: UnitOfWork, guards: Iterable[Standing]) -> None:
    for guard in guards:
        uow._execute(f"INSERT INTO {GUARDS} (kind, name, table_name, definition) VALUES (?, ?, ?, ?)", guard[:4])
    uow._execute("UPDATE consensus_orm_state SET schema_version = ?", (uow.catalog.cookie(uow),))


def _guarded_tables(uow: UnitOfWork, phase: Phase) -> Iterator[str]:
    mapping = uow.statements.mapping
    yield from (table.name for table in normalized_tables(mapping))
    if phase.has_legacy:
        yield from (pair.legacy_name for pair in mapping.pairs)


# Signs -----------------------------------------------------------------------------------------------------


def sign(pair: Pair) -> str:
    """A view that stands where a legacy table was, and says where its rows are.

    A program of the legacy side makes its tables again, IF NOT EXISTS, and then indexes on them: a view refuses the
    index, so the program stops before it writes a row that nobody reads.
    """
    where = pair.table.name if pair.parent is None else f"{pair.table.name} and {pair.parent.table.name}"
    told = f"consensus_orm: these rows are in {where}; read and write them through consensus_orm"
    return f"CREATE VIEW {quoted(pair.legacy_name)} AS SELECT {literal(told)} AS moved"


def put_up_signs(uow: UnitOfWork) -> None:
    """Let a view stand where each legacy table was, unless something else has its name."""
    signs = {r.place for r in recorded(uow) if r.kind == "view"}
    taken = {(s.name.lower(), s.kind) for s in uow.catalog.standing(uow) if s.kind in ("table", "view")}
    for pair in uow.statements.mapping.pairs:
        name = pair.legacy_name
        if not {(name.lower(), "table"), (name.lower(), "view")} & taken:
            uow._execute(sign(pair))
            uow._execute(f"DELETE FROM {GUARDS} WHERE kind = 'view' AND name = ?", (name,))
            signs.add(("view", name.lower(), name.lower()))
    new = [s for s in uow.catalog.standing(uow) if s.place in signs]
    uow._execute(f"DELETE FROM {GUARDS} WHERE kind = 'view'")
    _keep(uow, new)


def lacks_signs(uow: UnitOfWork) -> bool:
    """Whether nothing stands where a legacy table was, so that a program could make it again."""
    there = {s.name.lower() for s in uow.catalog.standing(uow) if s.kind in ("table", "view")}
    return _step(uow) != "rebuild" and any(p.legacy_name.lower() not in there for p in uow.statements.mapping.pairs)


def take_down_signs(uow: UnitOfWork) -> None:
    """Drop the views that stand where legacy tables were."""
    standing = {s.place: s for s in uow.catalog.standing(uow)}
    for view in (r for r in recorded(uow) if r.kind == "view"):
        if (found := standing.get(view.place)) is not None and _plain(found.definition) == _plain(view.definition):
            uow._execute(f"DROP VIEW {quoted(found.name)}")
    uow._execute(f"DELETE FROM {GUARDS} WHERE kind = 'view'")


def strays(uow: UnitOfWork) -> list[str]:
    """Legacy tables at CONTRACT: a program has made them again, and writes rows there that nobody reads."""
    if uow.phase.has_legacy or _step(uow) == "rebuild":
        return []
    there = {s.name.lower() for s in uow.catalog.standing(uow) if s.kind == "table"}
    return [pair.legacy_name for pair in uow.statements.mapping.pairs if pair.legacy_name.lower() in there]


def _signs(uow: UnitOfWork, known: list[Standing], standing: dict[tuple[str, str, str], Standing]) -> Iterator[Flaw]:
    if uow.phase.has_legacy or _step(uow) == "rebuild":
        return
    there = strays(uow)
    for name in there:
        yield Flaw(f"table {name} was made by another program, and nobody reads its rows", table=name)
    for view in (r for r in known if r.kind == "view" and r.name not in there):
        if (found := standing.get(view.place)) is None:
            yield Flaw(f"the view {view.name}, which says where its rows are, was dropped", "consensus-orm upgrade")
        elif _plain(found.definition) != _plain(view.definition):
            yield Flaw(f"{view.name} is a view of another program; drop or rename it", command="")


# Whose a trigger is ----------------------------------------------------------------------------------------


def ours(uow: UnitOfWork) -> list[Standing]:
    """Those of the standing triggers that this package installed.

    They are told by the record of their names, never by how a name begins: another program may call its triggers as it
    likes. Where the record does not have them (it is younger than the triggers, or they were left behind, disabled, by
    another phase), they are those that the declaration would install in any phase.
    """
    standing = [s for s in uow.catalog.standing(uow) if s.kind == "trigger" and s.name.startswith(PREFIX)]
    known = {r.name for r in recorded(uow) if r.kind == "trigger"}
    if (not known or uow.catalog.leaves_triggers) and any(s.name not in known for s in standing):
        known |= set(_expected(uow))
    return [s for s in standing if s.name in known]


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


def _expected(uow: UnitOfWork) -> Iterator[str]:
    if uow._rows("SELECT 1 FROM consensus_orm_state WHERE mapping IS NULL"):
        return  # none was ever installed
    for phase in Phase:
        yield from (trigger.name for trigger in uow.catalog.triggers(phase, uow.statements))


# Looking again ---------------------------------------------------------------------------------------------


def look(uow: UnitOfWork) -> list[Flaw]:
    """Compare the record with the catalog.

    Args:
        uow: Sees both in one snapshot.

    Returns:
        What is missing or was changed; nothing where the phase is guarded, or where nothing ever guarded it.
    """
    known = recorded(uow)
    standing = {s.place: s for s in uow.catalog.standing(uow)}
    if not known:
        installed = uow._rows("SELECT 1 FROM consensus_orm_state WHERE mapping IS NOT NULL")
        unknown = Flaw(f"what guards {uow.phase.name} was never recorded", "consensus-orm upgrade")
        return [unknown] if installed and uow.phase.has_legacy else list(_signs(uow, known, standing))
    flaws = [*_under_way(uow), *_signs(uow, known, standing)]
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


def _under_way(uow: UnitOfWork) -> Iterator[Flaw]:
    step = _step(uow)
    if step.startswith(REBUILD):
        side = Side(step.removeprefix(REBUILD))
        yield Flaw(f"the {side} side is being made again", f"consensus-orm reconcile --rebuild {side}", side)


def _step(uow: UnitOfWork) -> str:
    rows = uow._rows("SELECT step FROM consensus_orm_state")
    return str(rows[0][0]) if rows else ""


def not_installed(uow: UnitOfWork) -> list[str]:
    """Names of the triggers of the phase that are not there: what can be said of a database without a record."""
    there = {s.name for s in uow.catalog.standing(uow) if s.kind == "trigger" and s.enabled}
    if uow._rows("SELECT 1 FROM consensus_orm_state WHERE mapping IS NULL"):
        return []  # none was ever installed
    return [t.name for t in uow.catalog.triggers(uow.phase, uow.statements) if t.name not in there]


def _of_table(
    uow: UnitOfWork, table: Standing, triggers: list[Standing], standing: dict[tuple[str, str, str], Standing]
) -> list[Flaw]:
    """What is wrong with one table: as a whole, or with the triggers on it."""
    side = _side(uow, table.name)
    rebuild = f"consensus-orm reconcile --rebuild {side}"
    if not uow.phase.has_legacy:
        rebuild = "consensus-orm restore BACKUP"  # there is no other side to make it from
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
    return None if found.enabled else "is disabled"


def _plain(definition: str) -> str:
    """A definition without quotes and spaces: SQLite puts quotes where a table is renamed, and back."""
    return "".join(definition.replace('"', "").split())


def _side(uow: UnitOfWork, table: str) -> Side:
    legacy = {pair.legacy_name.lower() for pair in uow.statements.mapping.pairs}
    return Side.LEGACY if table.lower() in legacy else Side.NORMALIZED


def require(uow: UnitOfWork) -> None:
    """Refuse to go on where something that guards the phase is not in place.

    Args:
        uow: Sees the catalog; under the lock where a step follows.

    Raises:
        GuardsBrokenError: Something is missing or was changed.
    """
    if flaws := look(uow):
        raise broken(uow, flaws)


def broken(uow: UnitOfWork, flaws: list[Flaw]) -> errors.GuardsBrokenError:
    """The error that names flaws, and the command that helps."""
    commands = dict.fromkeys(flaw.command for flaw in flaws if flaw.command)
    return errors.GuardsBrokenError(
        f"what guards {uow.phase.name} is not in place: " + "; ".join(flaw.text for flaw in flaws),
        hint="run: " + ", then: ".join(commands) if commands else "put it back as it was",
        reasons=[flaw.told for flaw in flaws],
        phase=uow.phase,
    )


def notice(uow: UnitOfWork) -> None:
    """Look again after another program changed the schema; what is found never fails the work at hand (rule 6).

    A flaw makes the certificate void, for good: the epoch grows. What would fail every write because a table is gone
    is taken out of the way. Then the schema is known as it is, so that it is looked at once.

    Args:
        uow: A unit of work that writes, at its begin.
    """
    try:
        with uow._connected.attempt():
            if recorded(uow):
                if flaws := look(uow):
                    _note(uow, flaws)
                elif uow.phase.has_legacy:
                    uow.catalog.legacy.remember(uow)
            uow._execute("UPDATE consensus_orm_state SET schema_version = ?", (uow.catalog.cookie(uow),))
    except errors.StorageError:
        log.exception("what guards the phase could not be looked at")


def _note(uow: UnitOfWork, flaws: list[Flaw]) -> None:
    from consensus_orm.ledgers import mismatches  # it stands above the unit of work

    texts = [flaw.text for flaw in flaws]
    log.warning("what guards %s is not in place: %s", uow.phase.name, "; ".join(texts))
    mismatches.audit(uow, "guards", found=texts)
    void(uow)
    uow.catalog.go_on_without(uow, [flaw.table for flaw in flaws if flaw.table and flaw.side])


def void(uow: UnitOfWork) -> None:
    """Make every certificate void, and let each step that is under way begin again."""
    uow._execute("UPDATE consensus_orm_state SET epoch = epoch + 1")
    uow._epoch += 1


def mend(uow: UnitOfWork) -> list[Flaw]:
    """Install the triggers of the phase again where they are not in place; the next verify has to look at everything.

    Args:
        uow: Holds the lock of a flip.

    Returns:
        What was mended.

    Raises:
        GuardsBrokenError: A table is not there, or is another one: somebody has to decide which rows count.
    """
    from consensus_orm.ledgers import mismatches  # it stands above the unit of work

    flaws = look(uow)
    if any(flaw.side for flaw in flaws) or any(not flaw.command for flaw in flaws):
        raise broken(uow, flaws)
    if flaws:
        replaced = {s.name: s.definition for s in ours(uow) if _is_changed(s, recorded(uow))}
        mismatches.audit(uow, "mend guards", found=[flaw.text for flaw in flaws], replaced=replaced)
        uow.catalog.install_triggers(uow, uow.phase)
        if not uow.phase.has_legacy:
            put_up_signs(uow)
        void(uow)
    return flaws


def _is_changed(trigger: Standing, known: list[Standing]) -> bool:
    return any(r.name == trigger.name and _plain(r.definition) != _plain(trigger.definition) for r in known)


# Tables that are gone --------------------------------------------------------------------------------------


def missing_table(uow: UnitOfWork, error: Exception) -> errors.TableMissingError | None:
    """The error that names the table of ours whose absence made a statement fail; None where it failed otherwise.

    That a table was missing is told by the code of the error, which table by its name: neither is translated.

    Args:
        uow: Has run the statement.
        error: What the driver raised.
    """
    mapping = uow.statements.mapping
    sides = {pair.legacy_name: Side.LEGACY for pair in mapping.pairs}
    sides |= {table.name: Side.NORMALIZED for table in normalized_tables(mapping)}
    told = uow._connected.what_is_missing(error)
    named = [name for name in (*sides, *_CONTROL, EXECUTIONS) if name in told]
    for name in sorted(named, key=len, reverse=True):
        side = sides.get(name)
        helps = f"consensus-orm reconcile --rebuild {side}" if side else "consensus-orm restore BACKUP"
        return errors.TableMissingError(
            f"table {name} was dropped or renamed by another program",
            hint=f"nothing of this unit of work was kept; run: {helps}",
            table=name,
        )
    return None


def normalized_tables(mapping: Mapping) -> list[Table]:
    """The normalized tables, parents first."""
    return [*(parent.table for parent in mapping.parents), *(pair.table for pair in mapping.pairs)]


_CONTROL = tuple(table_of(getattr(control, model)).name for model in control.__all__)
