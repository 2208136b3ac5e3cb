"""What a phase demands is stored when it begins, and a clock that was set back opens no gate: judged by raw SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase, Settings
from consensus_orm.cli import main
from consensus_orm.errors import GateClosedError
from consensus_orm.report import render
from tests.support.commands import without_settings
from tests.support.databases import Database, build_legacy

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
WEEK = 7 * 86_400_000
"""Milliseconds."""

Open = Callable[..., ConsensusStore]


class Clock:
    """A clock that tests set."""

    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


@pytest.fixture
def database(new_database: Database) -> Database:
    build_legacy(new_database.where)
    return new_database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_store(database: Database, clock: Clock, tmp_path: Path) -> Iterator[Open]:
    """Open the database, as another program with settings of its own does."""
    with ExitStack() as stack:

        def open_(**settings: Any) -> ConsensusStore:
            chosen = Settings(clock=clock, backup_dir=tmp_path, chunk_pause=timedelta(0), **settings)
            return stack.enter_context(ConsensusStore.open(database.where, settings=chosen))

        yield open_


def carried(store: ConsensusStore, to: Phase = Phase.DUAL_WRITE) -> None:
    """In a phase, with all that its gate wants but time."""
    store.migration.migrate(to, soak=False)
    if to.compares:
        store.migration.backfill()
    assert store.migration.verify().clean


def refused(store: ConsensusStore, **how: Any) -> str:
    """Why the gate is shut."""
    before = store.migration.phase
    with pytest.raises(GateClosedError) as raised:
        store.migration.advance(**how)
    assert store.migration.phase is before
    assert store.migration.status().gate == list(raised.value.reasons)
    return "; ".join(raised.value.reasons)


def demanded(database: Database) -> tuple[Any, ...]:
    return database.rows_of("SELECT soak, certificate_max_age FROM consensus_orm_state")[0]


def last_step(database: Database) -> tuple[Any, Any, dict[str, Any]]:
    """Of the audit: the reason, whether it was forced, and the facts."""
    sql = "SELECT reason, forced, detail FROM consensus_orm_history WHERE action = 'advance' ORDER BY id DESC LIMIT 1"
    reason, forced, detail = database.rows_of(sql)[0]
    return reason, bool(forced), json.loads(detail or "{}")


# What was demanded ----------------------------------------------------------------------------------------


def test_each_phase_stores_what_it_demands(open_store: Open, database: Database) -> None:
    """Forward and back, what the settings ask for at that time stands in the state, in ms."""
    store = open_store(soak_cutover=timedelta(hours=2), certificate_max_age=timedelta(minutes=90))
    wanted = {1: 0, 2: WEEK, 3: 7_200_000, 4: 2 * WEEK, 5: 0}
    for phase in list(Phase)[1:]:
        store.migration.migrate(phase, soak=False)
        assert demanded(database) == (wanted[phase], 5_400_000)
    for phase in list(Phase)[-2::-1]:
        store.migration.rollback(phase)
        assert demanded(database) == (wanted[phase], 5_400_000)


def test_less_later_opens_no_gate(open_store: Open, database: Database, clock: Clock) -> None:
    """A shorter soak in the settings of who advances changes nothing; with force and a reason the audit says what."""
    carried(open_store())
    hasty = open_store(soak_dual_write=timedelta(0))
    assert refused(hasty) == ("the soak of DUAL_WRITE lasts 7 d more, of the 7 d that were demanded when it began")
    assert hasty.migration.status().soak_left == timedelta(days=7)
    assert demanded(database) == (WEEK, 86_400_000)

    hasty.migration.advance(force=True, reason="hurry")
    reason, forced, facts = last_step(database)
    assert (reason, forced) == ("hurry", True)
    assert [text.startswith("the soak of DUAL_WRITE lasts 7 d") for text in facts["skipped"]] == [True]


def test_less_in_the_environment_opens_no_gate(database: Database, tmp_path: Path) -> None:
    """The same by the command line: exit code 1, and nothing in the audit."""
    with ConsensusStore.open(database.where) as store:
        carried(store)
    words = ["--url", str(database.where), "advance"]
    env = {"CONSENSUS_ORM_SOAK_DUAL_WRITE": "0"}
    done = CliRunner().invoke(main, words, env=env)
    assert done.exit_code == 1
    assert "that were demanded when it began" in done.stderr
    assert database.rows_of("SELECT phase FROM consensus_orm_state") == [(2,)]
    assert CliRunner().invoke(main, [*words, "--force", "--reason", "hurry"], env=env).exit_code == 0
    listed = CliRunner().invoke(main, ["--url", str(database.where), "history"]).stdout
    assert "hurry (forced, skipped: the soak of DUAL_WRITE lasts " in listed
    with ConsensusStore.open(database.where) as store:
        assert "hurry (forced, skipped: the soak of DUAL_WRITE lasts " in render(store)


def test_more_later_counts(open_store: Open, clock: Clock) -> None:
    """Settings that demand more than was stored shut the gate for as long as they say."""
    carried(open_store(soak_dual_write=timedelta(0)))
    assert "lasts 3 d more" in refused(open_store(soak_dual_write=3 * DAY))
    assert open_store(soak_dual_write=timedelta(0)).migration.advance() is Phase.CUTOVER


def test_the_age_of_a_certificate_is_stored_too(open_store: Open, database: Database, clock: Clock) -> None:
    """An older certificate later opens nothing; a fresher one that the settings ask for counts."""
    carried(open_store(soak_dual_write=timedelta(0)))
    clock.now += timedelta(hours=20)
    assert "20 h old" in refused(open_store(certificate_max_age=timedelta(hours=19), soak_dual_write=0))
    clock.now += timedelta(hours=5)
    lenient = open_store(certificate_max_age=timedelta(days=365), soak_dual_write=0)
    assert "1 d 1 h old; run: consensus-orm verify" in refused(lenient)
    lenient.migration.advance(force=True, reason="known")
    assert last_step(database)[2]["skipped"] == ["the last clean verify is 1 d 1 h old; run: consensus-orm verify"]


def test_a_soak_that_was_skipped_is_audited(open_store: Open, database: Database, clock: Clock) -> None:
    """`soak=False` is said in the audit, with what was demanded; not where nothing was left of it."""
    store = open_store()
    carried(store)
    store.migration.advance(soak=False, reason="nobody uses it")
    reason, forced, facts = last_step(database)
    assert (reason, forced) == ("nobody uses it", False)
    assert facts["skipped"] == ["the soak of DUAL_WRITE lasts 7 d more"]
    clock.now += 8 * DAY
    store.migration.verify()
    store.migration.advance(soak=False)
    assert "skipped" not in last_step(database)[2]
    store.migration.verify()
    store.migration.advance(soak=False)
    assert last_step(database)[2]["skipped"] == ["the soak of NORMALIZED lasts 14 d more"]


@pytest.mark.parametrize("stored", ["NULL", "-1", "0"])
def test_what_nobody_stored_is_what_is_usual(stored: str, open_store: Open, database: Database) -> None:
    """A phase that began before demands were stored demands the defaults; a stored nothing demands nothing."""
    carried(open_store())
    database.script(f"UPDATE consensus_orm_state SET soak = {stored}, certificate_max_age = NULL")
    hasty = open_store(soak_dual_write=timedelta(0))
    if stored == "NULL":
        assert "lasts 7 d more" in refused(hasty)
    else:
        assert hasty.migration.advance() is Phase.CUTOVER


def test_a_copy_demands_what_its_source_does(open_store: Open, tmp_path: Path) -> None:
    """Copying a store to another database is no way around its soak."""
    carried(open_store(soak_dual_write=30 * DAY))
    target = tmp_path / "copy.db"
    with ConsensusStore.open(target, settings=Settings(soak_dual_write=timedelta(0), clock=lambda: NOW)) as store:
        open_store().copy_to(store)
        assert store.migration.status().soak_left == 30 * DAY


# The clock ------------------------------------------------------------------------------------------------

NOT_DATES = {
    "in the future": int((NOW + 100 * DAY).timestamp() * 1000),
    "beyond the calendar": 2**60,
    "the first second": 0,
    "before time began": -(2**60),
}


@pytest.mark.parametrize("kind_of_date", NOT_DATES)
def test_a_phase_that_began_in_the_future_counts_from_now(
    kind_of_date: str, open_store: Open, database: Database, clock: Clock
) -> None:
    """The whole soak is left when that is noticed, status says so, the audit too, and then it runs."""
    store = open_store()
    carried(store)
    database.script(f"UPDATE consensus_orm_state SET since = {NOT_DATES[kind_of_date]}")
    found = store.migration.status()
    assert (found.soak_left, found.clock_set_back) == (timedelta(days=7), True)
    assert any("the clock was set back" in reason for reason in found.gate)

    with pytest.raises(GateClosedError):
        store.migration.advance()
    assert database.scalar("SELECT since FROM consensus_orm_state") == NOW.timestamp() * 1000
    assert store.migration.history()[-1].action == "clock set back"
    clock.now += 6 * DAY
    store.migration.verify()
    assert "the soak of DUAL_WRITE lasts 1 d more" in refused(store)
    clock.now += DAY
    store.migration.verify()
    assert store.migration.advance() is Phase.CUTOVER


@pytest.mark.parametrize("kind_of_date", NOT_DATES)
def test_a_certificate_of_the_future_is_void(kind_of_date: str, open_store: Open, database: Database) -> None:
    """It opens no gate, by force neither, and status says so; another verify does."""
    store = open_store(soak_dual_write=timedelta(0))
    carried(store)
    database.script(f"UPDATE consensus_orm_certificates SET at = {NOT_DATES[kind_of_date]}")
    assert store.migration.status().clock_set_back
    assert "the clock was set back; run: consensus-orm verify" in refused(store)
    assert "the clock was set back" in refused(store, force=True, reason="hurry")
    assert store.migration.status().next_command == "consensus-orm verify"
    store.migration.verify()
    assert store.migration.advance() is Phase.CUTOVER


def test_a_clock_that_was_back_for_a_while_shortens_no_soak(open_store: Open, clock: Clock) -> None:
    """Noticed while it is back, the phase begins once more; when the clock is right again, the later date counts."""
    store = open_store()
    carried(store)
    clock.now = NOW - 400 * DAY
    store.migration.verify()
    assert store.migration.status().soak_left == timedelta(days=7)
    clock.now = NOW + DAY
    store.migration.verify()
    assert refused(store) == "the soak of DUAL_WRITE lasts 6 d more"


def test_clocks_of_two_machines_may_differ_a_little(open_store: Open, clock: Clock) -> None:
    """A date some seconds ahead is another machine's, and void is nothing."""
    store = open_store(soak_dual_write=timedelta(0))
    carried(store)
    clock.now -= timedelta(seconds=30)
    assert not store.migration.status().clock_set_back
    assert store.migration.advance() is Phase.CUTOVER


def test_status_says_that_the_clock_was_set_back(database: Database) -> None:
    """The command tells it to people and to programs."""
    with ConsensusStore.open(database.where) as store:
        carried(store)
    database.script("UPDATE consensus_orm_state SET since = since + 1000000000")
    words = ["--url", str(database.where), "status"]
    shown = " ".join(CliRunner().invoke(main, words).stdout.split())
    assert "clock set back: a date of the phase or of its certificate lies in the future" in shown
    assert json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)["clock_set_back"] is True
