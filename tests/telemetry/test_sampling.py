"""Samples: what a process writes is in the database a minute later, for the dashboard, and gone after a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consensus_orm import ConsensusStore, telemetry
from consensus_orm._version import __version__
from consensus_orm.ledgers import samples
from consensus_orm.ledgers.samples import Entry
from consensus_orm.report.facts import collect
from consensus_orm.settings import Settings
from consensus_orm.telemetry.sampling import Sampler
from tests.support.databases import Database

ROW: dict[str, Any] = {"spec_id": "S", "stage": "plan", "agent_name": "a", "content_json": "{}"}


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def listed(store: ConsensusStore) -> list[Entry]:
    with store.unit_of_work(read_only=True) as uow:
        return samples.listed(uow)


def test_writes_are_counted_and_forgotten(new_database: Database) -> None:
    """Units that wrote are added up by minute and phase, and forgotten after a day; no others are."""
    clock = Clock()
    with ConsensusStore.open(new_database.where, settings=Settings(clock=clock)) as store:
        store.upgrade()
        sampler = Sampler(store, "api 2.3", timedelta(minutes=1))
        telemetry.listen(store, sampler.hear)
        for _ in range(3):
            store.run(lambda uow: uow.artifacts.add(**ROW))
        store.run(lambda uow: uow.artifacts.count(), read_only=True)
        with pytest.raises(ZeroDivisionError), store.unit_of_work() as uow:
            uow.artifacts.add(**ROW)
            raise ZeroDivisionError
        sampler.write(store)
        store.run(lambda uow: uow.artifacts.add(**ROW))
        sampler.write(store)

        # What the sampler itself writes outside of its thread counts as a unit, too.
        (found,) = listed(store)
        assert (found.at, found.kind, found.name) == (clock.now.replace(second=0), samples.WRITE, "contract")
        assert (found.application, found.build, found.amount) == ("api 2.3", __version__, 5)
        assert found.took >= found.longest > 0
        assert collect(store, timed=False).samples == [found]

        clock.now += timedelta(days=1, minutes=2)
        store.run(lambda uow: uow.artifacts.add(**ROW))
        sampler.write(store)
        assert [(each.at, each.amount) for each in listed(store)] == [(clock.now.replace(second=0), 2)]


def test_a_thread_writes_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One call of an application is enough; its own writes do not count, and the thread ends with the store."""
    import threading

    path = tmp_path_factory.mktemp("samples") / "artifacts.db"
    with ConsensusStore.open(path) as store:
        store.upgrade()
        telemetry.report_to_dashboard(store, "api 2.3", interval=timedelta(milliseconds=20))
        store.run(lambda uow: uow.artifacts.add(**ROW))
        (thread,) = [each for each in threading.enumerate() if each.name == "consensus_orm-samples"]
        while not (found := listed(store)):
            threading.Event().wait(0.02)
        threading.Event().wait(0.1)
        assert [each.amount for each in listed(store)] == [each.amount for each in found] == [1]
        store.run(lambda uow: uow.artifacts.add(**ROW))
    thread.join(60)
    assert not thread.is_alive()
