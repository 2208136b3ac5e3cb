"""The fingerprint of a declaration: a hash of what it says, whatever SQL becomes of it.

A certificate speaks of a declaration. So the hash changes where a rule, a column, a key or a table changes, and stays
where the same rule is only printed in another way, or the declaration is written down in another order of arguments.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import column

from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Many, Parent, Part
from consensus_orm.declaration.rules import Earliest, Latest, Row, expression, on, spelled

__all__ = ["fingerprint"]


def fingerprint(moves: Moves) -> str:
    """Hash a declaration.

    Args:
        moves: The declaration.

    Returns:
        16 hexadecimal digits, the first of SHA-256 over its canonical JSON; the same on every kind of database.
    """
    told = {
        "pairs": [_move(move) for move in moves],
        "parents": [_parent(parent, moves) for parent in moves.parents],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _move(move: Move) -> dict[str, Any]:
    told = {
        "name": move.name,
        "legacy": move.legacy_name,
        "normalized": move.table.name,
        "key": _column(move.keys[0]),
        "carried": {name: _column(of) for name, of in move.carried.items()},
        "computed": {of.key: spelled(on(rule, _row(move))) for of, rule in move.computed.items()},
        "adopted": {name: spelled(rule) for name, rule in move.adopted.items()},
        "kept": [of.key for of in move.kept],
        "parent": move.parents[0].table.name if move.parents else None,
        "link": move.links[0].key if move.parents else None,
        "marker": None if move.marker is None else move.marker.key,
        "newest": None if move.newest is None else move.newest.key,
    }
    # What a declaration does not use is left out, so that one that was hashed before it could be said keeps its hash.
    more = {
        "legacy_key": move.legacy_keys[0] if move.legacy_keys[0] != move.keys[0].name else None,
        "further_keys": [[name, *_column(of)] for name, of in zip(move.legacy_keys[1:], move.keys[1:], strict=True)],
        "further_parents": [[parent.table.name, parent.refers.key] for parent in move.parents[1:]],
        "restored": {name: spelled(rule) for name, rule in move.restored.items()},
        "without": sorted(move.without),
        "parts": {part.table.name: _part(part, move) for part in move.parts},
        "many": {name: _many(many) for name, many in move.listed.items()},
        "only": {side.value: {n: spelled(v) for n, v in of.items()} for side, of in move.only.items() if of},
        "kept_originals": [list(rule.sources) for rule in move.lossy],
    }
    return told | {name: value for name, value in more.items() if value}


def _part(part: Part, move: Move) -> dict[str, Any]:
    row = _row(move)
    return {
        "by": _column(part.by),
        "holds": {name: spelled(value) for name, value in move.filled_in(part, row).items()},
        "when": None if part.when is None else spelled(on(expression(part.when), row)),
    }


def _many(many: Many) -> dict[str, Any]:
    return {
        "by": _column(many.by),
        "position": _column(many.position),
        "item": _column(many.item),
        "link": None if many.link is None else _column(many.link),
        "items": [type(many.items).__name__, getattr(many.items, "separator", None)],
    }


def _parent(parent: Parent, moves: Moves) -> dict[str, Any]:
    first = moves.members(parent)[0]
    above = ((of, rule) for of, rule in first.above.items() if of.table is parent.at)
    derived: dict[str, Any] = {}
    for of, rule in parent.derived_columns.items():
        if isinstance(rule, Latest):
            value = on(expression(rule.value), _row(moves[rule.move]))
            derived[of.key] = [rule.move, spelled(value), _CONSTANTS.get(rule.otherwise, repr(rule.otherwise))]
        else:
            derived[of.key] = Earliest.__name__
    return {
        "table": parent.table.name,
        "key": _column(parent.key),
        "identity": sorted(of.key for of in parent.identity),
        "computed": {of.key: spelled(on(rule, _row(first))) for of, rule in above},
        "derived": derived,
    }


_CONSTANTS = {None: "NULL", True: "TRUE", False: "FALSE"}


def _row(move: Move) -> Row:
    """A legacy row, without importing the legacy class: at CONTRACT there is none."""
    return Row({name: column(name, getattr(move.carried.get(name), "type", None)) for name in move.columns})


def _column(of: Any) -> list[str]:
    return [of.table.name, of.name, repr(of.type)]
