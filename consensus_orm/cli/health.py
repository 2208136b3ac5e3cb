"""The command health, for load balancers and service managers."""

from __future__ import annotations

import click

from consensus_orm.cli.app import App, app_command, json_option, main, without_password
from consensus_orm.cli.output import State, exit_with, fields, plain, show_json
from consensus_orm.errors import StorageError
from consensus_orm.formats import moment, size

__all__: list[str] = []


@main.command(examples=["health", "health --json --url postgresql://app@db/consensus"])
@click.option("--quiet", is_flag=True, help="Print nothing; the exit code says it.")
@json_option
@app_command
def health(app: App, quiet: bool, as_json: bool) -> None:
    """Check whether the database can be served, for load balancers and systemd.

    Asks a few cheap questions, once, and writes nothing. The exit code is 0 if the database answers and its schema is
    that of this release, else 1.
    """
    from consensus_orm.migration.health import Health

    try:
        with app.store() as store:
            found = store.health()
    except StorageError as error:  # not even to be opened
        found = Health.unreachable(_name(app), error)
    problems = [app.spelled(problem) for problem in found.problems]
    if as_json:
        show_json({"healthy": found.healthy, **plain(found), "problems": problems})
    elif not quiet:
        pool = found.pool
        fields(
            [
                ("database", found.database),
                ("health", State("healthy", True) if found.healthy else State("NOT healthy", False)),
                ("schema", "current" if found.schema_current else "not current"),
                ("phase", found.phase.name if found.phase else None),
                ("pool", f"{pool.lent} of {pool.size} connections in use, {pool.waiting} waiting" if pool else None),
                ("log", None if found.log_bytes is None else size(found.log_bytes)),
                ("verified", moment(found.certificate_at) or "never"),
                *(("external store", State(each.told, not each.late)) for each in found.outboxes),
                *(("problem", problem) for problem in problems),
            ]
        )
    exit_with(not found.healthy)


def _name(app: App) -> str:
    if app.url is None:
        return "the database of the settings"
    return without_password(app.url) if "://" in app.url else app.url
