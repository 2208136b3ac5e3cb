"""The command keep, which looks after a database between two changes of phase."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consensus_orm.cli.app import App, app_command, json_option, main, on_event_option
from consensus_orm.cli.output import exit_with, one_line, say, show_json
from consensus_orm.cli.steps import told
from consensus_orm.formats import count, duration, moment, size
from consensus_orm.settings import Reconciling

if TYPE_CHECKING:
    from consensus_orm.keeper import Kept

__all__: list[str] = []


@main.command(
    examples=[
        "keep --on-event /usr/local/bin/page",
        "keep --reconcile settle --backups /backups",
        "keep --once --json",
    ]
)
@click.option("--once", is_flag=True, help="Do what is due now, and end; for cron.")
@click.option(
    "--reconcile",
    "policy",
    type=click.Choice([each.value for each in Reconciling]),
    help="What is done about differences that a verify found: nothing, what needs no choice, or that and one of the"
    " choices of `reconcile`; KEEP_RECONCILE where left out.",
)
@click.option(
    "--backups",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where backups are made and rotated; BACKUP_DIR where left out.",
)
@on_event_option
@json_option
@app_command
def keep(app: App, once: bool, policy: str | None, backups: Path | None, as_json: bool) -> None:
    """Look after the database between two changes of phase: verify, back up, vacuum, watch.

    Runs until Ctrl-C or SIGTERM, at the intervals of the settings KEEP_VERIFY, KEEP_BACKUP, KEEP_VACUUM and
    KEEP_HEALTH. It never changes the phase. Run it on as many hosts as you like: one acts, the others stand by, and one
    of them takes over when it stops or is killed. `pause` stops it, too, until `resume`.

    With --once the exit code is 1 if something failed, or the verify was not clean.
    """
    from consensus_orm.keeper import Keeper

    given: dict[str, Any] = {"keep_reconcile": policy, "backup_dir": backups}
    changed = {name: value for name, value in given.items() if value is not None}
    stop = threading.Event()
    with app.store(**changed) as store:
        try:
            report = Keeper(store, lambda kept: _tell(app, kept, quiet=as_json)).run(once=once, cancel=stop)
        finally:
            stop.set()
    if as_json:
        show_json(report)
    exit_with(report.failures or report.clean is False)


def _tell(app: App, kept: Kept, *, quiet: bool) -> None:
    """Print what a keeper did or noticed, and have the command of --on-event run; an alarm reaches it by itself."""
    text = _words(app, kept)
    if kept.error is None and kept.action in _STEPS:
        clean = {"clean": kept.result.clean} if kept.action == "verify" else {}
        app.tell("step_done", action=kept.action, told=text, seconds=kept.seconds, **clean)
    elif kept.action == "phase":
        before, phase = kept.result
        app.tell("phase_changed", action="keep", before=before, phase=phase, by=None)
    now = moment(datetime.now(UTC))
    if kept.error is not None or kept.action in ("open", "health"):
        click.echo(f"{now}  {kept.action:<9}  {text}", err=True)
    elif not quiet:
        say(f"{now}  {kept.action:<9}  {text}")


_STEPS = ("verify", "reconcile", "backup", "vacuum")


def _words(app: App, kept: Kept) -> str:
    """What was done or noticed, in a line."""
    result: Any = kept.result
    if kept.error is not None:
        return one_line(f"failed: {app.spelled(str(kept.error))}")
    match kept.action:
        case "verify":
            text = told(result)
        case "reconcile":
            text = f"{count(len(result.actions), 'row')} settled, {count(len(result.undecided), 'row')} undecided"
        case "backup":
            text = f"{result.path}: {size(result.bytes)}, verified"
        case "vacuum":
            text = f"{size(result.before.total)} before, {size(result.after.total)} after"
        case "health":
            return one_line(app.spelled("; ".join(result.problems)) or "healthy again")
        case "phase":
            return f"{result[0].name} -> {result[1].name}"
        case "open":
            mismatches, rejects = result
            return app.spelled(
                f"{count(mismatches, 'mismatch', 'mismatches')} and {count(rejects, 'reject')} open;"
                " see: consensus-orm mismatches, consensus-orm rejects"
            )
        case "begin":
            return f"this keeper acts: {result}"
        case "standby":
            return f"another keeper acts: {result}"
        case other:
            return "no duty is begun until: consensus-orm resume" if other == "pause" else "duties go on"
    return f"{text}, in {duration(kept.seconds)}"
