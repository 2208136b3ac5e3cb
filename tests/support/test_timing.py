"""What the tests say of times: a share of the runs that is stated, not the best of them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.support.timing import assert_typical, lateness

SHORT, LONG = 0.1, 60.0


@pytest.mark.parametrize(
    ("times", "passes", "taken"),
    [
        ([SHORT] * 3, True, 3),
        ([LONG] * 3, False, 3),
        ([LONG, SHORT, SHORT, LONG, SHORT], True, 5),
        ([SHORT, LONG, SHORT, LONG, LONG], False, 5),
        ([SHORT, LONG, LONG, LONG], False, 4),
    ],
)
def test_more_than_half_of_the_runs_are_short(times: list[float], passes: bool, taken: int) -> None:
    """One that went well is no proof; no more runs are taken than decide it."""
    left = list(times)
    said = ""
    try:
        assert_typical(lambda: left.pop(0), below=0.5)
    except AssertionError as error:
        said = str(error)
    assert (said == "", len(times) - len(left)) == (passes, taken)
    assert passes or "3 of " in said


@pytest.mark.long
def test_a_machine_that_is_late_is_seen() -> None:
    """Where others keep the processors busy, the same work takes longer, and that much is allowed."""
    with lateness() as calm:
        time.sleep(0.3)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(12)]
    try:
        for _ in range(5):  # none of its 800 milliseconds of work need be interrupted
            with lateness() as late:
                time.sleep(4)
            if late.seconds > 0.001:
                break
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert calm.seconds >= 0
    assert 0.001 < late.seconds < 10
