"""The commands status and history, and mismatches and rejects with their decisions."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from consensus_orm.cli.app import App, app_command, json_option, main, numbers_argument, table_option
from consensus_orm.cli.output import (
    Bars,
    State,
    exit_with,
    fields,
    key,
    line,
    plain,
    say,
    show_entries,
    show_json,
    table,
)
from consensus_orm.formats import count, duration, moment, series, size
from consensus_orm.phase import Side

if TYPE_CHECKING:
    from consensus_orm.files import Leftover
    from consensus_orm.ledgers.entries import HistoryEntry, MismatchEntry, RejectEntry
    from consensus_orm.migration.status import MigrationStatus
    from consensus_orm.rehearsal import Evidence

__all__: list[str] = []

LISTED = 100
"""Entries listed before the rest is only counted; `--json` lists all."""

REFRESH = 2.0
"""Seconds between two refreshes of `status --watch`."""

number_argument = click.argument("number", metavar="ID", type=click.IntRange(min=1))
reason_required = click.option("--reason", metavar="TEXT", required=True, help="Why, for the audit.")
all_of_option = click.option(
    "--all-of", metavar="REASON", help="All open ones with exactly this reason, as it is listed."
)
all_option = click.option("--all", "everything", is_flag=True, help="Those that are settled, too.")


# Status ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """The state of a database at one time."""

    database: str
    now: datetime
    status: MigrationStatus
    mismatches: list[MismatchEntry]
    evidence: Evidence | None
    leftovers: list[Leftover]


@main.command(examples=["status", "status --watch", "status --json --url postgresql://app@db/consensus"])
@click.option("--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
@json_option
@app_command
def status(app: App, watch: bool, as_json: bool) -> None:
    """Show where the migration stands, and the next command.

    Writes nothing. The exit code is 1 while mismatches or rejects are open, or a guard of the phase is missing.
    """
    if watch and as_json:
        raise click.UsageError("--watch is for people; a program asks for `status --json` as often as it likes")
    seen = _look(app, quiet=as_json)
    with contextlib.suppress(KeyboardInterrupt):  # ends a watch
        while watch:
            _refresh(app, seen)
            seen = _look(app, quiet=True)
    if as_json:
        _show_status_json(app, seen)
    elif not watch:
        _show_status(app, seen)
    exit_with(seen.status.mismatches or seen.status.rejects or seen.status.guards)


def _look(app: App, *, quiet: bool) -> _Seen:
    from consensus_orm.rehearsal import find

    # Opened each time, so that a watch shows a file that was upgraded or replaced meanwhile.
    with app.store() as store, Bars("status", quiet=quiet):
        found = store._records.status()
        return _Seen(
            database=store.name,
            now=store.settings.clock(),
            status=found,
            mismatches=store._records.mismatches() if found.mismatches else [],
            evidence=find(store._units),
            leftovers=store.maintenance.leftovers(),
        )


def _refresh(app: App, seen: _Seen) -> None:
    """Clear the screen, show the state, and wait."""
    click.clear()
    _show_status(app, seen)
    say()
    say(f"{moment(seen.now)}; Ctrl-C ends this")
    sys.stdout.flush()
    time.sleep(REFRESH)


def _show_status_json(app: App, seen: _Seen) -> None:
    found, evidence = seen.status, seen.evidence
    age = None if found.certificate is None else seen.now - found.certificate.at
    rehearsal = None
    if evidence is not None:
        rehearsal = {"at": evidence.report.at, "passed": evidence.report.passed, "stale": evidence.stale}
    facts = {
        "certificate": None if found.certificate is None else {**plain(found.certificate), "age": age},
        "gate": [app.spelled(reason) for reason in found.gate],
        "next_command": app.spelled(found.next_command),
        "rehearsal": rehearsal,
        "leftovers": seen.leftovers,
    }
    show_json({"database": seen.database, **plain(found), **facts})


def _show_status(app: App, seen: _Seen) -> None:
    facts = list(_facts(app, seen.status, seen.mismatches, seen.now))
    if seen.status.phase.next is not None or seen.evidence is not None:
        from consensus_orm.rehearsal import mention

        facts.append(("rehearsal", app.spelled(mention(seen.evidence, seen.now))))
    facts += [("left behind", _left_behind(each)) for each in seen.leftovers]
    fields([("database", seen.database), *facts])
    say()
    _rows(seen.status)
    _gate(app, seen.status)


def _facts(
    app: App, found: MigrationStatus, mismatches: list[MismatchEntry], now: datetime
) -> Iterator[tuple[str, object]]:
    phase = found.phase
    since = "" if found.since is None else f", since {moment(found.since)} ({duration(now - found.since)})"
    yield "phase", f"{phase.name}, {phase.value} of 5{since}{'' if found.prepared else ', not prepared'}"
    yield "written", " and ".join(found.writes) + (", every write compared" if phase.compares else "")
    yield "read", found.reads.value
    yield "backfill", _backfill(found)
    yield "certificate", _certificate(found, now)
    yield "mismatches", State(f"{found.mismatches:,} open{_grouped(mismatches)}", not found.mismatches)
    yield "rejects", State(f"{found.rejects:,} open", not found.rejects)
    yield "guards", State("; ".join(found.guards) or "in place", not found.guards)
    undecided = f", {count(found.undecided, 'row')} undecided" if found.undecided else ""
    yield "foreign writes", f"{found.foreign_writes:,} noticed{undecided}"
    yield from _dependencies(found)
    for outbox in found.outboxes:
        yield "external store", State(outbox.told, not outbox.late)
    if found.images:
        yield "images", f"{found.images:,} kept"
    soaks = phase.writes_normalized and phase.next is not None
    if found.rewrite is not None:
        yield "upgrade", found.rewrite
    yield "soak", f"{duration(found.soak_left)} left" if found.soak_left else "over" if soaks else "none"
    if (told := found.control).paused_at is not None:
        yield "paused", State(f"long steps wait since {moment(told.paused_at)}; run: consensus-orm resume", None)
    if told.throttle is not None:
        yield "throttle", f"{count(told.throttle, 'row')} a second"
    if told.held_at is not None:
        yield "hold", State(f"no phase changes since {moment(told.held_at)}", None)
    if found.keeper is not None:
        yield "keeper", State(app.spelled(found.keeper.told(now)), None if found.keeper.overdue else True)
    if found.clock_set_back:
        yield "clock", "set back: a date of the phase or of its certificate lies in the future, and does not count"


def _dependencies(found: MigrationStatus) -> Iterator[tuple[str, object]]:
    """What others use of the legacy tables, and whether it is known who reads those that are frozen."""
    for each in found.dependencies:
        yield "depends", each.told + ("" if each.accepted is None else f", accepted: {each.accepted}")
    if found.phase.freezes_legacy:
        reads = "none" if found.reads_counted else "not known: SQLite counts no reads, so ask who uses this file"
        if not any(each.reads for each in found.dependencies):
            yield "others' reads", reads


def _left_behind(copy: Leftover) -> str:
    room = "" if copy.bytes is None else f" ({size(copy.bytes)})"
    return f"{copy.name}{room}, which no process uses; remove it: {copy.remove}"


def _backfill(found: MigrationStatus) -> str:
    if not found.prepared or not found.phase.writes_normalized:
        return "not begun"
    pairs = found.pairs
    if all(pair.backfill_finished for pair in pairs) or found.phase.truth is Side.NORMALIZED:
        return "complete"
    done, total = sum(pair.backfilled for pair in pairs), sum(pair.legacy_rows or 0 for pair in pairs)
    return f"{done:,} of {total:,} rows"


def _certificate(found: MigrationStatus, now: datetime) -> str:
    certificate = found.certificate
    if certificate is None:
        return "none"
    which = "" if certificate.this_phase else ", made in an earlier phase"
    return (
        f"no. {certificate.id}: {count(certificate.compared, 'row')} compared,"
        f" {count(certificate.differences, 'difference')}, {duration(now - certificate.at)} old{which}"
    )


def _grouped(mismatches: list[MismatchEntry]) -> str:
    groups = Counter(f"{m.pair}.{m.column or '*'} {m.kind}" for m in mismatches)
    return "".join(f", {number:,} x {group}" for group, number in groups.most_common())


def _rows(found: MigrationStatus) -> None:
    rows: list[tuple[object, ...]] = [(pair.name, pair.legacy_rows, pair.normalized_rows) for pair in found.pairs]
    rows += [(name, None, number) for name, number in found.parents.items()]
    table(("rows", "legacy", "normalized"), rows)
    for name, number in found.other_tables.items():
        say(f"{name}: {count(number, 'row')}, in no move")


def _gate(app: App, found: MigrationStatus) -> None:
    say()
    if found.prepared and found.phase.next is not None:
        line(f"gate to {found.phase.next.name}: ", State("shut", False) if found.gate else State("open", True))
        for reason in found.gate:
            say(f"  - {app.spelled(reason)}")
    if found.next_command:
        say(f"next: {app.spelled(found.next_command)}")
    elif found.soak_left:
        say(f"next: wait until the soak is over, {duration(found.soak_left)}; then look again")
    else:
        say("next: nothing, this is the end" if found.phase.next is None else "next: see the reasons above")


# History --------------------------------------------------------------------------------------------------


@main.command(examples=["history", "history --json"])
@json_option
@app_command
def history(app: App, as_json: bool) -> None:
    """List every change of phase and every repair; writes nothing."""
    with app.store() as store:
        entries = store._records.history()
    show_entries(entries, "nothing happened yet", ("when", "what", "phase", "who", "why"), _happened, as_json=as_json)


def _happened(entry: HistoryEntry) -> tuple[object, ...]:
    names = [phase.name for phase in (entry.from_phase, entry.to_phase) if phase]
    return entry.at, entry.action, " -> ".join(names), entry.by, entry.why


# Mismatches and rejects -----------------------------------------------------------------------------------


@main.group(
    invoke_without_command=True,
    examples=["mismatches", "mismatches show 3", "mismatches accept 3-12 --reason 'the old column is not used'"],
)
@all_option
@json_option
@app_command
@click.pass_context
def mismatches(ctx: click.Context, app: App, everything: bool, as_json: bool) -> None:
    """List differences between the sides, or accept them."""
    if ctx.invoked_subcommand is not None:
        return
    with app.store() as store:
        entries = store._records.mismatches(everything=everything)
    show_entries(
        entries,
        "no mismatches",
        ("id", "pair", "key", "column", "kind", "state", "found by", "when"),
        lambda m: (m.id, m.pair, key(m.key), m.column, m.kind, m.state, m.found_by, m.found_at),
        as_json=as_json,
        most=LISTED,
    )
    exit_with(any(entry.settled_at is None for entry in entries))


@mismatches.command(
    "accept",
    examples=["mismatches accept 3 7-12 --reason 'not used'", "mismatches accept --table orders --reason 'not used'"],
)
@numbers_argument
@table_option
@reason_required
@json_option
@app_command
def accept_mismatch(app: App, numbers: tuple[int | range, ...], table: str | None, reason: str, as_json: bool) -> None:
    """Leave mismatches as they are.

    Either all of them are accepted or none.
    """
    if not numbers and table is None:
        raise click.UsageError("give the ID of a mismatch, or --table TABLE")
    with app.store() as store:
        accepted = store.migration.accept_mismatches(numbers, table=table, reason=reason)
    _tell_accepted("mismatch", "mismatches", accepted, as_json=as_json)


def _require_selection(numbers: tuple[int | range, ...], table: str | None, all_of: str | None) -> None:
    if not numbers and table is None and all_of is None:
        raise click.UsageError("give the ID of a reject, --table TABLE or --all-of REASON")


def _tell_accepted(one: str, many: str, accepted: list[int], *, as_json: bool) -> None:
    if as_json:
        show_json({"accepted": accepted})
    else:
        _tell_decided(one, many, accepted, "accepted")


def _tell_decided(one: str, many: str, numbers: list[int], what: str) -> None:
    if len(numbers) == 1:
        say(f"{one} {numbers[0]} is {what}")
    elif numbers:
        say(f"{len(numbers):,} {many} are {what}: {series(numbers)}")


@main.group(
    invoke_without_command=True,
    examples=["rejects", "rejects show 3", "rejects resolve 3 5", "rejects accept 3-12 --reason 'test data'"],
)
@all_option
@json_option
@app_command
@click.pass_context
def rejects(ctx: click.Context, app: App, everything: bool, as_json: bool) -> None:
    """List rows that cannot be carried, or decide on them."""
    if ctx.invoked_subcommand is not None:
        return
    with app.store() as store:
        entries = store._records.rejects(everything=everything)
    show_entries(
        entries,
        "no rejects",
        ("id", "table", "row", "state", "reason", "when"),
        lambda r: (r.id, r.table, _named(r), r.state, r.reason, r.found_at),
        as_json=as_json,
    )
    exit_with(any(entry.settled_at is None for entry in entries))


def _named(entry: RejectEntry) -> str | None:
    """A rejected row by its key, or by spec, stage and time of its run."""
    if entry.key is not None or not entry.belongs_to:
        return key(entry.key)
    *names, at = entry.belongs_to.values()
    if isinstance(at, int):
        with contextlib.suppress(OverflowError, ValueError, OSError):  # it may be no valid time
            at = moment(datetime.fromtimestamp(at / 1000, UTC))
    return " ".join(map(str, (*names, at)))


@rejects.command("resolve", examples=["rejects resolve 3 7-12", "rejects resolve --table orders"])
@numbers_argument
@table_option
@all_of_option
@json_option
@app_command
def resolve_reject(
    app: App, numbers: tuple[int | range, ...], table: str | None, all_of: str | None, as_json: bool
) -> None:
    """Try again to carry the rows of rejects, after what was wrong with them has been mended.

    The exit code is 1 where a row still cannot be carried: its reject stays open, and the others are resolved. An ID of
    no open reject leaves all of them as they are.
    """
    _require_selection(numbers, table, all_of)
    with app.store() as store:
        tried = store.migration.resolve_rejects(numbers, table=table, all_of=all_of)
    done = {carried: [number for number in tried if tried[number] is carried] for carried in (True, False)}
    if as_json:
        show_json({"resolved": done[True], "still_open": done[False]})
    else:
        _tell_decided("reject", "rejects", done[True], "resolved")
        _tell_decided("reject", "rejects", done[False], "still open, because the sides differ")
    exit_with(done[False])


@rejects.command(
    "accept",
    examples=["rejects accept 3 7-12 --reason 'test data'", "rejects accept --table orders --reason 'test data'"],
)
@numbers_argument
@table_option
@all_of_option
@reason_required
@json_option
@app_command
def accept_reject(
    app: App, numbers: tuple[int | range, ...], table: str | None, all_of: str | None, reason: str, as_json: bool
) -> None:
    """Let the migration go on without the rows of these rejects; their images are kept.

    Either all of them are accepted or none.
    """
    _require_selection(numbers, table, all_of)
    with app.store() as store:
        accepted = store.migration.accept_rejects(numbers, table=table, all_of=all_of, reason=reason)
    _tell_accepted("reject", "rejects", accepted, as_json=as_json)
