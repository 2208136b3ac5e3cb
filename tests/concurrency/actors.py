"""What the processes of the races do: write, read, flip. Each works through the public API alone."""

from __future__ import annotations

import json
import random
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

from sqlalchemy import text

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.errors import ConsensusError
from consensus_orm.settings import Settings
from tests.concurrency.processes import Acknowledgements, acknowledged

__all__ = ["JOURNAL", "advance", "flip", "hold_and_write", "read", "sleep_and_write", "wander", "write"]

PATIENT = Settings(busy_timeout=timedelta(seconds=20), chunk_rows=100, chunk_pause=timedelta(milliseconds=2))

JOURNAL = """
CREATE TABLE race_journal (n INTEGER PRIMARY KEY AUTOINCREMENT, pair TEXT, key INTEGER, op TEXT, spec TEXT, agent TEXT,
  seen_phase INTEGER, seen_epoch INTEGER, phase INTEGER, epoch INTEGER, on_legacy INTEGER, on_normalized INTEGER);
"""
"""Written in the transaction of each write: the phase it saw, the one in force, and where the row stands."""

NOTE = text(
    "INSERT INTO race_journal (pair, key, op, spec, agent, seen_phase, seen_epoch, phase, epoch,"
    " on_legacy, on_normalized) SELECT :pair, :key, :op, :spec, :agent, :phase, :epoch, s.phase, s.epoch,"
    " CASE :pair WHEN 'artifacts' THEN (SELECT count(*) FROM consensus_artifacts WHERE id = :key)"
    "  ELSE (SELECT count(*) FROM consensus_synthesis WHERE id = :key) END,"
    " CASE :pair WHEN 'artifacts' THEN (SELECT count(*) FROM agent_outputs WHERE id = :key)"
    "  ELSE (SELECT count(*) FROM consensus_syntheses WHERE id = :key) END"
    " FROM consensus_orm_state AS s"
)

ROWS_OF_A_SPEC = 40
GONE = "-gone"
"""How the specs end that are deleted some day."""


def note(uow: ConsensusUnitOfWork, pair: str, key: int, op: str, spec: str, agent: str) -> None:
    if not uow.phase.has_legacy:
        return
    facts = {"pair": pair, "key": key, "op": op, "spec": spec, "agent": agent}
    uow._execute(NOTE, facts | {"phase": uow.phase.value, "epoch": uow.epoch})


def write(pipe: Connection, path: Path, name: str) -> None:
    """Add artifacts and syntheses, delete whole specs; acknowledge what is committed."""
    acknowledge = Acknowledgements(path.with_name(f"{name}.acks"))
    chance = random.Random(name)
    writes = round_ = 0
    with ConsensusStore.open(path, settings=PATIENT) as store:
        while not stopped(path):
            spec = f"{name}-{round_}" + (GONE if round_ % 3 == 0 else "")
            for number in range(ROWS_OF_A_SPEC):
                agent = f"a{number}"
                ids = store.run(lambda uow, spec=spec, agent=agent: add(uow, spec, agent))  # type: ignore[misc]
                acknowledge("added", spec, number, *ids)
                writes += 1
                time.sleep(chance.uniform(0, 0.004))
            if spec.endswith(GONE):
                acknowledge("deleting", spec)
                assert store.run(lambda uow, spec=spec: delete(uow, spec)) == ROWS_OF_A_SPEC  # type: ignore[misc]
                acknowledge("deleted", spec)
                writes += 1
            round_ += 1
        pipe.send((writes, store.retrier.telemetry.totals))


def add(uow: ConsensusUnitOfWork, spec: str, agent: str) -> tuple[int, int]:
    artifact = uow.artifacts.add(spec_id=spec, stage="s", agent_name=agent, content_json=agent * 20, run_id="r")
    note(uow, "artifacts", artifact.id, "add", spec, agent)
    synthesis = uow.syntheses.add(spec_id=spec, stage="s", output_markdown=agent, status="ok", run_id="r")
    note(uow, "syntheses", synthesis.id, "add", spec, agent)
    return artifact.id, synthesis.id


def delete(uow: ConsensusUnitOfWork, spec: str) -> int:
    ids = [artifact.id for artifact in uow.artifacts.list(spec_id=spec)]
    deleted = uow.artifacts.delete(spec_id=spec)
    assert uow.syntheses.delete(spec_id=spec) == deleted
    note(uow, "artifacts", ids[0], "delete", spec, "")
    return deleted


def read(pipe: Connection, path: Path, writers: list[str], seed: int) -> None:
    """Look at the newest specs again and again; what was seen stays, what was acknowledged is seen."""
    chance = random.Random(seed)
    seen: dict[str, dict[int, object]] = {}
    gone: set[str] = set()
    reads = 0
    phases: set[int] = set()
    epoch = 0
    with ConsensusStore.open(path, settings=PATIENT) as store:
        while not stopped(path):
            writer = chance.choice(writers)
            acks = tail(path.with_name(f"{writer}.acks"))
            fresh = next((words for words in reversed(acks) if words[0] == "added"), None)
            specs = [*chance.sample(sorted(seen), min(2, len(seen))), *([fresh[1]] if fresh else [])]
            with store.unit_of_work(read_only=True) as uow:
                assert uow.epoch >= epoch, "the phase went back in time"
                epoch = uow.epoch
                phases.add(uow.phase.value)
                found = {spec: uow.artifacts.list(spec_id=spec) for spec in specs}
                counts = {spec: len(uow.syntheses.list(spec_id=spec)) for spec in specs}
                runs = {spec: uow.runs.list(spec_id=spec) for spec in specs[:1]}
            reads += 1
            for spec, artifacts in found.items():
                now = {a.id: a.model_dump(exclude={"model_version"}) for a in artifacts}
                before = seen.setdefault(spec, {})
                assert len(now) == counts[spec], "half a unit of work was seen"
                if spec in runs:
                    assert sum(len(run.outputs) for run in runs[spec]) == len(now)
                if not now and (before or spec in gone):
                    assert spec.endswith(GONE), f"{spec} disappeared"
                    gone.add(spec)
                    before.clear()
                    continue
                assert spec not in gone, f"{spec} came back"
                assert all(now.get(key) == value for key, value in before.items()), f"{spec} went back in time"
                before.update(now)
            if fresh is not None and fresh[1] not in gone:
                there, wanted = len(found[fresh[1]]), int(fresh[2]) + 1
                # Where this reader sees a spec for the first time, it may have been deleted since it was acknowledged.
                is_deleted = not there and ["deleting", fresh[1]] in acknowledged(path.with_name(f"{writer}.acks"))
                assert there >= wanted or is_deleted, f"{wanted} rows of {fresh[1]} are acknowledged, {there} seen"
            time.sleep(0.003)
    pipe.send((reads, phases))


def stopped(path: Path) -> bool:
    """Whether the race is over; `path` is the database."""
    return path.with_name("stop").exists()


def tail(path: Path) -> list[list[str]]:
    """The last whole lines of a file of acknowledgements."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 400))
        lines = handle.read().decode().split("\n")
    return [line.split() for line in lines[1:-1] if line]


def flip(pipe: Connection, path: Path, seconds: float) -> None:
    """Go forward and back between phases 1 and 4, by all the gates, and end in DUAL_WRITE with all carried."""
    chance = random.Random(7)
    until = time.monotonic() + seconds
    flips = 0
    with ConsensusStore.open(path, settings=PATIENT) as store:
        migration = store.migration

        def forward() -> None:
            if migration.phase.compares:
                migration.backfill()
            if migration.phase.writes_normalized:
                report = migration.verify()
                assert report.clean, report.differences
            migration.advance(soak=False, reason="race")

        top, bottom, pause = Phase.NORMALIZED, Phase.EXPAND, 0.15  # all of it at least once
        while not flips or time.monotonic() < until:
            while migration.phase < top:
                forward()
                flips += 1
                time.sleep(chance.uniform(pause, 0.15))
            while migration.phase > bottom:
                migration.rollback(reason="race")
                flips += 1
                time.sleep(chance.uniform(pause, 0.15))
            top, bottom, pause = chance.choice(list(Phase)[1:4]), chance.choice(list(Phase)[:3]), 0
        pipe.send(flips)
        pipe.recv()  # until the writers have ended
        while migration.phase > Phase.DUAL_WRITE:
            migration.rollback()
        if migration.phase < Phase.DUAL_WRITE:
            migration.advance(soak=False)
        migration.backfill()
        report = migration.verify()
        pipe.send((report.clean, len(migration.mismatches(everything=True)), len(migration.rejects(everything=True))))


def wander(pipe: Connection, path: Path, seed: int) -> None:
    """Go to phases at random, CONTRACT among them, with all that belongs to it; whatever a killed one left behind."""
    chance = random.Random(seed)
    with ConsensusStore.open(path, settings=PATIENT) as store:
        migration = store.migration
        while not stopped(path):
            target = chance.choice([*Phase, Phase.CONTRACT])
            if (now := migration.phase) is Phase.CONTRACT and chance.random() < 0.5:
                migration.advance(soak=False)  # finishes the emptying of dropped tables, or undoes a rebuild
            if target < now:
                migration.rollback(target)
            while (now := migration.phase) < target and not stopped(path):
                if now.compares:
                    migration.backfill()
                if now.writes_normalized:
                    report = migration.verify()
                    assert report.clean, report.differences
                migration.advance(now.next, soak=False)
            if now.compares:
                migration.reconcile()
            store.maintenance.vacuum()
        now = migration.phase
        if now > Phase.DUAL_WRITE:
            migration.rollback(Phase.DUAL_WRITE)
        elif now < Phase.DUAL_WRITE:
            migration.advance(Phase.DUAL_WRITE, soak=False)
        migration.backfill()
        pipe.send((migration.verify().clean, len(migration.rejects(everything=True))))


def advance(pipe: Connection, path: Path | str, method: str, settings: dict[str, str]) -> None:
    """Change the phase once when told to, and tell how it went."""
    with ConsensusStore.open(path, settings=Settings.model_validate(settings)) as store:
        migration = store.migration
        pipe.send("ready")
        pipe.recv()
        started = time.monotonic()
        try:
            reached = migration.advance(soak=False) if method == "advance" else migration.rollback()
        except ConsensusError as error:
            pipe.send((type(error).__name__, str(error), time.monotonic() - started))
        else:
            pipe.send(("ok", reached.name, time.monotonic() - started))


def hold_and_write(pipe: Connection, path: Path) -> None:
    """Open a unit of work that writes, wait for leave, write in it, commit."""
    with ConsensusStore.open(path, settings=PATIENT) as store:
        with store.unit_of_work() as uow:
            pipe.send(uow.phase.value)
            pipe.recv()
            ids = add(uow, "LONG", "a")
        pipe.send(ids)


def sleep_and_write(pipe: Connection, path: Path) -> None:
    """Work, sleep through whatever happens with an old snapshot open, then go on in both an old and a new unit."""
    with ConsensusStore.open(path, settings=PATIENT) as store:
        with store.unit_of_work() as uow:
            first = add(uow, "SLEEPER", "before")
        old = store.unit_of_work(read_only=True)
        with old as uow:
            pipe.send((uow.phase.value, [a.model_dump_json() for a in uow.artifacts.list()]))
            pipe.recv()
            pipe.send((uow.phase.value, [a.model_dump_json() for a in uow.artifacts.list()]))
            try:
                add(uow, "SLEEPER", "old")
            except ConsensusError as error:
                pipe.send(type(error).__name__)
            else:
                pipe.send("written")
        with store.unit_of_work() as uow:
            pipe.send((uow.phase.value, add(uow, "SLEEPER", "after"), first))
        try:
            add(uow, "SLEEPER", "over")
        except ConsensusError as error:
            pipe.send(type(error).__name__)
        pipe.send(json.dumps(None))
