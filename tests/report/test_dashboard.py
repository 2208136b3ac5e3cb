"""The dashboard: live, for this machine alone, and without any way to write."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import http.client
import io
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

from consensus_orm import ConsensusStore, errors
from consensus_orm.phase import Phase
from consensus_orm.report.dashboard import Dashboard
from consensus_orm.settings import Settings
from consensus_orm.testing.phases import take_to
from tests.report.pages import CHROMIUM, SECTIONS, Page, browse
from tests.support.databases import Database, build_legacy

PROGRAM = "from consensus_orm.cli import main; main()"
SECRET = "THE CONTENT OF A ROW"


@pytest.fixture
def database(new_database: Database) -> Database:
    """A database in which one row differs."""
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where) as store:
        take_to(store, Phase.DUAL_WRITE)
        store.migration.backfill()
        new_database.unnoticed(f"UPDATE agent_outputs SET content = '{SECRET}' WHERE id = 1")
        store.migration.verify()
    return new_database


def client(dashboard: Dashboard) -> TestClient:
    return TestClient(dashboard.application(), base_url="http://127.0.0.1")


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command, and its port."""
    command = [sys.executable, "-c", PROGRAM, *arguments, "dashboard", "--json", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            document = ""
            while not document.rstrip().endswith("}"):
                line = process.stdout.readline()
                assert line, process.stderr and process.stderr.read()
                document += line
            (port,) = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", json.loads(document)["url"]).groups()  # type: ignore[union-attr]
            yield process, int(port)
        finally:
            process.kill()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@contextlib.contextmanager
def locked(database: Database) -> Iterator[None]:
    """Nobody else can read the database."""
    is_file = database.kind == "sqlite"
    other: Any = (
        sqlite3.connect(database.where, isolation_level=None) if is_file else psycopg.connect(str(database.where))
    )
    with contextlib.closing(other):
        other.execute("BEGIN EXCLUSIVE" if is_file else "LOCK TABLE consensus_orm_state")
        yield
        other.rollback()


@pytest.mark.long
@pytest.mark.sqlite
def test_the_command_serves_this_machine_alone(tmp_path: Path) -> None:
    """Pages are served on 127.0.0.1, to its own name, for reading; Ctrl-C ends it with 0, and the file is the same."""
    path = tmp_path / "artifacts.db"
    build_legacy(path)
    with ConsensusStore.open(path) as store:
        take_to(store, Phase.DUAL_WRITE)
        store.migration.backfill()
        store.run(
            lambda uow: uow._execute(
                "INSERT INTO consensus_orm_mismatches (pair, key, kind, state, found_by, found_at)"
                " VALUES ('artifacts', 1, 'different', 'confirmed', 'verify', 1762222238000)"
            )
        )
    before = hashlib.sha256(path.read_bytes()).hexdigest()

    with served("--url", str(path)) as (process, port):
        for _ in range(600):
            status, text = ask(port, "/")
            if status == 200:
                break
            threading.Event().wait(0.1)
        assert Page(text).headings == SECTIONS
        assert "DUAL_WRITE, 2 of 5" in Page(text).text
        _, table = ask(port, "/tables/mismatches.csv")
        assert [row["pair"] for row in csv.DictReader(io.StringIO(table))] == ["artifacts"]
        assert ask(port, "/mismatches/1")[0] == 200
        assert [ask(port, path)[0] for path in ("/mismatches/99", "/tables/none.csv", "/tables/tables.exe")] == [
            404
        ] * 3
        assert ask(port, "/", Host="rebound.example")[0] == 400
        assert [ask(port, "/", method)[0] for method in ("POST", "PUT", "DELETE")] == [405] * 3
        with contextlib.closing(socket.socket()) as elsewhere, pytest.raises(ConnectionRefusedError):
            elsewhere.connect(("127.0.0.2", port))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_no_contents_unless_asked_for(database: Database) -> None:
    """A mismatch is shown column by column; its values only with `contents`."""
    for contents in (False, True):
        with ConsensusStore.open(database.where) as store:
            answer = client(Dashboard(store, contents=contents)).get("/mismatches/1")

        assert answer.status_code == 200
        assert "content_json" in answer.text
        assert (SECRET in answer.text) is contents


def test_cannot_write(database: Database) -> None:
    """No connection of the store can write any more, whatever asks for it."""
    with ConsensusStore.open(database.where) as store:
        dashboard = Dashboard(store)
        dashboard.read()
        with pytest.raises(errors.ConsensusError):
            store.run(lambda uow: uow.artifacts.delete(spec_id="S"))
        with pytest.raises(errors.ConsensusError):
            store.migration.advance(reason="r", force=True)
        with store.engine.connect() as connection, pytest.raises(Exception, match=r"(?i)read.?only"):
            connection.exec_driver_sql("DELETE FROM consensus_artifacts")
        assert client(dashboard).get("/").status_code == 200
    assert database.scalar("SELECT count(*) FROM consensus_artifacts") > 0


@pytest.mark.long
def test_a_request_waits_for_no_lock(database: Database) -> None:
    """While the reading of the facts waits for a lock, requests are answered with what was read before."""
    if database.kind == "sqlite":  # with a log, readers never wait
        with contextlib.closing(sqlite3.connect(database.where)) as file:
            file.execute("PRAGMA journal_mode = DELETE")
    settings = Settings(busy_timeout=timedelta(seconds=200))
    with ConsensusStore.open(database.where, settings=settings) as store:
        dashboard = Dashboard(store)
        dashboard.read()
        with locked(database):
            reading = threading.Thread(target=dashboard.read)
            reading.start()
            answers = [client(dashboard).get(path) for path in ("/", "/tables/mismatches.json")]
            assert reading.is_alive()
        reading.join()

    assert [answer.status_code for answer in answers] == [200, 200]
    assert json.loads(answers[1].text)[0]["pair"] == "artifacts"


def test_says_that_it_could_not_read(database: Database) -> None:
    """A database that cannot be read is no empty page: the answer says why, and from when the last one is."""
    with ConsensusStore.open(database.where) as store:
        dashboard = Dashboard(store)
        assert client(dashboard).get("/").status_code == 503
        dashboard.read()
        store.close()
        dashboard.read()
        answer = client(dashboard).get("/")

    assert answer.status_code == 503
    assert "is closed" in answer.text
    assert "What was read last is of" in answer.text


def test_a_port_that_is_taken(database: Database) -> None:
    """The error names the port, and what to give instead."""
    from consensus_orm.report.dashboard import listen

    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(errors.ConfigurationError, match="cannot be taken") as caught:
            listen(other.getsockname()[1])
    assert "--port 0" in str(caught.value.hint)


LATER = """
const focused = document.querySelector("#backfill .table");
focused.focus();
const head = document.querySelector("#timeline th");
head.firstChild.click();
const next = new DOMParser().parseFromString(document.getElementById("later").textContent, "text/html");
const news = update(next);
document.title = JSON.stringify({
  news,
  phase: document.querySelector("[aria-current]").textContent,
  sorted: document.querySelector("#timeline th").getAttribute("aria-sort"),
  kept: focused === document.activeElement,
  rows: document.querySelectorAll("#timeline tbody tr").length,
});
"""


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM: no update of the dashboard was looked at in a browser")
@pytest.mark.sqlite
def test_a_browser_keeps_its_place(tmp_path: Path) -> None:
    """An update changes what has changed: order and focus stay, and a new phase is told to a screen reader."""
    path = tmp_path / "artifacts.db"
    build_legacy(path)
    pages = []
    for phase in (Phase.DUAL_WRITE, Phase.CUTOVER):
        with ConsensusStore.open(path) as store:
            take_to(store, phase)
            entries = len(store.migration.history())
            dashboard = Dashboard(store, refresh=3600)
            dashboard.read()
            text = client(dashboard).get("/").text
            pages.append(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    before, later = pages
    document = f'<script type="text/plain" id="later">{later.replace("</script>", "")}</script><script>{LATER}</script>'
    (tmp_path / "page.html").write_text(before.replace("</body>", f"{document}</body>"), encoding="utf-8")

    dumped = browse(tmp_path / "page.html", tmp_path / "profile", "--dump-dom")

    (title,) = re.findall("<title>({.*?})</title>", dumped)
    assert json.loads(unescape(title)) == {
        "news": "The phase is 3 CUTOVER now.",
        "phase": "3 CUTOVER",
        "sorted": "ascending",
        "kept": True,
        "rows": entries,
    }
