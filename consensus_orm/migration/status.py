"""The status: where a migration stands, what keeps the next gate shut, and the exact next command."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Table, func, select

from consensus_orm.databases import state
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import (
    backfill_progress,
    certificates,
    changes,
    control,
    dependencies,
    guards,
    images,
    mismatches,
    outboxes,
    rejects,
)
from consensus_orm.ledgers.control import Control
from consensus_orm.ledgers.dependencies import DependencyEntry
from consensus_orm.ledgers.outboxes import OutboxStatus
from consensus_orm.migration import demands, gates
from consensus_orm.migration.gates import Obstacle
from consensus_orm.phase import Phase, Side
from consensus_orm.times import when
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["CertificateStatus", "MigrationStatus", "PairStatus", "collect"]


class PairStatus(BaseModel):
    """The rows of one pair."""

    model_config = ConfigDict(frozen=True)

    name: str
    legacy_table: str
    legacy_rows: int | None
    """None where the table does not exist."""
    normalized_rows: int | None
    """None where one of the tables does not exist."""
    backfilled: int
    backfill_finished: bool


class CertificateStatus(BaseModel):
    """The newest certificate."""

    model_config = ConfigDict(frozen=True)

    id: int
    at: datetime
    build: str
    compared: int
    differences: int
    this_phase: bool
    """Whether it was made in the phase the database is in."""


class MigrationStatus(BaseModel):
    """Everything there is to know before the next step."""

    model_config = ConfigDict(frozen=True)

    phase: Phase
    since: datetime | None
    """When the phase began, UTC; None for a database that was never upgraded."""
    prepared: bool
    """Whether the control tables exist; `upgrade` makes them."""
    writes: list[Side]
    reads: Side
    pairs: list[PairStatus]
    parents: dict[str, int]
    other_tables: dict[str, int]
    """Rows of the tables of the application that no move has."""
    certificate: CertificateStatus | None
    mismatches: int
    rejects: int
    foreign_writes: int
    """Writes of programs that know only one side, and that are not adopted yet."""
    guards: list[str]
    """What is wrong with the triggers and tables that guard the phase; empty where all are as recorded."""
    undecided: int
    """Rows that such a program changed or deleted on the side that is not read: they wait for a choice."""
    dependencies: list[DependencyEntry]
    """What others have made upon the legacy tables, and who still reads those that are frozen."""
    reads_counted: bool
    """Whether the database counts reads, so that it is known whether others read the frozen tables; SQLite does not."""
    images: int
    """Rows that were kept before they were overwritten or deleted, and that were not put back."""
    soak_left: timedelta
    control: Control
    """What an operator has told the migration: pause, throttle, hold."""
    outboxes: list[OutboxStatus] = []
    """How far each external store is behind that is mirrored now."""
    clock_set_back: bool
    """Whether the phase or its certificate has a date in the future: it counts from now, or not at all."""
    rewrite: str | None = None
    """What an upgrade will do to tables that another program made; None where it leaves all of them alone."""
    gate: list[str]
    """What keeps the gate to the next phase shut; empty where it is open."""
    next_command: str


def collect(
    uow: UnitOfWork,
    initial: Phase,
    rewrite: str | None = None,
    *,
    outdated: bool = False,
    others: Sequence[Table] = (),
) -> MigrationStatus:
    """Read everything within one snapshot.

    Args:
        uow: A read-only unit of work.
        initial: The phase in which a database begins that was never upgraded.
        rewrite: What an upgrade will do to tables that another program made.
        outdated: Whether the control tables are those of an earlier release, which lack what was added since.
        others: Tables of the application that no move has.
    """
    phase = uow.phase if uow.prepared else initial
    current = uow.prepared and not outdated
    there = uow.catalog.tables(uow)
    flaws = guards.look(uow) if current else []
    if not uow.prepared and state.TABLE in there:
        flaws = [
            guards.Flaw(f"{state.TABLE} is empty: a copy is not finished, or a program deleted its row", guards.RESTORE)
        ]
    # At CONTRACT there is no gate any more, but the phase still has guards.
    obstacles = [Obstacle(flaw.text, flaw.command) for flaw in flaws]
    if outdated:
        obstacles = [Obstacle("the schema is that of an earlier release", _upgrade(rewrite))]
    elif uow.prepared and phase.next is not None:
        obstacles = gates.obstacles(uow, flaws)
    since, step = state.get(uow, "since", "step") or (None, None)
    return MigrationStatus(
        phase=phase,
        since=None if since is None else when(since),
        prepared=uow.prepared,
        writes=[*[Side.LEGACY] * phase.writes_legacy, *[Side.NORMALIZED] * phase.writes_normalized],
        reads=phase.truth,
        pairs=[_pair(uow, pair, phase, there) for pair in uow.statements.mapping],
        parents={
            p.table.name: _count(uow, p.table.name, uow.statements.parents[p.table.name].all_rows, there) or 0
            for p in uow.statements.mapping.parents
        },
        other_tables={
            table.name: int(uow._rows(select(func.count()).select_from(table))[0][0])
            for table in others
            if table.name.lower() in there
        },
        certificate=_certificate(uow) if current and "consensus_orm_certificates" in there else None,
        mismatches=mismatches.count_open(uow) if uow.prepared else 0,
        rejects=rejects.count_open(uow) if uow.prepared else 0,
        guards=[flaw.text for flaw in flaws],
        foreign_writes=changes.count(uow) if uow.prepared and phase.compares else 0,
        undecided=changes.undecided(uow) if current and phase.compares else 0,
        dependencies=dependencies.found(uow),
        reads_counted=uow.catalog.counts_reads,
        images=images.count(uow) if current and "consensus_orm_images" in there else 0,
        soak_left=demands.soak_left(uow) if uow.prepared else timedelta(0),
        rewrite=rewrite,
        control=control.read(uow) if current and "consensus_orm_control" in there else control.FREE,
        outboxes=outboxes.look(uow) if current else [],
        clock_set_back=current and demands.clock_set_back(uow),
        gate=[obstacle.text for obstacle in obstacles] if phase.next else [],
        next_command=_next_command(phase, step, obstacles, flaws) if uow.prepared or flaws else _upgrade(rewrite),
    )


def _upgrade(rewrite: str | None) -> str:
    return "consensus-orm upgrade" + ("" if rewrite is None else " --yes")


def _next_command(phase: Phase, step: str | None, obstacles: list[Obstacle], flaws: list[guards.Flaw]) -> str:
    if not all(flaw.command for flaw in flaws):
        return ""  # every step is refused until someone has mended that by hand
    if step == state.EXPANDING:
        return "consensus-orm rollback normalized"
    if step == state.EMPTYING:
        return "consensus-orm advance contract"
    for obstacle in obstacles:
        if obstacle.command:
            return obstacle.command
    return "" if obstacles or phase.next is None else f"consensus-orm advance {phase.next.name.lower()}"


def _pair(uow: UnitOfWork, pair: Move, phase: Phase, there: set[str]) -> PairStatus:
    sql = uow.statements[pair]
    known = not uow.prepared or "consensus_orm_backfill" in there
    progress = backfill_progress.of(uow, pair) if known else backfill_progress.NOT_BEGUN
    legacy = None
    if phase.freezes_legacy and pair.legacy_name.lower() in map(str.lower, there):
        legacy = uow.catalog.count_unnoticed(uow, pair.legacy_name)
    elif phase.has_legacy:
        legacy = _count(uow, pair.legacy_name, sql.all_rows(Side.LEGACY), there)
    return PairStatus(
        name=pair.name,
        legacy_table=pair.legacy_name,
        legacy_rows=legacy,
        normalized_rows=_count(uow, pair.table.name, sql.all_rows(Side.NORMALIZED), there),
        backfilled=progress.rows,
        backfill_finished=uow.prepared and progress.finished,
    )


def _count(uow: UnitOfWork, table: str, sql: str, there: set[str]) -> int | None:
    """What a query counts; None where its table does not exist."""
    rows = uow._rows(sql) if table.lower() in there else []
    return rows[0][0] if rows else None


def _certificate(uow: UnitOfWork) -> CertificateStatus | None:
    newest = certificates.newest(uow)
    if newest is None:
        return None
    return CertificateStatus(
        id=newest.id,
        at=when(newest.at),
        build=newest.build,
        compared=newest.compared,
        differences=newest.differences,
        this_phase=newest.epoch == uow.epoch,
    )
