"""What tests of the guards of a phase do and judge by."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import GateClosedError, GuardsBrokenError
from tests.field import builders
from tests.support.databases import Database

GUARDED = (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
"""Of all rows: by the clock, the first write of a second would send a statement more, which inserts its run."""
ROW: dict[str, Any] = {"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "c", "created_at": MOMENT}
REMADE = {
    "sqlite": f"DROP TABLE consensus_artifacts; {builders.ARTIFACTS}",
    "postgresql": "DROP TABLE consensus_artifacts CASCADE; CREATE TABLE consensus_artifacts (id BIGSERIAL PRIMARY KEY,"
    " spec_id TEXT NOT NULL, stage TEXT NOT NULL, agent_name TEXT NOT NULL, content_json TEXT NOT NULL,"
    " response_text TEXT, run_id TEXT, created_at TEXT)",
}


def ready(store: ConsensusStore, phase: Phase) -> None:
    """In a phase, with the gate to the next one open."""
    store.migration.migrate(phase)
    if phase.compares:
        store.migration.backfill()
    assert store.migration.verify().clean
    assert store.migration.status().gate == []
    assert store.migration.status().guards == []


def write(store: ConsensusStore) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(**ROW).id


def triggers(database: Database, table: str) -> list[str]:
    """Our triggers that are in force on a table."""
    sql = {
        "sqlite": f"SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = '{table}' ORDER BY 1",
        "postgresql": f"SELECT tgname FROM pg_trigger WHERE tgrelid = '{table}'::regclass AND NOT tgisinternal"
        " AND tgenabled <> 'D' AND tgname LIKE 'consensus%' ORDER BY 1",
    }[database.kind]
    return [name for (name,) in database.rows_of(sql)]


def drop(database: Database, trigger: str, table: str) -> None:
    database.script(f"DROP TRIGGER {trigger}" + (f" ON {table}" if database.kind == "postgresql" else ""))


def broken(store: ConsensusStore, names: str, command: str = "consensus-orm reconcile") -> None:
    """Status names it with the command that helps, the gate is shut, and nothing is certified or flipped."""
    phase = store.migration.phase
    status = store.migration.status()
    assert any(names in text for text in status.guards), status.guards
    assert f"{names}; run: {command}" in " | ".join(status.gate)
    assert status.next_command == command
    with pytest.raises(GateClosedError) as shut:
        store.migration.advance(force=True, reason="in a hurry")
    assert any(names in reason for reason in shut.value.reasons)
    for step in (store.migration.verify, store.migration.rollback):
        with pytest.raises(GuardsBrokenError, match=names) as refused:
            step()
        assert any(names in reason for reason in refused.value.reasons)
        assert command in str(refused.value)
    assert store.migration.phase is phase


def mended(store: ConsensusStore) -> None:
    """After reconcile everything is in place, and only a new verify opens the gate."""
    phase = store.migration.phase
    store.migration.reconcile()
    assert store.migration.status().guards == []
    with pytest.raises(GateClosedError, match="nothing was verified in this phase"):
        store.migration.advance()
    assert store.migration.verify().clean
    assert store.migration.advance() is phase.next
