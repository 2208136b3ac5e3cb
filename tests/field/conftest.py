from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from consensus_orm.databases import opening
from consensus_orm.settings import Settings

Open = Callable[[Path], Engine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consensus.sqlite"


@pytest.fixture
def open_engine() -> Iterator[Open]:
    """Make engines that are closed at the end of the test."""
    opened: list[Engine] = []

    def make(path: Path) -> Engine:
        opened.append(opening.create(path, Settings()))
        return opened[-1]

    yield make
    for engine in opened:
        engine.dispose()
