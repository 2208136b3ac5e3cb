"""The commands that take a step of the migration: upgrade, backfill, verify, advance, rollback, migrate, reconcile."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from consensus_orm.cli.app import (
    App,
    Interrupted,
    PhaseType,
    Refused,
    WaitType,
    app_command,
    create_option,
    json_option,
    main,
    numbers_argument,
    on_event_option,
    phase_argument,
)
from consensus_orm.cli.confirmation import confirm, is_confirmed, yes_option
from consensus_orm.cli.output import Bars, exit_with, key, listed, one_line, plain, say, show_json
from consensus_orm.errors import GateClosedError
from consensus_orm.formats import count, duration, size
from consensus_orm.phase import Phase, Side

if TYPE_CHECKING:
    from consensus_orm.consensus.store import ConsensusStore
    from consensus_orm.ledgers.entries import HistoryEntry
    from consensus_orm.migration import Migration
    from consensus_orm.migration.backfill import BackfillReport
    from consensus_orm.migration.planning import Choice
    from consensus_orm.migration.reconcile import ReconcileReport
    from consensus_orm.migration.steps import Step
    from consensus_orm.migration.verify import VerifyReport

__all__ = ["told"]

LISTED = 20
"""Rows listed before the rest is only counted."""

reason_option = click.option("--reason", metavar="TEXT", help="Why, for the audit.")


@main.command(examples=["upgrade", "upgrade --create --url new.db"])
@click.option("--yes", is_flag=True, help="Recreate tables of another program, after a verified backup.")
@click.option(
    "--no-protect",
    is_flag=True,
    help="Leave user_version as it is, so that the dual-write and the final build go on opening the file.",
)
@create_option
@json_option
@app_command
def upgrade(app: App, yes: bool, no_protect: bool, as_json: bool) -> None:
    """Bring the schema to the newest revision; safe at any time.

    In a file of the dual-write or the final build, the tables of that program are recreated: this needs --yes, or an
    answer on a terminal. The user_version of the file becomes 3, which those programs refuse.

    On a server, roles that may use the legacy tables are given the rights that they need besides; what this role may
    not give is printed.
    """
    with app.store() as store:
        rewrite = store.pending_rewrite()
        yes = yes or (rewrite is not None and not as_json and is_confirmed(str(rewrite)))
        started = time.monotonic()
        with Bars("upgrade", quiet=as_json) as bars:
            applied = store.migration.upgrade(bars.rows, rewrite=yes, protect=False if no_protect else None)
        phase = store.migration.phase
        version = None if store.path is None else store.maintenance.stats().user_version
        backup = None if rewrite is None else _newest_backup(store)
        is_told = version is not None and store.application.protection is not None
        grants = [grant for each in store.migration.dependencies() for grant in each.grants]
    if as_json:
        found = {"applied": applied, "phase": phase, "user_version": version, "backup": backup, "grants": grants}
        show_json(found)
        return
    say(f"{told(applied)}, in {duration(time.monotonic() - started)}; the phase is {phase.name}")
    if backup is not None:
        say(f"backup: {backup}")
    if is_told and version is not None:
        say(f"user_version: {_protection(version)}")
    if grants:
        say("roles would be cut off; as the owner of the tables, run:")
    for grant in grants:
        say(f"  {grant};")


def _newest_backup(store: ConsensusStore) -> str | None:
    kept = [entry.detail.get("backup") for entry in store.migration.history() if entry.action == "backup"]
    return kept[-1] if kept else None


def _protection(version: int) -> str:
    from consensus_orm.consensus.programs import PROTECTED, UNPROTECTED

    if version == PROTECTED:
        return f"{version}, which the dual-write and the final build refuse"
    if version in UNPROTECTED:
        return f"{version}, left as it is; a final build that opens the file may drop its legacy tables"
    return f"{version}, which is another application's, and stays"


@main.command(examples=["backfill", "backfill --workers 4 --url postgresql://app@db/consensus"])
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    help="On a server: carry with N workers, which share the rows with those of other processes and hosts.",
)
@on_event_option
@json_option
@app_command
def backfill(app: App, workers: int | None, as_json: bool) -> None:
    """Carry the existing rows; continues where it stopped."""
    with app.store() as store, Bars("backfill", quiet=as_json) as bars:
        report = store.migration.backfill(bars.rows, workers=workers)
        open_rejects = len(store.migration.rejects())
        app.tell("step_done", action="backfill", told=told(report), seconds=report.seconds)
    if as_json:
        show_json({**plain(report), "open_rejects": open_rejects})
    else:
        say(f"backfill: {told(report)}, in {duration(report.seconds)}")
        if open_rejects:
            say(app.spelled(f"{count(open_rejects, 'reject')} open; see: consensus-orm rejects"))
    exit_with(open_rejects)


@main.command(examples=["verify", "verify --json"])
@on_event_option
@json_option
@app_command
def verify(app: App, as_json: bool) -> None:
    """Compare all rows of both sides, and write a certificate."""
    with app.store() as store, Bars("verify", quiet=as_json) as bars:
        report = store.migration.verify(bars.rows)
        app.tell("step_done", action="verify", told=told(report), clean=report.clean, seconds=report.seconds)
    if as_json:
        show_json({**plain(report), "clean": report.clean})
    else:
        say(f"verify: {told(report)}, in {duration(report.seconds)}; certificate no. {report.certificate}")
        _list_differences(app, report)
    exit_with(not report.clean or report.rejects)


def _list_differences(app: App, report: VerifyReport) -> None:
    if report.differences:
        rows = [(d.pair, key(d.key), d.kind, ", ".join(d.columns)) for d in report.differences]
        listed(("pair", "key", "kind", "columns"), rows, LISTED)
        say(app.spelled("see: consensus-orm mismatches; repair: consensus-orm reconcile"))
    if report.not_carried:
        say(app.spelled(f"{count(report.not_carried, 'row')} not yet carried; run: consensus-orm backfill"))
    for counted in report.missed:
        say(
            f"{counted.table}: {count(counted.rows, 'row')}, {counted.looked_at:,} compared,"
            f" {counted.keyless:,} without a usable key, {counted.missed:,} not accounted for; no gate opens on this"
        )


@main.command(
    examples=["advance", "advance cutover --wait 2h", "advance --force --reason 'verified by hand'"],
)
@phase_argument
@reason_option
@click.option("--force", is_flag=True, help="Skip waiting, never a gate behind which rows would be lost.")
@click.option(
    "--keep-tables",
    is_flag=True,
    help="Make no backup before CONTRACT, and keep the rows in the tables that are put away; needs a reason.",
)
@click.option(
    "--wait",
    metavar="DURATION|TIME",
    type=WaitType(),
    help="Wait for a gate that is shut, at most so long (90s, 30min, 2h, 7d) or until a time (2026-12-01T06:00).",
)
@yes_option
@on_event_option
@json_option
@app_command
def advance(
    app: App,
    phase: Phase | None,
    reason: str | None,
    force: bool,
    keep_tables: bool,
    wait: timedelta | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Go to the next phase, or to PHASE; each gate must be open."""
    rehearsed, mentioned = _rehearsal(app)

    def work(migration: Migration, bars: Bars) -> dict[str, Any]:
        target = phase or migration.phase.next or migration.phase
        with bars.aside():
            confirm(partial(_before_contract, migration, target), yes=yes, as_json=as_json)
        with _goal(target, typed=phase):
            migration.advance(
                target, reason=reason, force=force, wait=wait, keep_tables=keep_tables, progress=bars.rows
            )
        return {"rehearsed": rehearsed}

    _move(app, as_json, "advance", work, lambda: {"rehearsed": rehearsed})
    if not as_json:
        say(mentioned)


def _before_contract(migration: Migration, target: Phase) -> str | None:
    """What the step to CONTRACT will do; None where it is not taken."""
    if target.has_legacy or not migration.phase.has_legacy:
        return None
    pairs = migration.status().pairs
    tables = ", ".join(f"{pair.legacy_table} ({count(pair.legacy_rows or 0, 'row')})" for pair in pairs)
    return (
        f"CONTRACT drops the legacy tables: {tables}. A verified backup is made first, and `rollback normalized` makes"
        " the tables again from the normalized side"
    )


def _before_rollback(migration: Migration, target: Phase | None) -> str | None:
    """What the way back will overwrite; None where it only changes the phase."""
    now = migration.phase
    if target is None or target >= now:
        return None
    if not now.has_legacy:
        return "The legacy tables are made again from the normalized side, as they were declared before the drop"
    if now.freezes_legacy:
        return (
            "Every legacy row that was changed or deleted since NORMALIZED began becomes what the normalized side says"
        )
    return None


def _rehearsal(app: App) -> tuple[bool, str]:
    """Whether this database was rehearsed with this mapping, also in words."""
    from consensus_orm.rehearsal import find, mention

    with app.store() as store:
        evidence, now = find(store._units), store.settings.clock()
    return evidence is not None and evidence.holds, f"rehearsal: {app.spelled(mention(evidence, now))}"


@main.command(examples=["rollback", "rollback expand --reason 'a bug in the application'"])
@phase_argument
@reason_option
@yes_option
@on_event_option
@json_option
@app_command
def rollback(app: App, phase: Phase | None, reason: str | None, yes: bool, as_json: bool) -> None:
    """Go back one phase, or to PHASE; nothing is lost on the way."""

    def work(migration: Migration, bars: Bars) -> dict[str, Any]:
        target = phase or migration.phase.previous
        with bars.aside():
            confirm(partial(_before_rollback, migration, target), yes=yes, as_json=as_json)
        with _goal(target, typed=phase):
            migration.rollback(target, reason=reason, progress=bars.rows)
        return {}

    _move(app, as_json, "rollback", work)


@main.group(examples=["contract finish --reason 'no way back is needed any more'"])
def contract() -> None:
    """Remove for good what CONTRACT has put away."""


@contract.command(examples=["contract finish --reason 'no way back is needed any more'"])
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the audit.")
@json_option
@app_command
def finish(app: App, reason: str, as_json: bool) -> None:
    """Remove it for good: the legacy tables, and what it takes to make them again. There is no way back from then on.

    Nothing is removed while something else uses one of the tables, or while a row has no other place.
    """
    with app.store() as store, Bars("finish", quiet=as_json) as bars:
        try:
            removed = store.migration.finish_contract(reason=reason, progress=bars.rows)
        except GateClosedError as error:
            raise Refused(error, refused=[app.spelled(text) for text in error.reasons]) from error
    if as_json:
        show_json({"removed": removed, "refused": []})
    else:
        say(f"removed for good: {', '.join(removed)}")


@contextlib.contextmanager
def _goal(phase: Phase | None, *, typed: Phase | None) -> Iterator[None]:
    """Name the phase in the command that continues after Ctrl-C, which without it might take a further step."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(*([phase.name.lower()] if phase and not typed else [])) from None


@main.command(examples=["migrate --to dual_write", "migrate --until 2026-12-01T06:00 --yes", "migrate --no-soak --yes"])
@click.option("--to", type=PhaseType(), default=Phase.CONTRACT, help="The phase to reach; contract by default.")
@click.option("--no-soak", is_flag=True, help="Skip the soak times: for a database that is not in use.")
@click.option(
    "--until",
    metavar="DURATION|TIME",
    type=WaitType(),
    help="Wait at a gate that is shut until its soak is over or an operator has settled what keeps it shut, and go on,"
    " at most so long (90s, 30min, 2h, 7d) or until a time (2026-12-01T06:00).",
)
@reason_option
@yes_option
@on_event_option
@json_option
@app_command
def migrate(
    app: App, to: Phase, no_soak: bool, until: timedelta | None, reason: str | None, yes: bool, as_json: bool
) -> None:
    """Take every step, up to the first gate that refuses.

    Upgrade, advance, backfill, verify, and so on up to a phase. Nothing is repaired: differences shut a gate.
    """
    taken: list[Step] = []

    def work(migration: Migration, bars: Bars) -> dict[str, Any]:
        def tell(step: Step) -> None:
            taken.append(step)
            bars.clear()
            if step.action != "advance":
                app.tell("step_done", action=step.action, told=told(step.result), seconds=step.seconds)
            if not as_json:
                say(f"{step.phase.name:<10}  {step.action:<8}  {told(step.result)}, in {duration(step.seconds)}")

        with bars.aside():
            confirm(partial(_before_contract, migration, to), yes=yes, as_json=as_json)
        migration.migrate(to, soak=not no_soak, reason=reason, wait=until, progress=bars.rows, tell=tell)
        return {"steps": taken}

    _move(app, as_json, "migrate", work, lambda: {"steps": taken})


def _move(
    app: App,
    as_json: bool,
    label: str,
    work: Callable[[Migration, Bars], dict[str, Any]],
    so_far: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Change the phase and print it; if a gate refuses, JSON has what was done before."""
    with app.store() as store, Bars(label, quiet=as_json) as bars:
        before, entries = store.migration.phase, len(store.migration.history())
        started = time.monotonic()
        try:
            facts = work(store.migration, bars)
        except GateClosedError as error:
            refused = [app.spelled(reason) for reason in error.reasons]
            _tell_changes(app, store.migration.history()[entries:])
            raise Refused(error, **so_far(), phase=store.migration.phase, refused=refused) from error
        after, seconds = store.migration.phase, time.monotonic() - started
        done = store.migration.history()[entries:]
        _tell_changes(app, done)
    if as_json:
        show_json({**facts, "phase": after, "refused": []})
        return
    for path in _backups(done):
        say(f"backup: {path}" + (f" ({size(Path(path).stat().st_size)})" if Path(path).is_file() else ""))
    told = ", as before" if after is before else f": {before.name} -> {after.name} in {duration(seconds)}"
    say(f"the phase is {after.name}{told}")


def _tell_changes(app: App, entries: list[HistoryEntry]) -> None:
    for entry in entries:
        if None not in (entry.from_phase, entry.to_phase) and entry.from_phase is not entry.to_phase:
            app.tell("phase_changed", action=entry.action, before=entry.from_phase, phase=entry.to_phase, by=entry.by)


def _backups(entries: list[HistoryEntry]) -> list[str]:
    """The backups that steps made, by the audit."""
    return [str(entry.detail["backup"]) for entry in entries if entry.detail.get("backup")]


@main.command(
    examples=[
        "reconcile --dry-run",
        "reconcile 3-12 --repair --reason 'the import job is wrong'",
        "reconcile --table orders --adopt",
    ]
)
@numbers_argument
@click.option("--table", metavar="TABLE", help="Only the rows of a move or of one of its tables.")
@click.option("--adopt", is_flag=True, help="Take over what another program changed or deleted on the unread side.")
@click.option("--repair", is_flag=True, help="Restore it instead.")
@click.option(
    "--rebuild", type=click.Choice([side.value for side in Side]), help="Recreate a side after tables were dropped."
)
@click.option("--dry-run", is_flag=True, help="Only list what would be done.")
@reason_option
@yes_option
@on_event_option
@json_option
@app_command
def reconcile(
    app: App,
    numbers: tuple[int | range, ...],
    table: str | None,
    adopt: bool,
    repair: bool,
    rebuild: str | None,
    dry_run: bool,
    reason: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Make both sides equal, or only the rows of some mismatches or of a table.

    Repairs the side that is not read, and adopts rows that it alone has. Rows that another program changed or deleted
    there wait for --adopt or --repair. What is overwritten or deleted is kept first: see `images`.

    Where another program dropped tables, or dropped them and made them again, --rebuild says which side is made again
    from the other one. Rows written to such a table since then stay, under new ids where theirs were given before. To
    let those rows win, rebuild the side that lost nothing: what it has besides them is kept as images, and goes.

    The exit code is 1 where rows wait or could not be carried, and with --dry-run where there is something to do.
    """
    if rebuild and dry_run:
        raise click.UsageError("--rebuild has no preview: try it on a copy, or with `consensus-orm rehearse`")
    if adopt and repair:
        raise click.UsageError("--adopt and --repair are opposites: choose one")
    choice: Choice = "adopt" if adopt else "repair" if repair else None
    started = time.monotonic()
    with app.store() as store, Bars("reconcile", quiet=as_json) as bars:
        if not dry_run:
            look = partial(_before_reconcile, store.migration, numbers, table, choice, rebuild)
            with bars.aside():
                confirm(look, yes=yes, as_json=as_json)
        report = store.migration.reconcile(
            numbers,
            table=table,
            reason=reason,
            foreign=choice,
            rebuild=rebuild,
            dry_run=dry_run,
            progress=bars.rows,
        )
        app.tell("step_done", action="reconcile", rows=len(report.actions), undecided=len(report.undecided))
    if as_json:
        show_json(report)
    else:
        _tell_reconciled(app, report, time.monotonic() - started)
    exit_with(report.rejects or report.undecided or (dry_run and report.actions))


def _before_reconcile(
    migration: Migration, numbers: tuple[int | range, ...], table: str | None, choice: Choice, rebuild: str | None
) -> str | None:
    """What reconcile will overwrite or delete, by its own preview; None where nothing."""
    if rebuild:
        return f"The {rebuild} side is made again from the other one; rows that it alone has are kept as images, and go"
    actions = migration.reconcile(numbers, table=table, foreign=choice, dry_run=True).actions
    changed = Counter((action.what.value, action.side.value) for action in actions if action.what.value != "insert")
    if not changed:
        return None
    told = ", ".join(f"{count(rows, 'row')} {side}: {what}" for (what, side), rows in sorted(changed.items()))
    return f"Rows are changed, and kept as images first: {told}"


def _tell_reconciled(app: App, report: ReconcileReport, seconds: float) -> None:
    would = "would be " if report.dry_run else ""
    if (done := report.rebuilt) is not None:
        say(
            f"the {done.side} side was made again: {count(done.carried, 'row')} carried to it,"
            f" {count(done.renumbered, 'row')} written since have new ids, {count(done.replaced, 'row')} replaced"
        )
    for table_ in report.adopted_tables:
        say(
            f"{table_.table}, which another program made: {count(table_.rows, 'row')} carried,"
            f" {table_.renumbered:,} of them under new ids, {table_.known:,} known before,"
            f" {count(table_.rejects, 'reject')}"
        )
    say(
        f"{count(report.adopted, 'row')} of other programs {would}settled,"
        f" {count(len(report.repairs), 'row')} {would}repaired, {count(report.rejects, 'new reject')},"
        f" in {duration(seconds)}"
    )
    actions = [(a.pair, key(a.key), a.what, a.side, a.why) for a in report.actions]
    listed(("pair", "key", "action", "side", "why"), actions, LISTED)
    if report.images:
        say(app.spelled(f"{count(report.images, 'row')} kept before that; see: consensus-orm images"))
    if report.undecided:
        say(f"{count(len(report.undecided), 'row')} of other programs undecided:")
        listed(("pair", "key", "side", "did"), [(u.pair, key(u.key), u.side, u.did) for u in report.undecided], LISTED)
        say(app.spelled("take over: consensus-orm reconcile --adopt; put back: consensus-orm reconcile --repair"))


def told(result: Phase | BackfillReport | VerifyReport | list[str]) -> str:
    """The result of a step in words."""
    from consensus_orm.migration.backfill import BackfillReport
    from consensus_orm.migration.verify import VerifyReport

    if isinstance(result, Phase):
        return f"reached {result.name}"
    if isinstance(result, BackfillReport):
        return (
            f"{count(result.rows, 'row')} carried, {count(result.adopted, 'write')} of other programs adopted,"
            f" {count(result.rejects, 'new reject')}"
        )
    if isinstance(result, VerifyReport):
        return (
            f"{count(result.compared, 'row')} compared, {result.legacy_rows:,} legacy and"
            f" {result.normalized_rows:,} normalized, {count(len(result.differences), 'difference')},"
            f" {count(result.rejects, 'reject')}"
            + (f", {count(result.not_carried, 'row')} not yet carried" if result.not_carried else "")
        )
    return f"schema upgraded to {one_line(result[-1])}" if result else "the schema is current"
