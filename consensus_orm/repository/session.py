"""The session that carries: what is written with it to one side is on both sides after each flush, or the flush fails.

The triggers on the mapped tables record the writes of a session like those of another program; so ORM, Core and text
are all seen. After each flush, and after each statement outside of one, the recorded rows are carried to the other
side with the statements of the declaration and compared, in the same transaction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, UpdateBase, event, inspect
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import TextClause

from consensus_orm import errors
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, mismatches
from consensus_orm.ledgers.binding import Key, among
from consensus_orm.phase import Side
from consensus_orm.repository.carrying import carry
from consensus_orm.repository.dual_write import DualWrite
from consensus_orm.repository.records import records_of
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["CarryingSession"]


class CarryingSession(Session):
    """A session of a unit of work whose writes of mapped tables are carried to the other side.

    Args:
        connection: The connection of the unit of work.
        uow: The unit of work.
    """

    def __init__(self, connection: Connection, uow: UnitOfWork) -> None:
        super().__init__(bind=connection, join_transaction_mode="create_savepoint")
        self._uow = uow
        self._mark = 0
        self._in_flush = False
        self._stale: list[tuple[Any, tuple[Any, ...]]] = []
        self._left: dict[str, set[Any] | None] = {}
        """By move the parents that rows may have left; None where any may have lost its last row."""
        if uow.phase.compares:
            event.listen(self, "before_flush", self._begin_flush)
            event.listen(self, "after_flush", self._end_flush)
            event.listen(self, "after_flush_postexec", self._expire)
            event.listen(connection, "before_cursor_execute", self._before)
            event.listen(connection, "after_cursor_execute", self._after)

    # When -----------------------------------------------------------------------------------------------

    def _begin_flush(self, *_: Any) -> None:
        self._in_flush, self._mark = True, self._uow.catalog.last_change(self._uow)
        for pair in self._uow.statements.mapping:
            if pair.parent is not None:
                changed = [each for each in (*self.deleted, *self.dirty) if isinstance(each, pair.normalized)]
                self._left[pair.name] = {key for each in changed for key in _links(each, pair.parent.link.key)}

    def _end_flush(self, *_: Any) -> None:
        self._in_flush = False
        self._carry()

    def _before(self, _: Any, __: Any, ___: str, ____: Any, context: Any, *_____: Any) -> None:
        if not self._in_flush and _may_write(context):
            self._mark = self._uow.catalog.last_change(self._uow)
            self._left = dict.fromkeys(pair.name for pair in self._uow.statements.mapping)

    def _after(self, _: Any, __: Any, ___: str, ____: Any, context: Any, *_____: Any) -> None:
        if not self._in_flush and _may_write(context):
            self._carry()
            self._expire()

    # What -----------------------------------------------------------------------------------------------

    def _carry(self) -> None:
        """Carry what was recorded since the mark, and compare it.

        Raises:
            MismatchError: A row does not come out equal on the other side, or both sides of it were written.
        """
        uow = self._uow
        written = changes.since(uow, self._mark)
        if not written:
            return
        uow.catalog.forget_changes(uow, after=self._mark)
        for name, rows in written.items():
            pair = uow.statements.mapping[name]
            both = [key for key, of in rows.items() if all(of.ops.values())]
            if both:
                self._fail(pair, both[0], "both sides of it were written in one flush")
            DualWrite(uow, pair).keep_foreign(set(rows), "a session changed it")
            for side in Side:
                keys = [key for key, of in rows.items() if of.ops[side]]
                carry(uow, pair, keys, side.other, None)
                self._compare(pair, keys)
                self._stale += _identities(uow, pair, keys)
            if any(of.ops[Side.NORMALIZED] for of in rows.values()):
                self._settle_parents(pair)

    def _settle_parents(self, pair: Move) -> None:
        """Remove parents that have lost their last row, and derive the others again."""
        parent = self._uow.statements.of_parent(pair)
        if parent is None:
            return
        left = self._left.get(pair.name)
        if left is None:
            self._uow._execute(parent.prune_all)
            return
        for statement in parent.settle if left else ():
            self._uow._execute(statement, among(left))

    def _compare(self, pair: Move, keys: list[Key]) -> None:
        for key in keys:
            if found := mismatches.differences(self._uow, pair, key):
                self._fail(pair, key, ", ".join(f"{column or 'row'} {kind}" for column, kind in found))

    def _fail(self, pair: Move, key: Key, why: str) -> None:
        error = errors.MismatchError(f"{pair.name} {key}: {why}", pair=pair.name, key=key, columns=[])
        self._uow._doom(error)
        raise error

    def _expire(self, *_: Any) -> None:
        """Let entities of both sides be read again: carrying has changed what they stand for."""
        stale, self._stale = self._stale, []
        for model, key in stale:
            entity = self.identity_map.get(self.identity_key(model, key))
            if entity is not None:
                self.expire(entity)


def _identities(uow: UnitOfWork, pair: Move, keys: Iterable[Key]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The classes of both sides and the primary keys of rows, as a session knows its entities."""
    records = records_of(pair, uow.statements.rendering.name)
    for key, side in itertools.product(keys, Side):
        told = dict(zip(pair.key_names(side), records.key_parts(key), strict=True))
        model, table = (pair.legacy_model, pair.legacy_table) if side is Side.LEGACY else (pair.normalized, pair.table)
        primary = [of.name for of in table.primary_key.columns]
        if told.keys() >= set(primary):  # else no entity is known by the key of the move
            yield model, tuple(told[name] for name in primary)


def _links(entity: Any, link: str) -> set[Any]:
    """The parents that a row refers to, before and after its change."""
    history = inspect(entity).attrs[link].load_history()
    return {key for keys in history for key in keys or () if key is not None}


def _may_write(context: Any) -> bool:
    """Whether a statement may write rows: text may, of SQLAlchemy's own those that insert, update or delete."""
    compiled = getattr(context, "compiled", None)
    statement = getattr(compiled, "statement", None)
    return compiled is None or isinstance(statement, UpdateBase | TextClause)
