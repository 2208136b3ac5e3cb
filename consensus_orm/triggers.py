"""What the database itself does in each phase: notice writes that know one side only, refuse or record them.

| phase | legacy tables | normalized tables |
|---|---|---|
| EXPAND | updates and deletes of rows that are carried already are noticed | |
| DUAL_WRITE, CUTOVER | writes without an equal on the other side are noticed | the same |
| NORMALIZED | writes are refused | every write is recorded, for the way back |
| CONTRACT | | |

Noticing adds a row to `consensus_orm_changes` and leaves the writer alone: it sees neither an error nor
another last_insert_rowid() or changes(). Units of work are not noticed, because they write the normalized
side first, marked, and the legacy row then finds its equal. No function of ours is called: other programs
fire these triggers too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Table, exists, literal_column, not_

from consensus_orm.mapping import Mapping, Pair
from consensus_orm.phase import Phase
from consensus_orm.sql import words
from consensus_orm.statements import PairStatements, Statements

__all__ = ["PREFIX", "drop_all", "for_phase"]

PREFIX = "consensus_orm_"
"""How the names of all our triggers begin."""

FROZEN = "consensus_orm: the legacy tables are frozen since phase NORMALIZED; write through consensus_orm"
"""What a program is told that still writes a legacy table after they were frozen."""

INSTALLED = f"SELECT name FROM sqlite_master WHERE type = 'trigger' AND name GLOB '{PREFIX}*'"


def drop_all(names: list[str]) -> Iterator[str]:
    """Statements that remove triggers of ours.

    Args:
        names: What `INSTALLED` finds.
    """
    for name in names:
        yield f'DROP TRIGGER "{name}"'


def for_phase(phase: Phase, statements: Statements) -> Iterator[str]:
    """Statements that create the triggers of a phase.

    Args:
        phase: The phase to come.
        statements: The statements of the mapping.

    Yields:
        CREATE TRIGGER statements.
    """
    for pair in statements.mapping.pairs:
        words = _Triggers(statements[pair])
        if phase.compares:
            yield from words.notice_legacy()
            yield from words.notice_normalized()
        elif phase.writes_legacy:
            yield from words.notice_carried_legacy()
        elif phase.freezes_legacy:
            yield from words.freeze_legacy()
            yield from words.record_normalized()
    if phase.writes_normalized and phase.has_legacy:
        yield from _parent_triggers(statements.mapping)


class _New:
    """The NEW row of a trigger, with columns like a table; a table of that name would get into the FROM."""

    def __init__(self, table_: Table) -> None:
        self.c: dict[str, Any] = {c.name: literal_column(f'NEW."{c.name}"', c.type) for c in table_.columns}


def _new(table_: Table) -> Any:  # stands where a FromClause is asked for its columns
    return _New(table_)


def _trigger(name: str, event: str, table_: Table, condition: ColumnElement[bool] | None, *body: str) -> str:
    when = "" if condition is None else f" WHEN {words('sqlite').render(condition)}"
    statements = " ".join(f"{statement};" for statement in body)
    return f'CREATE TRIGGER "{PREFIX}{name}" {event} ON "{table_.name}"{when} BEGIN {statements} END'


def _log(pair: Pair, key: str, side: str, op: str, condition: str = "") -> str:
    values = f"'{pair.name}', {key}, '{side}', '{op}'"
    return f"INSERT INTO consensus_orm_changes (pair, key, side, op) SELECT {values}{condition}"


class _Triggers:
    """The triggers on the two tables of one pair."""

    def __init__(self, statements: PairStatements) -> None:
        self.statements = statements
        self.pair = statements.pair
        self.key = self.pair.key.name

    def notice_legacy(self) -> Iterator[str]:
        """Notice writes of legacy rows that leave no equal on the normalized side."""
        new = _new(self.pair.legacy_table)
        unequal = not_(self.statements.counterpart(self.statements.legacy_row(new), new.c[self.key]))
        yield self._notice("legacy", "insert", self.pair.legacy_table, unequal)
        yield self._notice("legacy", "update", self.pair.legacy_table, unequal | _moved(self.key))
        yield self._notice_delete("legacy", self.pair.legacy_table, self.pair.table)

    def notice_carried_legacy(self) -> Iterator[str]:
        """Notice changes of legacy rows that have been carried before."""
        new = _new(self.pair.legacy_table)
        carried = exists(literal_column("1")).where(self.pair.key == literal_column(f"OLD.{self.key}"))
        unequal = not_(self.statements.counterpart(self.statements.legacy_row(new), new.c[self.key]))
        yield self._notice("legacy", "update", self.pair.legacy_table, carried & (unequal | _moved(self.key)))
        yield self._notice_delete("legacy", self.pair.legacy_table, self.pair.table)

    def notice_normalized(self) -> Iterator[str]:
        """Notice writes of normalized rows by a program that leaves the legacy side alone."""
        new = _new(self.pair.table)
        own = self.pair.table
        unmarked = new.c[self.pair.marker.key].is_distinct_from(literal_column("1"))
        yield self._notice("normalized", "insert", own, unmarked)
        unequal = not_(self.statements.legacy_counterpart(new, new.c[self.key]))
        watched = [c.name for c in own.columns if c.name not in {a.key for a in (*self.pair.kept, self.pair.marker)}]
        yield self._notice("normalized", "update", own, unequal | _moved(self.key), of=watched)
        yield self._notice_delete("normalized", own, self.pair.legacy_table)

    def record_normalized(self) -> Iterator[str]:
        """Record every write of normalized rows."""
        for op in ("insert", "update"):
            yield self._notice("normalized", op, self.pair.table, None)
        yield self._notice_delete("normalized", self.pair.table, None)

    def freeze_legacy(self) -> Iterator[str]:
        """Refuse every write of legacy rows but our own carrying."""
        ours: ColumnElement[bool] = literal_column("(SELECT carrying FROM consensus_orm_state) = 0")
        for op in ("insert", "update", "delete"):
            name = f"{self.pair.name}_frozen_{op}"
            refuse = f"SELECT RAISE(ABORT, '{FROZEN}')"
            yield _trigger(name, f"BEFORE {op.upper()}", self.pair.legacy_table, ours, refuse)

    def _notice(
        self, side: str, op: str, table_: Table, when: ColumnElement[bool] | None, of: list[str] | None = None
    ) -> str:
        event = f"AFTER {op.upper()}" + (f" OF {', '.join(of)}" if of else "")
        body = [_log(self.pair, f"NEW.{self.key}", side, op)]
        if op == "update":  # a row that changes its key leaves the old one behind
            moved = f" WHERE OLD.{self.key} IS NOT NEW.{self.key}"
            body.append(_log(self.pair, f"OLD.{self.key}", side, "delete", moved))
        return _trigger(f"{self.pair.name}_{side}_{op}", event, table_, when, *body)

    def _notice_delete(self, side: str, table_: Table, other: Table | None) -> str:
        old: ColumnElement[Any] = literal_column(f"OLD.{self.key}")
        when = None if other is None else exists(literal_column("1")).where(other.c[self.key] == old)
        name = f"{self.pair.name}_{side}_delete"
        return _trigger(name, "AFTER DELETE", table_, when, _log(self.pair, f"OLD.{self.key}", side, "delete"))


def _moved(key: str) -> ColumnElement[bool]:
    return literal_column(f"OLD.{key}").is_distinct_from(literal_column(f"NEW.{key}"))


def _parent_triggers(mapping: Mapping) -> Iterator[str]:
    """Notice writes of parents that change what their rows say; what is derived may change freely."""
    for parent in mapping.parents:
        members, key = mapping.members(parent), parent.key.name
        body = [
            _log(
                pair,
                f'"{pair.table.name}"."{pair.key.name}"',
                "normalized",
                "update",
                f' FROM "{pair.table.name}" WHERE "{pair.link.key}" IN (OLD."{key}", NEW."{key}")',
            )
            for pair in members
            if pair.link is not None
        ]
        event = f"AFTER UPDATE OF {', '.join(mapping.said_by(parent))}"
        yield _trigger(f"{parent.table.name}_update", event, parent.table, None, *body)
        # Where a program has foreign keys off, the rows of a deleted parent stay behind without one.
        left = [statement.replace(f', NEW."{key}"', "") for statement in body]
        yield _trigger(f"{parent.table.name}_delete", "AFTER DELETE", parent.table, None, *left)
