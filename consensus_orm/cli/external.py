"""The commands of external stores: relay, which sends the outbox, and external, which leads through the stages."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import click

from consensus_orm.cli.app import App, Refused, app_command, json_option, main
from consensus_orm.cli.output import exit_with, fields, key, plain, say, show_entries, show_json
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.errors import GateClosedError
from consensus_orm.external.artifacts import read_artifact
from consensus_orm.external.findings import Finding
from consensus_orm.external.importing import read_own
from consensus_orm.external.mirror import Mirror, MirrorStatus
from consensus_orm.external.named import sink_named
from consensus_orm.external.stage import Stage
from consensus_orm.formats import count, duration, moment, series

__all__: list[str] = []

LISTED = 100
"""Findings listed before the rest is only counted; `--json` lists all."""

sink_option = click.option(
    "--sink",
    metavar="SINK",
    help="file:FOLDER, graph:COMMAND, tagged:COMMAND or module:NAME; CONSENSUS_ORM_SINK where left out.",
)
reason_option = click.option("--reason", metavar="TEXT", help="Why, for the audit.")
number_argument = click.argument("number", metavar="ID", type=click.IntRange(min=1))
stage_argument = click.argument(
    "stage", type=click.Choice([stage.name.lower() for stage in Stage], case_sensitive=False), required=False
)


@contextlib.contextmanager
def _mirror(app: App, sink: str | None) -> Iterator[Mirror]:
    with app.store() as store:
        named = sink_named(sink, store.settings)
        read = read_artifact if store._units.statements.moves is CONSENSUS else read_own
        with contextlib.closing(named):
            yield Mirror(store, named, read=read)


# The relay ------------------------------------------------------------------------------------------------


@main.group(examples=["relay run", "relay status"])
def relay() -> None:
    """Send what was written to the external store, outside of every request."""


@relay.command("run", examples=["relay run"])
@click.option("--until-empty", is_flag=True, help="Stop when nothing is left to send.")
@sink_option
@json_option
@app_command
def relay_run(app: App, until_empty: bool, sink: str | None, as_json: bool) -> None:
    """Send the outbox until Ctrl-C; each entry is read back and compared before it counts as sent.

    The exit code is 1 where entries were refused.
    """
    with _mirror(app, sink) as mirror:
        stop = threading.Event()
        try:
            report = mirror.relay.run(until_empty=until_empty, cancel=stop)
        except KeyboardInterrupt:
            stop.set()
            raise
    if as_json:
        show_json(report)
    else:
        say(
            f"{count(report.sent, 'entry', 'entries')} sent and read back,"
            f" {count(report.postponed, 'try', 'tries')} failed,"
            f" {count(report.rejected, 'reject')}, {report.waiting:,} waiting"
        )
    exit_with(report.rejected or report.postponed)


@relay.command("status", examples=["relay status"])
@sink_option
@json_option
@app_command
def relay_status(app: App, sink: str | None, as_json: bool) -> None:
    """Show what waits, for how long, and which relay works; calls no server.

    The exit code is 1 where too much waits, or for too long, or entries became rejects.
    """
    found = _look(app, sink)
    if as_json:
        show_json(found)
    else:
        fields(_relay_facts(found))
    exit_with(found.late or found.rejects)


def _look(app: App, sink: str | None) -> MirrorStatus:
    with _mirror(app, sink) as mirror:
        return mirror.status()


def _relay_facts(found: MirrorStatus) -> Iterator[tuple[str, object]]:
    yield "stage", found.stage.name
    oldest = "" if found.oldest is None else f", the oldest for {duration(found.oldest)}"
    yield "waiting", f"{count(found.waiting, 'entry', 'entries')}{oldest}{' (ALARM)' if found.late else ''}"
    lag = "" if found.lag_p99 is None else f", p99 of the lag {found.lag_p99.total_seconds():.3f} s"
    yield "sent", f"{found.sent:,} at this stage{lag}"
    yield "relay", "paused" if found.paused else found.relay or "none works"
    yield "rejects", f"{found.rejects:,} open"


@relay.command("pause", examples=["relay pause --reason 'the server moves'"])
@reason_option
@sink_option
@json_option
@app_command
def relay_pause(app: App, reason: str | None, sink: str | None, as_json: bool) -> None:
    """Stop sending, wherever the relay runs; the outbox goes on filling."""
    with _mirror(app, sink) as mirror:
        mirror.pause(reason=reason)
    _tell({"paused": True}, "the relay is paused", as_json=as_json)


@relay.command("resume", examples=["relay resume"])
@reason_option
@sink_option
@json_option
@app_command
def relay_resume(app: App, reason: str | None, sink: str | None, as_json: bool) -> None:
    """Send again after a pause."""
    with _mirror(app, sink) as mirror:
        mirror.resume(reason=reason)
    _tell({"paused": False}, "the relay goes on", as_json=as_json)


# The stages -----------------------------------------------------------------------------------------------


@main.group(examples=["external status", "external advance import"])
def external() -> None:
    """Import, mirror and leave an external store: stages OFF, IMPORT, MIRROR and DETACHED."""


@external.command("status", examples=["external status"])
@sink_option
@json_option
@app_command
def external_status(app: App, sink: str | None, as_json: bool) -> None:
    """Show the stage, the newest comparison, and what is in the way of the next stage; calls no server."""
    found = _look(app, sink)
    if as_json:
        show_json({**plain(found), "gate": [app.spelled(each) for each in found.gate]})
    else:
        fields([("sink", found.sink), *_relay_facts(found), *_stage_facts(found)])
        if found.stage.next is not None:
            say(f"gate to {found.stage.next.name}: {'shut' if found.gate else 'open'}")
        for each in found.gate:
            say(f"  - {app.spelled(each)}")
    exit_with(found.late or found.rejects or found.mismatches)


def _stage_facts(found: MirrorStatus) -> Iterator[tuple[str, object]]:
    yield "mismatches", f"{found.mismatches:,} open"
    yield "imported", count(found.imported, "entry", "entries")
    if found.compared_at is not None:
        yield (
            "compared",
            f"{count(found.compared_rows or 0, 'row')}, {found.differences:,} differ, {moment(found.compared_at)}",
        )
    yield "provable", "yes" if found.provable else "no: the store is declared without exact keys or a complete list"


@external.command("import", examples=["external import"])
@click.option("--own", is_flag=True, help="Take in entries, too, that are named as rows which this database lacks.")
@sink_option
@json_option
@app_command
def external_import(app: App, own: bool, sink: str | None, as_json: bool) -> None:
    """Take in entries that only the external store holds; each comes in once.

    The exit code is 1 where rejects are open.
    """
    with _mirror(app, sink) as mirror:
        report = mirror.import_entries(own=own)
        rejects = mirror.status().rejects
    if as_json:
        show_json({**plain(report), "open_rejects": rejects})
    else:
        say(
            f"{count(report.items, 'entry', 'entries')} listed, {report.imported:,} imported, {report.known:,} known,"
            f" {count(report.rejects, 'new reject')}"
        )
    exit_with(rejects)


@external.command("export", examples=["external export"])
@sink_option
@json_option
@app_command
def external_export(app: App, sink: str | None, as_json: bool) -> None:
    """Put all rows into the outbox again; the relay sends them."""
    with _mirror(app, sink) as mirror:
        rows = mirror.export()
    _tell({"rows": rows}, f"{count(rows, 'row is', 'rows are')} in the outbox", as_json=as_json)


@external.command("verify", examples=["external verify"])
@sink_option
@json_option
@app_command
def external_verify(app: App, sink: str | None, as_json: bool) -> None:
    """Compare all rows with all entries, and write a certificate.

    The exit code is 1 where something differs, or nothing can be proved.
    """
    with _mirror(app, sink) as mirror:
        report = mirror.verify()
    if as_json:
        show_json({**plain(report), "clean": report.clean})
    else:
        say(
            f"{count(report.rows, 'row')} and {count(report.items, 'entry', 'entries')} compared,"
            f" {report.imported:,} of them imported, {report.in_flight:,} in flight:"
            f" {count(len(report.differences), 'mismatch', 'mismatches')}"
        )
        for each in report.differences[:LISTED]:
            say(f"  {each.kind:<12}  {each.item!r:.200}")
        if not report.provable:
            say(f"not provable: the store is declared without {' and '.join(report.lacking)}")
        if report.differences:
            say(app.spelled("repair: consensus-orm external repair, then: consensus-orm relay run --until-empty"))
    exit_with(not report.clean)


@external.command("repair", examples=["external repair --reason 'ours is right'"])
@reason_option
@sink_option
@json_option
@app_command
def external_repair(app: App, reason: str | None, sink: str | None, as_json: bool) -> None:
    """Send the rows of all open findings again; what the external store held is kept."""
    with _mirror(app, sink) as mirror:
        settled = mirror.repair(reason=reason)
    told = f"{count(settled, 'finding is', 'findings are')} settled, and sent by way of the outbox"
    _tell({"settled": settled}, told, as_json=as_json)


@external.command("advance", examples=["external advance mirror"])
@stage_argument
@reason_option
@click.option("--force", is_flag=True, help="Skip waiting, never another gate.")
@sink_option
@json_option
@app_command
def external_advance(
    app: App, stage: str | None, reason: str | None, force: bool, sink: str | None, as_json: bool
) -> None:
    """Go to the next stage, or to STAGE; each gate must be open."""
    with _mirror(app, sink) as mirror:
        try:
            reached = mirror.advance(stage, reason=reason, force=force)
        except GateClosedError as error:
            raise Refused(
                error, stage=mirror.stage.name, refused=[app.spelled(each) for each in error.reasons]
            ) from error
    _tell_stage(reached, as_json)


@external.command("rollback", examples=["external rollback import"])
@stage_argument
@reason_option
@sink_option
@json_option
@app_command
def external_rollback(app: App, stage: str | None, reason: str | None, sink: str | None, as_json: bool) -> None:
    """Go back one stage, or to STAGE; back at MIRROR all rows are sent again."""
    with _mirror(app, sink) as mirror:
        reached = mirror.rollback(stage, reason=reason)
    _tell_stage(reached, as_json)


def _tell(document: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    if as_json:
        show_json(document)
    else:
        say(sentence)


def _tell_stage(reached: Stage, as_json: bool) -> None:
    if as_json:
        show_json({"stage": reached.name})
    else:
        say(f"the stage is {reached.name}")


@external.group("findings", invoke_without_command=True, examples=["external findings --all"])
@click.option("--all", "everything", is_flag=True, help="Those that are settled, too.")
@sink_option
@json_option
@app_command
@click.pass_context
def external_findings(ctx: click.Context, app: App, everything: bool, sink: str | None, as_json: bool) -> None:
    """List rejects and mismatches of an external store, or decide on them."""
    if ctx.invoked_subcommand is not None:
        return
    with _mirror(app, sink) as mirror:
        found = mirror.findings(everything=everything)
    columns = ("id", "kind", "entry", "pair", "key", "state", "reason", "when")
    show_entries(found, "no findings", columns, _finding, as_json=as_json, most=LISTED)
    exit_with(any(each.settled_at is None for each in found))


def _finding(found: Finding) -> tuple[Any, ...]:
    of = (found.pair, key(found.key), found.state, found.reason, moment(found.found_at))
    return (found.id, found.kind, found.item, *of)


@external_findings.command("accept", examples=["external findings accept 3 7 --reason 'known'"])
@click.argument("numbers", metavar="ID...", nargs=-1, required=True, type=click.IntRange(min=1))
@click.option("--reason", metavar="TEXT", required=True, help="Why, for the audit.")
@sink_option
@json_option
@app_command
def accept_finding(app: App, numbers: tuple[int, ...], reason: str, sink: str | None, as_json: bool) -> None:
    """Leave findings as they are.

    Either all of them are accepted or none.
    """
    with _mirror(app, sink) as mirror:
        mirror.accept_many(numbers, reason=reason)
    told = f"finding {numbers[0]} is" if len(numbers) == 1 else f"findings {series(numbers)} are"
    _tell({"accepted": [*numbers]}, f"{told} accepted", as_json=as_json)


@external_findings.command("show", examples=["external findings show 3"])
@number_argument
@sink_option
@json_option
@app_command
def show_finding(app: App, number: int, sink: str | None, as_json: bool) -> None:
    """Print what the external store held when finding ID was made, as JSON: the only command that shows contents."""
    with _mirror(app, sink) as mirror:
        kept = mirror.kept(number)
    _tell({"kept": None if kept is None else json.loads(kept)}, "null" if kept is None else kept, as_json=as_json)
