"""Every step of a migration and of upkeep waits for a lock that another process holds longer than BUSY_TIMEOUT."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase, Settings
from consensus_orm.cli import main
from consensus_orm.errors import DatabaseBusyError
from consensus_orm.report import facts
from consensus_orm.telemetry import RetryEvent, listen
from tests.support import oracle
from tests.support.commands import without_settings
from tests.support.databases import Database, build_legacy

pytestmark = pytest.mark.long

SETTINGS = Settings(
    busy_timeout=timedelta(milliseconds=50),
    soak_dual_write=timedelta(0),
    soak_cutover=timedelta(0),
    soak_normalized=timedelta(0),
    chunk_pause=timedelta(0),
    retry_attempts=40,
    retry_max=timedelta(milliseconds=200),
)

Work = Callable[[ConsensusStore, Path], object]


@dataclass(frozen=True)
class Step:
    """What is done while the lock is held.

    Attributes:
        work: The step.
        phase: Where the database stands before; None where nobody has prepared it.
        before: What is done before the lock is taken.
        only: The kind of database, where it is one.
        legacy: Whether there are legacy tables.
    """

    work: Work
    phase: Phase | None = Phase.DUAL_WRITE
    before: Work = field(default=lambda store, folder: None)
    only: str | None = None
    legacy: bool = True


def verified(store: ConsensusStore, _folder: Path) -> None:
    if store.migration.phase.compares:
        store.migration.backfill()
    store.migration.verify()


def deleted(store: ConsensusStore, _folder: Path) -> None:
    """Leave pages to be freed."""
    store.upgrade()
    for change in ("add", "delete"):
        with store.unit_of_work() as uow:
            if change == "delete":
                uow.artifacts.delete(spec_id="large")
            else:
                uow.artifacts.add(spec_id="large", stage="plan", agent_name="a", content_json="x" * 1_000_000)


def into(store: ConsensusStore, folder: Path) -> None:
    """Copy another store into this one."""
    with ConsensusStore.open(folder / "source.db", settings=SETTINGS) as source:
        source.copy_to(store)


def a_source(_store: ConsensusStore, folder: Path) -> None:
    with ConsensusStore.open(folder / "source.db", settings=SETTINGS) as source, source.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="{}")


STEPS: dict[str, Step] = {
    "the first upgrade": Step(lambda store, _: store.upgrade(), phase=None),
    "the first migrate": Step(lambda store, _: store.migration.migrate("dual_write"), phase=None),
    "the first unit of work": Step(
        lambda store, _: store.run(lambda uow: uow.artifacts.count()), phase=None, only="sqlite"
    ),
    "backfill": Step(lambda store, _: store.migration.backfill()),
    "verify": Step(lambda store, _: store.migration.verify()),
    "reconcile": Step(lambda store, _: store.migration.reconcile()),
    "advance": Step(lambda store, _: store.migration.advance(), before=verified),
    "contract": Step(lambda store, _: store.migration.advance(), phase=Phase.NORMALIZED, before=verified),
    "rollback": Step(lambda store, _: store.migration.rollback(), phase=Phase.NORMALIZED),
    "rollback from the end": Step(lambda store, _: store.migration.rollback(), phase=Phase.CONTRACT),
    "vacuum": Step(lambda store, _: store.maintenance.vacuum(), phase=None, before=deleted, legacy=False),
    "vacuum --full": Step(lambda store, _: store.maintenance.vacuum(full=True)),
    "copy into it": Step(into, phase=None, before=a_source, legacy=False),
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_settings(monkeypatch)


@pytest.fixture(params=STEPS)
def step(request: pytest.FixtureRequest, kind: str) -> Step:
    found = STEPS[request.param]
    if found.only not in (None, kind):
        pytest.skip("a server's schema is changed by whoever may")
    return found


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
print("held", flush=True)
sys.stdin.readline()
connection.rollback()
"""


@contextmanager
def held(database: Database, until: Callable[[], bool], how: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Keep everybody who wants to write waiting, in another process or on a server, until something is so."""
    begun = threading.Event()

    def hold() -> None:
        with _holding(database, how):
            begun.set()
            deadline = time.monotonic() + 60
            while not until() and time.monotonic() < deadline:
                time.sleep(0.02)

    holder = threading.Thread(target=hold)
    holder.start()
    assert begun.wait(30)
    try:
        yield
    finally:
        holder.join()


@contextmanager
def _holding(database: Database, how: str) -> Iterator[None]:
    if isinstance(database.where, Path):
        words = [sys.executable, "-c", HOLDER, str(database.where), how]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == b"held\n"
            yield
            process.communicate(b"\n")
        return
    with psycopg.connect(database.where) as server:
        server.execute("SELECT pg_advisory_xact_lock(hashtext('consensus_orm_version'))")
        if "consensus_orm_state" in database.tables():
            server.execute("LOCK TABLE consensus_orm_state IN EXCLUSIVE MODE")
        yield


@contextmanager
def until_tried_again(store: ConsensusStore, database: Database, how: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Hold the lock until the store has tried twice more."""
    before = store.telemetry.totals.retries
    with held(database, lambda: store.telemetry.totals.retries >= before + 2, how):
        yield
    assert store.telemetry.totals.retries >= before + 2, "the lock was in nobody's way"


def test_a_step_waits_for_a_lock(step: Step, new_database: Database, tmp_path: Path) -> None:
    """Each step that meets the lock of another process is taken again until it is free, and told by its name."""
    if step.legacy:
        build_legacy(new_database.where)
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        if step.phase is not None:
            store.migration.migrate(step.phase)
        step.before(store, tmp_path)
        store.engine.dispose()
        retried: list[str] = []
        listen(store, lambda event: retried.append(event.name) if isinstance(event, RetryEvent) else None)
        with until_tried_again(store, new_database):
            step.work(store, tmp_path)
        assert "work" not in retried, "the name of what has none"
        if store.migration.phase.has_legacy and store.migration.phase.writes_normalized:
            assert not store.migration.mismatches()


LOOKS: dict[str, Callable[[ConsensusStore, Path], Any]] = {
    "open": lambda store, _: ConsensusStore.open(store.path, settings=SETTINGS).close(),
    "phase": lambda store, _: store.migration.phase,
    "status": lambda store, _: store.migration.status(),
    "history": lambda store, _: store.migration.history(),
    "mismatches": lambda store, _: store.migration.mismatches(),
    "rejects": lambda store, _: store.migration.rejects(),
    "a dry run": lambda store, _: store.migration.reconcile(dry_run=True),
    "stats": lambda store, _: store.maintenance.stats(),
    "backup": lambda store, folder: store.maintenance.backup(folder / "backup.db"),
    "a read": lambda store, _: store.run(lambda uow: uow.artifacts.list(), read_only=True),
    "report": lambda store, _: facts.collect(store),
    "rehearse": lambda store, _: store.migration.rehearse(),
    "copy": lambda store, folder: _copied(store, folder / "copy.db"),
}


def _copied(store: ConsensusStore, path: Path) -> None:
    with ConsensusStore.open(path, settings=SETTINGS) as target:
        store.copy_to(target)


@pytest.mark.sqlite
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_waits_for_a_lock(look: str, new_database: Database, tmp_path: Path) -> None:
    """Without WAL a writer of another program keeps readers out, too: they look again until it has committed."""
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        store.migration.migrate("dual_write")
    assert isinstance(new_database.where, Path)
    with closing(sqlite3.connect(new_database.where)) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        store.engine.dispose()
        with held(new_database, expired(1.0), "BEGIN EXCLUSIVE"):
            with pytest.raises(DatabaseBusyError), store.unit_of_work(read_only=True):
                pass
            LOOKS[look](store, tmp_path)


def expired(seconds: float) -> Callable[[], bool]:
    """Whether some time has passed since it was first asked."""
    since: list[float] = []

    def ask() -> bool:
        since.append(time.monotonic())
        return since[-1] - since[0] > seconds

    return ask


def test_a_lock_that_is_never_free_is_an_error(new_database: Database) -> None:
    """After its tries a step says that the database is busy, and nothing of it was kept."""
    build_legacy(new_database.where)
    few = SETTINGS.model_copy(update={"retry_attempts": 2})
    with ConsensusStore.open(new_database.where, settings=few) as store:
        store.migration.migrate("dual_write")
        with new_database.writers_waiting(), pytest.raises(DatabaseBusyError):
            store.migration.backfill()
        assert store.migration.status().pairs[0].backfilled == 0


def test_commands_wait_for_a_lock(new_database: Database) -> None:
    """So do the commands; on a server a change of the phase names who blocks it, and nothing else is printed."""
    build_legacy(new_database.where)
    for words in (["upgrade"], ["advance"], ["backfill"], ["verify"], ["vacuum", "--full"], ["rollback"]):
        with held(new_database, expired(1.0)):
            done = CliRunner().invoke(
                main, ["--url", str(new_database.where), *words], env={"CONSENSUS_ORM_BUSY_TIMEOUT": "0.05"}
            )
        blocked = {line.split(" pid ")[0] for line in done.stderr.splitlines()}
        named = {"consensus-orm: the change of the phase waits for"} if new_database.kind == "postgresql" else set()
        assert done.exit_code == 0, words
        assert blocked <= named, words
    if isinstance(new_database.where, Path):
        with oracle.reading(new_database.where) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
