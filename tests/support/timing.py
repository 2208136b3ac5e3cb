"""Times that others on the machine may lengthen: by how much is measured beside, and a share of the runs must hold."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

__all__ = ["assert_typical", "lateness"]

OFTEN = 4
"""What the machine does once to a millisecond of work, it does to that of a test several times: 2 to 3 (measured)."""

BYSTANDER = """
import os, select, sys, time
file = os.open(sys.argv[1], os.O_WRONLY) if sys.argv[1:] else None
times = []
print("ready", flush=True)
while not select.select([0], [], [], 0.004)[0]:
    started, work = time.perf_counter(), time.thread_time()
    while time.thread_time() - work < 0.001:
        pass
    if file is not None:
        os.pwrite(file, b"x", 0)
        os.fsync(file)
    times.append(time.perf_counter() - started)
print(max(times, default=0) - min(times, default=0))
"""
"""Works for a millisecond, over and over, until its input ends, and says how much longer than the shortest the longest
of these took."""


class Late:
    """How late the machine was, in seconds; known when it was measured."""

    seconds = 0.0


@contextlib.contextmanager
def lateness(*, disk: bool = False) -> Iterator[Late]:
    """Measure what others on the machine do, while a block runs, to a program that wants little of it.

    Args:
        disk: Whether that program writes to the disk, too.
    """
    late = Late()
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, "-I", "-S", "-c", BYSTANDER, *([file.name] if disk else [])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bystander:
            assert bystander.stdout is not None
            bystander.stdout.readline()
            try:
                yield late
            finally:
                late.seconds = float(bystander.communicate()[0])


def assert_typical(measure: Callable[[], float], *, below: float, disk: bool = False, runs: int = 5) -> None:
    """More than half of some runs take less than a limit, and what a late machine adds to it: the median does.

    Whatever else runs can lengthen a run. Code that waits too long does so each time, or every second time, and that
    must not pass because one run went well. No more runs are taken than it needs to tell.

    Args:
        measure: Does the work once, and says how long it took, s.
        below: The limit, s.
        disk: Whether the work waits for the disk.
        runs: How many there are, an odd number: 5 pass in 1 of 6 cases where 3 of 10 runs are short, and fail in 1 of
            100 where 9 of 10 are.

    Raises:
        AssertionError: More than half of them took longer.
    """
    taken: list[tuple[float, float]] = []
    short = 0
    while 2 * short < runs and 2 * (len(taken) - short) < runs:
        with lateness(disk=disk) as late:
            time = measure()
        taken.append((time, late.seconds))
        short += time < below + OFTEN * late.seconds
    said = ", ".join(f"{time:.3f} s (the machine was {late:.3f} s late)" for time, late in taken)
    assert 2 * short > runs, f"{len(taken) - short} of {len(taken)} runs took {below} s or more: {said}"
