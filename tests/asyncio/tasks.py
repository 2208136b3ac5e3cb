"""What tests of the asynchronous store share: stores that leave nothing behind, tasks that are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest

from consensus_orm import (
    AsyncConsensusStore,
    Settings,
)
from consensus_orm.databases.pool import Pool
from tests.support.databases import Database

T = TypeVar("T")

ROW: dict[str, Any] = {"spec_id": "S", "stage": "plan", "agent_name": "gemini", "content_json": "{}", "run_id": "r"}
SYNTHESIS: dict[str, Any] = {"spec_id": "S", "stage": "plan", "output_markdown": "#", "status": "ok", "run_id": "r"}
SLOW = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3000000) SELECT count(*) FROM n"
"""Some tenths of a second."""


@contextlib.asynccontextmanager
async def opened(database: Database, **settings: Any) -> AsyncIterator[AsyncConsensusStore]:
    """A store that is proved to leave nothing behind: no connection lent, no lock, no thread."""
    before = set(ours())
    async with await AsyncConsensusStore.open(database.where, settings=Settings(**settings)) as store:
        yield store
        await store._threads.close()
        assert pool_of(store).checkedout() == 0
        with database.writers_waiting():  # nobody has a lock
            pass
    assert eventually(lambda: before >= set(ours())), "threads are left"


def pool_of(store: AsyncConsensusStore) -> Pool:
    assert isinstance(store.engine.pool, Pool)
    return store.engine.pool


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "consensus_orm asyncio"]


def eventually(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


async def until(condition: Callable[[], bool]) -> None:
    """Wait on the loop for something that another task or a thread does."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def stored(database: Database) -> list[str]:
    """The specs of the artifacts written by a test."""
    query = "SELECT spec_id FROM consensus_artifacts WHERE agent_name = 'gemini' AND run_id = 'r' ORDER BY id"
    return [spec for (spec,) in database.rows_of(query)]


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and see it end so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
