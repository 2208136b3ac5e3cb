"""A change of phase while four threads write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.data import artifact, filled, store_in
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.probe import lock_times
from consensus_orm import ConsensusStore, Phase

WRITERS = 4
ROWS_TO_DROP = 20_000
"""Legacy rows of 1 KB that are there before the flip to CONTRACT."""

GROUP = Group(
    "a change of phase under 4 writers",
    unit="flip",
    count=1,
    baseline="rollback_dual_write",
    targets=(
        *(
            Target(f"{what}, beyond the longest unit of work, ms", case, 100, None, "longest flip ms")
            for what, case in (
                ("advance 2 to 3", "advance_cutover"),
                ("rollback 3 to 2", "rollback_dual_write"),
                ("advance 3 to 4", "advance_normalized"),
                ("rollback 4 to 3", "rollback_cutover"),
            )
        ),
        Target("advance 4 to 5, longest lock with backup and dropping, ms", "contract", 100, None, "longest lock ms"),
    ),
)
GROUPS = (GROUP,)


@contextmanager
def _writers(store: ConsensusStore) -> Iterator[list[float]]:
    """Threads that write all the while; seconds of each unit of work."""
    stop, seconds = threading.Event(), [0.0]

    def write(writer: int) -> None:
        number = writer * 10**8
        while not stop.is_set():
            number += 1
            with store.unit_of_work() as uow:
                started = time.perf_counter()  # what it waits for its turn is not its own length
                uow.artifacts.add(**artifact(number))
            seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _flip(store: ConsensusStore, flip: Callable[[], object]) -> dict[str, float]:
    with _writers(store) as seconds:
        time.sleep(0.02)
        started = time.perf_counter()
        flip()
        took = time.perf_counter() - started
    return {"seconds": took, "longest flip ms": max(0.0, took - max(seconds)) * 1000}


@GROUP.case(Phase.CUTOVER, Phase.NORMALIZED)
def advance(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, advance to {}, verified before"""
    assert phase.previous is not None
    with store_in(bench.file("advance"), phase.previous) as store:

        def work(round_: int) -> dict[str, float]:
            store.migration.rollback(phase.previous)
            store.migration.backfill()
            store.migration.verify()
            return _flip(store, lambda: store.migration.advance(phase, soak=False))

        yield work


@GROUP.case(Phase.DUAL_WRITE, Phase.CUTOVER)
def rollback(bench: Bench, phase: Phase) -> Iterator[Work]:
    """consensus_orm, rollback to {}"""
    with store_in(bench.file("rollback"), phase) as store:

        def work(round_: int) -> dict[str, float]:
            store.migration.backfill()
            store.migration.verify()
            store.migration.migrate(phase.next or phase, soak=False)
            return _flip(store, lambda: store.migration.rollback(phase))

        yield work


@GROUP.case()
def contract(bench: Bench) -> Iterator[Work]:
    """consensus_orm, advance to contract: its backup, its flip, and the legacy tables dropped in chunks"""
    path = filled(bench.file("contract"), Phase.NORMALIZED, min(bench.rows, ROWS_TO_DROP), "x" * 1000)
    with ConsensusStore.open(path) as store:

        def work(round_: int) -> dict[str, float]:
            store.migration.rollback(Phase.NORMALIZED)
            store.migration.verify()
            with lock_times() as held, _writers(store):
                started = time.perf_counter()
                store.migration.advance(Phase.CONTRACT, soak=False)
                took = time.perf_counter() - started
            return {"seconds": took, "longest lock ms": max(held) * 1000}

        yield work
