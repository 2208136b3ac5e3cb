"""What the engine is told about the application whose tables it moves.

The engine knows the control tables. Which program made a database, which tables the revisions make beside those, and
what protects a file from older programs is the application's to say; a store hands it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Table

from consensus_orm.schema import inspection

__all__ = ["Application", "Identity", "Origin", "Protection", "Rewrite"]


class Origin(StrEnum):
    """Whether a database was prepared; an application may tell more kinds apart, and calls these two the same."""

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
        made_by: The name of the program that made these, and fails on them from then on.
    """

    kind: StrEnum
    legacy_tables: frozenset[str] = frozenset()
    version: str | None = None
    user_version: int | None = field(default=None, compare=False)
    rewritten: tuple[str, ...] = ()
    made_by: str | None = None

    @property
    def is_new(self) -> bool:
        """Whether it holds no table of ours."""
        return self.kind == Origin.NEW

    @property
    def needs_upgrade(self) -> bool:
        """Whether there are revisions it has not seen."""
        return self.version != inspection.REVISIONS[-1]

    @property
    def is_readable(self) -> bool:
        """Whether it can be read without the phase that an upgrade brings: it holds the legacy side, or nothing.

        A database that has a revision and no phase is half of a copy.
        """
        return self.version is None and (bool(self.legacy_tables) or not self.rewritten)


@dataclass(frozen=True, slots=True)
class Protection:
    """How a file is protected from programs that would damage it: by a user_version that is newer than theirs.

    Attributes:
        version: The user_version of a file that they refuse.
        older: Those that they set, or forgot to set; any other is another application's.
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
        others: Who else has the file open now, as far as this user may see.
    """

    file: str
    made_by: str
    rows: Mapping[str, int]
    backup: str | None
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What will be done, and what it means for whom, in one sentence."""
        tables = " and ".join(f"{name} ({n:,} row{'' if n == 1 else 's'})" for name, n in self.rows.items())
        text = (
            f"{self.file} was made by the {self.made_by}: the upgrade makes {tables} anew, and that program"
            " fails on them from then on"
        )
        if self.backup is not None:
            text += f"; a verified backup is made first, as {self.backup}"
        return text + "".join(f"; {other} has the file open now" for other in self.others[:1])


class Application:
    """An application that makes its tables itself: the revisions make the control tables, and nothing else.

    Args:
        legacy: The names of its legacy tables; where one of them is there, a database starts at EXPAND.

    Attributes:
        tables: Its tables that the revisions make.
        unmapped: Its tables that no mapping speaks of; a copy takes them along.
        protection: What protects a file from its older programs.
    """

    tables: tuple[Table, ...] = ()
    unmapped: tuple[Table, ...] = ()
    protection: Protection | None = None

    def __init__(self, legacy: Iterable[str]) -> None:
        self.legacy = tuple(legacy)

    @property
    def is_known_to_revisions(self) -> bool:
        """Whether the revisions make its tables, and know its legacy tables by name."""
        return bool(self.tables)

    def identify(self, connection: Any) -> Identity:
        """Say what a database is; reads the schema and, where there is one, the revision.

        Args:
            connection: A connection of the driver. Several statements are sent: hold a transaction, or another
                process may change the schema between two of them.

        Returns:
            What the database is.

        Raises:
            UnknownSchemaError: A table of our names is not one of ours.
            SchemaError: It holds the move of other tables.
            SchemaTooNewError: Its revision is not known to this program.
            sqlite3.Error, psycopg.Error: It cannot be read; `engine.translated` says why.
        """
        there = inspection.relations(connection)
        found = inspection.tables(connection, there, inspection.is_control)
        version = inspection.revision(connection, found)
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
            inspection.user_version(connection),
        )
