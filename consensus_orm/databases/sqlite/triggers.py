"""The triggers of each phase: they record or refuse writes of programs that know one side only.

| phase | legacy tables | normalized tables |
|---|---|---|
| EXPAND | updates and deletes of rows that were carried are recorded | |
| DUAL_WRITE, CUTOVER | writes without an equal row on the other side are recorded | the same |
| NORMALIZED | writes are refused | every write is recorded, for the way back |
| CONTRACT | | |

A recorded write adds a row to `consensus_orm_changes`. Its program sees neither an error nor another
last_insert_rowid() or changes(). Units of work are not recorded: they write the normalized side first, marked, and the
legacy row then has an equal. The triggers call no function of this package, because other programs fire them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, exists, false, func, literal_column, not_, or_

from consensus_orm.databases.base import FROZEN, PREFIX, Trigger
from consensus_orm.databases.sqlite.expressions import in_triggers
from consensus_orm.databases.sqlite.rendering import SQLiteRendering
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.pairs import PairStatements, Statements
from consensus_orm.statements.rendering import Fired, literal, quoted

__all__ = ["for_phase"]


def for_phase(phase: Phase, statements: Statements) -> Iterator[Trigger]:
    """The triggers of a phase.

    Args:
        phase: The phase to come.
        statements: The statements of the moves.
    """
    for pair in statements.moves:
        printed = _Triggers(statements[pair])
        if phase.compares:
            yield from printed.notice_legacy()
            yield from printed.notice_normalized()
        elif phase.writes_legacy:
            yield from printed.notice_carried_legacy()
        elif phase.freezes_legacy:
            yield from printed.freeze_legacy()
            yield from printed.record_normalized()
    if phase.writes_normalized and phase.has_legacy:
        yield from _parent_triggers(statements.moves)
        for pair in statements.moves:
            yield from _part_triggers(pair, NOT_CARRYING if phase.compares else None)
            yield from _item_triggers(pair, NOT_CARRYING if phase.compares else None)


NOT_CARRYING: ColumnElement[bool] = literal_column("(SELECT carrying FROM consensus_orm_state) = 0")
"""That no transaction of this package carries rows past the triggers."""


def _new(table_: Table) -> Any:  # takes the place of a FromClause, for its columns
    return Fired("NEW", table_)


def _trigger(name: str, event: str, table_: Table, condition: ColumnElement[bool] | None, *body: str) -> Trigger:
    when = "" if condition is None else f" WHEN {SQLiteRendering().render(condition)}"
    statements = " ".join(f"{statement};" for statement in body)
    create = f"CREATE TRIGGER {quoted(PREFIX + name)} {event} ON {quoted(table_.name)}{when} BEGIN {statements} END"
    return Trigger(PREFIX + name, table_.name, (create,))


def _log(pair: Move, key: str, side: Side, op: str, condition: str = "") -> str:
    values = f"{literal(pair.name)}, {key}, {literal(side.value)}, {literal(op)}"
    return f"INSERT INTO consensus_orm_changes (pair, key, side, op) SELECT {values}{condition}"


class _Triggers:
    """The triggers on the two tables of one pair."""

    def __init__(self, statements: PairStatements) -> None:
        self.statements = statements
        self.pair = statements.pair

    def notice_legacy(self) -> Iterator[Trigger]:
        """Record writes of legacy rows without an equal on the normalized side."""
        if self.pair.is_recorded_blindly:
            yield from self._notice_all(Side.LEGACY)
            return
        yield self._notice(Side.LEGACY, "insert", self._unequal_legacy)
        yield self._notice(Side.LEGACY, "update", self._unequal_legacy | self._moved(Side.LEGACY))
        yield self._notice_delete(Side.LEGACY, self.pair.key)

    def notice_carried_legacy(self) -> Iterator[Trigger]:
        """Record changes of legacy rows that were carried."""
        carried = exists(literal_column("1")).where(
            self.pair.key == self._key("OLD", Side.LEGACY), *self.statements.selected(Side.NORMALIZED)
        )
        changed = NOT_CARRYING if self.pair.is_recorded_blindly else self._unequal_legacy | self._moved(Side.LEGACY)
        yield self._notice(Side.LEGACY, "update", carried & changed)
        yield self._notice_delete(Side.LEGACY, self.pair.key)

    def notice_normalized(self) -> Iterator[Trigger]:
        """Record writes of normalized rows by a program that does not write the legacy side."""
        if self.pair.is_recorded_blindly:
            yield from self._notice_all(Side.NORMALIZED)
            return
        own, new, marker = self.pair.table, _new(self.pair.table), self.pair.marker
        unequal: ColumnElement[bool] = not_(self.statements.legacy_counterpart(new, self._key("NEW", Side.NORMALIZED)))
        unequal = self._of_move(Side.NORMALIZED, "NEW", unequal)
        # A unit of work writes this side first: only a mark, of the row or of the transaction, tells it from others.
        foreign: ColumnElement[bool] = unequal & NOT_CARRYING
        if marker is not None:
            unmarked = new.c[marker.key].is_distinct_from(literal_column("1"))
            foreign = self._of_move(Side.NORMALIZED, "NEW", unmarked)
        yield self._notice(Side.NORMALIZED, "insert", foreign)
        watched = [of.name for of in own.columns if of not in {*self.pair.kept, marker}]
        yield self._notice(Side.NORMALIZED, "update", unequal | self._moved(Side.NORMALIZED), of=watched)
        yield self._notice_delete(Side.NORMALIZED, self.statements.legacy_key)

    def _notice_all(self, side: Side) -> Iterator[Trigger]:
        """Record every write of another program: whether the row has an equal is not for a trigger to say."""
        yield self._notice(side, "insert", self._of_move(side, "NEW", NOT_CARRYING))
        yield self._notice(side, "update", self._either(side, NOT_CARRYING))
        other = self.pair.key if side is Side.LEGACY else self.statements.legacy_key
        yield self._notice_delete(side, other)

    def record_normalized(self) -> Iterator[Trigger]:
        """Record every write of normalized rows."""
        yield self._notice(Side.NORMALIZED, "insert", self._selected(Side.NORMALIZED, "NEW"))
        yield self._notice(Side.NORMALIZED, "update", self._either(Side.NORMALIZED, None))
        yield self._notice_delete(Side.NORMALIZED, None)

    def freeze_legacy(self) -> Iterator[Trigger]:
        """Refuse every write of legacy rows, except when this package carries them."""
        for op in ("insert", "update", "delete"):
            name = f"{self.pair.name}_frozen_{op}"
            refuse = f"SELECT RAISE(ABORT, {literal(FROZEN)})"
            yield _trigger(name, f"BEFORE {op.upper()}", self.pair.legacy_table, NOT_CARRYING, refuse)

    def _notice(self, side: Side, op: str, when: ColumnElement[bool] | None, of: list[str] | None = None) -> Trigger:
        event = f"AFTER {op.upper()}" + (f" OF {', '.join(map(quoted, of))}" if of else "")
        old, new = self._old(side), self._new(side)
        body = [_log(self.pair, new, side, op)]
        if op == "update":  # a row that changes its key also counts as a delete of the old key
            stays, came, went = f"{old} IS {new}", f"{old} IS NOT {new}", f"{old} IS NOT {new}"
            was, is_now = self._selected(side, "OLD"), self._selected(side, "NEW")
            if was is not None and is_now is not None:  # and one that is of another move from now on, or was before
                was_mine, is_mine = (SQLiteRendering().render(each) for each in (was, is_now))
                stays = f"{old} IS {new} AND {was_mine} AND {is_mine}"
                came = f"{is_mine} AND NOT ({old} IS {new} AND {was_mine})"
                went = f"{was_mine} AND NOT ({old} IS {new} AND {is_mine})"
            body = [
                _log(self.pair, new, side, "update", f" WHERE {stays}"),
                _log(self.pair, new, side, "move", f" WHERE {came}"),
                _log(self.pair, old, side, "delete", f" WHERE {went}"),
            ]
        return _trigger(f"{self.pair.name}_{side}_{op}", event, self.statements.table_of(side), when, *body)

    def _notice_delete(self, side: Side, other: ColumnElement[Any] | None) -> Trigger:
        """Record deletes; where the key of the other side is given, only of rows that it has."""
        old = self._old(side)
        when = self._selected(side, "OLD")
        if other is not None:
            there = exists(literal_column("1")).where(
                other == self._key("OLD", side), *self.statements.selected(side.other)
            )
            when = self._of_move(side, "OLD", there)
        body = _log(self.pair, old, side, "delete")
        return _trigger(f"{self.pair.name}_{side}_delete", "AFTER DELETE", self.statements.table_of(side), when, body)

    def _key(self, row: str, side: Side) -> ColumnElement[Any]:
        of: ColumnElement[Any] = self.pair.key_in(Fired(row, self.statements.table_of(side)), side)
        return of

    def _old(self, side: Side) -> str:
        return in_triggers(self._key("OLD", side), SQLiteRendering().render)

    def _new(self, side: Side) -> str:
        return in_triggers(self._key("NEW", side), SQLiteRendering().render)

    def _moved(self, side: Side) -> ColumnElement[bool]:
        moved = literal_column(self._old(side)).is_distinct_from(literal_column(self._new(side)))
        was, is_now = self._selected(side, "OLD"), self._selected(side, "NEW")
        if was is None or is_now is None:
            return moved
        return or_(and_(was, is_now, moved), was.is_distinct_from(is_now))

    def _selected(self, side: Side, row: str) -> ColumnElement[bool] | None:
        """Whether NEW or OLD is a row of the move, or of none and looked after with it; None where all rows are."""
        if not self.pair.only[side]:
            return None
        fired: Any = Fired(row, self.statements.table_of(side))
        mine = and_(*self.statements.selected(side, fired))
        return func.coalesce(or_(mine, self.statements.unselected(side, fired)), false())

    def _either(self, side: Side, condition: ColumnElement[bool] | None) -> ColumnElement[bool] | None:
        """A condition for a row that is one of the move before or after an update."""
        was, is_now = (self._selected(side, row) for row in ("OLD", "NEW"))
        if was is None or is_now is None:
            return condition
        return or_(was, is_now) if condition is None else and_(or_(was, is_now), condition)

    def _of_move(self, side: Side, row: str, condition: ColumnElement[bool]) -> ColumnElement[bool]:
        selected = self._selected(side, row)
        return condition if selected is None else and_(selected, condition)

    @property
    def _unequal_legacy(self) -> ColumnElement[bool]:
        """Whether the legacy row that is written has no equal on the normalized side."""
        new = _new(self.pair.legacy_table)
        equal = self.statements.counterpart(self.statements.legacy_row(new), self._key("NEW", Side.LEGACY))
        return self._of_move(Side.LEGACY, "NEW", not_(equal))


def _parent_triggers(moves: Moves) -> Iterator[Trigger]:
    """Record writes of parents that change the values of their rows; derived columns may change."""
    for parent in moves.parents:
        key = quoted(parent.key.name)
        event = f"AFTER UPDATE OF {', '.join(map(quoted, moves.said_by(parent)))}"
        moved = _note_members(parent, moves, f"OLD.{key}", f"NEW.{key}")
        yield _trigger(f"{parent.table.name}_update", event, parent.table, None, *moved)
        # With foreign keys off, a program can delete a parent and leave its rows.
        left = _note_members(parent, moves, f"OLD.{key}")
        yield _trigger(f"{parent.table.name}_delete", "AFTER DELETE", parent.table, None, *left)


def _part_triggers(pair: Move, when: ColumnElement[bool] | None) -> Iterator[Trigger]:
    """Record writes of parts as changes of their row; where that is gone, its own delete is recorded."""
    for part in pair.beside_rows:
        by, own, key = quoted(part.by.name), quoted(pair.table.name), quoted(pair.keys[0].name)
        for op, rows in (("insert", ["NEW"]), ("update", ["OLD", "NEW"]), ("delete", ["OLD"])):
            places = ", ".join(f"{row}.{by}" for row in rows)
            changed = _log(pair, key, Side.NORMALIZED, "update", f" FROM {own} WHERE {key} IN ({places})")
            yield _trigger(f"{part.table.name}_part_{op}", f"AFTER {op.upper()}", part.table, when, changed)


def _item_triggers(pair: Move, when: ColumnElement[bool] | None) -> Iterator[Trigger]:
    """Record writes of items that several rows refer to as changes of these rows."""
    for many in pair.children:
        if many.parent is None or many.link is None:
            continue
        above, key = many.parent.table, quoted(many.parent.key.name)
        rows = f" FROM {quoted(many.table.name)} WHERE {quoted(many.link.name)} IN (OLD.{key}, NEW.{key})"
        changed = _log(pair, quoted(many.by.name), Side.NORMALIZED, "update", rows)
        event = f"AFTER UPDATE OF {quoted(many.item.name)}, {key}"
        yield _trigger(f"{pair.name}_{above.name}_item", event, above, when, changed)


def _note_members(parent: Parent, moves: Moves, *keys: str) -> Iterator[str]:
    for pair, link in moves.links(parent):
        rows = f" FROM {quoted(pair.table.name)} WHERE {quoted(link.name)} IN ({', '.join(keys)})"
        key = pair.key_in(Fired(quoted(pair.table.name), pair.table), Side.NORMALIZED)
        yield _log(pair, in_triggers(key, SQLiteRendering().render), Side.NORMALIZED, "update", rows)
