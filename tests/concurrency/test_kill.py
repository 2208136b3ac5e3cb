"""kill -9 at statements, at bytes and at random (issue 4, item 5).

After each kill raw SQL judges the file, and the step is done again. In CI a sample of the boundaries is taken,
all that stand beside a COMMIT among them; `CONSENSUS_ORM_TEST_SOAK=1` takes every one.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore
from tests import oracle
from tests.concurrency.files import (
    SETTINGS,
    Files,
    assert_sides_agree,
    assert_sound,
    image,
    phase_of,
    records,
    truth,
)
from tests.concurrency.processes import start
from tests.concurrency.steps import STEPS, Step, count_statements, run_and_be_killed, run_and_run_out_of_bytes

SOAK = float(os.environ.get("CONSENSUS_ORM_TEST_SOAK", "0"))
STATEMENTS_IN_CI = 16
BYTES_IN_CI = 5


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


def undisturbed(files: Files, folder: Path, name: str, *, wal: bool = True) -> Undisturbed:
    """Do a step once, to have something to compare with."""
    step = STEPS[name]
    original = files.copy(folder / "original.db", step.start, step.build, change=step.change, wal=wal)
    (folder / "reference").mkdir()
    reference = folder / "reference" / "store.db"
    shutil.copyfile(original, reference)
    before, truth_before = image(reference), truth(reference)
    child = start(count_statements, reference, name)
    statements, longest = child.hear()
    assert child.join() == 0
    with ConsensusStore.open(reference, settings=SETTINGS) as store:
        seen = records(store)
    after, truth_after = image(reference), truth(reference)
    return Undisturbed(name, step, original, before, truth_before, after, truth_after, seen, statements, longest)


def interrupt_and_resume(run: Undisturbed, folder: Path, work: Any, point: int) -> None:
    """Kill the step at a point, judge what is left by raw SQL, do it again, judge what has come of it."""
    step, path = run.step, folder / "store.db"
    folder.mkdir()
    shutil.copyfile(run.original, path)
    child = start(work, path, run.name, point)
    child.join()
    assert child.was_killed

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
    shutil.rmtree(folder)


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
@pytest.mark.parametrize("name", STEPS)
def test_a_kill_between_two_statements_loses_nothing(files: Files, tmp_path: Path, name: str) -> None:
    """Killed before any statement, a step leaves the truth as it was, and done again it comes to its end."""
    run = undisturbed(files, tmp_path, name)
    for boundary in boundaries(run):
        interrupt_and_resume(run, tmp_path / f"{boundary}", run_and_be_killed, boundary)


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
