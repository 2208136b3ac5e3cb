"""What all tests share: the fixtures of the shipped plugin, on the odd rows of the field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consensus_orm.testing.plugin import History
from tests.field import builders, rows


def odd_history(path: Path) -> None:
    """A legacy file with the rows that break simple implementations, less the two of several megabytes."""
    builders.build_legacy(path, columns=11)
    with builders.writing(path) as connection:
        rows.insert_odd_rows(connection, big=False)


@pytest.fixture
def consensus_history() -> History:
    """Our own tests of every phase begin with the odd rows of LEGACY.md, not with tame ones."""
    return odd_history


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., list[tuple[Any, ...]]]:
    """Read with raw SQL, past the package: `raw(store.path, "SELECT ...")`."""

    def read(path: Path | None, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        assert path is not None
        with builders.writing(path) as connection:
            return connection.execute(sql, parameters).fetchall()

    return read
