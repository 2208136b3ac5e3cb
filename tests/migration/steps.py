"""The steps that tests of the migration take, and what they judge by."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import (
    GateClosedError,
)
from consensus_orm.settings import Settings
from tests.support import oracle
from tests.support.databases import Database

BASE = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=3, chunk_pause=0, synchronous="OFF")
BOTH = (Phase.DUAL_WRITE, Phase.CUTOVER)
NAMES = [phase.name for phase in Phase]
CARRIED = ("consensus_artifacts", "consensus_synthesis")


class Clock:
    """A clock that tests set; each look at it costs a millisecond."""

    def __init__(self) -> None:
        self.now = datetime(2025, 12, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now

    def pass_(self, **duration: float) -> None:
        self.now += timedelta(**duration)


Open = Callable[..., ConsensusStore]


def forward(store: ConsensusStore, to: Phase) -> None:
    """Step by step to a phase, with all that the gates want."""
    migration = store.migration
    while (now := migration.phase) < to:
        if now.compares:
            migration.backfill()
            migration.reconcile()
        if now.writes_normalized:
            assert migration.verify().clean
        migration.advance(soak=False)


def ready(store: ConsensusStore, phase: Phase) -> None:
    """In a phase, with the gate to the next one open."""
    forward(store, phase)
    if phase.compares:
        store.migration.backfill()
    assert store.migration.verify().clean
    assert store.migration.status().gate == []


def write(store: ConsensusStore, label: str) -> int:
    """An artifact of its own run, a synthesis, and another artifact that is deleted again."""
    with store.unit_of_work() as uow:
        gone = uow.artifacts.add(spec_id=f"gone {label}", stage="s", agent_name="a", content_json="x")
        kept = uow.artifacts.add(spec_id="kept", stage="s", agent_name=label, content_json="x", run_id=label)
        uow.syntheses.add(spec_id="kept", stage="s", output_markdown=label, status="ok", run_id=label)
        assert uow.artifacts.delete(spec_id=f"gone {label}") == 1
    assert kept.id == gone.id + 1
    return kept.id


def image(database: Database) -> tuple[Any, ...]:
    """All there is to say of the legacy tables, less our own triggers."""
    definitions, found, sequences = database.image(*oracle.LEGACY)
    assert isinstance(definitions, list)
    return sorted(e for e in definitions if not e[1].startswith("consensus_orm_")), found, sequences


def refused(store: ConsensusStore, because: str, **arguments: Any) -> None:
    """The gate is shut for one reason, and stays so by force where that is no mere wait."""
    before = store.migration.phase
    with pytest.raises(GateClosedError) as shut:
        store.migration.advance(**arguments)
    assert any(because in reason for reason in shut.value.reasons), shut.value.reasons
    assert store.migration.phase is before


FORCED: dict[str, Any] = {"force": True, "reason": "in a hurry"}


def _raise(*_: object) -> None:
    raise RuntimeError("enough")
