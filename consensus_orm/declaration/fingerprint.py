"""The fingerprint of a declaration: a hash of what it says, whatever SQL becomes of it.

A certificate speaks of a declaration. So the hash changes where a rule, a column, a key or a table changes, and stays
where the same rule is only printed in another way, or the declaration is written down in another order of arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping as Dict
from typing import Any

from sqlalchemy import Table, column
from sqlalchemy.sql.expression import BindParameter, ClauseElement

from consensus_orm.declaration.pairs import Earliest, Latest, Mapping, Pair, Parent, Row

__all__ = ["fingerprint"]


def fingerprint(mapping: Mapping) -> str:
    """Hash a declaration.

    Args:
        mapping: The declaration.

    Returns:
        16 hexadecimal digits, the first of SHA-256 over its canonical JSON; the same on every kind of database.
    """
    told = {
        "pairs": [_pair(pair) for pair in mapping.pairs],
        "parents": [_parent(parent, mapping) for parent in mapping.parents],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _pair(pair: Pair) -> dict[str, Any]:
    row = _row(pair)
    return {
        "name": pair.name,
        "legacy": pair.legacy_name,
        "normalized": pair.table.name,
        "key": _column(pair.key),
        "carried": {name: _column(pair.column(attribute)) for name, attribute in pair.carried.items()},
        "computed": {attribute.key: _spelled(rule(row)) for attribute, rule in pair.computed.items()},
        "adopted": {name: _spelled(rule(pair.table)) for name, rule in pair.adopted.items()},
        "kept": [attribute.key for attribute in pair.kept],
        "parent": None if pair.parent is None else pair.parent.table.name,
        "link": None if pair.link is None else pair.link.key,
        "marker": pair.marker.key,
        "newest": None if pair.newest is None else pair.newest.key,
    }


def _parent(parent: Parent, mapping: Mapping) -> dict[str, Any]:
    row = _row(mapping.members(parent)[0])
    derived: dict[str, Any] = {}
    for attribute, rule in parent.derived.items():
        if isinstance(rule, Latest):
            value = rule.value(_row(mapping[rule.pair]))
            derived[attribute.key] = [rule.pair, _spelled(value), rule.otherwise]
        else:
            derived[attribute.key] = Earliest.__name__
    return {
        "table": parent.table.name,
        "key": _column(parent.key),
        "identity": sorted(attribute.key for attribute in parent.identity),
        "computed": {attribute.key: _spelled(rule(row)) for attribute, rule in parent.computed.items()},
        "derived": derived,
    }


def _row(pair: Pair) -> Row:
    """A legacy row, without importing the legacy model: at CONTRACT there is none."""
    return Row({name: column(name, pair.column(attribute).type) for name, attribute in pair.carried.items()})


def _column(of: Any) -> list[str]:
    return [of.table.name, of.name, repr(of.type)]


def _spelled(element: ClauseElement) -> list[Any]:
    """An expression as its parts: what it is, what it is called, its constant, and what it is made of."""
    facts: Dict[str, Any] = {
        "name": getattr(element, "name", None) if not isinstance(element, BindParameter) else None,
        "operator": _operator(element),
        "value": repr(element.value) if isinstance(element, BindParameter) else None,
        "type": repr(getattr(element, "type", None)) if element.__visit_name__ in _TYPED else None,
        "text": getattr(element, "text", None),
    }
    # A column leads to its table, and so to all there is.
    parts = [] if _is_column(element) else [_spelled(part) for part in element.get_children()]
    return [element.__visit_name__, {name: fact for name, fact in facts.items() if fact is not None}, parts]


_TYPED = ("column", "bindparam", "cast", "type_coerce")
"""Expressions whose type is part of what they say; that of the others follows from their parts."""


def _operator(element: ClauseElement) -> str | None:
    found = getattr(element, "operator", None) or getattr(element, "modifier", None)
    return None if found is None else str(getattr(found, "opstring", None) or getattr(found, "__name__", found))


def _is_column(element: ClauseElement) -> bool:
    return element.__visit_name__ == "column" or isinstance(element, Table)
