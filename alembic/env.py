"""How alembic reaches the database: through the engine of the package, in one transaction of ours.

`consensus_orm.schema` hands its own connection over. The alembic command line gets one here; its URL is
that of `-x url=...`, else that of the settings.
"""

from __future__ import annotations

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from consensus_orm import engine as engines
from consensus_orm import schema
from consensus_orm.adoption import VERSION_TABLE
from consensus_orm.errors import ConsensusError
from consensus_orm.settings import Settings


def run(connection: Connection) -> None:
    """Run the revisions on a connection whose transaction, begun by its giver, holds them all."""
    context.configure(
        connection=connection,
        target_metadata=schema.metadata(),
        version_table=VERSION_TABLE,
        include_object=schema.include_object,
        on_version_apply=schema.note_revision,
    )
    context.run_migrations()


def run_from_command_line() -> None:
    """Find the database and run on it; errors of the package become the one line that alembic prints."""
    if context.is_offline_mode():
        raise CommandError("--sql is not supported: adopting a file means reading it first")
    try:
        settings = Settings()
        url = context.get_x_argument(as_dictionary=True).get("url", settings.url)
        engine = engines.create(url, settings)
        schema.inspect(engine)  # refuses what cannot be adopted while nothing is written
        engines.prepare(engine, settings)
        with engines.translated(engine), schema.changing(engine) as connection:
            run(connection)
    except ConsensusError as error:
        raise CommandError(str(error)) from error


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    run_from_command_line()
