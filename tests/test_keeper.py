"""The keeper: its duties at their intervals, one process at a time, whatever is killed, paused, stopped or fails."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.cli.output import plain
from consensus_orm.errors import KeeperLeaseError
from consensus_orm.events import AlarmEvent
from consensus_orm.keeper import Keeper, KeeperReport, Kept
from consensus_orm.ledgers import keeping
from consensus_orm.ledgers.keeping import KeeperStatus
from consensus_orm.models.control import KeeperState
from consensus_orm.report import render
from consensus_orm.settings import Reconciling
from consensus_orm.unit_of_work.lease import Lease
from tests.migration.steps import BASE, ready
from tests.support.commands import SCRIPT, without_settings
from tests.support.databases import Database, build_legacy

FAST = BASE.model_copy(
    update={"keep_verify": 0.3, "keep_backup": 0.3, "keep_vacuum": 0.3, "keep_health": 0.1, "keep_backups": 2}
)
HEAR = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder


@pytest.fixture
def store(new_database: Database, backups: Path) -> Iterator[ConsensusStore]:
    """In DUAL_WRITE, both sides equal, with a keeper's work due every 0.3 s."""
    build_legacy(new_database.where)
    settings = FAST.model_copy(update={"backup_dir": backups})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        ready(store, Phase.DUAL_WRITE)
        yield store


@contextlib.contextmanager
def kept(store: ConsensusStore) -> Iterator[list[Kept]]:
    """A keeper on a thread; what it tells."""
    told: list[Kept] = []
    stop = threading.Event()
    thread = threading.Thread(target=Keeper(store, told.append).run, kwargs={"cancel": stop})
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def actions(told: list[Kept]) -> list[str]:
    return [each.action for each in told]


def waits(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def holder(database: Database) -> Any:
    rows = database.rows_of("SELECT holder FROM consensus_orm_keeper")
    return rows[0][0] if rows else None


def process(database: Database, *words: str, **env: str) -> subprocess.Popen[str]:
    """A keeper in a process of its own."""
    every = {f"CONSENSUS_ORM_KEEP_{name}": "0.3" for name in ("VERIFY", "BACKUP", "VACUUM", "HEALTH")}
    environment = {**os.environ, **every, "CONSENSUS_ORM_KEEP_LEASE": "2", **env}
    command = [str(SCRIPT), "--url", str(database.where), "keep", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.long
def test_each_duty_is_done_at_its_interval_and_backups_rotate(
    store: ConsensusStore, new_database: Database, backups: Path
) -> None:
    """The newest backups stay, and what others put beside them; the certificate is fresh; no lease is left."""
    others = [backups / name for name in ("mine.db", "new.db.kept-00000000-20200101T000000.000000Z")]
    for other in others:
        other.write_text("not the keeper's")
    before = int(new_database.scalar("SELECT count(*) FROM consensus_orm_certificates"))
    with kept(store) as told:
        waits(lambda: actions(told).count("backup") > 3 and min(map(actions(told).count, ("verify", "vacuum"))) > 1)
        assert holder(new_database) is not None
    assert holder(new_database) is None
    assert not [each.error for each in told if each.error is not None]
    assert new_database.scalar("SELECT count(*) FROM consensus_orm_certificates") > before + 1
    made = [each.result.path for each in told if each.action == "backup"]
    assert sorted(set(backups.iterdir()) - set(others)) == made[-2:]
    assert all(other.exists() for other in others)


@pytest.mark.sqlite
def test_differences_are_reconciled_by_the_policy(store: ConsensusStore, new_database: Database) -> None:
    """What a bug damaged is repaired unless the policy is none; what another program changed waits for a choice."""
    store.migration.advance(Phase.CUTOVER)
    for policy, foreign, damaged in (
        ("none", "theirs", "damaged"),
        ("settle", "theirs", "ours"),
        ("adopt", "theirs", "ours"),
        ("repair", "ours", "ours"),
    ):
        with store.unit_of_work() as uow:
            values: dict[str, Any] = {"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "ours"}
            keys = [uow.artifacts.add(**values).id for _ in range(2)]
        new_database.rows_of("UPDATE consensus_artifacts SET content_json = 'theirs' WHERE id = ?", keys[0])
        new_database.unnoticed(f"UPDATE consensus_artifacts SET content_json = 'damaged' WHERE id = {keys[1]}")
        changed = {"keep_reconcile": Reconciling(policy), "keep_verify": timedelta(milliseconds=1)}  # due each time
        settings = store.settings.model_copy(update=changed)
        with ConsensusStore.open(new_database.where, settings=settings) as other:
            report = Keeper(other).run(once=True)
        named = f"id IN ({keys[0]}, {keys[1]}) ORDER BY id"
        legacy = [row[0] for row in new_database.rows_of(f"SELECT content_json FROM consensus_artifacts WHERE {named}")]
        truth = [row[0] for row in new_database.rows_of(f"SELECT content FROM agent_outputs WHERE {named}")]
        assert (policy, *legacy) == (policy, foreign, damaged)
        assert (policy, *truth) == (policy, "theirs" if policy == "adopt" else "ours", "ours")
        assert (policy, report.clean, report.failures) == (policy, policy in ("adopt", "repair"), 0)
        store.migration.reconcile(foreign="repair")


@pytest.mark.long
def test_one_acts_and_a_killed_one_loses_its_lease(
    store: ConsensusStore, new_database: Database, backups: Path
) -> None:
    """An idle one prolongs it; after SIGKILL another one, which stood by, takes over when the lease has ended."""
    env = {f"CONSENSUS_ORM_KEEP_{name}": "3600" for name in ("VERIFY", "BACKUP", "VACUUM")}
    env["CONSENSUS_ORM_BACKUP_DIR"] = str(backups)
    first = process(new_database, **env)
    try:
        waits(lambda: new_database.rows_of("SELECT 1 FROM consensus_orm_keeper WHERE vacuumed_at > 0"))
        mine = holder(new_database)
        assert f"({first.pid})" in mine
        with pytest.raises(KeeperLeaseError, match="keeps") as refused:
            Keeper(store).run(once=True)
        assert refused.value.holder == mine
        with kept(store) as told:
            waits(lambda: actions(told) == ["standby"])
            time.sleep(2.5)  # longer than the lease lasts: a keeper that lives prolongs it
            assert actions(told) == ["standby"]
            first.send_signal(signal.SIGKILL)
            first.wait(60)
            waits(lambda: {"begin", "verify", "backup", "vacuum"} <= set(actions(told)))
            assert holder(new_database) != mine
        assert not [each.error for each in told if each.error is not None]
    finally:
        first.kill()
        first.communicate()
    assert store.migration.verify().clean
    assert len([each for each in backups.iterdir() if ".kept-" in each.name]) == 2


@pytest.mark.long
@pytest.mark.sqlite
def test_it_is_paused_and_stopped_and_goes_on_where_it_was(
    store: ConsensusStore, new_database: Database, backups: Path
) -> None:
    """No duty begins while steps are paused; SIGTERM gives the lease back; the next keeper does only what is due."""
    env = {"CONSENSUS_ORM_BACKUP_DIR": str(backups), "CONSENSUS_ORM_KEEP_BACKUP": "3600"}
    running = process(new_database, **env)
    try:
        waits(lambda: list(backups.iterdir()))
        store.migration.pause()
        certificates = "SELECT count(*) FROM consensus_orm_certificates"
        time.sleep(1)
        before = new_database.scalar(certificates)
        time.sleep(1)
        assert new_database.scalar(certificates) == before
        store.migration.resume()
        waits(lambda: new_database.scalar(certificates) > before)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 130, err
    assert [word in out for word in ("  begin ", "  verify ", "  pause ", "  resume ")] == [True] * 4
    assert holder(new_database) is None
    settings = store.settings.model_copy(update={"keep_backup": 3600, "keep_verify": 3600})
    with ConsensusStore.open(new_database.where, settings=settings) as other:
        report = Keeper(other).run(once=True)
    assert (report.verifies, report.backups, report.failures) == (0, 0, 0)
    assert len(list(backups.iterdir())) == 1


@pytest.mark.sqlite
def test_a_failure_ends_nothing_and_is_heard(store: ConsensusStore, backups: Path, new_database: Database) -> None:
    """A duty that fails sounds the alarm and is tried again; the others go on; a change of phase is noticed."""
    backups.rmdir()
    alarms: list[str] = []
    store.telemetry.add_hook(lambda event: alarms.append(str(event)) if isinstance(event, AlarmEvent) else None)
    with kept(store) as told:
        waits(lambda: {"backup", "verify", "vacuum"} <= set(actions(told)))
        assert "alarm: the keeper could not backup: BACKUP" in alarms
        backups.mkdir()
        waits(lambda: any(each.action == "backup" and each.error is None for each in told))
        with ConsensusStore.open(new_database.where, settings=BASE) as other:
            other.migration.verify()
            other.migration.advance()
        waits(lambda: "phase" in actions(told))
    (noticed,) = [each.result for each in told if each.action == "phase"]
    assert noticed == (Phase.DUAL_WRITE, Phase.CUTOVER)


@pytest.mark.sqlite
def test_a_round_by_the_command(store: ConsensusStore, new_database: Database, backups: Path, tmp_path: Path) -> None:
    """--once does what is due, with one document, events and exit code; at once again, nothing is due."""
    log = tmp_path / "events"
    hear = shlex.join([sys.executable, "-c", HEAR, str(log)])
    words = ["--url", str(new_database.where), "keep", "--once", "--json", "--backups", str(backups)]
    done = CliRunner().invoke(main, [*words, "--on-event", hear])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == {**plain(KeeperReport(verifies=1, backups=1, vacuums=1)), "clean": True}
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["action"] for event in events] == ["verify", "backup", "vacuum"]
    assert json.loads(CliRunner().invoke(main, words).stdout) == plain(KeeperReport())
    shutil.rmtree(backups)
    backups.touch()
    new_database.rows_of("UPDATE consensus_orm_keeper SET backed_up_at = 0")
    failed = CliRunner().invoke(main, [*words[:-2]], env={"CONSENSUS_ORM_BACKUP_DIR": str(backups)})
    assert (failed.exit_code, json.loads(failed.stdout)["failures"]) == (1, 1)


@pytest.mark.sqlite
def test_the_status_says_who_keeps_and_what_is_due(store: ConsensusStore, new_database: Database) -> None:
    """Between the flips a status names the process that acts, its last turns and the next, and what nobody does."""

    def seen(of: ConsensusStore = store) -> KeeperStatus:
        keeper = of.migration.status().keeper
        assert keeper is not None
        return keeper

    duties = ["verify", "backup", "vacuum"]
    assert (seen().holder, seen().done, seen().overdue) == (None, {}, duties)
    settings = store.settings.model_copy(update={f"keep_{duty}": timedelta(hours=1) for duty in duties})
    with ConsensusStore.open(new_database.where, settings=settings) as other:
        Keeper(other).run(once=True)
        assert (seen(other).holder, seen(other).overdue) == (None, [])
        assert seen(other).due == {duty: at + timedelta(hours=1) for duty, at in seen(other).done.items()}
        told = seen(other).told(settings.clock())
        assert told.startswith("no process keeps this database; last verify ")
        assert "; next verify in " in told
    lease = Lease(KeeperState, keeping.ONLY, timedelta(minutes=1))
    new_database.rows_of("UPDATE consensus_orm_keeper SET verified_at = 1")
    began = max(entry.at for entry in store.migration.history() if entry.action == "keep")
    assert store.run(lease.take)
    assert (seen().holder, seen().overdue, seen().since) == (lease.me, [], began)  # one acts: it will do what is due
    assert seen().told(began + timedelta(seconds=90)).startswith(f"{lease.me.rpartition(' ')[0]} acts for 1 min 30 s; ")
    new_database.rows_of("UPDATE consensus_orm_keeper SET lease_until = 1")
    assert (seen().holder, "verify" in seen().overdue) == (None, True)
    words = ["--url", str(new_database.where), "status"]
    assert "due: verify; run: consensus-orm --url" in " ".join(CliRunner().invoke(main, words).stdout.split())
    told_json = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert told_json["keeper"]["overdue"] == ["verify"]
    assert "run: consensus-orm keep" in render(store)
    new_database.rows_of("DELETE FROM consensus_orm_keeper")
    assert store._units.look(lambda uow: keeping.look(uow, Phase.EXPAND)) is None
