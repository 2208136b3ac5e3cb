"""The command copy, which copies a store to another database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from consensus_orm.cli.app import App, Refused, app_command, create_option, json_option, main
from consensus_orm.cli.output import Bars, exit_with, key, plain, say, show_json, table
from consensus_orm.errors import CopyRefusedError
from consensus_orm.formats import count, duration

if TYPE_CHECKING:
    from consensus_orm.copying import CopyReport, Unfit

__all__: list[str] = []

MISSING = "check the URL; --create makes a new file"
"""The hint where there is no target."""


@main.command(
    "copy",
    shared=["mapping"],
    examples=[
        "copy artifacts.db postgresql://app@db/consensus --catch-up",
        "copy artifacts.db postgresql://app@db/consensus",
    ],
)
@click.argument("source", metavar="SOURCE_URL")
@click.argument("target", metavar="TARGET_URL")
@click.option("--reject", is_flag=True, help="Leave rows that the target cannot hold behind, whole, as rejects.")
@click.option("--catch-up", is_flag=True, help="For a source in use: stop before the last pass, to be called again.")
@create_option
@json_option
@app_command
def copy_command(app: App, source: str, target: str, reject: bool, catch_up: bool, as_json: bool) -> None:
    """Copy a store to another database, in any phase.

    SQLite to PostgreSQL, back, or to one of the same kind. The source is only read; the target must be empty, a new
    file (with --create), or an unfinished copy: call again to go on. Rows that the target cannot hold are listed
    before anything is written.
    """
    with (
        App(source, app.mapping).store(replica=False) as origin,
        App(target, app.mapping, create=app.create).store(replica=False, missing=MISSING) as store,
        Bars("copy", quiet=as_json) as bars,
    ):
        try:
            report = origin.copy_to(store, reject=reject, finish=not catch_up, progress=bars.rows)
        except CopyRefusedError as error:
            bars.clear()
            if not as_json:
                _show(tuple(error.rows))
            raise Refused(error, finished=False, unfit=error.rows) from error
    if as_json:
        show_json({**plain(report), "rows": report.rows})
    else:
        _tell(report)
    exit_with(report.unfit)


def _show(rows: tuple[Unfit, ...]) -> None:
    table(("table", "key", "column", "reason"), [(odd.table, key(odd.key), odd.column, odd.reason) for odd in rows])


def _tell(report: CopyReport) -> None:
    _show(report.unfit) if report.unfit else None
    written = [(t.name, t.rows, t.written, t.deleted) for t in report.tables]
    table(("table", "rows", "written", "deleted"), written)
    if not report.finished:
        say(
            f"{count(report.rows, 'row')} in {duration(report.seconds)}; the target stays closed: go on with the same"
            " command"
        )
        return
    lock = "without its lock" if report.locked is None else f"its writers waited {duration(report.locked)} at most"
    say(
        f"{count(report.rows, 'row')}, {report.verified:,} of them compared in type and bytes,"
        f" {len(report.unfit):,} left behind as rejects, in {duration(report.seconds)}; {lock}"
    )
    say(f"the phase is {report.phase.name}")
