"""The commands rehearse and report."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from consensus_orm.cli.app import App, app_command, json_option, main
from consensus_orm.cli.output import Bars, exit_with, fields, say, show_json, span, table, when
from consensus_orm.rehearsal import Evidence, RehearsalReport, RehearsalStep
from consensus_orm.report import write

__all__ = ["mention"]


def mention(evidence: Evidence | None, now: datetime) -> str:
    """Whether this database was rehearsed with this mapping, in one line with the next command."""
    run = "run: consensus-orm rehearse"
    if evidence is None:
        return f"none of this database is on record; {run}"
    report = evidence.report
    ago = f"{when(report.at)} ({span(now - report.at)} ago)"
    if evidence.stale:
        return f"that of {ago} does not count: {evidence.stale}; {run}"
    if not report.passed:
        return f"NOT passed {ago}; see {evidence.path}"
    return f"passed {ago} with {report.rows:,} rows; there are {evidence.rows_now:,} now"


@main.command("rehearse")
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
    rows = "" if step.rows is None else f"  {step.rows:,} rows"
    return f"{step.action:<9} {way:<24} {step.seconds:8.2f} s  lock {step.longest_lock * 1000:6.0f} ms{rows}"


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
    say("passed" if report.passed else "NOT passed")


def _facts(report: RehearsalReport) -> list[tuple[str, object]]:
    estimate = report.estimate()
    work = f"{estimate.seconds:,.1f} s of work for {estimate.rows:,} rows, and {span(estimate.soak)} of soak"
    found: list[tuple[str, object]] = [
        ("the real one", work),
        ("writers wait", f"{estimate.longest_lock * 1000:,.0f} ms at most, each time"),
        ("disk needed", f"{estimate.disk:,} bytes more, {estimate.backup:,} of them for the backup before CONTRACT"),
    ]
    if report.kept is not None:
        found.append(("the copy", report.kept))
    if report.writers is not None:
        failed = ", ".join(f"{count:,} x {name}" for name, count in report.writers.errors.items())
        kept = f"{report.writers.rows:,} rows acknowledged, {report.writers.missing:,} missing"
        found.append(("writers", f"{kept}, {failed or 'no unit of work failed'}"))
    if report.unexplained:
        found.append(("rows", f"{report.unexplained:,} are there that no writer added"))
    if not report.schema_equal:
        found.append(("schema", "the legacy tables are not declared as they were"))
    if report.refused:
        found.append(("stopped at", f"{report.reached.name}: the next gate refused"))
    return found


@main.command("report")
@click.argument("file", metavar="FILE.html", type=click.Path(dir_okay=False, path_type=Path))
@app_command
def report_command(app: App, file: Path) -> None:
    """Write a report on the migration to one page, FILE.html.

    The page needs no network and no script. Writes nothing to the database.
    """
    with app.store() as store, Bars("report"):
        path = write(store, file)
    say(f"{path}: {path.stat().st_size:,} bytes")
