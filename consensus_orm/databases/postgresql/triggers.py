"""The triggers of each phase on PostgreSQL; `databases.sqlite.triggers` describes what they do.

A setting of the transaction, `consensus_orm.by`, identifies the writer: `repository` or `carrier` for this package,
`session` for the session of a unit of work, and nothing for other programs. A trigger is not called for other writers
than its own: the condition is in its WHEN. Functions run as their owner, so that the writes of a program without rights
on the control tables are recorded, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Table, literal_column

from consensus_orm.databases.base import FROZEN, PREFIX, Trigger
from consensus_orm.databases.postgresql.errors import UNMIRRORED
from consensus_orm.databases.postgresql.rendering import PostgresRendering
from consensus_orm.declaration.move import Move, Parent
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.row_keys import row_key
from consensus_orm.models.base import LedgerKey
from consensus_orm.phase import Phase, Side
from consensus_orm.statements.pairs import Statements
from consensus_orm.statements.rendering import fitting, literal, quoted

__all__ = ["INSTALLED", "for_phase", "tables"]

INSTALLED = (
    "SELECT t.tgname, CAST(CAST(t.tgrelid AS regclass) AS TEXT) FROM pg_trigger AS t JOIN pg_class AS c"
    " ON c.oid = t.tgrelid JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal AND t.tgenabled = 'O'"
    " AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('consensus_orm_state'))"
    f" AND t.tgname ^@ '{PREFIX}' AND p.proname = t.tgname"
)
"""The enabled triggers of this package, and their tables; each trigger has a function of the same name."""
BY = "coalesce(current_setting('consensus_orm.by', true), '')"
FOREIGN = f"{BY} NOT IN ('repository', 'carrier')"
NOT_CARRIED = f"{BY} <> 'carrier'"
OF_A_SESSION = f"{BY} = 'session'"

EACH = "INSERT OR UPDATE OR DELETE"


def tables(phase: Phase, mapping: Moves) -> list[Table]:
    """The mapped tables that exist in a phase."""
    found = [parent.table for parent in mapping.parents] + [pair.table for pair in mapping]
    return found + [pair.legacy_table for pair in mapping] if phase.has_legacy else found


def for_phase(phase: Phase, statements: Statements) -> Iterator[Trigger]:
    """The triggers of a phase; their statements create them, or enable them again.

    Args:
        phase: The phase to come.
        statements: The statements of the mapping.
    """
    mapping = statements.mapping
    for table in tables(phase, mapping):
        yield from _refuse_sessions(table)
    for pair in mapping:
        if phase.compares:
            yield _note(pair, Side.LEGACY, EACH, FOREIGN)
            yield _note(pair, Side.NORMALIZED, EACH, FOREIGN)
        elif phase.writes_legacy:
            yield _note(pair, Side.LEGACY, "UPDATE OR DELETE", NOT_CARRIED, carried_only=True)
        elif phase.freezes_legacy:
            yield from _freeze(pair)
            yield _note(pair, Side.NORMALIZED, EACH, NOT_CARRIED)
    if phase.writes_normalized and phase.has_legacy:
        for parent in mapping.parents:
            yield _note_members(parent, mapping)


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
    return Trigger(fitting(PREFIX + name), table.name, (function, trigger))


def _log(pair: Move, key: str, side: Side, op: str) -> str:
    values = f"{literal(pair.name)}, {key}, {literal(side.value)}, {op}"
    return f"INSERT INTO consensus_orm_changes (pair, key, side, op) SELECT {values}"


def _note(pair: Move, side: Side, event: str, when: str, *, carried_only: bool = False) -> Trigger:
    """Record the rows of one side that are written under a condition."""
    old, new = (_key(pair, side, row) for row in ("OLD", "NEW"))
    own = quoted(pair.table.name)
    table = pair.legacy_table if side is Side.LEGACY else pair.table
    names = zip(pair.key_names(Side.NORMALIZED), pair.key_names(side), strict=True)
    same = " AND ".join(f"{quoted(its)} = OLD.{quoted(mine)}" for its, mine in names)
    carried = f" WHERE EXISTS (SELECT 1 FROM {own} WHERE {same})" if carried_only else ""
    # A body that reads a table which another program has dropped would fail each write.
    gone = f"IF to_regclass({literal(own)}) IS NULL THEN RETURN NULL; END IF; " if carried_only else ""
    moved = f"TG_OP = 'UPDATE' AND {old} IS DISTINCT FROM {new}"
    did = f"CASE WHEN {moved} THEN 'move' ELSE lower(TG_OP) END"
    body = (
        f"{gone}IF TG_OP = 'DELETE' OR ({moved}) THEN {_log(pair, old, side, literal('delete'))}{carried}; END IF;"
        f" IF TG_OP <> 'DELETE' THEN {_log(pair, new, side, did)}{carried}; END IF; RETURN NULL;"
    )
    return _trigger(f"{pair.name}_{side}", f"AFTER {event}", table, when, body)


def _key(pair: Move, side: Side, row: str) -> str:
    """The key of a row of a trigger, as a ledger stores it."""
    names = [f"{row}.{quoted(name)}" for name in pair.key_names(side)]
    if pair.is_numbered:
        return names[0]
    key = row_key([literal_column(name, of.type) for name, of in zip(names, pair.keys, strict=True)])
    return str(PostgresRendering().render(LedgerKey(key)))


def _freeze(pair: Move) -> Iterator[Trigger]:
    body = f"RAISE EXCEPTION {literal(FROZEN)};"
    refused = f"{BY} NOT IN ('carrier', 'session')"  # a session is refused by a trigger of its own, which says more
    yield _trigger(f"{pair.name}_frozen", f"BEFORE {EACH}", pair.legacy_table, refused, body)
    name = f"{pair.name}_frozen_whole"
    yield _trigger(name, "BEFORE TRUNCATE", pair.legacy_table, refused, body, each="STATEMENT")


def _refuse_sessions(table: Table) -> Iterator[Trigger]:
    body = f"RAISE EXCEPTION 'past the repositories' USING ERRCODE = {literal(UNMIRRORED)}, TABLE = TG_TABLE_NAME;"
    yield _trigger(f"{table.name}_session", f"BEFORE {EACH}", table, OF_A_SESSION, body)
    name = f"{table.name}_session_whole"
    yield _trigger(name, "BEFORE TRUNCATE", table, OF_A_SESSION, body, each="STATEMENT")


def _note_members(parent: Parent, mapping: Moves) -> Trigger:
    """Record writes of parents that change the values of their rows; derived columns may change."""
    key = quoted(parent.key.name)
    body = " ".join(
        _log(pair, _key(pair, Side.NORMALIZED, quoted("t")), Side.NORMALIZED, literal("update"))
        + f" FROM {quoted(pair.table.name)} AS t WHERE {quoted('t', pair.link.name)} = OLD.{key};"
        for pair in mapping.members(parent)
        if pair.link is not None
    )
    columns = ", ".join(map(quoted, mapping.said_by(parent)))
    event = f"AFTER DELETE OR UPDATE OF {columns}"
    return _trigger(f"{parent.table.name}_said", event, parent.table, FOREIGN, f"{body} RETURN NULL;")
