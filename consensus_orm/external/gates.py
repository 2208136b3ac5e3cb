"""The gates between the stages of an external store: what is missing, and the command that would help."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from consensus_orm.databases.base import Transaction
from consensus_orm.external import findings, state
from consensus_orm.external.comparison import Certificate, newest_certificate
from consensus_orm.external.sink import Capabilities
from consensus_orm.external.stage import Stage
from consensus_orm.formats import count
from consensus_orm.ledgers import outboxes
from consensus_orm.times import credible, when

__all__ = ["Obstacle", "obstacles"]


class Obstacle(NamedTuple):
    """Something in the way of the next stage; `waiting` where only time is missing, which force may skip."""

    text: str
    waiting: bool = False


def obstacles(uow: Transaction, sink: str, capabilities: Capabilities) -> list[Obstacle]:
    """What is in the way of the next stage, as of one transaction."""
    found = state.get(uow, sink)
    match found.at:
        case Stage.IMPORT:
            return [*_of_import(uow, found)]
        case Stage.MIRROR:
            return [*_of_mirror(uow, found, capabilities)]
    return []


def _of_import(uow: Transaction, found: state.State) -> Iterator[Obstacle]:
    if found.imported_at is None or found.imported_at < found.since:
        yield Obstacle("no import came to its end at this stage; run: consensus-orm external import")
    yield from _open_findings(uow, found.name)


def _open_findings(uow: Transaction, sink: str) -> Iterator[Obstacle]:
    if number := findings.count_open(uow, sink):
        yield Obstacle(f"{count(number, 'finding is open', 'findings are open')}; see: consensus-orm external findings")


def _of_mirror(uow: Transaction, found: state.State, capabilities: Capabilities) -> Iterator[Obstacle]:
    sink, now = found.name, uow.now
    if found.exported_at is None:
        yield Obstacle("not all rows were put into the outbox; run: consensus-orm external export")
    yield from _open_findings(uow, sink)
    if not capabilities.provable:
        yield Obstacle(f"not provable: the store is declared without {' and '.join(capabilities.lacking)}")
    certificate = newest_certificate(uow, sink)
    if certificate is None or certificate.epoch != found.epoch:
        yield Obstacle("nothing was compared at this stage; run: consensus-orm external verify")
    else:
        yield from _of_certificate(uow, certificate)
    demanded = max(uow.settings.soak_mirror, timedelta(milliseconds=found.soak or 0))
    if not credible(found.since, now) or now - found.begun < demanded:
        yield Obstacle(f"the soak of {demanded} is not over", waiting=True)
    lag = outboxes.lag(uow, sink, int((now - demanded).timestamp() * 1000))
    limit = uow.settings.relay_lag_limit
    if lag.p99 is not None and timedelta(milliseconds=lag.p99) > limit:
        yield Obstacle(f"the p99 of the lag is {timedelta(milliseconds=lag.p99)}, and may be {limit}", waiting=True)
    oldest = outboxes.backlog(uow, sink).oldest  # what is not sent has no lag yet
    if oldest is not None and now - when(oldest) > limit:
        late = f"the oldest entry waits for {now - when(oldest)}, and may for {limit}"
        yield Obstacle(f"{late}; run: consensus-orm relay run", waiting=True)


def _of_certificate(uow: Transaction, certificate: Certificate) -> Iterator[Obstacle]:
    again = "run: consensus-orm external verify"
    if not certificate.provable:
        yield Obstacle(f"the newest comparison could not prove anything; {again}")
    if certificate.differences:
        yield Obstacle(f"the newest comparison found {count(certificate.differences, 'difference')}; {again}")
    if certificate.mapping != uow.statements.fingerprint:
        yield Obstacle(f"the declaration of the moves has changed since the newest comparison; {again}")
    if findings.newest(uow, certificate.sink) > certificate.last_finding:
        yield Obstacle(f"there was a finding since the newest comparison; {again}")
    age = uow.now - when(certificate.at)
    if not credible(certificate.at, uow.now) or age > uow.settings.certificate_max_age:
        yield Obstacle(f"the newest comparison is {age} old; {again}", waiting=True)
    if waiting := outboxes.backlog(uow, certificate.sink, up_to=certificate.sequence).entries:
        late = count(waiting, "entry older than the comparison waits", "entries older than the comparison wait")
        yield Obstacle(f"{late}; run: consensus-orm relay run")
