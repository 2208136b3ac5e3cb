"""A server that is lost at any message: each step ends with an error of ours.

Afterwards psycopg judges the database, and the step is done again. In CI a sample of the messages is taken;
`CONSENSUS_ORM_TEST_SOAK=1` takes every one.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from consensus_orm import ConsensusStore, Phase
from consensus_orm.copying.source import opened
from consensus_orm.errors import DatabaseUnavailableError, StorageError
from consensus_orm.testing import artifact_values
from tests.concurrency.databases import assert_sound, in_phase, settings, truth
from tests.concurrency.processes import start
from tests.concurrency.steps_on_servers import STEPS, Judge, template
from tests.support import servers
from tests.support.engines import Losable, losable

pytestmark = pytest.mark.long

SOAK = "CONSENSUS_ORM_TEST_SOAK" in os.environ
POINTS_IN_CI = 4

WAYS = {"never came": (False, False), "answer was lost": (True, False), "stays away": (False, True)}
"""Whether the server gets the message at which it is lost, and whether it is gone for good."""

LOST = {name: step for name, step in STEPS.items() if name != "rebuild_undone"}  # looks past the package


def impatient(folder: Path) -> Any:
    """Who repeats twice and soon gives up."""
    short = {"retry_attempts": 2, "retry_initial": timedelta(milliseconds=2), "retry_budget": timedelta(seconds=0.2)}
    return settings(folder).model_copy(update=short)


def points(name: str, sent: int) -> list[tuple[int, str]]:
    """At which messages it is lost, and how."""
    every = [(number, way) for number in range(1, sent + 1) for way in WAYS]
    return every if SOAK else random.Random(name).sample(every, POINTS_IN_CI)


def messages(url: str, folder: Path, work: Callable[[ConsensusStore], object]) -> int:
    """Do a step undisturbed, and count what is sent."""
    with losable(url) as (engine, through), ConsensusStore.open(through, settings=impatient(folder)) as store:
        work(store)
        return engine.sent


def lost(url: str, folder: Path, work: Callable[[ConsensusStore], object], point: int, way: str) -> None:
    """Do a step while the server is lost: it comes to its end, or ends with an error of ours."""
    with losable(url) as (engine, through):
        engine.lost_at, (engine.does_it, engine.stays_away) = point, WAYS[way]
        with contextlib.suppress(StorageError), ConsensusStore.open(through, settings=impatient(folder)) as store:
            work(store)


@pytest.mark.timeout(3600 if SOAK else 240)
@pytest.mark.parametrize("name", LOST)
def test_a_lost_server_loses_nothing(tmp_path: Path, name: str) -> None:
    """Whichever message is the last, all that happens is an error of ours; done again, the step comes to its end."""
    step, origin = LOST[name], template(name)
    with servers.database(origin) as url:
        judge = Judge(step, url)
        sent = messages(url, tmp_path, step.work)
        judge.see_end(url)
    for point, way in points(name, sent):
        with servers.database(origin) as url:
            lost(url, tmp_path, step.work, point, way)
            judge.judge(url, tmp_path, f"message {point}: {way}")


# At every message ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_use(url: str, folder: Path) -> Iterator[tuple[Losable, ConsensusStore]]:
    """A store that has looked at the schema before, and the engine through which it reaches its server."""
    with losable(url) as (engine, through), ConsensusStore.open(through, settings=impatient(folder)) as store:
        with store.unit_of_work():
            pass
        yield engine, store


def at_each_message(url: str, folder: Path, sent: int) -> Iterator[ConsensusStore]:
    """Stores whose server is lost at the next message, at the one after that, and so on."""
    assert sent > 1
    for number in range(1, sent + 1):
        with in_use(url, folder) as (engine, store):
            engine.lost_at = engine.sent + number
            yield store


def test_who_begins_to_copy_from_a_server_that_is_lost(tmp_path: Path) -> None:
    """Who reads for a copy, or for the backup before CONTRACT, opens a connection of its own."""
    with in_phase(Phase.CUTOVER) as url:
        with in_use(url, tmp_path) as (engine, store):
            before = engine.sent
            with opened(store._units):
                sent = engine.sent - before
        for store in at_each_message(url, tmp_path, sent):
            with pytest.raises(DatabaseUnavailableError), opened(store._units):
                pass


@pytest.mark.parametrize("session", [False, True], ids=["alone", "beside a session"])
def test_what_is_lost_within_a_unit_of_work_is_said_at_once(tmp_path: Path, session: bool) -> None:
    """A repository raises an error of ours, and not only the block around it; nothing of the unit is kept."""
    raised: list[Exception] = []

    def write(store: ConsensusStore) -> None:
        with store.unit_of_work() as uow:
            try:
                if session:
                    uow.session  # noqa: B018 - the guard of a session sends words of its own
                uow.artifacts.add(spec_id="LOST", stage="s", agent_name="a", content_json="{}")
                uow.artifacts.delete(spec_id="LOST")
            except Exception as error:
                raised.append(error)
                raise

    with in_phase(Phase.CUTOVER) as url:
        with in_use(url, tmp_path) as (engine, store):
            before = engine.sent
            write(store)
            sent = engine.sent - before
        there = truth(url)
        for store in at_each_message(url, tmp_path, sent):
            with pytest.raises(StorageError):
                write(store)
        assert raised
        assert {type(error) for error in raised if not isinstance(error, StorageError)} == set()
        assert truth(url) == there


# What changes nothing ------------------------------------------------------------------------------------------


def look(store: ConsensusStore) -> None:
    migration = store.migration
    assert migration.status().phase is Phase.CUTOVER
    assert migration.history()
    assert not migration.mismatches()
    assert not migration.rejects()


def read(store: ConsensusStore) -> None:
    with store.unit_of_work(read_only=True) as uow:
        uow.session.execute(text("SELECT count(*) FROM consensus_artifacts")).all()
        assert uow.artifacts.list()


def keep_small(store: ConsensusStore) -> None:
    store.maintenance.stats()
    store.maintenance.vacuum()
    store.maintenance.vacuum(full=True)


def copy_away(store: ConsensusStore) -> None:
    folder = Path(tempfile.mkdtemp(dir=store.settings.backup_dir))
    with ConsensusStore.open(folder / "copy.db", settings=store.settings) as there:
        store.copy_to(there)


def rehearse(store: ConsensusStore) -> None:
    store.migration.rehearse()


LOOKS = {
    "look": look,
    "read": read,
    "verify": lambda store: store.migration.verify(),
    "keep_small": keep_small,
    "copy": copy_away,
    "rehearse": rehearse,
}


@pytest.mark.timeout(3600 if SOAK else 240)
@pytest.mark.parametrize("name", LOOKS)
def test_who_only_looks_at_a_server_that_is_lost(tmp_path: Path, name: str) -> None:
    """Whichever message is the last, all that happens is an error of ours, and next time it is there to be seen."""
    work = LOOKS[name]
    with in_phase(Phase.CUTOVER) as url:
        before = truth(url)
        for point, way in points(name, messages(url, tmp_path, work)):
            lost(url, tmp_path, work, point, way)
        with ConsensusStore.open(url, settings=settings(tmp_path)) as store:
            work(store)
        assert_sound(url)
        assert truth(url) == before


def back_up(pipe: Connection, url: str, path: Path) -> None:
    """Back a server up through an engine that is a thread of the same process."""
    with losable(url) as (_, through), ConsensusStore.open(through, settings=settings(path.parent)) as store:
        pipe.send(store.maintenance.backup(path).bytes)


def test_a_backup_that_waits_for_its_server_lets_other_threads_go_on(tmp_path: Path) -> None:
    """The engine is one of them: without its turns the server's answer, more than any buffer holds, never comes."""
    with in_phase(Phase.CUTOVER) as url:
        with ConsensusStore.open(url, settings=settings(tmp_path)) as store, store.unit_of_work() as uow:
            uow.artifacts.add(**artifact_values(content_json="x" * 20_000_000))
        child = start(back_up, url, tmp_path / "backup")
        assert child.hear(60) > 20_000_000
        assert child.join() == 0
