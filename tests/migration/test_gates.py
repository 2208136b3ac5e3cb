"""The gates: what each of them wants before the phase goes on, and that nothing else opens it."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import (
    DatabaseBusyError,
    InvalidValueError,
    MigrationError,
    WrongPhaseError,
)
from tests.migration.steps import BOTH, CARRIED, FORCED, Clock, Open, _raise, forward, image, ready, refused, write
from tests.support import oracle
from tests.support.databases import REFUSE, Database


def test_the_gate_wants_the_backfill_to_be_complete(store: ConsensusStore) -> None:
    """Rows that nobody carried would be lost to readers, so not even force opens the gate to CUTOVER."""
    forward(store, Phase.DUAL_WRITE)
    with pytest.raises(RuntimeError, match="enough"):
        store.migration.backfill(_raise)
    refused(store, "the backfill of artifacts is not complete; run: consensus-orm backfill")
    refused(store, "the backfill of syntheses is not complete", **FORCED)
    store.migration.backfill()
    store.migration.verify()
    assert store.migration.advance() is Phase.CUTOVER


@pytest.mark.long
@pytest.mark.parametrize("where", ["at its lock", "after its commit"])
def test_the_backfill_counts_rows_once(open_store: Open, database: Database, where: str) -> None:
    """Rows of a chunk that met a transient error are carried again, and are not more rows for that."""
    soon = timedelta(milliseconds=50)
    store = open_store(busy_timeout=2 * soon, retry_attempts=20, retry_initial=soon, chunk_rows=1)
    forward(store, Phase.DUAL_WRITE)
    faults = 0

    def disturb(_: object) -> None:
        nonlocal faults
        if faults < 3:
            faults += 1
            if where == "after its commit":
                raise DatabaseBusyError("for a moment", hint="wait")
            held = threading.Event()
            threading.Thread(target=keep_waiting, args=(database, held)).start()
            held.wait()

    report = store.migration.backfill(disturb)
    assert faults == 3
    assert report.rows == sum(database.scalar(f"SELECT count(*) FROM {table}") for table in CARRIED)
    assert store.migration.verify().clean


def keep_waiting(database: Database, held: threading.Event) -> None:
    """Keep writers waiting for longer than their timeout."""
    with database.writers_waiting():
        held.set()
        time.sleep(0.3)


@pytest.mark.parametrize("phase", [*BOTH, Phase.NORMALIZED], ids=lambda p: p.name)
def test_the_gate_wants_a_certificate_of_this_phase(store: ConsensusStore, phase: Phase) -> None:
    """What was verified before the last change of phase certifies nothing."""
    forward(store, phase)
    if phase.compares:
        store.migration.backfill()
    refused(store, "nothing was verified in this phase; run: consensus-orm verify", **FORCED)
    store.migration.verify()
    assert store.migration.advance() is phase.next


def test_a_certificate_is_void_when_the_mapping_changes(store: ConsensusStore, database: Database) -> None:
    """The certificate names the mapping it was made with; another one has to verify again."""
    ready(store, Phase.DUAL_WRITE)
    database.script("UPDATE consensus_orm_certificates SET mapping = 'another'")
    refused(store, "the declaration has changed since the last verify", **FORCED)


@pytest.mark.long
@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
@pytest.mark.parametrize(
    "script",
    [
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', 'c')",
        "UPDATE consensus_artifacts SET content_json = 'changed' WHERE id = 1",
        "DELETE FROM consensus_synthesis WHERE id = 1",
        "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp) VALUES (1, 'a', 'c', 1)",
        "UPDATE agent_outputs SET content = 'changed' WHERE id = 1",
        "DELETE FROM agent_outputs WHERE id = 1",
        "UPDATE consensus_runs SET stage = 'changed' WHERE id = 1",
    ],
)
def test_a_certificate_is_void_after_a_foreign_write(
    store: ConsensusStore, database: Database, phase: Phase, script: str
) -> None:
    """A write around the repositories shuts the gate at once, and still after it was adopted, until a verify."""
    ready(store, phase)
    database.script(script)
    assert store.migration.status().foreign_writes >= 1
    refused(store, "rows were written around the repositories since the last verify", **FORCED)
    is_one = "consensus_runs" not in script  # a run has several rows
    told = "write of other programs is" if is_one else "writes of other programs are"
    refused(store, f"{told} not adopted; run: consensus-orm reconcile", **FORCED)
    if store.migration.reconcile().undecided:
        refused(store, "take them over with reconcile --adopt, or put them back with reconcile --repair", **FORCED)
        assert store.migration.reconcile(foreign="adopt").undecided == ()
    assert database.legacy() == database.normalized()
    refused(store, "rows were written around the repositories since the last verify", **FORCED)
    assert store.migration.verify().clean
    assert store.migration.advance() is phase.next


def test_writes_through_the_repositories_leave_a_certificate_valid(store: ConsensusStore) -> None:
    """They are compared themselves: adds, and deletes on both sides, shut no gate."""
    ready(store, Phase.DUAL_WRITE)
    write(store, "compared")
    assert store.migration.status().foreign_writes == 0
    assert store.migration.advance() is Phase.CUTOVER


def test_a_certificate_is_void_after_a_mismatch_or_reject(store: ConsensusStore, database: Database) -> None:
    """Even one that is settled: what was verified is not what is there now."""
    ready(store, Phase.DUAL_WRITE)
    database.fault("BEFORE INSERT", "agent_outputs", REFUSE)
    with store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="c")
    database.heal()
    refused(store, "1 mismatch is open; run: consensus-orm reconcile", **FORCED)
    (found,) = store.migration.mismatches()
    store.migration.accept_mismatch(found.id, reason="known")
    refused(store, "a mismatch was found since the last verify", **FORCED)
    report = store.migration.verify()
    assert [(d.pair, d.key, d.kind) for d in report.differences] == [("artifacts", found.key, "missing_normalized")]
    refused(store, "the last verify found 1 differing row; run: consensus-orm reconcile", **FORCED)
    store.migration.reconcile()
    assert store.migration.verify().clean
    assert store.migration.advance() is Phase.CUTOVER


@pytest.mark.long
def test_a_certificate_grows_old(store: ConsensusStore, clock: Clock) -> None:
    """After certificate_max_age the gate shuts; it is a mere wait, so force with a reason opens it."""
    ready(store, Phase.DUAL_WRITE)
    clock.pass_(days=1, seconds=1)
    refused(store, "old; run: consensus-orm verify")
    assert store.migration.advance(**FORCED) is Phase.CUTOVER


def test_a_soak_lasts_as_long_as_set(open_store: Open, clock: Clock) -> None:
    """The gate names what is left; at the end of it the gate opens, before it only force or soak=False."""
    store = open_store(soak_dual_write=timedelta(days=7))
    forward(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    clock.pass_(days=6)
    store.migration.verify()
    refused(store, "the soak of DUAL_WRITE lasts")
    clock.pass_(days=1)
    store.migration.verify()
    assert store.migration.advance() is Phase.CUTOVER


def test_verify_that_compared_nothing_certifies_nothing(store: ConsensusStore, database: Database) -> None:
    """A certificate over no row, while there are rows, shuts the gate."""
    ready(store, Phase.DUAL_WRITE)
    database.script("UPDATE consensus_orm_certificates SET compared = 0")
    refused(store, "the last verify compared no row", **FORCED)


def test_an_empty_database_passes_all_gates(store: ConsensusStore, database: Database) -> None:
    """Nothing to compare is no obstacle where there is nothing."""
    database.script("DELETE FROM consensus_artifacts; DELETE FROM consensus_synthesis")
    forward(store, Phase.CONTRACT)
    assert store.migration.rollback("expand") is Phase.EXPAND


def test_an_unknown_legacy_column_shuts_the_last_gate(store: ConsensusStore, database: Database) -> None:
    """Its values would be lost with the table, so force does not help; without the column the gate opens."""
    database.script("ALTER TABLE consensus_artifacts ADD COLUMN tokens INTEGER DEFAULT 7")
    ready_but_for_the_column = Phase.NORMALIZED
    forward(store, ready_but_for_the_column)
    assert store.migration.verify().clean
    before = image(database)
    refused(store, "consensus_artifacts has a column 'tokens' that no move speaks of", **FORCED)
    assert image(database) == before
    database.script("ALTER TABLE consensus_artifacts DROP COLUMN tokens")
    assert store.migration.advance() is Phase.CONTRACT


def test_force_needs_a_reason_and_is_audited(open_store: Open) -> None:
    """Without a reason nothing happens; with one the audit says who, why, and that it was forced."""
    store = open_store(soak_dual_write=timedelta(days=7))
    ready_for(store)
    for reason in (None, "", "  "):
        with pytest.raises(InvalidValueError, match="force needs a reason"):
            store.migration.advance(force=True, reason=reason)
    assert store.migration.phase is Phase.DUAL_WRITE
    store.migration.advance(**FORCED)
    last = store.migration.history()[-1]
    assert (last.action, last.from_phase, last.to_phase, last.reason, last.forced) == (
        "advance", Phase.DUAL_WRITE, Phase.CUTOVER, "in a hurry", True,
    )  # fmt: skip
    assert "@" in last.by


def ready_for(store: ConsensusStore) -> None:
    forward(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    assert store.migration.verify().clean


def test_history_tells_every_change_of_phase(store: ConsensusStore) -> None:
    """From, to, when and in order, forth and back; the contraction names its backup, which exists."""
    forward(store, Phase.CONTRACT)
    store.migration.rollback("expand", reason="back")
    entries = store.migration.history()
    moves = [(e.action, e.from_phase, e.to_phase) for e in entries if e.to_phase and e.from_phase]
    forth = [("advance", a, b) for a, b in zip(list(Phase), list(Phase)[1:], strict=False)]
    back = [("rollback", b, a) for _, a, b in reversed(forth)]
    assert moves == forth + back
    assert [e.reason for e in entries if e.action == "rollback"] == ["back"] * 4
    assert [e.at for e in entries] == sorted(e.at for e in entries)
    (contracted,) = [e for e in entries if e.to_phase is Phase.CONTRACT]
    backup = Path(contracted.detail["backup"])
    if backup.is_dir():  # of a server
        counts = {each["name"]: each["rows"] for each in json.loads((backup / "manifest.json").read_text())["tables"]}
        assert counts["consensus_artifacts"] == 8
    else:
        with oracle.reading(backup) as connection:
            assert connection.execute("SELECT count(*) FROM consensus_artifacts").fetchone() == (8,)


def test_a_phase_that_lies_the_other_way_is_refused(store: ConsensusStore) -> None:
    """Advance does not go back, rollback does not go forth, and before EXPAND there is nothing."""
    forward(store, Phase.CUTOVER)
    with pytest.raises(InvalidValueError, match="lies behind CUTOVER: run: consensus-orm rollback expand"):
        store.migration.advance("expand")
    with pytest.raises(InvalidValueError, match="lies ahead"):
        store.migration.rollback("contract")
    store.migration.rollback("expand")
    with pytest.raises(MigrationError, match="first phase"):
        store.migration.rollback()
    for step in (store.migration.backfill, store.migration.verify, store.migration.reconcile):
        with pytest.raises(WrongPhaseError):
            step()
