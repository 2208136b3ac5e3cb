"""How alembic reaches the database: through the engine of the package, in one transaction of ours.

`consensus_orm.schema.revisions` hands its own connection over. The alembic command line gets one here; its URL is
that of `-x url=...`, else that of the settings.
"""

from __future__ import annotations

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from consensus_orm.consensus.programs import VERSION_TABLE
from consensus_orm.databases import engine as engines
from consensus_orm.databases import opening
from consensus_orm.errors import ConsensusError
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings


def run(connection: Connection) -> None:
    """Run the revisions on a connection whose transaction, begun by its giver, holds them all."""
    context.configure(
        connection=connection,
        target_metadata=revisions.metadata(),
        version_table=VERSION_TABLE,
        include_object=revisions.include_object,
        on_version_apply=revisions.note_revision,
    )
    context.run_migrations()


def run_from_command_line() -> None:
    """Find the database and run on it; errors of the package become the one line that alembic prints."""
    if context.is_offline_mode():
        raise CommandError("--sql is not supported: adopting a file means reading it first")
    try:
        settings = Settings()
        url = context.get_x_argument(as_dictionary=True).get("url", settings.url)
        engine = opening.create(url, settings)
        # What cannot be adopted, or not without a backup, is refused while nothing is written.
        if not revisions.inspect(engine).rewritten:
            engines.prepare(engine, settings)
        with engines.translated(engine), revisions.changing(engine) as connection:
            run(connection)
            if settings.protect and _has_upgraded(connection):
                revisions.protect(connection)
    except ConsensusError as error:
        raise CommandError(str(error)) from error


def _has_upgraded(connection: Connection) -> bool:
    """Whether revisions were applied that have brought a file to the newest one; going down reaches an older one."""
    driver = engines.driver(connection.connection)
    applied = context.config.attributes.get("applied")
    return bool(applied) and revisions.current(driver) == revisions.head()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    run_from_command_line()
