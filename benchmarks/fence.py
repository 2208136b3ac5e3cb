"""What a fence between writers and a change of the phase costs on PostgreSQL, and whether it holds.

`python -m benchmarks.fence --url postgresql://...` needs an empty database, in which it makes and drops a schema
of its own. Each writer is a process with one connection; a transaction reads the phase, adds a row of 1 KB, and
commits: three round trips, whatever the fence.

First, one writer takes the fences in turn, transaction by transaction: this tells what each costs, even on a machine
that has other things to do. Then come rates under several writers, as ratios to the rate without a fence in the same
round. Then a flipper changes the phase every 50 ms, and each row that was committed under a phase that was over is
found: it carries the phase it was written under and its transaction, and each flip keeps the snapshot it had when it
held its lock. A row of the phase before that was not visible by then came too late.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

import psycopg

__all__ = ["FENCES", "ISOLATION_LEVELS", "Cell", "Fence", "Tally", "main"]

ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")

SCHEMA = b"""
DROP SCHEMA IF EXISTS fence_benchmark CASCADE;
CREATE SCHEMA fence_benchmark;
CREATE TABLE state (id integer PRIMARY KEY, phase integer NOT NULL, epoch integer NOT NULL);
INSERT INTO state VALUES (1, 1, 1);
CREATE TABLE turnstile (id integer PRIMARY KEY);
INSERT INTO turnstile VALUES (1);
CREATE TABLE written (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, epoch integer NOT NULL,
    payload text NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id());
CREATE TABLE flips (epoch integer PRIMARY KEY, snapshot pg_snapshot NOT NULL DEFAULT pg_current_snapshot());
"""

WRITE = b"INSERT INTO written (epoch, payload) VALUES (%s, %s)"
FLIP = b"UPDATE state SET phase = phase % 5 + 1, epoch = epoch + 1 WHERE id = 1 RETURNING epoch"
TOO_LATE = b"""
SELECT count(*) FROM written AS w JOIN flips AS f ON f.epoch = w.epoch + 1
WHERE NOT pg_visible_in_snapshot(w.xid, f.snapshot)
"""
PAYLOAD = "consensus" * 114

BETWEEN_FLIPS = 0.05
"""Seconds."""


@dataclass(frozen=True)
class Fence:
    """One way to make a change of the phase wait for those who write under the phase before.

    Attributes:
        name: As it is printed.
        enter: What a writer sends after BEGIN, in the same string; its last statement reads the phase.
        flip: What the change of a phase sends after its own BEGIN, at READ COMMITTED; may be empty.
        round_trips: Whether BEGIN and each statement are sent one by one instead.
    """

    name: str
    enter: tuple[bytes, ...]
    flip: bytes = b""
    round_trips: bool = False


READ = b"SELECT phase, epoch FROM state WHERE id = 1"
EXCLUSIVE = b"LOCK TABLE state IN EXCLUSIVE MODE"
ROW_SHARE = b"LOCK TABLE state IN ROW SHARE MODE"
LOCKED = b"SELECT FROM turnstile FOR UPDATE"
TURNSTILE = (b"SAVEPOINT t", b"SELECT FROM turnstile FOR KEY SHARE", b"ROLLBACK TO SAVEPOINT t")

FENCES = (
    Fence("none", (READ,)),
    Fence("FOR SHARE", (READ + b" FOR SHARE",)),
    Fence("FOR KEY SHARE", (READ + b" FOR KEY SHARE",), READ + b" FOR UPDATE"),
    Fence("KEY SHARE, turnstile", (*TURNSTILE, READ + b" FOR KEY SHARE"), b"; ".join((LOCKED, READ + b" FOR UPDATE"))),
    Fence("LOCK TABLE", (ROW_SHARE, READ), EXCLUSIVE),
    Fence("LOCK TABLE, one by one", (ROW_SHARE, READ), EXCLUSIVE, round_trips=True),
    Fence("advisory", (b"SELECT pg_advisory_xact_lock_shared(1)", READ), b"SELECT pg_advisory_xact_lock(1)"),
)


@dataclass(frozen=True)
class Cell:
    """What is measured at once.

    Attributes:
        fence: The fence.
        isolation: The isolation level of the writers.
        writers: How many there are.
        seconds: How long they write.
        flips: Whether the phase changes meanwhile.
    """

    fence: Fence
    isolation: str
    writers: int
    seconds: float
    flips: bool = False


@dataclass
class Tally:
    """What one process saw.

    Attributes:
        latencies: Of each transaction that committed, its repetitions included; of each flip, until it had its
            lock. Seconds.
        repeated: How many transactions were refused by SQLSTATE 40001 or 40P01, and repeated.
        elapsed: Seconds.
    """

    latencies: list[float] = field(default_factory=list)
    repeated: int = 0
    elapsed: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    """Measure all fences.

    Args:
        arguments: Those of the command line where left out.

    Returns:
        0.
    """
    given = _parser().parse_args(arguments)
    url = given.url.replace("postgresql+psycopg://", "postgresql://", 1)
    with _crew(url, max(given.writers)) as crew:
        print(_facts(url))
        for isolation in ISOLATION_LEVELS:
            _costs(url, isolation, given.transactions)
            for writers in given.writers:
                _speeds(crew, url, isolation, writers, given.seconds, given.rounds)
                _holds(crew, url, isolation, writers, given.seconds * given.rounds)
        with _connect(url) as connection:
            connection.execute(b"DROP SCHEMA fence_benchmark CASCADE")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fence", description=__doc__)
    parser.add_argument("--url", required=True, help="of a PostgreSQL database")
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 4, 16], help="(default %(default)s)")
    parser.add_argument("--transactions", type=int, default=2500, help="of each fence in turn (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default %(default)s)")
    return parser


def _facts(url: str) -> str:
    with _connect(url) as connection:
        names = ("server_version", "fsync", "synchronous_commit")
        return "  ".join(f"{name} {connection.execute(f'SHOW {name}'.encode()).fetchone()[0]}" for name in names)  # type: ignore[index]


def _costs(url: str, isolation: str, transactions: int) -> None:
    costs: dict[str, list[float]] = {fence.name: [] for fence in FENCES}
    with _connect(url) as connection:
        connection.execute(SCHEMA)
        for _ in range(transactions):
            for fence in FENCES:
                started = time.perf_counter()
                _written(connection, _entering(fence, isolation))
                costs[fence.name].append(time.perf_counter() - started)
    floor = statistics.median(costs["none"])
    print(f"\n{isolation}, one transaction (median)")
    for name, values in costs.items():
        median = statistics.median(values)
        print(f"  {name:24} {median / floor:6.2f}x {median * 1e6:8.0f} us")


def _speeds(crew: list[Pipe], url: str, isolation: str, writers: int, seconds: float, rounds: int) -> None:
    rates: dict[str, list[float]] = {fence.name: [] for fence in FENCES}
    p99s: dict[str, list[float]] = {fence.name: [] for fence in FENCES}
    for round_ in range(rounds + 1):
        for fence in FENCES:
            tallies = _measure(crew, url, Cell(fence, isolation, writers, seconds))
            if round_:  # the first one warms up
                rates[fence.name].append(sum(len(tally.latencies) / tally.elapsed for tally in tallies))
                p99s[fence.name].append(_p99([one for tally in tallies for one in tally.latencies]))
    print(f"\n{isolation}, {writers} writers  ({statistics.median(rates['none']):,.0f} transactions/s without a fence)")
    print(f"  {'':24} {'rate':>7} {'(rounds)':>14} {'p99':>7} {'p99 ms':>8}")
    for fence in FENCES:
        ratios = [one / floor for one, floor in zip(rates[fence.name], rates["none"], strict=True)]
        p99 = statistics.median(one / floor for one, floor in zip(p99s[fence.name], p99s["none"], strict=True))
        print(
            f"  {fence.name:24} {statistics.median(ratios):6.2f}x {min(ratios):6.2f} ..{max(ratios):5.2f} {p99:6.2f}x"
            f" {statistics.median(p99s[fence.name]) * 1000:8.2f}"
        )


def _holds(crew: list[Pipe], url: str, isolation: str, writers: int, seconds: float) -> None:
    print(f"  {'with a flip each 50 ms':24} {'writes':>8} {'too late':>9} {'repeated':>9} {'p99 ms':>8}", end="")
    print(f" {'flips':>6} {'wait ms':>8} {'longest':>8}")
    for fence in FENCES:
        *tallies, flipper = _measure(crew, url, Cell(fence, isolation, writers, seconds, flips=True))
        latencies = [one for tally in tallies for one in tally.latencies]
        with _connect(url) as connection:
            late = connection.execute(TOO_LATE).fetchone()
        assert late is not None
        print(
            f"  {fence.name:24} {len(latencies):8} {late[0]:9} {sum(tally.repeated for tally in tallies):9}"
            f" {_p99(latencies) * 1000:8.2f} {len(flipper.latencies):6}"
            f" {statistics.median(flipper.latencies) * 1000:8.2f} {max(flipper.latencies) * 1000:8.2f}"
        )
    sys.stdout.flush()


def _measure(crew: list[Pipe], url: str, cell: Cell) -> list[Tally]:
    """What the writers saw, and last, where the phase changes, the flipper."""
    with _connect(url) as connection:
        connection.execute(SCHEMA)
    flipper, *writers = crew
    busy = [*writers[: cell.writers], *([flipper] if cell.flips else [])]
    for pipe in busy:
        pipe.send(("flip" if pipe is flipper else "write", cell))
    return [pipe.recv() for pipe in busy]


@contextlib.contextmanager
def _crew(url: str, writers: int) -> Iterator[list[Pipe]]:
    """Processes that wait to be told what to do: one more than the writers."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(writers + 1):
        ours, theirs = context.Pipe()
        context.Process(target=_work, args=(theirs, url), daemon=True).start()
        assert ours.recv() == "ready"
        pipes.append(ours)
    try:
        yield pipes
    finally:
        for pipe in pipes:
            pipe.send(None)


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def _connect(url: str) -> psycopg.Connection[tuple[int, ...]]:
    return psycopg.connect(url, autocommit=True, options="-c search_path=fence_benchmark -c client_min_messages=error")


def _work(pipe: Pipe, url: str) -> None:
    with _connect(url) as connection:
        pipe.send("ready")
        while (told := pipe.recv()) is not None:
            task, cell = told
            connection.execute(b"DISCARD PLANS")
            pipe.send((_flip if task == "flip" else _write)(connection, cell))


def _write(connection: psycopg.Connection[tuple[int, ...]], cell: Cell) -> Tally:
    sent = _entering(cell.fence, cell.isolation)
    tally = Tally()
    begun = time.perf_counter()
    while (started := time.perf_counter()) < begun + cell.seconds:
        while not _written(connection, sent):
            tally.repeated += 1
        tally.latencies.append(time.perf_counter() - started)
    tally.elapsed = time.perf_counter() - begun
    return tally


def _entering(fence: Fence, isolation: str) -> tuple[bytes, ...]:
    statements = (b"BEGIN ISOLATION LEVEL " + isolation.encode(), *fence.enter)
    return statements if fence.round_trips else (b"; ".join(statements),)


def _written(connection: psycopg.Connection[tuple[int, ...]], enter: tuple[bytes, ...]) -> bool:
    try:
        for statement in enter:
            cursor = connection.execute(statement)
        while cursor.nextset():
            pass
        row = cursor.fetchone()
        assert row is not None
        connection.execute(WRITE, (row[1], PAYLOAD))
        connection.execute(b"COMMIT")
    except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
        connection.execute(b"ROLLBACK")
        return False
    return True


def _flip(connection: psycopg.Connection[tuple[int, ...]], cell: Cell) -> Tally:
    tally = Tally()
    begun = time.perf_counter()
    while time.perf_counter() < begun + cell.seconds:
        time.sleep(BETWEEN_FLIPS)
        started = time.perf_counter()
        connection.execute(b"BEGIN; " + cell.fence.flip)
        row = connection.execute(FLIP).fetchone()
        tally.latencies.append(time.perf_counter() - started)
        assert row is not None
        connection.execute(b"INSERT INTO flips (epoch) VALUES (%s)", row)
        connection.execute(b"COMMIT")
    tally.elapsed = time.perf_counter() - begun
    return tally


if __name__ == "__main__":
    sys.exit(main())
