"""The checks of an application's own moves and revisions, as pytest-alembic makes them of revisions alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, inspect
from sqlalchemy.pool import NullPool

from consensus_orm.consensus.programs import owns
from consensus_orm.databases.opening import parse_url
from consensus_orm.declaration.moves import Moves
from consensus_orm.settings import Settings
from consensus_orm.store import Store

if TYPE_CHECKING:
    from alembic.config import Config

    from consensus_orm.migration.rehearsal_report import RehearsalReport

__all__ = ["check_moves"]


def check_moves(
    moves: Moves,
    url: str | Path,
    *,
    fill: Callable[[Connection], object] | None = None,
    alembic: Config | None = None,
    settings: Settings | None = None,
) -> RehearsalReport:
    """Check the moves of an application on a database of its own, and its revisions where it has any.

    The revisions have one head; they lead up, down and up again; the models are what they make; and the rows that
    `fill` writes go through all phases and back, and come out in type and bytes as they went in.

    Args:
        moves: The moves.
        url: A file, or the URL of a database, with nothing in it yet.
        fill: Writes rows to the legacy tables. They should hold what the rows in use hold.
        alembic: The configuration of alembic. Its `env.py` must run on the connection in
            `config.attributes["connection"]`, or on `sqlalchemy.url`, which is that of `url` meanwhile; no revision is
            undone before it has run there. Without `alembic` the tables are made as the models declare them.
        settings: The settings of the store.

    Returns:
        The report of the way there and back.

    Raises:
        AssertionError: A check failed; it says which, and how.
    """
    engine = create_engine(parse_url(url), poolclass=NullPool)
    tables = {table for move in moves for table in (move.legacy_table, move.table)}
    tables |= {parent.table for parent in moves.parents}
    try:
        if alembic is None:
            for metadata in {table.metadata for table in tables}:
                metadata.create_all(engine, [table for table in tables if table.metadata is metadata])
        else:
            _check_revisions(engine, alembic)
        for metadata in {table.metadata for table in tables}:
            _check_models(engine, metadata, {table.name for table in tables})
        if fill is not None:
            with engine.begin() as connection:
                fill(connection)
    finally:
        engine.dispose()
    with Store.open(url, moves=moves, settings=settings) as store:
        store.upgrade()
        report = store.migration.rehearse()
    assert not report.refused, f"the rows are not carried: {'; '.join(report.refused)}"
    differing = [proof for proof in report.proofs if not proof.equal]
    assert report.passed, f"the rows come back otherwise than they went: {differing}"
    return report


@contextmanager
def _on(engine: Engine, config: Config) -> Iterator[None]:
    url = engine.url.render_as_string(hide_password=False).replace("%", "%%")
    before = config.file_config.get(config.config_ini_section, "sqlalchemy.url", raw=True, fallback=None)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        config.set_main_option("sqlalchemy.url", url)
        try:
            yield
        finally:
            del config.attributes["connection"]
            if before is None:
                config.remove_main_option("sqlalchemy.url")
            else:
                config.set_main_option("sqlalchemy.url", before)


def _check_revisions(engine: Engine, config: Config) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    heads = ScriptDirectory.from_config(config).get_heads()
    assert len(heads) == 1, f"{len(heads)} heads: {', '.join(heads)}; run: alembic merge heads"
    before = inspect(engine).get_table_names()
    for step, revision in ((command.upgrade, "head"), (command.downgrade, "base"), (command.upgrade, "head")):
        with _on(engine, config):
            step(config, revision)
        # Before anything is undone: in a database in use, that would drop its rows.
        assert revision == "base" or inspect(engine).get_table_names() != before, (
            "env.py has upgraded another database than that of the test, and nothing was undone there: have it run on"
            ' the connection in config.attributes["connection"]'
        )
        left = [name for name in inspect(engine).get_table_names() if name != "alembic_version" and not owns(name)]
        assert revision == "head" or not left, f"downgrade to base leaves tables: {', '.join(left)}"


def _check_models(engine: Engine, metadata: MetaData, names: set[str]) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def is_moved(of: Any, name: str | None, kind: str, *_: Any) -> bool:
        return name in names if kind == "table" else True

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_moved})
        found = compare_metadata(context, metadata)
    assert not found, f"the models differ from the tables: {found}"
