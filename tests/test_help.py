"""What a developer sees in a shell: help that is readable, names that are listed, objects that tell what they are."""

from __future__ import annotations

import asyncio
import pydoc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import consensus_orm
from consensus_orm import AsyncConsensusStore, ConsensusStore, Store, errors, testing
from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.declaration import ARTIFACTS, CONSENSUS
from consensus_orm.consensus.executions import Executions
from consensus_orm.consensus.models import AgentOutput
from consensus_orm.consensus.runs import Runs
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.errors import StoreClosedError
from consensus_orm.migration import Migration
from consensus_orm.models import Base
from consensus_orm.repository.repository import Repository
from consensus_orm.testing import artifact_values

SHOWN = [
    *(getattr(consensus_orm, name) for name in consensus_orm.__all__ if name != "__version__"),
    *(Artifacts, Syntheses, Runs, Executions, Migration, Maintenance, Repository),
]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: getattr(shown, "__name__", "value"))
def test_help_is_readable(shown: Any) -> None:
    """No line is longer than the signature of pydantic's own methods, and no default is an address."""
    shell = pydoc.plaintext  # type: ignore[attr-defined]  # not in the stubs
    for line in pydoc.render_doc(shown, renderer=shell).splitlines():
        assert len(line) < 600 or "__pydantic_self__" in line, line[:100]
        assert " object at 0x" not in line, line


@pytest.mark.parametrize("package", [consensus_orm, testing], ids=lambda package: package.__name__)
def test_names_that_are_imported_when_used_are_listed(package: Any) -> None:
    """`dir` and completion list what a package offers, before and after it was imported."""
    assert dir(package) == sorted(package.__all__)


@pytest.mark.sqlite
def test_objects_tell_what_they_are(tmp_path: Path) -> None:
    """Stores by their database, moves by their names, models by their keys, and nothing of a row besides."""
    with ConsensusStore.open(path := tmp_path / "consensus.db") as store:
        assert repr(store) == f"<ConsensusStore {path}>"
        assert repr(AsyncConsensusStore(store)) == f"<AsyncConsensusStore {path}>"
        assert repr(CONSENSUS) == "<Moves artifacts, syntheses>"
        assert repr(ARTIFACTS) == "<Move artifacts: consensus_artifacts to agent_outputs>"
        uow = store.unit_of_work()
        assert repr(uow).endswith("consensus.db: not begun>")
        with uow:
            assert repr(uow).endswith("consensus.db: CONTRACT>")
            added = uow.artifacts.add(**artifact_values(content_json="secret"))
            entity = uow.session.get(AgentOutput, added.id)
            assert repr(entity) == f"<AgentOutput id={added.id}>"
            uow.session.expire(entity)
            assert repr(entity) == "<AgentOutput>"
        assert repr(uow).endswith("consensus.db: ended>")
    for mapper in Base.registry.mappers:
        assert " object at 0x" not in repr(mapper.class_())


@pytest.mark.postgresql
def test_a_store_tells_no_password(consensus_store: ConsensusStore) -> None:
    """The server's URL is shown without it."""
    url = consensus_store.engine.url.set(password="secret")
    consensus_store.engine.url = url
    assert "secret" not in repr(consensus_store)
    assert repr(consensus_store).startswith("<ConsensusStore postgresql://")


CALLS: dict[str, Callable[[ConsensusStore], object]] = {
    "unit": lambda store: store.unit_of_work(),
    "run": lambda store: store.run(lambda uow: uow.artifacts.count()),
    "enter": lambda store: store.__enter__(),
    "upgrade": lambda store: store.upgrade(),
    "status": lambda store: store.migration.status(),
    "phase": lambda store: store.migration.phase,
    "verify": lambda store: store.migration.verify(),
    "advance": lambda store: store.migration.advance(),
    "history": lambda store: store.migration.history(),
    "stats": lambda store: store.maintenance.stats(),
    "vacuum": lambda store: store.maintenance.vacuum(),
}


def test_a_closed_store_is_closed(consensus_store: ConsensusStore) -> None:
    """Whatever is asked of it says so, and opens no connection; to close it twice is nothing."""
    maintenance = consensus_store.maintenance
    consensus_store.close()
    consensus_store.close()
    for name, call in CALLS.items():
        with pytest.raises(StoreClosedError) as raised:
            call(consensus_store)
        assert (raised.value.hint, name) == ("open another with ConsensusStore.open()", name)
    with pytest.raises(StoreClosedError):
        maintenance.backup(Path("/nowhere/backup.db"))
    pool: Any = consensus_store.engine.pool
    assert pool.checkedin() == 0


@pytest.mark.sqlite
def test_a_closed_asynchronous_store_is_closed() -> None:
    """The rows of a database in memory are gone, and no empty one takes its place unnoticed."""

    async def work() -> None:
        store = await AsyncConsensusStore.open(":memory:")
        async with store.unit_of_work() as uow:
            await uow.artifacts.add(**artifact_values())
        await store.close()
        with pytest.raises(StoreClosedError):
            async with store.unit_of_work():
                pass

    asyncio.run(work())


def test_every_error_is_shown() -> None:
    """The errors are names of the package, too."""
    assert set(errors.__all__) < set(dir(consensus_orm))
    assert Store.__doc__


def test_one_thing_is_not_told_as_several() -> None:
    """What commands, gates and reports count is printed by `formats.count`, which knows the singular."""
    several = re.compile(r"\{[^{}]+\} (mismatches|rejects|findings|differences|entries|tries|foreign writes)\b")
    package = Path(consensus_orm.__file__).parent
    found = [
        f"{path.name}: {line.strip()}"
        for folder in ("cli", "report", "external", "migration")
        for path in (package / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if several.search(line) and path.parent.name + path.name != "externaldemo.py"
    ]
    assert not found
