"""Putting back a row that was overwritten or deleted, from its image, by the dual write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consensus_orm import errors
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import audit, images
from consensus_orm.ledgers.binding import Key
from consensus_orm.ledgers.images import Image
from consensus_orm.phase import Side
from consensus_orm.repository.dual_write import DualWrite
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Restored", "restore"]


@dataclass(frozen=True)
class Restored:
    """A row that was put back from its image.

    Attributes:
        pair: Its pair.
        key: Its key.
        not_put_back: Columns of the image in which the row has other values now: derived ones, those of another
            program, and those of a side that this phase does not write.
    """

    pair: str
    key: Key
    not_put_back: tuple[str, ...]


def restore(uow: UnitOfWork, number: int, reason: str | None) -> Restored:
    """Write the row of an image to the sides of the phase, and compare it; see `Migration.restore_image`.

    The row that has its key now is kept as an image first, so that this can be undone, too.
    """
    image = images.take(uow, number)
    pair = next((pair for pair in uow.statements.moves if pair.name == image.pair), None)
    if pair is None:
        raise errors.InvalidValueError(
            f"image {number} is of a row of {image.pair}, which follows from the rows of its pairs",
            hint=f"look at it: consensus-orm images show {number} --contents",
            field="id",
        )
    DualWrite(uow, pair).replace(_values(uow, pair, image), f"image {number} was put back")
    images.set_restored(uow, number)
    left = _not_put_back(uow, pair, image)
    audit.add(uow, "restore image", reason=reason, number=number, pair=pair.name, key=image.key, left=left)
    return Restored(pair.name, image.key, left)


def _not_put_back(uow: UnitOfWork, pair: Move, image: Image) -> tuple[str, ...]:
    """Columns of an image that have other values now, less the marker of the program that wrote the row."""
    now: images.Cells = {}
    for side, written in ((Side.NORMALIZED, uow.phase.writes_normalized), (Side.LEGACY, uow.phase.writes_legacy)):
        now |= (images.now(uow, pair, image.key, side) or {}) if written else {}
    marker = None if pair.marker is None else f"{pair.table.name}.{pair.marker.key}"
    wanted = {name: cell for name, cell in image.cells.items() if name not in {marker, *pair.only[Side.LEGACY]}}
    return tuple(name for name, cell in wanted.items() if now.get(name, _NULL) != cell)


_NULL = ("null", "")


def _values(uow: UnitOfWork, pair: Move, image: Image) -> dict[str, Any]:
    encoding = uow.catalog.text_encoding(uow)
    found = dict(image.cells)
    if image.side is Side.LEGACY and uow.phase.writes_normalized:
        # Columns that only the normalized side has stay as they are.
        now = images.now(uow, pair, image.key, Side.NORMALIZED) or {}
        found |= {of.key: now[of.key] for of in pair.kept if of.key in now}
    values = {name: images.value_of(*found[name], encoding) for name in pair.fields if name in found}
    return values | pair.key_values(image.key)
