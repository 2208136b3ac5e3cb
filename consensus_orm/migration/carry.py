"""Carrying rows from one side to the other: the one step that backfill, reconcile and every way back are made of.

A row is carried by the same mapping that writes and compares it. Afterwards it is compared; what does not come
out equal becomes a reject and is not left half carried.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import ColumnElement

from consensus_orm import errors, ledger
from consensus_orm.mapping import Pair
from consensus_orm.phase import Side
from consensus_orm.sql import in_keys
from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["adopt_range", "carry", "carry_reject", "drain", "follow_deletes", "keys_of", "noted", "reject_unequal"]

LATEST = "SELECT id, pair, key, side FROM consensus_orm_changes ORDER BY id LIMIT :limit"
CHANGES_IN_ONE_TRANSACTION = 500
"""Changes drained at once: 28 to 37 ms of write lock with rows of 8 KB (measured)."""

DELETED = (
    "SELECT DISTINCT key FROM consensus_orm_changes AS c WHERE pair = :pair AND side = :side AND op = 'delete'"
    " AND NOT EXISTS (SELECT 1 FROM consensus_orm_changes AS n WHERE n.pair = c.pair AND n.side = c.side"
    " AND n.key = c.key AND n.id > c.id AND n.op <> 'delete') AND "
)
"""Rows that another program deleted last; which of them is said behind it."""

NOT_EXACT = "it does not come out equal in type and bytes on the {side} side"
ID_TAKEN_TWICE = "both sides gave its id to different rows"


def carry(uow: UnitOfWork, pair: Pair, keys: Iterable[Any], to: Side) -> None:
    """Make rows on one side what they are on the other: insert, overwrite, or delete.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys.
        to: The side to write. Rows the other side does not have are deleted from it.
    """
    wanted = list(keys)
    if not wanted:
        return
    parameters = {"_keys": json.dumps(wanted)}
    sql = uow.statements[pair]
    there = {key for (key,) in uow._rows(sql.present(to.other), parameters)}
    gone = {"_keys": json.dumps([key for key in wanted if key not in there])}
    mark = uow.catalog.last_change(uow)
    if to is Side.NORMALIZED:
        with _parents_kept(uow, pair, parameters) as touched:
            uow._execute(sql.delete(to), gone)
            touched |= keys_of(uow, sql.overwrite_normalized, parameters)
    else:
        _adopt(uow, pair, parameters)
        uow._execute(sql.delete(to), gone)
        uow._execute(sql.overwrite_legacy, parameters)
    follow_deletes(uow, pair, to, in_keys(ledger.KEY), parameters)
    uow.catalog.forget_changes(uow, after=mark)


def adopt_range(uow: UnitOfWork, pair: Pair, first: Any, last: Any) -> None:
    """Complete the normalized rows of a range of keys that a program of the founding schema wrote.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        first: The first key.
        last: The last key.
    """
    sql = uow.statements[pair]
    keys = [key for (key,) in uow._rows(sql.foreign_in_range, {"_first": first, "_last": last})]
    if not keys:
        return
    mark = uow.catalog.last_change(uow)
    _adopt(uow, pair, {"_keys": json.dumps(keys)})
    uow.catalog.forget_changes(uow, after=mark)


def _adopt(uow: UnitOfWork, pair: Pair, parameters: dict[str, Any]) -> None:
    with _parents_kept(uow, pair, parameters) as touched:
        touched |= keys_of(uow, uow.statements[pair].adopt, parameters)


def keys_of(uow: UnitOfWork, statements: Iterable[str], parameters: dict[str, Any]) -> set[Any]:
    """Run statements that carry rows; the keys of the parents that they made, where they tell."""
    made: set[Any] = set()
    for statement in statements:
        cursor = uow._execute(statement, parameters)
        if statement.startswith("INSERT") and cursor.description is not None:
            made |= {key for (key,) in cursor.fetchall()}
    return made


def follow_deletes(
    uow: UnitOfWork, pair: Pair, side: Side, among: ColumnElement[bool], parameters: dict[str, Any]
) -> None:
    """Delete again what another program deleted from a side while it was carried there.

    An insert waits for whoever deletes a row of the same key, and then brings it back. Where others cannot write
    meanwhile there is nothing to look for.

    Args:
        uow: Has carried rows to the side.
        pair: The pair of the rows.
        side: The side.
        among: Which rows were carried, by their key.
        parameters: Its parameters.
    """
    if not uow.catalog.others_write_meanwhile:
        return
    facts = {**parameters, "pair": pair.name, "side": side.value}
    if not (back := [key for (key,) in uow._rows(DELETED + uow.statements.words.render(among), facts)]):
        return
    gone = {"_keys": json.dumps(back)}
    with _parents_kept(uow, pair, gone) if side is Side.NORMALIZED else contextlib.nullcontext():
        uow._execute(uow.statements[pair].delete(side), gone)


@contextlib.contextmanager
def _parents_kept(uow: UnitOfWork, pair: Pair, parameters: dict[str, Any]) -> Iterator[set[Any]]:
    """Derive again, or remove, the parents that rows had before or have after a change, and those that it made."""
    parent = uow.statements.of_parent(pair)
    if parent is None:
        yield set()
        return
    sql = uow.statements[pair].parents_of
    touched = {key for (key,) in uow._rows(sql, parameters)}
    yield touched
    touched |= {key for (key,) in uow._rows(sql, parameters)}
    for statement in parent.settle:
        uow._execute(statement, {"_keys": json.dumps(list(touched))})


def reject_unequal(uow: UnitOfWork, pair: Pair, keys: Iterable[Any], source: Side) -> int:
    """Reject those of some rows that were carried and did not come out equal, unless somebody wrote them since.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys.
        source: The side they were carried from, which keeps them.

    Returns:
        How many are new among the rejects.
    """
    sql = uow.statements[pair]
    unequal = [key for key in keys if ledger.differences(uow, pair, key)]
    later = noted(uow, pair, unequal)
    unequal = [key for key in unequal if key not in later]
    new = 0
    for key in unequal:
        new += ledger.reject(uow, pair, key, source, NOT_EXACT.format(side=source.other))
    if unequal and source is Side.LEGACY:
        mark = uow.catalog.last_change(uow)
        parameters = {"_keys": json.dumps(unequal)}
        with _parents_kept(uow, pair, parameters):
            uow._execute(sql.delete(Side.NORMALIZED), parameters)
        uow.catalog.forget_changes(uow, after=mark)
    return new


def noted(uow: UnitOfWork, pair: Pair, keys: Iterable[Any]) -> set[Any]:
    """Those of some rows that another program has written and that are still to be carried for it.

    On a server it may have written them since this unit of work looked at them.
    """
    if not (wanted := list(keys)):
        return set()
    among = uow.statements.words.render(in_keys(ledger.KEY, "keys"))
    sql = f"SELECT key FROM consensus_orm_changes WHERE pair = :pair AND {among}"
    return {key for (key,) in uow._rows(sql, {"pair": pair.name, "keys": json.dumps(wanted)})}


def carry_reject(uow: UnitOfWork, reject: ledger.OpenReject) -> bool:
    """Carry a rejected row from where it stands to the other side.

    Args:
        uow: Holds the write lock, in a phase in which both sides are written.
        reject: The reject.

    Returns:
        Whether it came out equal; where it did not, nothing has changed.

    Raises:
        InvalidValueError: Its row stands nowhere any more: it was deleted, or another one has its id.
    """
    pair, key, side, reason = reject
    present = uow.statements[pair].present(side)
    if key is None or reason == ID_TAKEN_TWICE or not uow._rows(present, {"_keys": json.dumps([key])}):
        raise errors.InvalidValueError(
            "nothing is left to carry of this reject", hint="its image is kept; accept it with a reason", field="id"
        )
    carry(uow, pair, [key], side.other)
    reject_unequal(uow, pair, [key], side)
    return not ledger.differences(uow, pair, key)


def drain(uow: UnitOfWork, *, limit: int = CHANGES_IN_ONE_TRANSACTION) -> int:
    """Carry rows that one side alone was written with, from that side to the other.

    Whoever wrote last wrote what is meant: inserts and updates of another program are adopted, its deletes
    followed, whichever side is the truth. Where both sides were written, the truth decides, and the other
    row is kept as a reject.

    Args:
        uow: Holds the write lock; in phase NORMALIZED the legacy tables are unfrozen for it.
        limit: At most so many changes.

    Returns:
        How many changes were drained; 0 where there are none.
    """
    changes = uow._rows(LATEST, {"limit": limit})
    written: dict[str, dict[Any, set[Side]]] = {}
    for _, name, key, side in changes:
        written.setdefault(name, {}).setdefault(key, set()).add(Side(side))
    if not changes:
        return 0
    # By their numbers: an earlier one may be committed just now, and nobody has looked at it.
    ids = ", ".join(str(int(number)) for number, *_ in changes)
    uow._execute(f"DELETE FROM consensus_orm_changes WHERE id IN ({ids})")
    with uow.catalog.legacy_unfrozen(uow):
        for name, keys in written.items():
            _drain_pair(uow, uow.statements.mapping[name], keys)
    return len(changes)


def _drain_pair(uow: UnitOfWork, pair: Pair, written: dict[Any, set[Side]]) -> None:
    truth = uow.phase.truth
    for source in Side:
        keys = [key for key, sides in written.items() if (truth if len(sides) == 2 else min(sides)) is source]
        both = [key for key in keys if len(written[key]) == 2]
        for key in both + _taken_twice(uow, pair, keys, source):
            if any(kind == "different" for _, kind in ledger.differences(uow, pair, key)):
                ledger.reject(uow, pair, key, source.other, ID_TAKEN_TWICE)
        carry(uow, pair, keys, source.other)
        ledger.settle(uow, pair, keys, "repaired", "adopted from the side that was written")
        reject_unequal(uow, pair, keys, source)


def _taken_twice(uow: UnitOfWork, pair: Pair, keys: list[Any], source: Side) -> list[Any]:
    """Keys of legacy rows under which the normalized side holds a row of somebody else."""
    if source is Side.NORMALIZED:
        return []
    sql = uow.statements[pair].foreign_in_keys
    return [key for (key,) in uow._rows(sql, {"_keys": json.dumps(keys)})]
