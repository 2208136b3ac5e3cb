"""The command demo."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from consensus_orm.cli.app import json_option, main
from consensus_orm.cli.output import exit_with, one_line, plain, say, show_json
from consensus_orm.formats import count, duration, size

if TYPE_CHECKING:
    from consensus_orm.consensus.demo import DemoReport, Leg

__all__: list[str] = []


@main.command(shared=[], examples=["demo", "demo --database artifacts.db"])
@click.option(
    "--database", type=click.Path(path_type=Path), metavar="FILE", help="Take a copy of this legacy file instead."
)
@click.option("--external", is_flag=True, help="Show a memory server being imported, mirrored and left instead.")
@click.option("--server", metavar="COMMAND", help="The memory server of --external; mcp-server-memory by default.")
@json_option
def demo(database: Path | None, external: bool, server: str | None, as_json: bool) -> None:
    """Show a legacy file going through all phases and back.

    Threads write to it all the time. Your data is not touched: the file is generated, or a copy.

    With --external, a real memory server takes the part of the legacy file: its entries are imported, rows are mirrored
    to it, a difference is provoked, found and repaired, and the server is killed and catches up.
    """
    if external:
        _show_external(server, as_json)
        return
    if server is not None:
        raise click.UsageError("--server belongs to --external")
    from consensus_orm.consensus.demo import play

    if as_json:
        report = play(database)
        show_json({"ok": report.ok, "problems": plain(report.problems), **plain(report)})
    else:
        report = play(database, begin=_begin, tell=_tell)
        _conclude(report)
    exit_with(not report.ok)


def _show_external(server: str | None, as_json: bool) -> None:
    # The SDK of the protocol is an extra.
    from consensus_orm.external.demo import play_external

    report = play_external(shlex.split(server) if server else None, tell=(lambda line: None) if as_json else say)
    if as_json:
        show_json({"ok": report.ok, **plain(report)})
    else:
        say()
        say(
            f"{'OK' if report.ok else 'NOT OK'}: {count(report.mismatches, 'mismatch', 'mismatches')},"
            f" all in {report.seconds:.1f} s"
        )
    exit_with(not report.ok)


def _begin(rows: int, bytes_: int, threads: int) -> None:
    say(f"A legacy file of {rows:,} rows ({size(bytes_)}) moves to the normalized schema, and back again,")
    say(f"while {threads} threads keep writing to it: adding, completing, deleting.")


def _tell(leg: Leg) -> None:
    phase = leg.phase
    both = f"both sides are written, every write is compared, {phase.truth} is read"
    say()
    say(f"{phase.value} {phase.name}: {both if phase.compares else f'{phase.truth} is written and read'}")
    for note in leg.notes:
        say(f"    {one_line(note)}")
    legacy = "no legacy tables" if leg.legacy_rows is None else f"{leg.legacy_rows:,} legacy rows"
    say(
        f"    {legacy}, {leg.normalized_rows or 0:,} normalized; {_writes(leg)};"
        f" {count(leg.mismatches, 'mismatch', 'mismatches')}, {count(leg.rejects, 'reject')}; {duration(leg.seconds)}"
    )
    if leg.forward and phase.next is None:
        say()
        say(
            f"Through all five phases: {count(leg.mismatches, 'mismatch', 'mismatches')},"
            f" {count(leg.rejects, 'reject')}. And all the way back:"
        )


def _conclude(report: DemoReport) -> None:
    verdict = report.verdict
    slowest = max(leg.slowest_write for leg in report.legs)
    say()
    say("Judged by plain SQL, every value in type and bytes:")
    say(f"    {verdict.unchanged:,} of {verdict.original:,} legacy rows are what they were")
    say(f"    {verdict.found:,} of {verdict.added:,} rows added meanwhile are there, {report.deleted:,} deleted again")
    say(f"    {count(verdict.surplus, 'row')} that no writer added")
    say(f"    tables and indexes are {'' if verdict.schema_restored else 'NOT '}defined as before")
    say(f"    ids {'go on where they were' if verdict.ids_continue else 'would be GIVEN AGAIN'}")
    say()
    for problem in report.problems:
        say(f"NOT as it should be, {one_line(str(problem))}")
    failed = len(report.problems)
    say(
        f"{'OK' if report.ok else f'NOT OK, {failed} of the checks failed'}:"
        f" {count(report.mismatches, 'mismatch', 'mismatches')}, {count(report.rejects, 'reject')},"
        f" {count(report.writes, 'write')} by others, the slowest {duration(slowest)},"
        f" all in {duration(report.seconds)}"
    )
    if report.ok:
        say("next, with a copy of your file: consensus-orm rehearse --url COPY.db; then: consensus-orm docs tutorial")


def _writes(leg: Leg) -> str:
    during = f" and {leg.writes_before:,} during the step to it" if leg.writes_before else ""
    return f"{count(leg.writes, 'write')} meanwhile{during}"
