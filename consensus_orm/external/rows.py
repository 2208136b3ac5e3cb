"""Reads rows from the source of truth as the texts that an external store is to hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.move import Move
from consensus_orm.external.canonical import content_of
from consensus_orm.ledgers.binding import among

__all__ = ["Key", "contents", "page", "page_of_keys"]

Key = Any


class Read(NamedTuple):
    """A row: its key, and its text."""

    key: Key
    content: str


def contents(uow: Transaction, pair: Move, keys: Iterable[Key]) -> dict[Key, str]:
    """The texts of some rows by their keys; rows that are not there are left out."""
    wanted, sql, truth = list(keys), uow.statements[pair], uow.phase.truth
    if len(wanted) == 1:
        rows = uow._rows(sql.get(truth), {"_key": wanted[0]})
    else:
        rows = uow._rows(sql.get_many(truth), among(wanted))
    return {pair.key_of_row(row): content_of(pair, row) for row in rows}


def page(uow: Transaction, pair: Move, after: Key | None, size: int) -> list[Read]:
    """The rows behind a key, in the order of the keys; rows that have no usable key are left out.

    Args:
        uow: Any transaction.
        pair: Their pair.
        after: The key; None begins with the first row.
        size: At most so many.
    """
    sql = uow.statements[pair].page(uow.phase.truth, first=after is None)
    return [
        Read(pair.key_of_row(row), content_of(pair, row)) for row in uow._rows(sql, {"_after": after, "_rows": size})
    ]


def page_of_keys(uow: Transaction, pair: Move, after: Key | None, size: int) -> list[Key]:
    """The keys behind a key, in order, at most so many."""
    sql = uow.statements[pair].page(uow.phase.truth, first=after is None, keys_alone=True)
    return [key for (key,) in uow._rows(sql, {"_after": after, "_rows": size})]
