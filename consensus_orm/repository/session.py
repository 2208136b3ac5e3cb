"""The session that carries: what is written with it to one side is on both sides after each flush, or the flush fails.

The triggers on the mapped tables record the writes of a session as they record those of other programs, so ORM, Core
and text are all seen. After each flush, and after each statement outside of one, the recorded rows are carried to the
other side with the statements of the declaration and compared, in the same transaction.

What a flush itself knows of its rows is used before it: rows are locked in the order of their keys, on the side that is
the truth, so that sessions that write the two classes of one row do not wait for each other; and what another program
wrote to the other side of a row is carried first, or the row would be overwritten without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from typing import Any, cast

from sqlalchemy import ClauseElement, Connection, Table, UpdateBase, event, inspect
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import TextClause

from consensus_orm import errors
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, images, mismatches
from consensus_orm.ledgers.binding import Key, among, keys_of
from consensus_orm.phase import Side
from consensus_orm.repository.carrying import ParentKey, adopt, carry, follow, settle
from consensus_orm.repository.records import key_from
from consensus_orm.repository.routed_reads import is_of_the_whole
from consensus_orm.settings import OnMismatch
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["CarryingSession"]

NEW, GONE = {"insert"}, "delete"
BULK = "bulk_insert_mappings, bulk_update_mappings and bulk_save_objects"


class CarryingSession(Session):
    """A session of a unit of work whose writes of mapped tables are carried to the other side.

    Args:
        connection: The connection of the unit of work.
        uow: The unit of work.
        guard: Its guard, which knows the tables that are not open to a session in this phase.
    """

    def __init__(self, connection: Connection, uow: UnitOfWork, guard: SessionGuard) -> None:
        super().__init__(bind=connection)
        self._uow = uow
        self._unit_guard = guard
        self._database = uow.statements.rendering.name
        self._carries = uow.phase.compares and not uow.read_only
        self._completes = uow.phase.writes_normalized and uow.statements.completes
        self._follows = not uow.read_only and (self._carries or self._completes or uow._tells_written)
        """Whether something is to be done with what a flush writes."""
        self._mark = 0
        self._foreign = True
        """Whether there may be records of other programs."""
        self._in_flush = False
        self._failed = False
        """Whether carrying has failed in this flush, and is done once more."""
        self._left: set[ParentKey] = set()
        """The parents that rows of this flush belonged to before and after."""
        self._made: dict[str, set[Any]] = {}
        """By table the parents that this session made, which must have a row in the end."""
        self._carried: set[tuple[tuple[str, Side], Key]] = set()
        """The rows that carrying has changed since the session began, by move and side."""
        if self._carries:
            guard.before, guard.after = self._before, self._after
        self._sole = None
        if uow._tells_written and not (uow.read_only or self._carries):
            from consensus_orm.repository.sole_side import SoleSide  # most applications have no external store

            self._sole = SoleSide(self, uow)
            guard.before, guard.after = self._sole.before, self._sole.after

    def end(self) -> None:
        """Flush and carry what is left.

        Raises:
            MismatchError: A row does not come out equal on the other side.
            UnmirroredWriteError: A parent has no row, so that the legacy side cannot hold it.
        """
        self._unit_guard.ends = True  # the commit of the unit releases the savepoint
        self.commit()
        if self._carries:
            if self._uow.catalog.others_write_meanwhile:
                self._carry()  # what was sent past SQLAlchemy; in a file it counts as another program's
            for parent in self._uow.statements.parents.values():
                made = self._made.get(parent.parent.table.name)
                if made and keys_of(self._uow, parent.without_rows, among(made)):
                    name = parent.parent.table.name
                    raise errors.UnmirroredWriteError(
                        f"a new row of {name} has no rows, so that the legacy side cannot hold it",
                        hint="add it in one unit of work with the first row that belongs to it",
                        table=name,
                    )

    def bulk_save_objects(self, *args: Any, **kwargs: Any) -> None:
        """Refused: it sends no events, by which the session knows what to carry.

        Raises:
            UnmirroredWriteError: Always.
        """
        raise _bulk_refused()

    def bulk_insert_mappings(self, *args: Any, **kwargs: Any) -> None:
        """Refused, as `bulk_save_objects` is."""
        raise _bulk_refused()

    def bulk_update_mappings(self, *args: Any, **kwargs: Any) -> None:
        """Refused, as `bulk_save_objects` is."""
        raise _bulk_refused()

    # When -----------------------------------------------------------------------------------------------

    def _begin_flush(self) -> None:
        new, changed = [*self.new], [*self.dirty, *self.deleted]  # each call makes another set
        if self._unit_guard.hidden:
            self._refuse_entities({type(each) for each in (*new, *changed)})
        if not self._follows:
            return
        uow = self._uow
        self._in_flush, self._left = True, set()
        for move in uow.statements.moves:
            if self._carries:
                self._ready(move, new, changed)
            if move.parents and uow.phase.writes_normalized:
                self._note_parents(move, changed)
        if self._sole is not None:
            self._sole.note_above(changed)
        if self._carries:
            self._mark, self._foreign = uow.catalog.session_mark(uow)

    def _end_flush(self) -> None:
        if not self._in_flush:
            return
        try:
            if self._carries:
                self._note_new_parents()
                self._carry()
                return
            if self._sole is not None:
                self._sole.note_above((*self.dirty, *self.deleted))
                self._sole.note_rows((*self.new, *self.dirty, *self.deleted))
            if self._completes:
                self._complete()
        finally:
            self._in_flush = False

    def _rolled_back(self) -> None:
        self._in_flush = False  # a flush that failed has no end
        self._expire()

    def _before(self, context: Any) -> None:
        if not self._in_flush and _may_write(context):
            self._mark, self._foreign = self._uow.catalog.session_mark(self._uow)

    def _after(self, context: Any) -> None:
        if not self._in_flush and _may_write(context):
            self._carry(whole=True)
            self._expire()

    def _on_execute(self, state: ORMExecuteState) -> Any:
        """Look at a statement before it is executed; None leaves the execution to SQLAlchemy."""
        self._refuse_reading(state)
        return None if self._sole is None else self._sole.execute(state)

    def _refuse_reading(self, state: ORMExecuteState) -> None:
        """Refuse to read a side that is not written in this phase: its rows are stale.

        Raises:
            WrongPhaseError: A statement names a table of it.
        """
        if not self._unit_guard.hidden:
            return
        named = {table for mapper in state.all_mappers for table in mapper.tables}
        named |= {part for part in visitors.iterate(cast("ClauseElement", state.statement)) if isinstance(part, Table)}
        for table in named:
            if isinstance(table, Table) and table.name.lower() in self._unit_guard.hidden:
                raise self._unit_guard.refusal(table.name)

    def _refuse_entities(self, models: Iterable[Any]) -> None:
        """Refuse to write entities of a side that is not written in this phase.

        Raises:
            WrongPhaseError: There is one.
        """
        for model in models:
            for name, in_small in _tables_of(model):
                if in_small in self._unit_guard.hidden:
                    raise self._unit_guard.refusal(name)

    # Before a flush -------------------------------------------------------------------------------------

    def _keys_to_change(self, move: Move, side: Side, changed: list[Any]) -> list[Key]:
        found = [each for each in changed if isinstance(each, _model(move, side) or ())]
        keys: list[Any] = [
            self._key(move, side, each) for each in found if each in self.deleted or self.is_modified(each)
        ]
        return sorted(keys)

    def _ready(self, move: Move, new: list[Any], changed: list[Any]) -> None:
        """Lock rows that a flush will write, and carry first what another program wrote to their other side."""
        uow, sql = self._uow, self._uow.statements[move]
        if not uow.catalog.others_write_meanwhile:
            self._give_keys(move, new)
        for side in Side:
            if not (keys := self._keys_to_change(move, side, changed)):
                continue
            if uow.catalog.others_write_meanwhile:
                uow._rows(sql.hold(uow.phase.truth), among(keys))
            written = changes.of_rows(uow, move, keys)
            foreign = [key for key, of in written.items() if of.ops[side.other] and not of.ops[side]]
            if foreign:
                with self._unit_guard.carrying():
                    carry(uow, move, foreign, side, "another program changed the other side before a session did")
                changes.forget(uow, (written[key] for key in foreign))
                mismatches.settle(uow, move, foreign, "repaired", "a session changed it")

    def _give_keys(self, move: Move, added: list[Any]) -> None:
        """Give new rows of a file ids that neither side has ever given; on a server both draw from one sequence."""
        if not move.is_numbered:
            return
        for side in Side:
            if (model := _model(move, side)) is None:
                continue
            (name,) = _key_attributes(move, side, model)
            if new := [each for each in added if isinstance(each, model) and getattr(each, name) is None]:
                ((first,),) = self._uow._rows(self._uow.statements[move].next_key)
                for key, each in enumerate(sorted(new, key=_order_of_adding), first):
                    setattr(each, name, key)

    def _note_parents(self, move: Move, changed: list[Any]) -> None:
        rows = [each for each in changed if isinstance(each, move.normalized)]
        for parent in move.parents:
            self._left |= {(parent.table.name, key) for each in rows for key in _links(each, parent.link.key)}

    def _note_new_parents(self) -> None:
        for parent in self._uow.statements.parents.values():
            table = parent.parent.table
            new = {_primary_key(each) for each in self.new if inspect(each).mapper.local_table is table}
            self._made.setdefault(table.name, set()).update(new)

    # What -----------------------------------------------------------------------------------------------

    def _carry(self, *, whole: bool = False) -> None:
        """Carry what was recorded since the mark, and compare it.

        A failure of the side that is not the truth takes no write with it: all is carried once more, and a row that
        fails again becomes a mismatch (rule 6).

        Args:
            whole: Whether any row may have been written, not only those that a flush knows.

        Raises:
            MismatchError: A row does not come out equal on the other side, or both sides of it were written.
        """
        guard = self._unit_guard
        with guard.carrying(undoable=True):
            try:
                self._carry_written(whole=whole)
            except errors.StorageError as error:
                if is_of_the_whole(error) or not guard.undo_carrying():
                    raise
                self._failed = True
                try:
                    self._carry_written(whole=whole)
                finally:
                    self._failed = False

    def _carry_written(self, *, whole: bool) -> None:
        uow = self._uow
        written = changes.written_since(uow, self._mark)
        if not written:
            return
        moves = [move for move in uow.statements.moves if move.name in written]
        # Rows of a later move may refer to rows of an earlier one: they come after them, and go before them.
        for move in moves:
            if len(moves) > 1:
                self._make_way(move, written)
            self._carry_move(move, written[move.name], deleted=False)
        for move in reversed(moves):
            self._carry_move(move, written[move.name], deleted=True)
        changed = {name for name, rows in written.items() if any(map(_left_a_parent, rows.values()))}
        self._settle_parents([move for move in moves if move.name in changed], whole=whole)
        uow.catalog.forget_changes(uow, after=self._mark)

    def _make_way(self, move: Move, written: dict[str, dict[Key, changes.Written]]) -> None:
        """Delete rows that were of another move of the same table and are of this one now."""
        mine = written[move.name]
        for side in Side:
            for other in self._uow.statements.moves.sharing(move, side):
                theirs = written.get(other.name, {}) if other is not move else {}
                left = {key: of for key, of in theirs.items() if key in mine and of.ops[side][-1:] == [GONE]}
                self._carry_move(other, left, deleted=True)

    def _carry_move(self, move: Move, rows: dict[Key, changes.Written], *, deleted: bool) -> None:
        found: dict[tuple[Side, bool], list[Key]] = {}
        for key, of in rows.items():
            if all(of.ops.values()):
                self._fail(move, key, "both sides of it were written in one flush")
            for side, ops in of.ops.items():
                if ops and (ops[-1] == GONE) is deleted:
                    found.setdefault((side, set(ops) == NEW), []).append(key)
        for side, new in product(Side, (True, False)):
            if keys := found.get((side, new)):
                if side is self._uow.phase.truth:
                    self._carry_from_truth(side, move, keys, new=new, deleted=deleted)
                else:
                    self._carry_from(side, move, keys, new=new)

    def _carry_from_truth(self, side: Side, move: Move, keys: list[Key], *, new: bool, deleted: bool) -> None:
        """Carry rows that were written to the truth; after a failure each by itself, and another one is a mismatch.

        Raises:
            MismatchError: The other side could not be written, and `ON_MISMATCH` is raise.
        """
        uow = self._uow
        try:
            with self._unit_guard.attempt() if self._failed else contextlib.nullcontext():
                self._carry_from(side, move, keys, new=new)
        except errors.StorageError as error:
            if not self._failed or is_of_the_whole(error) or not uow._connected.in_transaction:
                raise
            if len(keys) > 1:
                for key in keys:
                    self._carry_from_truth(side, move, [key], new=new, deleted=deleted)
            else:
                self._note_failed(move, keys[0], mismatches.NOT_DELETED if deleted else mismatches.SHADOW_FAILED, error)

    def _note_failed(self, move: Move, key: Key, kind: str, error: errors.StorageError | None = None) -> None:
        """Keep the write of the truth although the other side could not follow (rule 6)."""
        if self._uow.settings.on_mismatch is OnMismatch.RAISE:
            try:
                self._fail(move, key, f"row {kind}")
            except errors.MismatchError as mismatch:
                raise mismatch from error
        mismatches.record(self._uow, move, key, None, kind, found_by="write")

    def _carry_from(self, side: Side, move: Move, keys: list[Key], *, new: bool) -> None:
        uow = self._uow
        written = self._foreign_records(move, keys)
        foreign = [key for key, of in written.items() if of.ops[side.other]]
        if foreign:
            images.keep(uow, move, foreign, side.other, "a session changed it")
        if changes.forget(uow, written.values()):
            mismatches.settle(uow, move, written, "repaired", "a session changed it")
        follow(uow, move, keys, side.other, new=new and not foreign)
        self._compare(side, move, keys)
        self._carried.update(((move.name, each), key) for each in Side for key in keys)

    def _foreign_records(self, move: Move, keys: list[Key]) -> dict[Key, changes.Written]:
        """What other programs wrote to rows, as far as it was recorded before the session wrote them."""
        if not self._foreign:
            return {}
        found = changes.of_rows(self._uow, move, keys)
        if self._uow.catalog.others_write_meanwhile:
            return found  # the records of this session have been taken
        return {key: of for key, of in found.items() if min(of.ids) <= self._mark}

    def _complete(self) -> None:
        """Complete rows where the normalized side alone is written: what is computed, their mark and their parent."""
        uow = self._uow
        entities, written = [*self.new, *self.dirty], {}
        for move in uow.statements.moves:
            if uow.statements[move].adopt:
                of_move = [each for each in entities if isinstance(each, move.normalized)]
                written[move] = [self._key(move, Side.NORMALIZED, each) for each in of_move]
        if not (self._left or any(written.values())):
            return
        with self._unit_guard.carrying():
            for move, keys in written.items():
                if keys:
                    adopt(uow, move, keys, None)
                    self._carried.update(((move.name, Side.NORMALIZED), key) for key in keys)
            self._settle_parents(list(uow.statements.moves), whole=False)

    def _settle_parents(self, moves: list[Move], *, whole: bool) -> None:
        """Remove parents that have lost their last row, and derive the others again."""
        uow, left = self._uow, self._left
        parents = dict.fromkeys(of for move in moves for of in uow.statements.of_parents(move))
        if whole:
            empty = ((of.parent.table.name, keys_of(uow, of.all_without_rows, {})) for of in parents)
            left = {(table, key) for table, keys in empty for key in keys}
        settle(uow, parents, {(table, key) for table, key in left if key not in self._made.get(table, ())})

    def _compare(self, written: Side, move: Move, keys: list[Key]) -> None:
        """Compare both sides of rows; one that the side which is not the truth did not take is a mismatch (rule 6)."""
        both, lone = self._uow.statements[move].both_sides
        there = self._uow._rows(both, among(keys))
        differing = {key: carried for key, carried, *equal in there if not (carried and all(equal))}
        of_legacy = [key for key, carried in differing.items() if not carried]
        of_normalized = keys_of(self._uow, lone, among(keys)) if len(there) < len(keys) else []
        wrong = [*differing, *of_normalized]
        if wrong and written is self._uow.phase.truth:
            # Its constraint refused the row: the statements leave out what a side does not take.
            refused = of_legacy if written is Side.LEGACY else of_normalized
            for key in refused:
                self._note_failed(move, key, mismatches.SHADOW_FAILED)
            wrong = [key for key in wrong if key not in refused]
        if wrong:
            found = mismatches.differences(self._uow, move, wrong[0])
            self._fail(move, wrong[0], ", ".join(f"{column or 'row'} {kind}" for column, kind in found))

    def _fail(self, move: Move, key: Key, why: str) -> None:
        error = errors.MismatchError(f"{move.name} {key}: {why}", pair=move.name, key=key, columns=[])
        self._uow._doom(error)
        raise error

    def _expire(self) -> None:
        """Let entities of both sides be read again: carrying, or its rollback, has changed what they stand for."""
        if not self._carried:
            return
        parts = tuple(part.model for move in self._uow.statements.moves for part in move.beside_rows)
        for entity in list(self.identity_map.values()):
            if isinstance(entity, parts) or any((each, key) in self._carried for each, key in self._keys_of(entity)):
                self.expire(entity)

    def _keys_of(self, entity: Any) -> Iterator[tuple[Any, Key]]:
        """The moves and sides of which an entity is a row, each with its key there; None where it is not loaded."""
        for move in self._uow.statements.moves:
            # A side that is not written has no entities here, and the legacy class may be gone.
            for side in (side for side, is_open in self._uow.phase.sides if is_open):
                if isinstance(entity, model := _model(move, side) or ()):
                    loaded = inspect(entity).dict
                    yield (
                        (move.name, side),
                        key_from(move, self._database, map(loaded.get, _key_attributes(move, side, model))),
                    )

    def _key(self, move: Move, side: Side, entity: Any) -> Key:
        """The key of a row; within a flush, also that of a row that was just added."""
        names = _key_attributes(move, side, _model(move, side))
        return key_from(move, self._database, (getattr(entity, name) for name in names))


def _model(move: Move, side: Side) -> Any:
    return move.legacy_model if side is Side.LEGACY else move.normalized


@cache
def _tables_of(model: Any) -> tuple[tuple[str, str], ...]:
    """The names of the tables of a model, each beside its name in small letters."""
    return tuple((table.name, table.name.lower()) for table in inspect(model).tables)


@cache
def _key_attributes(move: Move, side: Side, model: Any) -> tuple[str, ...]:
    """The names of the attributes that hold the key of a row of a side."""
    columns = [move.legacy_table.c[name] for name in move.legacy_keys] if side is Side.LEGACY else move.keys
    return tuple(str(inspect(model).get_property_by_column(column).key) for column in columns)


def _primary_key(entity: Any) -> Any:
    return inspect(entity).mapper.primary_key_from_instance(entity)[0]


def _order_of_adding(entity: Any) -> int:
    return instance_state(entity).insert_order or 0  # only what is not pending has none


def _left_a_parent(row: changes.Written) -> bool:
    """Whether a normalized row was there before, so that it may have left a parent."""
    ops = row.ops[Side.NORMALIZED]
    return bool(ops) and set(ops) != NEW


def _links(entity: Any, link: str) -> Iterable[Any]:
    """The parents that a row refers to, before and after its change."""
    history = inspect(entity).attrs[link].load_history()
    return {key for keys in history for key in keys or () if key is not None}


def _may_write(context: Any) -> bool:
    """Whether a statement may write rows: text may, of SQLAlchemy's own those that insert, update or delete."""
    compiled = getattr(context, "compiled", None)
    statement = getattr(compiled, "statement", None)
    return compiled is None or isinstance(statement, UpdateBase | TextClause)


def _bulk_refused() -> errors.UnmirroredWriteError:
    return errors.UnmirroredWriteError(
        f"{BULK} send no events, by which a session knows what to carry",
        hint="use session.add_all(...), or session.execute(insert(Model), rows)",
    )


# Once for all sessions: to listen to each one costs more than a statement.
event.listen(CarryingSession, "do_orm_execute", lambda state: state.session._on_execute(state))
event.listen(CarryingSession, "before_flush", lambda session, *_: session._begin_flush())
event.listen(CarryingSession, "after_flush", lambda session, _: session._end_flush())
event.listen(CarryingSession, "after_flush_postexec", lambda session, _: session._expire())
event.listen(CarryingSession, "after_soft_rollback", lambda session, _: session._rolled_back())
