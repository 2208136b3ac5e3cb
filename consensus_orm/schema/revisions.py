"""The schema and its revisions: where they are, running them, and the one transaction they run in.

alembic does the work, and is imported when there is some: a store whose schema is current opens without it.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, MetaData

from consensus_orm import errors
from consensus_orm.consensus import programs
from consensus_orm.consensus.programs import Identity
from consensus_orm.databases import engine as engines
from consensus_orm.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["changing", "current", "downgrade", "head", "inspect", "owns", "protect", "script_location", "upgrade"]

log = logging.getLogger("consensus_orm")

_ALTERED_IN_THE_FIELD = (*programs.LEGACY, programs.EXECUTIONS)
"""Tables that other programs made and altered; they are taken as they are."""


def script_location() -> Path:
    """The folder of the migrations: inside the wheel, else beside the package in the checkout.

    Returns:
        The folder.

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
    return programs.REVISIONS[-1]


def current(connection: Any) -> str | None:
    """The revision of a file; None where it never had one.

    Args:
        connection: A connection of the driver, as `adoption.identify` takes it.
    """
    return programs.identify(connection).version


def inspect(engine: Engine, legacy: Collection[str] | None = None) -> Identity:
    """Say what a database is, as of one snapshot; writes nothing.

    Args:
        engine: Where to look.
        legacy: The legacy tables of another move than the one this package was made for.

    Returns:
        What `adoption.identify` found.

    Raises:
        SchemaError: It cannot be adopted.
        StorageError: It cannot be read.
    """
    with engines.translated(engine), engines.checkout(engine) as pooled:
        driver = engines.driver(pooled)
        engines.begin(driver, write=False)
        try:
            if engine.dialect.name == "sqlite":
                _trust(engine, driver)
            return _identify(driver, legacy)
        finally:
            driver.rollback()


def _trust(engine: Engine, driver: engines.DriverConnection) -> None:
    """Trust the schema of a file that has virtual tables, from this connection of an engine on.

    A full-text index is often kept by triggers, which fire when we write; and an untrusted schema may use no virtual
    table that SQLite does not call harmless, which for its own it does in its latest versions only (3.40 for none).
    """
    source = engines.source_of(engine)
    virtual = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND ifnull(rootpage, 0) = 0)"
    source.trusts_schema = source.settings.trusted_schema or bool(driver.execute(virtual).fetchone()[0])
    driver.trust_schema(source.trusts_schema)


def _identify(driver: Any, legacy: Collection[str] | None) -> Identity:
    """What a file is to a move: one of other tables makes those itself, and wants the control tables alone."""
    if legacy is None:
        return programs.identify(driver)
    identity = programs.identify(driver, consensus=False)
    there = programs.table_names(driver)
    if identity.kind not in (programs.Kind.NEW, programs.Kind.MANAGED) or programs.FOUNDING.keys() & there:
        raise errors.SchemaError(
            "this file holds the consensus tables, and a file holds one move", hint="use a file for each mapping"
        )
    return replace(identity, legacy_tables=frozenset(name for name in legacy if name.lower() in there))


def upgrade(
    engine: Engine,
    settings: Settings,
    legacy: Collection[str] | None = None,
    *,
    rewrite: bool = False,
    protected: bool | None = None,
) -> list[str]:
    """Bring a database to the newest revision, whatever program made it.

    Safe at any time, in every phase, and from two processes at once. All of it happens in one transaction: a
    revision that fails leaves nothing behind.

    Args:
        engine: What to upgrade.
        settings: Give the clock, and what a new file is prepared with.
        legacy: The legacy tables of another move than the one this package was made for; where one of them
            is there, the file starts at EXPAND.
        rewrite: Whether tables that another program made may be made anew.
        protected: Whether the founding builds shall refuse the file (`protect`), which happens in the same
            transaction; as the settings say where left out.

    Returns:
        The revisions that were applied, oldest first; none where the schema was current.

    Raises:
        SchemaError: The database cannot be adopted. Nothing was changed.
        RewriteNotConfirmedError: Tables would be made anew, and `rewrite` is not given. Nothing was changed.
        StorageError: The database could not do it. Nothing was changed.
    """
    identity = inspect(engine, legacy)
    wanted = settings.protect if protected is None else protected
    protects = wanted and legacy is None
    if not (identity.needs_upgrade or (protects and identity.unprotected)):
        return []
    engines.prepare(engine, settings)
    applied: list[str] = []
    from alembic import command  # costs 150 ms or more: not while the lock is held

    with engines.translated(engine), changing(engine) as connection:
        # Asked again under the lock: another process may have been faster.
        if _identify(_driver(connection), legacy).needs_upgrade:
            context = configuration(
                connection=connection, applied=applied, clock=settings.clock, legacy=legacy, rewrite=rewrite
            )
            command.upgrade(context, head())
        if protects:
            protect(connection)
    return applied


def protect(connection: Connection) -> None:
    """Have the dual-write and the final build refuse a file, by a user_version that is newer than theirs.

    Below version 2 the final build would drop the legacy tables with all rows. What the number was is kept, and
    `alembic downgrade base` gives it back; one that is another application's stays.

    Args:
        connection: Of a file of consensus data at the newest revision, in the transaction that has upgraded it.
    """
    if engines.database_path(connection.engine) is None:
        return  # no other program opens a database in memory, and none of those a server
    found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if found in programs.UNPROTECTED:
        connection.exec_driver_sql("UPDATE consensus_orm_state SET user_version = ?", (found,))
        connection.exec_driver_sql(f"PRAGMA user_version = {programs.PROTECTED}")
    elif found != programs.PROTECTED:
        log.warning("%s: user_version is %d, another application's, and stays", connection.engine.url.database, found)


def downgrade(engine: Engine, revision: str) -> None:
    """Take a database back to an older revision, where no row is lost by that.

    Args:
        engine: What to downgrade.
        revision: A revision, `-1`, or `base`, which takes everything away that an upgrade brought.

    Raises:
        DowngradeRefusedError: Rows would be lost. Nothing was changed.
        SchemaError: The database is none of ours, or there is no such revision.
    """
    from alembic import command, util

    inspect(engine)
    with engines.translated(engine), changing(engine) as connection:
        try:
            command.downgrade(configuration(connection=connection), revision)
        except util.CommandError as error:
            raise errors.SchemaError(str(error)) from error
        if current(_driver(connection)) is None:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {programs.VERSION_TABLE}")


@contextlib.contextmanager
def changing(engine: Engine) -> Iterator[Connection]:
    """Hold the one transaction in which the schema changes: it takes the write lock now.

    Foreign keys are not enforced meanwhile: dropping a table that others refer to would delete their rows.
    They are checked before the commit instead.

    Args:
        engine: What is changed.

    Yields:
        The connection. Everything done on it is kept at the end, or nothing where an exception is raised.

    Raises:
        SchemaError: A row of ours refers to one that is not there.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            with connection.begin():
                # One at a time; whoever waited looks again at what there is to do.
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
                _check_foreign_keys(driver)
        finally:
            driver.execute("PRAGMA foreign_keys = ON")


def _driver(connection: Connection) -> Any:
    return engines.driver(connection.connection)


def _check_foreign_keys(driver: sqlite3.Connection) -> None:
    """Refuse a change that leaves rows of ours without their run; those of other programs are theirs."""
    ours = "SELECT name FROM sqlite_master WHERE name IN ('agent_outputs', 'consensus_syntheses')"
    for (table,) in driver.execute(ours).fetchall():
        if driver.execute("SELECT 1 FROM pragma_foreign_key_check(?) LIMIT 1", (table,)).fetchone():
            raise errors.SchemaError(f"rows of {table} refer to runs that are not there", table=table)


def configuration(**attributes: Any) -> Config:
    """What alembic needs to know to run our revisions.

    Args:
        **attributes: For `env.py`: `connection`, whose transaction holds the revisions; `applied`, a list
            that takes their names; `clock`; `legacy`, the legacy tables of another move.
    """
    from alembic.config import Config

    config = Config(attributes=attributes)
    # The parser of the configuration takes % for the start of a variable.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def metadata() -> MetaData:
    """The tables of all models, those of the legacy side included."""
    from consensus_orm.consensus.models import executions, legacy, normalized
    from consensus_orm.models import Base, control

    assert all((control, executions, legacy, normalized))  # imported for their tables
    return Base.metadata


def owns(name: str) -> bool:
    """Whether a table has one of our names: for the `include_name` of an alembic environment of your own.

    Args:
        name: The name of the table.
    """
    return programs.is_ours(name.lower())


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Tell alembic what to compare: tables of ours; of those in the field, what both sides know.

    Legacy tables that are not there have been dropped by the phase, not by a revision. Their keys do not say
    NOT NULL, which SQLite forgives.
    """
    if type_ == "table":
        return name in metadata().tables and (reflected or compare_to is not None or name not in programs.LEGACY)
    table = getattr(object_, "table", None)
    if table is None or table.name not in _ALTERED_IN_THE_FIELD:
        return True
    return compare_to is not None and not getattr(object_, "primary_key", False)


def note_revision(ctx: Any, step: Any, *_: Any, **__: Any) -> None:
    """Tell whoever asked which revisions were applied."""
    ctx.config.attributes.setdefault("applied", []).append(step.up_revision_id)
