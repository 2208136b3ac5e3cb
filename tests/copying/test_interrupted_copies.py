"""A copy that is killed, or whose server is, goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.progress import Progress
from tests.copying.judges import (
    LEDGERS,
    SETTINGS,
    SIDES,
    SMALL,
    Sources,
    _Once,
    assert_same_rows,
    fitting_history,
    moved,
)
from tests.support import oracle, servers

pytestmark = pytest.mark.long

KILLED = """
import os, sys
from datetime import timedelta
from consensus_orm import ConsensusStore
from consensus_orm.settings import Settings

source, target, after = sys.argv[1], sys.argv[2], int(sys.argv[3])
settings = Settings(chunk_rows=4, chunk_pause=timedelta(0))
steps = 0


def step(_):
    global steps
    steps += 1
    if steps == after:
        os.kill(os.getpid(), 9)


with ConsensusStore.open(source, settings=settings) as here, ConsensusStore.open(target, settings=settings) as there:
    here.copy_to(there, progress=step)
"""


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_copy_that_is_killed_goes_on(sources: Sources, url: str, tmp_path: Path, way: str) -> None:
    """Killed again and again, each time a little later, a copy is closed to everybody, goes on, and comes out equal."""
    source: Path | str = sources(fitting_history, Phase.CUTOVER)
    target: Path | str = url
    if way == "back":
        moved(source, url)
        source, target = url, tmp_path / "back.db"
    looks = _progress_of_looking(source)
    for after in (looks + 2, looks + 9, looks + 25, looks + 60):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(source), str(target), str(after)], check=False)
        assert killed.returncode == -signal.SIGKILL
        with ConsensusStore.open(target, settings=SMALL) as store:
            for read_only in (False, True):
                with (
                    pytest.raises(errors.SchemaOutdatedError, match="copy that is not finished"),
                    store.unit_of_work(read_only=read_only),
                ):
                    pass
            with pytest.raises(errors.SchemaOutdatedError, match="copy that is not finished"):
                store.upgrade()
    report = moved(source, target, SMALL)
    written = sum(table.written for table in report.tables)
    assert 0 < written < report.rows  # it went on: what was there was not written again
    origin = sources(fitting_history, Phase.CUTOVER)
    if way == "back":
        for table in (*SIDES, *LEDGERS):
            assert oracle.rows(Path(target), table) == oracle.rows(origin, table)
    else:
        assert_same_rows(origin, url, *SIDES, *LEDGERS)
    with ConsensusStore.open(target, settings=SETTINGS) as store:
        assert store.migration.verify().clean


def _progress_of_looking(source: Path | str) -> int:
    """How often a copy tells of its progress before it writes anything."""
    told: list[Progress] = []

    def stop_behind(seen: Progress) -> None:
        told.append(seen)
        if not seen.pair.startswith("looking at"):
            raise RuntimeError

    with servers.database() as other, pytest.raises(RuntimeError):
        moved(source, other, SMALL, progress=stop_behind)
    return len(told) - 1


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_server_that_is_killed_under_a_copy(sources: Sources, tmp_path: Path, way: str) -> None:
    """Between two chunks a target may go away and come back; of a source the copy says so, and goes on when called."""
    origin = sources(fitting_history, Phase.CUTOVER)
    source: Path | str = origin
    target: Path | str = tmp_path / "back.db"
    with servers.Server() as own:
        if way == "back":
            moved(source, own.url())
            source = own.url()
        else:
            target = own.url()

        def kill() -> None:
            own.kill()
            own.start()

        once = _Once("consensus_artifacts", 9, kill)
        if way == "there":
            assert moved(source, target, SMALL, progress=once).finished
            assert once.is_done
            assert_same_rows(origin, own.url(), *SIDES, *LEDGERS)
            return
        with pytest.raises(errors.DatabaseUnavailableError):
            moved(source, target, SMALL, progress=once)
        report = moved(source, target, SMALL)
    assert 0 < sum(table.written for table in report.tables) < report.rows
    for table in (*SIDES, *LEDGERS):
        assert oracle.rows(tmp_path / "back.db", table) == oracle.rows(origin, table)
