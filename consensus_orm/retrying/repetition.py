"""The interface of a step that is repeated after transient errors, for parts that know no retrier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

__all__ = ["Repeat", "once"]

T = TypeVar("T")


class Repeat(Protocol):
    """Takes a step, and again after a transient error, as the retrier of a store does."""

    def __call__(self, step: Callable[[], T], /) -> T:
        """Take a step, which must leave nothing behind when it fails."""
        ...


def once(step: Callable[[], T], /) -> T:
    """Take a step once, because the whole it is a part of is repeated."""
    return step()
