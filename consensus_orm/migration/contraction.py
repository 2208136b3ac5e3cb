"""The last step and its way back: the legacy tables are dropped, and can be made again exactly.

Down: the flip renames the tables out of the way, which takes milliseconds; they are emptied in chunks after
it. Up: the tables are made from their saved DDL, filled in chunks while the phase is still CONTRACT and
writers go on, and what changed meanwhile follows under the fence. Every step can be interrupted: the next
call finishes or undoes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from consensus_orm import errors
from consensus_orm.databases import guard_record, saved_schema, state
from consensus_orm.databases.saved_rows import DROPPED, IMAGE, saved_rows, unsafe
from consensus_orm.databases.saved_schema import Entry
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.ledgers import changes, guards, mismatches
from consensus_orm.migration import gates, keyless
from consensus_orm.migration.backfill import set_aside
from consensus_orm.migration.carrying import Drained, adopt_range, drain, reject_unequal
from consensus_orm.migration.flip import flip
from consensus_orm.migration.pace import Pace, catch_up
from consensus_orm.migration.transactions import Transactions
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Tally, Watch
from consensus_orm.statements.pairs import PairStatements
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["contract", "empty_dropped", "expand_again", "undo_rebuild"]


def contract(uow: UnitOfWork, *, reason: str | None, forced: bool, **detail: Any) -> None:
    """Take the legacy tables out of the way and flip to CONTRACT.

    Args:
        uow: Holds the write lock, in phase NORMALIZED with its gate open.
        reason: Why, for the audit.
        forced: Whether waiting was skipped.
        **detail: Facts for the audit.
    """
    save_schema(uow)
    flip(uow, Phase.CONTRACT, action="advance", reason=reason, forced=forced, **detail)
    for pair in uow.statements.mapping:
        uow.catalog.legacy.put_away(uow, pair)
    guards.put_up_signs(uow)
    # What was recorded for the legacy side has nowhere to go any more.
    changes.forget_all(uow)
    state.put(uow, step="empty")


def save_schema(uow: UnitOfWork) -> None:
    """Keep the definitions and sequences of the legacy tables as they are, and the rows that stand nowhere else."""
    saved_schema.forget(uow)
    position = 0
    for pair in uow.statements.mapping:
        legacy, table = uow.catalog.legacy, pair.legacy_table.name
        saved: list[tuple[str, str, str, int | None]] = legacy.save(uow, pair)
        saved += [(IMAGE, table, row, None) for row in _of_legacy_alone(uow, pair)]
        for kind, name, sql, sequence in saved:
            position += 1
            saved_schema.add(uow, Entry(position, kind, name, table, sql, sequence))


def _of_legacy_alone(uow: UnitOfWork, pair: Move) -> Iterator[str]:
    """The rows that only the legacy side has, whole: those that could not be carried, or named at all."""
    names, sql = uow.statements[pair].image(Side.LEGACY)
    found = [
        mismatches.as_image(names, uow._execute(sql, {"_key": key}).fetchone())
        for key in sorted(set_aside(uow, pair, Side.LEGACY))
    ]
    for image in (*found, *keyless.images(uow, pair, Side.LEGACY)):
        yield json.dumps({name: image[name] for name in pair.legacy_columns})


def empty_dropped(unit_of_work: Transactions, progress: Watch = None) -> None:
    """Empty the tables on their way out in chunks, then drop them; does nothing where there are none.

    Args:
        unit_of_work: Opens a writing unit of work.
        progress: Called after each chunk.
    """
    tallies: dict[str, Tally] = {}
    pace = Pace()

    def chunk(uow: UnitOfWork) -> tuple[Tally, int] | None:
        names = uow.catalog.legacy.away(uow)
        if not names:
            if _step(uow) == "empty":
                state.put(uow, step=None)
            return None
        pace.begin(uow)
        tally = tallies.setdefault(names[0], Tally(progress, f"emptying {names[0].removeprefix(DROPPED)}"))
        tally.expect(lambda: uow._rows(f"SELECT count(*) FROM {quoted(names[0])}")[0][0])
        return tally, uow.catalog.legacy.empty(uow, names[0], pace.size)

    while (emptied := unit_of_work.run(chunk)) is not None:
        pace.end()
        tally, deleted = emptied
        tally.add(deleted)
        pace.rest()


# The way back ---------------------------------------------------------------------------------------------


def expand_again(
    unit_of_work: Transactions, flipping: Transactions, *, reason: str | None, progress: Watch = None
) -> None:
    """Make the legacy tables again from the normalized ones and flip back to NORMALIZED.

    Args:
        unit_of_work: Opens a unit of work that carries.
        flipping: Opens one that changes the phase.
        reason: Why, for the audit.
        progress: Called after each chunk.

    Raises:
        MigrationError: There never were legacy tables in this database, or something took their names.
        PhaseChangedError: Somebody else finished the rebuild, or undid it.
    """
    for pair in flipping.run(_begin_rebuild):
        _fill(unit_of_work, pair, progress)
    catch_up(unit_of_work, _drain_rebuilt, progress)
    flipping.run(lambda uow: _finish_rebuild(uow, reason))


def _expect_rebuild(uow: UnitOfWork) -> None:
    """Go on only while the rebuild is under way: another process may take the same step, or undo it."""
    if uow.phase.has_legacy or _step(uow) != "rebuild":
        raise errors.PhaseChangedError(
            f"somebody else has ended the rebuild of the legacy tables; the phase is {uow.phase.name}",
            expected=Phase.CONTRACT,
            phase=uow.phase,
        )


def _drain_rebuilt(uow: UnitOfWork, limit: int) -> Drained:
    _expect_rebuild(uow)
    return drain(uow, limit=limit)


def _begin_rebuild(uow: UnitOfWork) -> Moves:
    uow.catalog.keep_out(uow)
    if uow.phase.has_legacy:
        _expect_rebuild(uow)
    if _step(uow) == "rebuild":
        return uow.statements.mapping  # an earlier call was interrupted; its tables are filled further
    if not saved_schema.has_tables(uow):
        raise errors.MigrationError(
            "this database never had legacy tables, so there is nothing to go back to",
            hint="stay at CONTRACT",
        )
    guards.take_down_signs(uow)
    saved_rows(uow)  # what cannot be put back at the end shows now, while nothing is carried
    uow.catalog.legacy.bring_back(uow)
    _try_out(uow)
    guard_record.install(uow, Phase.NORMALIZED)
    changes.forget_all(uow)
    state.put(uow, step="rebuild")
    return uow.statements.mapping


def _try_out(uow: UnitOfWork) -> None:
    """See that the tables take rows, and that all that must wait for them can be made; nothing of it stays.

    What was saved may say something else than before CONTRACT: that must show while nothing is carried.

    Raises:
        UnsafeDefinitionError: A table lacks a column, or cannot take a row.
    """
    uow._execute("SAVEPOINT tried_out")
    for pair in uow.statements.mapping:
        there = {name.lower() for name in uow.catalog.columns(uow, pair.legacy_name)}
        needed = set(pair.legacy_columns)
        needed |= {name for row in saved_rows(uow) if row.table == pair.legacy_name for name in row.cells}
        if any(name.lower() not in there for name in needed):
            raise unsafe("table", pair.legacy_name)
        try:
            _carry_first(uow, pair)
        except errors.StorageError as error:
            if type(error) is errors.StorageError and not isinstance(error.__cause__, _refusals(uow)):
                raise unsafe("table", pair.legacy_name) from error
            raise  # the database as a whole, or a constraint that a row does not meet
    uow._execute("ROLLBACK TO SAVEPOINT tried_out")
    uow._execute("RELEASE SAVEPOINT tried_out")


def _carry_first(uow: UnitOfWork, pair: Move) -> None:
    sql = uow.statements[pair]
    first, last, count = uow._rows(sql.next_chunk(Side.NORMALIZED)[0], {"_rows": 1})[0]
    if count:
        adopt_range(uow, pair, first, last)
        uow._execute(sql.rebuild_legacy, {"_first": first, "_last": last})


def _refusals(uow: UnitOfWork) -> type[Exception]:
    """What the driver raises where a row does not meet a constraint."""
    refusals: type[Exception] = uow.engine.dialect.loaded_dbapi.IntegrityError
    return refusals


def _step(uow: UnitOfWork) -> str | None:
    found = state.get(uow, "step")
    return None if found is None else found[0]


def _fill(unit_of_work: Transactions, pair: Move, progress: Watch) -> None:
    """Carry the rows of a pair in chunks; goes on behind the highest key that is there already."""
    tally, pace = Tally(progress, pair.name), Pace()

    def chunk(uow: UnitOfWork) -> int:
        _expect_rebuild(uow)
        pace.begin(uow)
        sql = uow.statements[pair]
        after = uow._rows(sql.last_key(Side.LEGACY))[0][0]
        bounds = sql.next_chunk(Side.NORMALIZED)[0 if after is None else 1]
        first, last, count = uow._rows(bounds, {"_after": after, "_rows": pace.size})[0]
        if count:
            tally.expect(lambda: _to_fill(uow, sql))
            adopt_range(uow, pair, first, last)
            with uow.catalog.legacy_unfrozen(uow):
                uow._execute(sql.rebuild_legacy, {"_first": first, "_last": last})
            _reject_unequal(uow, pair, first, last)
        return int(count)

    while count := unit_of_work.run(chunk):
        pace.end()
        tally.add(count)
        pace.rest()


def _reject_unequal(uow: UnitOfWork, pair: Move, first: Any, last: Any) -> None:
    """Reject rows of a range that the table, as it was saved, does not hold equal; what is derived may differ."""
    found: set[Any] = set()
    for side in Side:
        compared = uow.statements[pair].compare_range(side, but_recorded=True)
        ((_, wrong),) = uow._rows(compared, {"_first": first, "_last": last})
        found.update(json.loads(wrong or "[]"))
    unequal = [key for key in found if mismatches.differences(uow, pair, key)]
    reject_unequal(uow, pair, unequal, Side.NORMALIZED)


def _to_fill(uow: UnitOfWork, sql: PairStatements) -> int:
    """Rows that an interrupted call has not carried yet."""
    normalized, legacy = (int(uow._rows(sql.count(side, ()))[0][0]) for side in (Side.NORMALIZED, Side.LEGACY))
    return max(normalized - legacy, 0)


def _finish_rebuild(uow: UnitOfWork, reason: str | None) -> None:
    uow.catalog.keep_out(uow)
    _expect_rebuild(uow)
    while drain(uow).looked_at:
        pass
    gates.require_carried_back(uow, Phase.NORMALIZED)
    saved = saved_schema.entries(uow)
    with uow.catalog.legacy_unfrozen(uow):
        for row in saved_rows(uow):
            uow.catalog.legacy.put_back(uow, row)
    for each in saved:
        uow.catalog.legacy.complete(uow, each.type, each.name, each.table, each.sql, each.sequence)
    saved_schema.forget(uow)
    flip(uow, Phase.NORMALIZED, action="rollback", reason=reason)


def undo_rebuild(uow: UnitOfWork) -> bool:
    """Drop the half-made legacy tables of an interrupted rollback; the phase stays CONTRACT.

    Returns:
        Whether there were any.
    """
    if _step(uow) != "rebuild":
        return False
    guard_record.install(uow, Phase.CONTRACT)
    for pair in uow.statements.mapping:
        uow.catalog.legacy.drop_again(uow, pair)
    guards.put_up_signs(uow)
    changes.forget_all(uow)
    state.put(uow, step=None)
    return True
