"""The commands rehearse and report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from consensus_orm.cli.app import App, app_command, json_option, main
from consensus_orm.cli.confirmation import confirm, yes_option
from consensus_orm.cli.output import Bars, State, exit_with, fields, line, say, show_json, table
from consensus_orm.formats import count, duration, size

if TYPE_CHECKING:
    from consensus_orm.rehearsal import RehearsalReport, RehearsalStep

__all__: list[str] = []


@main.command("rehearse", examples=["rehearse --writers 2", "rehearse --keep /var/tmp/rehearsal"])
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the copy and the evidence there.",
)
@click.option("--writers", metavar="N", type=click.IntRange(0, 64), default=0, help="Threads that write meanwhile.")
@json_option
@app_command
def rehearse_command(app: App, keep: Path | None, writers: int, as_json: bool) -> None:
    """Migrate a copy through all phases and back, and check that its rows come out unchanged.

    Writes nothing to the database; the evidence is a JSON file beside it, or for a server where its backups go.
    The copy of a server is a database on the same server, so the role needs CREATEDB. Soak times are skipped,
    gates are not. The exit code is 1 if a gate refused or a row changed.
    """
    with app.store() as store, Bars("rehearsal", quiet=as_json) as bars:

        def tell(step: RehearsalStep) -> None:
            bars.clear()
            if not as_json:
                say(_step(step))

        report = store.migration.rehearse(keep=keep, writers=writers, progress=bars.rows, tell=tell)
    if as_json:
        show_json(report.facts())
    else:
        say()
        _tell(app, report)
    exit_with(not report.passed)


def _step(step: RehearsalStep) -> str:
    way = step.after.name if step.after is step.before else f"{step.before.name} -> {step.after.name}"
    rows = "" if step.rows is None else f"  {count(step.rows, 'row')}"
    return f"{step.action:<9} {way:<24} {duration(step.seconds):>10}  lock {duration(step.longest_lock):>8}{rows}"


def _tell(app: App, report: RehearsalReport) -> None:
    rows = [(p.phase.name, p.table, p.rows, p.digest[:16], p.difference or "as it was") for p in report.proofs]
    table(("proved at", "table", "rows", "sha-256", "types and bytes"), rows)
    say()
    fields(list(_facts(report)))
    for reason in report.refused:
        say(f"  - {app.spelled(reason)}")
    for note in report.notes:
        say(f"note: {note}")
    for path in report.evidence:
        say(f"evidence: {path}")
    say()
    line("", State("passed", True) if report.passed else State("NOT passed", False))


def _facts(report: RehearsalReport) -> list[tuple[str, object]]:
    estimate = report.estimate()
    work = (
        f"{duration(estimate.seconds)} of work for {count(estimate.rows, 'row')}, and {duration(estimate.soak)} of soak"
    )
    found: list[tuple[str, object]] = [
        ("migration", work),
        ("writers wait", f"{duration(estimate.longest_lock)} at most, each time"),
        ("disk needed", f"{size(estimate.disk)} more, {size(estimate.backup)} of them for the backup before CONTRACT"),
    ]
    if report.kept is not None:
        found.append(("the copy", report.kept))
    if report.writers is not None:
        failed = ", ".join(f"{number:,} x {name}" for name, number in report.writers.errors.items())
        kept = f"{count(report.writers.rows, 'row')} acknowledged, {report.writers.missing:,} missing"
        found.append(("writers", f"{kept}, {failed or 'no unit of work failed'}"))
    if report.unexplained:
        found.append(("rows", f"{report.unexplained:,} are there that no writer added"))
    if not report.schema_equal:
        found.append(("schema", "the legacy tables are not declared as they were"))
    if report.refused:
        found.append(("stopped at", f"{report.reached.name}: the next gate refused"))
    return found


@main.command("report", examples=["report migration.html"])
@click.argument("file", metavar="FILE.html", type=click.Path(dir_okay=False, path_type=Path))
@yes_option
@json_option
@app_command
def report_command(app: App, file: Path, yes: bool, as_json: bool) -> None:
    """Write a report on the migration to one page, FILE.html.

    The page needs no network and no script. Writes nothing to the database.
    """
    from consensus_orm.report import write

    confirm(f"{file} is there already, and is overwritten" if file.exists() else None, yes=yes, as_json=as_json)
    with app.store() as store, Bars("report", quiet=as_json):
        path = write(store, file)
    written = path.stat().st_size
    show_json({"path": path, "bytes": written}) if as_json else say(f"{path}: {size(written)}")
