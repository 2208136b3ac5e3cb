"""A store in a migration, whose clock a test moves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore
from tests.migration.steps import BASE, Clock, Open
from tests.support.databases import Database, build_legacy


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(new_database: Database) -> Database:
    """A legacy database with the common rows."""
    build_legacy(new_database.where, columns=10, altered=True)
    return new_database


@pytest.fixture
def open_store(database: Database, clock: Clock, tmp_path: Path) -> Iterator[Open]:
    """Open the database; keyword arguments are settings. Everything is closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def open_(**settings: Any) -> ConsensusStore:
            chosen = BASE.model_copy(update={"clock": clock, "backup_dir": tmp_path, **settings})
            return stack.enter_context(ConsensusStore.open(database.where, settings=chosen))

        yield open_


@pytest.fixture
def store(open_store: Open) -> ConsensusStore:
    return open_store()
