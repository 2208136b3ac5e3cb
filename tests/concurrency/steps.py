"""The steps that are interrupted, and what interrupts them: a kill before the n-th statement or byte."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.pool import Pool

from consensus_orm import ConsensusStore, Phase
from tests.concurrency.actors import JOURNAL
from tests.concurrency.files import SETTINGS, bring, empty_file, legacy_file, raw

__all__ = ["STEPS", "Step", "bytes_at_most", "count_statements", "run_and_be_killed", "run_and_run_out_of_bytes"]

MOMENT = datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)
Work = Callable[[ConsensusStore], object]


@dataclass(frozen=True)
class Step:
    """Something that can be interrupted.

    Args:
        start: The phase it starts in.
        end: The phase it ends in.
        work: The step; done again after a kill, it finishes what was begun.
        build: Makes the legacy file it starts from.
        change: Done to the file before.
        atomic: Whether it is one transaction, so that a kill leaves the file as before or as after it.
        writes: Whether it changes what is read.
        carries: Whether both sides agree at its end.
    """

    start: Phase
    end: Phase
    work: Work
    build: Callable[[Path], None] = legacy_file
    change: Callable[[Path], None] | None = None
    atomic: bool = False
    writes: bool = False
    carries: bool = False


# What is done -----------------------------------------------------------------------------------------------


def write(store: ConsensusStore) -> None:
    """One unit of work of all kinds of writes; a second time it does nothing."""
    with store.unit_of_work() as uow:
        if uow.artifacts.count(spec_id="SPEC-WRITTEN"):
            return
        for number in range(2):
            uow.artifacts.add(
                spec_id="SPEC-WRITTEN",
                stage="plan",
                agent_name=f"a{number}",
                content_json='{"n": "\u2011"}' * 500,
                run_id="run",
                created_at=MOMENT,
            )
        uow.syntheses.add(
            spec_id="SPEC-WRITTEN",
            stage="plan",
            output_markdown="#",
            status="degraded",
            run_id="run",
            created_at=MOMENT,
        )
        assert uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-plan")


def backfill(store: ConsensusStore) -> None:
    store.migration.backfill()


def reconcile(store: ConsensusStore) -> None:
    store.migration.reconcile()


def vacuum(store: ConsensusStore) -> None:
    store.maintenance.vacuum(full=not _incremental(store))


def _incremental(store: ConsensusStore) -> bool:
    return store.maintenance.stats().auto_vacuum == "INCREMENTAL"


def advance_to(phase: Phase) -> Work:
    def work(store: ConsensusStore) -> None:
        store.migration.advance(phase, soak=False)

    return work


def roll_back_to(phase: Phase) -> Work:
    def work(store: ConsensusStore) -> None:
        store.migration.rollback(phase)

    return work


# Done to a file before ----------------------------------------------------------------------------------------


def verified(path: Path) -> None:
    """Everything the next gate wants."""
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        if store.migration.phase.compares:
            store.migration.backfill()
        assert store.migration.verify().clean


def with_journal(path: Path) -> None:
    """The table in which the writers of the races note what they saw."""
    with raw(path) as connection:
        connection.executescript(JOURNAL)


def written_to(path: Path) -> None:
    """Some rows added and deleted in the phase, so that there is something to carry back."""
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        write(store)


def written_to_by_others(path: Path) -> None:
    """A program that knows one side only has inserted, updated and deleted; and a row was damaged unseen."""
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        store.migration.backfill()
    with raw(path) as connection:
        connection.executescript(
            """
            INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)
              VALUES ('SPEC-RAW', 'plan', 'raw', 'one'), ('SPEC-RAW', 'plan', 'raw', 'two');
            UPDATE consensus_artifacts SET content_json = 'changed' WHERE id IN (1, 2);
            DELETE FROM consensus_artifacts WHERE id IN (4, 5);
            DELETE FROM consensus_synthesis WHERE id = 1;
            CREATE TABLE kept AS SELECT name, sql FROM sqlite_master WHERE type = 'trigger';
            """
        )
        triggers = connection.execute("SELECT name, sql FROM kept").fetchall()
        for name, _ in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute("UPDATE agent_outputs SET content = 'damaged' WHERE id IN (6, 7)")
        connection.execute("DELETE FROM agent_outputs WHERE id = 8")
        connection.execute("DROP TABLE kept")
        for _, sql in triggers:
            connection.execute(sql)
        # No sign is left that they were made again: the mark is younger than they are.
        (view,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'consensus_orm_guarded'").fetchone()
        connection.execute("DROP VIEW consensus_orm_guarded")
        connection.execute(view)


def bloated(path: Path) -> None:
    """Free pages to give back."""
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        for deleted in (False, True):
            with store.unit_of_work() as uow:
                if deleted:
                    uow.artifacts.delete(spec_id="SPEC-BLOAT")
                else:
                    uow.artifacts.add(spec_id="SPEC-BLOAT", stage="s", agent_name="a", content_json="x" * 100_000)


def bloated_and_incremental(path: Path) -> None:
    """Free pages to give back, in a file that can shrink in steps."""
    with raw(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")
    bloated(path)


STEPS = {
    "write_in_expand": Step(Phase.EXPAND, Phase.EXPAND, write, atomic=True, writes=True),
    "write_in_dual_write": Step(
        Phase.DUAL_WRITE, Phase.DUAL_WRITE, write, change=verified, atomic=True, writes=True, carries=True
    ),
    "write_in_cutover": Step(Phase.CUTOVER, Phase.CUTOVER, write, atomic=True, writes=True, carries=True),
    "write_in_normalized": Step(Phase.NORMALIZED, Phase.NORMALIZED, write, atomic=True, writes=True),
    "backfill": Step(Phase.DUAL_WRITE, Phase.DUAL_WRITE, backfill, carries=True),
    "flip_1_2": Step(Phase.EXPAND, Phase.DUAL_WRITE, advance_to(Phase.DUAL_WRITE), atomic=True),
    "flip_2_3": Step(
        Phase.DUAL_WRITE, Phase.CUTOVER, advance_to(Phase.CUTOVER), change=verified, atomic=True, carries=True
    ),
    "flip_3_4": Step(Phase.CUTOVER, Phase.NORMALIZED, advance_to(Phase.NORMALIZED), change=verified, atomic=True),
    "rollback_2_1": Step(Phase.DUAL_WRITE, Phase.EXPAND, roll_back_to(Phase.EXPAND), change=verified, atomic=True),
    "rollback_3_2": Step(Phase.CUTOVER, Phase.DUAL_WRITE, roll_back_to(Phase.DUAL_WRITE), atomic=True, carries=True),
    "rollback_4_3": Step(Phase.NORMALIZED, Phase.CUTOVER, roll_back_to(Phase.CUTOVER), change=written_to, carries=True),
    "contract": Step(Phase.NORMALIZED, Phase.CONTRACT, advance_to(Phase.CONTRACT), change=verified),
    "rebuild": Step(Phase.CONTRACT, Phase.NORMALIZED, roll_back_to(Phase.NORMALIZED), change=written_to),
    "reconcile": Step(Phase.DUAL_WRITE, Phase.DUAL_WRITE, reconcile, change=written_to_by_others, carries=True),
    "vacuum": Step(Phase.CONTRACT, Phase.CONTRACT, vacuum, empty_file, bloated_and_incremental),
    "full_vacuum": Step(Phase.CUTOVER, Phase.CUTOVER, vacuum, change=bloated, carries=True),
    "migrate": Step(Phase.EXPAND, Phase.NORMALIZED, lambda store: bring(store, Phase.NORMALIZED)),
}


# What interrupts it ---------------------------------------------------------------------------------------------


class Statements:
    """Sees every statement of every connection of this process, and kills it before one of them.

    Args:
        kill_before: The number of that statement, the first is 1; None lets all pass.
    """

    def __init__(self, kill_before: int | None) -> None:
        self.kill_before = kill_before
        self.seen: list[str] = []
        self.watching = False

    def __call__(self, statement: str) -> None:
        if self.watching:
            self.seen.append(statement)
            if len(self.seen) == self.kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        event.listen(Pool, "connect", lambda driver, _record: driver.set_trace_callback(self))


def _open(path: Path) -> ConsensusStore:
    return ConsensusStore.open(path, settings=SETTINGS)


def count_statements(pipe: Connection, path: Path, name: str) -> None:
    """Do a step undisturbed, and tell which statements it takes and how long the log or journal gets."""
    statements = Statements(None)
    statements.watch()
    longest = 0

    def look(driver: sqlite3.Connection, _record: object) -> None:
        def measure() -> int:
            nonlocal longest
            for suffix in ("-wal", "-journal"):
                with contextlib.suppress(OSError):
                    longest = max(longest, Path(f"{path}{suffix}").stat().st_size)
            return 0

        driver.set_progress_handler(measure, 20)

    event.listen(Pool, "connect", look)
    with _open(path) as store:
        statements.watching = True
        STEPS[name].work(store)
        statements.watching = False
        with contextlib.suppress(OSError):
            longest = max(longest, Path(f"{path}-wal").stat().st_size)
    pipe.send((statements.seen, longest))


def run_and_be_killed(_pipe: Connection, path: Path, name: str, kill_before: int) -> None:
    """Do a step and be killed before a statement, or after the last one if there are fewer."""
    statements = Statements(kill_before)
    statements.watch()
    store = _open(path)
    statements.watching = True
    STEPS[name].work(store)
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_run_out_of_bytes(_pipe: Connection, path: Path, name: str, size: int) -> None:
    """Do a step and be killed by the system in the middle of the write that makes a file longer than a size."""
    store = _open(path)
    with bytes_at_most(size, signal.SIG_DFL):
        STEPS[name].work(store)
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def bytes_at_most(size: int, handler: signal.Handlers) -> Iterator[None]:
    """Let the system take no byte of this process beyond a size of any file: SIGXFSZ, or EFBIG where ignored."""
    signal.signal(signal.SIGXFSZ, handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
