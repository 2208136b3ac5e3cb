"""What all tests share: the fixtures of the shipped plugin, on the odd rows of the field, on each kind of database.

A test that asks for a database by one of the fixtures runs on SQLite and on PostgreSQL, unless its mark (`sqlite`,
`postgresql`) says that what it is about is of one of them only. A server that does not start is an error.

Without the long tests a test of PostgreSQL runs once, with the first of its cases or in DUAL_WRITE, and only
where it is about statements (`IN_SHORT`): a database of a server costs ten times what a file costs. Modules that are
long as a whole are not even imported then, since each worker reads all others, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import Engine

from consensus_orm import ConsensusStore
from consensus_orm.databases.opening import create
from consensus_orm.settings import Settings
from consensus_orm.testing.plugin import History
from tests.support import databases
from tests.support.databases import Database

pytest_plugins = ["pytester"]

KINDS = ("sqlite", "postgresql")
SETTINGS = Settings()
IN_SHORT = (
    *(f"tests/{name}/" for name in ("declaration/gallery", "repository", "statements", "unit_of_work")),
    "tests/consensus/test_artifacts",
    "tests/consensus/test_syntheses",
    "tests/databases/test_",
    "tests/declaration/test_constants",
    "tests/test_acceptance",
)
"""Where the tests of PostgreSQL are that run without the long ones."""
LONG_MODULE = re.compile(r"^pytestmark = .*\blong\b", re.MULTILINE)


class Open(Protocol):
    """Makes an engine that is disposed of when the test ends."""

    def __call__(self, url: Path | str, settings: Settings = ...) -> Engine: ...


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database a test runs on."""
    kind: str = request.param
    return kind


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, without the long tests, the modules that have no other."""
    if collection_path.suffix != ".py" or not str(config.option.markexpr).startswith("not long"):
        return None
    return bool(LONG_MODULE.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what a mark, of a module, a test or one of its parameters, says is not of a kind of database.

    What is left on PostgreSQL is marked as long, but for one case of a test that is about statements.
    """
    items[:] = [item for item in items if _exists(item)]
    once = set[str]()
    for item in sorted(items, key=lambda item: "dual_write" not in item.name.lower()):
        if _is_on_a_server(item):
            test = item.nodeid.partition("[")[0]
            if test in once or not item.nodeid.startswith(IN_SHORT):
                item.add_marker("long")
            once.add(test)


def _exists(item: pytest.Item) -> bool:
    kind = _kind(item)
    only = {mark.name for mark in item.iter_markers()} & set(KINDS)
    return not (kind and only) or kind in only


def _kind(item: pytest.Item) -> str | None:
    """The kind of database that a parameter says; None for a test that asks for none."""
    callspec = getattr(item, "callspec", None)
    kind: str | None = callspec and callspec.params.get("kind")
    return kind


def _is_on_a_server(item: pytest.Item) -> bool:
    of_servers = item.get_closest_marker("postgresql") is not None or "/postgresql/" in item.nodeid
    return _kind(item) == "postgresql" or (_kind(item) is None and of_servers)


@pytest.fixture
def consensus_url(kind: str, tmp_path: Path) -> str | Path:
    """A place for a database of each kind; there is none yet."""
    if kind == "sqlite":
        return tmp_path / "consensus.db"
    from tests.support import servers

    return servers.unused()


@pytest.fixture
def consensus_history() -> History:
    """Our own tests of every phase begin with the odd rows of LEGACY.md, not with tame ones."""
    return databases.odd_history


@pytest.fixture(scope="session")
def in_the_field(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A legacy database with that history, to be read and never changed."""
    with databases.made(kind, databases.odd_history, tmp_path_factory.mktemp("field") / "field.db") as database:
        yield database


@pytest.fixture
def new_database(kind: str, tmp_path: Path) -> Iterator[Database]:
    """A database with nothing in it, to begin with otherwise than the shipped fixtures do."""
    with databases.made(kind, lambda where: None, tmp_path / "new.db") as database:
        yield database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a file; there is none yet."""
    return tmp_path / "store.db"


@pytest.fixture
def open_engine() -> Iterator[Open]:
    """Make engines that are disposed of at the end."""
    made: list[Engine] = []

    def make(url: Path | str, settings: Settings = SETTINGS) -> Engine:
        made.append(create(url, settings))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture
def raw() -> Callable[..., list[tuple[Any, ...]]]:
    """Read with raw SQL, past the package: `raw(store, "SELECT ...")`."""

    def read(store: ConsensusStore | None, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        assert store is not None
        return databases.behind(store).rows_of(sql, *parameters)

    return read
