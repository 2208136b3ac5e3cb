"""Writes of a session that its guard refuses, by name: of either side, and of one kind of database only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.orm import Session

from consensus_orm.consensus.models import AgentOutput, ConsensusRun, ConsensusSynthesisRecord


def legacy() -> Any:
    from consensus_orm.consensus.models import legacy

    return legacy


def add_entity(session: Session) -> None:
    session.add(ConsensusRun(spec_id="S", stage="p", run_key="k", run_timestamp=0, consensus_ok=True))
    session.flush()


def add_legacy_entity(session: Session) -> None:
    session.add(legacy().ConsensusArtifact(spec_id="S", stage="p", agent_name="a", content_json="{}"))
    session.flush()


def change_entity(session: Session) -> None:
    session.add(changed := session.scalars(select(AgentOutput).limit(1)).one())
    changed.content = "changed"
    session.flush()


def delete_entity(session: Session) -> None:
    session.delete(session.scalars(select(ConsensusSynthesisRecord).limit(1)).one())
    session.flush()


def text_through_the_driver(session: Session) -> None:
    session.connection().exec_driver_sql("DELETE FROM agent_outputs")


def on(statement: Any) -> Callable[[Session], None]:
    def send(session: Session) -> None:
        session.execute(statement() if callable(statement) else statement)

    return send


def many(session: Session) -> None:
    rows = [{"run_id": 1, "agent_name": "a", "content": "{}", "output_timestamp": 0} for _ in range(3)]
    session.execute(insert(AgentOutput), rows)


NORMALIZED: dict[str, Callable[[Session], None]] = {
    "add": add_entity,
    "change": change_entity,
    "delete": delete_entity,
    "bulk_update": on(update(AgentOutput).values(content="changed")),
    "bulk_delete": on(delete(ConsensusRun)),
    "core_insert": on(
        insert(AgentOutput.__table__).values(id=1, run_id=1, agent_name="a", content="c", output_timestamp=0)  # type: ignore[arg-type]
    ),
    "insert_from_select": on(
        insert(AgentOutput).from_select(
            ["run_id", "agent_name", "content", "output_timestamp"],
            select(AgentOutput.run_id, AgentOutput.agent_name, AgentOutput.content, AgentOutput.output_timestamp),
        )
    ),
    "executemany": many,
    "bulk_save": lambda session: session.bulk_insert_mappings(
        AgentOutput, [{"run_id": 1, "agent_name": "a", "content": "{}", "output_timestamp": 0}]
    ),
    "text": on(text("UPDATE agent_outputs SET content = 'changed'")),
    "text_in_capitals": on(text("UPDATE AGENT_OUTPUTS SET content = 'changed'")),
    "replace": on(text("REPLACE INTO consensus_runs SELECT * FROM consensus_runs")),
    "with_cte": on(text("WITH x AS (SELECT 1) DELETE FROM consensus_syntheses")),
    "driver": text_through_the_driver,
    "drop": on(text("DROP TABLE consensus_syntheses")),
    "drop_index": on(text("DROP INDEX idx_agent_outputs_run")),
    "alter": on(text("ALTER TABLE consensus_runs ADD COLUMN mine TEXT")),
    "rename": on(text("ALTER TABLE agent_outputs RENAME TO mine")),
    "trigger": on(text("CREATE TRIGGER t AFTER INSERT ON agent_outputs BEGIN SELECT 1; END")),
    "temporary_trigger": on(text("CREATE TEMP TRIGGER t AFTER INSERT ON agent_outputs BEGIN SELECT 1; END")),
    "temporary_table_in_front": on(text("CREATE TEMP TABLE agent_outputs (id)")),
    "temporary_view_in_front": on(text("CREATE TEMP VIEW consensus_runs AS SELECT 1 AS id")),
    "legacy_table": on(text("CREATE TABLE IF NOT EXISTS consensus_artifacts (id)")),
    "phase": on(text("UPDATE consensus_orm_state SET phase = 5")),
    "revision": on(text("DELETE FROM consensus_orm_version")),
    "sequences": on(text("UPDATE sqlite_sequence SET seq = 0")),
    "foreign_keys": on(text("PRAGMA foreign_keys = OFF")),
    "schema": on(text("PRAGMA writable_schema = ON")),
    "commit_by_text": on(text("COMMIT")),
    "rollback_by_text": on(text("ROLLBACK")),
}
ON_SERVERS: dict[str, Callable[[Session], None]] = {
    "truncate": on(text("TRUNCATE agent_outputs")),
    "merge": on(
        text(
            "MERGE INTO agent_outputs AS o USING consensus_runs AS r ON r.id = o.run_id"
            " WHEN MATCHED THEN UPDATE SET content = 'changed'"
        )
    ),
}
ROWS = (
    *("add", "change", "delete", "bulk_update", "bulk_delete", "core_insert", "insert_from_select", "executemany"),
    *("text", "text_in_capitals", "with_cte", "driver", "replace", "merge"),
)
"""What writes rows: in phases that write the normalized side, the session may."""
NEW_ROWS = ("add", "core_insert", "executemany")
"""What a trigger sees though no row is there."""
OF_FILES = (
    "text_in_capitals",
    "driver",
    "replace",
    "with_cte",
    "insert_from_select",
    "bulk_update",
    "bulk_delete",
    "text",
)
"""What a file refuses before it runs, though no row is there."""
LEGACY: dict[str, Callable[[Session], None]] = {
    "add": add_legacy_entity,
    "bulk_update": on(lambda: update(legacy().ConsensusArtifact).values(content_json="changed")),
    "bulk_delete": on(lambda: delete(legacy().ConsensusSynthesis)),
    "text": on(text("DELETE FROM consensus_artifacts")),
}
