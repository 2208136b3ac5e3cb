"""Reads what tools wrote to a memory server as artifacts of the consensus data."""

from __future__ import annotations

import json
from typing import Any

from consensus_orm.consensus.declaration import ARTIFACTS
from consensus_orm.external.importing import Row, read_own
from consensus_orm.external.sink import Item

__all__ = ["read_artifact"]

NAMES = {
    "spec_id": ("spec_id", "specId", "spec"),
    "stage": ("stage",),
    "agent_name": ("agent_name", "agent", "model"),
    "content_json": ("content_json", "content", "result", "output"),
}
"""The names under which the tools wrote the columns that an artifact must have."""

OPTIONAL = ("response_text", "run_id", "created_at")


def read_artifact(item: Item) -> Row | None:
    """Read an entry as an artifact: a JSON object that names spec, stage and agent, and has a content.

    A content that is no text is kept as JSON. An entry that this package wrote is read as the row that it was.

    Args:
        item: The entry.

    Returns:
        The row; None for an entry that is no artifact.
    """
    try:
        found = json.loads(item.content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    values: dict[str, Any] = {}
    for column, names in NAMES.items():
        value = next((found[name] for name in names if found.get(name) is not None), None)
        if value is None:
            return read_own(item)
        values[column] = value if isinstance(value, str) else json.dumps(value)
    values |= {name: found[name] for name in OPTIONAL if isinstance(found.get(name), str)}
    return Row(ARTIFACTS.name, values)
