"""How alembic reaches the database: through the engine of the package, in one transaction of ours.

`consensus_orm.schema.revisions` hands its own connection over. The alembic command line gets one here; its URL is
that of `-x url=...`, else that of the settings.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from consensus_orm.databases import engine as engines
from consensus_orm.databases import opening
from consensus_orm.errors import ConsensusError
from consensus_orm.schema import inspection, revisions
from consensus_orm.schema.application import Application
from consensus_orm.settings import Settings


def run(connection: Connection, **compared: Any) -> None:
    """Run the revisions on a connection whose transaction, begun by its giver, holds them all."""
    context.configure(
        connection=connection,
        version_table=inspection.VERSION_TABLE,
        on_version_apply=revisions.note_revision,
        **compared,
    )
    context.run_migrations()


def run_from_command_line() -> None:
    """Find the database and run on it; errors of the package become the one line that alembic prints."""
    if context.is_offline_mode():
        raise CommandError("--sql is not supported: adopting a file means reading it first")
    # Only here: whoever hands a connection over may move other tables than those of the consensus data.
    from consensus_orm.consensus.application import APPLICATION, include_object, metadata, place
    from consensus_orm.consensus.store import ConsensusStore

    try:
        settings = Settings()
        url = context.get_x_argument(as_dictionary=True).get("url")
        engine = opening.create(place(url, settings), settings)
        # What cannot be adopted, or not without a backup, is refused while nothing is written.
        if not revisions.inspect(engine, APPLICATION).rewritten:
            engines.prepare(engine)
        with engines.translated(engine), revisions.changing(engine, APPLICATION.tables) as connection:
            run(connection, target_metadata=metadata(), include_object=include_object)
            upgraded = _has_upgraded(connection, APPLICATION)
            if upgraded and settings.protect and APPLICATION.protection is not None:
                revisions.protect(connection, APPLICATION.protection)
        if upgraded:
            # What no revision makes, because it follows from the phase: triggers, and views for older programs.
            ConsensusStore(engine, settings).upgrade(protect=False)
    except ConsensusError as error:
        raise CommandError(str(error)) from error


def _has_upgraded(connection: Connection, application: Application) -> bool:
    """Whether revisions were applied that have brought a file to the newest one; going down reaches an older one."""
    driver = engines.driver(connection.connection)
    applied = context.config.attributes.get("applied")
    return bool(applied) and application.identify(driver).version == revisions.head()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    run_from_command_line()
