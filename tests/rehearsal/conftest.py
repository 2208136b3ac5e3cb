"""Databases to rehearse with, and faults at the end of a rehearsal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore
from consensus_orm.rehearsal.round_trip import _Course
from tests.support import servers
from tests.support.databases import Database, at, build_legacy, odd_history


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, so that a test sees what is left of them."""
    servers.shared()  # its folder is made where they were made before
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evidence for a server is kept in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A legacy file with the odd rows, as a program of the field left it."""
    found = tmp_path / "artifacts.db"
    odd_history(found)
    return found


@pytest.fixture
def legacy(new_database: Database) -> Database:
    """A legacy database with the odd rows."""
    odd_history(new_database.where)
    return new_database


@pytest.fixture
def empty(new_database: Database) -> Database:
    """A legacy database without rows."""
    build_legacy(new_database.where)
    new_database.script("DELETE FROM consensus_artifacts; DELETE FROM consensus_synthesis")
    return new_database


@pytest.fixture
def store(legacy: Database) -> Iterator[ConsensusStore]:
    with ConsensusStore.open(legacy.where) as opened:
        yield opened


@pytest.fixture
def at_the_end(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run a statement on the copy when it is back, before it is looked at, past everything that would notice."""

    def arrange(sql: str) -> None:
        real = _Course._back

        def back(self: _Course) -> None:
            real(self)
            at(self.copy.where).unnoticed(sql)

        monkeypatch.setattr(_Course, "_back", back)

    return arrange
