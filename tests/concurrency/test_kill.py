"""kill -9 at statements, at bytes and at random.

After each kill raw SQL judges the file, and the step is done again. In CI a sample of the boundaries is taken,
all that stand beside a COMMIT among them; `CONSENSUS_ORM_TEST_SOAK=1` takes every one.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from tests.concurrency import actors
from tests.concurrency.files import (
    SETTINGS,
    Files,
    assert_sides_agree,
    assert_sound,
    flips,
    image,
    kept_in,
    phase_of,
    raw,
    records,
    small_file,
    truth,
)
from tests.concurrency.processes import Child, acknowledged, start
from tests.concurrency.steps import (
    STEPS,
    Step,
    count_statements,
    run_and_be_killed,
    run_and_run_out_of_bytes,
    with_journal,
)
from tests.support import oracle

SOAK = float(os.environ.get("CONSENSUS_ORM_TEST_SOAK") or "0")
STATEMENTS_IN_CI = 16
BYTES_IN_CI = 5
RANDOM_KILLS_IN_CI = 60
FEW = ("rebuild",)
"""What is killed without the long tests, too: the longest step of all."""


@dataclass
class Undisturbed:
    """A step that nobody interrupted: what it should come to."""

    name: str
    step: Step
    original: Path
    before: dict[str, object]
    truth_before: dict[str, list[oracle.Row]]
    after: dict[str, object]
    truth_after: dict[str, list[oracle.Row]]
    records: list[object]
    statements: list[str]
    longest: int
    wal: bool


def undisturbed(files: Files, folder: Path, name: str, *, wal: bool = True) -> Undisturbed:
    """Do a step once, to have something to compare with."""
    step = STEPS[name]
    original = files.copy(folder / "original.db", step.start, step.build, change=step.change, wal=wal)
    (folder / "reference").mkdir()
    reference = folder / "reference" / "store.db"
    shutil.copyfile(original, reference)
    before, truth_before = image(reference), truth(reference)
    with kept_in(reference, wal=wal):
        child = start(count_statements, reference, name)
        statements, longest = child.hear()
        assert child.join() == 0
    with ConsensusStore.open(reference, settings=SETTINGS) as store:
        seen = records(store)
    after, truth_after = image(reference), truth(reference)
    return Undisturbed(name, step, original, before, truth_before, after, truth_after, seen, statements, longest, wal)


def interrupt_and_resume(run: Undisturbed, folder: Path, work: Any, point: int) -> None:
    """Kill the step at a point, judge what is left by raw SQL, do it again, judge what has come of it."""
    path = folder / "store.db"
    folder.mkdir()
    shutil.copyfile(run.original, path)
    with kept_in(path, wal=run.wal):
        child = start(work, path, run.name, point)
        child.join()
        assert child.was_killed
        judge_and_resume(run, path)
    shutil.rmtree(folder)


def judge_and_resume(run: Undisturbed, path: Path) -> None:
    """Judge what a kill left, do the step again, and judge what has come of it."""
    step = run.step

    # Whoever comes first finds a hot journal or a log: reading must do.
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        found = store.migration.phase
        if not step.writes:
            assert records(store) == run.records
    assert found == phase_of(path)
    assert min(step.start, step.end) <= found <= max(step.start, step.end)
    assert_sound(path)
    assert truth(path) in ([run.truth_before, run.truth_after] if step.writes else [run.truth_before])
    if step.atomic:
        assert image(path) in [run.before, run.after]

    with ConsensusStore.open(path, settings=SETTINGS) as store:
        step.work(store)
        assert records(store) == run.records
    assert_sound(path)
    assert image(path) == run.after
    if step.carries:
        assert_sides_agree(path)
    if not step.end.has_legacy:
        assert not [name for name in oracle.tables(path) if name.endswith(oracle.LEGACY)]


def boundaries(run: Undisturbed) -> list[int]:
    """Numbers of the statements to be killed before: those beside a COMMIT first, then others at random."""
    every = range(1, len(run.statements) + 2)
    if SOAK:
        return list(every)
    commits = [n for n, statement in enumerate(run.statements, 1) if statement.startswith("COMMIT")]
    beside = sorted({m for n in commits for m in (n, n + 1)})
    chance = random.Random(run.name)
    chosen = beside if len(beside) <= STATEMENTS_IN_CI // 2 else chance.sample(beside, STATEMENTS_IN_CI // 2)
    rest = [n for n in every if n not in chosen]
    return sorted([*chosen, *chance.sample(rest, min(len(rest), STATEMENTS_IN_CI - len(chosen)))])


@pytest.mark.timeout(3600 if SOAK else 120)
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.long) for name in STEPS])
def test_a_kill_between_two_statements_loses_nothing(files: Files, tmp_path: Path, name: str) -> None:
    """Killed before any statement, a step leaves the truth as it was, and done again it comes to its end."""
    run = undisturbed(files, tmp_path, name)
    for boundary in boundaries(run):
        interrupt_and_resume(run, tmp_path / f"{boundary}", run_and_be_killed, boundary)


@pytest.mark.long
@pytest.mark.timeout(3600 if SOAK else 120)
@pytest.mark.parametrize("wal", [True, False], ids=["wal", "journal"])
@pytest.mark.parametrize(
    "name", ["write_in_dual_write", "backfill", "flip_1_2", "rollback_4_3", "contract", "rebuild", "full_vacuum"]
)
def test_a_kill_within_a_commit_loses_nothing(files: Files, tmp_path: Path, name: str, wal: bool) -> None:
    """Killed in the middle of a write to the log, the journal or the file, half of it on disk: the same."""
    run = undisturbed(files, tmp_path, name, wal=wal)
    longest = max(run.longest, run.original.stat().st_size)
    chance = random.Random(name)
    sizes = range(512, longest, 3000) if SOAK else sorted(chance.sample(range(512, longest), BYTES_IN_CI))
    for size in sizes:
        interrupt_and_resume(run, tmp_path / f"{size}", run_and_run_out_of_bytes, size)


@pytest.mark.long
@pytest.mark.timeout(3600 if SOAK else 180)
def test_processes_killed_at_random_lose_nothing_they_acknowledged(files: Files, path: Path) -> None:
    """Writers and whoever moves the phase are killed at random and started again, through all five phases."""
    files.copy(path, Phase.EXPAND, small_file, change=with_journal)
    chance = random.Random(4)
    born = itertools.count()
    writers: list[str] = []

    def writer() -> Child:
        writers.append(f"w{next(born)}")
        return start(actors.write, path, writers[-1])

    def mover() -> Child:
        return start(actors.wander, path, next(born))

    makers = [writer, writer, mover]
    alive = [make() for make in makers]
    killed: list[str] = []
    seen: set[int] = set()
    for _ in range(int(10 * SOAK) or RANDOM_KILLS_IN_CI):
        time.sleep(chance.uniform(0.02, 0.2))
        seen.add(phase_of(path))
        number = chance.choice([0, 1, 2, 2])
        child = alive[number]
        assert child.process.is_alive(), child.hear()
        child.kill()
        assert child.was_killed
        killed.append(child.process.name)
        if chance.random() < 0.3:  # first of all, somebody looks
            with ConsensusStore.open(path, settings=SETTINGS) as store:
                records(store)
        alive[number] = makers[number]()
    path.with_name("stop").touch()
    for child in alive:
        told = child.hear(120)
        assert child.join() == 0
    assert told == (True, 0)
    print(f"\n{len(killed)} kills of {Counter(killed)}, {sum_of_acks(path, writers)} writes, {len(flips(path))} flips")
    assert_sound(path)
    assert_sides_agree(path)
    assert seen == set(Phase) or not SOAK
    for name in writers:
        assert_acknowledged(path, name)


def sum_of_acks(path: Path, writers: list[str]) -> int:
    return sum(len(acknowledged(path.with_name(f"{name}.acks"))) for name in writers)


def assert_acknowledged(path: Path, name: str) -> None:
    """What a writer was told is there, once and with the id it was told, and beside it at most what it did last."""
    rows: dict[str, set[tuple[int, int]]] = {}
    deleting: str | None = None
    for words in acknowledged(path.with_name(f"{name}.acks")):
        if words[0] == "added":
            rows.setdefault(words[1], set()).add((int(words[2]), int(words[3])))
        elif words[0] == "deleting":
            deleting = words[1]
        else:
            deleting = None
            rows[words[1]] = set()
    with raw(path) as connection:
        query = (
            "SELECT spec_id, CAST(substr(agent_name, 2) AS INTEGER), id FROM consensus_artifacts WHERE spec_id GLOB ?"
        )
        found: dict[str, set[tuple[int, int]]] = {spec: set() for spec in rows}
        for spec, number, key in connection.execute(query, (f"{name}-*",)):
            found.setdefault(spec, set()).add((number, key))
    extra = 0
    for spec, wanted in [(spec, rows.get(spec, set())) for spec in found]:
        if spec == deleting and not found[spec]:
            continue
        assert found[spec] >= wanted, f"{spec} lost an acknowledged write"
        extra += len(found[spec] - wanted)
    assert extra <= 1, "there is more than one write that nobody acknowledged"
