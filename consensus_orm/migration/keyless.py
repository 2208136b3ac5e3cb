"""Rows that cannot be named by their key: it is NULL, or of another type than the key of the move.

No statement by keys reaches such a row and no range holds it, so it is never carried. It becomes a reject, kept whole,
and is told from others by what it holds: row numbers change when a file is vacuumed. Equal rows are as many rejects
as there are rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from sqlalchemy import bindparam, select

from consensus_orm.declaration.move import Move
from consensus_orm.declaration.rules import is_text
from consensus_orm.ledgers import changes, mismatches
from consensus_orm.models.control import Reject
from consensus_orm.phase import Side
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["concerns", "count", "images", "reject", "settle", "stands"]

REASON = "its key is "
"""How the reasons of such rejects begin."""

KEPT = select(Reject.image).where(
    Reject.pair == bindparam("pair"),
    Reject.table_name == bindparam("table_name"),
    Reject.key.is_(None),
    Reject.reason.startswith(REASON),
    Reject.state != "resolved",
)


def count(uow: UnitOfWork, pair: Move, side: Side) -> int:
    """How many rows of a side have no usable key; it looks at every row."""
    return int(uow._rows(uow.statements[pair].keyless_rows(side))[0][0])


def images(uow: UnitOfWork, pair: Move, side: Side) -> Iterator[mismatches.Image]:
    """The rows of a side without a usable key, whole; it looks at every row.

    Args:
        uow: Sees the side.
        pair: The pair of the rows.
        side: The side.
    """
    names, sql = uow.statements[pair].keyless_images(side)
    for parts in uow._rows(sql):
        yield mismatches.as_image(names, parts)


def reject(uow: UnitOfWork, pair: Move, side: Side) -> int:
    """Make a reject of each row of a side that has no usable key and is none yet.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.
        side: The side.

    Returns:
        How many are new.
    """
    kept = Counter(_kept(uow, pair, side))
    new = 0
    for image in images(uow, pair, side):
        if kept[(told := json.dumps(image))] > 0:
            kept[told] -= 1
            continue
        mismatches.keep_reject(uow, pair, None, side, _reason(pair, image[pair.legacy_key][0]), image)
        new += 1
    return new


def settle(uow: UnitOfWork, pair: Move) -> int:
    """Reject what another program wrote without a usable key, and forget that it was recorded.

    Args:
        uow: Holds the write lock.
        pair: The pair of the rows.

    Returns:
        How many rejects are new.
    """
    written = changes.of_unnamed_rows(uow, pair)
    new = sum(reject(uow, pair, side) for side in Side if written.ops[side])
    changes.forget(uow, [written])
    return new


def concerns(reject: mismatches.OpenReject) -> bool:
    """Whether a reject is one of a row without a usable key."""
    return reject.key is None and reject.reason.startswith(REASON)


def stands(uow: UnitOfWork, reject: mismatches.OpenReject) -> bool:
    """Whether the row of such a reject is still there without a usable key: as many rows as were kept.

    Args:
        uow: Sees the side.
        reject: The reject.
    """
    rows = sum(json.dumps(image) == reject.image for image in images(uow, reject.pair, reject.side))
    return rows >= sum(image == reject.image for image in _kept(uow, reject.pair, reject.side))


def _kept(uow: UnitOfWork, pair: Move, side: Side) -> list[str]:
    return [image for (image,) in uow._rows(KEPT, {"pair": pair.name, "table_name": pair.table_name(side)})]


def _reason(pair: Move, kind: str) -> str:
    wanted = "text" if is_text(pair.key) else "integer"
    if kind == wanted:
        return f"{REASON}a text with a NUL character, or that is not valid UTF-8"
    return f"{REASON}NULL" if kind == "null" else f"{REASON}stored as {kind}, not as {wanted}"
