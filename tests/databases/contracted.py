"""Databases at CONTRACT with saved tables and rows."""

from __future__ import annotations

from consensus_orm import ConsensusStore
from consensus_orm.settings import Settings
from tests.support.databases import Database

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0, synchronous="OFF")

SPOIL = {
    "sqlite": (
        "CREATE TRIGGER spoil AFTER INSERT ON agent_outputs WHEN NEW.id IN (5, 6) BEGIN"
        " UPDATE agent_outputs SET content = NEW.content || ' ' WHERE id = NEW.id; END;"
        " CREATE TRIGGER spoil_too AFTER UPDATE ON agent_outputs WHEN NEW.id IN (5, 6) BEGIN"
        " UPDATE agent_outputs SET content = NEW.content || ' ' WHERE id = NEW.id; END"
    ),
    "postgresql": (
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.content := NEW.content || ' '; RETURN NEW; END $$;"
        " CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON agent_outputs FOR EACH ROW WHEN (NEW.id IN (5, 6))"
        " EXECUTE FUNCTION spoil()"
    ),
}
HEAL = {
    "sqlite": "DROP TRIGGER spoil; DROP TRIGGER spoil_too",
    "postgresql": "DROP TRIGGER spoil ON agent_outputs",
}
ODD = {
    "sqlite": "response_text = x'00ff', created_at = 0.1, run_id = 7, content_json = CAST(x'61ff00' AS TEXT)",
    "postgresql": "response_text = E'\\\\xff ''\"%s \U0001f600', run_id = ''",
}
"""Row 5, which cannot be carried: of every type that the database knows."""


def contracted(database: Database) -> None:
    """Take a legacy database to CONTRACT whose rows 5 and 6 stand on the legacy side alone."""
    database.script(f"UPDATE consensus_artifacts SET {ODD[database.kind]} WHERE id = 5")
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.upgrade()
        store.migration.advance()
        database.script(SPOIL[database.kind])
        assert store.migration.backfill().rejects == 2
        for reject in store.migration.rejects():
            store.migration.accept_reject(reject.id, reason="a test")
        store.migration.migrate(soak=False)
    database.script(HEAL[database.kind])
