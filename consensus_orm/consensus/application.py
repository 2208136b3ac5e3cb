"""The consensus data as an application of the engine: its tables, how its files are identified, its default path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, MetaData

from consensus_orm import errors
from consensus_orm.consensus import programs
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.consensus.models.executions import AgentExecution
from consensus_orm.databases.opening import catalog_behind
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.moves import Moves
from consensus_orm.phase import Side
from consensus_orm.schema import inspection
from consensus_orm.schema.application import Application, Identity, Protection
from consensus_orm.settings import Settings

__all__ = ["APPLICATION", "application_of", "include_object", "metadata", "place"]

DEFAULT_PATH = "~/.code/consensus_artifacts.db"

EXECUTIONS = table_of(AgentExecution)


class _Consensus(Application):
    """The consensus data, whose tables the revisions make."""

    tables = programs.NORMALIZED
    unmapped = (EXECUTIONS,)
    protection = Protection(programs.PROTECTED, programs.UNPROTECTED)

    def identify(self, connection: Any) -> Identity:
        """Tell which program made a file."""
        return programs.identify(connection)


class _Other(Application):
    """Another application, whose tables must not be moved in a file of the consensus data."""

    def identify(self, connection: Any) -> Identity:
        """Identify a database.

        Raises:
            SchemaError: It holds the consensus tables.
        """
        identity = super().identify(connection)
        foreign = {*programs.FOUNDING, *((*programs.LEGACY, programs.EXECUTIONS) if identity.is_new else ())}
        if foreign & inspection.table_names(catalog_behind(connection).relations(connection)):
            raise errors.SchemaError(
                "this file holds the consensus tables, and a file holds one move", hint="use a file for each"
            )
        return identity


APPLICATION = _Consensus(programs.LEGACY)


def application_of(moves: Moves) -> Application:
    """The application whose tables are moved."""
    return (
        APPLICATION
        if moves is CONSENSUS
        else _Other((pair.legacy_name for pair in moves), moves.tables(Side.NORMALIZED))
    )


def place(url: str | Path | URL | None, settings: Settings) -> str | Path | URL:
    """The database of the consensus data: the given one, else that of the settings, else the default file."""
    given = url if url is not None else settings.url
    return given if given is not None else DEFAULT_PATH


# For alembic ----------------------------------------------------------------------------------------------


def metadata() -> MetaData:
    """The tables of all models, legacy tables included."""
    from consensus_orm.consensus.models import legacy
    from consensus_orm.models import Base, control, external

    assert all((control, external, legacy))  # imported for their tables
    return Base.metadata


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Tell alembic what to compare: our tables, and of tables in the field only what both sides have.

    A missing legacy table was dropped by the phase, not by a revision. The keys of legacy tables lack NOT NULL, which
    SQLite ignores.
    """
    if type_ == "table":
        return name in metadata().tables and (reflected or compare_to is not None or name not in programs.LEGACY)
    table = getattr(object_, "table", None)
    if table is None or table.name not in (*programs.LEGACY, programs.EXECUTIONS):
        return True  # the others are accepted as other programs made and altered them
    return compare_to is not None and not getattr(object_, "primary_key", False)
