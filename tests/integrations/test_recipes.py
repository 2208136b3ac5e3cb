"""The recipes of docs/web.md, as they stand there, with real clients: what is answered is kept."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import consensus_orm
from consensus_orm import ConsensusStore, Settings
from tests.support.databases import Database

for needed in ("fastapi", "flask", "litestar"):
    pytest.importorskip(needed, reason="what the recipes use is not installed")

PAGE = (Path(consensus_orm.__file__).parent / "docs" / "web.md").read_text(encoding="utf-8")
ROW = {"spec_id": "S", "stage": "plan", "agent_name": "gemini", "content_json": "{}"}


def recipe(heading: str) -> str:
    """The code under a heading of the page."""
    found = re.search(rf"^## {heading}\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def module(heading: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """That code as a module, whose annotations are found by its name."""
    name = f"recipe_{heading.lower()}"
    made = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(recipe(heading), name, "exec"), vars(made))
    return made


@pytest.fixture
def database(new_database: Database, consensus_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("CONSENSUS_ORM_URL", str(new_database.where))
    with ConsensusStore.open(new_database.where, settings=consensus_settings) as store:
        store.upgrade()
    return new_database


def kept(database: Database) -> int:
    count: int = database.scalar("SELECT count(*) FROM agent_outputs")
    return count


class Client:
    """A real client of any of the applications."""

    def __init__(self, client: Any, of: Callable[[Any], Any] = lambda answer: answer.json()) -> None:
        self.client, self.of = client, of

    def post(self, path: str, body: Any) -> tuple[int, Any, str]:
        answer = self.client.post(path, json=body)
        return answer.status_code, self.of(answer), answer.headers["Content-Type"]

    def get(self, path: str) -> Any:
        return self.of(self.client.get(path))


@contextmanager
def served(framework: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    made = module(framework, monkeypatch)
    if framework == "FastAPI":
        from fastapi.testclient import TestClient

        with TestClient(made.app) as client:
            yield Client(client)
    elif framework == "Flask":
        stores: list[Any] = []
        monkeypatch.setattr(made.atexit, "register", stores.append)
        yield Client(made.create_app(database.where).test_client(), lambda answer: answer.get_json(force=True))
        stores[0]()
    else:
        from litestar.testing import TestClient as LitestarClient

        with LitestarClient(made.create_app(database.where)) as client:
            yield Client(client)


@pytest.mark.parametrize("framework", ["FastAPI", "Flask", "Litestar"])
def test_an_application(framework: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """201 means kept, a page follows the one before, and what is refused is a problem with its code, and not kept."""
    with served(framework, database, monkeypatch) as client:
        ids = []
        for number in (1, 2):
            status, artifact, _ = client.post("/artifacts", ROW)
            assert (status, kept(database)) == (201, number)
            ids.append(artifact["id"])
        page = client.get("/specs/S/artifacts")
        assert [artifact["id"] for artifact in page] == ids[::-1]
        assert [artifact["id"] for artifact in client.get(f"/specs/S/artifacts?after={ids[1]}")] == ids[:1]
        status, problem, kind = client.post("/artifacts", ROW | {"spec_id": ""})
        assert (status, problem["code"], kind) == (422, "INVALID_VALUE", "application/problem+json")
        if framework == "FastAPI":
            assert client.post("/patient/artifacts", ROW)[0] == 201
        else:
            assert client.post("/artifacts", ROW | {"agnt": "x"})[:2][0] == 422
            assert kept(database) == 2


@pytest.mark.sqlite
@pytest.mark.parametrize("framework", ["FastAPI", "Litestar"])
def test_the_commit_comes_before_the_answer(
    framework: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the answer starts, other connections see the row."""
    made = module(framework, monkeypatch)
    app = made.app if framework == "FastAPI" else made.create_app(database.where)
    seen: list[int] = []

    async def watching(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.append(await asyncio.to_thread(kept, database))
            await send(message)

        await app(scope, receive, note)

    from starlette.testclient import TestClient

    with TestClient(watching) as client:
        assert client.post("/artifacts", json=ROW).status_code == 201
    assert seen == [1]


@pytest.mark.long
def test_a_worker(database: Database, tmp_path: Path) -> None:
    """Each line that it confirms is kept, one that is refused stops nothing, and SIGTERM ends it without an error."""
    script = tmp_path / "worker.py"
    script.write_text(recipe("A plain worker"), encoding="utf-8")
    command = [sys.executable, str(script), str(database.where)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        answers = []
        for row in (ROW, ROW | {"stage": ""}, ROW):
            worker.stdin.write(json.dumps(row) + "\n")
            worker.stdin.flush()
            answers.append(json.loads(worker.stdout.readline()))
        assert answers == [{"kept": 1}, {"refused": "INVALID_VALUE"}, {"kept": 2}]
        assert kept(database) == 2
        worker.send_signal(signal.SIGTERM)
        worker.stdin.write(json.dumps(ROW) + "\n")
        worker.stdin.close()
        assert worker.wait(30) == 0
    assert kept(database) == 2
