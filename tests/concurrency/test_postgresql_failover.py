"""The primary dies under four writers, and its synchronous standby is promoted; psycopg judges what it has."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.consensus.store import ConsensusUnitOfWork
from tests.concurrency.databases import SETTINGS, assert_sides_agree, assert_sound, made, query
from tests.concurrency.processes import start
from tests.support import servers
from tests.support.servers import Server

pytestmark = pytest.mark.long

WRITERS = 4
PATIENT = SETTINGS.model_copy(update={"retry_attempts": 60, "retry_budget": timedelta(seconds=60)})


def add(uow: ConsensusUnitOfWork, content: str) -> None:
    uow.artifacts.add(spec_id="failover", stage="plan", agent_name="a", content_json=content, run_id=content[0])


def write_on(pipe: Connection, url: str, writer: int) -> None:
    """Write until told to stop; tell what was acknowledged, what is uncertain, and the longest wait for one write."""
    acknowledged, uncertain, longest = list[str](), list[str](), 0.0
    with ConsensusStore.open(url, settings=PATIENT) as store:
        while not pipe.poll():
            content, asked = f"{writer} {len(acknowledged) + len(uncertain)}", time.monotonic()
            try:
                store.run(partial(add, content=content))
            except errors.CommitUncertainError:
                uncertain.append(content)
            else:
                acknowledged.append(content)
            longest = max(longest, time.monotonic() - asked)
            if len(acknowledged) == 20:
                pipe.send("writing")
    pipe.send((acknowledged, uncertain, longest))


@pytest.mark.timeout(300)
def test_a_failover_loses_no_acknowledged_write(record_property: Callable[[str, object], None]) -> None:
    """By a URL of both hosts every writer goes on at the new primary; what it was told is there once, on both sides."""
    synchronous = {"synchronous_standby_names": "*", "synchronous_commit": "on"}
    with Server() as first, servers.replica_of(first) as second:
        made(first.url(), Phase.CUTOVER)
        second.catch_up()
        for name, value in synchronous.items():
            with first.connect() as connection:
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        first.value("SELECT pg_reload_conf()")
        servers.until(
            lambda: first.value("SELECT max(sync_state) FROM pg_stat_replication") == "sync", "become synchronous", "it"
        )
        both = f"{first.url()},{second.folder}&target_session_attrs=read-write"
        children = [start(write_on, both, writer) for writer in range(WRITERS)]
        assert [child.hear(120) for child in children] == ["writing"] * WRITERS
        died = time.monotonic()
        first.kill()
        second.value("SELECT pg_promote()")
        promoted = time.monotonic() - died
        time.sleep(5)
        for child in children:
            child.tell("stop")
        told = [child.hear(120) for child in children]
        assert [child.join() for child in children] == [0] * WRITERS
        found = [text for (text,) in query(second.url(), "SELECT content_json FROM consensus_artifacts")]
        for acknowledged, uncertain, _ in told:
            assert len(uncertain) <= 1
            assert len(acknowledged) > 20, "it did not go on"
            assert all(found.count(content) == 1 for content in acknowledged)
            assert all(found.count(content) <= 1 for content in uncertain)
        assert_sides_agree(second.url())
        assert_sound(second.url())
        stall = max(longest for *_, longest in told)
        record_property("longest stall, s", round(stall, 2))
        print(f"promoted after {promoted:.2f} s; longest stall of a writer {stall:.2f} s")
        assert stall < PATIENT.retry_budget.total_seconds()
