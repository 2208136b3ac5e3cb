"""The servers of the other tests are what these take them for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.support import servers
from tests.support.servers import Server

pytestmark = pytest.mark.long

CHECKOUT = Path(__file__).parents[2]

ASK_AND_LEAVE = """
from tests.support import servers
with servers.database(servers.template("numbers", lambda url: None)) as url:
    print(servers.shared()[1].execute("SELECT pg_postmaster_start_time()::text").fetchone()[0], flush=True)
    input()
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def values(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [value for (value,) in connection.execute("SELECT n FROM numbers ORDER BY n")]


def add(url: str, value: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS numbers (n integer)")
        connection.execute("INSERT INTO numbers VALUES (%s)", (value,))


def test_a_database_is_a_clone_of_its_own() -> None:
    """Two clones of a template begin alike, do not see each other's rows, and are gone after their blocks."""
    name = servers.template("with_one", lambda url: add(url, 1))
    assert servers.template("with_one", lambda url: add(url, 100)) == name
    with servers.database(name) as one, servers.database(name) as other:
        add(one, 2)
        assert (values(one), values(other)) == ([1, 2], [1])
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(one)


def test_processes_share_one_server_and_the_last_stops_it(stack: ExitStack) -> None:
    """However many processes ask, one server answers; it stays while one of them needs it, and no longer."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="shared-"))
    Path(folder).chmod(0o711)  # the server may run as somebody else
    environment = {name: value for name, value in os.environ.items() if name != "CONSENSUS_ORM_TEST_POSTGRES"}
    processes = [
        stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", ASK_AND_LEAVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment | {"TMPDIR": folder, "PYTEST_XDIST_TESTRUNUID": "together"},
                cwd=CHECKOUT,
            )
        )
        for _ in range(2)
    ]
    said = [process.stdout.readline() for process in processes if process.stdout]
    assert said[0]
    assert said[0] == said[1]
    (socket,) = Path(folder).glob("consensus-orm-*/shared-*/.s.PGSQL.5432")
    for process in processes:
        assert socket.exists()
        process.communicate("\n", timeout=servers.PATIENCE)
        assert process.returncode == 0
    assert not socket.parent.exists()


def test_what_was_committed_survives_each_end(server: Server) -> None:
    """A stop of each kind, and kill -9, lose nothing that was committed, and keep nothing that was not."""
    add(server.url(), 1)
    with psycopg.connect(server.url()) as unfinished:
        unfinished.execute("INSERT INTO numbers VALUES (0)")
        server.restart("fast")
        add(server.url(), 2)
        server.restart("immediate")
        add(server.url(), 3)
        server.kill()
        assert not server.answers()
        server.start()
        unfinished.close()
    assert values(server.url()) == [1, 2, 3]


def test_a_paused_server_is_silent_and_then_goes_on(server: Server) -> None:
    """While it is paused a statement has no answer and no error; afterwards it has its answer."""
    add(server.url(), 1)
    with server.connect() as connection, ThreadPoolExecutor() as pool:
        sent = threading.Event()

        def ask() -> object:
            sent.set()
            return connection.execute("SELECT n FROM numbers").fetchone()

        with server.paused():
            answer = pool.submit(ask)
            assert sent.wait(servers.PATIENCE)
            with pytest.raises(psycopg.OperationalError, match="timeout"):
                psycopg.connect(server.url(), connect_timeout=2)
            assert not answer.done()
        assert answer.result(servers.PATIENCE) == (1,)


def test_a_replica_follows_and_falls_behind_on_purpose(server: Server) -> None:
    """A replica shows what its primary has, only what it had while replay is paused, and refuses writes."""
    add(server.url(), 1)
    with servers.replica_of(server) as replica:
        replica.catch_up()
        assert values(replica.url()) == [1]
        with replica.replay_paused():
            add(server.url(), 2)
            replica.catch_up(shown=False)
            for _ in range(20):  # it would take no longer if it were not paused
                assert values(replica.url()) == [1]
                time.sleep(0.01)
        replica.catch_up()
        assert values(replica.url()) == [1, 2]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            add(replica.url(), 3)
