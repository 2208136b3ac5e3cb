"""Databases to copy from and to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.testing.phases import take_to
from tests.copying.judges import SETTINGS
from tests.support import servers


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], None], Phase], Path]:
    """Files of a history at a phase, each made once."""
    made: dict[tuple[Callable[[Path], None], Phase], Path] = {}

    def source(history: Callable[[Path], None], phase: Phase) -> Path:
        if (history, phase) not in made:
            path = made[history, phase] = tmp_path_factory.mktemp("sources") / f"{phase.name.lower()}.db"
            history(path)
            with ConsensusStore.open(path, settings=SETTINGS) as store:
                take_to(store, phase)
                for reject in store.migration.rejects():
                    store.migration.accept_reject(reject.id, reason="test")
        return made[history, phase]

    return source


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """An empty database on a server."""
    with servers.database() as url:
        yield url
