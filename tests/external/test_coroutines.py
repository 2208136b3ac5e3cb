"""External stores for coroutines: attached, imported, mirrored by a relay that is a task, compared and left."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from consensus_orm.asyncio.external import AsyncMirror, attach
from consensus_orm.errors import InvalidValueError, MigrationError
from consensus_orm.external import Stage
from consensus_orm.external.artifacts import read_artifact
from consensus_orm.testing.sinks import MemorySink
from tests.asyncio.tasks import ROW, opened
from tests.external.conftest import SETTINGS
from tests.support.databases import Database

CHANGED = SETTINGS.model_dump(include=SETTINGS.model_fields_set)


class OneAtATime(MemorySink):
    """Notices two calls at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = threading.Lock()
        self.before = self._alone

    def _alone(self, call: str, name: str) -> None:
        assert self.turn.acquire(blocking=False), "two calls are in flight"
        time.sleep(0.001)
        self.turn.release()


def test_a_store_is_left_by_coroutines(new_database: Database) -> None:
    """Each step is awaited; the relay is a task beside the units, and gives its lease back when it is cancelled."""
    sink = OneAtATime()
    sink.items["gate"] = json.dumps({"spec_id": "S", "stage": "s", "agent": "a", "content": 1})

    async def work() -> None:
        async with opened(new_database, **CHANGED | {"pool_size": 2}) as store:
            mirror = AsyncMirror(store, sink, read=read_artifact)
            assert await mirror.stage is Stage.OFF
            with pytest.raises(MigrationError, match="OFF"):
                await mirror.verify()
            await mirror.advance("import")
            assert (await mirror.import_entries()).imported == 1
            await mirror.advance("mirror")
            relay = asyncio.create_task(mirror.relay.run())
            for _ in range(6):
                async with store.unit_of_work() as uow:
                    await uow.artifacts.add(**ROW)
                await mirror.verify()
            while (await mirror.status()).waiting:
                await asyncio.sleep(0.01)
            await mirror.pause(reason="a test")
            await mirror.resume()
            assert (await mirror.status()).relay is not None
            relay.cancel()
            with pytest.raises(asyncio.CancelledError):
                await relay
            assert (await mirror.status()).relay is None
            assert len(sink.items) == 8, "6 rows, what came in, and its row"
            assert (await mirror.verify()).clean
            assert await mirror.advance() is Stage.DETACHED
            assert await mirror.rollback() is Stage.MIRROR
            assert (await mirror.relay.run(until_empty=True)).sent == 7

    asyncio.run(work())


def test_an_attached_store_writes_the_outbox(new_database: Database) -> None:
    """A process that only writes attaches its store; whatever is no store for coroutines is refused."""

    async def work() -> None:
        async with opened(new_database, **CHANGED) as store:
            mirror = AsyncMirror(store, MemorySink())
            await mirror.advance("import")
            await mirror.import_entries()
            await mirror.advance("mirror")
        async with opened(new_database, **CHANGED) as writer:
            attach(writer)
            async with writer.unit_of_work() as uow:
                await uow.artifacts.add(**ROW)
            with pytest.raises(InvalidValueError):
                attach(writer.sync_store)  # type: ignore[arg-type]

    asyncio.run(work())
    assert new_database.scalar("SELECT count(*) FROM consensus_orm_outbox") == 1
