"""The commands of maintenance: stats, vacuum, backup, restore."""

from __future__ import annotations

from pathlib import Path

import click

from consensus_orm.cli.app import App, app_command, create_option, json_option, main
from consensus_orm.cli.confirmation import confirm, yes_option
from consensus_orm.cli.output import Bars, fields, plain, say, show_json
from consensus_orm.formats import count, duration, size

__all__: list[str] = []


@main.command(examples=["stats", "stats --json"])
@json_option
@app_command
def stats(app: App, as_json: bool) -> None:
    """Show the settings in force and the space on disk; writes nothing."""
    with app.store() as store, Bars("stats", quiet=as_json):
        found = store.maintenance.stats()
    if as_json:
        show_json({**plain(found), "disk": {**plain(found.disk), "total": found.disk.total}})
        return
    shown = plain(found)
    disk, notes, _ = shown.pop("disk"), shown.pop("notes"), shown.pop("pool")
    tables = shown.pop("tables", {})
    disk_use = ", ".join(f"{name} {size(used)}" for name, used in disk.items())
    facts = [(name.replace("_", " "), value) for name, value in shown.items()]
    uses = [(f"  {name}", f"{size(t['bytes'])}, {t['rows']:,} rows, {t['dead']:,} dead") for name, t in tables.items()]
    fields([*facts, ("on disk", disk_use), *uses, *(("note", app.spelled(note)) for note in notes)])


@main.command(examples=["vacuum"])
@click.option("--full", is_flag=True, help="Rewrite the whole file; writers wait meanwhile.")
@yes_option
@json_option
@app_command
def vacuum(app: App, full: bool, yes: bool, as_json: bool) -> None:
    """Return the space of deleted rows to the file system, in small steps."""
    confirm("The whole database is rewritten, and writers wait meanwhile" if full else None, yes=yes, as_json=as_json)
    with app.store() as store, Bars("vacuum", quiet=as_json) as bars:
        report = store.maintenance.vacuum(full=full, progress=bars.pages)
    if as_json:
        before, after = report.before.total, report.after.total
        show_json({**plain(report), "bytes_before": before, "bytes_after": after})
        return
    say(
        f"{size(report.before.total)} before, {size(report.after.total)} after, in {duration(report.seconds)};"
        f" writers waited {duration(report.longest_lock)} at most"
    )
    for note in report.notes:
        say(f"note: {app.spelled(note)}")


@main.command(examples=["backup /backups/artifacts-2026-03-01.db"])
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@yes_option
@json_option
@app_command
def backup(app: App, path: Path, overwrite: bool, yes: bool, as_json: bool) -> None:
    """Copy the database to PATH, verified, while writers go on.

    Of a file PATH becomes a file. Of a server it becomes a folder with a file for each table, as COPY writes them.
    """
    replaced = overwrite and path.is_file()
    confirm(f"{path} ({size(path.stat().st_size)}) is replaced" if replaced else None, yes=yes, as_json=as_json)
    with app.store() as store, Bars("backup", quiet=as_json) as bars:
        report = store.maintenance.backup(path, overwrite=overwrite, progress=bars.pages)
    if as_json:
        show_json(report)
    else:
        rows = count(sum(report.rows.values()), "row")
        say(f"{report.path}: {size(report.bytes)}, {rows}, verified, in {duration(report.seconds)}")


@main.command(examples=["restore artifacts.db.before-contract-20251104T022358.123456Z --url artifacts.db"])
@click.argument("backup", metavar="BACKUP", type=click.Path(path_type=Path))
@create_option
@yes_option
@json_option
@app_command
def restore(app: App, backup: Path, yes: bool, as_json: bool) -> None:
    """Replace a SQLite database that no process has open with BACKUP, or fill an empty database of a server.

    BACKUP is verified first, with the log beside it. The file that is there and its log are kept beside it under
    another name. A backup of a server is a folder; it is loaded into an empty database of a server (--url).
    """
    from consensus_orm.consensus.restoration import restore as restored

    confirm(
        f"Every row of the database becomes what it is in {backup}; the file that is there is kept beside it",
        yes=yes,
        as_json=as_json,
    )
    with Bars("restore", quiet=as_json):
        report = restored(backup, app.url, create=app.create)
    if as_json:
        show_json(report)
        return
    rows = sum(report.rows.values())
    say(f"{report.path} is {report.backup} now: {count(rows, 'row')}, verified, in {duration(report.seconds)}")
    for path in report.aside:
        say(f"what was there is kept as {path}")
