"""Times that others on the machine may lengthen."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["shortest"]


def shortest(measure: Callable[[], float], *, below: float, tries: int = 10) -> float:
    """The shortest of some times: whatever else runs can lengthen one, code that waits too long does so each time.

    Args:
        measure: Does the work once, and says how long it took, s.
        below: As soon as one is shorter, no more are taken, s.
        tries: How many are taken at most.
    """
    times = [measure()]
    while min(times) >= below and len(times) < tries:
        times.append(measure())
    return min(times)
