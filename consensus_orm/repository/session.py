"""The session that carries: what is written with it to one side is on both sides after each flush, or the flush fails.

The triggers on the mapped tables record the writes of a session as they record those of other programs, so ORM, Core
and text are all seen. After each flush, and after each statement outside of one, the recorded rows are carried to the
other side with the statements of the declaration and compared, in the same transaction.

What a flush itself knows of its rows is used before it: rows are locked in the order of their keys, on the side that is
the truth, so that sessions that write the two classes of one row do not wait for each other; and what another program
wrote to the other side of a row is carried first, or the row would be overwritten without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Table, UpdateBase, event, inspect
from sqlalchemy.orm import DeclarativeBase, ORMExecuteState, Session
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import TextClause

from consensus_orm import errors
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, images, mismatches
from consensus_orm.ledgers.binding import Key, among, keys_of
from consensus_orm.phase import Side
from consensus_orm.repository.carrying import adopt, carry
from consensus_orm.statements.parents import ParentStatements
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["CarryingSession"]

BULK = "bulk_insert_mappings, bulk_update_mappings and bulk_save_objects"


class CarryingSession(Session):
    """A session of a unit of work whose writes of mapped tables are carried to the other side.

    Args:
        connection: The connection of the unit of work.
        uow: The unit of work.
        guard: Its guard, which knows the tables that are not open to a session in this phase.
    """

    def __init__(self, connection: Connection, uow: UnitOfWork, guard: SessionGuard) -> None:
        super().__init__(bind=connection, join_transaction_mode="create_savepoint")
        self._uow = uow
        self._unit_guard = guard
        self._mark = 0
        self._in_flush = False
        self._left: dict[str, set[Any]] = {}
        """By move the parents that rows of this flush belonged to before and after."""
        self._made: dict[str, set[Any]] = {}
        """By table the parents that this session made, which must have a row in the end."""
        self._carried: set[tuple[type[DeclarativeBase], Key]] = set()
        """The entities that carrying has changed since the session began."""
        if guard.hidden:
            event.listen(self, "do_orm_execute", self._refuse_hidden)
            event.listen(self, "before_flush", self._refuse_entities)
        if uow.phase.writes_normalized and not uow.read_only:
            event.listen(self, "before_flush", self._begin_flush)
            event.listen(self, "after_flush", self._end_flush)
            event.listen(self, "after_flush_postexec", self._expire)
            event.listen(self, "after_soft_rollback", self._expire)
        if uow.phase.compares and not uow.read_only:
            event.listen(connection, "before_cursor_execute", self._before)
            event.listen(connection, "after_cursor_execute", self._after)

    def end(self) -> None:
        """Flush and carry what is left, and release the savepoint.

        Raises:
            MismatchError: A row does not come out equal on the other side.
            UnmirroredWriteError: A parent has no row, so that the legacy side cannot hold it.
        """
        self.commit()
        if self._uow.phase.compares and not self._uow.read_only:
            self._carry()  # what was sent past SQLAlchemy, to the driver's own connection
            for parent in self._parents():
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

    def _begin_flush(self, *_: Any) -> None:
        uow, self._in_flush = self._uow, True
        self._left = {}
        for move in uow.statements.mapping:
            for side in Side:
                if keys := self._keys_to_change(move, side):
                    self._ready(move, side, keys)
            if move.parent is not None:
                self._note_parents(move)
        if uow.phase.compares:
            self._mark = uow.catalog.session_mark(uow)

    def _end_flush(self, *_: Any) -> None:
        try:
            if self._uow.phase.compares:
                self._note_new_parents()
                self._carry()
            else:
                self._complete()
        finally:
            self._in_flush = False

    def _before(self, _: Any, __: Any, ___: str, ____: Any, context: Any, *_____: Any) -> None:
        if not self._in_flush and _may_write(context):
            self._mark = self._uow.catalog.session_mark(self._uow)

    def _after(self, _: Any, __: Any, ___: str, ____: Any, context: Any, *_____: Any) -> None:
        if not self._in_flush and _may_write(context):
            self._carry(whole=True)
            self._expire()

    def _refuse_hidden(self, state: ORMExecuteState) -> None:
        """Refuse to read a side that is not written in this phase: its rows are stale.

        Raises:
            WrongPhaseError: A statement names a table of it.
        """
        named = {table for mapper in state.all_mappers for table in mapper.tables}
        named |= {part for part in visitors.iterate(state.statement) if isinstance(part, Table)}
        for table in named:
            if isinstance(table, Table) and table.name.lower() in self._unit_guard.hidden:
                raise self._unit_guard.refusal(table.name)

    def _refuse_entities(self, *_: Any) -> None:
        """Refuse to write entities of a side that is not written in this phase.

        Raises:
            WrongPhaseError: There is one.
        """
        for entity in (*self.new, *self.dirty, *self.deleted):
            for table in inspect(entity).mapper.tables:
                if table.name.lower() in self._unit_guard.hidden:
                    raise self._unit_guard.refusal(table.name)

    # Before a flush -------------------------------------------------------------------------------------

    def _keys_to_change(self, move: Move, side: Side) -> list[Key]:
        model = _model(move, side)
        if model is None:
            return []
        found = [each for each in self.deleted if isinstance(each, model)]
        found += [each for each in self.dirty if isinstance(each, model) and self.is_modified(each)]
        return sorted(map(_key, found))

    def _ready(self, move: Move, side: Side, keys: list[Key]) -> None:
        """Lock rows that a flush will write, and carry first what another program wrote to their other side."""
        uow = self._uow
        if not uow.phase.compares:
            return
        sql = uow.statements[move]
        if uow.catalog.others_write_meanwhile:
            uow._rows(sql.hold(uow.phase.truth), among(keys))
        written = changes.of_rows(uow, move, keys)
        foreign = [key for key, of in written.items() if of.ops[side.other] and not of.ops[side]]
        if foreign:
            with self._unit_guard.carrying():
                carry(uow, move, foreign, side, "another program changed the other side before a session did")
            changes.forget(uow, (written[key] for key in foreign))
            mismatches.settle(uow, move, foreign, "repaired", "a session changed it")

    def _note_parents(self, move: Move) -> None:
        assert move.parent is not None
        rows = [each for each in (*self.deleted, *self.dirty) if isinstance(each, move.normalized)]
        if rows:
            self._left[move.name] = {key for each in rows for key in _links(each, move.parent.link.key)}

    def _note_new_parents(self) -> None:
        for parent in self._parents():
            table = parent.parent.table
            new = {_key(each) for each in self.new if inspect(each).mapper.local_table is table}
            self._made.setdefault(table.name, set()).update(new)

    def _parents(self) -> list[ParentStatements]:
        found = map(self._uow.statements.of_parent, self._uow.statements.mapping)
        return list({each.parent.table.name: each for each in found if each is not None}.values())

    # What -----------------------------------------------------------------------------------------------

    def _carry(self, *, whole: bool = False) -> None:
        """Carry what was recorded since the mark, and compare it.

        Args:
            whole: Whether any row may have been written, not only those that a flush knows.

        Raises:
            MismatchError: A row does not come out equal on the other side, or both sides of it were written.
        """
        moves = list(self._uow.statements.mapping)
        with self._unit_guard.carrying():
            written = changes.taken(self._uow, self._mark)
            # Rows of a later move may refer to rows of an earlier one: they come after them, and go before them.
            for move in moves:
                self._carry_move(move, written.get(move.name, {}), deleted=False)
            for move in reversed(moves):
                self._carry_move(move, written.get(move.name, {}), deleted=True)
            for move in moves:
                of_normalized = [ops for of in written.get(move.name, {}).values() if (ops := of.ops[Side.NORMALIZED])]
                if any(set(ops) - {"insert"} for ops in of_normalized):
                    self._settle_parents(move, whole=whole)

    def _carry_move(self, move: Move, rows: dict[Key, changes.Written], *, deleted: bool) -> None:
        if both := [key for key, of in rows.items() if all(of.ops.values())]:
            self._fail(move, both[0], "both sides of it were written in one flush")
        for side in Side:
            keys = [key for key, of in rows.items() if of.ops[side] and (of.ops[side][-1] == "delete") is deleted]
            if keys:
                self._carry_from(side, move, keys)

    def _carry_from(self, side: Side, move: Move, keys: list[Key]) -> None:
        uow = self._uow
        written = changes.of_rows(uow, move, keys)
        if foreign := [key for key, of in written.items() if of.ops[side.other]]:
            images.keep(uow, move, foreign, side.other, "a session changed it")
        if changes.forget(uow, written.values()):
            mismatches.settle(uow, move, written, "repaired", "a session changed it")
        carry(uow, move, keys, side.other, None)
        self._compare(move, keys)
        self._carried.update((model, key) for each in Side if (model := _model(move, each)) for key in keys)

    def _complete(self) -> None:
        """Complete rows where the normalized side alone is written: what is computed, their mark and their parent."""
        uow = self._uow
        with self._unit_guard.carrying():
            for move in uow.statements.mapping:
                model = move.normalized
                keys = [_key(each) for each in (*self.new, *self.dirty) if isinstance(each, model)]
                if keys:
                    adopt(uow, move, keys, None)
                    self._carried.update((model, key) for key in keys)
                self._settle_parents(move, whole=False)

    def _settle_parents(self, move: Move, *, whole: bool) -> None:
        """Remove parents that have lost their last row, and derive the others again."""
        uow, parent = self._uow, self._uow.statements.of_parent(move)
        if parent is None:
            return
        made = self._made.get(parent.parent.table.name, set())
        left = set(keys_of(uow, parent.all_without_rows, {})) if whole else self._left.get(move.name, set())
        if left - made:
            for statement in parent.settle:
                uow._execute(statement, among(left - made))

    def _compare(self, move: Move, keys: list[Key]) -> None:
        both, lone = self._uow.statements[move].both_sides
        wrong = [key for key, *equal in self._uow._rows(both, among(keys)) if not all(equal)]
        wrong += keys_of(self._uow, lone, among(keys))
        if wrong:
            found = mismatches.differences(self._uow, move, wrong[0])
            self._fail(move, wrong[0], ", ".join(f"{column or 'row'} {kind}" for column, kind in found))

    def _fail(self, move: Move, key: Key, why: str) -> None:
        error = errors.MismatchError(f"{move.name} {key}: {why}", pair=move.name, key=key, columns=[])
        self._uow._doom(error)
        raise error

    def _expire(self, *_: Any) -> None:
        """Let entities of both sides be read again: carrying, or its rollback, has changed what they stand for."""
        for model, key in self._carried:
            entity = self.identity_map.get(self.identity_key(model, key))
            if entity is not None:
                self.expire(entity)


def _model(move: Move, side: Side) -> Any:
    return move.legacy_model if side is Side.LEGACY else move.normalized


def _key(entity: Any) -> Key:
    """The key of a row; within a flush, also that of a row that was just added."""
    key: Key = inspect(entity).mapper.primary_key_from_instance(entity)[0]
    return key


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
