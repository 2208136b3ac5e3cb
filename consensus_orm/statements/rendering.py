"""Rendering: how statements are printed as SQL, and how keys and ranges of keys are bound."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    Dialect,
    FromClause,
    Integer,
    Select,
    SelectBase,
    Table,
    UpdateBase,
    and_,
    bindparam,
    case,
    false,
    func,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy import literal as sql_literal
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.expression import BindParameter, ClauseElement
from sqlalchemy.types import TypeEngine

from consensus_orm.declaration.expressions import Condition
from consensus_orm.declaration.keys import in_order, usable
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.row_keys import last, parts
from consensus_orm.errors import ConfigurationError
from consensus_orm.phase import Side

__all__ = [
    "FALSE",
    "TRUE",
    "Fired",
    "InKeys",
    "Overwritten",
    "Rendering",
    "Statement",
    "chunk_bounds",
    "constant",
    "each_value",
    "fitting",
    "in_keys",
    "in_range",
    "literal",
    "newest_first",
    "overwriting",
    "parameter",
    "parent_parameter",
    "quoted",
    "table_of",
]

TRUE: ColumnElement[bool] = true()
FALSE: ColumnElement[bool] = false()


class Statement(str):
    """A statement of ours as SQL with named parameters.

    Attributes:
        writes: Whether it writes rows, so that a unit of work that only reads refuses it.
    """

    __slots__ = ("writes",)
    writes: bool

    def __new__(cls, sql: str, *, writes: bool) -> Statement:
        """A statement is its text, with what it does."""
        statement = super().__new__(cls, sql)
        statement.writes = writes
        return statement


class Rendering(ABC):
    """How statements are printed for one kind of database.

    Everything about SQL on rows that is not a rule for values (`declaration.expressions`) and differs from database
    to database is here.
    """

    dialect: Dialect

    @property
    def name(self) -> str:
        """The kind of database, as SQLAlchemy calls it."""
        return self.dialect.name

    def render(self, statement: ClauseElement) -> Statement:
        """Print a statement as SQL with named parameters, its constants written out.

        Raises:
            ConfigurationError: A constant cannot be written, or this kind of database has no word for something.
        """
        try:
            return Statement(str(statement.compile(dialect=self.dialect)), writes=_writes(statement))
        except CompileError as error:
            raise ConfigurationError(
                f"an expression of the moves cannot be rendered as SQL for {self.name}: {error}",
                hint="change that expression in the declaration of the moves",
            ) from error

    @cache
    def printed(self, statement: ClauseElement) -> Statement:
        """Print a statement that is made once, at import: each is compiled once."""
        return self.render(statement)

    def check(self, rules: Iterable[ColumnElement[Any]], known: Collection[str] = ()) -> None:
        """Refuse rules of a declaration that cannot be said in SQL.

        Args:
            rules: The rules, as expressions.
            known: The parameters that are bound when statements run.

        Raises:
            ConfigurationError: One has a constant that cannot be written, or a parameter that nobody binds.
        """
        for rule in rules:
            self.render(rule)
            for part in visitors.iterate(rule):
                if isinstance(part, BindParameter) and part.required and part.key not in known:
                    raise ConfigurationError(
                        f"an expression of the declaration has a parameter {part.key!r} without a value",
                        hint="write its value in the declaration of the moves",
                    )

    @abstractmethod
    def typed(self, value: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """A bound value of a column's type, as an expression that the database reads as that type."""

    @abstractmethod
    def unindexed(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """A column for whose values no index is used, where the planner cannot tell which of two finds fewer rows."""

    @abstractmethod
    def in_bytes(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        """Text in the order of its bytes, whatever the collation of the database."""

    @abstractmethod
    def ignoring(
        self, into: Table, names: list[str], rows: SelectBase, unless: Overwritten | None = None
    ) -> ClauseElement:
        """Insert rows, and leave out those that are there or cannot be taken.

        Args:
            into: Where to.
            names: The columns.
            rows: Their values.
            unless: Which of those that are there are overwritten instead.
        """

    @abstractmethod
    def making(self, parents: Table, names: list[str], rows: Select[Any]) -> ClauseElement:
        """Insert the parents that rows need, and leave out those that are there; on a server, return those it made.

        Args:
            parents: Where to.
            names: The columns.
            rows: Their values.
        """

    @abstractmethod
    def count_and_list(
        self, key: ColumnElement[Any], within: ColumnElement[bool], wrong: ColumnElement[bool]
    ) -> Select[Any]:
        """How many rows there are, and the keys of some of them as a JSON array; looks at each row once.

        Args:
            key: The key of the rows.
            within: Which rows.
            wrong: Which of them to list.
        """

    @abstractmethod
    def next_key(self, pair: Move) -> str:
        """The next id, above whatever either side has or has ever given (rule 3)."""

    @abstractmethod
    def alone(self, parent: Parent) -> tuple[str, ...]:
        """The statements that let one transaction at a time make parents that no unique index tells apart."""

    @abstractmethod
    def lock(self, keys: Select[Any], *, removes: bool) -> tuple[str, ...]:
        """The statements that keep parents from being changed by others until the end of the transaction.

        Args:
            keys: The query for their keys, in order.
            removes: Whether some of them may be removed after it.
        """


def _writes(statement: ClauseElement) -> bool:
    """Whether a statement, or one in a WITH of it, inserts, updates or deletes."""
    return any(isinstance(part, UpdateBase) for part in visitors.iterate(statement))


@dataclass(frozen=True)
class Overwritten:
    """The rows that an insert overwrites: those under its key, on conditions.

    Attributes:
        key: The columns that are unique together.
        where: The conditions.
    """

    key: tuple[str, ...]
    where: Sequence[ColumnElement[bool]] = ()


def overwriting(statement: Any, names: list[str], unless: Overwritten) -> ClauseElement:
    """Let an insert overwrite rows that are there."""
    new = {name: statement.excluded[name] for name in names if name not in unless.key}
    where = and_(*unless.where) if unless.where else None
    overwrites: ClauseElement = (
        statement.on_conflict_do_update(index_elements=[*unless.key], set_=new, where=where)
        if new
        else statement.on_conflict_do_nothing(index_elements=[*unless.key])
    )
    return overwrites


class InKeys(Condition):
    """Whether the first argument is in the JSON array that the second one is."""

    name = "in_keys"
    inherit_cache = True


def in_keys(column: ColumnElement[Any], name: str = "_keys") -> ColumnElement[bool]:
    """Whether a key is in the JSON array bound to a parameter; one statement for any number of keys."""
    return InKeys(column, bindparam(name))


def in_range(column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a usable key lies between `_first` and `_last`, both included."""
    return and_(column.between(bindparam("_first"), bindparam("_last")), usable(column))


def chunk_bounds(
    rendering: Rendering, key: ColumnElement[Any], *, first: bool, where: Sequence[ColumnElement[bool]] = ()
) -> str:
    """The first key, last key and number of rows of the next chunk of at most `_rows` rows after `_after`."""
    behind = [in_order(key), *where] if first else [in_order(key), *where, key > bindparam("_after")]
    size, one = bindparam("_rows", type_=Integer), literal_column("1", Integer)
    keys = select(key).where(*behind).order_by(*parts(key)).limit(one)
    # Skipping to the last row of a full chunk costs a tenth of counting its rows (measured).
    ends = select(
        keys.scalar_subquery().label("first"),
        keys.offset(size - one).scalar_subquery().label("last"),
    ).subquery()
    is_full = ends.c.last.is_not(None)
    rest = last(key, in_order(key), *where)
    count = select(func.count()).select_from(table_of(key)).where(*behind).scalar_subquery()
    whole = case((is_full, size), else_=count)
    return rendering.render(select(ends.c.first, func.coalesce(ends.c.last, rest), whole))


def table_of(key: ColumnElement[Any]) -> FromClause:
    """Where the columns of a key stand."""
    of: FromClause = key.table
    return of


def each_value(column: ColumnElement[Any]) -> CTE:
    """The values of a column, each once, and a NULL: from one to the next in an index, past all rows that repeat it."""
    found = select(func.min(column).label("value")).cte("found", recursive=True)
    behind = select(func.min(column)).where(column > found.c.value).scalar_subquery()
    return found.union_all(select(behind).where(found.c.value.is_not(None)))


def constant(value: Any, of: Column[Any]) -> ColumnElement[Any]:
    """A constant of a declaration, as a value of a column."""
    return null() if value is None else sql_literal(value, of.type)


def newest_first(pair: Move, of: FromClause) -> list[ColumnElement[Any]]:
    """The order of rows everywhere: newest first, ties by key, newest first."""
    newest = [] if pair.newest is None else [of.c[pair.newest.key].desc()]
    return [*newest, *(each.desc() for each in parts(pair.key_in(of, Side.NORMALIZED)))]


def quoted(*names: str) -> str:
    """A name in SQL, and what it belongs to before it."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


@cache
def parameter(column: str) -> str:
    """The parameter that holds the value of a column; no column makes it one of ours, which begin with `_`."""
    return f"c_{column}" if re.fullmatch(r"\w+", column, re.ASCII) else f"x_{column.encode().hex()}"


def parent_parameter(parent: Parent) -> str:
    """The parameter that holds the key of a parent of a row."""
    return f"_parent_{parameter(parent.refers.key)}"


class Fired:
    """NEW or OLD of a trigger, with columns like a table; a real table of that name would be added to the FROM.

    Args:
        row: NEW or OLD.
        table: The table of the trigger.
    """

    def __init__(self, row: str, table: Table) -> None:
        self.c: dict[str, Any] = {c.name: literal_column(f"{row}.{quoted(c.name)}", c.type) for c in table.columns}


LONGEST_NAME = 63
"""Bytes that PostgreSQL keeps of a name; it drops the others, so that two long names may become one."""


def fitting(name: str) -> str:
    """A name of ours that PostgreSQL keeps whole: a long one ends in a hash of what is left out."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    kept = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return f"{kept}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def literal(text: str) -> str:
    """A text in SQL, on every kind of database: a backslash in it is one."""
    return "'" + text.replace("'", "''") + "'"
