"""The revisions of the schema: where they are, running them, and the one transaction they run in.

alembic runs them, and is imported only then: a store whose schema is current opens without it.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Table

from consensus_orm import errors
from consensus_orm.databases import engine as engines
from consensus_orm.databases.opening import catalog
from consensus_orm.schema import inspection
from consensus_orm.schema.application import Application, Identity, Protection
from consensus_orm.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["changing", "downgrade", "head", "inspect", "protect", "script_location", "upgrade"]

log = logging.getLogger("consensus_orm")


def script_location() -> Path:
    """The folder of the revisions: inside the wheel, else beside the package in the checkout.

    Raises:
        ConfigurationError: It is in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "_alembic", package.parent / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise errors.ConfigurationError(
        "the migrations are missing from this installation", hint="install consensus-orm again"
    )


def head() -> str:
    """The newest revision this program knows."""
    return inspection.REVISIONS[-1]


def inspect(engine: Engine, application: Application) -> Identity:
    """Identify a database, as of one snapshot; writes nothing.

    Raises:
        SchemaError: It cannot be adopted.
        StorageError: It cannot be read.
    """
    with engines.translated(engine), engines.checkout(engine) as pooled:
        driver = engines.driver(pooled)
        driver.begin(write=False)
        try:
            if engine.dialect.name == "sqlite":
                _trust(engine, driver)
            return application.identify(driver)
        finally:
            driver.rollback()


def _trust(engine: Engine, driver: engines.DriverConnection) -> None:
    """Trust the schema of a file that has virtual tables, from this connection of an engine on.

    A full-text index is often maintained by triggers, which fire when we write; and an untrusted schema may only use
    virtual tables that SQLite calls harmless, which are none of its own up to 3.40.
    """
    source = engines.source_of(engine)
    virtual = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND ifnull(rootpage, 0) = 0)"
    source.trusts_schema = source.settings.trusted_schema or bool(driver.execute(virtual).fetchone()[0])
    driver.trust_schema(source.trusts_schema)


def upgrade(
    engine: Engine,
    settings: Settings,
    application: Application,
    *,
    rewrite: bool = False,
    protected: bool | None = None,
) -> list[str]:
    """Bring a database to the newest revision, whichever program made it.

    Safe at any time, in every phase, and from two processes at once. All of it happens in one transaction: a
    revision that fails changes nothing.

    Args:
        engine: The engine of the database.
        settings: The clock, and the pragmas of a new file.
        application: Whose tables are moved.
        rewrite: Whether tables that another program made may be made anew.
        protected: Whether older programs shall refuse the file (`protect`), in the same transaction; the setting
            where left out.

    Returns:
        The revisions that were applied, oldest first; none where the schema was current.

    Raises:
        SchemaError: The database cannot be adopted. Nothing was changed.
        RewriteNotConfirmedError: Tables would be made anew, and `rewrite` is not given. Nothing was changed.
        StorageError: The database could not do it. Nothing was changed.
    """
    identity = inspect(engine, application)
    wanted = settings.protect if protected is None else protected
    protection = application.protection if wanted else None
    if not (identity.needs_upgrade or (protection is not None and identity.user_version in protection.older)):
        return []
    engines.prepare(engine)
    applied: list[str] = []
    from alembic import command  # costs 150 ms or more: not while the lock is held

    with engines.translated(engine), changing(engine, application.tables) as connection:
        # Checked again under the lock: another process may have upgraded it.
        found = application.identify(_driver(connection))
        if found.lost:
            catalog(engine.dialect.name).restore_objects(_driver(connection))
        elif found.needs_upgrade:
            context = configuration(
                application, connection=connection, applied=applied, clock=settings.clock, rewrite=rewrite
            )
            command.upgrade(context, head())
            application.identify(_driver(connection))  # a revision may have found that it moves other tables
        if protection is not None:
            protect(connection, protection)
    return applied


def protect(connection: Connection, protection: Protection) -> None:
    """Make older programs refuse a file, by a user_version that is newer than theirs.

    The number it had is kept, and `alembic downgrade base` restores it; that of another application stays.
    """
    if engines.database_path(connection.engine) is None:
        return  # no other program opens a database in memory, and none of those a server
    found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if found in protection.older:
        connection.exec_driver_sql("UPDATE consensus_orm_state SET user_version = ?", (found,))
        connection.exec_driver_sql(f"PRAGMA user_version = {protection.version}")
    elif found != protection.version:
        log.warning("%s: user_version is %d, another application's, and stays", connection.engine.url.database, found)


def downgrade(engine: Engine, revision: str, application: Application) -> None:
    """Take a database back to an older revision, `-1` or `base`, where no row is lost by that.

    Raises:
        DowngradeRefusedError: Rows would be lost. Nothing was changed.
        SchemaError: The database has no revision of ours, or there is no such revision.
    """
    from alembic import command, util

    inspect(engine, application)
    with engines.translated(engine), changing(engine, application.tables) as connection:
        try:
            command.downgrade(configuration(application, connection=connection), revision)
        except util.CommandError as error:
            raise errors.SchemaError(str(error)) from error
        if application.identify(_driver(connection)).version is None:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {inspection.VERSION_TABLE}")


@contextlib.contextmanager
def changing(engine: Engine, tables: Iterable[Table]) -> Iterator[Connection]:
    """Hold the one transaction in which the schema changes: it takes the write lock now.

    Foreign keys are not enforced meanwhile: dropping a table that others refer to would delete their rows. Those of
    `tables` are checked before the commit instead.

    Yields:
        The connection. Everything done on it is kept at the end, or nothing where an exception is raised.

    Raises:
        SchemaError: A row of ours refers to one that does not exist.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            with connection.begin():
                # One process at a time; the others wait, and check again.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('consensus_orm_version'))")
                _driver(connection).be_durable()
                yield connection
            return
        driver = _driver(connection)
        driver.be_durable()
        driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                _check_foreign_keys(driver, tables)
        finally:
            driver.execute("PRAGMA foreign_keys = ON")


def _driver(connection: Connection) -> Any:
    return engines.driver(connection.connection)


def _check_foreign_keys(driver: sqlite3.Connection, tables: Iterable[Table]) -> None:
    """Refuse a change that leaves rows of our tables without the rows they refer to."""
    there = "SELECT 1 FROM sqlite_master WHERE name = ?"
    broken = "SELECT 1 FROM pragma_foreign_key_check(?) LIMIT 1"
    for name in (table.name for table in tables if table.foreign_keys):
        if driver.execute(there, (name,)).fetchone() and driver.execute(broken, (name,)).fetchone():
            raise errors.SchemaError(f"rows of {name} refer to rows that are not there", table=name)


def configuration(application: Application | None = None, **attributes: Any) -> Config:
    """The configuration with which alembic runs our revisions.

    Args:
        application: Whose tables are moved; left out where alembic's command line opens the database.
        **attributes: For `env.py` and the revisions: `connection`, in whose transaction they run; `applied`, a list
            to which their names are added; `clock`; `rewrite`, whether tables of another program may be made anew.
    """
    from alembic.config import Config

    # The revisions know the legacy tables of an application whose tables they make.
    if application is not None:
        attributes["legacy"] = None if application.is_known_to_revisions else application.legacy

    config = Config(attributes=attributes)
    # The parser of the configuration takes % for the start of a variable.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def note_revision(ctx: Any, step: Any, *_: Any, **__: Any) -> None:
    """Add a revision that was applied to the list of the caller."""
    ctx.config.attributes.setdefault("applied", []).append(step.up_revision_id)
