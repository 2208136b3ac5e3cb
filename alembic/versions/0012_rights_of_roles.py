"""Let roles that own nothing write through this package on a server, and change neither the phase nor the ledgers.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

LEDGERS = {
    "consensus_orm_history": "INSERT",
    "consensus_orm_mismatches": "UPDATE",
    "consensus_orm_changes": "DELETE",
}
"""What a role that owns nothing does to a ledger, each row as the function below allows it."""

# To lock a view is to lock its tables, with the rights of its owner. An aggregate cannot be updated.
FENCE = "CREATE VIEW consensus_orm_fence AS SELECT count(*) AS phases FROM consensus_orm_state"

FUNCTION = """
CREATE FUNCTION consensus_orm_allow() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
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


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(FENCE)
    op.execute(FUNCTION)
    op.execute("REVOKE EXECUTE ON FUNCTION consensus_orm_allow() FROM PUBLIC")
    for table, event in LEDGERS.items():
        op.execute(
            f"CREATE TRIGGER consensus_orm_allowed BEFORE {event} ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION consensus_orm_allow()"
        )


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in LEDGERS:
        op.execute(f"DROP TRIGGER consensus_orm_allowed ON {table}")
    op.execute("DROP FUNCTION consensus_orm_allow()")
    op.execute("DROP VIEW consensus_orm_fence")
