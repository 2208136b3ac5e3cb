"""The health of a database, for load balancers and service managers: a few cheap questions, none of them repeated."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from consensus_orm import errors
from consensus_orm.databases.engine import pool_of
from consensus_orm.databases.sqlite.statistics import disk_use
from consensus_orm.databases.statistics import PoolUse
from consensus_orm.formats import count
from consensus_orm.ledgers import certificates, outboxes
from consensus_orm.ledgers.outboxes import OutboxStatus
from consensus_orm.phase import Phase
from consensus_orm.times import when
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory

__all__ = ["Health", "look"]

UPGRADE = "run: consensus-orm upgrade"


class Health(BaseModel):
    """Whether a database can be served, and what to know about it.

    Attributes:
        database: Its name, without password.
        reachable: Whether it answered.
        schema_current: Whether its schema is that of this release.
        phase: The phase it is in; None where it did not answer.
        pool: The use of the connections of this process; None where the database did not answer.
        log_bytes: The size of SQLite's write-ahead log; None on a server.
        certificate_at: When both sides were last verified, UTC; None where they never were.
        outboxes: How far each external store is behind that is mirrored now, without the lag of what was sent.
        problems: Why it is not healthy, each with what to do.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    database: str
    reachable: bool
    schema_current: bool = False
    phase: Phase | None = None
    pool: PoolUse | None = None
    log_bytes: int | None = None
    certificate_at: datetime | None = None
    outboxes: tuple[OutboxStatus, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing has to be done."""
        return not self.problems

    @classmethod
    def unreachable(cls, database: str, error: errors.ConsensusError, **facts: Any) -> Health:
        """The health of a database that did not answer."""
        return cls(database=database, reachable=False, problems=(str(error),), **facts)


def look(units: UnitOfWorkFactory[Any]) -> Health:
    """Look at a database once, without a retry and without counting rows; writes nothing."""
    is_file = units.engine.dialect.name == "sqlite"
    facts: dict[str, Any] = {"log_bytes": disk_use(units.path).wal if is_file else None}
    try:
        identity = units.identity = units.inspect()
        if units.path is not None and not units.path.exists():
            raise errors.StorageError(f"{units.path} does not exist", hint="check the URL", path=units.path)
        with units.on_primary(read_only=True, readable=True) as uow:
            use = facts["pool"] = pool_of(units.engine).use()  # this connection is not counted
            prepared = bool(uow.prepared)
            current = prepared and not identity.needs_upgrade
            newest = certificates.newest(uow) if current else None
            behind = outboxes.look(uow, lag=False) if current else []
            phase = uow.phase if prepared else units.initial_phase
    except errors.ConsensusError as error:
        return Health.unreachable(units.name, error, **facts)
    problems = []
    if not current:
        which = "is that of an earlier release" if prepared else "was never upgraded"
        problems.append(f"the schema {which}; {UPGRADE}")
    if use.waiting:
        problems.append(
            f"{count(use.waiting, 'thread waits', 'threads wait')} for one of {use.size} connections;"
            " raise CONSENSUS_ORM_POOL_SIZE"
        )
    problems += [f"{each.told}; run: consensus-orm relay run" for each in behind if each.late]
    return Health(
        database=units.name,
        reachable=True,
        schema_current=current,
        phase=phase,
        certificate_at=None if newest is None else when(newest.at),
        outboxes=tuple(behind),
        problems=tuple(problems),
        **facts,
    )
