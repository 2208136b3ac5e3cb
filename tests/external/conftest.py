"""A store on each kind of database with an external store beside it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Settings
from consensus_orm.external import Mirror, Sink, Stage
from consensus_orm.external.artifacts import read_artifact
from tests.support.databases import Database

NO_TIME = timedelta(0)
SETTINGS = Settings(
    soak_mirror=NO_TIME,
    soak_dual_write=NO_TIME,
    soak_cutover=NO_TIME,
    soak_normalized=NO_TIME,
    chunk_pause=NO_TIME,
    retry_initial=timedelta(milliseconds=1),
    retry_max=timedelta(milliseconds=2),
    retry_attempts=3,
    relay_attempts=2,
)


@pytest.fixture
def store(new_database: Database) -> Iterator[ConsensusStore]:
    """An empty store."""
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        store.upgrade()
        yield store


def mirrored(store: ConsensusStore, sink: Sink, to: Stage = Stage.MIRROR) -> Mirror:
    """A mirror at a stage, with what the gates want."""
    mirror = Mirror(store, sink, read=read_artifact)
    if to >= Stage.IMPORT:
        mirror.advance(Stage.IMPORT)
    if to >= Stage.MIRROR:
        mirror.import_entries()
        mirror.advance(Stage.MIRROR)
    return mirror


def add(store: ConsensusStore, count: int = 1, **values: Any) -> list[int]:
    """Add artifacts, each in a unit of work of its own; their ids."""
    given = {"spec_id": "S", "stage": "plan", "agent_name": "claude", "content_json": "{}"} | values
    ids = []
    for _ in range(count):
        with store.unit_of_work() as uow:
            ids.append(uow.artifacts.add(**given).id)
    return ids


def hurry(database: Database) -> None:
    """Let entries that wait after a failed try be sent at once."""
    database.rows_of("UPDATE consensus_orm_outbox SET retry_at = NULL")
