"""Mismatches: found by writes, by reads and by verify, confirmed, repaired or accepted."""

from __future__ import annotations

from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import (
    InvalidValueError,
    MismatchError,
)
from consensus_orm.formats import count
from consensus_orm.settings import OnMismatch
from tests.migration.steps import BOTH, FORCED, Open, forward, ready, refused, write
from tests.support.databases import FAIL, IGNORE, REFUSE, Database

# Mismatches -----------------------------------------------------------------------------------------------


def shadow_table(phase: Phase) -> str:
    return "agent_outputs" if phase.truth == "legacy" else "consensus_artifacts"


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("fault", "found_as"),
    [
        (("BEFORE INSERT", REFUSE), "shadow_failed"),
        (("BEFORE INSERT", FAIL), "shadow_failed"),
        (("AFTER INSERT", "DELETE FROM {} WHERE id = NEW.id"), "missing"),
        (("AFTER INSERT", "UPDATE {} SET agent_name = 'altered' WHERE id = NEW.id"), "different"),
        (("BEFORE INSERT", IGNORE), "shadow_failed"),
    ],
    ids=["abort", "fail", "deleted", "altered", "ignored"],
)
def test_a_mismatch_is_found_confirmed_and_repaired(
    store: ConsensusStore, database: Database, phase: Phase, fault: tuple[str, str], found_as: str
) -> None:
    """Whatever befalls the shadow side, the write stands on the truth, and a mismatch is kept with it.

    Reconcile repairs it; the ledger tells the whole life.
    """
    forward(store, phase)
    store.migration.backfill()
    table = shadow_table(phase)
    event, does = fault
    database.fault(event, table, does.format(table))
    with store.unit_of_work() as uow:
        artifact = uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="c")
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(artifact.id) == artifact
    found = store.migration.mismatches()
    assert found
    assert {(m.pair, m.key, m.state, m.found_by) for m in found} == {("artifacts", artifact.id, "confirmed", "write")}
    assert all(found_as in m.kind for m in found)
    database.heal()
    planned = store.migration.reconcile(dry_run=True)
    assert [(r.pair, r.key) for r in planned.repairs if r.pair == "artifacts"] == [("artifacts", artifact.id)]
    assert store.migration.mismatches() == found, "a rehearsal changes nothing"
    store.migration.reconcile()
    assert database.legacy() == database.normalized()
    settled = store.migration.mismatches(everything=True)
    assert {m.state for m in settled} == {"repaired"}
    at = database.rows_of("SELECT settled_at FROM consensus_orm_mismatches ORDER BY id")
    assert [(m.settled_at and round(m.settled_at.timestamp() * 1000),) for m in settled] == at
    assert store.migration.verify().clean


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_what_we_deleted_does_not_come_back(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """The shadow side fails to delete.

    The row is gone from the truth, a mismatch is open, and reconcile deletes it from the other side too,
    instead of taking it for somebody else's.
    """
    forward(store, phase)
    store.migration.backfill()
    table = shadow_table(phase)
    database.fault("BEFORE DELETE", table, REFUSE)
    with store.unit_of_work() as uow:
        assert uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-plan") == 3
        assert uow.artifacts.count(stage="spec-plan") == 0
    assert {m.kind for m in store.migration.mismatches()} >= {"not_deleted"}
    database.heal()
    planned = [r for r in store.migration.reconcile(dry_run=True).actions if r.pair == "artifacts"]
    assert {(r.what, r.side) for r in planned} == {("delete", phase.truth.other)}
    store.migration.verify()
    store.migration.reconcile()
    assert database.legacy() == database.normalized()
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.count(stage="spec-plan") == 0
    assert store.migration.mismatches() == []
    assert store.migration.verify().clean


def test_raise_rolls_the_unit_of_work_back(open_store: Open, database: Database) -> None:
    """With ON_MISMATCH=raise the write that differs is not kept, on neither side, nor its mismatch."""
    store = open_store(on_mismatch=OnMismatch.RAISE)
    forward(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    before = database.legacy()
    database.fault("AFTER INSERT", "agent_outputs", "UPDATE agent_outputs SET content = 'x' WHERE id = NEW.id")
    with pytest.raises(MismatchError) as error, store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="secret")
    assert error.value.facts["columns"] == ["content"]
    assert "secret" not in str(error.value)
    assert database.legacy() == before == database.normalized()
    assert store.migration.mismatches(everything=True) == []


def test_a_storm_of_mismatches_is_capped(open_store: Open, database: Database) -> None:
    """Above the cap one entry counts the rest for each table and column; reconcile settles them all."""
    store = open_store(mismatch_cap=3)
    forward(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    database.fault("BEFORE INSERT", "agent_outputs", REFUSE)
    with store.unit_of_work() as uow:
        for _ in range(10):
            uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="c")
    found = store.migration.mismatches()
    assert [(m.kind, m.seen) for m in found] == [("shadow_failed", 1)] * 3 + [("storm", 7)]
    assert found[-1].key is None
    database.heal()
    store.migration.reconcile()
    assert store.migration.mismatches() == []
    assert database.legacy() == database.normalized()


def test_a_mismatch_is_accepted_with_a_reason(store: ConsensusStore, database: Database) -> None:
    """Accepting needs a reason, is audited, and leaves the row as it is."""
    forward(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    database.unnoticed("UPDATE agent_outputs SET content = 'damaged' WHERE id = 1")
    report = store.migration.verify()
    assert [(d.pair, d.key, d.columns, d.kind) for d in report.differences] == [
        ("artifacts", 1, ("content",), "different")
    ]
    (found,) = store.migration.mismatches()
    with pytest.raises(InvalidValueError, match="reason"):
        store.migration.accept_mismatch(found.id, reason="")
    store.migration.accept_mismatch(found.id, reason="a test")
    with pytest.raises(InvalidValueError, match="no open mismatch"):
        store.migration.accept_mismatch(found.id, reason="again")
    assert store.migration.mismatches() == []
    assert database.scalar("SELECT content FROM agent_outputs WHERE id = 1") == "damaged"
    assert (store.migration.history()[-1].action, store.migration.history()[-1].reason) == (
        "accept mismatches",
        "a test",
    )


# Verify and shadow reads ----------------------------------------------------------------------------------


def _of_sqlite(*case: str) -> Any:
    return pytest.param(*case, marks=pytest.mark.sqlite)


DAMAGE = [
    _of_sqlite("UPDATE agent_outputs SET content = CAST(content AS BLOB) WHERE id = 1", "artifacts", "content"),
    ("UPDATE agent_outputs SET agent_name = upper(agent_name) WHERE id = 1", "artifacts", "agent_name"),
    _of_sqlite("UPDATE agent_outputs SET content = content || char(0) WHERE id = 1", "artifacts", "content"),
    ("UPDATE agent_outputs SET response_text = '' WHERE id = 1", "artifacts", "response_text"),
    ("UPDATE agent_outputs SET output_timestamp = 1 WHERE id = 1", "artifacts", "output_timestamp"),
    ("UPDATE agent_outputs SET created_at = created_at || '.0' WHERE id = 1", "artifacts", "created_at"),
    ("DELETE FROM agent_outputs WHERE id = 1", "artifacts", "missing_normalized"),
    ("DELETE FROM consensus_synthesis WHERE id = 1", "syntheses", "missing_legacy"),
    _of_sqlite("UPDATE consensus_syntheses SET degraded = 'no' WHERE id = 1", "syntheses", "degraded"),
    ("UPDATE consensus_syntheses SET degraded = 7 WHERE id = 1", "syntheses", "degraded"),
    ("UPDATE consensus_runs SET consensus_ok = FALSE WHERE id = 1", "consensus_runs", "derived"),
    ("UPDATE consensus_runs SET run_timestamp = 7 WHERE id = 1", "consensus_runs", "derived"),
    (
        "UPDATE consensus_runs SET synthesis_json = NULL WHERE id = (SELECT min(run_id) FROM consensus_syntheses)",
        "consensus_runs",
        "derived",
    ),
    ("INSERT INTO consensus_runs VALUES (99, 'S', 's', NULL, 'k', 1, TRUE, FALSE, NULL)", "consensus_runs", "derived"),
]
"""What is done behind the triggers, the pair or parent it is done to, and the column or kind that verify tells."""


@pytest.mark.long
@pytest.mark.parametrize(("damage", "pair", "told"), DAMAGE)
def test_verify_names_what_differs(
    store: ConsensusStore, database: Database, damage: str, pair: str, told: str
) -> None:
    """Every kind of silent damage is found with its key and columns, and reconcile repairs it."""
    ready(store, Phase.DUAL_WRITE)
    before = database.legacy()
    database.unnoticed(damage)
    differences = store.migration.verify().differences
    (found,) = [d for d in differences if d.pair == pair]
    assert found.columns == (told,) if found.kind == "different" else (found.columns, found.kind) == ((), told)
    refused(store, f"{count(len(differences), 'differing row')}; run: consensus-orm reconcile", **FORCED)
    store.migration.reconcile()
    assert store.migration.verify().clean
    assert database.legacy() == database.normalized() == before


def test_a_second_verify_makes_a_second_certificate(store: ConsensusStore, database: Database) -> None:
    """Each verify is numbered, and says how many rows it compared on how many; two on one file agree."""
    ready(store, Phase.DUAL_WRITE)
    first, second = store.migration.verify(), store.migration.verify()
    assert first.certificate is not None
    assert second.certificate == first.certificate + 1
    for report in (first, second):
        assert (report.legacy_rows, report.normalized_rows, report.compared, report.rejects) == (11, 11, 11, 0)
    certificate = store.migration.status().certificate
    assert certificate is not None
    assert (certificate.id, certificate.compared, certificate.this_phase) == (second.certificate, 11, True)
    write(store, "more")
    assert store.migration.verify().compared == 13


def test_shadow_reads_find_what_differs(open_store: Open, database: Database) -> None:
    """A read of both sides answers from the truth, and what differs is recorded once it is confirmed."""
    store = open_store(shadow_reads=1.0)
    ready(store, Phase.DUAL_WRITE)
    database.unnoticed("UPDATE agent_outputs SET content = 'damaged' WHERE id = 1")
    with store.unit_of_work(read_only=True) as uow:
        read = uow.artifacts.get(1)
    assert read is not None
    assert read.content_json != "damaged"
    (found,) = store.migration.mismatches()
    assert (found.key, found.column, found.found_by, found.seen) == (1, "content", "shadow_read", 1)
    with store.unit_of_work(read_only=True) as uow:
        uow.artifacts.list()
    assert store.migration.mismatches()[0].seen == 2
    with open_store(shadow_reads=0.0).unit_of_work(read_only=True) as uow:
        uow.artifacts.list()
    assert store.migration.mismatches()[0].seen == 2
