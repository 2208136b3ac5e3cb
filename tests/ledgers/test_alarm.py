"""The alarm: when confirmed mismatches pass a rate it sounds once, and in CUTOVER it may take reads back."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from consensus_orm import ConsensusStore, Phase, Settings
from consensus_orm.ledgers import audit
from tests.support.databases import Database, build_legacy

EVIL = "UPDATE consensus_artifacts SET content_json = 'evil' WHERE id = NEW.id"


class Clock:
    """A time that tests move."""

    def __init__(self) -> None:
        self.now = datetime(2025, 11, 4, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(new_database: Database) -> Database:
    build_legacy(new_database.where)
    return new_database


@contextlib.contextmanager
def at_cutover(database: Database, clock: Clock, *, falls_back: bool) -> Iterator[ConsensusStore]:
    """A store in CUTOVER whose every write differs, and that alarms at three mismatches a minute."""
    settings = Settings(clock=clock, alarm_mismatches=3, alarm_window=timedelta(minutes=1), alarm_falls_back=falls_back)
    with ConsensusStore.open(database.where, settings=settings) as store:
        store.migration.migrate(Phase.CUTOVER, soak=False)
        database.fault("AFTER INSERT", "consensus_artifacts", EVIL)
        yield store


def write(store: ConsensusStore) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="meant").id


def alarms(store: ConsensusStore) -> int:
    return sum(entry.action == "alarm" for entry in store.migration.history())


def test_it_sounds_once_in_its_window(database: Database, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Three mismatches within a minute sound it, a fourth does not sound it again, and slow ones never do."""
    with at_cutover(database, clock, falls_back=False) as store:
        for _ in range(3):
            clock.now += timedelta(minutes=2)
            write(store)
        assert alarms(store) == 0
        for _ in range(4):
            clock.now += timedelta(seconds=1)
            write(store)
        assert alarms(store) == 1
        assert [record.levelname for record in caplog.records if "alarm" in record.message] == ["CRITICAL"]
        assert store.migration.phase is Phase.CUTOVER


def test_it_takes_reads_back_where_the_settings_say_so(database: Database, clock: Clock) -> None:
    """At the third mismatch the phase is DUAL_WRITE again, with the reason in the audit and every write as meant."""
    with at_cutover(database, clock, falls_back=True) as store:
        after_each = [(write(store), store.migration.phase) for _ in range(3)]
        keys = [key for key, _ in after_each]
        assert [phase for _, phase in after_each] == [Phase.CUTOVER, Phase.CUTOVER, Phase.DUAL_WRITE]
        assert "3 mismatches" in (store.migration.history()[-1].reason or "")
        assert store.migration.mismatches() == []
        with store.unit_of_work(read_only=True) as uow:
            found = [artifact for key in keys if (artifact := uow.artifacts.get(key)) is not None]
        assert [artifact.content_json for artifact in found] == ["meant"] * 3


def test_who_has_no_name_is_known_by_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that runs as a bare number the audit says the number."""

    def no_user() -> str:
        raise KeyError("there is no such user")

    monkeypatch.setattr(getpass, "getuser", no_user)
    assert audit.whoami() == f"{os.getuid()}@{socket.gethostname()} ({os.getpid()})"
