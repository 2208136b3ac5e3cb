"""The maintenance of a server: statistics, vacuum and its schedule."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from consensus_orm import ConsensusStore
from consensus_orm.testing import artifact_values
from tests.support.databases import behind

pytestmark = pytest.mark.postgresql


def test_stats_say_what_is_in_force_and_what_it_takes(consensus_store: ConsensusStore) -> None:
    """Sizes, rows, dead rows, settings and the pool are read, and nothing is written."""
    with consensus_store.unit_of_work() as uow:
        uow.artifacts.add_many([artifact_values()] * 20)
    before = behind(consensus_store).everything()
    consensus_store.maintenance.vacuum()  # ANALYZE counts the rows

    found: Any = consensus_store.maintenance.stats()

    assert behind(consensus_store).everything() == before
    assert found.database == consensus_store.engine.url.database
    assert (found.encoding, found.isolation, found.pool.size) == ("UTF8", "read_committed", 10)
    assert found.disk.total > sum(table.bytes for table in found.tables.values()) > 0
    assert found.tables["agent_outputs"].rows == 20
    assert "consensus_orm_state" in found.tables
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize("full", [False, True])
def test_vacuum_gets_rid_of_dead_rows(consensus_store: ConsensusStore, full: bool) -> None:
    """Dead rows are gone afterwards; in full their room is given back; every row that lives is kept."""
    with consensus_store.unit_of_work() as uow:
        uow.artifacts.add_many([artifact_values(spec_id="SPEC-GONE", content_json="x" * 5000)] * 200)
        kept = uow.artifacts.add(**artifact_values())
    with consensus_store.unit_of_work() as uow:
        uow.artifacts.delete(spec_id="SPEC-GONE")
    wait_for_dead_rows(consensus_store, 200)
    told: list[tuple[int, int]] = []

    report = consensus_store.maintenance.vacuum(full=full, progress=lambda done, total: told.append((done, total)))

    assert told[-1] == (report.steps, report.steps)
    assert not full or report.after.total < report.before.total
    found: Any = consensus_store.maintenance.stats()
    assert found.tables["agent_outputs"].dead == 0
    with consensus_store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list() == [kept]


def wait_for_dead_rows(store: ConsensusStore, rows: int) -> None:
    """Wait until the server has counted the rows that a session deleted.

    A session reports its counts up to 10 s later (PGSTAT_IDLE_INTERVAL); what it reports after a vacuum counts as dead
    although the vacuum removed it.
    """
    deadline = time.monotonic() + 30
    while True:
        found: Any = store.maintenance.stats()
        if found.tables["agent_outputs"].dead >= rows:
            return
        assert time.monotonic() < deadline, f"the server counts {found.tables['agent_outputs'].dead} dead rows"
        time.sleep(0.05)


def test_a_vacuum_can_be_scheduled(consensus_store: ConsensusStore) -> None:
    """The scheduler vacuums a server as it vacuums a file, and ends with its store."""
    scheduler = consensus_store.maintenance.schedule_vacuum(timedelta(milliseconds=20))
    deadline = time.monotonic() + 30
    while scheduler.last is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert scheduler.last is not None
    assert scheduler.last.steps > 5
    assert scheduler.stop()
