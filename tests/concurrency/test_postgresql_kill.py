"""kill -9 of our processes between statements and within a commit, on PostgreSQL.

After each kill psycopg judges the database, and the step is done again. In CI a sample of the boundaries is taken,
those at a COMMIT first; `CONSENSUS_ORM_TEST_SOAK=1` takes every one.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore
from consensus_orm.databases.postgresql.connection import ServerConnection
from tests.concurrency.databases import settings
from tests.concurrency.processes import start
from tests.concurrency.steps_on_servers import STEPS, Judge, template
from tests.support import servers

pytestmark = pytest.mark.long

SOAK = "CONSENSUS_ORM_TEST_SOAK" in os.environ
POINTS_IN_CI = 6


# What interrupts it ------------------------------------------------------------------------------------------------


class Sent:
    """Sees everything that connections of this process send, and kills it before one of them, or behind a COMMIT.

    Args:
        kill_at: The number of what is sent, the first is 1; behind a COMMIT that the server has got, the number after
            that. None lets all pass.
    """

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.seen: list[str] = []

    def note(self, statement: str) -> None:
        self.seen.append(statement)
        if len(self.seen) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        execute, send = ServerConnection.execute, ServerConnection._send

        def noted_execute(connection: ServerConnection, query: Any, *more: Any, **options: Any) -> Any:
            self.note(str(query))
            return execute(connection, query, *more, **options)

        def noted_send(connection: ServerConnection, commands: bytes) -> Any:
            self.note(commands.decode())
            if commands == b"COMMIT" and len(self.seen) + 1 == self.kill_at:
                connection.pgconn.send_query(commands)
                while connection.pgconn.flush():
                    pass
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen += ["the answer to a COMMIT"] if commands == b"COMMIT" else []
            return send(connection, commands)

        ServerConnection.execute = noted_execute  # type: ignore[assignment, method-assign]
        ServerConnection._send = noted_send  # type: ignore[assignment, method-assign]


def count_what_is_sent(pipe: Connection, url: str, folder: Path, name: str) -> None:
    """Do a step undisturbed, and tell what it sends."""
    with ConsensusStore.open(url, settings=settings(folder)) as store:
        sent = Sent(None)
        sent.watch()
        STEPS[name].work(store)
        pipe.send(sent.seen)


def run_and_be_killed(_pipe: Connection, url: str, folder: Path, name: str, kill_at: int) -> None:
    """Do a step and be killed at a point, or after the last one if there are fewer."""
    store = ConsensusStore.open(url, settings=settings(folder))
    Sent(kill_at).watch()
    STEPS[name].work(store)
    os.kill(os.getpid(), signal.SIGKILL)


def points(name: str, sent: list[str]) -> list[int]:
    """Where to be killed: at commits first, then at others by chance."""
    every = range(1, len(sent) + 2)
    if SOAK:
        return list(every)
    chance = random.Random(name)
    at_commits = sorted({m for n, what in enumerate(sent, 1) if what == "COMMIT" for m in (n, n + 1, n + 2)})
    chosen = chance.sample(at_commits, min(len(at_commits), POINTS_IN_CI // 2))
    rest = [n for n in every if n not in chosen]
    return sorted([*chosen, *chance.sample(rest, min(len(rest), POINTS_IN_CI - len(chosen)))])


@pytest.mark.timeout(3600 if SOAK else 240)
@pytest.mark.parametrize("name", STEPS)
def test_a_kill_loses_nothing(tmp_path: Path, name: str) -> None:
    """Killed at any point, a step leaves the truth as it was, and done again it comes to its end."""
    step, origin = STEPS[name], template(name)
    with servers.database(origin) as url:
        judge = Judge(step, url)
        child = start(count_what_is_sent, url, tmp_path, name)
        sent = child.hear(60)
        assert child.join() == 0
        judge.see_end(url)
    for point in points(name, sent):
        with servers.database(origin) as url:
            child = start(run_and_be_killed, url, tmp_path, name, point)
            child.join()
            assert child.was_killed
            judge.judge(url, tmp_path, sent[point - 1] if point <= len(sent) else "the end")


def test_kills_are_where_they_should_be() -> None:
    """The points of a step: before each thing that is sent, and behind each COMMIT that the server has got."""
    sent = ["BEGIN", "INSERT", "COMMIT", "the answer to a COMMIT", "BEGIN", "COMMIT", "the answer to a COMMIT"]
    assert set(points("any", sent)) <= set(range(1, len(sent) + 2))
    assert {3, 4} & set(itertools.chain(*(points(str(n), sent) for n in range(20))))
