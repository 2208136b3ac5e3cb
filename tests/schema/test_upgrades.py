"""Upgrades and downgrades: in agreement with the models, atomic, safe from many at once, and gone without a trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.consensus import application, programs
from consensus_orm.consensus.application import APPLICATION
from consensus_orm.schema import inspection, revisions
from consensus_orm.settings import Settings
from consensus_orm.testing import artifact_values, legacy_file
from tests.conftest import Open
from tests.field import builders, server
from tests.support import databases, oracle, oracle_of_servers
from tests.support.databases import Database

ROOT = Path(__file__).parents[2]
SETTINGS = Settings()
Build = Callable[[Any], object]
"""Makes a database of the field where there is none."""

SERVERS: dict[str, Build] = {
    "new": lambda where: None,
    "legacy": databases.build_legacy,
    "odd": databases.odd_history,
    **{str(n): partial(server.build_legacy, columns=n, altered=True) for n in (8, 9, 10)},
}
FILES: dict[str, Build] = {name: build for name, (*_, build) in builders.KINDS.items()}
EMPTY = ("new", "first_version", "empty_legacy", "artifacts_only", "executions_only", "dual_write_build")
"""Files whose rows, if there are any, stand on the legacy side too: a downgrade loses none."""


def builds(*files: str) -> pytest.MarkDecorator:
    """Begin with each database of a server, and with each of these files."""
    return pytest.mark.parametrize(
        "build",
        [
            *(pytest.param(FILES[name], id=name, marks=pytest.mark.sqlite) for name in files),
            *(pytest.param(build, id=name, marks=pytest.mark.postgresql) for name, build in SERVERS.items()),
        ],
    )


def images(database: Database, *tables: str) -> dict[str, object]:
    """All that is to be said of some tables, of all where none is named; and the number of a file."""
    found: dict[str, object] = {table: database.image(table) for table in tables or database.tables()}
    number = oracle.user_version(Path(database.where)) if database.kind == "sqlite" else None
    return found | {"user_version": number}


@pytest.fixture
def engine(new_database: Database, open_engine: Open) -> Engine:
    return open_engine(new_database.where)


@pytest.mark.long
@builds(*FILES)
def test_alembic_finds_nothing_to_change(build: Build, new_database: Database, engine: Engine) -> None:
    """After the upgrade of any database, autogenerate sees no difference between models and tables."""
    build(new_database.where)
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)

    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_object": application.include_object, "version_table": inspection.VERSION_TABLE},
        )
        assert compare_metadata(context, application.metadata()) == []


@pytest.mark.postgresql
@builds()
def test_an_upgrade_leaves_what_it_found(build: Build, new_database: Database, engine: Engine) -> None:
    """Legacy tables and executions keep columns, defaults, indexes, rows and sequences; no second upgrade does more."""
    build(new_database.where)
    found = {table: new_database.image(table) for table in new_database.tables()}

    assert revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True) == list(inspection.REVISIONS)
    assert revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True) == []
    assert {table: new_database.image(table) for table in found} == found


@pytest.mark.long
@builds(*EMPTY)
def test_up_and_down_step_by_step(build: Build, new_database: Database, engine: Engine) -> None:
    """Each revision can be taken back where it holds no row, and base is the database as it was found."""
    build(new_database.where)
    # The dual-write build's own normalized rows stand on its legacy side too.
    found = images(new_database, *(set(new_database.tables()) - {"consensus_runs", "agent_outputs"}))
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    up = new_database.tables()

    for _ in inspection.REVISIONS:
        revisions.downgrade(engine, "-1", APPLICATION)
    assert images(new_database) == found
    assert revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True) == list(inspection.REVISIONS)

    assert new_database.tables() == up
    assert not revisions.inspect(engine, APPLICATION).needs_upgrade


def test_a_downgrade_that_would_lose_a_row_is_refused(new_database: Database, engine: Engine) -> None:
    """With a row that stands nowhere else, and even once it is deleted, whose id must not be given twice."""
    with ConsensusStore.open(new_database.where) as store:
        store.upgrade()
        with store.unit_of_work() as uow:
            uow.artifacts.add(**artifact_values(spec_id="SPEC-GONE"))
        before = new_database.everything()
        with pytest.raises(errors.DowngradeRefusedError, match="stand nowhere else"):
            revisions.downgrade(engine, "base", APPLICATION)
        assert new_database.everything() == before
        with store.unit_of_work() as uow:
            uow.artifacts.delete(spec_id="SPEC-GONE")
    with pytest.raises(errors.DowngradeRefusedError):
        revisions.downgrade(engine, "base", APPLICATION)


def test_a_failing_upgrade_leaves_nothing_behind(new_database: Database, engine: Engine) -> None:
    """Where a revision fails in the middle, no table of any revision is there."""
    databases.build_legacy(new_database.where)
    new_database.script("CREATE TABLE idx_agent_outputs_agent (taken INTEGER)")  # the name of an index to be made
    before = new_database.everything()
    with pytest.raises(errors.ConsensusError):
        revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    assert new_database.everything() == before


def test_many_upgrade_at_once(new_database: Database) -> None:
    """Whoever comes first does it, the others find it done; nobody fails."""
    databases.build_legacy(new_database.where)

    def upgrade(_: int) -> list[str]:
        with ConsensusStore.open(new_database.where) as store:
            return store.upgrade()

    with ThreadPoolExecutor(4) as threads:
        applied = sorted(threads.map(upgrade, range(4)))
    assert applied == [[], [], [], list(inspection.REVISIONS)]


@pytest.mark.postgresql
def test_tables_of_others_are_refused_untouched(new_database: Database) -> None:
    """A table of our names that lacks our columns is none of ours: nothing is written."""
    new_database.script("CREATE TABLE consensus_artifacts (id BIGSERIAL PRIMARY KEY, spec_id TEXT, stage TEXT)")
    before = new_database.image("consensus_artifacts"), new_database.tables()
    with pytest.raises(errors.UnknownSchemaError, match="consensus_artifacts"):
        ConsensusStore.open(new_database.where)
    assert (new_database.image("consensus_artifacts"), new_database.tables()) == before


@pytest.mark.long
def test_alembic_command_line_upgrades_from_the_checkout(new_database: Database) -> None:
    """`alembic upgrade head` does what `consensus-orm upgrade` does, from any state, and repeated."""
    databases.build_legacy(new_database.where)
    command = [sys.executable, "-m", "alembic", "-x", f"url={new_database.where}", "upgrade", "head"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    with ConsensusStore.open(new_database.where) as store:
        assert store.upgrade() == []


@pytest.mark.postgresql
def test_models_match_the_legacy_tables_of_a_server(new_database: Database) -> None:
    """The legacy tables that the models make are those of the frozen SQL: columns, types, defaults and indexes."""
    from tests.support import servers

    with legacy_file(str(new_database.where)):
        pass
    with servers.database() as other:
        server.build_legacy(other)
        for table in programs.LEGACY:
            made, frozen = (
                [fact for fact in oracle_of_servers.definitions(url, table) if fact[1] in ("column", "index")]
                for url in (str(new_database.where), other)
            )
            assert [f for f in made if f[1] == "column"] == [f for f in frozen if f[1] == "column"]
            assert {f[2].split(" ON ")[1] for f in made if f[1] == "index"} == {
                f[2].split(" ON ")[1] for f in frozen if f[1] == "index"
            }


@pytest.mark.postgresql
@pytest.mark.parametrize("phase", [None, Phase.DUAL_WRITE])
def test_a_column_in_which_different_texts_are_equal_is_refused(new_database: Database, phase: Phase | None) -> None:
    """Deletes and runs would take in rows of others: neither an upgrade nor a flip goes on, and no row is touched."""
    databases.build_legacy(new_database.where)
    if phase:
        with ConsensusStore.open(new_database.where) as store:
            store.migration.migrate(phase, soak=False)
    try:
        new_database.script(
            "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("NO ICU: this server was built without it, so there is no such collation")
    new_database.script("ALTER TABLE consensus_artifacts ALTER COLUMN spec_id TYPE TEXT COLLATE loose")
    before = new_database.legacy()
    with ConsensusStore.open(new_database.where) as store:
        with pytest.raises(errors.UnknownSchemaError, match="loose, in which different texts are equal") as refused:
            store.upgrade() if phase is None else store.migration.rollback()
        assert (refused.value.facts["table"], refused.value.facts["column"]) == ("consensus_artifacts", "spec_id")
        assert new_database.legacy() == before
        new_database.script(str(refused.value).partition("; ")[2])
        store.upgrade() if phase is None else store.migration.rollback()
