"""What units of work do to each other at READ COMMITTED and at SERIALIZABLE: conflicts, deadlocks, runs they share."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.errors import DatabaseBusyError
from consensus_orm.settings import Settings
from tests.concurrency.databases import (
    WRONG_RUNS,
    assert_sides_agree,
    assert_sound,
    connect,
    in_phase,
    legacy,
    normalized,
    query,
)
from tests.support.engines import TABLE_LOCKS_AND_NUMBERS

pytestmark = pytest.mark.long

LEVELS = ["read_committed", "serializable"]
START = datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)


def store_at(url: str, isolation: str) -> ConsensusStore:
    """A store whose units of work are so far apart, and that does not give up."""
    settings = Settings(
        isolation=isolation, retry_attempts=60, retry_initial="0.005", retry_max="0.1", chunk_rows=16, chunk_pause=0
    )
    return ConsensusStore.open(url, settings=settings)


def in_threads(*works: Callable[[], None]) -> None:
    """Do several things at once; the first error is raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("phase", Phase)
def test_units_of_work_that_decide_by_what_they_read_are_serialized(phase: Phase) -> None:
    """At SERIALIZABLE, each of 4 threads counts and adds what it counted: no number is taken twice, all are done."""
    with in_phase(phase) as url, store_at(url, "serializable") as store:

        def count_and_add(uow: ConsensusUnitOfWork) -> None:
            count = uow.artifacts.count(spec_id="COUNTED")
            time.sleep(0.001)
            uow.artifacts.add(
                spec_id="COUNTED", stage="s", agent_name=f"{count}", content_json="{}", run_id=f"{count % 3}"
            )

        def several() -> None:
            for _ in range(8):
                store.run(count_and_add)

        in_threads(*[several] * 4)
        with store.unit_of_work(read_only=True) as uow:
            numbers = sorted(int(artifact.agent_name) for artifact in uow.artifacts.list(spec_id="COUNTED"))
        assert numbers == list(range(32))
        totals = store.retrier.telemetry.totals
        assert totals.first_try + totals.recovered == 32
        assert totals.recovered > 0, "nothing was ever in the way: this shows nothing"
        if phase.compares and phase is not Phase.DUAL_WRITE:
            assert_sides_agree(url)
        assert_sound(url)


def test_a_conflict_is_an_error_that_says_to_try_again() -> None:
    """Of two units of work that each read what the other writes, the second is told that it was busy, and kept out."""
    with in_phase(Phase.CUTOVER) as url, store_at(url, "serializable") as store:
        with pytest.raises(DatabaseBusyError) as caught, store.unit_of_work() as one:
            one.artifacts.count(spec_id="BOTH")
            with store.unit_of_work() as other:
                other.artifacts.count(spec_id="BOTH")
                other.artifacts.add(spec_id="BOTH", stage="s", agent_name="other", content_json="{}", run_id="2")
            one.artifacts.add(spec_id="BOTH", stage="s", agent_name="one", content_json="{}", run_id="1")
        assert caught.value.sqlstate == "40001"
        with store.unit_of_work(read_only=True) as uow:
            assert [artifact.agent_name for artifact in uow.artifacts.list(spec_id="BOTH")] == ["other"]
        assert_sides_agree(url)


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.NORMALIZED])
def test_a_deadlock_is_tried_again_as_a_whole(phase: Phase, isolation: str) -> None:
    """Two units of work that write the same two runs in opposite order are both done, each row once."""
    met = threading.Barrier(2)
    with in_phase(phase) as url, store_at(url, isolation) as store:

        def writer(name: str, runs: tuple[str, str]) -> Callable[[], None]:
            tries: list[str] = []

            def work(uow: ConsensusUnitOfWork) -> None:
                tries.append(name)
                for run in runs:
                    uow.artifacts.add(spec_id="DEAD", stage="s", agent_name=name, content_json="{}", run_id=run)
                    if len(tries) == 1 and run == runs[0]:
                        met.wait(10)

            return lambda: store.run(work)

        in_threads(writer("a", ("1", "2")), writer("b", ("2", "1")))
        assert store.retrier.telemetry.totals.recovered >= 1
        with store.unit_of_work(read_only=True) as uow:
            found = sorted((artifact.agent_name, artifact.run_id) for artifact in uow.artifacts.list(spec_id="DEAD"))
        assert found == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]
        assert_sound(url)


SECONDS = 3


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER, Phase.CONTRACT])
def test_runs_follow_from_their_rows_at_every_moment(phase: Phase, isolation: str) -> None:
    """Runs that are added to and emptied at once exist exactly as long as they have rows, and say what these say.

    Looked at all the time: what is committed is never wrong, not even until somebody mends it.
    """
    looks: list[int] = []
    until = time.monotonic() + SECONDS
    with in_phase(phase) as url, store_at(url, isolation) as store:

        def writer(seed: int) -> Callable[[], None]:
            chance = random.Random(seed)

            def work(uow: ConsensusUnitOfWork) -> None:
                run = str(chance.randrange(2))
                at = START + timedelta(milliseconds=chance.randrange(10**6))
                what = chance.random()
                if what < 0.4:
                    uow.artifacts.add(
                        spec_id="FEW", stage=run, agent_name="a", content_json="{}", run_id="r", created_at=at
                    )
                elif what < 0.8:
                    uow.syntheses.add(
                        spec_id="FEW", stage=run, output_markdown=str(at), run_id="r", created_at=at,
                        status=chance.choice(["ok", "degraded", "failed"]),
                    )  # fmt: skip
                elif what < 0.9:
                    uow.artifacts.delete(spec_id="FEW", stage=run)
                else:
                    uow.syntheses.delete(spec_id="FEW", stage=run)

            def several() -> None:
                while time.monotonic() < until:
                    store.run(work)

            return several

        def look() -> None:
            with connect(url) as connection:
                while time.monotonic() < until:
                    wrong = connection.execute(WRONG_RUNS.encode()).fetchall()
                    assert wrong == []
                    looks.append(1)
                    time.sleep(0.002)

        in_threads(*(writer(seed) for seed in range(4)), look)
        assert len(looks) > 20
        assert_sound(url)
        if phase is Phase.CUTOVER:
            assert_sides_agree(url)


@pytest.mark.parametrize("isolation", LEVELS)
def test_the_first_units_of_work_of_a_run_make_one_run(isolation: str) -> None:
    """Many units of work that each bring the first row of the same run make one run, with all their rows."""
    with in_phase(Phase.CUTOVER) as url:
        met = threading.Barrier(6)

        def first(number: int, round_: int) -> Callable[[], None]:
            def work(uow: ConsensusUnitOfWork) -> None:
                uow.artifacts.add(spec_id="NEW", stage=str(round_), agent_name=str(number), content_json="{}")

            def run() -> None:
                met.wait(10)
                store.run(work)

            return run

        fixed = Settings(
            isolation=isolation, clock=lambda: START, retry_attempts=60, retry_initial="0.005", retry_max="0.1"
        )
        with ConsensusStore.open(url, settings=fixed) as store:
            for round_ in range(5):
                in_threads(*(first(number, round_) for number in range(6)))
        runs = query(
            url,
            "SELECT stage, count(DISTINCT r.id), count(*) FROM consensus_runs AS r JOIN agent_outputs AS o"
            " ON o.run_id = r.id WHERE spec_id = 'NEW' GROUP BY stage ORDER BY stage",
        )
        assert runs == [(str(round_), 1, 6) for round_ in range(5)]
        assert_sides_agree(url)
        assert_sound(url)


@pytest.mark.parametrize("refused", [(), TABLE_LOCKS_AND_NUMBERS], ids=["table locks", "row locks"])
@pytest.mark.parametrize("carrier", LEVELS)
@pytest.mark.parametrize("deleter", LEVELS)
def test_deletes_beside_a_backfill_leave_nothing_behind(deleter: str, carrier: str, refused: Sequence[bytes]) -> None:
    """What is deleted while it is carried is gone from both sides, at whichever level each of them works."""
    with (
        in_phase(Phase.EXPAND, lacking=refused) as url,
        store_at(url, deleter) as deleting,
        store_at(url, carrier) as store,
    ):
        with connect(url) as connection:
            connection.execute(
                "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)"
                " SELECT 'D' || g % 60, 's', 'a', '{}' FROM generate_series(1, 900) AS g"
            )
        store.migration.advance(Phase.DUAL_WRITE)

        def delete() -> None:
            for number in range(0, 60, 2):
                assert deleting.run(lambda uow, spec=f"D{number}": uow.artifacts.delete(spec_id=spec)) == 15  # type: ignore[misc]

        def carry() -> None:
            store.migration.backfill()

        in_threads(delete, carry)
        store.migration.backfill()
        assert store.migration.verify().clean
        assert_sides_agree(url)
        assert_sound(url)
        specs = {row[1] for row in legacy(url)["artifacts"] if row[1].startswith("D")}
        assert specs == {f"D{number}" for number in range(1, 60, 2)}
        assert {row[1] for row in normalized(url)["artifacts"] if row[1].startswith("D")} == specs


@pytest.mark.parametrize("good", range(4, 8))
def test_a_write_whose_shadow_fails_leaves_the_connection_as_good_as_it_was(good: int) -> None:
    """Whichever statement the driver was about to prepare when the others failed: the next writes are compared."""
    with in_phase(Phase.CUTOVER) as url, ConsensusStore.open(url, settings=Settings(pool_size=1)) as store:

        def add() -> None:
            with store.unit_of_work() as uow:
                uow.artifacts.add(spec_id="FAULT", stage="s", agent_name="a", content_json="{}", run_id="r")

        for _ in range(good):
            add()
        with connect(url) as program:
            program.execute(
                "CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
                "CREATE TRIGGER fault BEFORE INSERT ON consensus_artifacts FOR EACH ROW EXECUTE FUNCTION fault()"
            )
            add()
            program.execute("DROP TRIGGER fault ON consensus_artifacts")
        for _ in range(7):
            add()
        assert [(entry.kind, entry.seen) for entry in store.migration.mismatches()] == [("shadow_failed", 1)]
        store.migration.reconcile()
        assert_sides_agree(url)
        assert len([row for row in legacy(url)["artifacts"] if row[1] == "FAULT"]) == good + 8
