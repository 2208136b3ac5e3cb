"""What must hold of images: each row that a side has lost is kept there, in type and bytes; read by raw SQL."""

from __future__ import annotations

import json
from typing import Any

from consensus_orm.phase import Side
from tests.support.databases import Database
from tests.support.oracle import ARTIFACTS, SYNTHESES, Cell, Row

__all__ = ["assert_kept", "images"]

COLUMNS = {"artifacts": ARTIFACTS, "syntheses": SYNTHESES}


def images(database: Database) -> list[dict[str, Any]]:
    """The images there are, oldest first; the row of each as `column -> (type, digits)`."""
    found = database.rows_of(f"SELECT id, pair, {database.key}, side, image FROM consensus_orm_images ORDER BY id")
    return [
        {"id": number, "pair": pair, "key": key, "side": side, "row": {n: tuple(c) for n, c in json.loads(row).items()}}
        for number, pair, key, side, row in found
    ]


def assert_kept(database: Database, side: Side, before: dict[str, list[Row]], after: dict[str, list[Row]]) -> None:
    """Each row that a side had and has no more is kept whole, in type and bytes."""
    kept = [image for image in images(database) if image["side"] == side.value]
    for pair, rows in before.items():
        for row in rows:
            if row not in after[pair]:
                wanted = dict(zip(COLUMNS[pair], map(_cell, row), strict=True))
                assert any(wanted.items() <= image["row"].items() for image in kept if image["pair"] == pair), wanted


def _cell(cell: Cell) -> Cell:
    type_, digits = cell
    if type_ == "real":  # the judge of a file gives its digits as they are
        return type_, digits.encode().hex().upper()
    return ("integer" if type_ in ("bigint", "smallint") else type_), digits
