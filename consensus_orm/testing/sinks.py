"""External stores for tests: one in memory that keeps its word, and one that lies in a way of your choice."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from consensus_orm.external.sink import Capabilities, Item, Page

__all__ = ["Lie", "LyingSink", "MemorySink"]

EVERYTHING = Capabilities(exact_key=True, complete_list=True, atomic_update=True)


class Lie(StrEnum):
    """What an external store may do while it says that all is well."""

    STORES_NOTHING = "stores nothing"
    """A put succeeds and changes nothing."""
    KEEPS_THE_OLD = "keeps the old"
    """A put of a name that is there succeeds and keeps the old content."""
    READS_STALE = "reads stale"
    """Reads and lists give what was there before the last put."""
    DUPLICATES = "duplicates"
    """The listing has an entry twice."""
    LOSES = "loses"
    """An entry disappears some time after it was read back."""
    CHANGES = "changes"
    """The content of an entry changes some time after it was read back."""
    LISTS_LESS = "lists less"
    """The listing leaves an entry out."""
    KEEPS_DELETED = "keeps deleted"
    """A delete succeeds and deletes nothing."""
    REORDERS = "reorders"
    """A put takes effect when the next one is made, so that an older content may come last."""
    INVENTS = "invents"
    """The listing has an entry that nobody put."""


class MemorySink:
    """An external store in memory, which keeps its word.

    Args:
        name: The name under which the database keeps its stage.
        capabilities: What it declares.
    """

    page = 100

    def __init__(self, name: str = "memory", *, capabilities: Capabilities = EVERYTHING) -> None:
        self.name = name
        self.capabilities = capabilities
        self.items: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        """Each call with the name it was about, in order."""
        self.before: Callable[[str, str], object] = lambda call, name: None
        """Called before each call, with its name and that of the entry; its error is that of the call."""

    def _begin(self, call: str, name: str) -> None:
        self.calls.append((call, name))
        self.before(call, name)

    def put(self, name: str, content: str) -> None:
        """Store an entry."""
        self._begin("put", name)
        self.items[name] = content

    def get(self, name: str) -> str | None:
        """The content of an entry; None where there is none."""
        self._begin("get", name)
        return self.items.get(name)

    def delete(self, name: str) -> None:
        """Delete an entry."""
        self._begin("delete", name)
        self.items.pop(name, None)

    def list(self, following: str | None = None) -> Page:
        """A page of all entries, in the order of their names."""
        self._begin("list", following or "")
        names = sorted(name for name in self.items if following is None or name > following)
        items = tuple(Item(name, self.items[name]) for name in names[: self.page])
        return Page(items, names[self.page - 1] if len(names) > self.page else None)

    def close(self) -> None:
        """Nothing: there is nothing open."""


class LyingSink(MemorySink):
    """An external store in memory that lies in one way, while `lying` is set.

    Args:
        lie: The way.
        name: The name under which the database keeps its stage.
    """

    def __init__(self, lie: Lie, name: str = "liar") -> None:
        super().__init__(name)
        self.lie = lie
        self.lying = True
        self._stale: dict[str, str] = {}
        self._late: tuple[str, str] | None = None

    def _does(self, *lies: Lie) -> bool:
        return self.lying and self.lie in lies

    def put(self, name: str, content: str) -> None:
        """Say that an entry was stored."""
        if self._does(Lie.STORES_NOTHING) or (self._does(Lie.KEEPS_THE_OLD) and name in self.items):
            self._begin("put", name)
            return
        self._stale = dict(self.items)
        late, self._late = self._late, None
        if self._does(Lie.REORDERS):
            self._late = name, content
            self._begin("put", name)
        else:
            super().put(name, content)
        if late is not None:
            self.items[late[0]] = late[1]

    def get(self, name: str) -> str | None:
        """Say what an entry is."""
        if self._does(Lie.READS_STALE):
            self._begin("get", name)
            return self._stale.get(name)
        return super().get(name)

    def delete(self, name: str) -> None:
        """Say that an entry was deleted."""
        if self._does(Lie.KEEPS_DELETED):
            self._begin("delete", name)
        else:
            super().delete(name)

    def list(self, following: str | None = None) -> Page:
        """Say which entries there are."""
        self._age()
        if self._does(Lie.READS_STALE):
            return Page(tuple(Item(*each) for each in sorted(self._stale.items())), None)
        page = super().list(following)
        items = page.items
        if self._does(Lie.DUPLICATES):
            items = (*items, *items[:1])
        if self._does(Lie.LISTS_LESS):
            items = items[1:]
        if self._does(Lie.INVENTS):
            items = (*items, Item("nobody:1", "{}"))
        return Page(items, page.following)

    def _age(self) -> None:
        """Do what happens some time after the entries were read back."""
        first = next(iter(sorted(self.items)), None)
        if first is None:
            return
        if self._does(Lie.LOSES):
            del self.items[first]
        if self._does(Lie.CHANGES):
            self.items[first] += " "
