"""The import: entries that only the external store holds become rows, each once, with where they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import bindparam, insert, select

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.move import Move
from consensus_orm.external import findings, outbox, rows, state
from consensus_orm.external.canonical import digest, parse, row_named
from consensus_orm.external.findings import ascii_name
from consensus_orm.external.sink import Item, Sink
from consensus_orm.ledgers.binding import bound, milliseconds, stored
from consensus_orm.models.external import SinkImport
from consensus_orm.repository.dual_write import DualWrite
from consensus_orm.store import Store
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["ImportReport", "Read", "Row", "every_item", "imported", "move_in", "read_own"]


LONGEST_PAUSE = 1000
"""Pages in a row with nothing new, after which a listing is taken for one without an end."""


class Row(NamedTuple):
    """A row that an entry becomes: the name of its pair, and its values under their legacy column names."""

    pair: str
    values: Mapping[str, Any]


Read: TypeAlias = Callable[[Item], "Row | None"]
"""Reads an entry of an external store as a row; None for one that is none, which becomes a reject."""


def read_own(item: Item) -> Row | None:
    """Read an entry that this package wrote to an external store, maybe from another database."""
    try:
        return Row(*parse(item.content))
    except errors.InvalidValueError:
        return None


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        items: Entries that the external store listed.
        imported: Rows that came in.
        known: Entries that are rows of this database, or came in before.
        rejects: New rejects.
    """

    items: int = 0
    imported: int = 0
    known: int = 0
    rejects: int = 0


_IMPORTED = select(SinkImport.item, SinkImport.digest).where(SinkImport.sink == bindparam("of_sink"))
_ONE = _IMPORTED.where(SinkImport.item == bindparam("item"))
_ADD = insert(SinkImport).inline().values(**bound("sink", "item", "pair", "key", "digest", "at"))


def imported(uow: Transaction, sink: str) -> dict[str, str]:
    """The names of the entries that came in, each with the digest of its content."""
    return dict(uow._rows(_IMPORTED, {"of_sink": sink}))


def every_item(sink: Sink) -> Iterator[Item]:
    """All entries that an external store lists.

    Raises:
        SinkContractError: Its pages have no end: one comes again, or many have nothing that was not listed before.
    """
    following, seen, names, nothing_new = None, set[str](), set[str](), 0
    while True:
        page = sink.list(following)
        yield from page.items
        if page.following is None:
            return
        known = len(names)
        names.update(item.name for item in page.items)
        nothing_new = nothing_new + 1 if len(names) == known else 0
        if page.following in seen or nothing_new == LONGEST_PAUSE:
            raise errors.SinkContractError(f"the listing of {sink.name} has no end", sink=sink.name)
        seen.add(page.following)
        following = page.following


def move_in(store: Store[Any], sink: Sink, read: Read, items: Iterator[Item], *, own: bool) -> ImportReport:
    """Let the entries come in that only the external store holds.

    No call of the external store is made in a unit of work.

    Args:
        store: Takes the rows, through the legacy side where the phase writes it.
        sink: The external store.
        read: Reads an entry as a row.
        items: What it lists.
        own: Whether entries come in, too, that are named as rows of this database and have no row.

    Returns:
        What was done.
    """
    report = ImportReport()
    accepted = store._units.look(lambda uow: findings.accepted(uow, sink.name))
    for item in items:
        found = "known"
        is_accepted = (ascii_name(item.name), digest(item.content)) in accepted
        if not is_accepted and not store._units.look(partial(_is_known, sink=sink.name, item=item.name)):
            try:
                row = _read(store, sink, read, item, own=own)
                found = store.run(partial(_add, sink=sink.name, item=item, row=row))
            except (errors.InvalidValueError, errors.MismatchError, errors.StorageError) as error:
                # One of a kind of its own is that of the database, and says nothing about the row.
                if isinstance(error, errors.StorageError) and type(error) is not errors.StorageError:
                    raise
                found = store.run(partial(_reject, sink=sink.name, item=item, reason=error.message))
        report = replace(report, items=report.items + 1, **{found: getattr(report, found) + 1})
    store.run(lambda uow: state.put(uow, sink.name, imported_at=milliseconds(uow)))
    return report


def _is_known(uow: UnitOfWork, sink: str, item: str) -> bool:
    """Whether an entry came in before, or is that of a row that is there or waits to be sent."""
    if uow._rows(_ONE, {"of_sink": sink, "item": ascii_name(item)}):
        return True
    if (own := row_named(_moves(uow), item)) is None:
        return False
    pair, key = own
    return key in rows.contents(uow, pair, [key]) or bool(outbox.of_row(uow, sink, pair.name, key))


def _moves(of: UnitOfWork | UnitOfWorkFactory[UnitOfWork]) -> dict[str, Move]:
    return {pair.name: pair for pair in of.statements.moves}


def _read(store: Store[Any], sink: Sink, read: Read, item: Item, *, own: bool) -> Row:
    """The row that an entry becomes; without a key, unless it is named as a row of this database."""
    if sink.capabilities.exact_key and sink.get(item.name) != item.content:
        raise errors.InvalidValueError("it was listed with another content than it has", field="item")
    moves = _moves(store._units)
    named = row_named(moves, item.name)
    if named is not None and not own:
        raise errors.InvalidValueError(
            "it is named as a row that this database does not have; repair deletes it, import --own takes it in",
            field="item",
        )
    row = read_own(item) if named is not None else read(item)
    if row is None or row.pair not in moves:
        raise errors.InvalidValueError("its content is no row", field="item")
    keys = moves[row.pair].legacy_keys
    values = {name: value for name, value in row.values.items() if name not in keys or named is not None}
    return Row(row.pair, values)


def _add(uow: UnitOfWork, sink: str, item: Item, row: Row) -> str:
    named = ascii_name(item.name)
    if _is_known(uow, sink, item.name):
        return "known"
    key = DualWrite(uow, uow.statements.moves[row.pair]).add(dict(row.values))
    facts = {"sink": sink, "item": named, "pair": row.pair, "key": stored(uow, key), "digest": digest(item.content)}
    uow._execute(_ADD, {**facts, "at": milliseconds(uow)})
    findings.settle_items(uow, sink, [item.name], "it came in")
    return "imported"


def _reject(uow: UnitOfWork, sink: str, item: Item, reason: str) -> str:
    new = findings.add(uow, sink, "unreadable", item.name, reason, content=item.content)
    return "rejects" if new else "known"
