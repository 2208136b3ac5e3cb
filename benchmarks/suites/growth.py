"""What a write and a read cost in a small file and in a large one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.data import artifact, filled
from benchmarks.harness import Bench, Group, Target, Work
from consensus_orm import ConsensusStore, Phase

SMALL = 10_000
TEXT = "x" * 100
WRITE = Group(
    "a compared write in a growing file, phase 3",
    unit="write",
    count=500,
    baseline="write_small",
    targets=(
        Target(
            "write in the large file, to one in a file of 10,000 rows",
            "write_large",
            1.3,
            than="write_small",
            rows=10_000_000,
        ),
    ),
)
READ = Group(
    "a read by id in a growing file, phase 3",
    unit="read",
    count=2000,
    baseline="read_small",
    targets=(
        Target(
            "read in the large file, to one in a file of 10,000 rows",
            "read_large",
            1.3,
            than="read_small",
            rows=10_000_000,
        ),
    ),
)
GROUPS = (WRITE, READ)


def _rows(bench: Bench, size: str) -> int:
    return bench.rows if size == "large" else min(SMALL, bench.rows)


def _file(bench: Bench, size: str) -> Path:
    """The file of a size, made once for both groups."""
    path = bench.folder / f"{size}.db"
    return path if path.exists() else filled(path, Phase.CUTOVER, _rows(bench, size), TEXT)


@WRITE.case("small", "large")
def write(bench: Bench, size: str) -> Iterator[Work]:
    """consensus_orm, cutover, the {} file (large: --rows)"""
    rows = _rows(bench, size)
    with ConsensusStore.open(_file(bench, size)) as store:

        def work(round_: int) -> None:
            start = rows + (round_ + 1) * bench.times(500)
            for number in range(start, start + bench.times(500)):
                with store.unit_of_work() as uow:
                    uow.artifacts.add(**artifact(number, TEXT))

        yield work


@READ.case("small", "large")
def read(bench: Bench, size: str) -> Iterator[Work]:
    """consensus_orm, cutover, the {} file (large: --rows)"""
    rows = _rows(bench, size)
    with ConsensusStore.open(_file(bench, size)) as store:

        def work(round_: int) -> None:
            with store.unit_of_work(read_only=True) as uow:
                for id_ in random.Random(round_).choices(range(1, rows + 1), k=bench.times(2000)):
                    assert uow.artifacts.get(id_) is not None

        yield work
