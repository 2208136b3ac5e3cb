"""Declarations of memory servers: which tools they have, what the arguments are called, and what can be relied on.

A declaration speaks to a server by one function, which calls a tool and returns its answer in terms of JSON. The names
of tools and arguments are its fields, so that a server with other names is declared by giving other values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeGuard

from consensus_orm import errors
from consensus_orm.external.canonical import digest
from consensus_orm.external.sink import Capabilities, Item, Page

__all__ = ["Call", "Declaration", "GraphMemory", "TaggedMemory"]

Call: TypeAlias = Callable[[str, Mapping[str, Any]], Any]
"""Calls a tool with its arguments; returns the answer in terms of JSON."""


_Version: TypeAlias = tuple[int, bool, str]
"""A version of a tagged entry: its number, whether it says that the entry was deleted, and its content."""


class Declaration(Protocol):
    """How entries are put, read, deleted and listed with the tools of a server."""

    @property
    def capabilities(self) -> Capabilities:
        """What the server can be relied on to do."""
        ...

    @property
    def tools(self) -> Mapping[str, Sequence[str]]:
        """The tools that are called, each with the names of its arguments."""
        ...

    def put(self, call: Call, name: str, content: str) -> None:
        """Store an entry, in the place of the one with this name if there is one."""
        ...

    def get(self, call: Call, name: str) -> str | None:
        """The content of an entry; None where there is none."""
        ...

    def delete(self, call: Call, name: str) -> None:
        """Delete an entry; nothing happens where there is none."""
        ...

    def list(self, call: Call, following: str | None) -> Page:
        """A page of all entries."""
        ...


@dataclass(frozen=True, kw_only=True)
class GraphMemory:
    """A server that keeps a graph of entities with observations, as @modelcontextprotocol/server-memory does.

    An entry is an entity, and its content the only observation. Creating an entity that is there succeeds and changes
    nothing, so that an existing one gets the new observation first and then loses the others; its relations stay. A put
    that is interrupted in between leaves both observations, and is made again. A name that the file of the server has
    several times is read as one entity with all observations; a put removes those first.

    Args:
        create: The tool that makes entities.
        observe: The tool that adds observations.
        forget: The tool that deletes observations.
        remove: The tool that deletes entities.
        open: The tool that reads entities by their names.
        read: The tool that reads the whole graph.
        entity_type: The type of the entities that are made.
    """

    create: str = "create_entities"
    observe: str = "add_observations"
    forget: str = "delete_observations"
    remove: str = "delete_entities"
    open: str = "open_nodes"
    read: str = "read_graph"
    entity_type: str = "consensus_orm"

    @property
    def capabilities(self) -> Capabilities:
        """What the server can be relied on to do."""
        return Capabilities(exact_key=True, complete_list=True, atomic_update=False)

    @property
    def tools(self) -> Mapping[str, Sequence[str]]:
        """The tools that are called, each with the names of its arguments."""
        return {
            self.create: ("entities",),
            self.observe: ("observations",),
            self.forget: ("deletions",),
            self.remove: ("entityNames",),
            self.open: ("names",),
            self.read: (),
        }

    def put(self, call: Call, name: str, content: str) -> None:
        """Store an entry: make the entity, or exchange its observations."""
        named = self._named(call, name)
        if len(named) > 1:
            self.delete(call, name)  # the other tools see the first of them alone
        if len(named) != 1:
            entity = {"name": name, "entityType": self.entity_type, "observations": [content]}
            call(self.create, {"entities": [entity]})
            return
        if content not in named[0]:
            call(self.observe, {"observations": [{"entityName": name, "contents": [content]}]})
        if others := [each for each in named[0] if each != content]:
            call(self.forget, {"deletions": [{"entityName": name, "observations": others}]})

    def get(self, call: Call, name: str) -> str | None:
        """The content of an entry; None where there is no entity."""
        named = self._named(call, name)
        return _text([each for held in named for each in held]) if named else None

    def delete(self, call: Call, name: str) -> None:
        """Delete an entity, with its relations."""
        call(self.remove, {"entityNames": [name]})

    def list(self, call: Call, following: str | None) -> Page:
        """All entities, in one page."""
        items = tuple(Item(name, _text(held)) for name, held in self._entities(call(self.read, {})))
        return Page(items, None)

    def _named(self, call: Call, name: str) -> Sequence[Sequence[str]]:
        """The observations of each entity of a name."""
        return [held for known, held in self._entities(call(self.open, {"names": [name]})) if known == name]

    @staticmethod
    def _entities(answer: Any) -> Iterator[tuple[str, Sequence[str]]]:
        for entity in _list(answer, "entities"):
            held = entity.get("observations") if isinstance(entity, Mapping) else None
            if not _are_texts(held) or not isinstance(name := entity.get("name"), str):
                raise errors.SinkContractError("an entity in the answer has no name or no observations")
            yield name, held


def _text(observations: Sequence[str]) -> str:
    """The content of an entity: its only observation, or all of them as JSON."""
    return observations[0] if len(observations) == 1 else json.dumps(list(observations))


@dataclass(frozen=True, kw_only=True)
class TaggedMemory:
    """A server that stores texts with tags and searches them, and has no key: `store_memory` and `search`.

    Name, version and digest of an entry are tags. The server is searched before something is stored, so that what is
    there is not stored again; nothing is ever deleted: a newer version takes the place of an older one, and one with
    the tag `deleted` that of a deleted entry. A search may leave out entries, so that nothing can be proved.

    Args:
        store: The tool that stores a text.
        search: The tool that searches.
        domain: The domain of the texts that are stored.
        importance: Their importance.
        search_type: How tags are searched.
        limit: The most entries that a search returns.
    """

    store: str = "store_memory"
    search: str = "search"
    domain: str = "consensus_orm"
    importance: int = 8
    search_type: str = "tags"
    limit: int = 10_000

    @property
    def capabilities(self) -> Capabilities:
        """What the server can be relied on to do."""
        return Capabilities(exact_key=False, complete_list=False, atomic_update=True)

    @property
    def tools(self) -> Mapping[str, Sequence[str]]:
        """The tools that are called, each with the names of its arguments."""
        return {
            self.store: ("content", "domain", "importance", "tags"),
            self.search: ("query", "limit", "tags", "search_type"),
        }

    def put(self, call: Call, name: str, content: str) -> None:
        """Store a version of an entry, unless the newest one is this."""
        versions = self._versions(call, name)
        if not versions or max(versions)[1:] != (False, content):
            self._store(call, name, content, versions)

    def get(self, call: Call, name: str) -> str | None:
        """The content of the newest version; None where there is none, or it says that the entry was deleted."""
        versions = self._versions(call, name)
        if not versions:
            return None
        _, deleted, content = max(versions)
        return None if deleted else content

    def delete(self, call: Call, name: str) -> None:
        """Store a version that says that the entry was deleted."""
        versions = self._versions(call, name)
        if versions and not max(versions)[1]:
            self._store(call, name, "", versions, "deleted")

    def list(self, call: Call, following: str | None) -> Page:
        """All entries that a search for anything finds; those of other programs under a name made of their content."""
        newest: dict[str, _Version] = {}
        for content, tags in self._found(call, "", ()):
            name = _tag(tags, "key") or f"memory:{digest(content)[:32]}"
            newest[name] = max(newest.get(name, (-1, False, "")), _version(content, tags))
        return Page(tuple(Item(name, each[2]) for name, each in newest.items() if not each[1]), None)

    def _versions(self, call: Call, name: str) -> Sequence[_Version]:
        key = f"key={name}"
        return [_version(content, tags) for content, tags in self._found(call, key, (key,)) if key in tags]

    def _store(self, call: Call, name: str, content: str, versions: Sequence[_Version], *more: str) -> None:
        number = max(versions)[0] + 1 if versions else 1
        tags = [f"key={name}", f"version={number}", f"digest={digest(content)}", *more]
        call(self.store, {"content": content, "domain": self.domain, "importance": self.importance, "tags": tags})

    def _found(self, call: Call, query: str, tags: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
        arguments = {"query": query, "limit": self.limit, "tags": list(tags), "search_type": self.search_type}
        for result in _list(call(self.search, arguments), "results"):
            memory = result.get("memory", result) if isinstance(result, Mapping) else None
            facts: Mapping[str, Any] = memory if isinstance(memory, Mapping) else {}
            content, held = facts.get("content"), facts.get("tags") or ()
            if not isinstance(content, str) or not _are_texts(held):
                raise errors.SinkContractError("a memory in the answer has no content, or no tags", tool=self.search)
            yield content, held


def _version(content: str, tags: Sequence[str]) -> _Version:
    """The version of a text, whether it says that the entry was deleted, and the text."""
    number = _tag(tags, "version")
    return int(number) if number is not None and number.isdecimal() else 0, "deleted" in tags, content


def _tag(tags: Sequence[str], name: str) -> str | None:
    return next((tag.partition("=")[2] for tag in tags if tag.startswith(f"{name}=")), None)


def _are_texts(held: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(held, Sequence) and not isinstance(held, str) and all(isinstance(each, str) for each in held)


def _list(answer: Any, name: str) -> Sequence[Any]:
    """A list in an answer: under a name, or the answer itself."""
    found = answer.get(name) if isinstance(answer, Mapping) else answer
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise errors.SinkContractError(f"the answer of the server has no list {name!r}")
    return found
