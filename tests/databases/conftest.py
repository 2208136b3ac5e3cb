"""An engine that does not wait for long, and a database with rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from consensus_orm.databases.engine import prepare
from tests.conftest import Open
from tests.databases.connections import QUICK, write
from tests.support.databases import Database, build_legacy


@pytest.fixture
def engine(path: Path, open_engine: Open) -> Engine:
    """An engine on a prepared file with a table t."""
    made = open_engine(path, QUICK)
    prepare(made)
    write(made, "CREATE TABLE t (a)")
    return made


@pytest.fixture
def database(new_database: Database) -> Database:
    """A legacy database with the common rows."""
    build_legacy(new_database.where)
    return new_database
