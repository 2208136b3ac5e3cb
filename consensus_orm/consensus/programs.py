"""Files in the field: tell by inspection which program made one, and whether it can be adopted.

The version number of a file (`user_version`) does not tell: programs forgot to set it. What counts is which
tables are there and which columns they have. Nothing is written here; the revisions do the adopting.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun, ConsensusSynthesisRecord
from consensus_orm.declaration.move import table_of
from consensus_orm.schema import inspection
from consensus_orm.schema.application import Identity

__all__ = ["EXECUTIONS", "FOUNDING", "LEGACY", "NORMALIZED", "PROTECTED", "UNPROTECTED", "Program", "identify", "owns"]

PROTECTED = 3
"""The user_version of a file that the dual-write and the final build refuse: it is newer than theirs."""

UNPROTECTED = (0, 1, 2)
"""Those that programs of the field set, or forgot to set; any other is another application's."""

LEGACY: Mapping[str, tuple[str, ...]] = {
    "consensus_artifacts": (
        "id", "spec_id", "stage", "agent_name", "content_json", "response_text", "run_id", "created_at",
    ),
    "consensus_synthesis": (
        "id", "spec_id", "stage", "output_markdown", "output_path", "status", "artifacts_count", "agreements",
        "conflicts", "degraded", "run_id", "created_at",
    ),
}  # fmt: skip
"""The legacy tables and their columns, the same in every program that made them."""

FOUNDING: Mapping[str, tuple[str, ...]] = {
    "consensus_runs": (
        "id", "spec_id", "stage", "run_timestamp", "consensus_ok", "degraded", "synthesis_json",
    ),
    "agent_outputs": ("id", "run_id", "agent_name", "model_version", "content", "output_timestamp"),
}  # fmt: skip
"""The normalized tables of the dual-write and the final build."""

EXECUTIONS = "agent_executions"
EXECUTION_COLUMNS = (
    "agent_id", "spec_id", "stage", "phase_type", "agent_name", "spawned_at", "completed_at", "response_text",
)  # fmt: skip
"""What agent_executions has had from its first day; three more came later, by ALTER, in no fixed order."""

NORMALIZED = tuple(map(table_of, (ConsensusRun, AgentOutput, ConsensusSynthesisRecord)))
"""The normalized tables, which the revisions make."""


class Program(StrEnum):
    """Which program made a file."""

    NEW = "new"
    """It holds no table of ours."""
    EXECUTIONS = "executions"
    """agent_executions and nothing else of ours."""
    LEGACY = "legacy"
    """The legacy side alone, with or without agent_executions."""
    DUAL_WRITE_BUILD = "dual_write_build"
    """Both sides, the legacy one being the truth."""
    FINAL_BUILD = "final_build"
    """The founding normalized tables alone."""
    MANAGED = "managed"
    """It has a revision of ours."""


PROGRAMS = {Program.DUAL_WRITE_BUILD: "dual-write build", Program.FINAL_BUILD: "final build"}
"""Programs whose normalized tables an upgrade makes anew."""


def identify(connection: Any) -> Identity:
    """Say what a file is; reads the schema and, where there is one, the revision.

    Args:
        connection: A connection of the driver. Several statements are sent: hold a transaction, or another
            process may change the schema between two of them.

    Returns:
        What the file is.

    Raises:
        UnknownSchemaError: A table of our names is not one of ours.
        SchemaTooNewError: Its revision is not known to this program.
        sqlite3.Error, psycopg.Error: It cannot be read; `engine.translated` says why.
    """
    tables = inspection.tables(connection, inspection.relations(connection), owns, LEGACY)
    version = inspection.revision(connection, tables)
    legacy = {name: tables[name] for name in LEGACY if name in tables}
    founding = {name: tables[name] for name in FOUNDING if name in tables}
    current = version == inspection.REVISIONS[-1]
    for name, columns in legacy.items() if not current else ():  # there status names what is gone, and what helps
        inspection.check_table(name, columns, LEGACY[name])
    if EXECUTIONS in tables:
        inspection.check_table(EXECUTIONS, tables[EXECUTIONS], EXECUTION_COLUMNS, key="agent_id", key_type="TEXT")
    if version is not None:
        if current:
            inspection.check_managed(tables, NORMALIZED)
        kind = Program.MANAGED
    else:
        for name, columns in founding.items():
            # Not even a column more: its values would have no place to go.
            inspection.check_table(name, columns, FOUNDING[name], extras=False)
        inspection.refuse_stray_tables(tables, (ConsensusSynthesisRecord.__tablename__,))
        kind = _kind(legacy, founding, EXECUTIONS in tables)
    return Identity(
        kind,
        frozenset(legacy),
        version,
        inspection.user_version(connection),
        rewritten=tuple(FOUNDING) if kind in PROGRAMS else (),
        made_by=PROGRAMS.get(kind),
    )


def _kind(legacy: inspection.Tables, founding: inspection.Tables, executions: bool) -> Program:
    if founding:
        return Program.DUAL_WRITE_BUILD if legacy else Program.FINAL_BUILD
    if legacy:
        return Program.LEGACY
    return Program.EXECUTIONS if executions else Program.NEW


def owns(name: str) -> bool:
    """Whether a table has one of our names: for the `include_name` of an alembic environment of your own.

    Args:
        name: The name of the table, which this package, or a program whose files it adopts, gives.
    """
    name = name.lower()
    return name in _OURS or inspection.is_control(name)


_OURS = {*LEGACY, *FOUNDING, EXECUTIONS, *(table.name for table in NORMALIZED)}
