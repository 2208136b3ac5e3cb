"""The relay: order, replay, poison, leases, pauses, alarms, and an external store that is away."""

from __future__ import annotations

import random
import resource
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore
from consensus_orm.errors import (
    InvalidValueError,
    MigrationError,
    SinkContractError,
    SinkError,
    SinkLeaseError,
    SinkUnavailableError,
    StorageError,
)
from consensus_orm.external import FileSink, Item, Mirror, Page, Relay, Stage
from consensus_orm.telemetry import AlarmEvent, Event, RelayEvent
from consensus_orm.testing.sinks import MemorySink
from tests.external.conftest import SETTINGS, add, hurry, mirrored
from tests.support.databases import Database, holds


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


REPLAY = "UPDATE consensus_orm_outbox SET settled_at = NULL, outcome = NULL"


def listing(sink: MemorySink) -> dict[str, str]:
    return dict(sink.items)


def test_the_whole_outbox_replayed_twice_gives_the_same_listing(store: ConsensusStore, new_database: Database) -> None:
    """An entry may be sent again at any time: it sends the row as it is."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    ids = add(store, 5)
    with store.unit_of_work() as uow:
        uow.repository("artifacts").update(ids[0], {"content_json": "new"})
        uow.repository("artifacts").delete(key=ids[1])
    mirror.relay.run(until_empty=True)
    once = listing(sink)
    assert len(once) == 4
    for _ in range(2):
        new_database.rows_of(REPLAY)
        mirror.relay.run(until_empty=True)
        assert listing(sink) == once
    assert mirror.verify().clean


def test_update_delete_and_add_again_interleaved_with_the_relay(store: ConsensusStore) -> None:
    """Whenever the relay runs between them, the last state of a key is what the external store has in the end."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    chance = random.Random(18)
    (key,) = add(store)
    row = {"id": key, "spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "0"}
    for number in range(30):
        with store.unit_of_work() as uow:
            rows = uow.repository("artifacts")
            if rows.exists(key):
                if chance.random() < 0.5:
                    rows.delete(key=key)
                else:
                    rows.update(key, {"content_json": str(number)})
            else:
                rows.add(row | {"content_json": str(number)})
        if chance.random() < 0.4:
            mirror.relay.run(until_empty=True)
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean


def test_calls_of_a_key_are_in_order_and_one_at_a_time(store: ConsensusStore) -> None:
    """Each put is read back before the next call is made, and keys are sent in the order of their commits."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    names = [f"artifacts:{key}" for key in add(store, 3)]
    sink.calls.clear()
    mirror.relay.run(until_empty=True)
    assert sink.calls == [(call, name) for name in names for call in ("put", "get")]


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "x" * 1_000_000, "", "\N{SNOWMAN}\u2028\x7f"])
def test_odd_texts_arrive_or_are_refused_before_the_commit(store: ConsensusStore, kind: str, text: str) -> None:
    """What the database can hold arrives exactly; what it cannot is refused, and nothing is written."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    if not holds(kind, text):
        with pytest.raises(InvalidValueError):
            add(store, content_json=text)
        assert mirror.status().waiting == 0
        return
    add(store, content_json=text)
    mirror.relay.run(until_empty=True)
    assert all(content.isascii() for content in sink.items.values())
    assert mirror.verify().clean


def test_a_poisoned_entry_becomes_a_reject_and_stops_its_own_key(store: ConsensusStore, new_database: Database) -> None:
    """Others are sent; the gate is shut until a decision, and a repair sends the row."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    bad, good = add(store, 2)

    def refuse(call: str, name: str) -> None:
        if call == "put" and name == f"artifacts:{bad}":
            raise SinkError("no")

    sink.before = refuse
    assert mirror.relay.run(until_empty=True).postponed == 1
    hurry(new_database)
    report = mirror.relay.run(until_empty=True)
    assert (report.rejected, report.waiting) == (1, 0)
    assert list(sink.items) == [f"artifacts:{good}"]
    (finding,) = mirror.findings()
    assert (finding.kind, finding.key, finding.is_reject) == ("unsent", bad, True)
    with store.unit_of_work() as uow:
        uow.repository("artifacts").update(bad, {"content_json": "later"})
    sink.before = lambda call, name: None
    assert mirror.relay.run(until_empty=True).sent == 0, "the key is stopped"
    assert any(" open; see: " in reason for reason in mirror.status().gate)
    mirror.repair()
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean


def test_an_entry_that_ends_every_session_stops_its_own_key(store: ConsensusStore, new_database: Database) -> None:
    """A store that goes away with each put of one row, and is there again, is not away: the others are sent."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    bad, good = add(store, 2)

    def die(call: str, name: str) -> None:
        if name == f"artifacts:{bad}":
            raise SinkUnavailableError

    sink.before = die
    report = mirror.relay.run(until_empty=True)
    assert (report.sent, report.postponed, report.waiting) == (1, 1, 1)
    hurry(new_database)
    assert mirror.relay.run(until_empty=True).rejected == 1
    assert list(sink.items) == [f"artifacts:{good}"]
    assert [each.key for each in mirror.findings()] == [bad]
    sink.before = lambda call, name: None
    mirror.repair()
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean


def test_a_store_that_takes_no_row_at_all_makes_no_rejects(store: ConsensusStore, new_database: Database) -> None:
    """One that answers reads alone, as a full disk does, is at fault and not the rows, however often they are tried."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    add(store, 3)
    with store.unit_of_work() as uow:
        uow.repository("artifacts").delete(key=3)

    def full(call: str, name: str) -> None:
        if call == "put":
            raise SinkUnavailableError

    sink.before = full
    for _ in range(4):
        report = Relay(store, sink).run(until_empty=True)  # whose breaker is closed
        assert (report.postponed, report.rejected) == (2, 0)
        hurry(new_database)
    sink.before = lambda call, name: None
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean


def test_a_store_that_is_away_loses_nothing(store: ConsensusStore) -> None:
    """Nothing becomes a reject while the store is away, and everything is sent when it is back."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    add(store, 3)

    def away(call: str, name: str) -> None:
        raise SinkUnavailableError

    sink.before = away
    with pytest.raises(SinkUnavailableError):
        mirror.relay.run(until_empty=True)
    assert (mirror.status().waiting, mirror.status().rejects) == (3, 0)
    sink.before = lambda call, name: None
    assert mirror.relay.run(until_empty=True).sent == 3


@pytest.mark.sqlite
def test_a_sink_that_answers_another_type_is_one_clear_error(
    store: ConsensusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink of your own that does not keep to the declaration is named with its call; nothing is lost."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    add(store)
    no_item: Any = ({}, Item(b"x", "x"))  # type: ignore[arg-type]
    pages: Any = (None, [], Page((), 5), Page(None, None), *(Page((each,), None) for each in no_item))  # type: ignore[arg-type]
    answers = [("get", each) for each in (b"x", 5, ["x"])] + [("list", each) for each in pages]
    for call, answer in answers:
        with monkeypatch.context() as patch, pytest.raises(SinkContractError, match=f"{call} of memory"):
            patch.setattr(sink, call, lambda *_, answer=answer: answer)
            mirror.relay.run(until_empty=True) if call == "get" else mirror.verify()
    assert mirror.relay.run(until_empty=True).sent == 1
    assert mirror.verify().clean


def test_of_two_relays_one_works(store: ConsensusStore) -> None:
    """The second is refused while the first has the lease, and works when it is given back."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    add(store)
    other, refused = Relay(store, sink), []

    def second(call: str, name: str) -> None:
        with pytest.raises(SinkLeaseError) as error:
            other.run(until_empty=True)
        refused.append(error.value)

    sink.before = second
    mirror.relay.run(until_empty=True)
    assert len(refused) == 2  # for the put, and for the read-back
    sink.before = lambda call, name: None
    other.run(until_empty=True)


def test_a_lease_ends_by_itself_and_the_former_holder_notices(store: ConsensusStore, new_database: Database) -> None:
    """A relay that was overtaken closes no entry: the one that took over sends it again."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    add(store, 2)
    other = Relay(store, sink)

    def overtaken(call: str, name: str) -> None:
        sink.before = lambda call, name: None
        new_database.rows_of("UPDATE consensus_orm_sinks SET lease_until = 0")
        assert other.run(until_empty=True).sent == 2
        new_database.rows_of("UPDATE consensus_orm_sinks SET holder = 'other', lease_until = 99999999999999")

    sink.before = overtaken
    with pytest.raises(SinkLeaseError):
        mirror.relay.run(until_empty=True)


@pytest.mark.sqlite
def test_a_clock_that_is_set_back_stops_no_relay(new_database: Database) -> None:
    """A time that lies too far ahead is none: that of a lease whose relay died, of the next try, of the last alarm."""
    clock, heard = Clock(), list[Event]()
    settings = SETTINGS.model_copy(update={"clock": clock, "relay_alarm_entries": 1, "relay_attempts": 9})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        store.upgrade()
        store.telemetry.add_hook(heard.append)
        sink = MemorySink()
        mirror = mirrored(store, sink)
        add(store, 2)

        def refuse(call: str, name: str) -> None:
            raise SinkError("no")

        sink.before = refuse
        assert mirror.relay.run(until_empty=True).postponed == 2
        sink.before = lambda call, name: None
        dead = Relay(store, sink)
        dead._take_lease()
        with pytest.raises(SinkLeaseError):
            mirror.relay.run(until_empty=True)
        clock.now -= timedelta(days=30)
        assert mirror.relay.run(until_empty=True).sent == 2
        assert sum(isinstance(event, AlarmEvent) for event in heard) == 2
        assert mirror.verify().clean


@pytest.mark.sqlite
def test_a_database_that_is_lost_ends_the_relay(store: ConsensusStore, new_database: Database) -> None:
    """One clear error, and nothing further is sent."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    add(store, 3)

    def lose(call: str, name: str) -> None:
        if call == "get":
            Path(new_database.where).unlink(missing_ok=True)

    sink.before = lose
    with pytest.raises(StorageError, match="removed"):
        mirror.relay.run(until_empty=True)
    assert list(sink.items) == ["artifacts:1"]


@pytest.mark.sqlite
def test_a_full_disk_of_a_folder_loses_nothing(store: ConsensusStore, tmp_path: Path) -> None:
    """A folder that takes no more is away: no part of an entry is left, and everything is sent when there is room."""
    sink = FileSink(tmp_path / "sink")
    mirror = mirrored(store, sink)
    add(store, 1, content_json="x" * 100_000)
    sink.put("a:1", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(SinkUnavailableError, match="folder"):
            sink.put("a:1", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sink.get("a:1") == "old"
    sink.delete("a:1")
    assert mirror.relay.run(until_empty=True).sent == 1
    assert mirror.verify().clean


@pytest.mark.long
def test_a_paused_relay_sends_nothing(store: ConsensusStore) -> None:
    """The outbox fills; a relay that runs goes on after the pause."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    mirror.pause(reason="upkeep")
    add(store)
    with pytest.raises(MigrationError, match="paused"):
        mirror.relay.run(until_empty=True)
    stop = threading.Event()
    thread = threading.Thread(target=mirror.relay.run, kwargs={"cancel": stop})
    thread.start()
    time.sleep(0.3)
    assert sink.items == {}
    mirror.resume()
    deadline = time.monotonic() + 60
    while not sink.items and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join(60)
    assert len(sink.items) == 1
    assert [entry.action for entry in store.migration.history()][-2:] == ["sink pause", "sink resume"]


def test_too_many_waiting_entries_sound_the_alarm_once(new_database: Database) -> None:
    """An alarm is logged, told to the hooks, and kept in the audit; nothing is dropped."""
    heard: list[Event] = []
    settings = SETTINGS.model_copy(update={"relay_alarm_entries": 3})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        store.telemetry.add_hook(heard.append)
        mirror = mirrored(store, MemorySink())
        add(store, 5)
        assert mirror.status().late
        mirror.relay.run(until_empty=True)
        add(store, 5)
        mirror.relay.run(until_empty=True)
        assert sum(isinstance(event, AlarmEvent) for event in heard) == 1
        assert [entry.action for entry in store.migration.history()].count("sink alarm") == 1
        assert mirror.verify().clean
    lags = [event.lag_seconds for event in heard if isinstance(event, RelayEvent)]
    assert len(lags) == 10
    assert all(0 <= lag < 600 for lag in lags)


@pytest.mark.sqlite
def test_no_call_is_made_while_a_unit_of_work_is_open(store: ConsensusStore) -> None:
    """A put, get, delete or list that takes long keeps no writer waiting: each of them finds the write lock free."""
    sink = MemorySink()
    mirror = mirrored(store, sink, Stage.OFF)
    asked: set[str] = set()

    def write(call: str, name: str) -> None:
        if call not in asked:
            add(store)  # fails, each time, where this thread has a unit of work that writes
            asked.add(call)

    sink.before = write
    sink.items["gate"] = "{}"
    mirror.advance(Stage.IMPORT)
    asked.clear()
    mirror.import_entries()
    assert asked == {"list", "get"}
    mirror.accept(mirror.findings()[0].id, reason="no row")
    asked.clear()
    mirror.advance(Stage.MIRROR)
    with store.unit_of_work() as uow:
        uow.repository("artifacts").delete(key=1)
    asked.clear()
    mirror.relay.run(until_empty=True)
    sink.items["artifacts:2"] = "{}"
    mirror.verify()
    assert asked == {"put", "get", "delete", "list"}
    mirror.repair()
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean


@pytest.mark.sqlite
def test_an_entry_that_waits_too_long_sounds_the_alarm(new_database: Database) -> None:
    """The age of the oldest entry alone is enough, and the entry is sent."""
    clock = Clock()
    with ConsensusStore.open(new_database.where, settings=SETTINGS.model_copy(update={"clock": clock})) as store:
        mirror = mirrored(store, MemorySink())
        add(store)
        clock.now += store.settings.relay_alarm_age + timedelta(seconds=1)
        assert mirror.status().late
        assert mirror.relay.run(until_empty=True).sent == 1
        assert [entry.action for entry in store.migration.history()].count("sink alarm") == 1


def test_a_relay_waits_for_the_stage(store: ConsensusStore) -> None:
    """Nothing is sent to a store that is not mirrored."""
    with pytest.raises(MigrationError, match="OFF"):
        Mirror(store, MemorySink()).relay.run(until_empty=True)


def test_old_entries_are_pruned(store: ConsensusStore, new_database: Database) -> None:
    """Entries are kept for as long as their lag counts, and a day."""
    mirror = mirrored(store, MemorySink())
    add(store, 2)
    mirror.relay.run(until_empty=True)
    new_database.rows_of("UPDATE consensus_orm_outbox SET settled_at = settled_at - 90000000 WHERE id = 1")
    mirror.relay.run(until_empty=True)
    assert new_database.rows_of("SELECT id FROM consensus_orm_outbox") == [(2,)]


def test_writers_go_on_while_the_relay_sends(store: ConsensusStore, tmp_path: Path) -> None:
    """What is written meanwhile arrives, too, and the lag is told."""
    mirror = mirrored(store, FileSink(tmp_path / "sink"))
    stop = threading.Event()
    relay = threading.Thread(target=mirror.relay.run, kwargs={"cancel": stop})
    relay.start()
    add(store, 20)
    deadline = time.monotonic() + 60
    while mirror.status().waiting and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    relay.join(60)
    assert mirror.verify().clean
    status = mirror.status()
    assert status.sent == 20
    assert status.lag_p99 is not None
    assert status.lag_p99 < timedelta(seconds=60)
    assert mirror.stage is Stage.MIRROR
