"""Checkpoints: the log of a long step is copied as it goes, and does not grow with it."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase, Settings, errors
from consensus_orm.databases.engine import source_of
from consensus_orm.databases.sqlite import checkpoints
from tests.concurrency.processes import start
from tests.concurrency.steps import bytes_at_most
from tests.field import builders

ROWS = 6000
MEGABYTE = 2**20
pytestmark = [pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"), pytest.mark.long]
QUICK = Settings(soak_dual_write="0", chunk_rows=200, chunk_pause="0")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "legacy.db"
    builders.build_legacy(path)
    row = "'S', 'plan', 'gemini', hex(randomblob(500)), 'run' || value"
    with builders.writing(path) as connection:
        connection.execute(
            "WITH n (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < ?)"
            " INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id)"
            f" SELECT {row} FROM n",
            (ROWS,),
        )
    return path


def test_the_log_does_not_grow_with_the_table(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While chunk follows chunk the log is copied, and begins anew: 8 MB go through one of less than 4."""
    monkeypatch.setattr(checkpoints, "LONG", 50)
    with ConsensusStore.open(path, settings=QUICK) as store:
        store.migration.advance(Phase.DUAL_WRITE)
        assert store.migration.backfill().rows > ROWS
        assert path.with_name(path.name + "-wal").stat().st_size < 4 * MEGABYTE


def test_connections_keep_the_log_short_again_afterwards(path: Path) -> None:
    """A connection that left the log to the backfill's thread copies it itself when it comes back to the pool."""
    with ConsensusStore.open(path, settings=QUICK) as store:
        store.migration.advance(Phase.DUAL_WRITE)
        store.migration.backfill()
        found = {each.pragma("wal_autocheckpoint") for each in source_of(store.engine).connections}
        assert found == {QUICK.wal_autocheckpoint}


def test_a_fork_does_not_wait_for_the_thread(path: Path) -> None:
    """The thread keeps no connection between checkpoints: after a fork the child can use the file."""
    with ConsensusStore.open(path, settings=QUICK) as store:
        store.migration.advance(Phase.DUAL_WRITE)
        with checkpoints.beside(store.engine) as log:
            with store.unit_of_work() as uow:
                log.relieve(uow, in_company=False)
            for _ in range(checkpoints.CHUNKS):
                log.after_commit()
            if (child := os.fork()) == 0:
                os._exit(0 if store.migration.phase is Phase.DUAL_WRITE else 1)
            assert os.waitpid(child, 0)[1] == 0


def test_one_connection_is_enough(path: Path) -> None:
    """A store that may open one connection only leaves checkpoints to SQLite, and carries everything."""
    with ConsensusStore.open(path, settings=QUICK.model_copy(update={"pool_size": 1})) as store:
        store.migration.advance(Phase.DUAL_WRITE)
        assert store.migration.backfill().rows > ROWS
        assert store.migration.verify().clean


def run_out_of_room(pipe: Connection, path: Path) -> None:
    """Carry rows while the database may not grow, which only copying the log would make it do; then go on."""
    with ConsensusStore.open(path, settings=QUICK) as store:
        store.migration.advance(Phase.DUAL_WRITE)
        try:
            with bytes_at_most(path.stat().st_size, signal.SIG_IGN):
                store.migration.backfill()
        except errors.ConsensusError as error:
            pipe.send((type(error).__name__, error.hint))
        else:
            pipe.send(("ok", None))
        store.migration.backfill()
        pipe.send(store.migration.verify().clean)


def test_a_log_that_cannot_be_copied_is_an_error_of_ours(path: Path) -> None:
    """It stops the backfill, though all its commits went well, and the same store goes on when there is room."""
    child = start(run_out_of_room, path)
    said, hint = child.hear()
    assert said == "StorageError"
    assert hint
    assert child.hear() is True
    assert child.join() == 0
