"""The pytest plugin: fixtures for stores on databases of their own, in every phase, and for counted statements.

pytest finds it by its entry point; it imports nothing before a test uses a fixture. Turn it off with
`-p no:consensus_orm`.

- `consensus_store`: a store on a database of its own, its schema made by `upgrade`, at CONTRACT like any new one.
- `every_phase`: the test runs five times, with a store at each phase. The store began as a legacy database, was
  filled by `consensus_history`, and was taken to the phase as an operator would: upgrade, backfill, verify, advance.
  Reads return the same in every phase, so a test must pass in all of them.
- `every_flip`: the test runs eight times, once for each step from a phase to the next and back. The fixture has the
  `store`, the phases `before` and `after`, and `flip()`.
- `async_consensus_store`, `every_phase_async`: the same for coroutines, whatever runs them.
- `check_moves`: `check_moves(MOVES, fill=...)` checks an application's own moves and revisions (`testing.check_moves`).
- `query_counter`: `with query_counter(store) as queries:` lists the statements that were sent.

Override three fixtures as needed: `consensus_url` (the database of a test, by default a temporary file; on a PostgreSQL
server, one that does not exist yet, which is cloned for the test and dropped afterwards), `consensus_history` (a
function of a module that makes the legacy database at a path or URL, once per session) and `consensus_settings` (the
settings of the stores, by default without soak times).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from consensus_orm.asyncio.consensus import AsyncConsensusStore
    from consensus_orm.consensus.store import ConsensusStore
    from consensus_orm.migration.rehearsal_report import RehearsalReport
    from consensus_orm.phase import Phase
    from consensus_orm.settings import Settings
    from consensus_orm.store import Store
    from consensus_orm.testing.queries import QueryLog
    from consensus_orm.testing.templates import Templates
    from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Flip", "History", "QueryCounter"]

History = Callable[[Any], object]
"""Makes a legacy database at the path or URL of `consensus_url`."""

QueryCounter = Callable[["Store[Any] | UnitOfWork"], AbstractContextManager["QueryLog"]]
"""Lists the statements sent while its block lasts."""

NO_TIME = timedelta(0)

_PHASES = ("EXPAND", "DUAL_WRITE", "CUTOVER", "NORMALIZED", "CONTRACT")
_FLIPS = (*itertools.pairwise(_PHASES), *itertools.pairwise(_PHASES[::-1]))


@dataclass(frozen=True)
class Flip:
    """A step from one phase to the next, or to the one before.

    Attributes:
        store: At the phase before the step.
        before: That phase.
        after: The phase it leads to.
    """

    store: ConsensusStore
    before: Phase
    after: Phase

    def flip(self) -> None:
        """Take the step."""
        from consensus_orm.testing.phases import take_to

        take_to(self.store, self.after)


@pytest.fixture(scope="session")
def _consensus_templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Templates]:
    from consensus_orm.testing.templates import Templates

    templates = Templates(tmp_path_factory.mktemp("consensus_orm"))
    yield templates
    templates.close()


@pytest.fixture
def consensus_url(tmp_path: Path) -> str | Path:
    """The path or URL of the database of a test, which does not exist yet; override it for another one."""
    return tmp_path / "consensus.db"


@pytest.fixture
def consensus_settings(tmp_path: Path) -> Settings:
    """The settings of the stores of these fixtures; override them for others."""
    from consensus_orm.settings import Settings

    return Settings(
        soak_dual_write=NO_TIME,
        soak_cutover=NO_TIME,
        soak_normalized=NO_TIME,
        chunk_pause=NO_TIME,
        backup_dir=tmp_path,
    )


@pytest.fixture
def consensus_history() -> History:
    """Makes the legacy database that `every_phase` and `every_flip` begin with; override it for another one."""
    from consensus_orm.testing.phases import legacy_history

    return legacy_history


@pytest.fixture
def consensus_store(
    _consensus_templates: Templates, consensus_url: str | Path, consensus_settings: Settings
) -> Iterator[ConsensusStore]:
    """A store on a database of its own, its schema made by `upgrade`."""
    yield from _opened(_consensus_templates, None, "CONTRACT", consensus_url, consensus_settings)


@pytest.fixture(params=_PHASES, ids=str.lower)
def every_phase(
    request: pytest.FixtureRequest,
    _consensus_templates: Templates,
    consensus_url: str | Path,
    consensus_history: History,
    consensus_settings: Settings,
) -> Iterator[ConsensusStore]:
    """A store with a legacy history, at each of the five phases in turn."""
    yield from _opened(_consensus_templates, consensus_history, request.param, consensus_url, consensus_settings)


@pytest.fixture(params=_FLIPS, ids=lambda flip: f"{flip[0].lower()}_to_{flip[1].lower()}")
def every_flip(
    request: pytest.FixtureRequest,
    _consensus_templates: Templates,
    consensus_url: str | Path,
    consensus_history: History,
    consensus_settings: Settings,
) -> Iterator[Flip]:
    """A store with a legacy history, before each step from a phase to its neighbour."""
    from consensus_orm.phase import Phase

    before, after = request.param
    for store in _opened(_consensus_templates, consensus_history, before, consensus_url, consensus_settings):
        yield Flip(store, Phase[before], Phase[after])


@pytest.fixture
def async_consensus_store(consensus_store: ConsensusStore) -> Iterator[AsyncConsensusStore]:
    """The store of `consensus_store`, to be awaited."""
    yield from _asynchronous(consensus_store)


@pytest.fixture
def every_phase_async(every_phase: ConsensusStore) -> Iterator[AsyncConsensusStore]:
    """The store of `every_phase`, to be awaited."""
    yield from _asynchronous(every_phase)


def _asynchronous(store: ConsensusStore) -> Iterator[AsyncConsensusStore]:
    from consensus_orm.asyncio.consensus import AsyncConsensusStore

    awaited = AsyncConsensusStore(store)
    yield awaited
    asyncio.run(awaited.close())


@pytest.fixture
def check_moves(
    _consensus_templates: Templates, consensus_url: str | Path, consensus_settings: Settings
) -> Iterator[Callable[..., RehearsalReport]]:
    """Checks the moves of an application on the database of the test, with the arguments of `testing.check_moves`."""
    from consensus_orm.testing.moves import check_moves as check

    with _consensus_templates.empty(consensus_url):
        yield partial(check, url=consensus_url, settings=consensus_settings)


@pytest.fixture
def query_counter() -> QueryCounter:
    """Lists the statements that are sent while its block lasts; its length is their number."""
    from consensus_orm.testing.queries import count_queries

    return count_queries


def _opened(
    templates: Templates, history: History | None, phase: str, url: str | Path, settings: Settings
) -> Iterator[ConsensusStore]:
    from consensus_orm.consensus.store import ConsensusStore
    from consensus_orm.phase import Phase

    with templates.copy(history, Phase[phase], url), ConsensusStore.open(url, settings=settings) as store:
        yield store
