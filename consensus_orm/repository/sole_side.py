"""What a session writes where one side alone is written: the rows are named for the hook before the commit.

While both sides are written, triggers record the rows of every statement. Where one side is, none does, and nothing is
carried; so a statement that tells its rows by itself (a condition on their table, keys, new numbers) is asked for them,
and for any other one the rows that it may reach are compared before and after it. A row that is named and was not
changed does no harm: what follows reads the rows as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import blake2b
from itertools import product
from typing import Any

from sqlalchemy import Delete, Insert, Table, Update, UpdateBase, inspect, select
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import TextClause

from consensus_orm.declaration.move import Move
from consensus_orm.declaration.parts import Parent
from consensus_orm.ledgers.binding import Key, among
from consensus_orm.phase import Side
from consensus_orm.repository.records import key_from
from consensus_orm.statements.rendering import in_keys
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["SoleSide"]

MAY_WRITE = re.compile(r"\b(insert|update|delete|replace|merge|copy)\b", re.IGNORECASE)
"""What a text holds that writes rows."""


class SoleSide:
    """Names the rows that a session writes to the side that alone is written.

    Args:
        session: The session.
        uow: Its unit of work, which tells a hook what was written.
    """

    def __init__(self, session: Session, uow: UnitOfWork) -> None:
        self._session = session
        self._uow = uow
        self._side = uow.phase.truth
        self._told = False
        """Whether the rows of the statement that is being executed are named already."""
        self._before: dict[Move, dict[Key, bytes]] = {}

    # A flush --------------------------------------------------------------------------------------------

    def note_above(self, changed: Iterable[Any]) -> None:
        """Name the rows that refer to parents, or whose items do.

        Args:
            changed: Entities that a flush changes or deletes, before it and after it.
        """
        entities = [*changed]
        for move in self._uow.statements.moves if self._side is Side.NORMALIZED else ():
            for parent, statement in _referring(move):
                if keys := _held_by(entities, [(parent.model, parent.key)]):
                    rows = self._uow._rows(statement, among(keys))
                    self._uow._note_written(move, [move.key_of_row(row) for row in rows])

    def note_rows(self, written: Iterable[Any]) -> None:
        """Name the rows that a flush has written, and those whose parts or items it has, also by former keys.

        Args:
            written: Its entities.
        """
        entities = [*written]
        for move in self._uow.statements.moves:
            model = _model(move, self._side)
            names = [inspect(model).get_property_by_column(of).key for of in self._columns(move)]
            for each in (each for each in entities if isinstance(each, model)):
                keys = product(*(held(each, name) for name in names))
                self._uow._note_written(move, [self._stored(move, values) for values in keys])
            if self._side is Side.NORMALIZED:
                beside = _held_by(entities, ((part.model, part.by) for part in move.beside_rows))
                self._uow._note_written(move, [self._stored(move, [key]) for key in beside])

    # A statement ----------------------------------------------------------------------------------------

    def execute(self, state: ORMExecuteState) -> Any:
        """Execute a statement of the session that tells its rows by itself; None for any other one."""
        statement = state.statement
        if not isinstance(statement, Insert | Update | Delete) or not self._uow._is_followed:
            return None
        table = statement.table
        moves = self._reached_by({table.name.lower()}) if isinstance(table, Table) else []
        if len(moves) != 1 or self._table(moves[0]) != table or len(_writing(statement)) > 1:
            return None
        if isinstance(statement, Insert):
            return self._insert(state, statement, moves[0])
        return self._change(state, statement, moves[0])

    def _change(self, state: ORMExecuteState, statement: Update | Delete, move: Move) -> Any:
        if _sets(statement, self._names(move)):
            return None
        rows = _rows(state.parameters)
        given = [self._given(move, row) for row in rows]
        if statement.whereclause is None and isinstance(state.parameters, list):
            if None in given:
                return None
            return self._invoke(state, move, given)  # each set of parameters has the key of its row
        if any(key is not None for key in given):
            return None  # a new key, or what a condition calls so
        where = [] if statement.whereclause is None else [statement.whereclause]
        query = select(*self._columns(move)).select_from(statement.table).where(*where)
        found = [self._stored(move, row) for each in rows for row in self._session.execute(query, each)]
        return self._invoke(state, move, found)

    def _insert(self, state: ORMExecuteState, statement: Insert, move: Move) -> Any:
        told = (statement._post_values_clause, statement.select)
        if any(each is not None for each in told) or _sets(statement, self._names(move)):
            return None
        given = [self._given(move, row) for row in _rows(state.parameters)]
        if None not in given:
            return self._invoke(state, move, given)
        if not move.is_numbered:
            return None
        (key,) = self._columns(move)
        newest = self._session.execute(select(key).order_by(key.desc()).limit(1)).scalar() or 0
        if not isinstance(newest, int):
            return None  # a file may hold texts there
        assigned = self._uow.catalog.sequence(self._uow, key.table.name)
        above = newest if assigned is None else min(newest, assigned)
        result = self._invoke(state, move, [each for each in given if each is not None])
        self._uow._note_written(move, self._session.execute(select(key).where(key > above)).scalars().all())
        return result

    def _invoke(self, state: ORMExecuteState, move: Move, keys: Iterable[Key]) -> Any:
        self._uow._note_written(move, keys)
        self._told = True
        try:
            return state.invoke_statement()
        finally:
            self._told = False

    def before(self, context: Any) -> None:
        """Read the rows that a statement may reach which does not tell them."""
        if not self._told:
            self._before = {move: self._digests(move) for move in self._reached(context)}

    def after(self, context: Any) -> None:
        """Name the rows that it has written."""
        before, self._before = self._before, {}
        for move, was in before.items():
            now = self._digests(move)
            self._uow._note_written(move, [key for key in {**was, **now} if was.get(key) != now.get(key)])

    def _reached(self, context: Any) -> list[Move]:
        """The moves whose rows a statement may write, as far as its tables tell."""
        statement = getattr(context.compiled, "statement", None)
        if statement is None or isinstance(statement, TextClause):
            text = str(context.statement).lower()
            written = {*re.findall(r"\w+", text)} if MAY_WRITE.search(text) else set()
        else:
            written = {str(each.table.name).lower() for each in _writing(statement) if isinstance(each.table, Table)}
        moves = self._reached_by(written)
        return moves if moves and self._uow._is_followed else []

    def _reached_by(self, tables: set[str]) -> list[Move]:
        return [each for each in self._uow.statements.moves if not tables.isdisjoint(_tables(each, self._side))]

    def _digests(self, move: Move) -> dict[Key, bytes]:
        """The digests of all rows of a move, by their keys."""
        sql, found = self._uow.statements[move], dict[Key, bytes]()
        after, size = None, self._uow.settings.chunk_rows
        while rows := self._uow._rows(sql.page(self._side, first=after is None), {"_after": after, "_rows": size}):
            found.update(
                (move.key_of_row(row), blake2b(repr(row).encode("utf-8", "surrogatepass")).digest()) for row in rows
            )
            after = move.key_of_row(rows[-1])
        return found

    # Keys -----------------------------------------------------------------------------------------------

    def _table(self, move: Move) -> Table:
        return move.legacy_table if self._side is Side.LEGACY else move.table

    def _columns(self, move: Move) -> list[Any]:
        return [self._table(move).c[name] for name in move.key_names(self._side)]

    def _names(self, move: Move) -> list[set[str]]:
        """What each column of the key may be called in a statement: by its table, and by its class."""
        mapper = inspect(_model(move, self._side))
        return [{of.name, of.key, mapper.get_property_by_column(of).key} for of in self._columns(move)]

    def _given(self, move: Move, parameters: Mapping[str, Any]) -> Key:
        """The key that parameters hold; None where they do not hold all of it."""
        values = [next((parameters[n] for n in names if n in parameters), None) for names in self._names(move)]
        return None if None in values else self._stored(move, values)

    def _stored(self, move: Move, values: Iterable[Any]) -> Key:
        return key_from(move, self._uow.statements.rendering.name, values)


def _model(move: Move, side: Side) -> Any:
    return move.legacy_model if side is Side.LEGACY else move.normalized


def held(entity: Any, name: str) -> set[Any]:
    """The values that an attribute has, and had before it was changed."""
    history = inspect(entity).attrs[name].load_history()
    return {value for values in history for value in values or () if value is not None}


def _held_by(entities: Iterable[Any], columns: Iterable[tuple[Any, Any]]) -> set[Any]:
    """The values that entities of some classes have, and had, in a column."""
    found = set[Any]()
    for model, column in columns:
        name = inspect(model).get_property_by_column(column).key
        found |= {value for each in entities if isinstance(each, model) for value in held(each, name)}
    return found


def _digest(row: tuple[Any, ...]) -> bytes:
    return blake2b(repr(row).encode("utf-8", "surrogatepass")).digest()


def _rows(parameters: Any) -> list[Mapping[str, Any]]:
    return parameters if isinstance(parameters, list) else [parameters or {}]


def _writing(statement: Any) -> list[Any]:
    """The parts of a statement that insert, update or delete; itself, too."""
    return [each for each in visitors.iterate(statement) if isinstance(each, UpdateBase)]


def _sets(statement: Any, names: list[set[str]]) -> bool:
    """Whether a statement itself has a value for a column of the key."""
    keys = set[str]().union(*names)
    values = [getattr(statement, "_values", None) or {}, *(getattr(statement, "_multi_values", None) or ())]
    told = [each for row in values for each in (row if isinstance(row, list | tuple) else [row])]
    return any(getattr(column, "key", column) in keys for row in told for column in row)


@cache
def _tables(move: Move, side: Side) -> frozenset[str]:
    """The tables from which the rows of a side are made, in small letters."""
    if side is Side.LEGACY:
        return frozenset((move.legacy_table.name.lower(),))
    above = (parent.table for parent in move.parents)
    return frozenset(each.name.lower() for each in (move.table, *above, *move.tables_beside))


@cache
def _referring(move: Move) -> list[tuple[Parent, Any]]:
    """The tables that rows or their items refer to, each with the statement that finds the keys of these rows."""
    found: list[tuple[Parent, Any]] = [
        (parent, select(*move.keys).where(in_keys(parent.refers))) for parent in move.parents
    ]
    for many in move.children:
        found += [(of, select(many.by).where(in_keys(of.refers))) for of in many.parents]
    return found
