"""Stores that are observed."""

from __future__ import annotations

import pytest

from consensus_orm import ConsensusStore
from tests.support.databases import Database, build_legacy


@pytest.fixture
def legacy(new_database: Database) -> Database:
    """A database with the common legacy rows."""
    build_legacy(new_database.where)
    return new_database


@pytest.fixture
def every_phase(every_phase: ConsensusStore) -> ConsensusStore:
    """The shipped one, ready: the first unit of work looks at the schema, which is told by units of its own."""
    return ready(every_phase)


@pytest.fixture
def consensus_store(consensus_store: ConsensusStore) -> ConsensusStore:
    """The shipped one, ready."""
    return ready(consensus_store)


def ready(store: ConsensusStore) -> ConsensusStore:
    store.upgrade()
    with store.unit_of_work():
        pass
    return store
