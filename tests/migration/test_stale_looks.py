"""What was looked at and is over certifies and repairs nothing: a phase that changes, a row that is rejected later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import GateClosedError, PhaseChangedError
from consensus_orm.settings import Settings
from tests.support.databases import IGNORE, Database, build_legacy

NO_TIME = timedelta(0)
DAMAGE = "UPDATE consensus_artifacts SET content_json = 'damaged' WHERE id = 1"
ADD = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', '{}')"
SIDES = (
    "SELECT content_json FROM consensus_artifacts WHERE id = 1",
    "SELECT content FROM agent_outputs WHERE id = 1",
)


@pytest.fixture
def open_store(new_database: Database, tmp_path: Path) -> Iterator[Callable[..., ConsensusStore]]:
    """Open a database with the common rows; keyword arguments are settings."""
    build_legacy(new_database.where)
    opened: list[ConsensusStore] = []

    def open_(**settings: Any) -> ConsensusStore:
        base: dict[str, Any] = {f"soak_{name}": NO_TIME for name in ("dual_write", "cutover", "normalized")}
        chosen = Settings(**{**base, "chunk_pause": NO_TIME, "backup_dir": tmp_path, **settings})
        opened.append(ConsensusStore.open(new_database.where, settings=chosen))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


def to_cutover(store: ConsensusStore) -> None:
    """Forward to the phase in which the normalized side is the truth, and both are written."""
    store.migration.migrate("cutover")


def flip_once(other: ConsensusStore) -> Callable[[object], None]:
    """A progress that takes the phase back, once: another process is faster."""
    left = [Phase.DUAL_WRITE]

    def progress(_: object) -> None:
        if left:
            other.migration.rollback(left.pop())

    return progress


def test_a_scan_of_a_phase_that_is_over_certifies_nothing(
    open_store: Callable[..., ConsensusStore], new_database: Database
) -> None:
    """Verify says that the phase changed while it compared, and leaves neither a certificate nor a mismatch."""
    store, other = open_store(), open_store()
    to_cutover(store)
    certificates = new_database.scalar("SELECT count(*) FROM consensus_orm_certificates")
    new_database.unnoticed(DAMAGE)
    with pytest.raises(PhaseChangedError, match="DUAL_WRITE") as changed:
        store.migration.verify(flip_once(other))
    assert changed.value.facts["phase"] is Phase.DUAL_WRITE
    assert new_database.scalar("SELECT count(*) FROM consensus_orm_certificates") == certificates
    assert new_database.scalar("SELECT count(*) FROM consensus_orm_mismatches") == 0


@pytest.mark.parametrize("damaged", [True, False])
def test_a_scan_of_a_phase_that_is_over_repairs_nothing(
    open_store: Callable[..., ConsensusStore], new_database: Database, damaged: bool
) -> None:
    """Reconcile repairs from the truth of the phase it looked at, or not at all; with nothing to repair, too."""
    store, other = open_store(), open_store()
    to_cutover(store)
    if damaged:
        new_database.unnoticed(DAMAGE)
    sides = [new_database.scalar(sql) for sql in SIDES]
    history = "SELECT count(*) FROM consensus_orm_history WHERE action = 'reconcile'"
    before = new_database.scalar(history)
    with pytest.raises(PhaseChangedError, match="DUAL_WRITE"):
        store.migration.reconcile(progress=flip_once(other))
    assert [new_database.scalar(sql) for sql in SIDES] == sides
    assert (sides[0] != sides[1]) is damaged
    assert new_database.scalar(history) == before


def test_a_row_that_was_rejected_after_verify_shuts_the_gate(
    open_store: Callable[..., ConsensusStore], new_database: Database
) -> None:
    """A certificate does not speak of a row that was rejected since, though somebody accepted that by now."""
    store = open_store()
    store.migration.migrate("dual_write")
    store.migration.backfill()
    assert store.migration.verify().clean
    assert store.migration.status().gate == []
    new_database.fault("BEFORE INSERT", "agent_outputs", IGNORE)
    new_database.script(ADD)
    store.migration.reconcile()
    new_database.heal()
    (reject,) = store.migration.rejects()
    store.migration.accept_reject(reject.id, reason="a test")
    with pytest.raises(GateClosedError) as shut:
        store.migration.advance()
    assert any("a row was rejected since the last verify" in reason for reason in shut.value.reasons)
    assert any("run: consensus-orm verify" in reason for reason in shut.value.reasons)
    assert store.migration.verify().clean
    assert store.migration.advance() is Phase.CUTOVER


def test_a_row_that_was_rejected_during_verify_shuts_the_gate(
    open_store: Callable[..., ConsensusStore], new_database: Database
) -> None:
    """A certificate does not speak of a row that was rejected between the scan and its conclusion, accepted or not."""
    store, other = open_store(), open_store()
    store.migration.migrate("dual_write")
    store.migration.backfill()
    left = [IGNORE]

    def reject_once(_: object) -> None:
        if left:
            new_database.fault("BEFORE INSERT", "agent_outputs", left.pop())
            new_database.script(ADD)
            other.migration.reconcile()
            (reject,) = other.migration.rejects()
            other.migration.accept_reject(reject.id, reason="a test")

    store.migration.verify(reject_once)
    new_database.heal()
    assert any("a row was rejected since the last verify" in reason for reason in store.migration.status().gate)
    assert store.migration.verify().clean
    assert store.migration.status().gate == []


def test_what_we_deleted_is_known_of_each_row_above_the_cap(
    open_store: Callable[..., ConsensusStore], new_database: Database
) -> None:
    """Rows that one side kept though we deleted them do not come back by reconcile, however many they are."""
    store = open_store(mismatch_cap=2)
    to_cutover(store)
    with store.unit_of_work() as uow:
        row = {"spec_id": "GONE", "stage": "s", "agent_name": "a", "content_json": "{}"}
        uow.artifacts.add_many([row] * 7)
    new_database.fault("BEFORE DELETE", "consensus_artifacts", IGNORE)
    with store.unit_of_work() as uow:
        assert uow.artifacts.delete(spec_id="GONE") == 7
    new_database.heal()
    legacy = "SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'GONE'"
    assert new_database.scalar(legacy) == 7
    store.migration.reconcile()
    assert new_database.scalar(legacy) == 0
    assert new_database.scalar("SELECT count(*) FROM consensus_runs WHERE spec_id = 'GONE'") == 0
    assert store.migration.verify().clean


def test_a_row_that_could_not_be_carried_leaves_no_run_behind(
    open_store: Callable[..., ConsensusStore], new_database: Database
) -> None:
    """A run that was made for rows that all became rejects goes with them, after a backfill and after a reconcile."""
    store = open_store()
    store.migration.migrate("expand")
    new_database.script(
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('LOST', 's', 'a', '{}')"
    )
    store.migration.advance()
    new_database.fault("BEFORE INSERT", "agent_outputs", IGNORE)
    store.migration.backfill()
    new_database.script(
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('LATE', 's', 'a', '{}')"
    )
    store.migration.reconcile()
    new_database.heal()
    assert {reject.table for reject in store.migration.rejects()} == {"consensus_artifacts"}
    assert new_database.rows_of("SELECT spec_id FROM consensus_runs WHERE spec_id IN ('LOST', 'LATE')") == []
    assert [d for d in store.migration.verify().differences if d.kind == "derived"] == []
