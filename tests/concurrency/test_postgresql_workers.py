"""Several workers, processes and servers carry the rows of one backfill; psycopg judges what became of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import ConfigurationError
from tests.concurrency.databases import SETTINGS, assert_sides_agree, assert_sound, connect, made, query
from tests.concurrency.processes import start
from tests.support import servers
from tests.support.servers import Server

pytestmark = pytest.mark.long

ROWS, RUNS = 6000, 50
MANY = (
    "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id, created_at)"
    f" SELECT 'S', 'plan', 'a', 'x' || g, 'r' || g % {RUNS}, '2026-01-01 00:00:' || 10 + g % 50"
    f" FROM generate_series(1, {ROWS}) AS g"
)
SYNTHESES = (
    "INSERT INTO consensus_synthesis (spec_id, stage, output_markdown, status, run_id, created_at)"
    f" SELECT 'S', 'plan', 'm' || g, CASE WHEN g % 3 = 0 THEN 'failed' ELSE 'ok' END, 'r' || g % {RUNS},"
    f" '2026-01-01 00:01:' || 10 + g % 50 FROM generate_series(1, {ROWS // 10}) AS g"
)
"""All ranges have rows of the same runs, so that workers meet at their parents."""


def many(url: str) -> None:
    made(url, Phase.EXPAND)
    with connect(url) as connection:
        connection.execute(MANY.encode())
        connection.execute(SYNTHESES)
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        store.migration.advance()


@pytest.fixture
def url() -> Iterator[str]:
    """A database in DUAL_WRITE with rows that are still to be carried."""
    with servers.database(servers.template("many_to_carry", many)) as url:
        yield url


def carry(pipe: Connection, url: str, workers: int) -> None:
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        pipe.send("ready")
        pipe.recv()
        pipe.send(store.migration.backfill(workers=workers))


def has_carried(url: str, least: float) -> bool:
    return bool(query(url, "SELECT count(*) FROM agent_outputs")[0][0] > least)


def assert_carried(url: str) -> None:
    assert_sides_agree(url)
    assert_sound(url)
    assert query(url, "SELECT count(*) FROM consensus_orm_ranges") == [(0,)]
    of_table = query(url, "SELECT pair, rows, finished FROM consensus_orm_backfill ORDER BY pair")
    counted = [query(url, f"SELECT count(*) FROM {name}")[0][0] for name in ("agent_outputs", "consensus_syntheses")]
    assert [(rows, finished) for _, rows, finished in of_table] == [(rows, True) for rows in counted]


@pytest.mark.timeout(300)
def test_what_a_killed_worker_leaves_others_carry(url: str) -> None:
    """Four processes, of which two are killed in the midst of it: no row is lost, none is carried twice."""
    children = [start(carry, url, 1) for _ in range(4)]
    for child in children:
        child.hear(60)
    for child in children:
        child.tell()
    for victim, share in zip(children[:2], (0.1, 0.3), strict=True):
        servers.until(partial(has_carried, url, ROWS * share), "carry", "they")
        assert query(url, "SELECT count(*) FROM consensus_orm_backfill WHERE finished") == [(0,)]
        victim.kill()
        assert victim.was_killed
    reports = [child.hear(120) for child in children[2:]]
    assert [child.join() for child in children[2:]] == [0, 0]
    assert all(report.rows > 0 for report in reports)
    assert_carried(url)
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        assert store.migration.backfill(workers=2).rows == 0
        assert store.migration.backfill().rows == 0
        assert store.migration.verify().clean


def test_who_carries_alone_goes_on_where_workers_stopped(url: str) -> None:
    """And they where it stopped: both know the same checkpoint."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        for workers in (4, None, 2):
            told: list[object] = []

            def stop(progress: object, told: list[object] = told) -> None:
                told.append(progress)
                if len(told) > 5:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                store.migration.backfill(stop, workers=workers)
        assert 0 < query(url, "SELECT rows FROM consensus_orm_backfill WHERE pair = 'artifacts'")[0][0] < ROWS
        assert 0 < store.migration.backfill().rows < ROWS + ROWS // 10
        assert store.migration.verify().clean
    assert_carried(url)


def test_a_throttle_holds_for_all_workers_together(url: str) -> None:
    """Workers of two stores carry no more rows a second than were allowed; a pause stops them all."""
    with ConsensusStore.open(url, settings=SETTINGS) as store, ConsensusStore.open(url, settings=SETTINGS) as other:
        store.migration.throttle(400)
        children = [start(carry, url, 2) for _ in range(2)]
        for child in children:
            child.hear(60)
            child.tell()
        servers.until(lambda: query(url, "SELECT count(*) FROM agent_outputs")[0][0] > 0, "carry", "they")
        began, before = time.monotonic(), query(url, "SELECT count(*) FROM agent_outputs")[0][0]
        time.sleep(3)
        rows, seconds = query(url, "SELECT count(*) FROM agent_outputs")[0][0] - before, time.monotonic() - began
        assert 0 < rows <= 400 * (seconds + 1)
        other.migration.pause()
        time.sleep(1.5)
        paused = query(url, "SELECT count(*) FROM agent_outputs")
        time.sleep(1)
        assert query(url, "SELECT count(*) FROM agent_outputs") == paused
        store.migration.throttle(None)
        store.migration.resume()
        assert sum(child.hear(120).rows for child in children) > ROWS
    assert_carried(url)


# Replicas -------------------------------------------------------------------------------------------------


def test_a_step_waits_for_a_replica_that_is_behind() -> None:
    """With MAX_LAG a backfill stops while a replica replays nothing, and goes on once it does.

    A role that cannot see the lag is told so before anything is carried.
    """
    with Server() as primary, servers.replica_of(primary) as replica:
        url = primary.url()
        many(url)
        replica.catch_up()
        patient = SETTINGS.model_copy(update={"max_lag": timedelta(seconds=0.5)})
        with connect(url) as connection:
            connection.execute("CREATE ROLE operator LOGIN IN ROLE pg_read_all_data, pg_write_all_data")
            connection.execute("GRANT UPDATE ON consensus_orm_fence TO operator")
        blind = url.replace("postgres@", "operator@").replace("postgres:@", "operator@")
        with (
            ConsensusStore.open(blind, settings=patient) as store,
            pytest.raises(ConfigurationError, match="may not see how far the replicas are behind"),
        ):
            store.migration.backfill(workers=1)
        assert query(url, "SELECT count(*) FROM agent_outputs") == [(0,)]
        child = start(carry_patiently, url, patient)
        child.hear(60)
        with replica.replay_paused():
            child.tell()
            servers.until(lambda: not _grows(url), "stop", "the backfill")
            assert 0 < query(url, "SELECT count(*) FROM agent_outputs")[0][0] < ROWS
        assert child.hear(120).rows > ROWS
        assert child.join() == 0
        assert_carried(url)


def carry_patiently(pipe: Connection, url: str, settings: object) -> None:
    with ConsensusStore.open(url, settings=settings) as store:  # type: ignore[arg-type]
        store.migration.throttle(1500)
        pipe.send("ready")
        pipe.recv()
        pipe.send(store.migration.backfill(workers=2))


def _grows(url: str) -> bool:
    before = query(url, "SELECT count(*) FROM agent_outputs")
    time.sleep(1)
    return before == [(0,)] or query(url, "SELECT count(*) FROM agent_outputs") != before
