"""The commands that take a step of the migration: upgrade, backfill, verify, advance, rollback, migrate, reconcile."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from consensus_orm.cli.app import (
    App,
    Interrupted,
    PhaseType,
    Refused,
    app_command,
    create_option,
    json_option,
    main,
    phase_argument,
)
from consensus_orm.cli.output import Bars, exit_with, key, listed, one_line, plain, say, show_json
from consensus_orm.cli.rehearsal import mention
from consensus_orm.consensus.programs import PROTECTED, UNPROTECTED
from consensus_orm.consensus.store import ConsensusStore
from consensus_orm.errors import GateClosedError
from consensus_orm.migration import Migration
from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.migration.planning import Choice
from consensus_orm.migration.reconcile import ReconcileReport
from consensus_orm.migration.steps import Step
from consensus_orm.migration.verify import VerifyReport
from consensus_orm.phase import Phase, Side
from consensus_orm.rehearsal import find
from consensus_orm.schema.application import Rewrite

__all__: list[str] = []

LISTED = 20
"""Rows listed before the rest is only counted."""

reason_option = click.option("--reason", metavar="TEXT", help="Why, for the audit.")


@main.command()
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
    """
    with app.store() as store:
        rewrite = store.pending_rewrite()
        yes = yes or (rewrite is not None and not as_json and _is_confirmed(rewrite))
        with Bars("upgrade", quiet=as_json) as bars:
            applied = store.migration.upgrade(bars.rows, rewrite=yes, protect=False if no_protect else None)
        phase = store.migration.phase
        version = None if store.path is None else store.maintenance.stats().user_version
        backup = None if rewrite is None else _newest_backup(store)
        is_told = version is not None and store.application.protection is not None
    if as_json:
        show_json({"applied": applied, "phase": phase, "user_version": version, "backup": backup})
        return
    say(f"{_told(applied)}; the phase is {phase.name}")
    if backup is not None:
        say(f"backup: {backup}")
    if is_told and version is not None:
        say(f"user_version: {_protection(version)}")


def _is_confirmed(rewrite: Rewrite) -> bool:
    """Ask on a terminal whether tables may be recreated; elsewhere the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    click.echo(f"{one_line(rewrite)}.", err=True)
    return click.confirm("Go on?", default=False, err=True)


def _newest_backup(store: ConsensusStore) -> str | None:
    kept = [entry.detail.get("backup") for entry in store.migration.history() if entry.action == "backup"]
    return kept[-1] if kept else None


def _protection(version: int) -> str:
    if version == PROTECTED:
        return f"{version}, which the dual-write and the final build refuse"
    if version in UNPROTECTED:
        return f"{version}, left as it is; a final build that opens the file may drop its legacy tables"
    return f"{version}, which is another application's, and stays"


@main.command()
@json_option
@app_command
def backfill(app: App, as_json: bool) -> None:
    """Carry the existing rows; continues where it stopped."""
    with app.store() as store, Bars("backfill", quiet=as_json) as bars:
        report = store.migration.backfill(bars.rows)
        open_rejects = len(store.migration.rejects())
    if as_json:
        show_json({**plain(report), "open_rejects": open_rejects})
    else:
        say(f"backfill: {_told(report)}")
        if open_rejects:
            say(app.spelled(f"{_count(open_rejects, 'reject')} open; see: consensus-orm rejects"))
    exit_with(open_rejects)


@main.command()
@json_option
@app_command
def verify(app: App, as_json: bool) -> None:
    """Compare all rows of both sides, and write a certificate."""
    with app.store() as store, Bars("verify", quiet=as_json) as bars:
        report = store.migration.verify(bars.rows)
    if as_json:
        show_json({**plain(report), "clean": report.clean})
    else:
        say(f"verify: {_told(report)}")
        _list_differences(app, report)
    exit_with(not report.clean or report.rejects)


def _list_differences(app: App, report: VerifyReport) -> None:
    if report.differences:
        rows = [(d.pair, key(d.key), d.kind, ", ".join(d.columns)) for d in report.differences]
        listed(("pair", "key", "kind", "columns"), rows, LISTED)
        say(app.spelled("see: consensus-orm mismatches; repair: consensus-orm reconcile"))
    for counted in report.missed:
        say(
            f"{counted.table}: {_count(counted.rows, 'row')}, {counted.looked_at:,} compared,"
            f" {counted.keyless:,} without a usable key, {counted.missed:,} not accounted for; no gate opens on this"
        )


@main.command()
@phase_argument
@reason_option
@click.option("--force", is_flag=True, help="Skip waiting, never a gate behind which rows would be lost.")
@click.option(
    "--keep-tables",
    is_flag=True,
    help="Make no backup before CONTRACT, and keep the rows in the tables that are put away; needs a reason.",
)
@json_option
@app_command
def advance(app: App, phase: Phase | None, reason: str | None, force: bool, keep_tables: bool, as_json: bool) -> None:
    """Go to the next phase, or to PHASE; each gate must be open."""
    rehearsed, mentioned = _rehearsal(app)

    def work(migration: Migration, bars: Bars) -> dict[str, Any]:
        target = phase or migration.phase.next or migration.phase
        with _goal(target, typed=phase):
            migration.advance(target, reason=reason, force=force, keep_tables=keep_tables, progress=bars.rows)
        return {"rehearsed": rehearsed}

    _move(app, as_json, "advance", work, lambda: {"rehearsed": rehearsed})
    if not as_json:
        say(mentioned)


def _rehearsal(app: App) -> tuple[bool, str]:
    """Whether this database was rehearsed with this mapping, also in words."""
    with app.store() as store:
        evidence, now = find(store._units), store.settings.clock()
    return evidence is not None and evidence.holds, f"rehearsal: {app.spelled(mention(evidence, now))}"


@main.command()
@phase_argument
@reason_option
@json_option
@app_command
def rollback(app: App, phase: Phase | None, reason: str | None, as_json: bool) -> None:
    """Go back one phase, or to PHASE; nothing is lost on the way."""

    def work(migration: Migration, bars: Bars) -> dict[str, Any]:
        target = phase or migration.phase.previous
        with _goal(target, typed=phase):
            migration.rollback(target, reason=reason, progress=bars.rows)
        return {}

    _move(app, as_json, "rollback", work)


@main.group()
def contract() -> None:
    """What CONTRACT has put away."""


@contract.command()
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


@main.command()
@click.option("--to", type=PhaseType(), default=Phase.CONTRACT, help="The phase to reach; contract by default.")
@click.option("--no-soak", is_flag=True, help="Skip the soak times: for a database that is not in use.")
@reason_option
@json_option
@app_command
def migrate(app: App, to: Phase, no_soak: bool, reason: str | None, as_json: bool) -> None:
    """Take every step, up to the first gate that refuses.

    Upgrade, advance, backfill, verify, and so on up to a phase. Nothing is repaired: differences shut a gate.
    """
    taken: list[Step] = []

    def work(migration: Migration, bars: Bars) -> dict[str, Any]:
        def tell(step: Step) -> None:
            taken.append(step)
            bars.clear()
            if not as_json:
                say(f"{step.phase.name:<10}  {step.action:<8}  {_told(step.result)}  ({step.seconds:.2f} s)")

        migration.migrate(to, soak=not no_soak, reason=reason, progress=bars.rows, tell=tell)
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
        before = store.migration.phase
        try:
            facts = work(store.migration, bars)
        except GateClosedError as error:
            refused = [app.spelled(reason) for reason in error.reasons]
            raise Refused(error, **so_far(), phase=store.migration.phase, refused=refused) from error
        after = store.migration.phase
    if as_json:
        show_json({**facts, "phase": after, "refused": []})
    else:
        say(f"the phase is {after.name}" + ("" if after is not before else ", as before"))


@main.command()
@click.option("--adopt", is_flag=True, help="Take over what another program changed or deleted on the unread side.")
@click.option("--repair", is_flag=True, help="Restore it instead.")
@click.option(
    "--rebuild", type=click.Choice([side.value for side in Side]), help="Recreate a side after tables were dropped."
)
@click.option("--dry-run", is_flag=True, help="Only list what would be done.")
@json_option
@app_command
def reconcile(app: App, adopt: bool, repair: bool, rebuild: str | None, dry_run: bool, as_json: bool) -> None:
    """Make both sides equal.

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
    with app.store() as store, Bars("reconcile", quiet=as_json) as bars:
        report = store.migration.reconcile(foreign=choice, rebuild=rebuild, dry_run=dry_run, progress=bars.rows)
    if as_json:
        show_json(report)
    else:
        _tell_reconciled(app, report)
    exit_with(report.rejects or report.undecided or (dry_run and report.actions))


def _tell_reconciled(app: App, report: ReconcileReport) -> None:
    would = "would be " if report.dry_run else ""
    if (done := report.rebuilt) is not None:
        say(
            f"the {done.side} side was made again: {_count(done.carried, 'row')} carried to it,"
            f" {_count(done.renumbered, 'row')} written since have new ids, {_count(done.replaced, 'row')} replaced"
        )
    for table_ in report.adopted_tables:
        say(
            f"{table_.table}, which another program made: {_count(table_.rows, 'row')} carried,"
            f" {table_.renumbered:,} of them under new ids, {table_.known:,} known before,"
            f" {_count(table_.rejects, 'reject')}"
        )
    say(
        f"{_count(report.adopted, 'row')} of other programs {would}settled,"
        f" {_count(len(report.repairs), 'row')} {would}repaired, {_count(report.rejects, 'new reject')}"
    )
    actions = [(a.pair, key(a.key), a.what, a.side, a.why) for a in report.actions]
    listed(("pair", "key", "action", "side", "why"), actions, LISTED)
    if report.images:
        say(app.spelled(f"{_count(report.images, 'row')} kept before that; see: consensus-orm images"))
    if report.undecided:
        say(f"{_count(len(report.undecided), 'row')} of other programs undecided:")
        listed(("pair", "key", "side", "did"), [(u.pair, key(u.key), u.side, u.did) for u in report.undecided], LISTED)
        say(app.spelled("take over: consensus-orm reconcile --adopt; put back: consensus-orm reconcile --repair"))


def _told(result: list[str] | BackfillReport | VerifyReport | Phase) -> str:
    """The result of a step in words."""
    if isinstance(result, Phase):
        return f"reached {result.name}"
    if isinstance(result, BackfillReport):
        return (
            f"{_count(result.rows, 'row')} carried, {_count(result.adopted, 'write')} of other programs adopted,"
            f" {_count(result.rejects, 'new reject')}"
        )
    if isinstance(result, VerifyReport):
        return (
            f"{_count(result.compared, 'row')} compared, {result.legacy_rows:,} legacy and"
            f" {result.normalized_rows:,} normalized, {_count(len(result.differences), 'difference')},"
            f" {_count(result.rejects, 'reject')}"
        )
    return f"schema upgraded to {one_line(result[-1])}" if result else "the schema is current"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
