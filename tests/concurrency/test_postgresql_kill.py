"""kill -9 of our processes between statements and within a commit, on PostgreSQL.

After each kill psycopg judges the database, and the step is done again. In CI a sample of the boundaries is taken,
those at a COMMIT first; `CONSENSUS_ORM_TEST_SOAK=1` takes every one.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.postgresql.connection import ServerConnection
from tests import servers
from tests.concurrency import steps
from tests.concurrency.databases import (
    SETTINGS,
    Change,
    Side,
    assert_sides_agree,
    assert_sound,
    connect,
    image,
    made,
    phase_of,
    query,
    settings,
    truth,
)
from tests.concurrency.files import bring, records
from tests.concurrency.processes import start, wait_for
from tests.concurrency.steps import Work, advance_to, roll_back_to, write

SOAK = "CONSENSUS_ORM_TEST_SOAK" in os.environ
POINTS_IN_CI = 6


@dataclass(frozen=True)
class Step:
    """Something that can be interrupted.

    Args:
        start: The phase it starts in.
        end: The phase it ends in.
        work: The step; done again after a kill, it finishes what was begun, or undoes it first.
        change: Done to the database before.
        atomic: Whether it is one transaction, so that a kill leaves the database as before or as after it.
        writes: Whether it changes what is read. Ids are then not compared: a sequence gives none back.
        carries: Whether both sides agree at its end.
        varies: What of the image depends on how it was interrupted.
    """

    start: Phase
    end: Phase
    work: Work
    change: Change | None = None
    atomic: bool = False
    writes: bool = False
    carries: bool = False
    varies: tuple[str, ...] = ()


def ready(url: str) -> None:
    """Everything that the next gate wants."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        if store.migration.phase.compares:
            store.migration.backfill()
        assert store.migration.verify().clean


def written_to(url: str) -> None:
    """Some rows added and deleted in the phase, so that there is something to carry back."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        write(store)


def written_to_by_others(url: str) -> None:
    """A program that knows one side only has inserted, updated and deleted; and a row was damaged unseen."""
    ready(url)
    with connect(url) as connection:
        connection.execute(
            """
            INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)
              VALUES ('SPEC-RAW', 'plan', 'raw', 'one'), ('SPEC-RAW', 'plan', 'raw', 'two');
            UPDATE consensus_artifacts SET content_json = 'changed' WHERE id IN (1, 2);
            DELETE FROM consensus_artifacts WHERE id IN (4, 5);
            DELETE FROM consensus_synthesis WHERE id = 1;
            SET session_replication_role = replica;
            UPDATE agent_outputs SET content = 'damaged' WHERE id IN (6, 7);
            DELETE FROM agent_outputs WHERE id = 8
            """
        )


STEPS = {
    "write_in_expand": Step(Phase.EXPAND, Phase.EXPAND, write, writes=True),
    "write_in_dual_write": Step(Phase.DUAL_WRITE, Phase.DUAL_WRITE, write, ready, writes=True, carries=True),
    "write_in_cutover": Step(Phase.CUTOVER, Phase.CUTOVER, write, writes=True, carries=True),
    "write_in_contract": Step(Phase.CONTRACT, Phase.CONTRACT, write, writes=True),
    "backfill": Step(Phase.DUAL_WRITE, Phase.DUAL_WRITE, steps.backfill, carries=True),
    "flip_1_2": Step(Phase.EXPAND, Phase.DUAL_WRITE, advance_to(Phase.DUAL_WRITE), atomic=True),
    "flip_2_3": Step(Phase.DUAL_WRITE, Phase.CUTOVER, advance_to(Phase.CUTOVER), ready, atomic=True, carries=True),
    "flip_3_4": Step(Phase.CUTOVER, Phase.NORMALIZED, advance_to(Phase.NORMALIZED), ready, atomic=True),
    "rollback_2_1": Step(Phase.DUAL_WRITE, Phase.EXPAND, roll_back_to(Phase.EXPAND), ready, atomic=True),
    "rollback_3_2": Step(Phase.CUTOVER, Phase.DUAL_WRITE, roll_back_to(Phase.DUAL_WRITE), carries=True),
    "rollback_4_3": Step(Phase.NORMALIZED, Phase.CUTOVER, roll_back_to(Phase.CUTOVER), written_to, carries=True),
    "contract": Step(Phase.NORMALIZED, Phase.CONTRACT, advance_to(Phase.CONTRACT), ready),
    "rebuild": Step(Phase.CONTRACT, Phase.NORMALIZED, roll_back_to(Phase.NORMALIZED), written_to),
    "rebuild_undone": Step(
        Phase.CONTRACT,
        Phase.CONTRACT,
        lambda store: rebuild_and_stay(store),
        written_to,
        varies=("flips", "state"),
    ),
    "reconcile": Step(Phase.DUAL_WRITE, Phase.DUAL_WRITE, steps.reconcile, written_to_by_others, carries=True),
    "migrate": Step(Phase.EXPAND, Phase.NORMALIZED, lambda store: bring(store, Phase.NORMALIZED)),
}


def rebuild_and_stay(store: ConsensusStore) -> None:
    """Roll back from CONTRACT; where a kill left that half done, the second call undoes it and stays."""
    if query(url_of(store), "SELECT step FROM consensus_orm_state") == [("rebuild",)]:
        store.migration.advance(soak=False)
    elif store.migration.phase is Phase.CONTRACT:
        store.migration.rollback(Phase.NORMALIZED)
    if store.migration.phase is Phase.NORMALIZED:
        assert store.migration.verify().clean
        store.migration.advance(soak=False)


def url_of(store: ConsensusStore) -> str:
    return store.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


# What interrupts it ------------------------------------------------------------------------------------------------


class Sent:
    """Sees everything that connections of this process send, and kills it before one of them, or behind a COMMIT.

    Args:
        kill_at: The number of what is sent, the first is 1; behind a COMMIT that the server has got, the number after
            that. None lets all pass.
    """

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.seen: list[str] = []

    def note(self, statement: str) -> None:
        self.seen.append(statement)
        if len(self.seen) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        execute, send = ServerConnection.execute, ServerConnection._send

        def noted_execute(connection: ServerConnection, query: Any, *more: Any, **options: Any) -> Any:
            self.note(str(query))
            return execute(connection, query, *more, **options)

        def noted_send(connection: ServerConnection, commands: bytes) -> Any:
            self.note(commands.decode())
            if commands == b"COMMIT" and len(self.seen) + 1 == self.kill_at:
                connection.pgconn.send_query(commands)
                while connection.pgconn.flush():
                    pass
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen += ["the answer to a COMMIT"] if commands == b"COMMIT" else []
            return send(connection, commands)

        ServerConnection.execute = noted_execute  # type: ignore[assignment, method-assign]
        ServerConnection._send = noted_send  # type: ignore[assignment, method-assign]


def count_what_is_sent(pipe: Connection, url: str, folder: Path, name: str) -> None:
    """Do a step undisturbed, and tell what it sends."""
    with ConsensusStore.open(url, settings=settings(folder)) as store:
        sent = Sent(None)
        sent.watch()
        STEPS[name].work(store)
        pipe.send(sent.seen)


def run_and_be_killed(_pipe: Connection, url: str, folder: Path, name: str, kill_at: int) -> None:
    """Do a step and be killed at a point, or after the last one if there are fewer."""
    store = ConsensusStore.open(url, settings=settings(folder))
    Sent(kill_at).watch()
    STEPS[name].work(store)
    os.kill(os.getpid(), signal.SIGKILL)


# Judging -----------------------------------------------------------------------------------------------------------


def without_ids(side: Side) -> dict[str, list[tuple[Any, ...]]]:
    return {kind: sorted((row[1:] for row in rows), key=repr) for kind, rows in side.items()}


def nobody_is_left(url: str) -> None:
    """Wait until the server has noticed that a process was killed; what it had been told by then is done."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with connect(url) as connection:
        wait_for(lambda: connection.execute(others.encode()).fetchone() == (0,), 30)


def points(name: str, sent: list[str]) -> list[int]:
    """Where to be killed: at commits first, then at others by chance."""
    every = range(1, len(sent) + 2)
    if SOAK:
        return list(every)
    chance = random.Random(name)
    at_commits = sorted({m for n, what in enumerate(sent, 1) if what == "COMMIT" for m in (n, n + 1, n + 2)})
    chosen = chance.sample(at_commits, min(len(at_commits), POINTS_IN_CI // 2))
    rest = [n for n in every if n not in chosen]
    return sorted([*chosen, *chance.sample(rest, min(len(rest), POINTS_IN_CI - len(chosen)))])


@pytest.mark.timeout(3600 if SOAK else 240)
@pytest.mark.parametrize("name", STEPS)
def test_a_kill_loses_nothing(tmp_path: Path, name: str) -> None:
    """Killed at any point, a step leaves the truth as it was, and done again it comes to its end."""
    step = STEPS[name]
    build: Callable[[str], None] = lambda url: made(url, step.start, step.change)  # noqa: E731
    origin = servers.template(f"kill_{name}", build)
    with servers.database(origin) as url:
        before, truth_before = image(url), truth(url)
        child = start(count_what_is_sent, url, tmp_path, name)
        sent = child.hear(60)
        assert child.join() == 0
        after, truth_after = image(url), truth(url)
        with ConsensusStore.open(url, settings=SETTINGS) as store:
            expected = records(store)
    for point in points(name, sent):
        with servers.database(origin) as url:
            child = start(run_and_be_killed, url, tmp_path, name, point)
            child.join()
            assert child.was_killed
            nobody_is_left(url)
            what = sent[point - 1] if point <= len(sent) else "the end"
            assert_nothing_is_lost(url, step, before, after, truth_before, truth_after)
            with ConsensusStore.open(url, settings=settings(tmp_path)) as store:
                step.work(store)
                if not step.writes:
                    assert records(store) == expected, what
            assert_sound(url)
            assert without_ids(truth(url)) == without_ids(truth_after), what
            if not step.writes:
                found = image(url)
                assert {
                    key: value for key, value in found.items() if value != after[key] and key not in step.varies
                } == {}, what
            if step.carries:
                assert_sides_agree(url)


def assert_nothing_is_lost(
    url: str, step: Step, before: dict[str, object], after: dict[str, object], truth_before: Side, truth_after: Side
) -> None:
    """What a kill left: the truth as it was, or all of a unit of work; and nothing half done but what is resumed."""
    found = phase_of(url)
    assert step.start is step.end or min(step.start, step.end) <= found <= max(step.start, step.end)
    assert_sound(url)
    if step.writes:
        assert without_ids(truth(url)) in (without_ids(truth_before), without_ids(truth_after))
    elif step.change is not written_to_by_others:
        assert truth(url) == truth_before == truth_after
    if step.atomic:
        assert image(url) in (before, after)


def test_kills_are_where_they_should_be() -> None:
    """The points of a step: before each thing that is sent, and behind each COMMIT that the server has got."""
    sent = ["BEGIN", "INSERT", "COMMIT", "the answer to a COMMIT", "BEGIN", "COMMIT", "the answer to a COMMIT"]
    assert set(points("any", sent)) <= set(range(1, len(sent) + 2))
    assert {3, 4} & set(itertools.chain(*(points(str(n), sent) for n in range(20))))
