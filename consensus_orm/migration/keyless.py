"""Rows without a usable key: it is NULL, or of another type than the key of the move.

So are rows of a mapped table that are of no move, because the constants of no `only` select them.
No statement by keys reaches such a row and no range of keys contains it, so it cannot be carried. It becomes a reject,
kept whole, and is identified by its contents: row numbers change when a file is vacuumed. Each of several equal rows is
a reject of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from sqlalchemy import bindparam, or_, select

from consensus_orm.declaration.keys import is_usable, is_word
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, rejects
from consensus_orm.ledgers.binding import keys_of
from consensus_orm.ledgers.images import value_of
from consensus_orm.models.control import Reject
from consensus_orm.phase import Side
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["concerns", "count", "images", "reject", "settle", "stands"]

REASON = "its key is "
"""How the reasons of such rejects begin."""
OF_NO_MOVE = "no move selects it by the constants of `only`"
"""The reason of a reject that is of no move."""

_KEPT = select(Reject.image).where(
    Reject.pair == bindparam("pair"),
    Reject.table_name == bindparam("table_name"),
    Reject.key.is_(None),
    or_(Reject.reason.startswith(REASON), Reject.reason == OF_NO_MOVE),
    Reject.state != "resolved",
)


def count(uow: UnitOfWork, pair: Move, side: Side) -> int:
    """How many rows of a side have no usable key; scans the table."""
    return int(uow._rows(uow.statements[pair].keyless_rows(side))[0][0])


def images(uow: UnitOfWork, pair: Move, side: Side) -> Iterator[rejects.Image]:
    """The rows of a side without a usable key, whole; scans the table."""
    names, sql = uow.statements[pair].keyless_images(side)
    for parts in uow._rows(sql):
        yield rejects.as_image(names, parts)


def reject(uow: UnitOfWork, pair: Move, side: Side) -> int:
    """Reject each row of a side that has no usable key and is no reject yet; returns how many are new."""
    kept = Counter(_kept(uow, pair, side))
    new = 0
    for image in images(uow, pair, side):
        if kept[(told := json.dumps(image))] > 0:
            kept[told] -= 1
            continue
        rejects.keep(uow, pair, None, side, _reason(uow, pair, image), image)
        new += 1
    return new


def settle(uow: UnitOfWork, pair: Move) -> int:
    """Reject what another program wrote without a usable key, and forget its records; returns how many are new."""
    written = changes.of_unnamed_rows(uow, pair)
    new = sum(reject(uow, pair, side) for side in Side if written.ops[side] or pair.only[side])
    changes.forget(uow, [written])
    return new


def concerns(of: rejects.OpenReject) -> bool:
    """Whether a reject is that of a row without a usable key."""
    return of.key is None and (of.reason.startswith(REASON) or of.reason == OF_NO_MOVE)


def stands(uow: UnitOfWork, of: rejects.OpenReject) -> bool:
    """Whether the row of such a reject still has no usable key: there are as many equal rows as equal rejects."""
    rows = sum(json.dumps(image) == of.image for image in images(uow, of.pair, of.side))
    return rows >= sum(image == of.image for image in _kept(uow, of.pair, of.side))


def _kept(uow: UnitOfWork, pair: Move, side: Side) -> list[str]:
    return keys_of(uow, _KEPT, {"pair": pair.name, "table_name": pair.table_name(side)})


def _reason(uow: UnitOfWork, pair: Move, image: rejects.Image) -> str:
    key = zip(pair.legacy_keys, pair.keys, strict=True)
    kinds = [(image[name][0], "text" if is_word(of) else "integer") for name, of in key]
    kind, wanted = next((each for each in kinds if each[0] != each[1]), kinds[0])
    encoding = uow.catalog.text_encoding(uow)
    values = {name: value_of(image[name][0], image[name][1], encoding) for name in pair.legacy_keys}
    if kind == wanted and is_usable(pair, pair.key_from(values)):
        return OF_NO_MOVE
    if kind == wanted:
        return f"{REASON}a text with a NUL character, or that is not valid UTF-8"
    return f"{REASON}NULL" if kind == "null" else f"{REASON}stored as {kind}, not as {wanted}"
