"""What an operator tells a migration that runs in another process: pause, resume, throttle, hold, release."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.cli.app import WaitType
from consensus_orm.errors import GateClosedError
from consensus_orm.ledgers.control import FREE
from consensus_orm.telemetry import WaitingEvent
from tests.migration.steps import BASE, forward, ready
from tests.support.databases import Database

pytestmark = pytest.mark.long

ROWS = 120


@pytest.fixture
def running(store: ConsensusStore) -> ConsensusStore:
    """A store in DUAL_WRITE with rows that the backfill has still to carry, in many chunks."""
    store.migration.upgrade()
    with store.unit_of_work() as uow:
        for number in range(ROWS):
            uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json=str(number))
    forward(store, Phase.DUAL_WRITE)
    return store


def call(database: Database, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["--url", str(database.where), *words])
    assert result.exit_code == code, result.output
    return result


def carried(database: Database) -> int:
    return int(database.scalar("SELECT count(*) FROM agent_outputs"))


def waits(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_paused_step_waits_between_chunks_and_goes_on(running: ConsensusStore, database: Database) -> None:
    """From another store: it stops, writers have the database meanwhile, and after `resume` it carries all rows."""
    call(database, "throttle", "60")
    heard: list[str] = []
    running.telemetry.add_hook(lambda event: heard.append(str(event)) if isinstance(event, WaitingEvent) else None)
    step = threading.Thread(target=running.migration.backfill)
    step.start()
    try:
        waits(lambda: carried(database) > 0)
        call(database, "pause", "--reason", "the nightly import")
        time.sleep(0.3)  # the chunk under way ends
        before = carried(database)
        assert before < ROWS
        with ConsensusStore.open(database.where, settings=BASE) as other:
            assert other.migration.status().control.paused_at is not None
            with other.unit_of_work() as uow:
                uow.artifacts.add(spec_id="meanwhile", stage="plan", agent_name="a", content_json="x")
        time.sleep(0.8)
        assert carried(database) == before + 1
        assert step.is_alive()
        assert len(heard) == 1
        assert "this one waits; run: consensus-orm resume" in heard[0]
        assert "paused" in call(database, "status").stdout
        call(database, "throttle", "off")
        call(database, "resume")
    finally:
        running.migration.resume()
        running.migration.throttle(None)
        step.join(60)
    assert not step.is_alive()
    assert running.migration.reconcile().actions == ()
    assert running.migration.verify().clean
    actions = [entry.action for entry in running.migration.history()]
    assert [a for a in actions if a in ("pause", "resume", "throttle")][:4] == [
        "throttle",
        "pause",
        "throttle",
        "resume",
    ]


def test_a_command_that_waits_says_so(running: ConsensusStore, database: Database) -> None:
    """On stderr, once, with the command that lets it go on as it can be pasted."""
    running.migration.pause()
    timer = threading.Timer(1.5, running.migration.resume)
    timer.start()
    done = call(database, "backfill")
    timer.join()
    assert done.stderr.count("and this one waits; run: consensus-orm --url ") == 1
    assert carried(database) >= ROWS


def test_a_throttled_step_keeps_to_its_rate(running: ConsensusStore, database: Database) -> None:
    """120 rows at 60 a second take no less than a second and a half; without the limit far less."""
    running.migration.throttle(60)
    started = time.monotonic()
    running.migration.backfill()
    assert time.monotonic() - started > 1.5
    assert carried(database) >= ROWS


def test_each_order_is_in_the_history(store: ConsensusStore, database: Database) -> None:
    """What an operator asked for, with its value and its reason, in the words of the commands."""
    store.migration.upgrade()
    store.migration.pause(reason="lunch")
    store.migration.throttle(7)
    entries = database.rows_of("SELECT action, reason, detail FROM consensus_orm_history ORDER BY id")[-2:]
    told = [(action, reason, json.loads(detail or "{}").get("rows_per_second")) for action, reason, detail in entries]
    assert told == [("pause", "lunch", None), ("throttle", None, 7)]
    assert [entry.why for entry in store.migration.history()[-2:]] == ["lunch", "(7 rows a second)"]
    assert "(7 rows a second)" in call(database, "history").stdout


def test_while_a_hold_stands_no_phase_changes(store: ConsensusStore, database: Database) -> None:
    """Neither forward, not even by force, nor back; the gate says why and what releases it; then both go."""
    ready(store, Phase.DUAL_WRITE)
    call(database, "hold", "--reason", "release freeze")
    status = store.migration.status()
    assert status.gate == ["changes of phase are on hold: release freeze; run: consensus-orm hold --release"]
    assert status.next_command == "consensus-orm hold --release"
    with pytest.raises(GateClosedError, match="on hold: release freeze"):
        store.migration.advance()
    with pytest.raises(GateClosedError, match="on hold: release freeze"):
        store.migration.advance(force=True, reason="now")
    with pytest.raises(GateClosedError, match="on hold: release freeze"):
        store.migration.rollback()
    assert store.migration.phase is Phase.DUAL_WRITE
    shut = call(database, "advance", code=1)
    assert "  - changes of phase are on hold: release freeze; run: consensus-orm --url" in shut.stderr
    released = json.loads(call(database, "hold", "--release", "--json").stdout)
    assert released["held_at"] is None
    assert store.migration.advance() is Phase.CUTOVER
    assert store.migration.rollback() is Phase.DUAL_WRITE


@pytest.mark.parametrize("rate", ["0", "-1", "fast", "1.5"])
def test_a_rate_that_is_none_is_wrong_usage(rate: str, store: ConsensusStore, database: Database) -> None:
    """It is refused, and nothing is told."""
    forward(store, Phase.DUAL_WRITE)
    call(database, "throttle", "--", rate, code=2)
    assert store.migration.control() == FREE


def test_nothing_is_told_before_an_upgrade(new_database: Database) -> None:
    """To look writes nothing."""
    with ConsensusStore.open(new_database.where, settings=BASE) as store:
        assert store.migration.control() == FREE


# Waiting --------------------------------------------------------------------------------------------------


def test_advance_waits_until_another_process_opens_the_gate(store: ConsensusStore, database: Database) -> None:
    """It takes the step once the hold is released; without the wait, and after its deadline, it is refused."""
    ready(store, Phase.DUAL_WRITE)
    store.migration.hold()
    call(database, "advance", "--wait", "0s", code=1)
    started = time.monotonic()
    refused = call(database, "advance", "--wait", "2s", code=1).stderr
    assert time.monotonic() - started >= 2
    assert refused.count("the gate to CUTOVER is shut, and this step waits: changes of phase are on hold; run: ") == 1
    released = threading.Timer(0.5, lambda: call(database, "hold", "--release"))
    released.start()
    assert store.migration.advance(wait=timedelta(minutes=1)) is Phase.CUTOVER
    released.join()


def test_migrate_waits_for_the_soak_and_for_an_operator(database: Database) -> None:
    """A soak of two seconds, and a difference that is repaired meanwhile: it goes on by itself, with a new verify."""
    with ConsensusStore.open(
        database.where, settings=BASE.model_copy(update={"soak_dual_write": timedelta(seconds=2)})
    ) as store:
        store.migration.migrate("dual_write")
        store.migration.backfill()
        database.unnoticed("UPDATE agent_outputs SET content = 'damaged' WHERE id = 1")
        repaired = threading.Timer(1.5, lambda: call(database, "reconcile"))
        repaired.start()
        steps = store.migration.migrate("cutover", wait=timedelta(minutes=1))
        repaired.join()
        assert store.migration.phase is Phase.CUTOVER
    assert [step.action for step in steps if step.action in ("verify", "advance")] == ["verify", "verify", "advance"]


@pytest.mark.parametrize(
    ("typed", "seconds"), [("90", 90), ("90s", 90), ("30min", 1800), ("2h", 7200), ("7d", 604800), ("2001-01-01", 0)]
)
def test_waits_as_they_are_typed(typed: str, seconds: int) -> None:
    """Seconds, a duration with its unit, or a time."""
    assert WaitType().convert(typed, None, None) == timedelta(seconds=seconds)


@pytest.mark.parametrize("odd", ["soon", "-1", "1w", "", "2h30"])
def test_waits_that_are_none_are_wrong_usage(odd: str, store: ConsensusStore, database: Database) -> None:
    """The command says so, and takes no step."""
    forward(store, Phase.EXPAND)
    call(database, "advance", "--wait", odd, code=2)
    assert store.migration.phase is Phase.EXPAND
