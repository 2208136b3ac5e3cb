"""What lets roles that own nothing write through this package on a server: the view of the fence, and its triggers.

Revision 0012 made them. No unit of work can begin without the view, so an upgrade makes again what another program has
dropped.
"""

from __future__ import annotations

from typing import Any

from consensus_orm.databases.base import FENCE

__all__ = ["missing", "restore"]

ALLOWED = "consensus_orm_allowed"
LEDGERS = {
    "consensus_orm_history": "INSERT",
    "consensus_orm_mismatches": "UPDATE",
    "consensus_orm_changes": "DELETE",
}
"""What a role that owns nothing does to a ledger, each row as the function below allows it."""

# To lock a view is to lock its tables, with the rights of its owner. An aggregate cannot be updated.
_VIEW = f"CREATE VIEW {FENCE} AS SELECT count(*) AS phases FROM consensus_orm_state"

_FUNCTION = """
CREATE OR REPLACE FUNCTION consensus_orm_allow() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  ours BOOLEAN := coalesce(current_setting('consensus_orm.by', true), '') IN ('repository', 'carrier');
  allowed BOOLEAN := has_table_privilege(TG_RELID, 'TRUNCATE');
BEGIN
  IF allowed THEN NULL;
  ELSIF TG_OP = 'INSERT' THEN allowed := NEW.action = 'alarm';
  ELSIF TG_OP = 'UPDATE' THEN allowed := ours AND NEW.state IN (OLD.state, 'repaired');
  ELSE allowed := OLD.id < 0 OR ours AND EXISTS (SELECT FROM consensus_orm_state WHERE phase IN (2, 3));
  END IF;
  IF NOT allowed THEN
    RAISE EXCEPTION 'permission denied for table %', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
  END IF;
  IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
  RETURN NEW;
END $$
"""
"""Who may TRUNCATE a ledger owns it. Others add alarms, count and repair mismatches, and forget what they carried."""

_MISSING = (
    f"SELECT 'view {FENCE}' WHERE to_regclass('{FENCE}') IS NULL"
    f" UNION ALL SELECT 'trigger {ALLOWED} on ' || n.name FROM unnest(CAST(? AS TEXT[])) AS n(name) WHERE NOT EXISTS ("
    f"SELECT FROM pg_trigger AS t WHERE t.tgrelid = to_regclass(n.name) AND t.tgname = '{ALLOWED}'"
    " AND t.tgenabled IN ('O', 'A')) ORDER BY 1"
)


def missing(connection: Any) -> tuple[str, ...]:
    """What another program has dropped or disabled, in words; of a database at the newest revision.

    Args:
        connection: A connection of the driver.
    """
    rows = connection.execute(_MISSING, (list(LEDGERS),)).fetchall()
    return tuple(name for (name,) in rows)


def restore(connection: Any) -> None:
    """Make again what is missing.

    Args:
        connection: A connection of the driver, in a transaction of the owner of the tables.
    """
    lost = missing(connection)
    if f"view {FENCE}" in lost:
        connection.execute(_VIEW)
    tables = [table for table in LEDGERS if f"trigger {ALLOWED} on {table}" in lost]
    if tables:
        connection.execute(_FUNCTION)
        connection.execute("REVOKE EXECUTE ON FUNCTION consensus_orm_allow() FROM PUBLIC")
    for table in tables:
        connection.execute(f"DROP TRIGGER IF EXISTS {ALLOWED} ON {table}")
        connection.execute(
            f"CREATE TRIGGER {ALLOWED} BEFORE {LEDGERS[table]} ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION consensus_orm_allow()"
        )
