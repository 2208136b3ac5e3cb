"""The application whose tables are moved, as the engine needs to know it.

The engine itself knows only the control tables. The application says which program made a database, which other tables
the revisions make, and what protects a file from its older programs; the store passes it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Table

from consensus_orm.databases.opening import catalog_behind
from consensus_orm.schema import inspection

__all__ = ["Application", "Identity", "Origin", "Protection", "Rewrite"]


class Origin(StrEnum):
    """Whether a database has our control tables; an application may distinguish more kinds, besides these two."""

    NEW = "new"
    """It holds no table of ours."""
    MANAGED = "managed"
    """It has a revision of ours."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a database is.

    Attributes:
        kind: Which program made it.
        legacy_tables: Those of the legacy tables that exist.
        version: Its revision; None where it never had one.
        user_version: SQLite's number of that name; None on a server.
        rewritten: The tables that an upgrade makes anew.
        made_by: The name of the program that made these, and fails on them after that.
        is_foreign: Whether it holds tables, and none of the application.
        lost: What revisions have made besides tables, and another program has dropped.
    """

    kind: StrEnum
    legacy_tables: frozenset[str] = frozenset()
    version: str | None = None
    user_version: int | None = field(default=None, compare=False)
    rewritten: tuple[str, ...] = ()
    made_by: str | None = None
    is_foreign: bool = False
    lost: tuple[str, ...] = ()

    @property
    def is_new(self) -> bool:
        """Whether it holds no table of ours."""
        return self.kind == Origin.NEW

    @property
    def needs_upgrade(self) -> bool:
        """Whether a revision is still to be applied, or something that one has made was dropped."""
        return self.version != inspection.REVISIONS[-1] or bool(self.lost)

    @property
    def is_readable(self) -> bool:
        """Whether it can be read before an upgrade gives it a phase: it holds the legacy side, or nothing.

        A database that has a revision and no phase is a copy that is not finished.
        """
        return self.version is None and (bool(self.legacy_tables) or not self.rewritten)


@dataclass(frozen=True, slots=True)
class Protection:
    """How a file is protected from programs that would damage it: by a user_version that is newer than theirs.

    Attributes:
        version: The user_version of a file that they refuse.
        older: Those that they set, or left at 0; any other number belongs to another application.
    """

    version: int
    older: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What the upgrade of a file will do to tables that another program made.

    Attributes:
        file: The name of the database.
        made_by: The name of the program.
        rows: Rows of each table that is made anew.
        backup: Where the backup of the file goes first, its time left open; None for a database in memory.
        others: Other processes that have the file open now, as far as this user may see.
    """

    file: str
    made_by: str
    rows: Mapping[str, int]
    backup: str | None
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What will be done, and which programs that affects, in one sentence."""
        tables = " and ".join(f"{name} ({n:,} row{'' if n == 1 else 's'})" for name, n in self.rows.items())
        text = (
            f"{self.file} was made by the {self.made_by}: the upgrade makes {tables} anew, and that program"
            " fails on them from then on"
        )
        if self.backup is not None:
            text += f"; a verified backup is made first, as {self.backup}"
        return text + "".join(f"; {other} has the file open now" for other in self.others[:1])


class Application:
    """An application that creates its tables itself: the revisions create only the control tables.

    Args:
        legacy: The names of its legacy tables; where one of them exists, a database starts at EXPAND.
        normalized: The names of its normalized tables.

    Attributes:
        tables: Its tables that the revisions create.
        unmapped: Its tables that are in no moves; a copy includes them.
        protection: What protects a file from its older programs.
    """

    tables: tuple[Table, ...] = ()
    unmapped: tuple[Table, ...] = ()
    protection: Protection | None = None

    def __init__(self, legacy: Iterable[str], normalized: Iterable[str] = ()) -> None:
        self.legacy = tuple(legacy)
        self._mapped = {*map(str.lower, self.legacy), *map(str.lower, normalized)}

    @property
    def is_known_to_revisions(self) -> bool:
        """Whether the revisions create its tables, and know its legacy tables by name."""
        return bool(self.tables)

    def identify(self, connection: Any) -> Identity:
        """Identify a database by its schema and, where there is one, its revision.

        Args:
            connection: A connection of the driver. Several statements are sent: hold a transaction, or another
                process may change the schema between two of them.

        Returns:
            What the database is.

        Raises:
            UnknownSchemaError: A table has one of our names, and is another one.
            SchemaError: It moves other tables.
            SchemaTooNewError: Its revision is not known to this program.
            sqlite3.Error, psycopg.Error: It cannot be read; `engine.translated` says why.
        """
        catalog = catalog_behind(connection)
        there = catalog.relations(connection)
        found = inspection.tables(connection, there, inspection.is_control)
        version = inspection.revision(connection, found)
        inspection.refuse_views(there, self._mapped.__contains__, has_revision=version is not None)
        if version is None:
            inspection.refuse_stray_tables(found)
        elif version == inspection.REVISIONS[-1]:
            inspection.check_managed(found)
        inspection.refuse_another_move(connection, found, self.legacy)
        names = inspection.table_names(there)
        return Identity(
            Origin.NEW if version is None else Origin.MANAGED,
            frozenset(name for name in self.legacy if name.lower() in names),
            version,
            catalog.user_version(connection),
            lost=inspection.lost(connection, version),
        )
