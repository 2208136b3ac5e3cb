"""What all tests share: the fixtures of the shipped plugin, on the odd rows of the field, on each kind of database.

A test that asks for a database by one of the fixtures runs on SQLite and on PostgreSQL, unless its mark (`sqlite`,
`postgresql`) says that what it is about is of one of them only. A server that does not start is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore
from consensus_orm.testing.plugin import History
from tests import databases

KINDS = ("sqlite", "postgresql")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        only = [kind for kind in KINDS if metafunc.definition.get_closest_marker(kind)]
        metafunc.parametrize("kind", only or KINDS, scope="session")


@pytest.fixture
def consensus_url(kind: str, tmp_path: Path) -> str | Path:
    """A place for a database of each kind; there is none yet."""
    if kind == "sqlite":
        return tmp_path / "consensus.db"
    from tests import servers

    return servers.unused()


@pytest.fixture
def consensus_history() -> History:
    """Our own tests of every phase begin with the odd rows of LEGACY.md, not with tame ones."""
    return databases.odd_history


@pytest.fixture
def raw() -> Callable[..., list[tuple[Any, ...]]]:
    """Read with raw SQL, past the package: `raw(store, "SELECT ...")`."""

    def read(store: ConsensusStore | None, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        assert store is not None
        return databases.behind(store).rows_of(sql, *parameters)

    return read
