"""What a write and a read cost in a small file and in a large one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.data import artifact, filled, raw_connection
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.suites.reads import BY_ID
from consensus_orm import ConsensusStore, Phase
from consensus_orm.phase import Side

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
            "read of one of the newest 10,000 rows in the large file, to one in a file of 10,000",
            "read_recent",
            1.3,
            than="read_small",
            rows=10_000_000,
        ),
        Target(
            "read anywhere in the large file, to one in a file of 10,000 rows",
            "read_large",
            1.3,
            than="read_small",
            rows=10_000_000,
        ),
    ),
)
GROUPS = (WRITE, READ)


def _rows(bench: Bench, size: str) -> int:
    return min(SMALL, bench.rows) if size == "small" else bench.rows


def _file(bench: Bench, size: str) -> Path:
    """The file of a size, made once for both groups."""
    path = bench.folder / f"{_rows(bench, size)}.db"
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


def _ids(bench: Bench, where: str, seed: int) -> list[int]:
    """Ids to read, each as likely as the other: in the small file, anywhere in the large one or at its end."""
    rows = _rows(bench, where)
    first = max(1, rows - SMALL) if where == "recent" else 1
    return random.Random(seed).choices(range(first, rows + 1), k=bench.times(2000))


@READ.case("small", "recent", "large")
def read(bench: Bench, where: str) -> Iterator[Work]:
    """consensus_orm, cutover, {} (large: anywhere among --rows; recent: among its newest 10,000)"""
    with ConsensusStore.open(_file(bench, where)) as store:

        def work(round_: int) -> None:
            with store.unit_of_work(read_only=True) as uow:
                for id_ in _ids(bench, where, round_):
                    assert uow.artifacts.get(id_) is not None

        yield work


@READ.case("small", "recent", "large")
def raw_read(bench: Bench, where: str) -> Iterator[Work]:
    """raw sqlite3, a tuple of the normalized side, {}: what the size of a file costs SQLite itself"""
    with closing(raw_connection(_file(bench, where))) as connection:

        def work(round_: int) -> None:
            connection.execute("BEGIN")
            for id_ in _ids(bench, where, round_):
                assert connection.execute(BY_ID[Side.NORMALIZED], (id_,)).fetchone() is not None
            connection.execute("COMMIT")

        yield work
