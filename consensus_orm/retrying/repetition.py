"""Steps that are taken again: what is handed to a part that knows no store, and so no retry policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

__all__ = ["Repeat", "once"]

T = TypeVar("T")


class Repeat(Protocol):
    """Takes a step, and takes it again after a transient error: the retrier of a store does."""

    def __call__(self, step: Callable[[], T], /) -> T:
        """Take it.

        Args:
            step: Leaves nothing behind when it fails.
        """
        ...


def once(step: Callable[[], T], /) -> T:
    """Take a step once: what it is a part of is taken again as a whole."""
    return step()
