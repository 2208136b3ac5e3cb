"""The programs that made the files in the field: tells by inspection which one made a file, and whether it can be used.

The version number of a file (`user_version`) does not tell, since programs forgot to set it; its tables and their
columns do. Nothing is written here; the revisions adopt a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy import MetaData

from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun, ConsensusSynthesisRecord
from consensus_orm.databases.opening import catalog_behind
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.moves import Moves
from consensus_orm.schema import inspection
from consensus_orm.schema.application import Identity

__all__ = [
    "EXECUTIONS",
    "FOUNDING",
    "LEGACY",
    "NORMALIZED",
    "PROTECTED",
    "UNPROTECTED",
    "Program",
    "declare_tables",
    "identify",
    "include_object",
    "owns",
]

PROTECTED = 3
"""The user_version of a file that the dual-write and the final build refuse: it is newer than theirs."""

UNPROTECTED = (0, 1, 2)
"""The values of user_version that programs of the field set or left; any other belongs to another application."""

LEGACY: Mapping[str, tuple[str, ...]] = {pair.legacy_name: pair.legacy_columns for pair in CONSENSUS}
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
"""The first columns of agent_executions; ALTER added three more later, in no fixed order."""

NORMALIZED = tuple(map(table_of, (ConsensusRun, AgentOutput, ConsensusSynthesisRecord)))
"""The normalized tables, which the revisions make."""


class Program(StrEnum):
    """Which program made a file."""

    NEW = "new"
    """A file without tables of this application."""
    EXECUTIONS = "executions"
    """agent_executions and no other table of this application."""
    LEGACY = "legacy"
    """The legacy side alone, with or without agent_executions."""
    DUAL_WRITE_BUILD = "dual_write_build"
    """Both sides, legacy being the source of truth."""
    FINAL_BUILD = "final_build"
    """The founding normalized tables alone."""
    MANAGED = "managed"
    """A file with a revision of this package."""


PROGRAMS = {Program.DUAL_WRITE_BUILD: "dual-write build", Program.FINAL_BUILD: "final build"}
"""Programs whose normalized tables an upgrade recreates."""


def identify(connection: Any) -> Identity:
    """Identify a file by its schema and, where there is one, its revision.

    Args:
        connection: A connection of the driver, in a transaction: another process might change the schema between two
            statements.

    Returns:
        The program that made the file, and its revision.

    Raises:
        UnknownSchemaError: A table has a name of this application and other columns.
        SchemaError: It moves other tables.
        SchemaTooNewError: Its revision is not known to this program.
        sqlite3.Error, psycopg.Error: It cannot be read; `engine.translated` says why.
    """
    catalog = catalog_behind(connection)
    there = catalog.relations(connection)
    tables = inspection.tables(connection, there, owns)
    version = inspection.revision(connection, tables)
    legacy = {name: tables[name] for name in LEGACY if name in tables}
    founding = {name: tables[name] for name in FOUNDING if name in tables}
    inspection.refuse_another_move(connection, tables, (*LEGACY, *(table.name for table in NORMALIZED)))
    current = version == inspection.REVISIONS[-1]
    for name, columns in legacy.items() if not current else ():  # there `status` names what is missing
        inspection.check_table(name, columns, LEGACY[name])
    if EXECUTIONS in tables:
        inspection.check_table(EXECUTIONS, tables[EXECUTIONS], EXECUTION_COLUMNS, key="agent_id", key_type="TEXT")
    if version is not None:
        if current:
            inspection.check_managed(tables)
        kind = Program.MANAGED
    else:
        for name, columns in founding.items():
            # Not even a further column: its values would have no place.
            inspection.check_table(name, columns, FOUNDING[name], extras=False)
        inspection.refuse_stray_tables(tables, (ConsensusSynthesisRecord.__tablename__,))
        kind = _kind(legacy, founding, EXECUTIONS in tables)
    return Identity(
        kind,
        frozenset(legacy),
        version,
        catalog.user_version(connection),
        rewritten=tuple(FOUNDING) if kind in PROGRAMS else (),
        made_by=PROGRAMS.get(kind),
        is_foreign=kind is Program.NEW and bool(inspection.table_names(there)),
        lost=inspection.lost(connection, version),
    )


def _kind(legacy: inspection.Tables, founding: inspection.Tables, executions: bool) -> Program:
    if founding:
        return Program.DUAL_WRITE_BUILD if legacy else Program.FINAL_BUILD
    if legacy:
        return Program.LEGACY
    return Program.EXECUTIONS if executions else Program.NEW


def owns(name: str) -> bool:
    """Whether a table belongs to this package by its name: for `include_name` in your own alembic environment.

    Args:
        name: The name of the table.
    """
    name = name.lower()
    return name in _OURS or inspection.is_control(name)


def include_object(moves: Moves | None = None) -> Callable[..., bool]:
    """Make the hook that lets `alembic revision --autogenerate` and `alembic check` leave some tables alone.

    They are those of this package, and the legacy tables of moves of your own, which no revision drops: the phase does.

        context.configure(connection=connection, target_metadata=Base.metadata, include_object=include_object(MOVES))

    Args:
        moves: Moves of your own.
    """
    legacy = {move.legacy_name.lower() for move in moves or ()}

    def is_yours(_object: Any, name: str | None, type_: str, _reflected: bool, _compare_to: Any) -> bool:
        return type_ != "table" or name is None or not (owns(name) or name.lower() in legacy)

    return is_yours


def declare_tables(metadata: MetaData) -> None:
    """Add the normalized tables to an application's metadata, so that `ForeignKey("consensus_runs.id")` finds them.

    They are made by the revisions of this package, which come first; `include_object` keeps alembic from making them.

    Args:
        metadata: The application's, as of its declarative base.
    """
    for table in NORMALIZED:
        if table.name not in metadata.tables:
            table.to_metadata(metadata)


_OURS = {*LEGACY, *FOUNDING, EXECUTIONS, *(table.name for table in NORMALIZED)}
