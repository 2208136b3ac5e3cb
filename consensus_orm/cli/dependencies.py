"""The commands check and dependencies: what is in the way, what others use of the legacy tables, and its acceptance."""

from __future__ import annotations

import click

from consensus_orm.cli.app import App, app_command, json_option, main
from consensus_orm.cli.output import exit_with, say, show_entries, show_json
from consensus_orm.cli.status import reason_required
from consensus_orm.formats import moment

__all__: list[str] = []


@main.command(examples=["check --url postgresql://app@db/consensus"])
@json_option
@app_command
def check(app: App, as_json: bool) -> None:
    """Name what will keep a gate shut on the way, before anything is written.

    What others use of the legacy tables, roles that lack rights, keys that do not identify rows, columns that no move
    speaks of, rows and columns that this role does not see. The exit code is 1 where there is any.
    """
    with app.store() as store:
        found = [app.spelled(text) for text in store.migration.check()]
    if as_json:
        show_json({"obstacles": found})
    else:
        for text in found or ["nothing that the catalog knows is in the way"]:
            say(f"- {text}" if found else text)
    exit_with(found)


@main.group(
    invoke_without_command=True,
    examples=["dependencies", "dependencies accept 'view berliners' --reason 'the report is gone by then'"],
)
@json_option
@app_command
@click.pass_context
def dependencies(ctx: click.Context, app: App, as_json: bool) -> None:
    """List what others use of the legacy tables, or accept that it breaks.

    Views, rules, functions, publications and the like, as the catalog of the database has them; roles that would be cut
    off, with the GRANTs that they lack; and, once the tables are frozen, reads by other programs, as a server counts
    them. SQLite does not count reads.

    Writes nothing. The exit code is 1 while something is neither gone nor accepted.
    """
    if ctx.invoked_subcommand is not None:
        return
    with app.store() as store:
        entries = store.migration.dependencies()
    show_entries(
        entries,
        "nothing depends on the legacy tables",
        ("kind", "name", "table", "reads", "last read", "shuts", "accepted"),
        lambda d: (
            d.kind,
            d.name,
            d.table,
            d.reads or None,
            moment(d.last_read),
            d.shuts.name,
            d.accepted or d.remedy or "; ".join(d.grants),
        ),
        as_json=as_json,
    )
    exit_with(any(entry.accepted is None for entry in entries))


@dependencies.command("accept", examples=["dependencies accept 'view berliners' --reason 'the report is gone by then'"])
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@reason_required
@json_option
@app_command
def accept_dependencies(app: App, names: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Let the gates open although these depend on the legacy tables.

    A NAME is as listed, or with its kind before it. Either all of them are accepted or none. Reads are accepted up to
    now.
    """
    with app.store() as store:
        accepted = store.migration.accept_dependencies(names, reason=reason)
    if as_json:
        show_json({"accepted": accepted})
        return
    for each in accepted:
        say(f"{each.kind} {each.name} is accepted")
