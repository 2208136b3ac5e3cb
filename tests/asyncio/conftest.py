"""A database for the store of coroutines."""

from __future__ import annotations

import pytest

from consensus_orm import (
    ConsensusStore,
    Phase,
)
from tests.support.databases import Database, build_legacy


@pytest.fixture
def database(new_database: Database) -> Database:
    """A prepared database at DUAL_WRITE."""
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where) as store:
        store.migration.migrate(Phase.DUAL_WRITE, soak=False)
    return new_database
