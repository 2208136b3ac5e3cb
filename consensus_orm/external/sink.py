"""The interface of an external store: entries with a name and a text, put, read, deleted and listed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from consensus_orm import errors

__all__ = ["Capabilities", "InTurn", "Item", "Page", "Sink"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an external store can be relied on to do, as its declaration says.

    Attributes:
        exact_key: `get` finds the entry of exactly this name, and no other.
        complete_list: `list` gives every entry, each once.
        atomic_update: A put that is interrupted leaves the old content or the new one.
    """

    exact_key: bool
    complete_list: bool
    atomic_update: bool

    @property
    def provable(self) -> bool:
        """Whether a comparison with the store can prove that nothing differs."""
        return self.exact_key and self.complete_list

    @property
    def lacking(self) -> tuple[str, ...]:
        """What a proof needs and the store does not have."""
        return tuple(name for name in ("exact_key", "complete_list") if not getattr(self, name))


class Item(NamedTuple):
    """An entry of an external store.

    Attributes:
        name: What it is found by.
        content: Its text.
    """

    name: str
    content: str


class Page(NamedTuple):
    """A part of a listing.

    Attributes:
        items: The entries.
        following: Where the next page begins; None behind the last one.
    """

    items: tuple[Item, ...]
    following: str | None


@runtime_checkable
class Sink(Protocol):
    """An external store. One call is in flight at a time; a relay and a comparison may be two threads.

    A call that fails because the store is away raises `SinkUnavailableError`; one that the store refuses raises
    `SinkError`; a store that does not do what its declaration says raises `SinkContractError`.
    """

    @property
    def name(self) -> str:
        """The name under which the database keeps its stage; the same in every process."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the store can be relied on to do."""
        ...

    def put(self, name: str, content: str) -> None:
        """Store an entry, in the place of the one with this name if there is one.

        Args:
            name: ASCII.
            content: ASCII; JSON.
        """
        ...

    def get(self, name: str) -> str | None:
        """The content of an entry; None where there is none."""
        ...

    def delete(self, name: str) -> None:
        """Delete an entry; nothing happens where there is none."""
        ...

    def list(self, following: str | None = None) -> Page:
        """A page of all entries.

        Args:
            following: Where it begins; the first page where left out.
        """
        ...

    def close(self) -> None:
        """Let go of processes and connections; a later call opens them again."""
        ...


class InTurn:
    """An external store whose calls take turns (a relay and a comparison may be two threads), and are looked at.

    Args:
        sink: The external store.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._turn = threading.Lock()

    @property
    def name(self) -> str:
        """Its name."""
        return self._sink.name

    @property
    def capabilities(self) -> Capabilities:
        """What it can be relied on to do."""
        return self._sink.capabilities

    def put(self, name: str, content: str) -> None:
        """Store an entry."""
        with self._turn:
            self._sink.put(name, content)

    def get(self, name: str) -> str | None:
        """The content of an entry; None where there is none."""
        with self._turn:
            found = self._sink.get(name)
        self._require(isinstance(found, str | None), "get")
        return found

    def delete(self, name: str) -> None:
        """Delete an entry."""
        with self._turn:
            self._sink.delete(name)

    def list(self, following: str | None = None) -> Page:
        """A page of all entries."""
        with self._turn:
            page = self._sink.list(following)
        self._require(isinstance(page, Page) and isinstance(page.following, str | None), "list")
        self._require(isinstance(page.items, Sequence) and all(map(_is_item, page.items)), "list")
        return page

    def close(self) -> None:
        """Let go of processes and connections."""
        with self._turn:
            self._sink.close()

    def _require(self, as_declared: bool, call: str) -> None:
        if not as_declared:
            raise errors.SinkContractError(
                f"the answer of {call} of {self.name} is none of the type that the class Sink declares",
                hint="nothing was lost; correct the sink, then run the relay again",
                sink=self.name,
            )


def _is_item(found: object) -> bool:
    return isinstance(found, Item) and isinstance(found.name, str) and isinstance(found.content, str)
