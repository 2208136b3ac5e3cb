"""What a unit of work keeps others from doing until it ends: the fence, in four strengths."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Lock"]


class Lock(IntEnum):
    """The strength of a unit of work's lock.

    SQLite has one write lock, which all but NONE take. PostgreSQL takes a lock on the table of the phase: one in
    which writers do not keep each other waiting, but a change of phase waits for all of them, and they for it.
    """

    NONE = 0
    """Reads one snapshot; keeps nobody waiting, and nobody it."""
    WRITE = 1
    """Writes rows, beside others that do."""
    CARRY = 2
    """Carries rows from side to side: alone among those that carry or delete, beside those that add."""
    FLIP = 3
    """Changes the phase: alone among all that write."""
