"""The evidence of a rehearsal: a JSON file beside the database, and what it is still worth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from consensus_orm import files
from consensus_orm.migration.rehearsal_report import Identity, RehearsalReport
from consensus_orm.rehearsal.digest import identity
from consensus_orm.rehearsal.raw_sql import look_of
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Evidence", "evidence_in", "evidence_path", "find", "write"]


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


def evidence_in(folder: Path, units: UnitOfWorkFactory[Any]) -> Path:
    """Where the evidence of a rehearsal of a database stands in a folder."""
    database = Path(units.path or units.engine.url.database or ":memory:")
    return files.derived(database, ".rehearsal.json", folder=folder)


def evidence_path(units: UnitOfWorkFactory[Any]) -> Path | None:
    """Where the evidence of a rehearsal is kept: beside the database, never in it.

    Args:
        units: The units of work of the database.

    Returns:
        That of a database on a server is where its backups go; None for one in memory.
    """
    if units.path is not None:
        return evidence_in(units.path.parent, units)
    if units.engine.dialect.name == "sqlite":
        return None
    return evidence_in(units.settings.backup_dir or Path.cwd(), units)


def write(report: RehearsalReport, path: Path) -> None:
    """Keep a report; there is never half of it at the path.

    Args:
        report: What was found.
        path: Where; a report that is there is replaced.

    Raises:
        OSError: It cannot be written there.
    """
    files.write_whole(path, json.dumps(report.facts(), indent=2))


def find(units: UnitOfWorkFactory[Any]) -> Evidence | None:
    """Look for a rehearsal of a database; writes nothing.

    Args:
        units: The units of work of the database.

    Returns:
        The evidence beside the database; None where there is none, or none that can be read.
    """
    path = evidence_path(units)
    if path is None:
        return None
    try:
        report = RehearsalReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    if units.path is None and report.database != units.name:
        return None  # of a database of the same name on another server

    def compare(uow: UnitOfWork) -> Evidence:
        mapping = uow.statements.mapping
        now = identity(look_of(units.engine.dialect.name, uow._rows), mapping)
        legacy = sum(now.rows.get(pair.legacy_name, 0) for pair in mapping)
        normalized = sum(now.rows.get(pair.table.name, 0) for pair in mapping)
        return Evidence(path, report, now, uow.statements.fingerprint, max(legacy, normalized))

    return units.look(compare)
