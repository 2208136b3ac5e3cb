"""Many artifacts in one transaction, and a whole round of agents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks import ladder
from benchmarks.data import artifact, store_in, synthesis
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.raw import raw_sides
from consensus_orm import Phase

MANY = Group(
    "1000 artifacts in one transaction",
    unit="artifact",
    count=1000,
    baseline="raw_many",
    targets=(
        Target(
            "add_many compared, phase 2, rows/s of raw executemany", "add_many_dual_write", 0.62, "raw_many", None, True
        ),
        Target(
            "add_many compared, phase 3, rows/s of raw executemany", "add_many_cutover", 0.62, "raw_many", None, True
        ),
    ),
)
ROUND = Group(
    "12 artifacts and a synthesis in one transaction",
    unit="round",
    count=20,
    baseline="raw_round",
    targets=(
        Target("a round compared, phase 2, to raw sqlite3", "ours_dual_write", 1.9, than="raw_round"),
        Target("a round compared, phase 3, to raw sqlite3", "ours_cutover", 1.9, than="raw_round"),
    ),
)
GROUPS = (MANY, ROUND)


def _numbers(bench: Bench, round_: int) -> range:
    start = (round_ + 1) * bench.times(1000)
    return range(start, start + bench.times(1000))


def _many(bench: Bench, writer: Callable[[Path], AbstractContextManager[ladder.Write]], name: str) -> Iterator[Work]:
    with writer(bench.file(name)) as write:
        yield lambda round_: write([artifact(n) for n in _numbers(bench, round_)])


@MANY.case()
def raw_many(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, executemany on both sides, uncompared"""
    with raw_sides(bench.file("many_raw")) as raw:

        def work(round_: int) -> None:
            rows = [artifact(n) for n in _numbers(bench, round_)]
            raw.transaction(lambda: raw.artifacts(rows))

        yield work


@MANY.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
def add_many(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm add_many, {}"""
    with store_in(bench.file("add_many"), phase) as store:

        def work(round_: int) -> None:
            with store.unit_of_work() as uow:
                uow.artifacts.add_many([artifact(n) for n in _numbers(bench, round_)])

        yield work


@MANY.case()
def core(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy Core, the legacy rows"""
    yield from _many(bench, ladder.core, "many_core")


@MANY.case()
def plain_orm(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy ORM, the legacy rows"""
    yield from _many(bench, ladder.orm, "many_orm")


@MANY.case()
def peewee(bench: Bench) -> Iterator[Work]:
    """peewee insert_many, the legacy rows"""
    yield from _many(bench, ladder.peewee_orm, "many_peewee")


@MANY.case()
def django(bench: Bench) -> Iterator[Work]:
    """Django bulk_create, the legacy rows"""
    yield from _many(bench, ladder.django_orm, "many_django")


@MANY.case()
def sqlmodel(bench: Bench) -> Iterator[Work]:
    """SQLModel add_all, the legacy rows"""
    yield from _many(bench, ladder.sqlmodel_orm, "many_sqlmodel")


def _starts(bench: Bench, round_: int) -> range:
    first = (round_ + 1) * bench.times(20) * 12
    return range(first, first + bench.times(20) * 12, 12)


@ROUND.case()
def raw_round(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, both sides, uncompared"""
    with raw_sides(bench.file("round_raw")) as raw:

        def write(start: int) -> None:
            for number in range(start, start + 12):
                raw.artifact(artifact(number))
            raw.synthesis(synthesis(start))

        def work(round_: int) -> None:
            for start in _starts(bench, round_):
                raw.transaction(lambda s=start: write(s))  # type: ignore[misc]

        yield work


@ROUND.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
def ours(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}"""
    with store_in(bench.file("round_ours"), phase) as store:

        def work(round_: int) -> None:
            for start in _starts(bench, round_):
                with store.unit_of_work() as uow:
                    for number in range(start, start + 12):
                        uow.artifacts.add(**artifact(number))
                    uow.syntheses.add(**synthesis(start))

        yield work
