"""The environment of alembic: it runs the revisions on an engine of the package, in one transaction.

`consensus_orm.schema.revisions` passes a connection. For the alembic command line one is opened here; its URL is that
of `-x url=...`, else that of the settings.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, Engine

from consensus_orm.databases import engine as engines
from consensus_orm.databases import opening
from consensus_orm.errors import ConsensusError
from consensus_orm.schema import inspection, revisions
from consensus_orm.schema.application import Application
from consensus_orm.settings import Settings


def run(connection: Connection, **compared: Any) -> None:
    """Run the revisions in the transaction that the caller has begun on a connection."""
    context.configure(
        connection=connection,
        version_table=inspection.VERSION_TABLE,
        on_version_apply=revisions.note_revision,
        **compared,
    )
    context.run_migrations()


def run_from_command_line() -> None:
    """Open the database and run the revisions; alembic prints an error of the package as one line."""
    if context.is_offline_mode():
        raise CommandError("--sql is not supported: adopting a file means reading it first")
    # Imported only here: a caller that passes a connection may move other tables than those of the consensus data.
    from consensus_orm.consensus.application import APPLICATION, include_object, metadata, place
    from consensus_orm.consensus.store import ConsensusStore

    try:
        settings = Settings()
        url = context.get_x_argument(as_dictionary=True).get("url")
        engine = opening.create(place(url, settings), settings)
        # A file that cannot be adopted, or not without a backup, is refused before anything is written.
        if not revisions.inspect(engine, APPLICATION).rewritten:
            engines.prepare(engine)
        with engines.translated(engine), revisions.changing(engine, APPLICATION.tables) as connection:
            run(connection, target_metadata=metadata(), include_object=include_object)
            upgraded = _has_upgraded(connection, APPLICATION)
            if upgraded and settings.protect and APPLICATION.protection is not None:
                revisions.protect(connection, APPLICATION.protection)
        if upgraded:
            # The triggers, and views for older programs, depend on the phase, so no revision makes them.
            ConsensusStore(engine, settings=settings).upgrade(protect=False)
        if command_name() in ("upgrade", "downgrade"):
            say_what_was_done(engine, APPLICATION)
    except ConsensusError as error:
        raise CommandError(str(error)) from error


def command_name() -> str | None:
    """The command of alembic's that runs this."""
    command = getattr(context.config.cmd_opts, "cmd", None)
    return command[0].__name__ if command else None


def say_what_was_done(engine: Engine, application: Application) -> None:
    """Print which revisions ran and where they led: without an ini file alembic's own log is silent."""
    identity = revisions.inspect(engine, application)
    version = identity.version or "base"
    applied = context.config.attributes.get("applied", [])
    steps = "already there" if not applied else f"{command_name()} of {', '.join(applied)}"
    context.config.print_stdout("consensus_orm: at revision %s, %s", version, steps)


def _has_upgraded(connection: Connection, application: Application) -> bool:
    """Whether the revisions that were applied lead to the newest one: a downgrade leads to an older one."""
    driver = engines.driver(connection.connection)
    applied = context.config.attributes.get("applied")
    return bool(applied) and application.identify(driver).version == revisions.head()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    run_from_command_line()
