"""One artifact, in a transaction of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks import ladder
from benchmarks.data import artifact, database, raw_connection, store_in
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.raw import LEGACY, raw_sides
from consensus_orm import Phase

COUNT = 200
GROUP = Group(
    "one artifact, its own transaction",
    unit="write",
    count=COUNT,
    baseline="plain_orm",
    targets=(
        Target("compared write, phase 2, to a plain ORM write", "ours_dual_write", 1.3, than="plain_orm"),
        Target("compared write, phase 3, to a plain ORM write", "ours_cutover", 1.3, than="plain_orm"),
        Target(
            "compared write, phase 2, to prebuilt Core that compares, too", "ours_dual_write", 1.0, than="core_both"
        ),
        Target("compared write, phase 2, to raw sqlite3 on both sides", "ours_dual_write", 2.5, than="raw_both"),
        Target("compared write, phase 3, to raw sqlite3 on both sides", "ours_cutover", 2.5, than="raw_both"),
    ),
)
GROUPS = (GROUP,)


def _numbers(bench: Bench, round_: int) -> range:
    start = (round_ + 1) * bench.times(COUNT)
    return range(start, start + bench.times(COUNT))


def _each(bench: Bench, writer: Callable[[Path], AbstractContextManager[ladder.Write]], name: str) -> Iterator[Work]:
    with writer(bench.file(name)) as write:

        def work(round_: int) -> None:
            for number in _numbers(bench, round_):
                write([artifact(number)])

        yield work


@GROUP.case()
def raw_legacy(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, the legacy row"""
    connection = raw_connection(database(bench.file("raw_legacy")))

    def work(round_: int) -> None:
        for number in _numbers(bench, round_):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(LEGACY, artifact(number))
            connection.execute("COMMIT")

    yield work
    connection.close()


@GROUP.case()
def raw_both(bench: Bench) -> Iterator[Work]:
    """raw sqlite3, both sides, uncompared"""
    with raw_sides(bench.file("raw_both")) as raw:

        def work(round_: int) -> None:
            for number in _numbers(bench, round_):
                raw.transaction(lambda n=number: raw.artifact(artifact(n)))  # type: ignore[misc]

        yield work


@GROUP.case()
def core(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy Core, prebuilt, the legacy row"""
    yield from _each(bench, ladder.core, "core")


@GROUP.case()
def core_both(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy Core, prebuilt, both sides by hand, compared"""
    yield from _each(bench, ladder.core_both, "core_both")


@GROUP.case()
def plain_orm(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy ORM, the legacy row"""
    yield from _each(bench, ladder.orm, "orm")


@GROUP.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED)
def ours(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, {}"""
    with store_in(bench.file("ours"), phase) as store:

        def work(round_: int) -> None:
            for number in _numbers(bench, round_):
                with store.unit_of_work() as uow:
                    uow.artifacts.add(**artifact(number))

        yield work


@GROUP.case()
def orm_both(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy ORM, both sides by hand, uncompared"""
    yield from _each(bench, ladder.orm_both, "orm_both")


@GROUP.case()
def laboratory(bench: Bench) -> Iterator[Work]:
    """laboratory, both sides, uncompared"""
    yield from _each(bench, ladder.laboratory_experiment, "laboratory")


@GROUP.case()
def launchdarkly(bench: Bench) -> Iterator[Work]:
    """LaunchDarkly's migrator, both sides, uncompared"""
    yield from _each(bench, ladder.launchdarkly_migrator, "launchdarkly")


@GROUP.case()
def peewee(bench: Bench) -> Iterator[Work]:
    """peewee, the legacy row"""
    yield from _each(bench, ladder.peewee_orm, "peewee")


@GROUP.case()
def django(bench: Bench) -> Iterator[Work]:
    """Django ORM, the legacy row"""
    yield from _each(bench, ladder.django_orm, "django")


@GROUP.case()
def sqlmodel(bench: Bench) -> Iterator[Work]:
    """SQLModel, the legacy row"""
    yield from _each(bench, ladder.sqlmodel_orm, "sqlmodel")
