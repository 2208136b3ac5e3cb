"""The triggers of each phase on PostgreSQL; `databases.sqlite.triggers` describes what they do.

A setting of the transaction, `consensus_orm.by`, identifies the writer: `repository` or `carrier` for this package,
`session` for the session of a unit of work, and nothing for other programs. A trigger is not called for other writers
than its own: the condition is in its WHEN. Functions run as their owner, so that the writes of a program without rights
on the control tables are recorded, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Table, literal_column, or_

from consensus_orm.databases.base import FROZEN, PREFIX, Trigger
from consensus_orm.databases.guard_record import normalized_tables
from consensus_orm.databases.postgresql.errors import UNMIRRORED
from consensus_orm.databases.postgresql.rendering import PostgresRendering
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.row_keys import row_key
from consensus_orm.models.base import LedgerKey
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.pairs import PairStatements, Statements
from consensus_orm.statements.rendering import Fired, fitting, literal, quoted

__all__ = ["INSTALLED", "for_phase", "tables"]

INSTALLED = (
    "SELECT t.tgname, CAST(CAST(t.tgrelid AS regclass) AS TEXT) FROM pg_trigger AS t JOIN pg_class AS c"
    " ON c.oid = t.tgrelid JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal AND t.tgenabled = 'O'"
    " AND pg_table_is_visible(c.oid)"
    f" AND t.tgname ^@ '{PREFIX}' AND p.proname = t.tgname"
)
"""The enabled triggers of this package, and their tables; each trigger has a function of the same name."""
BY = "coalesce(current_setting('consensus_orm.by', true), '')"
FOREIGN = f"{BY} NOT IN ('repository', 'carrier')"
NOT_CARRIED = f"{BY} <> 'carrier'"
NOT_WRITTEN_BY_US = f"{FOREIGN} OR {BY} = 'repository' AND pg_trigger_depth() > 0"
"""Also of a write that a trigger of another program makes of one of a repository."""
OF_A_SESSION = f"{BY} = 'session'"

EACH = "INSERT OR UPDATE OR DELETE"

WRITTEN_BY_SESSIONS = "consensus_orm_written"
"""The sequence that numbers what sessions write."""


def tables(phase: Phase, moves: Moves) -> list[Table]:
    """The mapped tables that exist in a phase."""
    found = normalized_tables(moves)
    return found + [pair.legacy_table for pair in moves.of_tables(Side.LEGACY)] if phase.has_legacy else found


def for_phase(phase: Phase, statements: Statements) -> Iterator[Trigger]:
    """The triggers of a phase; their statements create them, or enable them again.

    Args:
        phase: The phase to come.
        statements: The statements of the moves.
    """
    moves = statements.moves
    open_sides = [side for side, is_open in phase.sides if is_open]
    is_open = frozenset[str]().union(*(moves.tables(side) for side in open_sides))
    for table in tables(phase, moves):
        yield from _refuse_sessions(table, is_open=table.name.lower() in is_open)
    for pair in moves:
        if phase.compares:
            yield _note(statements[pair], Side.LEGACY, EACH, NOT_WRITTEN_BY_US, of_sessions=True)
            yield _note(statements[pair], Side.NORMALIZED, EACH, NOT_WRITTEN_BY_US, of_sessions=True)
        elif phase.writes_legacy:
            yield _note(statements[pair], Side.LEGACY, "UPDATE OR DELETE", NOT_CARRIED, carried_only=True)
        elif phase.freezes_legacy:
            yield from _freeze(pair)
            yield _note(statements[pair], Side.NORMALIZED, EACH, NOT_CARRIED)
    if phase.writes_normalized and phase.has_legacy:
        for pair in moves:
            yield from _note_parts(pair, FOREIGN if phase.compares else NOT_CARRIED, of_sessions=phase.compares)
            yield from _note_items(pair, FOREIGN if phase.compares else NOT_CARRIED, of_sessions=phase.compares)
        for parent in moves.parents:
            yield _note_members(parent, moves, of_sessions=phase.compares)


def _trigger(name: str, event: str, table: Table, when: str, body: str, *, each: str = "ROW") -> Trigger:
    own = quoted(fitting(PREFIX + name))
    function = (
        f"CREATE OR REPLACE FUNCTION {own}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path FROM CURRENT AS {literal(f'BEGIN {body} END')}"
    )
    trigger = (
        f"CREATE OR REPLACE TRIGGER {own} {event} ON {quoted(table.name)} FOR EACH {each} WHEN ({when})"
        f" EXECUTE FUNCTION {own}()"
    )
    # Another role could make it a trigger of its own table, and have it record what it likes.
    private = f"REVOKE EXECUTE ON FUNCTION {own}() FROM PUBLIC"
    return Trigger(fitting(PREFIX + name), table.name, (function, private, trigger))


def _log(pair: Move, key: str, side: Side, op: str, condition: str = "", *, of_sessions: bool = False) -> str:
    """Record a row.

    What a session wrote gets a negative number: it is carried and forgotten within the same transaction, and must
    neither be taken for a write of another program nor raise their counter, on which certificates depend.
    """
    values = f"{literal(pair.name)}, {key}, {literal(side.value)}, {op}{condition}"
    foreign = f"INSERT INTO consensus_orm_changes (pair, key, side, op) SELECT {values};"
    if not of_sessions:
        return foreign
    number = f"-nextval('{WRITTEN_BY_SESSIONS}')"
    own = f"INSERT INTO consensus_orm_changes (id, pair, key, side, op) SELECT {number}, {values};"
    return f"IF {OF_A_SESSION} THEN {own} ELSE {foreign} END IF;"


def _note(
    sql: PairStatements, side: Side, event: str, when: str, *, carried_only: bool = False, of_sessions: bool = False
) -> Trigger:
    """Record the rows of one side that are written under a condition."""
    pair = sql.pair
    old, new = (_key(pair, side, row) for row in ("OLD", "NEW"))
    own = quoted(pair.table.name)
    table = pair.legacy_table if side is Side.LEGACY else pair.table
    names = zip(pair.key_names(Side.NORMALIZED), pair.key_names(side), strict=True)
    same = " AND ".join(f"{quoted(its)} = OLD.{quoted(mine)}" for its, mine in names)
    carried = f" WHERE EXISTS (SELECT 1 FROM {own} WHERE {same})" if carried_only else ""
    # A body that reads a table which another program has dropped would fail each write.
    gone = f"IF to_regclass({literal(own)}) IS NULL THEN RETURN NULL; END IF; " if carried_only else ""
    if of_sessions:  # what a trigger does to rows that are there is seen by the comparison of each write
        gone = f"IF TG_OP <> 'INSERT' AND NOT ({FOREIGN}) THEN RETURN NULL; END IF; "
    moved = f"TG_OP = 'UPDATE' AND {old} IS DISTINCT FROM {new}"
    was, is_now = (_selected(sql, side, row) for row in ("OLD", "NEW"))
    if was and is_now:
        body = _noted(pair, side, was, is_now, carried, of_sessions=of_sessions)
        return _trigger(f"{pair.name}_{side}", f"AFTER {event}", table, when, f"{gone}{body}")
    did = f"CASE WHEN {moved} THEN 'move' ELSE lower(TG_OP) END"
    left = _log(pair, old, side, literal("delete"), carried, of_sessions=of_sessions)
    there = _log(pair, new, side, did, carried, of_sessions=of_sessions)
    body = (
        f"{gone}IF TG_OP = 'DELETE' OR ({moved}) THEN {left} END IF;"
        f" IF TG_OP <> 'DELETE' THEN {there} END IF; RETURN NULL;"
    )
    return _trigger(f"{pair.name}_{side}", f"AFTER {event}", table, when, body)


def _noted(pair: Move, side: Side, was: str, is_now: str, carried: str, *, of_sessions: bool) -> str:
    """Record rows of a move that shares its table: an update may make a row one of another move."""
    old, new = (_key(pair, side, row) for row in ("OLD", "NEW"))
    stays = f"{old} IS NOT DISTINCT FROM {new} AND {was} AND {is_now}"

    def log(row: str, op: str) -> str:
        return _log(pair, row, side, literal(op), carried, of_sessions=of_sessions)

    return (
        f"IF TG_OP = 'INSERT' THEN IF {is_now} THEN {log(new, 'insert')} END IF;"
        f" ELSIF TG_OP = 'DELETE' THEN IF {was} THEN {log(old, 'delete')} END IF;"
        f" ELSIF {stays} THEN {log(new, 'update')}"
        f" ELSE IF {was} THEN {log(old, 'delete')} END IF;"
        f" IF {is_now} THEN {log(new, 'move')} END IF; END IF; RETURN NULL;"
    )


def _selected(sql: PairStatements, side: Side, row: str) -> str | None:
    """Whether OLD or NEW is a row of a move, or of none and looked after with it; None where all rows are."""
    if not sql.pair.only[side]:
        return None
    table = sql.table_of(side)
    fired: Any = Fired(row, table)
    mine = or_(*sql.selected(side, fired), sql.unselected(side, fired))
    return f"coalesce({sql.render(mine)}, false)"


def _key(pair: Move, side: Side, row: str) -> str:
    """The key of a row of a trigger, as a ledger stores it."""
    return _as_stored(pair, *(f"{row}.{quoted(name)}" for name in pair.key_names(side)))


def _as_stored(pair: Move, *columns: str) -> str:
    """The columns of a key as a ledger stores them."""
    if pair.is_numbered:
        return columns[0]
    key = row_key([literal_column(name, of.type) for name, of in zip(columns, pair.keys, strict=True)])
    return str(PostgresRendering().render(LedgerKey(key)))


def _freeze(pair: Move) -> Iterator[Trigger]:
    body = f"RAISE EXCEPTION {literal(FROZEN)};"
    refused = f"{BY} NOT IN ('carrier', 'session')"  # a session is refused by a trigger of its own, which says more
    yield _trigger(f"{pair.name}_frozen", f"BEFORE {EACH}", pair.legacy_table, refused, body)
    name = f"{pair.name}_frozen_whole"
    yield _trigger(name, "BEFORE TRUNCATE", pair.legacy_table, refused, body, each="STATEMENT")


def _refuse_sessions(table: Table, *, is_open: bool) -> Iterator[Trigger]:
    """Refuse what a session writes to a side that is not open to it, and TRUNCATE, which no trigger sees by rows."""
    body = f"RAISE EXCEPTION 'past the repositories' USING ERRCODE = {literal(UNMIRRORED)}, TABLE = TG_TABLE_NAME;"
    if not is_open:
        yield _trigger(f"{table.name}_session", f"BEFORE {EACH}", table, OF_A_SESSION, body)
    name = f"{table.name}_session_whole"
    yield _trigger(name, "BEFORE TRUNCATE", table, OF_A_SESSION, body, each="STATEMENT")


def _note_parts(pair: Move, when: str, *, of_sessions: bool) -> Iterator[Trigger]:
    """Record writes of parts as changes of their row; where that is gone, its own delete is recorded."""
    for part in pair.beside_rows:
        by, key = quoted(part.by.name), quoted(pair.keys[0].name)
        rows, stored = f" FROM {quoted(pair.table.name)} WHERE {key}", _as_stored(pair, key)
        of_old, of_new = (
            _log(pair, stored, Side.NORMALIZED, literal("update"), f"{rows} = {row}.{by}", of_sessions=of_sessions)
            for row in ("OLD", "NEW")
        )
        body = (
            f"IF TG_OP <> 'INSERT' THEN {of_old} END IF; IF TG_OP = 'INSERT' THEN {of_new}"
            f" ELSIF TG_OP = 'UPDATE' THEN IF OLD.{by} <> NEW.{by} THEN {of_new} END IF; END IF; RETURN NULL;"
        )
        yield _trigger(f"{part.table.name}_part", f"AFTER {EACH}", part.table, when, body)


def _note_items(pair: Move, when: str, *, of_sessions: bool) -> Iterator[Trigger]:
    """Record writes of items that several rows refer to as changes of these rows."""
    for many in pair.children:
        if many.parent is None or many.link is None:
            continue
        above, key = many.parent.table, quoted(many.parent.key.name)
        rows = f" FROM {quoted(many.table.name)} WHERE {quoted(many.link.name)} IN (OLD.{key}, NEW.{key})"
        row = _as_stored(pair, quoted(many.by.name))
        log = _log(pair, row, Side.NORMALIZED, literal("update"), rows, of_sessions=of_sessions)
        body = f"{log} RETURN NULL;"
        yield _trigger(f"{pair.name}_{above.name}_item", "AFTER UPDATE", above, when, body)


def _note_members(parent: Parent, moves: Moves, *, of_sessions: bool) -> Trigger:
    """Record writes of parents that change the values of their rows; derived columns may change."""
    key = quoted(parent.key.name)
    body = " ".join(
        _log(
            pair,
            _key(pair, Side.NORMALIZED, quoted("t")),
            Side.NORMALIZED,
            literal("update"),
            f" FROM {quoted(pair.table.name)} AS t WHERE {quoted('t', link.name)} = OLD.{key}",
            of_sessions=of_sessions,
        )
        for pair, link in moves.links(parent)
    )
    columns = ", ".join(map(quoted, moves.said_by(parent)))
    event = f"AFTER DELETE OR UPDATE OF {columns}"
    return _trigger(f"{parent.table.name}_said", event, parent.table, FOREIGN, f"{body} RETURN NULL;")
