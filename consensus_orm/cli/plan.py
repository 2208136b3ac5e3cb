"""The command plan, which shows the steps ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from consensus_orm.cli.app import App, PhaseType, app_command, json_option, main
from consensus_orm.cli.output import say, show_json, table
from consensus_orm.formats import duration
from consensus_orm.phase import Phase, Side

if TYPE_CHECKING:
    from consensus_orm.consensus.store import ConsensusStore
    from consensus_orm.rehearsal import Evidence

__all__: list[str] = []


@dataclass(frozen=True)
class _Ahead:
    """A step ahead.

    Attributes:
        phase: The phase in which it is taken.
        action: Its command.
        what: What it does.
        seconds: What it will take, by the rehearsal and the rows there are now; None where it was not rehearsed.
        soak: How long the phase lasts at least before it.
        sql: The statements that do most of its work, where they are known before.
    """

    phase: Phase
    action: str
    what: str
    seconds: float | None
    soak: timedelta | None
    sql: tuple[str, ...] = ()


@main.command(examples=["plan", "plan --to cutover --sql"])
@click.option("--to", type=PhaseType(), default=Phase.CONTRACT, help="The phase to reach; contract by default.")
@click.option(
    "--sql",
    "with_sql",
    is_flag=True,
    help="Print the statements that carry and compare rows, install triggers, and rename tables, too.",
)
@json_option
@app_command
def plan(app: App, to: Phase, with_sql: bool, as_json: bool) -> None:
    """Show the steps ahead, what each does, and how long it took in the rehearsal.

    Times are those of the last rehearsal of this database, scaled to the rows there are now. Writes nothing.
    """
    from consensus_orm.rehearsal import find, mention

    with app.store() as store:
        evidence, now = find(store._units), store.settings.clock()
        steps = list(_steps(store, to, evidence if evidence is not None and evidence.holds else None))
    if as_json:
        show_json([step if with_sql else {**vars(step), "sql": ()} for step in steps])
        return
    rows = [
        (
            step.phase.name,
            step.action,
            None if step.seconds is None else duration(step.seconds),
            duration(step.soak) if step.soak else None,
            step.what,
        )
        for step in steps
    ]
    table(("in phase", "command", "takes", "soak before", "what it does"), rows) if rows else say("nothing is ahead")
    for step in steps if with_sql else ():
        for statement in step.sql:
            say()
            say(f"-- {step.action} in {step.phase.name}")
            say(f"{statement};")
    say(f"rehearsal: {app.spelled(mention(evidence, now))}")


def _steps(store: ConsensusStore, to: Phase, evidence: Evidence | None) -> Iterator[_Ahead]:
    """The steps that `migrate` will take, in order."""
    phase, soak = store.migration.phase, store.migration.status().soak_left
    if store._units.identity.needs_upgrade:
        yield _Ahead(phase, "upgrade", "creates the control and normalized tables", None, None)
    while phase < to and (following := phase.next) is not None:
        if phase.compares and phase.truth is Side.LEGACY:
            yield _step(store, evidence, phase, "backfill", "carries the rows that were there before the dual write")
        if phase.writes_normalized:
            yield _step(store, evidence, phase, "verify", "compares all rows, and writes a certificate")
        yield _step(store, evidence, phase, f"advance {following.name.lower()}", _EFFECTS[following], soak=soak)
        phase, soak = following, _soak(store, following)


_EFFECTS = {
    Phase.DUAL_WRITE: "from now on, every write goes to both sides",
    Phase.CUTOVER: "reads move to the normalized side",
    Phase.NORMALIZED: "writes to the legacy tables end; they are frozen",
    Phase.CONTRACT: "makes a verified backup, then drops the legacy tables",
}
"""What a step to a phase does."""


def _soak(store: ConsensusStore, phase: Phase) -> timedelta:
    from consensus_orm.migration.demands import Demands

    return Demands.of(store.settings, phase).soak


def _step(
    store: ConsensusStore,
    evidence: Evidence | None,
    phase: Phase,
    action: str,
    what: str,
    soak: timedelta | None = None,
) -> _Ahead:
    name = action.partition(" ")[0]
    seconds = None
    if evidence is not None:
        report = evidence.report
        factor = evidence.rows_now / report.rows if report.rows and name in ("backfill", "verify") else 1.0
        taken = [s.seconds for s in report.steps if s.action == name and s.before is phase and s.after >= phase]
        seconds = factor * taken[0] if taken else None
    return _Ahead(phase, action, what, seconds, soak, tuple(_sql(store, action)))


def _sql(store: ConsensusStore, action: str) -> Iterator[str]:
    statements = store._units.statements
    name, _, to = action.partition(" ")
    if to:
        yield from _sql_of_flip(store, Phase.parse(to))
    for pair in statements.moves:
        sql = statements[pair]
        if name == "backfill":
            yield from map(str, (sql.carry_new,) if sql.carry_new else sql.backfill)
        elif name == "verify":
            yield from (str(sql.compare_range(side, but_recorded=False)) for side in Side)


def _sql_of_flip(store: ConsensusStore, to: Phase) -> Iterator[str]:
    from consensus_orm.databases.guard_record import triggers
    from consensus_orm.databases.opening import catalog
    from consensus_orm.databases.saved_rows import dropped
    from consensus_orm.statements.rendering import quoted

    statements = store._units.statements
    for trigger in triggers(catalog(store.engine.dialect.name), to, statements):
        yield from trigger.statements
    for pair in () if to.has_legacy else statements.moves.of_tables(Side.LEGACY):
        yield f"ALTER TABLE {quoted(pair.legacy_name)} RENAME TO {quoted(dropped(pair.legacy_name))}"
