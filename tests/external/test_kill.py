"""kill -9 of the relay and of the memory server, at random moments: in the end both sides are equal."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore
from consensus_orm.external import FileSink, Relay
from tests.external.conftest import SETTINGS, add, mirrored
from tests.support import memory_servers
from tests.support.databases import Database
from tests.support.memory_servers import graph_sink

pytestmark = [pytest.mark.timeout(1800), pytest.mark.long]

RELAY = """
import sys
from pathlib import Path
from consensus_orm import ConsensusStore
from consensus_orm.external import FileSink, Relay
from tests.external.conftest import SETTINGS
from tests.support.memory_servers import graph_sink

where, folder, kind = sys.argv[1:]
sink = graph_sink(Path(folder)) if kind == "graph" else FileSink(folder, name="graph")
with ConsensusStore.open(where, settings=SETTINGS) as store:
    print("ready", flush=True)
    Relay(store, sink).run()
"""

STEPS = ("put", "get", "delete", "_sent", "_read")
AT_A_STEP = """
import os, signal, sys
from consensus_orm.external import FileSink, Relay

def dying(kind, name, after):
    original = getattr(kind, name)
    def call(*arguments, **options):
        if not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(kind, name, call)

name, after = sys.argv.pop(), sys.argv.pop() == "after"
dying(FileSink if hasattr(FileSink, name) else Relay, name, after)
"""


def relay(database: Database, folder: Path, kind: str, *more: str, code: str = RELAY) -> subprocess.Popen[str]:
    """A relay in a process of its own."""
    command = [sys.executable, "-c", code, str(database.where), str(folder), kind, *more]
    checkout = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": checkout}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout)


def change(store: ConsensusStore, chance: random.Random) -> None:
    """Add, update or delete rows at random."""
    for _ in range(5):
        with store.unit_of_work() as uow:
            rows = uow.repository("artifacts")
            known = rows.rows({})
            if len(known) > 5 and chance.random() < 0.6:
                of = chance.choice(known)
                if chance.random() < 0.5:
                    rows.delete(key=of.id)
                else:
                    rows.update(of.id, {"content_json": str(chance.random())})
                continue
            rows.add({"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": str(chance.random())})


def free_the_lease(database: Database) -> None:
    """Not wait for the lease of the relay that was killed."""
    database.rows_of("UPDATE consensus_orm_sinks SET lease_until = 0")


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.soak)])
@pytest.mark.parametrize("victim", ["relay", "server"])
def test_killed_at_random(
    store: ConsensusStore, new_database: Database, tmp_path: Path, victim: str, times: int
) -> None:
    """Whoever is killed whenever: the next relay converges, and the full listings are equal."""
    chance = random.Random(times)
    sink = graph_sink(tmp_path)
    mirror = mirrored(store, sink)
    sink.close()
    for _ in range(times):
        process = relay(new_database, tmp_path, "graph")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        change(store, chance)
        time.sleep(chance.random() * 3)
        if victim == "server" and (tmp_path / "pid").exists():
            with contextlib.suppress(ProcessLookupError):  # it was not started again yet
                memory_servers.kill(tmp_path)
            change(store, chance)
            time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
        free_the_lease(new_database)
    assert Relay(store, sink).run(until_empty=True).rejected == 0
    report = mirror.verify()
    assert report.clean, report
    assert report.rows > 0
    sink.close()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(
    store: ConsensusStore, new_database: Database, tmp_path: Path, step: str, moment: str
) -> None:
    """Before and after the call, the read-back and the mark: the entry is sent again, and nothing is lost."""
    sink = FileSink(tmp_path / "sink", name="graph")
    mirror = mirrored(store, sink)
    add(store, 2)
    with store.unit_of_work() as uow:
        uow.repository("artifacts").delete(key=1)
    process = relay(new_database, tmp_path / "sink", "file", moment, step, code=AT_A_STEP + RELAY)
    assert process.wait(120) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    free_the_lease(new_database)
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean
    assert [item.name for item in sink.list().items] == ["artifacts:2"]
    assert SETTINGS.relay_attempts > 1
