"""The contraction, the step to CONTRACT: the legacy tables are put away, emptied in chunks, and at the end dropped.

The flip saves their definitions and renames them out of the way, which takes milliseconds. The next call continues an
emptying that was interrupted. `way_back` makes the tables again exactly, until what that takes is removed for good.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from consensus_orm import errors
from consensus_orm.databases import saved_schema, state
from consensus_orm.databases.saved_rows import DROPPED, IMAGE
from consensus_orm.databases.saved_schema import Entry
from consensus_orm.declaration.move import Move
from consensus_orm.formats import count
from consensus_orm.ledgers import audit, changes, guards, rejects, signs
from consensus_orm.migration import keyless
from consensus_orm.migration.flip import flip
from consensus_orm.migration.gates import Obstacle
from consensus_orm.migration.pace import in_chunks
from consensus_orm.migration.transactions import Transactions
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Tally, Watch
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["begin_removal", "contract", "empty_dropped", "finish_removal"]


def contract(uow: UnitOfWork, *, reason: str | None, forced: bool, keep: bool = False, **detail: object) -> None:
    """Put the legacy tables away and flip to CONTRACT; the gate of NORMALIZED is open, under the same lock.

    Args:
        uow: Holds the lock.
        reason: Why, for the audit.
        forced: Whether waiting was skipped.
        keep: Leave their rows in the tables.
        **detail: Facts for the audit.
    """
    _save_schema(uow)
    flip(uow, Phase.CONTRACT, action="advance", reason=reason, forced=forced, **detail)
    for pair in uow.statements.moves.of_tables(Side.LEGACY):
        uow.catalog.legacy.put_away(uow, pair)
    signs.put_up(uow)
    # What was recorded for the way back has no legacy side to go to any more.
    changes.forget_all(uow)
    if not keep:
        state.put_step(uow, state.EMPTYING)


def _save_schema(uow: UnitOfWork) -> None:
    """Save the definitions and sequences of the legacy tables, and the rows that the normalized side does not have."""
    saved_schema.forget(uow)
    position = 0
    moves = uow.statements.moves
    for pair in moves.of_tables(Side.LEGACY):
        table = pair.legacy_table.name
        saved: list[tuple[str, str, str, int | None]] = uow.catalog.legacy.save(uow, pair)
        saved += [
            (IMAGE, table, row, None) for of in moves.sharing(pair, Side.LEGACY) for row in _of_legacy_alone(uow, of)
        ]
        for kind, name, sql, sequence in saved:
            position += 1
            saved_schema.add(uow, Entry(position, kind, name, table, sql, sequence))


def _of_legacy_alone(uow: UnitOfWork, pair: Move) -> Iterator[str]:
    """The rows that only the legacy side has, whole: those that could not be carried, or have no usable key."""
    names, sql = uow.statements[pair].image(Side.LEGACY)
    alone = sorted(rejects.on_one_side(uow, pair, Side.LEGACY), key=str)
    found = [rejects.as_image(names, uow._execute(sql, {"_key": key}).fetchone()) for key in alone]
    for image in (*found, *keyless.images(uow, pair, Side.LEGACY)):
        yield json.dumps({name: image[name] for name in (*pair.legacy_columns, *pair.only[Side.LEGACY])})


def empty_dropped(writing: Transactions, progress: Watch = None) -> None:
    """Empty the tables that were put away in chunks, then drop them; does nothing where there are none."""
    while (name := writing.run(_next_away)) is not None:
        tally = Tally(progress, f"emptying {name.removeprefix(DROPPED)}")

        def chunk(uow: UnitOfWork, size: int, name: str = name, tally: Tally = tally) -> tuple[None, int] | None:
            if name not in uow.catalog.legacy.away(uow):
                return None
            tally.expect(lambda: uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0][0])
            return None, uow.catalog.legacy.empty(uow, name, size)

        for _ in in_chunks(writing, tally, chunk):
            pass


def _next_away(uow: UnitOfWork) -> str | None:
    """A table that was put away; where there is none left, the step is over."""
    names = uow.catalog.legacy.away(uow)
    if not names and state.step(uow) == state.EMPTYING:
        state.put_step(uow, None)
    return names[0] if names else None


# For good ---------------------------------------------------------------------------------------------------


def begin_removal(uow: UnitOfWork) -> None:
    """Begin to empty tables whose rows were kept, where what was put away may be removed.

    Raises:
        WrongPhaseError: The phase is not CONTRACT.
        MigrationError: Nothing is put away.
        GateClosedError: Something else stands on it, or a row has no other place.
    """
    if uow.phase.has_legacy:
        raise errors.WrongPhaseError(
            f"in {uow.phase.name} the legacy tables are in use",
            hint="run: consensus-orm advance contract",
            phase=uow.phase,
        )
    if not saved_schema.has_tables(uow) and not uow.catalog.legacy.kept(uow):
        raise errors.MigrationError(
            "nothing is put away: it was removed, or there never were legacy tables", hint="there is nothing to do"
        )
    if shut := [obstacle.text for obstacle in _in_the_way(uow)]:
        raise errors.GateClosedError(
            "what was put away at CONTRACT cannot be removed yet", hint="; ".join(shut), reasons=shut, phase=uow.phase
        )
    if uow.catalog.legacy.away(uow):
        state.put_step(uow, state.EMPTYING)


def _in_the_way(uow: UnitOfWork) -> Iterator[Obstacle]:
    if (step := state.step(uow)) and step != state.EMPTYING:
        yield Obstacle("the way back from CONTRACT has begun", "consensus-orm rollback normalized")
    for name in signs.strays(uow):
        yield Obstacle(f"another program has made {name} again", "consensus-orm reconcile")
    if open_rejects := rejects.count_open(uow):
        yield Obstacle(count(open_rejects, "reject is open", "rejects are open"), "consensus-orm rejects")
    for flaw in guards.look(uow):
        yield Obstacle(flaw.text, flaw.command)
    for name in uow.catalog.legacy.kept(uow):
        for what in uow.catalog.legacy.dependents(uow, name):
            yield Obstacle(f"{what} uses {name}; drop or change it first")


def finish_removal(uow: UnitOfWork, *, reason: str) -> list[str]:
    """Drop the tables that were put away, and forget how to make them again: there is no way back from here.

    Returns:
        The tables, by the names that they had.
    """
    begin_removal(uow)
    removed = [entry.name for entry in saved_schema.entries(uow) if entry.type == "table"]
    for name in uow.catalog.legacy.kept(uow):
        uow.catalog.legacy.drop(uow, name)
    saved_schema.forget(uow)
    state.put_step(uow, None)
    audit.add(uow, "finish contract", reason=reason, removed=removed)
    return removed
