"""FastAPI, with a real client: what is answered is what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra fastapi is not installed")

from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import BaseModel

from consensus_orm import Artifact, AsyncConsensusStore, ConsensusStore, Settings, errors
from consensus_orm.integrations.fastapi import (
    ReadOnlyUnitOfWork,
    Store,
    SyncReadOnlyUnitOfWork,
    SyncUnitOfWork,
    UnitOfWork,
    answer_errors,
    lifespan,
)
from consensus_orm.integrations.problems import STATUS
from consensus_orm.testing import artifact_values
from tests.support.databases import Database


class NewArtifact(BaseModel):
    spec_id: str
    stage: str = "plan"
    agent_name: str = "gemini"
    content_json: str = "{}"


def application(url: Path | str, settings: Settings) -> FastAPI:
    app = FastAPI(lifespan=lifespan(url, settings=settings))
    answer_errors(app)

    @app.post("/artifacts", status_code=201)
    async def add(artifact: NewArtifact, uow: UnitOfWork) -> Artifact:
        return await uow.artifacts.add(**artifact.model_dump())

    @app.post("/sync/artifacts", status_code=201)
    def add_sync(artifact: NewArtifact, uow: SyncUnitOfWork) -> Artifact:
        return uow.artifacts.add(**artifact.model_dump())

    @app.post("/refused")
    async def refuse(artifact: NewArtifact, uow: UnitOfWork) -> Artifact:
        await uow.artifacts.add(**artifact.model_dump())
        raise HTTPException(409)

    @app.post("/sync/refused")
    def refuse_sync(artifact: NewArtifact, uow: SyncUnitOfWork) -> Artifact:
        uow.artifacts.add(**artifact.model_dump())
        raise HTTPException(409)

    @app.post("/unserializable", response_model=int)
    async def fail(artifact: NewArtifact, uow: UnitOfWork) -> Any:
        await uow.artifacts.add(**artifact.model_dump())
        return object()

    @app.get("/artifacts")
    async def count(uow: ReadOnlyUnitOfWork) -> int:
        return await uow.artifacts.count()

    @app.get("/sync/artifacts")
    def count_sync(uow: SyncReadOnlyUnitOfWork) -> int:
        return uow.artifacts.count()

    @app.post("/completions/{agent_id}")
    async def complete(agent_id: str, uow: UnitOfWork) -> None:
        await uow.executions.record_completion(agent_id, "{}")

    @app.post("/writes/read-only")
    async def write_read_only(uow: ReadOnlyUnitOfWork) -> None:
        await uow.artifacts.add(**artifact_values())

    @app.post("/background")
    async def later(artifact: NewArtifact, store: Store, tasks: BackgroundTasks) -> None:
        async def work() -> None:
            await store.run(lambda uow: uow.artifacts.add(**artifact.model_dump()))

        tasks.add_task(work)

    return app


@pytest.fixture
def database(new_database: Database, consensus_settings: Settings) -> Database:
    with ConsensusStore.open(new_database.where, settings=consensus_settings) as store:
        store.upgrade()
    return new_database


@pytest.fixture
def client(database: Database, consensus_settings: Settings) -> Iterator[TestClient]:
    settings = consensus_settings.model_copy(update={"busy_timeout": timedelta(milliseconds=100), "retry_attempts": 1})
    with TestClient(application(database.where, settings), raise_server_exceptions=False) as client:
        yield client


def kept(database: Database) -> int:
    count: int = database.scalar("SELECT count(*) FROM agent_outputs")
    return count


@pytest.mark.parametrize("prefix", ["", "/sync"])
def test_what_is_answered_is_kept(client: TestClient, database: Database, prefix: str) -> None:
    """A request that is answered by 201 has its row; one that raises, or whose answer cannot be made, has none."""
    answer = client.post(f"{prefix}/artifacts", json={"spec_id": "S"})
    assert (answer.status_code, answer.json()["id"], kept(database)) == (201, 1, 1)
    assert client.post(f"{prefix}/refused", json={"spec_id": "S"}).status_code == 409
    assert client.post("/unserializable", json={"spec_id": "S"}).status_code == 500
    assert kept(database) == 1
    assert client.get(f"{prefix}/artifacts").json() == 1


@pytest.mark.long
@pytest.mark.parametrize("path", ["/artifacts", "/sync/artifacts"])
def test_the_commit_comes_before_the_answer(database: Database, consensus_settings: Settings, path: str) -> None:
    """When the first byte of the answer leaves, other connections see the row."""
    seen: list[tuple[str, int]] = []
    inner = application(database.where, consensus_settings)

    async def watching(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if scope["type"] == "http":
                seen.append((message["type"], await asyncio.to_thread(kept, database)))
            await send(message)

        await inner(scope, receive, note)

    with TestClient(watching) as client:
        assert client.post(path, json={"spec_id": "S"}).status_code == 201
    assert seen[0] == ("http.response.start", 1)


def test_a_commit_that_fails_is_no_success(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the commit itself is answered, not logged behind an answer of success."""

    def fail(*_: object) -> None:
        raise errors.DatabaseBusyError("another process held the lock")

    monkeypatch.setattr("consensus_orm.unit_of_work.unit.UnitOfWork._commit", fail)
    for path in ("/artifacts", "/sync/artifacts"):
        answer = client.post(path, json={"spec_id": "S"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert kept(database) == 0


def test_errors_have_a_status(client: TestClient, database: Database, consensus_settings: Settings) -> None:
    """What the client did is told with its hint, a busy database may be tried again, of a fault nothing is told."""
    wrong = client.post("/artifacts", json={"spec_id": ""})
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, "application/problem+json")
    assert wrong.json()["code"] == "INVALID_VALUE"
    assert wrong.json()["title"] == "A value cannot be accepted."
    assert "spec_id must not be empty" in wrong.json()["detail"]
    unknown = client.post("/completions/nobody")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "UNKNOWN_AGENT")
    fault = client.post("/writes/read-only")
    assert (fault.status_code, set(fault.json())) == (500, {"title", "status", "code"})
    with (
        ConsensusStore.open(database.where, settings=consensus_settings) as other,
        other.unit_of_work(exclusive=True),
    ):
        busy = client.post("/artifacts", json={"spec_id": "S"})
        assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
    assert kept(database) == 0


def test_every_error_has_a_status() -> None:
    """The class of each error, or one above it, is in the table."""
    kinds: list[Any] = [getattr(errors, name) for name in errors.__all__]
    for kind in kinds:
        if issubclass(kind, errors.ConsensusError):
            assert any(above in STATUS for above in kind.__mro__)


def test_a_task_behind_the_answer_has_a_unit_of_its_own(client: TestClient, database: Database) -> None:
    """What runs after the answer takes the store."""
    assert client.post("/background", json={"spec_id": "S"}).status_code == 200
    assert kept(database) == 1


@pytest.mark.sqlite
def test_the_store_lives_as_long_as_the_application(database: Database, consensus_settings: Settings) -> None:
    """It is open from start to end and closed then; without the lifespan the error says what to do."""
    app = application(database.where, consensus_settings)
    with TestClient(app) as client:
        store: AsyncConsensusStore = app.state.consensus_store
        assert client.get("/artifacts").json() == 0
    with pytest.raises(errors.StoreClosedError):
        store.sync_store.unit_of_work()
    bare = FastAPI()
    add: Callable[..., Any] = bare.get("/")

    @add
    async def count(uow: ReadOnlyUnitOfWork) -> int:
        return await uow.artifacts.count()

    with TestClient(bare) as client, pytest.raises(errors.ConfigurationError, match="has no store"):
        client.get("/")
