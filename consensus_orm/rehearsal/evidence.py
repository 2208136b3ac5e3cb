"""The evidence of a rehearsal: a JSON file beside the database, and what it is still worth."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from consensus_orm.rehearsal.image import identity
from consensus_orm.rehearsal.records import Identity, RehearsalReport

if TYPE_CHECKING:
    from consensus_orm.store import ConsensusStore

__all__ = ["Evidence", "evidence_path", "find", "write"]


@dataclass(frozen=True)
class Evidence:
    """A rehearsal that was kept, and the database as it is now.

    Attributes:
        path: Where it is kept.
        report: What was found.
        now: What the database is now.
        mapping: The fingerprint of the mapping now.
        rows_now: Rows the database has now, on the side that has more of them.
    """

    path: Path
    report: RehearsalReport
    now: Identity
    mapping: str
    rows_now: int

    @property
    def stale(self) -> str | None:
        """Why it says nothing about this database any more; None where it still does.

        New rows do not make it stale: the database is in use.
        """
        if self.report.identity.schema_hash != self.now.schema_hash:
            return "the legacy tables were declared otherwise then"
        if self.report.mapping != self.mapping:
            return "the mapping was another one then"
        return None

    @property
    def holds(self) -> bool:
        """Whether this database was rehearsed with this mapping, and it went well."""
        return self.stale is None and self.report.passed


def evidence_path(database: Path) -> Path:
    """Where the evidence of a rehearsal of a database is kept: beside it, never in it."""
    return database.with_name(f"{database.name}.rehearsal.json")


def write(report: RehearsalReport, path: Path) -> None:
    """Keep a report; there is never half of it at the path.

    Args:
        report: What was found.
        path: Where; a report that is there is replaced.

    Raises:
        OSError: It cannot be written there.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".consensus_orm-rehearsal-")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            json.dump(report.facts(), file, indent=2)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def find(store: ConsensusStore) -> Evidence | None:
    """Look for a rehearsal of a store's database; writes nothing.

    Args:
        store: The store.

    Returns:
        The evidence beside the database; None where there is none, or none that can be read.
    """
    if store.path is None:
        return None
    path = evidence_path(store.path)
    try:
        report = RehearsalReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    with store._on_primary(read_only=True) as uow:
        mapping = uow.statements.mapping
        now = identity(uow._rows, mapping)
        legacy = sum(now.rows.get(pair.legacy_name, 0) for pair in mapping.pairs)
        normalized = sum(now.rows.get(pair.table.name, 0) for pair in mapping.pairs)
        return Evidence(path, report, now, uow.statements.fingerprint, max(legacy, normalized))
