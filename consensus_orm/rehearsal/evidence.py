"""The report of a rehearsal as a JSON file beside the database, and whether it still applies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from consensus_orm import files
from consensus_orm.formats import count, duration, moment
from consensus_orm.migration.rehearsal_report import Identity, RehearsalReport
from consensus_orm.rehearsal.digest import identity
from consensus_orm.rehearsal.raw_sql import look_of
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Evidence", "evidence_in", "evidence_path", "find", "mention", "write"]


@dataclass(frozen=True)
class Evidence:
    """The kept report of a rehearsal, and the database as it is now.

    Attributes:
        path: The file.
        report: What was found.
        now: The database now.
        mapping: The fingerprint of the mapping now.
        rows_now: Rows of the database now, on the side that has more of them.
    """

    path: Path
    report: RehearsalReport
    now: Identity
    mapping: str
    rows_now: int

    @property
    def stale(self) -> str | None:
        """Why the report no longer applies; None while it does. New rows do not make it stale."""
        if self.report.identity.schema_hash != self.now.schema_hash:
            return "the legacy tables were declared otherwise then"
        if self.report.mapping != self.mapping:
            return "the mapping was another one then"
        return None

    @property
    def holds(self) -> bool:
        """Whether the rehearsal passed and its report still applies."""
        return self.stale is None and self.report.passed


def mention(evidence: Evidence | None, now: datetime) -> str:
    """Whether this database was rehearsed with this mapping, in one line with the next command."""
    run = "run: consensus-orm rehearse"
    if evidence is None:
        return f"none of this database is on record; {run}"
    report = evidence.report
    ago = f"{moment(report.at)} ({duration(now - report.at)} ago)"
    if evidence.stale:
        return f"that of {ago} does not count: {evidence.stale}; {run}"
    if not report.passed:
        return f"NOT passed {ago}; see {evidence.path}"
    return f"passed {ago} with {count(report.rows, 'row')}; there are {evidence.rows_now:,} now"


def evidence_in(folder: Path, units: UnitOfWorkFactory[Any]) -> Path:
    """The path of the report in a folder."""
    database = Path(units.path or units.engine.url.database or ":memory:")
    return files.derived(database, ".rehearsal.json", folder=folder)


def evidence_path(units: UnitOfWorkFactory[Any]) -> Path | None:
    """The path of the report: beside the file, or where the backups of a server go; None for a database in memory."""
    if units.path is not None:
        return evidence_in(units.path.parent, units)
    if units.engine.dialect.name == "sqlite":
        return None
    return evidence_in(units.settings.backup_dir or Path.cwd(), units)


def write(report: RehearsalReport, path: Path) -> None:
    """Write a report to a file as a whole, in the place of an older one.

    Raises:
        OSError: It cannot be written there.
    """
    files.write_whole(path, json.dumps(report.facts(), indent=2))


def find(units: UnitOfWorkFactory[Any]) -> Evidence | None:
    """Find the report of a rehearsal of a database; None where there is none that can be read. Writes nothing."""
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
        moves = uow.statements.moves
        now = identity(look_of(units.engine.dialect.name, uow._rows), moves)
        legacy = sum(now.rows.get(pair.legacy_name, 0) for pair in moves)
        normalized = sum(now.rows.get(pair.table.name, 0) for pair in moves)
        return Evidence(path, report, now, uow.statements.fingerprint, max(legacy, normalized))

    return units.look(compare)
