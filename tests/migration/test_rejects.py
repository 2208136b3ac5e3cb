"""Rejects: rows that cannot be carried are listed, kept, mended or accepted, and stop what they should stop."""

from __future__ import annotations

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import (
    InvalidValueError,
)
from tests.migration.steps import BOTH, FORCED, forward, image, refused
from tests.support.databases import Database


@pytest.fixture
def integer_in_text(database: Database) -> int:
    """A row whose content is an INTEGER in a TEXT column: only a file edited by hand holds one."""
    database.script(
        """
        PRAGMA writable_schema = ON;
        UPDATE sqlite_master SET sql = replace(sql, 'content_json TEXT', 'content_json BLOB')
          WHERE name = 'consensus_artifacts';
        """,
    )
    database.script("UPDATE consensus_artifacts SET content_json = 42 WHERE id = 5")
    database.script(
        """
        PRAGMA writable_schema = ON;
        UPDATE sqlite_master SET sql = replace(sql, 'content_json BLOB', 'content_json TEXT')
          WHERE name = 'consensus_artifacts';
        """,
    )
    assert database.scalar("SELECT typeof(content_json) FROM consensus_artifacts WHERE id = 5") == "integer"
    return 5


@pytest.mark.sqlite  # a column of PostgreSQL has one type
def test_a_row_that_cannot_be_carried_is_a_reject(
    store: ConsensusStore, database: Database, integer_in_text: int
) -> None:
    """The backfill goes on, the reject names the row, and the gate is shut until somebody decides.

    The row itself is there at the end of the way back, as it was.
    """
    before = image(database)
    forward_with_reject(store)
    (reject,) = store.migration.rejects()
    assert (reject.pair, reject.key, reject.table) == ("artifacts", integer_in_text, "consensus_artifacts")
    assert "type and bytes" in reject.reason
    refused(store, "1 reject is open; run: consensus-orm rejects", **FORCED)
    assert store.migration.resolve_reject(reject.id) is False
    with pytest.raises(InvalidValueError, match="reason"):
        store.migration.accept_reject(reject.id, reason=" ")
    store.migration.accept_reject(reject.id, reason="edited by hand")
    assert store.migration.rejects() == []
    assert store.migration.rejects(everything=True)[0].note == "edited by hand"
    forward(store, Phase.NORMALIZED)
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(integer_in_text) is None
    store.migration.rollback("expand")
    assert image(database) == before
    assert [e.action for e in store.migration.history()].count("accept reject") == 1


SPOIL = {
    "sqlite": "".join(
        f"CREATE TRIGGER spoil_{event} AFTER {event} ON agent_outputs WHEN NEW.id IN (5, 6) BEGIN"
        " UPDATE agent_outputs SET content = 'spoilt' WHERE id = NEW.id; END;"
        for event in ("INSERT", "UPDATE")
    ),
    "postgresql": "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " NEW.content := 'spoilt'; RETURN NEW; END $$;"
    " CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON agent_outputs FOR EACH ROW WHEN (NEW.id IN (5, 6))"
    " EXECUTE FUNCTION spoil()",
}
UNSPOIL = {
    "sqlite": "DROP TRIGGER spoil_INSERT; DROP TRIGGER spoil_UPDATE",
    "postgresql": "DROP FUNCTION spoil() CASCADE",
}
ODD_CELLS = {
    "sqlite": "response_text = x'00ff', created_at = 0.1",
    "postgresql": "response_text = '\\xff', run_id = ''",
}


@pytest.mark.long
def test_a_rejected_row_is_rebuilt_with_its_table(store: ConsensusStore, database: Database) -> None:
    """A row that stands on the legacy side alone comes back after CONTRACT, exactly.

    One that was deleted before the tables were dropped does not.
    """
    database.script(f"UPDATE consensus_artifacts SET {ODD_CELLS[database.kind]} WHERE id = 5")
    before = image(database)
    forward(store, Phase.DUAL_WRITE)
    database.script(SPOIL[database.kind])
    assert store.migration.backfill().rejects == 2
    database.script("DELETE FROM consensus_artifacts WHERE id = 6")
    for reject in store.migration.rejects():
        store.migration.accept_reject(reject.id, reason="a test")
    forward(store, Phase.CONTRACT)
    assert database.scalar("SELECT count(*) FROM agent_outputs WHERE id IN (5, 6)") == 0
    store.migration.rollback("expand")
    after = image(database)
    assert after[1]["consensus_artifacts"] == [r for r in before[1]["consensus_artifacts"] if r[0][1] != "36"]
    assert (after[0], after[2]) == (before[0], before[2])


def forward_with_reject(store: ConsensusStore) -> None:
    forward(store, Phase.DUAL_WRITE)
    assert store.migration.backfill().rejects == 1
    assert store.migration.backfill().rejects == 0, "a row is rejected once"
    assert store.migration.verify().clean, "a reject is listed, not a difference"


@pytest.mark.sqlite  # a column of PostgreSQL has one type
def test_a_mended_reject_is_resolved(store: ConsensusStore, database: Database, integer_in_text: int) -> None:
    """Once the row can be carried, resolving carries it, and the gate opens."""
    forward_with_reject(store)
    (reject,) = store.migration.rejects()
    database.script(f"UPDATE consensus_artifacts SET content_json = '42' WHERE id = {integer_in_text}")
    assert store.migration.resolve_reject(reject.id) is True
    assert store.migration.rejects(everything=True)[0].state == "resolved"
    with pytest.raises(InvalidValueError, match="no open reject"):
        store.migration.resolve_reject(reject.id)
    forward(store, Phase.CUTOVER)
    assert database.legacy() == database.normalized()


def test_rejects_are_resolved_together_and_an_unknown_number_resolves_none(
    store: ConsensusStore, database: Database
) -> None:
    """One error names all numbers of no open reject; else each row that was mended is carried, and no other row."""

    def stand() -> tuple[list[int], list[str]]:
        carried = database.rows_of("SELECT id FROM agent_outputs WHERE id IN (5, 6)")
        states = database.rows_of("SELECT state FROM consensus_orm_rejects ORDER BY id")
        return [key for (key,) in carried], [state for (state,) in states]

    forward(store, Phase.DUAL_WRITE)
    database.script(SPOIL[database.kind])
    store.migration.backfill()
    first, second = [reject.id for reject in store.migration.rejects()]
    assert store.migration.resolve_rejects([range(first, second + 1)]) == {first: False, second: False}
    database.script(UNSPOIL[database.kind])
    with pytest.raises(InvalidValueError, match="no open rejects 98, from 200 to 209, 99: nothing was done"):
        store.migration.resolve_rejects([first, 98, second, range(200, 210), 99])
    assert stand() == ([], ["open", "open"])
    database.script(SPOIL[database.kind].replace("(5, 6)", "(6)"))
    assert store.migration.resolve_rejects(table="artifacts") == {first: True, second: False}
    assert stand() == ([5], ["resolved", "open"])
    database.script("DELETE FROM consensus_artifacts WHERE id = 6")
    with pytest.raises(InvalidValueError, match=f"nothing is left to carry of reject {second}"):
        store.migration.resolve_rejects([second])


@pytest.mark.long
def test_an_id_taken_twice_keeps_both_rows(store: ConsensusStore, database: Database) -> None:
    """Two programs give one id to different rows.

    The truth's row stands on both sides, the other is a reject with its image, and it does not come back
    later, not even after its winner was deleted.
    """
    forward(store, Phase.CUTOVER)
    store.migration.backfill()
    database.script(
        "INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json)"
        " VALUES (700, 'TWICE', 's', 'loser', 'c');"
        "INSERT INTO consensus_runs (id, spec_id, stage, run_timestamp, consensus_ok)"
        " VALUES (900, 'TWICE', 's', 1500, TRUE);"
        "INSERT INTO agent_outputs (id, run_id, agent_name, content, output_timestamp)"
        " VALUES (700, 900, 'winner', 'c', 1500)",
    )
    store.migration.reconcile()
    assert database.legacy() == database.normalized()
    (reject,) = store.migration.rejects()
    assert (reject.key, reject.table, "both sides" in reject.reason) == (700, "consensus_artifacts", True)
    assert b"loser".hex().upper() in database.scalar("SELECT image FROM consensus_orm_rejects")
    with store.unit_of_work(read_only=True) as uow:
        found = uow.artifacts.get(700)
    assert found is not None
    assert found.agent_name == "winner"
    store.migration.accept_reject(reject.id, reason="by chance")
    forward(store, Phase.CONTRACT)
    with store.unit_of_work() as uow:
        assert uow.artifacts.delete(spec_id="TWICE") == 1
    store.migration.rollback("expand")
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(700) is None


def test_an_accepted_reject_hides_no_later_difference(store: ConsensusStore, database: Database) -> None:
    """A row whose id was once rejected is compared like any other as long as both sides have it."""
    test_id = 700
    forward(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    database.script(
        f"""
        INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json)
          VALUES ({test_id}, 'S', 's', 'winner', 'c');
        INSERT INTO consensus_runs (id, spec_id, stage, run_timestamp, consensus_ok) VALUES (900, 'S', 's', 1500, TRUE);
        INSERT INTO agent_outputs (id, run_id, agent_name, content, output_timestamp)
          VALUES ({test_id}, 900, 'loser', 'c', 1500);
        """,
    )
    store.migration.reconcile()
    (reject,) = store.migration.rejects()
    with pytest.raises(InvalidValueError, match="nothing is left to carry"):
        store.migration.resolve_reject(reject.id)
    store.migration.accept_reject(reject.id, reason="by chance")
    assert store.migration.verify().clean
    database.unnoticed(f"UPDATE agent_outputs SET content = 'broken' WHERE id = {test_id}")
    assert [d.key for d in store.migration.verify().differences] == [test_id]


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_a_row_without_its_run_is_a_reject_and_can_be_accepted(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """A program without foreign keys leaves an output without a run.

    Nothing is aborted, the row is listed, and once it is accepted the migration goes on.
    """
    forward(store, phase)
    store.migration.backfill()
    # Nobody checks the key here; its triggers fire.
    keyless = "ALTER TABLE agent_outputs DROP CONSTRAINT fk_agent_outputs_run_id_consensus_runs;"
    database.script(
        (keyless if database.kind == "postgresql" else "")
        + "INSERT INTO agent_outputs (id, run_id, agent_name, content, output_timestamp) VALUES (800, 99, 'a', 'c', 1)"
    )
    store.migration.reconcile()
    (reject,) = store.migration.rejects()
    assert (reject.key, reject.table) == (800, "agent_outputs")
    assert database.legacy() == database.normalized()
    store.migration.accept_reject(reject.id, reason="an orphan")
    store.migration.reconcile()
    assert store.migration.rejects() == []
    assert store.migration.verify().clean
    assert store.migration.advance() is phase.next
    assert database.scalar("SELECT count(*) FROM agent_outputs WHERE id = 800") == 1, "nothing is lost silently"
