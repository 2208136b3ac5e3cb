"""The way back from every phase: rows that only the truth has are carried to the other side, then the phase changes.

Long work is done in chunks while writers go on; what they wrote meanwhile is carried under the fence. From CONTRACT the
legacy tables are made again first, from their saved definitions. The next call continues or undoes an interrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import Any

from consensus_orm import errors
from consensus_orm.databases import guard_record, saved_schema, state
from consensus_orm.databases.base import SavedRow
from consensus_orm.databases.saved_rows import saved_rows, unsafe
from consensus_orm.declaration.keys import is_usable
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.formats import count
from consensus_orm.ledgers import changes, guards, mismatches, rejects, signs
from consensus_orm.ledgers.binding import Key, keys_of
from consensus_orm.migration import keyless
from consensus_orm.migration.carrying import adopt_range, carry_fitting, reject_unequal, unless_refused
from consensus_orm.migration.flip import expect, flip
from consensus_orm.migration.gates import Obstacle, undecided_text
from consensus_orm.migration.pace import catch_up, in_chunks
from consensus_orm.migration.ranges import Range, next_range
from consensus_orm.migration.settling import Drained, drain, settle_open
from consensus_orm.migration.transactions import Transactions
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Tally, Watch
from consensus_orm.repository.carrying import linked_range
from consensus_orm.statements.pairs import PairStatements
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["expand_again", "roll_back", "undo_expansion"]


def roll_back(
    writing: Transactions, flipping: Transactions, now: Phase, to: Phase, *, reason: str | None, progress: Watch
) -> None:
    """Go back to the phase before, while both sides exist.

    Raises:
        GateClosedError: Rows cannot be carried back, or wait for a choice.
        GuardsBrokenError: A guard of the phase is not in place.
        PhaseChangedError: Another process changed the phase.
    """
    catch_up(writing, partial(_drain, now), progress)
    flipping.run(partial(_flip_back, now=now, to=to, reason=reason))


def _drain(now: Phase, uow: UnitOfWork, limit: int) -> Drained:
    expect(uow, now)
    if not changes.some_waiting(uow):
        return Drained(0, 0)  # nothing to carry; the flip looks at the guards
    _require_guards(uow)
    return drain(uow, limit=limit)


def _require_guards(uow: UnitOfWork) -> None:
    """Refuse to go on where the triggers may have missed a write that has to be carried back."""
    guards.require(uow)
    if uow.phase.truth is Side.NORMALIZED:
        guards.require_accounted(uow)


def _flip_back(uow: UnitOfWork, *, now: Phase, to: Phase, reason: str | None) -> None:
    uow.catalog.keep_out(uow)
    expect(uow, now)
    _require_guards(uow)
    while drain(uow).looked_at:
        pass
    if now.compares and (undecided := changes.undecided(uow)):
        # The flip changes which side is read, and would settle what waits for a choice.
        text = undecided_text(undecided, now)
        raise errors.GateClosedError(text, hint="run: consensus-orm reconcile --dry-run", reasons=[text], phase=now)
    stuck = settle_open(uow).rejects if now.compares else 0
    if stuck := stuck or mismatches.count_open(uow):
        raise errors.GateClosedError(
            f"{count(stuck, 'row')} cannot be carried to the {to.truth} side",
            hint="run: consensus-orm reconcile",
            reasons=["rows differ that cannot be repaired; run: consensus-orm reconcile"],
        )
    if now.truth is Side.NORMALIZED:
        _require_carried_back(uow, to)
    flip(uow, to, action="rollback", reason=reason)


def _require_carried_back(uow: UnitOfWork, to: Phase) -> None:
    """Refuse the way back while rows of the truth are missing, or different, on the legacy side.

    Such a row is an open reject. One that an operator has accepted blocks neither direction.
    """
    left = {pair: _left_behind(uow, pair) for pair in uow.statements.moves}
    found = [
        Obstacle(
            f"{count(rows, 'row')} of {pair.table.name} could not be carried back to {pair.legacy_name}, which does not"
            " hold them equal",
            "consensus-orm rejects",
        )
        for pair, rows in left.items()
        if rows
    ]
    if found:
        raise errors.GateClosedError(
            f"the way back to {to.name} is shut: " + "; ".join(obstacle.reason for obstacle in found),
            hint="run: consensus-orm rejects, then resolve each, or accept it with a reason",
            reasons=[obstacle.text for obstacle in found],
            phase=uow.phase,
            to=to,
        )


def _left_behind(uow: UnitOfWork, pair: Move) -> int:
    """How many rows of the normalized side are open rejects, and have no equal on the legacy side."""
    found = list(rejects.open_of(uow, pair, Side.NORMALIZED))
    unequal = sum(bool(mismatches.differences(uow, pair, each.key)) for each in found if each.key is not None)
    return unequal + sum(keyless.stands(uow, each) for each in found if keyless.concerns(each))


# From CONTRACT --------------------------------------------------------------------------------------------


def expand_again(writing: Transactions, flipping: Transactions, *, reason: str | None, progress: Watch = None) -> None:
    """Make the legacy tables again from the normalized ones and flip back to NORMALIZED.

    Raises:
        MigrationError: There never were legacy tables in this database, or another relation has one of their names.
        PhaseChangedError: Another process finished the rebuild, or undid it.
    """
    for pair in flipping.run(_begin_expansion):
        _fill(writing, pair, progress)
    catch_up(writing, _drain_expanded, progress)
    flipping.run(partial(_finish_expansion, reason=reason))


def _expect_expansion(uow: UnitOfWork) -> None:
    """Refuse to go on where another process took the same step, or undid it."""
    if uow.phase.has_legacy or state.step(uow) != state.EXPANDING:
        raise errors.PhaseChangedError(
            f"somebody else has ended the rebuild of the legacy tables; the phase is {uow.phase.name}",
            expected=Phase.CONTRACT,
            phase=uow.phase,
        )


def _begin_expansion(uow: UnitOfWork) -> Moves:
    uow.catalog.keep_out(uow)
    if uow.phase.has_legacy:
        _expect_expansion(uow)
    if state.step(uow) == state.EXPANDING:
        return uow.statements.moves  # an earlier call was interrupted; its tables are filled further
    if not saved_schema.has_tables(uow):
        raise errors.MigrationError(
            "this database never had legacy tables, or they were removed for good, so there is nothing to go back to",
            hint="stay at CONTRACT",
        )
    signs.take_down(uow)
    saved_rows(uow)  # what cannot be put back at the end shows now, before anything is carried
    uow.catalog.legacy.bring_back(uow)
    _try_out(uow)
    guard_record.install(uow, Phase.NORMALIZED)
    changes.forget_all(uow)
    state.put_step(uow, state.EXPANDING)
    return uow.statements.moves


def _try_out(uow: UnitOfWork) -> None:
    """Check, in a savepoint that is rolled back, that the tables take rows: saved definitions may have been changed.

    Raises:
        UnsafeDefinitionError: A table lacks a column, or cannot take a row.
    """
    uow._execute("SAVEPOINT tried_out")
    for pair in uow.statements.moves:
        there = {name.lower() for name in uow.catalog.columns(uow, pair.legacy_name, computed=True)}
        needed = {*pair.legacy_columns, *pair.only[Side.LEGACY]}
        needed |= {name for row in saved_rows(uow) if row.table == pair.legacy_name for name in row.cells}
        if any(name.lower() not in there for name in needed):
            raise unsafe("table", pair.legacy_name)
        try:
            if of := next_range(uow, pair, Side.NORMALIZED, None, 1):
                with uow._connected.attempt():
                    adopt_range(uow, pair, of)
                    uow._execute(uow.statements[pair].rebuild_legacy, of.bounds)
        except errors.StorageError as error:
            if uow._connected.refers_to_missing(error.__cause__):
                continue  # the row that it refers to was not tried out, but is carried before it
            refusal = uow.engine.dialect.loaded_dbapi.IntegrityError
            if type(error) is errors.StorageError and not isinstance(error.__cause__, refusal):
                raise unsafe("table", pair.legacy_name) from error
            raise  # the database as a whole failed, or the row does not meet a constraint
    uow._execute("ROLLBACK TO SAVEPOINT tried_out")
    uow._execute("RELEASE SAVEPOINT tried_out")


def _fill(writing: Transactions, pair: Move, progress: Watch) -> None:
    """Carry the rows of a pair in chunks, from behind the highest key that an earlier call has carried.

    That key says nothing where rows go ahead of others that refer to them: then each call begins anew.
    """
    tally = Tally(progress, pair.name)
    goes_ahead = bool(pair.references(Side.LEGACY))
    after: Key = None

    def chunk(uow: UnitOfWork, size: int) -> tuple[Key, int] | None:
        _expect_expansion(uow)
        sql = uow.statements[pair]
        # The table may refuse each row of a chunk: then its highest key stays what it was.
        begun = goes_ahead or after is not None
        behind = after if begun else uow._rows(sql.last_key(Side.LEGACY))[0][0]
        if (of := next_range(uow, pair, Side.NORMALIZED, behind, size)) is None:
            return None
        tally.expect(lambda: _to_fill(uow, sql))
        adopt_range(uow, pair, of)
        with uow.catalog.legacy_unfrozen(uow):
            if unless_refused(uow, lambda: _rebuild(uow, pair, of)) is None:
                keys = keys_of(uow, sql.keys_in_range(Side.NORMALIZED), of.bounds)
                carry_fitting(uow, pair, keys, Side.LEGACY, "the legacy table was made again")
        _reject_unequal(uow, pair, of)
        return of.last, of.rows

    for last in in_chunks(writing, tally, chunk):
        after = last


def _rebuild(uow: UnitOfWork, pair: Move, of: Range) -> bool:
    with linked_range(uow, pair, of.bounds, Side.LEGACY):
        uow._execute(uow.statements[pair].rebuild_legacy, of.bounds)
    return True


def _reject_unequal(uow: UnitOfWork, pair: Move, of: Range) -> None:
    """Reject rows of a range that the table, as it was saved, does not hold equal; derived columns may differ."""
    found: set[Key] = set()
    for side in Side:
        ((_, wrong),) = uow._rows(uow.statements[pair].compare_range(side, but_recorded=True), of.bounds)
        found.update(json.loads(wrong or "[]"))
    unequal = {key for key in found if mismatches.differences(uow, pair, key)}
    if unequal:  # those that an earlier call has rejected may have been accepted since
        unequal -= rejects.on_one_side(uow, pair, Side.NORMALIZED)
    reject_unequal(uow, pair, unequal, Side.NORMALIZED)


def _to_fill(uow: UnitOfWork, sql: PairStatements) -> int:
    """Rows that an interrupted call has not carried yet."""
    normalized, legacy = (int(uow._rows(sql.count(side, ()))[0][0]) for side in (Side.NORMALIZED, Side.LEGACY))
    return max(normalized - legacy, 0)


def _drain_expanded(uow: UnitOfWork, limit: int) -> Drained:
    _expect_expansion(uow)
    return drain(uow, limit=limit)


def _finish_expansion(uow: UnitOfWork, *, reason: str | None) -> None:
    uow.catalog.keep_out(uow)
    _expect_expansion(uow)
    while drain(uow).looked_at:
        pass
    _require_carried_back(uow, Phase.NORMALIZED)
    saved = saved_schema.entries(uow)
    with uow.catalog.legacy_unfrozen(uow):
        for row in _referred_to_first(uow.statements.moves, saved_rows(uow)):
            if uow.catalog.legacy.put_back(uow, row):
                _require_equal(uow, row)
    for each in saved:
        uow.catalog.legacy.complete(uow, each.type, each.name, each.table, each.sql, each.sequence)
    saved_schema.forget(uow)
    flip(uow, Phase.NORMALIZED, action="rollback", reason=reason)


def _referred_to_first(moves: Moves, saved: Iterable[SavedRow]) -> list[SavedRow]:
    """Saved rows in an order in which each comes after those of its table that it refers to."""
    tables = {pair.legacy_name: pair for pair in moves.of_tables(Side.LEGACY)}

    def cells(row: SavedRow, names: tuple[str, ...]) -> tuple[object, ...]:
        return (row.table, *(row.cells.get(name) for name in names))

    def waits(row: SavedRow) -> bool:
        pair = tables[row.table]
        named = {cells(row, of.columns[Side.LEGACY]) for of in pair.references(Side.LEGACY)}
        return not named.isdisjoint(keys - {cells(row, pair.legacy_keys)})

    ordered, left = list[SavedRow](), list(saved)
    while left:
        keys = {cells(row, tables[row.table].legacy_keys) for row in left}
        waiting = [row for row in left if waits(row)]
        ready = [row for row in left if row not in waiting] or left  # in a circle there is no first one
        ordered, left = ordered + ready, [row for row in left if row not in ready]
    return ordered


def _require_equal(uow: UnitOfWork, saved: SavedRow) -> None:
    """Refuse to go on where a saved row does not stand in its table as it was saved.

    Raises:
        MigrationError: The table has changed it.
    """
    pair = next(pair for pair in uow.statements.moves if pair.legacy_name == saved.table)
    key: Key = pair.key_from({name: _read(*saved.cells[name]) for name in pair.legacy_keys if name in saved.cells})
    names, sql = uow.statements[pair].image(Side.LEGACY)
    if not is_usable(pair, key) or (found := uow._execute(sql, {"_key": key}).fetchone()) is None:
        return
    now = rejects.as_image(names, found)
    changed = sorted(name for name, cell in saved.cells.items() if not _same(cell, tuple(now[name])))
    if changed:
        raise errors.MigrationError(
            f"{saved.table} stores another value than the one that was saved in {', '.join(changed)} of row {key}",
            hint="nothing came back; look at the types and constraints of the table",
            table=saved.table,
            key=key,
        )


def _read(kind: str, digits: str) -> Any:
    """A cell of a key; None where that is neither a number nor a text, so that no row is named by it."""
    data = bytes.fromhex(digits)
    return int(data) if kind == "integer" else data.decode(errors="surrogateescape") if kind == "text" else None


def _same(saved: tuple[str, ...], now: tuple[str, ...]) -> bool:
    """Whether two cells are the same; numbers may be spelled in two ways, by two releases."""
    if saved[0] == now[0] == "real":
        return float(bytes.fromhex(saved[1]).replace(b"\0", b"")) == float(bytes.fromhex(now[1]).replace(b"\0", b""))
    return saved == now


def undo_expansion(uow: UnitOfWork) -> None:
    """Drop the half-made legacy tables of an interrupted rollback, where there are any; the phase stays CONTRACT."""
    if state.step(uow) != state.EXPANDING:
        return
    guard_record.install(uow, Phase.CONTRACT)
    for pair in reversed(uow.statements.moves.of_tables(Side.LEGACY)):
        uow.catalog.legacy.drop_again(uow, pair)
    signs.put_up(uow)
    changes.forget_all(uow)
    state.put_step(uow, None)
