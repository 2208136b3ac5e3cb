"""What authors of tests get: chance with a seed, strategies, fixtures for coroutines, and checks of their own moves."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Connection, Text, insert
from sqlalchemy.orm import Mapped, mapped_column

import consensus_orm
from consensus_orm import AsyncConsensusStore, ConsensusStore, Move, Moves, Phase, Settings, testing
from consensus_orm.models.base import BIG
from consensus_orm.testing import (
    CONTENTS,
    TIMES,
    ArtifactFactory,
    ConsensusArtifactFactory,
    artifact_values,
    legacy_file,
    seed,
    strategies,
    take_to,
)
from consensus_orm.testing._factory import Factory
from tests.support.databases import Database
from tests.support.notes import MOVES, Base, Flat

pytestmark = pytest.mark.long

PAGE = (Path(consensus_orm.__file__).parent / "docs" / "testing.md").read_text(encoding="utf-8")
SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0)
FEW = hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


# Factories ------------------------------------------------------------------------------------------------


def test_the_table_tells_every_factory_with_its_shapes_and_traits() -> None:
    """Each factory has its row, with what it takes: no shape and no trait more, none less."""
    rows = re.findall(r"^\| `(\w+)`.*?\|.*?\|(.*?)\|(.*?)\|$", PAGE, re.MULTILINE)
    told = {name: (re.findall(r"\w+", shapes), re.findall(r"\w+", traits)) for name, shapes, traits in rows}
    for name in testing.__all__:
        factory = getattr(testing, name)
        if isinstance(factory, type) and issubclass(factory, Factory):
            parameters = factory._meta.parameters
            shapes = [shape for shape in ("time", "content", "run") if f"{shape}_shape" in parameters]
            traits = sorted(each for each, of in parameters.items() if type(of).__name__ == "Trait")
            assert told[name] == (shapes, traits), name


def test_the_example_of_the_page_runs(new_database: Database) -> None:
    """The rows of the example are there, in phase CUTOVER, on either kind of database."""
    (example,) = re.findall(r"```python\n(from consensus_orm import ConsensusStore, Phase.*?)```", PAGE, re.DOTALL)
    if new_database.kind == "postgresql":
        example = example.replace(', content_shape="invalid_utf8"', "")
    exec(compile(example, "testing.md", "exec"), {"path": new_database.where})
    assert len(new_database.legacy()["artifacts"]) == 25


def test_chance_has_a_seed(new_database: Database) -> None:
    """With one seed the same rows, with another others, and in time every shape that the database holds."""

    def rows(number: int) -> list[Any]:
        seed(number)
        with legacy_file(new_database.where):
            made = ConsensusArtifactFactory.create_batch(30, random=True)
            return [(row.created_at, row.content_json, row.run_id) for row in made]

    first = rows(1)
    assert rows(1) == first
    assert rows(2) != first
    seed(3)
    records = [ArtifactFactory.build(random=True) for _ in range(500)]
    assert {record.created_at_raw for record in records} == set(TIMES.values())
    assert {record.content_json for record in records} == {of for name, of in CONTENTS.items() if name != "huge"}


def test_random_arguments_are_accepted(consensus_store: ConsensusStore) -> None:
    """Whatever chance gives, a repository takes on either kind of database."""
    with consensus_store.unit_of_work() as uow:
        for _ in range(50):
            uow.artifacts.add(**artifact_values(random=True))
        assert uow.artifacts.count() == 50


# Strategies -----------------------------------------------------------------------------------------------


@pytest.mark.sqlite
@FEW
@given(strategies.legacy_files(rows=5))
def test_legacy_files_can_be_moved(file: strategies.LegacyFile) -> None:
    """Every file that is made has the rows that it names, and goes to CONTRACT and back to what it was."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "legacy.db"
        file.write(path)
        settings = SETTINGS.model_copy(update={"backup_dir": Path(folder)})
        with ConsensusStore.open(path, settings=settings) as store:
            with store.unit_of_work(read_only=True) as uow:
                assert uow.artifacts.count() == len(file.artifacts)
                assert uow.executions.count() == len(file.executions)
                before = uow.artifacts.list(), uow.syntheses.list(), uow.runs.list()
            take_to(store, Phase.CONTRACT)
            with store.unit_of_work(read_only=True) as uow:
                assert (uow.artifacts.list(), uow.syntheses.list(), uow.runs.list()) == before


@pytest.mark.postgresql
@pytest.mark.usefixtures("kind")
@FEW
@given(strategies.legacy_files(plain=True, rows=3))
def test_plain_files_are_held_by_servers(file: strategies.LegacyFile) -> None:
    """What is plain, a server stores, too."""
    from tests.support import servers

    with servers.database() as url:
        file.write(url)
        with ConsensusStore.open(url) as store, store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.count() == len(file.artifacts)


@pytest.mark.sqlite
@FEW
@given(strategies.histories())
def test_histories_succeed(history: list[strategies.Operation]) -> None:
    """Each operation can be applied, in a phase that writes both sides, and they agree afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "legacy.db"
        with legacy_file(path):
            ConsensusArtifactFactory.create_batch(2)
        with ConsensusStore.open(path, settings=SETTINGS) as store:
            take_to(store, Phase.DUAL_WRITE)
            for operation in history:
                store.run(operation.apply)
            assert store.migration.verify().clean


# Fixtures -------------------------------------------------------------------------------------------------


def test_a_store_for_coroutines(async_consensus_store: AsyncConsensusStore) -> None:
    """It is open, and any event loop runs it."""

    async def work() -> int:
        async with async_consensus_store.unit_of_work() as uow:
            await uow.artifacts.add(**artifact_values())
            return await uow.artifacts.count()

    assert asyncio.run(work()) == 1


@pytest.mark.sqlite
def test_every_phase_for_coroutines(every_phase_async: AsyncConsensusStore) -> None:
    """The same history in every phase."""

    async def work() -> int:
        async with every_phase_async.unit_of_work(read_only=True) as uow:
            return await uow.artifacts.count()

    assert asyncio.run(work()) > 5


# Their own moves ------------------------------------------------------------------------------------------


ENV = """
from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection)
with context.begin_transaction():
    context.run_migrations()
"""

REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = {name!r}, {down!r}
branch_labels = depends_on = None


def upgrade():
    {up}


def downgrade():
    {back}
"""

UP = (
    "[op.create_table(name, sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), primary_key=True),"
    " sa.Column(column, sa.Text())) for name, column in (('Notes_Flat', 'body'), ('notes', {column!r}))]"
)
BACK = "[op.drop_table(name) for name in ({names})]"


def fill(connection: Connection) -> None:
    connection.execute(insert(Flat), [{"body": "first"}, {"body": None}, {"body": "é"}])


def revisions(folder: Path, column: str = "text", names: str = "'notes', 'Notes_Flat'", *more: str) -> Config:
    versions = folder / "versions"
    versions.mkdir(parents=True)
    (folder / "env.py").write_text(ENV)
    up, back = UP.format(column=column), BACK.format(names=names)
    (versions / "one.py").write_text(REVISION.format(name="one", down=None, up=up, back=back))
    for name in more:
        (versions / f"{name}.py").write_text(REVISION.format(name=name, down="one", up="pass", back="pass"))
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    return config


def test_moves_that_are_right(check_moves: Callable[..., Any], tmp_path: Path) -> None:
    """Revisions up and down, models that agree, rows there and back: a report that passed."""
    report = check_moves(MOVES, fill=fill, alembic=revisions(tmp_path / "right"))
    assert report.passed
    assert {proof.table for proof in report.proofs if proof.rows == 3} == {"Notes_Flat", "notes"}


def test_moves_without_revisions(check_moves: Callable[..., Any]) -> None:
    """The tables are made as the models declare them."""
    assert check_moves(MOVES, fill=fill).passed


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("text", "'notes', 'Notes_Flat'", "two", "three"), "2 heads"),
        (("text", "'notes',"), "downgrade to base leaves tables: Notes_Flat"),
        (("words", "'notes', 'Notes_Flat'"), "the models differ from the tables"),
    ],
    ids=["two heads", "downgrade", "models"],
)
def test_what_is_wrong_is_named(
    check_moves: Callable[..., Any], tmp_path: Path, given: tuple[str, ...], says: str
) -> None:
    """Each check fails for its reason, and says it."""
    with pytest.raises(AssertionError, match=says):
        check_moves(MOVES, fill=fill, alembic=revisions(tmp_path / "wrong", *given))


@pytest.mark.parametrize("own_url", [False, True], ids=["as alembic makes it", "with a URL of its own"])
def test_a_database_in_use_is_not_touched(own_url: bool, check_moves: Callable[..., Any], tmp_path: Path) -> None:
    """An `env.py` of `alembic init` runs on the database of the test; one that cannot fails, and undoes nothing."""
    path, ini, folder = (tmp_path / name for name in ("in_use.db", "alembic.ini", "migrations"))
    in_use = f"sqlite:///{path}"
    command.init(Config(str(ini)), str(folder))
    revisions(tmp_path / "made")
    shutil.copy(tmp_path / "made" / "versions" / "one.py", folder / "versions")
    env = (folder / "env.py").read_text().replace("fileConfig(config.config_file_name)", "pass")
    if own_url:
        env = env.replace("config.get_section(config.config_ini_section, {})", repr({"sqlalchemy.url": in_use}))
    (folder / "env.py").write_text(env)
    config = Config(str(ini))
    config.set_main_option("sqlalchemy.url", in_use)
    command.upgrade(config, "head")
    with sqlite3.connect(path) as there:
        there.execute("INSERT INTO notes (id, text) VALUES (1, 'in use')")
    if own_url:
        with pytest.raises(AssertionError, match="another database than that of the test"):
            check_moves(MOVES, fill=fill, alembic=config)
    else:
        assert check_moves(MOVES, fill=fill, alembic=config).passed
    assert config.get_main_option("sqlalchemy.url") == in_use
    with sqlite3.connect(path) as there:
        assert there.execute("SELECT id, text FROM notes").fetchall() == [(1, "in use")]


class Strict(Base):
    __tablename__ = "notes_strict"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    text: Mapped[str] = mapped_column(Text)


@pytest.mark.sqlite
def test_rows_that_are_not_carried_are_named(check_moves: Callable[..., Any]) -> None:
    """A row that the normalized side cannot hold keeps a gate shut, which says why."""
    strict = Moves(Move(Flat, Strict, name="notes", key={Flat.id: Strict.id}, columns={Strict.text: Flat.body}))
    with pytest.raises(AssertionError, match="the rows are not carried: 1 reject is open"):
        check_moves(strict, fill=fill)
