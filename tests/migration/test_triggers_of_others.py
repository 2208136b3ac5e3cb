"""Triggers and rules of others do not change what comes back from CONTRACT, and are what they were afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import MigrationError
from tests.migration.steps import _raise, forward, image, ready
from tests.support.databases import Database
from tests.support.dependencies import accept_dependencies

STAMP = "2001-01-01 00:00:00"
MEDDLING = {
    "sqlite": (
        "CREATE TRIGGER stamp AFTER INSERT ON consensus_artifacts BEGIN"
        f" UPDATE consensus_artifacts SET created_at = '{STAMP}' WHERE id = NEW.id; END;"
        " CREATE TRIGGER counting AFTER DELETE ON consensus_artifacts BEGIN DELETE FROM seen; END;"
        " CREATE TABLE seen (id INTEGER); INSERT INTO seen VALUES (1);"
    ),
    "postgresql": (
        "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN NEW.created_at := '{STAMP}'; RETURN NEW; END $$;"
        " CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM seen; RETURN NULL; END $$;"
        " CREATE TRIGGER stamp BEFORE INSERT ON consensus_artifacts FOR EACH ROW EXECUTE FUNCTION stamp();"
        " CREATE TRIGGER always BEFORE INSERT ON consensus_artifacts FOR EACH ROW EXECUTE FUNCTION stamp();"
        " CREATE TRIGGER off BEFORE INSERT ON consensus_artifacts FOR EACH ROW EXECUTE FUNCTION stamp();"
        " CREATE TRIGGER counting BEFORE TRUNCATE ON consensus_artifacts EXECUTE FUNCTION refuse();"
        " ALTER TABLE consensus_artifacts ENABLE ALWAYS TRIGGER always, DISABLE TRIGGER off;"
        " CREATE TABLE seen (id BIGINT); INSERT INTO seen VALUES (1);"
        " CREATE RULE nothing AS ON INSERT TO consensus_synthesis DO INSTEAD NOTHING;"
    ),
}
SWITCHES = "SELECT tgname, tgenabled FROM pg_trigger WHERE tgname IN ('stamp', 'always', 'off', 'counting') ORDER BY 1"


def meddle(store: ConsensusStore, database: Database) -> None:
    """Add triggers and rules that rewrite or drop rows, once the legacy tables are frozen."""
    forward(store, Phase.NORMALIZED)
    database.script(MEDDLING[database.kind])


def switches(database: Database) -> list[tuple[Any, ...]]:
    return database.rows_of(SWITCHES) if database.kind == "postgresql" else []


@pytest.mark.long
@pytest.mark.parametrize("interrupted", [False, True], ids=["at once", "interrupted"])
def test_what_comes_back_is_not_what_triggers_make_of_it(
    store: ConsensusStore, database: Database, interrupted: bool
) -> None:
    """The legacy tables are byte for byte what they were, their triggers with them, also by a second attempt."""
    meddle(store, database)
    before, switched, legacy = image(database), switches(database), database.legacy()
    accept_dependencies(store)
    forward(store, Phase.CONTRACT)
    assert database.scalar("SELECT count(*) FROM seen") == 1
    if interrupted:
        with pytest.raises(RuntimeError):
            store.migration.rollback(progress=_raise)
        store.migration.advance(Phase.CONTRACT)  # undoes it
    assert store.migration.rollback() is Phase.NORMALIZED
    assert database.legacy() == legacy
    assert image(database) == before
    assert switches(database) == switched
    assert database.scalar("SELECT count(*) FROM seen") == 1
    assert store.migration.verify().clean


ECHOES = {
    Phase.DUAL_WRITE: (
        "consensus_artifacts",
        """INSERT INTO agent_outputs (id, run_id, agent_name, content, output_timestamp)
        SELECT NEW.id + 1000, (SELECT max(id) FROM consensus_runs), NEW.agent_name, NEW.content_json, 0""",
    ),
    Phase.CUTOVER: (
        "agent_outputs",
        """INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json)
        SELECT NEW.id + 1000, 'ECHO', 's', NEW.agent_name, NEW.content""",
    ),
}
"""By phase, a trigger on the side that is read which writes a copy of each row, under another id, to the other side."""


@pytest.mark.parametrize("phase", ECHOES, ids=lambda phase: phase.name.lower())
def test_rows_that_a_trigger_makes_of_adopted_rows_are_refused(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """A unit of work notices the copy that a trigger makes; no reconcile adopts one while that makes the next copy.

    Without the trigger what it has written is adopted as any row of another program (rule 6).
    """

    def ids() -> list[list[int]]:
        tables = ("consensus_artifacts", "agent_outputs")
        return [[key for (key,) in database.rows_of(f"SELECT id FROM {table} ORDER BY id")] for table in tables]

    ready(store, phase)
    database.fault("AFTER INSERT", *ECHOES[phase])
    with store.unit_of_work() as uow:
        mine = uow.artifacts.add(spec_id="SPEC-A", stage="s", agent_name="a", content_json="{}").id
    legacy, normalized = before = ids()
    assert set(normalized) ^ set(legacy) == {mine + 1000}
    assert store.migration.status().foreign_writes == 1
    assert store.migration.status().gate != []
    for foreign in (None, "adopt"):
        with pytest.raises(MigrationError, match=r"nothing of this step was kept; drop or disable it \(fault\)"):
            store.migration.reconcile(foreign=foreign)
        assert ids() == before
    database.heal()
    store.migration.reconcile()
    assert ids() == [sorted({*legacy, *normalized})] * 2
    assert database.legacy() == database.normalized()
    assert store.migration.reconcile().actions == ()
    assert store.migration.verify().clean


@pytest.mark.postgresql
def test_a_trigger_that_was_dropped_meanwhile_is_in_nobodys_way(store: ConsensusStore, database: Database) -> None:
    """At CONTRACT its owner may drop it, or make another one, which is on again afterwards, too."""
    meddle(store, database)
    accept_dependencies(store)
    forward(store, Phase.CONTRACT)
    away = '"consensus_orm_dropped_consensus_artifacts"'
    database.script(
        f"DROP TRIGGER stamp ON {away};"
        f" CREATE TRIGGER late BEFORE INSERT ON {away} FOR EACH ROW EXECUTE FUNCTION stamp()"
    )
    legacy = database.normalized()
    store.migration.rollback()
    assert database.legacy() == legacy
    assert database.rows_of("SELECT tgenabled FROM pg_trigger WHERE tgname = 'late'") == [("O",)]
