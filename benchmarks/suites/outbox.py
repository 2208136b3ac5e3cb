"""What an external store costs its writers: a compared write with the outbox of a mirror, and without one."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.data import store_in, writes_to
from benchmarks.harness import Bench, Group, Target, Work
from consensus_orm import ConsensusStore, Phase
from consensus_orm.external import Mirror, Stage
from consensus_orm.external.artifacts import read_artifact
from consensus_orm.testing.sinks import MemorySink

COUNT = 200

PRICE = Group(
    "one artifact in phase 2, its own transaction",
    unit="write",
    count=COUNT,
    baseline="without",
    targets=(Target("compared write with an outbox, to one without", "with_an_outbox", 1.25, than="without"),),
)


@PRICE.case()
def without(bench: Bench) -> Iterator[Work]:
    """no external store"""
    with store_in(bench.file("without"), Phase.DUAL_WRITE) as store:
        yield writes_to(store, bench.times(COUNT))


@PRICE.case()
def with_an_outbox(bench: Bench) -> Iterator[Work]:
    """the outbox of a store in memory"""
    with store_in(bench.file("outbox"), Phase.DUAL_WRITE) as store:
        mirror(store)
        yield writes_to(store, bench.times(COUNT))


def mirror(store: ConsensusStore) -> None:
    """Have the units of work of a store write the outbox of a store in memory."""
    made = Mirror(store, MemorySink(), read=read_artifact)
    made.advance(Stage.IMPORT)
    made.import_entries()
    made.advance(Stage.MIRROR)


GROUPS = (PRICE, PRICE.in_cpu_time("without", "with_an_outbox"))
