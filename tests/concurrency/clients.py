"""What processes at a PostgreSQL server do: units of work through the public API, and programs that know one side."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.errors import (
    BackupError,
    CommitUncertainError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    GateClosedError,
    PhaseChangedError,
    WrongPhaseError,
)
from consensus_orm.migration import Migration
from consensus_orm.settings import Settings
from tests.concurrency.databases import SETTINGS, connect
from tests.concurrency.processes import Acknowledgements

__all__ = [
    "GONE", "add_one", "add_to_runs", "backfill", "delete_rows", "delete_specs", "insert_into_runs", "know_legacy_only",
    "know_normalized_only", "settle", "wander", "write",
]  # fmt: skip

PATIENT = Settings(
    busy_timeout=timedelta(seconds=20),
    chunk_rows=100,
    chunk_pause=timedelta(milliseconds=2),
    retry_attempts=60,
    retry_budget=timedelta(seconds=60),
)
"""For a server that is restarted all the time."""

ROWS_OF_A_SPEC = 15
GONE = "-gone"
"""How the specs end that are deleted some day."""


REFUSALS = (
    psycopg.errors.RaiseException,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.ObjectNotInPrerequisiteState,
)
"""What a program of the legacy side is told when the tables are frozen, gone, or a view stands in their place."""


def add_one(uow: ConsensusUnitOfWork, spec: str) -> int:
    """An artifact and a synthesis of one run."""
    artifact = uow.artifacts.add(spec_id=spec, stage="s", agent_name="a", content_json="{}", run_id="r")
    uow.syntheses.add(spec_id=spec, stage="s", output_markdown="m", status="ok", run_id="r")
    return artifact.id


def lose_the_answer(uow: ConsensusUnitOfWork) -> None:
    """Let the commit reach the server, and its answer be lost."""
    driver: Any = uow._connected

    def send_and_lose(commands: bytes) -> None:
        type(driver)._send(driver, commands)
        driver.close()
        raise psycopg.OperationalError("the answer is lost")

    driver._send = send_and_lose


def backfill(pipe: Connection, url: str) -> None:
    """Carry everything, and tell what was done."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        report = store.migration.backfill()
    pipe.send((report.rows, report.adopted, report.rejects))


def delete_specs(pipe: Connection, url: str, specs: list[str]) -> None:
    """Delete whole specs when told to; tell the ids that are gone."""
    gone: set[int] = set()
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        pipe.send(None)
        pipe.recv()
        for spec in specs:

            def work(uow: ConsensusUnitOfWork, spec: str = spec) -> set[int]:
                ids = {artifact.id for artifact in uow.artifacts.list(spec_id=spec)}
                uow.artifacts.delete(spec_id=spec)
                uow.syntheses.delete(spec_id=spec)
                return ids

            gone |= store.run(work)
            time.sleep(0.004)
    pipe.send(gone)


def delete_rows(pipe: Connection, url: str, seed: int, count: int) -> None:
    """Another program: deletes rows at random from one side or the other when told to; tells which are gone."""
    chance = random.Random(seed)
    gone: set[int] = set()
    with connect(url) as program:
        keys = [key for (key,) in program.execute("SELECT id FROM consensus_artifacts")]
        pipe.send(None)
        pipe.recv()
        for key in chance.sample(keys, count):
            table = chance.choice([b"consensus_artifacts", b"agent_outputs"])
            if program.execute(b"DELETE FROM " + table + b" WHERE id = %s", (key,)).rowcount:
                gone.add(key)
            time.sleep(0.001)
    pipe.send(gone)


def add_to_runs(pipe: Connection, url: str, seed: int) -> None:
    """Add rows to runs that others add to as well, until told to stop; tell their contents."""
    chance = random.Random(seed)
    contents: list[str] = []
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        pipe.send(None)
        pipe.recv()
        while not pipe.poll() or len(contents) < 20:
            content = f"w{seed}-{len(contents)}"
            spec, stage, run = (f"{word}{chance.randrange(7)}" for word in ("G", "s", "r"))

            def work(
                uow: ConsensusUnitOfWork, spec: str = spec, stage: str = stage, run: str = run, content: str = content
            ) -> None:
                uow.artifacts.add(spec_id=spec, stage=stage, agent_name="w", content_json=content, run_id=run)
                uow.syntheses.add(spec_id=spec, stage=stage, output_markdown=content, status="failed", run_id=run)

            store.run(work)
            contents.append(content)
            time.sleep(0.01)
    pipe.send(contents)


def insert_into_runs(pipe: Connection, url: str, seed: int) -> None:
    """Another program: inserts and updates legacy rows of the same runs until told to stop; tells their contents."""
    chance = random.Random(seed)
    contents: list[str] = []
    insert = (
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id)"
        " VALUES (%s, %s, 'p', %s, %s) RETURNING id"
    )
    with connect(url) as program:
        pipe.send(None)
        pipe.recv()
        while not pipe.poll() or len(contents) < 20:
            spec, stage, run = (f"{word}{chance.randrange(7)}" for word in ("G", "s", "r"))
            content = f"p{seed}-{len(contents)}"
            with program.transaction():
                (key,) = one(program.execute(insert, (spec, stage, content + "?", run)))
            with program.transaction():
                program.execute("UPDATE consensus_artifacts SET content_json = %s WHERE id = %s", (content, key))
                time.sleep(0.001)
            contents.append(content)
            time.sleep(0.01)
    pipe.send(contents)


def one(cursor: psycopg.Cursor[tuple[int]]) -> tuple[int]:
    """The only row."""
    row = cursor.fetchone()
    assert row is not None
    return row


# The long race ---------------------------------------------------------------------------------------------------


def stopped(folder: Path) -> bool:
    """Whether the race is over."""
    return (folder / "stop").exists()


def write(pipe: Connection, url: str, folder: Path, name: str) -> None:
    """Add to specs of one's own and to runs that all writers share, delete whole specs; acknowledge what is committed.

    Where nobody can say how a commit ended, it looks for what it wrote, as the error tells it to.
    """
    acknowledge = Acknowledgements(folder / f"{name}.acks")
    chance = random.Random(name)
    units = uncertain = round_ = 0
    with patiently_opened(url, folder) as store:

        def once(work: Callable[[ConsensusUnitOfWork], None], is_done: Callable[[ConsensusUnitOfWork], bool]) -> None:
            nonlocal units, uncertain
            while True:
                units += 1
                try:
                    store.run(work)
                except CommitUncertainError:
                    uncertain += 1
                    if not store.run(is_done, read_only=True):
                        continue
                return

        while not stopped(folder):
            spec = f"{name}-{round_}" + (GONE if round_ % 3 == 0 else "")
            for number in range(ROWS_OF_A_SPEC):
                token = f"{name}-{round_}-{number}"
                shared = f"SHARED-{chance.randrange(3)}"
                once(
                    lambda uow, t=token, s=spec, o=shared: add_everywhere(uow, t, s, o),  # type: ignore[misc]
                    lambda uow, t=token, s=spec: bool(uow.artifacts.count(spec_id=s, agent_name=t)),  # type: ignore[misc]
                )
                acknowledge("added", spec, token)
                time.sleep(chance.uniform(0, 0.004))
            if spec.endswith(GONE):
                acknowledge("deleting", spec)
                once(
                    lambda uow, s=spec: delete_spec(uow, s),  # type: ignore[misc]
                    lambda uow, s=spec: not uow.artifacts.count(spec_id=s),  # type: ignore[misc]
                )
                acknowledge("deleted", spec)
            round_ += 1
        pipe.send((units, uncertain, store.retrier.telemetry.totals.recovered))


def add_everywhere(uow: ConsensusUnitOfWork, token: str, spec: str, shared: str) -> None:
    uow.artifacts.add(spec_id=spec, stage="s", agent_name=token, content_json=token, run_id="r")
    uow.syntheses.add(spec_id=spec, stage="s", output_markdown=token, status="ok", run_id="r")
    uow.syntheses.add(spec_id=shared, stage="s", output_markdown=token, status="degraded", run_id="r")
    uow.artifacts.add(spec_id=shared, stage="s", agent_name="shared", content_json=token, run_id=None)


def delete_spec(uow: ConsensusUnitOfWork, spec: str) -> None:
    uow.artifacts.delete(spec_id=spec)
    uow.syntheses.delete(spec_id=spec)


@contextlib.contextmanager
def patiently_opened(url: str, backups: Path) -> Iterator[ConsensusStore]:
    """A store; opening one is a look at the server, which may be away."""
    while True:
        try:
            store = ConsensusStore.open(url, settings=PATIENT.model_copy(update={"backup_dir": backups}))
        except DatabaseUnavailableError:
            time.sleep(0.05)
        else:
            break
    with store:
        yield store


def program(
    pipe: Connection, url: str, folder: Path, name: str, step: Callable[[psycopg.Connection[tuple[int]], str], bool]
) -> None:
    """Another program: writes in its own way, and goes on with a new connection after an error."""
    acknowledge = Acknowledgements(folder / f"{name}.acks")
    written, connection = 0, None
    while not stopped(folder):
        token = f"{name}-{written}"
        try:
            connection = connection or connect(url, connect_timeout=10)
            acknowledge("trying", token)
            if step(connection, token):
                acknowledge("added", "PROGRAM", token)
        except psycopg.OperationalError:
            connection = None  # whether it was committed it does not know
        except REFUSALS:
            acknowledge("refused", token)  # frozen, or dropped
        written += 1
        # A write around the repositories shuts the gates until the next verify: now and then it lets them open.
        time.sleep(0.6 if written % 15 == 0 else 0.01)
    pipe.send(written)


def know_legacy_only(pipe: Connection, url: str, folder: Path, name: str) -> None:
    """A program that knows the legacy side: inserts a row, and changes it in another transaction."""

    def step(connection: psycopg.Connection[tuple[int]], token: str) -> bool:
        insert = (
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id)"
            " VALUES ('PROGRAM', 's', %s, '?', 'r') RETURNING id"
        )
        (key,) = one(connection.execute(insert, (token,)))
        with contextlib.suppress(*REFUSALS):
            connection.execute("UPDATE consensus_artifacts SET content_json = %s WHERE id = %s", (token, key))
        return True

    program(pipe, url, folder, name, step)


def know_normalized_only(pipe: Connection, url: str, folder: Path, name: str) -> None:
    """A program that knows the founding normalized tables: inserts a run, and an output in it."""

    def step(connection: psycopg.Connection[tuple[int]], token: str) -> bool:
        with connection.transaction():
            (phase,) = one(connection.execute("SELECT phase FROM consensus_orm_state FOR KEY SHARE"))
            if not Phase(phase).compares:
                return False  # before, nobody looks at what is there; after, it would be the truth at once
            (run,) = one(
                connection.execute(
                    "INSERT INTO consensus_runs (spec_id, stage, run_timestamp, consensus_ok)"
                    " VALUES ('PROGRAM', 's', 1762222238000, true) RETURNING id"
                )
            )
            connection.execute(
                "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp)"
                " VALUES (%s, %s, %s, 1762222238000)",
                (run, token, token),
            )
        return True

    program(pipe, url, folder, name, step)


PASSING = (
    *(DatabaseBusyError, DatabaseUnavailableError, CommitUncertainError, BackupError),
    *(GateClosedError, PhaseChangedError, WrongPhaseError),
)
"""What a step may end with on a server that is restarted, beside programs that write; it is taken again."""


def wander(pipe: Connection, url: str, folder: Path, seed: int) -> None:
    """Go to phases at random, with all that belongs to it, and reconcile; tell where it came, and what held it up.

    Beside programs that write all the time a gate may stay shut for long: where one does, the way is back.
    """
    chance = random.Random(seed)
    passed: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    refused = False
    with patiently_opened(url, folder) as store:
        while not stopped(folder):
            target = chance.choice([*Phase, *list(Phase)[2:], Phase.CONTRACT])
            try:
                if refused:
                    now, refused = store.migration.phase, False
                    target = now.previous or target
                go_to(store.migration, target, reached, lambda: stopped(folder))
                if store.migration.phase.compares and chance.random() < 0.5:
                    store.migration.reconcile()
            except PASSING as error:
                refused = isinstance(error, GateClosedError)
                passed[type(error).__name__] += 1
                time.sleep(0.05)
        pipe.send((reached, passed))


def go_to(migration: Migration, target: Phase, reached: Counter[str], is_over: Callable[[], bool]) -> None:
    while (now := migration.phase) != target and not is_over():
        if target < now:
            assert now.previous is not None
            if now.compares:
                migration.reconcile(foreign="adopt")
            migration.rollback(now.previous)
        else:
            if now.compares:
                migration.backfill()
                migration.reconcile(foreign="adopt")
            if now.writes_normalized:
                migration.verify()
            migration.advance(now.next, soak=False)
        reached[migration.phase.name] += 1


def settle(pipe: Connection, url: str, folder: Path) -> None:
    """End in DUAL_WRITE with everything carried."""
    with patiently_opened(url, folder) as store:
        migration = store.migration
        go_to(migration, Phase.DUAL_WRITE, Counter(), lambda: False)
        migration.backfill()
        migration.reconcile(foreign="adopt")
        report = migration.verify()
        pipe.send((report.differences, migration.mismatches(), migration.rejects(everything=True)))
