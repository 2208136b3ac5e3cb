"""Carrying rows by their keys from one side to the other: what a session, reconcile and every way back are made of."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, images, rejects
from consensus_orm.ledgers.binding import Key, among, keys_of
from consensus_orm.phase import Side
from consensus_orm.statements.parents import ParentStatements
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = [
    "ParentKey",
    "adopt",
    "carry",
    "derive",
    "follow",
    "follow_deletes",
    "go_ahead",
    "linked_range",
    "mark_known",
    "parents_of",
    "parents_settled",
    "settle",
]


def carry(uow: UnitOfWork, pair: Move, keys: Iterable[Key], to: Side, why: str) -> int:
    """Make rows on one side what they are on the other: insert, overwrite, or delete them.

    What is overwritten or deleted is imaged first, and nothing else is: a row that another program adds meanwhile
    stands.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        keys: Their keys.
        to: The side to write. Rows the other side does not have are deleted from it.
        why: The cause that the images are kept with; no contents.

    Returns:
        How many rows there were on that side.
    """
    wanted = list(keys)
    if not wanted:
        return 0
    if to is uow.phase.truth:
        uow._note_written(pair, wanted)
    with changes.not_recorded(uow):
        _make_way(uow, pair, wanted, to, why)
        kept = images.keep(uow, pair, wanted, to, why)
        there = _there(uow, pair, wanted, to.other)
        gone = kept - there
        if to is uow.phase.truth:
            gone -= _referred(uow, pair, gone, to)
        _run(uow, uow.statements[pair].unlink(to), gone)
        _make_alike(uow, pair, to, why, gone=gone, there_too=kept & there, new=there - kept)
        follow_deletes(uow, pair, to, changes.deleted_among(uow, pair, to, wanted))
    return len(kept)


def follow(uow: UnitOfWork, pair: Move, keys: list[Key], to: Side, *, new: bool) -> None:
    """Carry rows that the caller has written to the side that it has not written, without an image.

    Args:
        uow: The unit of work.
        pair: The move of the rows.
        keys: Their keys.
        to: The side that is to follow.
        new: Whether all rows were just inserted, so that the other side has none of them.
    """
    uow._note_written(pair, keys)
    if new:
        _make_alike(uow, pair, to, None, gone=set(), there_too=set(), new=set(keys))
    else:
        theirs, ours = _there(uow, pair, keys, to), _there(uow, pair, keys, to.other)
        _make_alike(uow, pair, to, None, gone=theirs - ours, there_too=theirs & ours, new=ours - theirs)
    if uow.catalog.others_write_meanwhile:
        follow_deletes(uow, pair, to, changes.deleted_among(uow, pair, to, keys))


def _make_alike(
    uow: Transaction, pair: Move, to: Side, why: str | None, *, gone: set[Key], there_too: set[Key], new: set[Key]
) -> None:
    """Delete, overwrite and insert rows of a side; what they refer to goes ahead of them."""
    sql = uow.statements[pair]
    if (ahead := sql.ahead(to)) is not None:
        new = new | _lacking(uow, pair, ahead, among([*there_too, *new]), to)
    wanted = [*gone, *there_too, *new]
    if to is Side.NORMALIZED:
        with parents_settled(uow, pair, wanted, why) as touched:
            _run(uow, sql.delete(to), gone)
            touched |= _run(uow, sql.overwrite_normalized, there_too)
            touched |= _run(uow, sql.insert_normalized_rows, new)
    else:
        adopt(uow, pair, wanted, why)
        _run(uow, sql.delete(to), gone)
        _run(uow, [sql.overwrite_legacy], there_too)
        _run(uow, [sql.insert_legacy_rows], new)
    _run(uow, sql.link(to), there_too | new)


def _lacking(uow: Transaction, pair: Move, ahead: str, rows: dict[str, Any], to: Side) -> set[Key]:
    """The rows that some rows refer to and a side does not have, less those rejected, and those deleted there."""
    found = set(keys_of(uow, ahead, rows))
    if found:
        found -= rejects.unresolved(uow, pair, to.other)
        found -= set(changes.deleted_among(uow, pair, to, found))
    return found


def go_ahead(uow: Transaction, pair: Move, keys: Iterable[Key], to: Side) -> None:
    """Carry those of some rows that a side does not have, because another row is about to refer to them.

    Args:
        uow: Holds the write lock.
        pair: The move of the rows.
        keys: Their keys.
        to: The side.
    """
    new = set(keys)
    if new := new - _there(uow, pair, [*new], to) - rejects.unresolved(uow, pair, to.other):
        with changes.not_recorded(uow):
            _make_alike(uow, pair, to, None, gone=set(), there_too=set(), new=new)


@contextlib.contextmanager
def linked_range(uow: Transaction, pair: Move, bounds: dict[str, Any], to: Side) -> Iterator[None]:
    """Let the rows of a range that the block carries refer to others: these go ahead, wherever they are."""
    sql = uow.statements[pair]
    if (ahead := sql.ahead_of_range(to)) is not None:
        go_ahead(uow, pair, _lacking(uow, pair, ahead, bounds, to), to)
    yield
    for statement in sql.link_range(to):
        uow._execute(statement, bounds)


def _referred(uow: Transaction, pair: Move, keys: set[Key], side: Side) -> set[Key]:
    """Those of some rows that rows of the same side refer to which are not among them."""
    rows = [row for sql in uow.statements[pair].referring(side) if keys for row in uow._rows(sql, among(keys))]
    return {named for key, named in rows if key not in keys}


def _make_way(uow: Transaction, pair: Move, keys: list[Key], to: Side, why: str | None) -> None:
    """Delete rows under the same keys that were of another move of the same table, and are of this one now."""
    if to is Side.NORMALIZED and {*pair.unique} != {of.name for of in pair.keys}:
        return  # rows of different moves may have the same key there
    for other in uow.statements.moves.sharing(pair, to):
        if other is pair or not (left := changes.deleted_among(uow, other, to.other, keys)):
            continue
        stale = _there(uow, other, left, to) - _there(uow, other, left, to.other)
        if stale and why is not None:
            images.keep(uow, other, stale, to, why)
        follow_deletes(uow, other, to, list(stale))


def derive(uow: Transaction, pair: Move, keys: list[Key], why: str) -> int:
    """Derive again what normalized rows compute from columns that are equal already; returns the number of images."""
    with changes.not_recorded(uow):
        kept = images.keep(uow, pair, keys, Side.NORMALIZED, why)
        _complete(uow, pair, keys, why)
    return len(kept)


def mark_known(uow: Transaction, pair: Move, keys: Iterable[Key]) -> None:
    """Mark normalized rows of other programs that agree with the legacy side: there is nothing to carry."""
    with changes.not_recorded(uow):
        uow._execute(uow.statements[pair].mark, among(keys))


def _there(uow: Transaction, pair: Move, keys: list[Key], side: Side) -> set[Key]:
    return set(keys_of(uow, uow.statements[pair].present(side), among(keys)))


def adopt(uow: Transaction, pair: Move, keys: list[Key], why: str | None) -> None:
    """Complete normalized rows that another program or a session wrote: what is computed, their mark and parent."""
    if why is not None:
        images.keep_completed(uow, pair, keys, why)
    _complete(uow, pair, keys, why)


def _complete(uow: Transaction, pair: Move, keys: list[Key], why: str | None) -> None:
    with parents_settled(uow, pair, keys, why) as touched:
        touched |= _run(uow, uow.statements[pair].adopt, keys)


ParentKey = tuple[str, Key]
"""A parent: its table, and its key."""


def _run(uow: Transaction, statements: Iterable[str], keys: Collection[Key]) -> set[ParentKey]:
    """Run statements on some rows; returns the parents that they made, where they return them."""
    made: set[ParentKey] = set()
    for statement in statements if keys else ():
        cursor = uow._execute(statement, among(keys))
        if cursor.description is not None:
            made |= {(table, key) for table, key in cursor.fetchall()}
    return made


def follow_deletes(uow: Transaction, pair: Move, side: Side, deleted: list[Key]) -> None:
    """Delete again what another program deleted from a side while rows were carried there.

    An insert waits for the program that deletes a row of the same key, and then brings the row back; and a range that
    is carried may hold a row whose deletion awaits a decision.
    """
    if deleted:
        of_normalized = side is Side.NORMALIZED
        with parents_settled(uow, pair, deleted, None) if of_normalized else contextlib.nullcontext():
            _run(uow, uow.statements[pair].unlink(side), deleted)
            _run(uow, uow.statements[pair].delete(side), deleted)


@contextlib.contextmanager
def parents_settled(uow: Transaction, pair: Move, keys: Iterable[Key], why: str | None) -> Iterator[set[ParentKey]]:
    """Derive again, or remove, the parents that rows have before or after the block, and those that it adds.

    Parents that hold values other than those derived from their rows are imaged first, where there is a cause to name.
    """
    if not pair.parents:
        yield set()
        return
    parents, wanted = uow.statements.of_parents(pair), list(keys)
    touched = parents_of(uow, pair, wanted)
    if why is not None:
        for parent in parents:
            images.keep_parents(uow, parent, _keys(parent, touched), why)
    yield touched
    touched |= parents_of(uow, pair, wanted)
    settle(uow, parents, touched)


def parents_of(uow: Transaction, pair: Move, keys: list[Key]) -> set[ParentKey]:
    """The parents that normalized rows refer to."""
    sql, wanted = uow.statements[pair], among(keys)
    found = ((of.table.name, uow._rows(sql.parents_of(of), wanted)) for of in pair.parents)
    return {(table, key) for table, rows in found for (key,) in rows if key is not None}


def settle(uow: Transaction, parents: Iterable[ParentStatements], touched: set[ParentKey]) -> None:
    """Remove those of some parents that no row belongs to, and derive the others again."""
    for parent in parents:
        for statement in parent.settle if (keys := _keys(parent, touched)) else ():
            uow._execute(statement, among(keys))


def _keys(parent: ParentStatements, touched: set[ParentKey]) -> list[Key]:
    return [key for table, key in touched if table == parent.parent.table.name]
