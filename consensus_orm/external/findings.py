"""The ledger of findings: entries that could not be sent or imported, and differences from an external store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import bindparam, func, insert, select, update

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.external.canonical import digest
from consensus_orm.formats import none_of
from consensus_orm.ledgers.binding import bound, milliseconds, stored
from consensus_orm.models.external import SinkFinding
from consensus_orm.times import when

__all__ = [
    "REJECTS",
    "Finding",
    "accepted",
    "add",
    "content",
    "count_open",
    "listed",
    "newest",
    "require_open",
    "settle",
    "settle_items",
]

REJECTS = ("unsent", "unreadable")
"""Findings about an entry that could not be sent or imported; the other kinds are mismatches."""


class Finding(BaseModel):
    """Something found in an external store, and what became of it; what the store held stays in the database."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    id: int
    sink: str
    kind: str
    pair: str | None
    key: Any
    item: str
    reason: str
    state: str
    found_at: datetime
    settled_at: datetime | None
    note: str | None

    @property
    def is_reject(self) -> bool:
        """Whether an entry could not be sent or imported."""
        return self.kind in REJECTS


_COLUMNS = [table_of(SinkFinding).c[name] for name in Finding.model_fields]
_OF_SINK = SinkFinding.sink == bindparam("of_sink")
_IS_OPEN = SinkFinding.state == "open"
_LISTED = select(*_COLUMNS).where(_OF_SINK).order_by(SinkFinding.id)
_OPEN = _LISTED.where(_IS_OPEN)
_ONE = _OPEN.where(SinkFinding.id == bindparam("number"))
_COUNT = select(func.count()).where(_OF_SINK, _IS_OPEN)
_NEWEST = select(func.coalesce(func.max(SinkFinding.id), 0)).where(_OF_SINK)
_KNOWN = select(SinkFinding.id).where(
    _OF_SINK, _IS_OPEN, SinkFinding.item == bindparam("item"), SinkFinding.kind == bindparam("kind")
)
_ADD = (
    insert(SinkFinding)
    .inline()
    .values(**bound("sink", "kind", "pair", "key", "item", "reason", "content", "found_at"), state="open")
)
_SETTLE = (
    update(SinkFinding)
    .where(_OF_SINK, _IS_OPEN, SinkFinding.id == bindparam("number"))
    .values(**bound("state", "settled_at", "note"))
)
_SETTLE_ITEM = (
    update(SinkFinding)
    .where(_OF_SINK, _IS_OPEN, SinkFinding.item == bindparam("of_item"))
    .values(**bound("state", "settled_at", "note"))
)
_CONTENT = select(SinkFinding.content).where(_OF_SINK, SinkFinding.id == bindparam("number"))


def add(
    uow: Transaction,
    sink: str,
    kind: str,
    item: str,
    reason: str,
    *,
    pair: str | None = None,
    key: Any = None,
    content: str | None = None,
) -> bool:
    """Add a finding, unless an open one of this kind is known for the entry; whether it is new.

    Args:
        uow: Holds the write lock.
        sink: The external store.
        kind: As `SinkFinding.kind`.
        item: The name of the entry.
        reason: What is wrong, without contents.
        pair: The pair of the row, if there is one.
        key: The key of the row.
        content: What the external store holds, to be kept before it is overwritten.
    """
    named = ascii_name(item)
    if uow._rows(_KNOWN, {"of_sink": sink, "item": named, "kind": kind}):
        return False
    facts = {"sink": sink, "kind": kind, "pair": pair, "key": stored(uow, key), "item": named, "reason": reason}
    kept = None if content is None else json.dumps({"name": item, "content": content})
    uow._execute(_ADD, {**facts, "content": kept, "found_at": milliseconds(uow)})
    return True


def ascii_name(item: str) -> str:
    """The name of an entry as every database can hold it."""
    is_plain = item.isascii() and item.isprintable() and not item.startswith('"')
    return item if is_plain else json.dumps(item)  # so that no two names become one


def listed(uow: Transaction, sink: str, *, everything: bool = False) -> list[Finding]:
    """Findings, oldest first: the open ones, or all."""
    rows = uow._rows(_LISTED if everything else _OPEN, {"of_sink": sink})
    return [_finding(row) for row in rows]


def require_open(uow: Transaction, sink: str, numbers: Iterable[int]) -> None:
    """Refuse numbers that no open finding has.

    Raises:
        InvalidValueError: There are such; it names all of them.
    """
    absent = [number for number in numbers if not uow._rows(_ONE, {"of_sink": sink, "number": number})]
    if absent:
        raise errors.InvalidValueError(
            none_of(absent, "open finding"),
            hint="nothing was done; see: consensus-orm external findings",
            field="number",
        )


def content(uow: Transaction, sink: str, number: int) -> str | None:
    """JSON of what the external store held: name and content; None where it held nothing.

    Raises:
        InvalidValueError: There is no finding of this number.
    """
    rows = uow._rows(_CONTENT, {"of_sink": sink, "number": number})
    if not rows:
        raise errors.InvalidValueError(
            f"there is no finding {number}", hint="see: consensus-orm external findings --all", field="number"
        )
    return None if rows[0][0] is None else str(rows[0][0])


def count_open(uow: Transaction, sink: str) -> int:
    """How many findings are open."""
    return int(uow._rows(_COUNT, {"of_sink": sink})[0][0])


def newest(uow: Transaction, sink: str) -> int:
    """The number of the newest finding; 0 where there never was one."""
    return int(uow._rows(_NEWEST, {"of_sink": sink})[0][0])


_ACCEPTED = select(SinkFinding.item, SinkFinding.content).where(
    _OF_SINK, SinkFinding.state == "accepted", SinkFinding.pair.is_(None), SinkFinding.content.is_not(None)
)


def accepted(uow: Transaction, sink: str) -> set[tuple[str, str]]:
    """Entries that are no rows, and were accepted as they are: the name of each, and the digest of its content."""
    found = uow._rows(_ACCEPTED, {"of_sink": sink})
    return {(item, digest(json.loads(kept)["content"])) for item, kept in found}


def settle(uow: Transaction, sink: str, number: int, state: str, note: str) -> None:
    """Close a finding: as settled or accepted."""
    facts = {"of_sink": sink, "number": number, "state": state, "settled_at": milliseconds(uow), "note": note}
    uow._execute(_SETTLE, facts)


def settle_items(uow: Transaction, sink: str, items: Iterable[str], note: str) -> None:
    """Close the open findings about some entries as settled."""
    facts = {"of_sink": sink, "state": "settled", "settled_at": milliseconds(uow), "note": note}
    for item in items:
        uow._execute(_SETTLE_ITEM, {**facts, "of_item": ascii_name(item)})


def _finding(row: tuple[Any, ...]) -> Finding:
    facts = dict(zip(Finding.model_fields, row, strict=True))
    facts["found_at"] = when(facts["found_at"])
    facts["settled_at"] = None if facts["settled_at"] is None else when(facts["settled_at"])
    return Finding(**facts)
