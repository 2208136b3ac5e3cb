"""The fence on PostgreSQL: who waits for whom when the phase changes, and what is carried beside whom.

Other programs are plain psycopg; they know one side only, and nothing of this package.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.databases.postgresql import connection
from consensus_orm.errors import DatabaseBusyError, GateClosedError
from consensus_orm.settings import Settings
from tests.concurrency import actors, clients, databases
from tests.concurrency.databases import (
    SETTINGS,
    assert_sides_agree,
    assert_sound,
    connect,
    flips,
    legacy,
    normalized,
    phase_of,
    query,
    settings,
)
from tests.concurrency.processes import Child, start
from tests.support.engines import TABLE_LOCKS_AND_NUMBERS

pytestmark = pytest.mark.long

InPhase = Callable[..., contextlib.AbstractContextManager[str]]

INSERT = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('RAW', 's', 'raw', %s)"


@pytest.fixture(params=[(), TABLE_LOCKS_AND_NUMBERS], ids=["table locks", "row locks"])
def in_phase(request: pytest.FixtureRequest) -> InPhase:
    """Databases of a server that locks tables, and of an engine that only locks rows."""
    return functools.partial(databases.in_phase, lacking=request.param)


def ready(url: str) -> None:
    """Everything that the next gate wants."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        if store.migration.phase.compares:
            store.migration.backfill()
        if store.migration.phase.writes_normalized:
            assert store.migration.verify().clean


@contextlib.contextmanager
def writing_beside(url: str) -> Iterator[list[int]]:
    """Units of work that write, one after the other, in a thread of their own; the ids they were given."""
    ids: list[int] = []
    stop = threading.Event()
    failures: list[Exception] = []

    def write() -> None:
        try:
            with ConsensusStore.open(url, settings=SETTINGS) as store:
                while not stop.is_set():
                    with store.unit_of_work() as uow:
                        ids.append(clients.add_one(uow, f"B{len(ids)}"))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield ids
    finally:
        stop.set()
        thread.join()
    assert failures == []


def more_than(ids: list[int], count: int) -> None:
    """Wait until so many more units of work are committed."""
    goal, deadline = len(ids) + count, time.monotonic() + 20
    while len(ids) < goal:
        assert time.monotonic() < deadline, "writers are kept waiting"
        time.sleep(0.002)


def flipper(url: str, method: str, folder: Path, **more: str) -> Child:
    """A process that takes one step when it is told to."""
    child = start(
        actors.advance, url, method, {"chunk_rows": "16", "chunk_pause": "0", "backup_dir": str(folder), **more}
    )
    assert child.hear() == "ready"
    return child


# Who reads -----------------------------------------------------------------------------------------------------


def test_a_flip_waits_for_nobody_who_reads(in_phase: InPhase, tmp_path: Path) -> None:
    """A read-only unit of work across a flip holds up none of them, there and back, and reads on what it read."""
    with in_phase(Phase.EXPAND) as url, ConsensusStore.open(url, settings=settings(tmp_path)) as store:
        migration = store.migration
        for target in (*list(Phase)[1:], *list(Phase)[-2::-1]):
            ready(url)
            with store.unit_of_work(read_only=True) as uow:
                seen = uow.artifacts.list(), uow.syntheses.list(), uow.runs.list(spec_id="SPEC-KIT-900")
                before = uow.phase
                if target > before:
                    migration.advance(target, soak=False)
                else:
                    migration.rollback(target)
                assert migration.phase is target
                assert uow.phase is before
                again = uow.artifacts.list(), uow.syntheses.list(), uow.runs.list(spec_id="SPEC-KIT-900")
                assert again == seen
            assert_sound(url)


# Who writes ----------------------------------------------------------------------------------------------------

STEPS = [
    *((phase, "advance") for phase in Phase if phase.next),
    *((phase, "rollback") for phase in Phase if phase.previous),
]
NAMES = [f"{phase.name.lower()}-{method}" for phase, method in STEPS]


@pytest.mark.parametrize(("phase", "method"), STEPS, ids=NAMES)
def test_a_long_unit_of_work_keeps_the_flip_waiting_and_nobody_else(
    in_phase: InPhase, tmp_path: Path, phase: Phase, method: str
) -> None:
    """While one unit of work stays open and a flip tries, others write; then it flips, and nothing is lost."""
    with in_phase(phase, ready) as url, ConsensusStore.open(url, settings=SETTINGS) as store:
        with store.unit_of_work() as uow, writing_beside(url) as ids:
            key = clients.add_one(uow, "LONG")
            child = flipper(url, method, tmp_path)
            child.tell()
            more_than(ids, 30)
            assert phase_of(url) is phase
        result, reached, _ = child.hear()
        assert (result, reached) == ("ok", (phase.next if method == "advance" else phase.previous).name)  # type: ignore[union-attr]
        assert child.join() == 0
        assert_sound(url)
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.get(key) is not None
            assert {artifact.id for artifact in uow.artifacts.list()} >= set(ids)
        if phase_of(url).compares and phase is not Phase.EXPAND:
            assert_sides_agree(url)


def test_a_flip_gives_up_in_bounded_time_and_changes_nothing(in_phase: InPhase, tmp_path: Path) -> None:
    """Against a unit of work that does not end, a flip fails with an error that may be tried again."""
    with in_phase(Phase.DUAL_WRITE, ready) as url, ConsensusStore.open(url, settings=SETTINGS) as holder:
        with holder.unit_of_work():
            child = flipper(url, "advance", tmp_path, busy_timeout="0.3", retry_attempts="2", retry_initial="0.01")
            child.tell()
            assert child.hear()[0] == "DatabaseBusyError"
            assert child.join() == 0
        assert phase_of(url) is Phase.DUAL_WRITE
        assert holder.migration.advance(soak=False) is Phase.CUTOVER


@pytest.mark.parametrize(("phase", "method"), STEPS, ids=NAMES)
def test_of_two_flips_at_once_one_is_taken(in_phase: InPhase, tmp_path: Path, phase: Phase, method: str) -> None:
    """Two processes take the same step at once: one takes it, the other is told, and the audit has one entry."""
    with in_phase(phase, ready) as url:
        before = flips(url)
        children = [flipper(url, method, tmp_path) for _ in range(2)]
        with connect(url) as other, other.transaction():
            other.execute("SELECT phase FROM consensus_orm_state FOR KEY SHARE")
            for child in children:
                child.tell()
            time.sleep(0.1)  # both have read the phase by now, and wait
        told = sorted(child.hear() for child in children)
        assert [child.join() for child in children] == [0, 0]
        assert_sound(url)
        assert len(flips(url)) == len(before) + 1, told
        loser, winner = told
        assert winner[0] == "ok"
        assert loser[0] in ("PhaseChangedError", "GateClosedError"), loser[1]


def test_a_flip_that_waits_is_not_overtaken(in_phase: InPhase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that begins after it waits behind it, though it would go together with the writer it waits for."""
    for name in ("FLIP_PATIENCE", "MOST_PATIENCE"):
        monkeypatch.setattr(connection, name, 30_000)
    phases: list[Phase] = []
    with in_phase(Phase.DUAL_WRITE, ready) as url, ConsensusStore.open(url, settings=settings(tmp_path)) as store:

        def write() -> None:
            with store.unit_of_work() as uow:
                phases.append(uow.phase)
                clients.add_one(uow, "LATER")

        with store.unit_of_work() as uow:
            clients.add_one(uow, "BEFORE")
            flip = threading.Thread(target=lambda: store.migration.advance(soak=False))
            flip.start()
            waiting(url, 1)
            later = threading.Thread(target=write)
            later.start()
            waiting(url, 2)
            assert phases == []
        for thread in (flip, later):
            thread.join(20)
        assert phases == [Phase.CUTOVER]
        assert_sides_agree(url)


def waiting(url: str, count: int) -> None:
    """Wait until so many connections wait for a lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    deadline = time.monotonic() + 10
    while query(url, waits) != [(count,)]:
        assert time.monotonic() < deadline, "it does not wait"
        time.sleep(0.01)


# Programs that know one side only --------------------------------------------------------------------------------


WRITTEN = [(phase, method) for phase, method in STEPS if phase.writes_legacy]


@pytest.mark.parametrize(("phase", "method"), WRITTEN, ids=[f"{p.name.lower()}-{m}" for p, m in WRITTEN])
def test_a_program_that_has_written_keeps_the_flip_waiting(
    in_phase: InPhase, tmp_path: Path, phase: Phase, method: str
) -> None:
    """A row that another program wrote under a phase, and commits while a flip tries, is on both sides in the end."""
    with in_phase(phase, ready) as url:
        with writing_beside(url) as ids, connect(url) as program, program.transaction():
            program.execute(INSERT, ("before the flip",))
            child = flipper(url, method, tmp_path)
            child.tell()
            more_than(ids, 30)
            assert phase_of(url) is phase
        told = child.hear()
        assert child.join() == 0
        assert told[0] in ("ok", "GateClosedError"), told
        if told[0] == "GateClosedError":  # it was noted after the certificate, and is adopted first
            assert re.search("writes? of other programs (is|are) not adopted", told[1])
        carried_and_verified(url)
        assert "before the flip" in [row[4] for row in legacy(url)["artifacts"]]


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "SERIALIZABLE"])
@pytest.mark.parametrize("phase", [Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER])
def test_a_program_that_began_before_the_flip_and_writes_after_it_is_noticed(
    in_phase: InPhase, phase: Phase, isolation: str
) -> None:
    """However old its snapshot is: its row is carried, or it is told that the table is frozen."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(in_phase(phase, ready))
        store = stack.enter_context(ConsensusStore.open(url, settings=SETTINGS))
        with connect(url) as program:
            program.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
            program.execute("SELECT count(*) FROM consensus_artifacts")
            store.migration.advance(soak=False)
            if store.migration.phase.freezes_legacy:
                with pytest.raises(psycopg.errors.RaiseException, match="frozen since phase NORMALIZED"):
                    program.execute(INSERT, ("too late",))
                return
            program.execute(INSERT, ("after the flip",))
            program.execute("COMMIT")
        carried_and_verified(url)
        assert "after the flip" in [row[4] for row in normalized(url)["artifacts"]]


def carried_and_verified(url: str) -> None:
    """Carry what waits to be carried; both sides agree then."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        migration = store.migration
        if migration.phase is Phase.EXPAND:
            migration.advance(soak=False)
        if migration.phase is Phase.NORMALIZED:
            migration.rollback()
        migration.backfill()
        migration.reconcile(foreign="adopt")
        assert migration.verify().clean
        assert (migration.rejects(), migration.mismatches()) == ([], [])
    assert_sides_agree(url)
    assert_sound(url)


# Carrying beside others ------------------------------------------------------------------------------------------

ROWS = 1200


def grown(url: str) -> None:
    """Many legacy rows that nobody has carried yet, in many specs, stages and runs."""
    with connect(url) as connection:
        connection.execute(
            """
            INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id)
              SELECT 'G' || g % 40, 's' || g % 3, 'a', repeat('x', g % 50),
                CASE g % 4 WHEN 0 THEN NULL ELSE 'r' || g % 7 END
              FROM generate_series(1, 1200) AS g;
            INSERT INTO consensus_synthesis (spec_id, stage, output_markdown, status, run_id)
              SELECT 'G' || g % 40, 's' || g % 3, 'm', CASE g % 5 WHEN 0 THEN 'degraded' ELSE 'ok' END, 'r' || g % 7
              FROM generate_series(1, 400) AS g
            """
        )
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        store.migration.advance(Phase.DUAL_WRITE)


def test_two_backfills_at_once_carry_each_row_once(in_phase: InPhase) -> None:
    """Both come to their end, every row is on both sides, and a third one finds nothing to do."""
    with in_phase(Phase.EXPAND, grown) as url:
        children = [start(clients.backfill, url) for _ in range(2)]
        told = [child.hear(60) for child in children]
        assert [child.join() for child in children] == [0, 0]
        assert sum(rows for rows, *_ in told) >= ROWS
        carried_and_verified(url)
        assert query(url, "SELECT count(*) FROM agent_outputs")[0][0] >= ROWS
        with ConsensusStore.open(url, settings=SETTINGS) as store:
            assert store.migration.backfill().rows == 0


@pytest.mark.parametrize("seed", range(3))
def test_no_deleted_row_comes_back_from_a_backfill(in_phase: InPhase, seed: int) -> None:
    """Rows that we and other programs delete while the backfill runs are gone from both sides, and only those."""
    with in_phase(Phase.EXPAND, grown) as url:
        before = {row[0]: row for row in legacy(url)["artifacts"]}
        deleters = [start(clients.delete_specs, url, [f"G{n}" for n in range(0, 40, 4)])]
        deleters += [start(clients.delete_rows, url, seed + n, 150) for n in range(2)]
        for child in deleters:
            child.hear()
        backfill = start(clients.backfill, url)
        for child in deleters:
            child.tell()
        gone = set().union(*(child.hear(60) for child in deleters))
        backfill.hear(60)
        assert [child.join() for child in (*deleters, backfill)] == [0] * 4
        carried_and_verified(url)
        after = {row[0]: row for row in normalized(url)["artifacts"]}
        assert len(gone) > 300
        assert after == {key: row for key, row in before.items() if key not in gone}


def test_writers_beside_a_backfill_are_carried_once(in_phase: InPhase) -> None:
    """Units of work and another program write into the same runs while they are carried."""
    with in_phase(Phase.EXPAND, grown) as url:
        writers = [start(clients.add_to_runs, url, seed) for seed in range(2)]
        programs = [start(clients.insert_into_runs, url, seed) for seed in range(2)]
        for child in (*writers, *programs):
            child.hear()
            child.tell()
        backfill = start(clients.backfill, url)
        assert backfill.hear(60)
        for child in (*writers, *programs):
            child.tell()
        told = [child.hear(60) for child in (*writers, *programs)]
        assert [child.join() for child in (*writers, *programs, backfill)] == [0] * 5
        carried_and_verified(url)
        contents = [row[4] for row in legacy(url)["artifacts"]]
        for names in told:
            assert len(names) > 10
            assert all(contents.count(name) == 1 for name in names)


def test_a_busy_flip_can_be_tried_again(in_phase: InPhase) -> None:
    """What a flip raises when it gives up is transient, and nothing of it stays."""
    with (
        in_phase(Phase.CUTOVER, ready) as url,
        ConsensusStore.open(url, settings=Settings(busy_timeout="0.2", retry_attempts=1)) as store,
    ):
        with connect(url) as program, program.transaction():
            program.execute(INSERT, ("in the way",))
            with pytest.raises((DatabaseBusyError, GateClosedError)):
                store.migration.advance(soak=False)
            program.execute("ROLLBACK")
        assert store.migration.verify().clean
        assert store.migration.advance(soak=False) is Phase.NORMALIZED
        assert_sound(url)
