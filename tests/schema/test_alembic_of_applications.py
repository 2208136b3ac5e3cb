"""alembic in an application of its own: with the env.py of `alembic init` and the lines of a page, and without any."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import ForeignKey, MetaData, create_engine, insert, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import ConsensusStore, Phase, Store, declare_tables, include_object
from consensus_orm.databases.opening import parse_url
from consensus_orm.models.base import BIG
from consensus_orm.schema import revisions
from consensus_orm.schema.revisions import head
from consensus_orm.settings import Settings
from consensus_orm.testing import legacy_history, take_to
from tests.support.databases import Database
from tests.support.documentation import block
from tests.support.notes import MOVES, Base, Flat

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0)
MAIN = "import sys; from consensus_orm.cli import main; main(sys.argv[1:])"

MODELS = """
from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Review(Base):
    __tablename__ = "reviews"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("consensus_runs.id"))
"""


class Project:
    """An application's folder, in which commands are run."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self.url = str(database.where)

    def run(self, *command: str, code: int = 0) -> str:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def alembic(self, *words: str) -> str:
        return self.run("-m", "alembic", *words)

    def ours(self, *words: str, code: int = 0) -> str:
        return self.run("-c", MAIN, "--url", self.url, "alembic", *words, code=code)


@pytest.fixture
def project(tmp_path: Path, new_database: Database) -> Project:
    """What `alembic init` makes, with the lines of the documentation."""
    made = Project(tmp_path, new_database)
    made.alembic("init", "migrations")
    url = parse_url(new_database.where).render_as_string(hide_password=False).replace("%", "%%")
    ini = tmp_path / "alembic.ini"
    section = f"\n[consensus_orm]\nscript_location = {revisions.script_location()}\n"
    ini.write_text(re.sub(r"(?m)^sqlalchemy.url = .*$", lambda _: f"sqlalchemy.url = {url}", ini.read_text()) + section)
    (tmp_path / "models.py").write_text(MODELS)
    (recipe,) = re.findall(
        r"(from consensus_orm import declare_tables.*?)\n\n(declare.*?)\n", block("own-revisions", "python"), re.DOTALL
    )
    env = tmp_path / "migrations" / "env.py"
    text = env.read_text()
    text = text.replace("target_metadata = None", "\n".join(
        ["from models import Base", recipe[0], "target_metadata = Base.metadata", recipe[1]]
    ))  # fmt: skip
    text = text.replace(
        "target_metadata=target_metadata", "target_metadata=target_metadata, include_object=include_object()"
    )
    env.write_text(text)
    return made


def test_an_env_of_its_own(project: Project, new_database: Database) -> None:
    """A string foreign key finds our tables, autogenerate makes none of them, and checks stay clean to CONTRACT."""
    legacy_history(new_database.where)
    assert f"at revision {head()}, upgrade of 0001, 0002" in project.ours("upgrade", "head")
    said = project.alembic("-n", "consensus_orm", "-x", f"url={project.url}", "upgrade", "head")
    assert f"at revision {head()}, already there" in said
    project.alembic("revision", "--autogenerate", "-m", "reviews")
    (revision,) = (project.folder / "migrations" / "versions").glob("*.py")
    made = re.findall(r"op\.(\w+)\('(\w+)'", revision.read_text())
    assert made == [("create_table", "reviews"), ("drop_table", "reviews")]
    project.alembic("upgrade", "head")
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        take_to(store, Phase.CONTRACT)
        for check in (project.alembic, project.ours):
            assert "No new upgrade operations detected" in check("check")
        (reviewed,) = new_database.rows_of("SELECT id FROM consensus_runs LIMIT 1")[0:1]
        new_database.rows_of("INSERT INTO reviews (id, run_id) VALUES (1, ?)", *reviewed)


def test_the_command_of_ours(project: Project, new_database: Database) -> None:
    """It says what it did, refuses in one line with exit code 1, and makes no file by mistake."""
    if new_database.kind == "sqlite":
        assert "does not exist" in project.ours("upgrade", "head", code=1)
        assert not Path(new_database.where).exists()
    project.ours("upgrade", "head", "--create")
    assert f"{head()} (head)" in project.ours("current")
    assert "Create the normalized tables" in project.ours("history")
    assert f"downgrade of {head()}" in project.ours("downgrade", "--", "-1")
    assert f"at revision {head()}, upgrade of {head()}" in project.ours("upgrade", "head")
    wrong = project.ours("upgrade", "nonesuch", code=1).strip().splitlines()
    assert len(wrong) == 1
    assert "nonesuch" in wrong[0]
    project.ours("nonesuch", code=2)
    with ConsensusStore.open(new_database.where) as store, store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="{}")
    assert "DOWNGRADE_REFUSED" in project.ours("downgrade", "base", code=1)


def test_moves_of_its_own_leave_the_check_clean(new_database: Database, tmp_path: Path) -> None:
    """At CONTRACT the legacy table is gone, and neither it nor the tables of ours are anything to change."""
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Flat), [{"body": "first"}, {"body": None}])
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with Store(engine, MOVES, settings) as store:
        for phase in Phase:
            take_to(store, phase)  # type: ignore[arg-type]  # any store has the phases
            with engine.connect() as connection:
                context = MigrationContext.configure(connection, opts={"include_object": include_object(MOVES)})
                assert compare_metadata(context, Base.metadata) == [], phase
    engine.dispose()


def test_tables_are_declared_once(new_database: Database) -> None:
    """A string foreign key resolves, twice is as good as once, and what is made of it is what the revisions make."""
    metadata = MetaData()

    class Mine(DeclarativeBase):
        pass

    Mine.metadata = metadata

    class Review(Mine):
        __tablename__ = "reviews"
        id: Mapped[int] = mapped_column(primary_key=True)
        run_id: Mapped[Any] = mapped_column(BIG, ForeignKey("consensus_runs.id"))

    for _ in range(2):
        declare_tables(metadata)
    with ConsensusStore.open(new_database.where) as store:
        store.upgrade()
    engine = create_engine(parse_url(new_database.where))
    metadata.create_all(engine)
    (key,) = inspect(engine).get_foreign_keys("reviews")
    assert key["referred_table"] == "consensus_runs"
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": include_object()})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
