"""The locks of units of work, by which a change of the phase waits for writers: the fence."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Lock"]


class Lock(IntEnum):
    """The strength of the lock of a unit of work, held until it ends.

    SQLite has one write lock, which all but NONE take. PostgreSQL locks the table of the phase: writers do not wait for
    each other, but a change of the phase waits for all of them, and they wait for it.
    """

    NONE = 0
    """Reads one snapshot, without any lock."""
    WRITE = 1
    """Writes rows, at the same time as other writers."""
    RANGE = 2
    """Carries rows of a range that no other unit carries: excludes what CARRY excludes, but not others of its kind. At
    READ COMMITTED on a server, whatever the settings say: units that share rows of parents would fail otherwise."""
    CARRY = 3
    """Carries rows from one side to the other: excludes other units that carry or delete rows, not those that add."""
    ALONE = 4
    """Writes rows while no other unit of work writes: excludes every other writer."""
    FLIP = 5
    """Changes the phase: excludes every other writer."""

    @property
    def carries(self) -> bool:
        """Whether a unit of work moves rows or phases, and does not write for the application."""
        return self in (Lock.RANGE, Lock.CARRY, Lock.FLIP)
