"""The phases: what each gate wants, and that there is a way back from every one of them, with nothing lost."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.databases import saved_rows
from consensus_orm.databases.opening import catalog
from consensus_orm.errors import (
    DatabaseBusyError,
    GateClosedError,
    InvalidValueError,
    MigrationError,
    MismatchError,
    WrongPhaseError,
)
from consensus_orm.settings import OnMismatch, Settings
from tests.field import builders
from tests.support import oracle
from tests.support.databases import FAIL, IGNORE, REFUSE, Database, build_legacy, odd_history, odd_rows

BASE = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=3, chunk_pause=0, synchronous="OFF")
BOTH = (Phase.DUAL_WRITE, Phase.CUTOVER)
NAMES = [phase.name for phase in Phase]
CARRIED = ("consensus_artifacts", "consensus_synthesis")


class Clock:
    """A clock that tests set; each look at it costs a millisecond."""

    def __init__(self) -> None:
        self.now = datetime(2025, 12, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now

    def pass_(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(new_database: Database) -> Database:
    """A legacy database with the common rows."""
    build_legacy(new_database.where, columns=10, altered=True)
    return new_database


Open = Callable[..., ConsensusStore]


@pytest.fixture
def open_store(database: Database, clock: Clock, tmp_path: Path) -> Iterator[Open]:
    """Open the database; keyword arguments are settings. Everything is closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def open_(**settings: Any) -> ConsensusStore:
            chosen = BASE.model_copy(update={"clock": clock, "backup_dir": tmp_path, **settings})
            return stack.enter_context(ConsensusStore.open(database.where, settings=chosen))

        yield open_


@pytest.fixture
def store(open_store: Open) -> ConsensusStore:
    return open_store()


def forward(store: ConsensusStore, to: Phase) -> None:
    """Step by step to a phase, with all that the gates want."""
    migration = store.migration
    while (now := migration.phase) < to:
        if now.compares:
            migration.backfill()
            migration.reconcile()
        if now.writes_normalized:
            assert migration.verify().clean
        migration.advance(soak=False)


def ready(store: ConsensusStore, phase: Phase) -> None:
    """In a phase, with the gate to the next one open."""
    forward(store, phase)
    if phase.compares:
        store.migration.backfill()
    assert store.migration.verify().clean
    assert store.migration.status().gate == []


def write(store: ConsensusStore, label: str) -> int:
    """An artifact of its own run, a synthesis, and another artifact that is deleted again."""
    with store.unit_of_work() as uow:
        gone = uow.artifacts.add(spec_id=f"gone {label}", stage="s", agent_name="a", content_json="x")
        kept = uow.artifacts.add(spec_id="kept", stage="s", agent_name=label, content_json="x", run_id=label)
        uow.syntheses.add(spec_id="kept", stage="s", output_markdown=label, status="ok", run_id=label)
        assert uow.artifacts.delete(spec_id=f"gone {label}") == 1
    assert kept.id == gone.id + 1
    return kept.id


def image(database: Database) -> tuple[Any, ...]:
    """All there is to say of the legacy tables, less our own triggers."""
    definitions, found, sequences = database.image(*oracle.LEGACY)
    assert isinstance(definitions, list)
    return sorted(e for e in definitions if not e[1].startswith("consensus_orm_")), found, sequences


def refused(store: ConsensusStore, because: str, **arguments: Any) -> None:
    """The gate is shut for one reason, and stays so by force where that is no mere wait."""
    before = store.migration.phase
    with pytest.raises(GateClosedError) as shut:
        store.migration.advance(**arguments)
    assert any(because in reason for reason in shut.value.reasons), shut.value.reasons
    assert store.migration.phase is before


# Gates ----------------------------------------------------------------------------------------------------

FORCED: dict[str, Any] = {"force": True, "reason": "in a hurry"}


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


def _raise(*_: object) -> None:
    raise RuntimeError("enough")


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
    refused(store, "the mapping has changed since the last verify", **FORCED)


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
    refused(store, "are not adopted; run: consensus-orm reconcile", **FORCED)
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
    refused(store, "1 mismatches are open; run: consensus-orm reconcile", **FORCED)
    (found,) = store.migration.mismatches()
    store.migration.accept_mismatch(found.id, reason="known")
    refused(store, "a mismatch was found since the last verify", **FORCED)
    report = store.migration.verify()
    assert [(d.pair, d.key, d.kind) for d in report.differences] == [("artifacts", found.key, "missing_normalized")]
    refused(store, "the last verify found 1 differing rows; run: consensus-orm reconcile", **FORCED)
    store.migration.reconcile()
    assert store.migration.verify().clean
    assert store.migration.advance() is Phase.CUTOVER


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
    refused(store, "consensus_artifacts has a column 'tokens' that nobody knows", **FORCED)
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
    with oracle.reading(Path(contracted.detail["backup"])) as connection:
        assert connection.execute("SELECT count(*) FROM consensus_artifacts").fetchone() == (8,)


def test_a_phase_that_lies_the_other_way_is_refused(store: ConsensusStore) -> None:
    """Advance does not go back, rollback does not go forth, and before EXPAND there is nothing."""
    forward(store, Phase.CUTOVER)
    with pytest.raises(InvalidValueError, match="lies behind"):
        store.migration.advance("expand")
    with pytest.raises(InvalidValueError, match="lies ahead"):
        store.migration.rollback("contract")
    store.migration.rollback("expand")
    with pytest.raises(MigrationError, match="first phase"):
        store.migration.rollback()
    for step in (store.migration.backfill, store.migration.verify, store.migration.reconcile):
        with pytest.raises(WrongPhaseError):
            step()


# The way back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", list(Phase)[1:], ids=lambda p: p.name)
def test_there_is_a_way_back_from_every_phase(store: ConsensusStore, database: Database, top: Phase) -> None:
    """Writes of each phase forth and back all stand in the legacy tables at the end, with the ids they were given.

    The newest row is deleted each time, and no id is given twice.
    """
    before = database.legacy()["artifacts"]
    ids, labels = [], []
    store.upgrade()

    def step(label: str) -> None:
        ids.append(write(store, label))
        labels.append(label)

    for phase in list(Phase)[: top.value]:
        forward(store, phase)
        step(f"forth {phase.name}")
    while store.migration.phase.previous:
        store.migration.rollback()
        step(f"back {store.migration.phase.name}")
        assert store.migration.mismatches(everything=True) == []
    after = database.legacy()["artifacts"]
    assert after[: len(before)] == before
    assert [int(bytes.fromhex(row[0][1])) for row in after[len(before) :]] == ids
    assert [bytes.fromhex(row[3][1]).decode() for row in after[len(before) :]] == labels
    # Each of them gave two ids, one of which was deleted; the first id after the file's own is 12.
    assert ids == list(range(12, 12 + 2 * len(ids), 2))


OBJECTS_OF_OTHERS = {
    "sqlite": """
        CREATE INDEX "their ""index" ON consensus_artifacts(length(content_json)) WHERE run_id IS NULL;
        CREATE TABLE their_log (what TEXT DEFAULT ':x');
        CREATE TRIGGER their_trigger AFTER DELETE ON consensus_artifacts BEGIN
          INSERT INTO their_log VALUES ('deleted: ' || OLD.id || ':y'); END;
        CREATE TRIGGER their_update BEFORE UPDATE OF stage ON Consensus_Synthesis BEGIN SELECT 1; END;
        CREATE VIEW their_view AS SELECT spec_id FROM consensus_artifacts;
        UPDATE sqlite_sequence SET seq = 5000 WHERE name = 'consensus_artifacts';
        """,
    "postgresql": """
        CREATE INDEX "their ""index" ON consensus_artifacts(length(content_json)) WHERE run_id IS NULL;
        CREATE TABLE their_log (what TEXT DEFAULT ':x');
        CREATE FUNCTION their_function() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO their_log VALUES ('deleted: ' || OLD.id || ':y'); RETURN NULL; END $$;
        CREATE TRIGGER their_trigger AFTER DELETE ON consensus_artifacts
          FOR EACH ROW EXECUTE FUNCTION their_function();
        CREATE VIEW their_view AS SELECT spec_id FROM consensus_artifacts;
        ALTER TABLE consensus_artifacts ADD CONSTRAINT their_check CHECK (id <> 7000), ALTER spec_id SET STATISTICS 50;
        SELECT setval('consensus_artifacts_id_seq', 5000);
        """,
}


def test_legacy_objects_of_others_come_back_as_they_were(store: ConsensusStore, database: Database) -> None:
    """DDL with its comments, indexes, triggers and views of others, column order and sequence: all as before."""
    database.script(OBJECTS_OF_OTHERS[database.kind])
    theirs = ("their_view", "their_log")
    before, view = image(database), database.judge.definitions(database.where, *theirs)
    forward(store, Phase.CONTRACT)
    assert not set(oracle.LEGACY) & set(database.tables())
    store.migration.rollback("expand")
    assert image(database) == before
    assert database.judge.definitions(database.where, *theirs) == view
    assert database.scalar("SELECT count(*) FROM their_log") == 0
    assert database.scalar("SELECT count(*) FROM their_view") == 8
    assert write(store, "next") == 5002


def test_every_odd_row_goes_through_all_phases_and_back(new_database: Database, tmp_path: Path) -> None:
    """LEGACY section 4: reads equal in all five phases, no reject, and the legacy tables byte for byte."""
    odd_history(new_database.where)
    before = image(new_database)

    def read(store: ConsensusStore) -> list[Any]:
        with store.unit_of_work(read_only=True) as uow:
            runs = [run for spec in uow.artifacts.specs() if isinstance(spec, str) and spec.isprintable() and spec
                    for run in uow.runs.list(spec_id=spec)]  # fmt: skip
            return [uow.artifacts.list(), uow.syntheses.list(), runs, uow.artifacts.count()]

    settings = BASE.model_copy(update={"chunk_rows": 10, "backup_dir": tmp_path})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        reads = read(store)
        for phase in list(Phase)[1:]:
            forward(store, phase)
            assert read(store) == reads, phase
            if phase is Phase.DUAL_WRITE:
                assert store.migration.backfill().rejects == 0
        assert store.migration.rejects(everything=True) == []
        for phase in reversed(list(Phase)[:-1]):
            assert store.migration.rollback() is phase
            assert read(store) == reads, phase
    assert image(new_database) == before


def test_the_frozen_tables_say_so(store: ConsensusStore, database: Database) -> None:
    """In NORMALIZED a program that still writes there gets a clear error, and its transaction nothing."""
    forward(store, Phase.NORMALIZED)
    before = image(database)[:2]  # a sequence of a server takes no number back
    for script in (
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', 'c')",
        "UPDATE consensus_synthesis SET status = 'x'",
        "DELETE FROM consensus_artifacts",
    ):
        with pytest.raises(database.Error, match="the legacy tables are frozen since phase NORMALIZED"):
            database.script(script)
    assert image(database)[:2] == before
    store.migration.rollback()
    database.script("DELETE FROM consensus_artifacts WHERE id = 1")


def test_changes_since_the_freeze_are_carried_back(store: ConsensusStore, database: Database) -> None:
    """In NORMALIZED legacy rows stand still.

    The rollback makes them what they are by then, rows of a program of the founding schema included.
    """
    forward(store, Phase.NORMALIZED)
    frozen = image(database)[:2]  # on a server both sides draw from the legacy sequence
    kept = write(store, "since")
    with store.unit_of_work() as uow:
        uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-plan")
    database.script("UPDATE agent_outputs SET content = 'changed' WHERE id = 5")
    database.script("DELETE FROM agent_outputs WHERE id = 6")
    database.script(
        "INSERT INTO consensus_runs (id, spec_id, stage, run_timestamp, consensus_ok)"
        " VALUES (900, 'F', 'f', 1500, TRUE);"
        "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp) VALUES (900, 'a', 'c', 1500)",
    )
    assert image(database)[:2] == frozen
    assert store.migration.verify().clean, "what is recorded as changed is no difference"
    assert store.migration.rollback() is Phase.CUTOVER
    assert database.legacy() == database.normalized()
    found = "SELECT id, content_json, created_at FROM consensus_artifacts WHERE id > 4 ORDER BY id"
    assert database.rows_of(found) == [
        (5, "changed", "2025-11-04 02:31:07"),
        *((n, *_given(database, n)) for n in (7, 8, 9)),
        (kept, "x", database.scalar(f"SELECT created_at FROM agent_outputs WHERE id = {kept}")),
        (kept + 1, "c", "1970-01-01 00:00:01.500"),
    ]


def _given(database: Database, key: int) -> tuple[Any, ...]:
    return database.rows_of("SELECT content, created_at FROM agent_outputs WHERE id = ?", key)[0]


# Interrupted steps ----------------------------------------------------------------------------------------


def test_an_interrupted_rebuild_goes_on(store: ConsensusStore, database: Database) -> None:
    """A rollback from CONTRACT that stops after a chunk changes no phase.

    The next call fills the rest, with what was written meanwhile.
    """
    before = image(database)
    forward(store, Phase.CONTRACT)
    with pytest.raises(RuntimeError, match="enough"):
        store.migration.rollback(progress=_raise)
    assert store.migration.phase is Phase.CONTRACT
    assert store.migration.status().next_command == "consensus-orm rollback normalized"
    with store.unit_of_work() as uow:
        added = uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="meanwhile")
        assert uow.artifacts.delete(spec_id="S") == 1
    assert database.scalar(f"SELECT count(*) FROM consensus_artifacts WHERE id = {added.id}") == 0
    store.migration.rollback("expand")
    _, found, sequences = image(database)
    assert found == before[1]
    assert sequences["consensus_artifacts"] == added.id


def test_an_interrupted_rebuild_is_undone_by_going_forward(store: ConsensusStore, database: Database) -> None:
    """Advance to CONTRACT after it drops the half-made tables; nothing of them is left, and the way back works."""
    before = image(database)
    forward(store, Phase.CONTRACT)
    with pytest.raises(RuntimeError, match="enough"):
        store.migration.rollback(progress=_raise)
    assert store.migration.advance("contract") is Phase.CONTRACT
    assert not set(oracle.LEGACY) & set(database.tables())
    store.migration.rollback("expand")
    assert image(database) == before


def on_their_way_out(database: Database) -> list[str]:
    """Legacy tables that were put away and hold rows still; on a server the empty table stays."""
    away = [table for table in database.tables() if table.startswith(saved_rows.DROPPED)]
    return [table for table in away if database.kind == "sqlite" or database.scalar(f'SELECT count(*) FROM "{table}"')]


@pytest.mark.parametrize("then", ["advance", "rollback"])
def test_an_interrupted_emptying_is_finished(
    store: ConsensusStore, database: Database, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The phase is CONTRACT with the flip; tables on their way out are finished by whatever is called next."""
    before = image(database)
    forward(store, Phase.NORMALIZED)
    store.migration.verify()
    with monkeypatch.context() as patch:
        patch.setattr(type(catalog(database.kind).legacy), "empty", _raise)
        with pytest.raises(RuntimeError, match="enough"):
            store.migration.advance()
    assert store.migration.phase is Phase.CONTRACT
    assert len(on_their_way_out(database)) == 2
    if then == "advance":
        store.migration.advance("contract")
        assert not on_their_way_out(database)
    store.migration.rollback("expand")
    assert image(database) == before
    assert not on_their_way_out(database)


# Ids ------------------------------------------------------------------------------------------------------


def test_no_id_is_given_twice_after_deletes_and_flips(store: ConsensusStore, database: Database) -> None:
    """The newest row is deleted before each flip, so only the sequence knows its id; the next one is higher."""
    highest = 0
    store.upgrade()
    for _ in range(2):
        forth: list[Callable[[], object]] = [functools.partial(forward, store, phase) for phase in list(Phase)[1:]]
        for move in [*forth, *[store.migration.rollback] * 4]:
            with store.unit_of_work() as uow:
                artifact = uow.artifacts.add(spec_id="I", stage="s", agent_name="a", content_json="x")
                uow.artifacts.delete(spec_id="I")
            assert artifact.id > highest
            highest = artifact.id
            move()
    database.script(
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', 'c')"
    )
    assert database.scalar("SELECT max(id) FROM consensus_artifacts") == highest + 1


# Rejects --------------------------------------------------------------------------------------------------


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
    refused(store, "1 rejects are open; run: consensus-orm rejects", **FORCED)
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
ODD_CELLS = {
    "sqlite": "response_text = x'00ff', created_at = 0.1",
    "postgresql": "response_text = '\\xff', run_id = ''",
}


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
    assert all(m.settled_at is not None for m in settled)
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
    assert (store.migration.history()[-1].action, store.migration.history()[-1].reason) == ("accept mismatch", "a test")


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


@pytest.mark.parametrize(("damage", "pair", "told"), DAMAGE)
def test_verify_names_what_differs(
    store: ConsensusStore, database: Database, damage: str, pair: str, told: str
) -> None:
    """Every kind of silent damage is found with its key and columns, and reconcile repairs it."""
    ready(store, Phase.DUAL_WRITE)
    before = database.legacy()
    database.unnoticed(damage)
    (found,) = [d for d in store.migration.verify().differences if d.pair == pair]
    assert found.columns == (told,) if found.kind == "different" else (found.columns, found.kind) == ((), told)
    refused(store, "differing rows; run: consensus-orm reconcile", **FORCED)
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


# Programs that know one side ------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("phase", list(Phase)[:3], ids=lambda p: p.name)
def test_triggers_leave_a_foreign_program_of_a_server_alone(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """RETURNING, counts of rows, and privileges: a program with rights on the legacy tables alone notices nothing."""
    forward(store, phase)
    if phase.compares:
        store.migration.backfill()
    tables = "consensus_artifacts, consensus_artifacts_id_seq"
    with psycopg.connect(str(database.where)) as connection:
        connection.execute("CREATE ROLE somebody")
        connection.execute(f"GRANT ALL ON {tables} TO somebody".encode())
        connection.execute("SET ROLE somebody")
        legacy = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', %s)"
        given = [connection.execute(legacy + " RETURNING id", (str(n),)).fetchone() for n in range(3)]
        assert connection.execute("SELECT id FROM consensus_artifacts WHERE spec_id = 'S'").fetchall() == given
        assert connection.execute("UPDATE consensus_artifacts SET stage = 't' WHERE spec_id = 'S'").rowcount == 3
        assert connection.execute("DELETE FROM consensus_artifacts WHERE id <= 2").rowcount == 2
        connection.execute("RESET ROLE")
        connection.execute(f"REVOKE ALL ON {tables} FROM somebody; DROP ROLE somebody".encode())
    if phase.compares:
        assert store.migration.status().foreign_writes >= 5
        store.migration.reconcile(foreign="adopt")
        assert database.legacy() == database.normalized()


@pytest.mark.sqlite
@pytest.mark.parametrize("phase", list(Phase)[:3], ids=lambda p: p.name)
def test_triggers_leave_a_foreign_program_alone(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """last_insert_rowid(), changes() and RETURNING tell a plain program what they would without us."""
    forward(store, phase)
    if phase.compares:
        store.migration.backfill()
    with builders.writing(Path(database.where)) as connection:
        legacy = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('S', 's', 'a', ?)"
        for n in range(3):
            cursor = connection.execute(legacy, (str(n),))
            assert connection.execute("SELECT last_insert_rowid(), changes()").fetchone() == (cursor.lastrowid, 1)
            assert cursor.lastrowid == connection.execute("SELECT max(id) FROM consensus_artifacts").fetchone()[0]
        assert connection.execute("UPDATE consensus_artifacts SET stage = 't' WHERE spec_id = 'S'").rowcount == 3
        assert connection.execute("SELECT changes()").fetchone() == (3,)
        assert connection.execute("DELETE FROM consensus_artifacts WHERE spec_id = 'S'").rowcount == 3
        assert connection.execute(legacy + " RETURNING content_json", ("r",)).fetchall() == [("r",)]
        if phase.compares:
            assert connection.execute("DELETE FROM agent_outputs WHERE id <= 2").rowcount == 2
            assert connection.execute("SELECT changes()").fetchone() == (2,)
    if phase.compares:
        store.migration.reconcile(foreign="adopt")
        assert database.legacy() == database.normalized()
        assert database.scalar("SELECT count(*) FROM consensus_artifacts WHERE id <= 2") == 0


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_rows_of_odd_values_are_adopted_from_both_sides(
    store: ConsensusStore, database: Database, phase: Phase
) -> None:
    """All odd rows, written by a plain legacy program while both sides are in use, are carried exactly."""
    forward(store, phase)
    store.migration.backfill()
    odd_rows(database.where)
    before = database.legacy()
    store.migration.reconcile()
    assert database.legacy() == database.normalized() == before
    assert store.migration.rejects() == []
    assert store.migration.verify().clean
