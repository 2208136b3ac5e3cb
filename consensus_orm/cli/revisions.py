"""The command alembic: alembic's own command line on the revisions of this package, without an ini file."""

from __future__ import annotations

import io

import click

from consensus_orm.cli.app import App, app_command, create_option, main
from consensus_orm.cli.output import say
from consensus_orm.errors import ConfigurationError, ConsensusError, SchemaError

__all__: list[str] = []


@main.command(
    "alembic",
    context_settings={"ignore_unknown_options": True},
    examples=["alembic current", "alembic upgrade head", "alembic downgrade -- -1"],
)
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
@create_option
@app_command
def run_alembic(app: App, words: tuple[str, ...]) -> None:
    """Run a command of alembic on the revisions of this package; no alembic.ini is needed.

    For example: alembic current; alembic history; alembic upgrade head; alembic check; alembic downgrade -- -1.
    """
    from alembic import util
    from alembic.config import CommandLine

    from consensus_orm.schema import revisions

    if app.mapping is not None:
        raise ConfigurationError(
            "alembic knows the tables of the consensus data only",
            hint="for other moves, run: consensus-orm upgrade",
        )
    line = CommandLine(prog="consensus-orm alembic")
    options = line.parser.parse_args(words)
    if not hasattr(options, "cmd"):
        raise click.UsageError("alembic needs a command, for example: alembic current")
    options.raiseerr = True
    with app.store() as store:
        url = store.path or store.engine.url.render_as_string(hide_password=False)
    options.x = [*(options.x or []), f"url={url}"]
    config = revisions.configuration()
    config.cmd_opts, config.stdout = options, io.StringIO()
    try:
        line.run_cmd(config, options)
    except util.CommandError as error:
        if isinstance(error.__cause__, ConsensusError):
            raise error.__cause__ from error
        raise SchemaError(str(error), hint="see: consensus-orm alembic --help") from error
    finally:
        if told := config.stdout.getvalue().rstrip("\n"):
            say(told)
