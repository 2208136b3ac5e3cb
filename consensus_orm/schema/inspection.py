"""The inspection of a database: its tables with their columns, its revision, and whether the control tables are whole.

Nothing is written here; the revisions adopt what other programs made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

from consensus_orm import errors
from consensus_orm.databases.base import FENCE, MARK, PREFIX, ColumnFacts, Relations
from consensus_orm.databases.opening import catalog_behind

__all__ = [
    "REVISIONS",
    "VERSION_TABLE",
    "Tables",
    "check_columns",
    "check_managed",
    "check_table",
    "is_control",
    "lost",
    "refuse_another_move",
    "refuse_stray_tables",
    "refuse_views",
    "revision",
    "table_names",
    "tables",
]

VERSION_TABLE = f"{PREFIX}version"
"""A name of our own: another program that shares the file may have an alembic_version."""

REVISIONS = (
    "0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011", "0012", "0013",
    "0014", "0015",
)  # fmt: skip
"""The revisions this program knows, oldest first: a store opens without importing alembic."""

KEY_TYPES = {"INTEGER": ("INTEGER", "BIGINT"), "TEXT": ("TEXT",)}
"""Types that a key may have: INTEGER in SQLite is BIGINT on PostgreSQL."""

Tables: TypeAlias = Mapping[str, Mapping[str, ColumnFacts]]
"""Tables with their columns; names in lower case, as SQLite compares them."""


def is_control(name: str) -> bool:
    """Whether a name is that of a control table, in this or another release."""
    return name.startswith(PREFIX)


def table_names(there: Relations) -> set[str]:
    """Names of all tables that `Catalog.relations` found, in lower case."""
    return {name.lower() for name, (kind, _) in there.items() if kind == "table"}


def tables(connection: Any, there: Relations, is_ours: Callable[[str], bool]) -> Tables:
    """The tables of our names with their columns.

    Args:
        connection: A connection of the driver.
        there: What `Catalog.relations` found.
        is_ours: Recognizes a name of ours, in lower case.

    Raises:
        UnknownSchemaError: One of them is a view of another program.
    """
    ours = {name.lower(): facts for name, facts in there.items() if is_ours(name.lower())}
    found = {name: columns() for name, (kind, columns) in ours.items() if kind == "table"}
    refuse_views(there, is_ours, has_revision=revision(connection, found) is not None)
    return found


def refuse_views(there: Relations, is_ours: Callable[[str], bool], *, has_revision: bool) -> None:
    """Refuse views, with triggers or not, and virtual tables under our names: a phase cannot be guarded on them.

    Where a database has a revision, a view may stand where a table of the moves was: a sign of ours at CONTRACT, or one
    of another program. The status names it, as it names a table that is missing (`ledgers.guards`).

    Args:
        there: What `Catalog.relations` found.
        is_ours: Recognizes a name of ours, in lower case.
        has_revision: Whether the database has one.

    Raises:
        UnknownSchemaError: There is one.
    """
    for name, (kind, _) in sorted(there.items()):
        own = name.lower()
        if kind == "table" or own in (FENCE, MARK) or not is_ours(own):
            continue
        if is_control(own) or not has_revision:
            raise errors.UnknownSchemaError(
                f"{own} is a {kind}, not a table",
                hint="nothing was changed; rows are moved from table to table: give that name to the table itself, or"
                " point consensus_orm at another database",
                table=own,
            )


def revision(connection: Any, found: Tables) -> str | None:
    """The revision of a database; None where it has none, or was downgraded to the start.

    Raises:
        SchemaTooNewError: This program does not know it.
    """
    if VERSION_TABLE not in found:
        return None
    check_columns(VERSION_TABLE, found[VERSION_TABLE], ("version_num",))
    versions = [str(row[0]) for row in connection.execute(f"SELECT version_num FROM {VERSION_TABLE}")]
    if unknown := sorted(set(versions) - set(REVISIONS)):
        raise errors.SchemaTooNewError(
            f"the schema is at revision {unknown[-1]!r:.40}, this program knows {REVISIONS[-1]!r}",
            version=unknown[-1],
        )
    return max(versions, default=None)


def lost(connection: Any, version: str | None) -> tuple[str, ...]:
    """What revisions have made besides tables, and another program has dropped: of a database at the newest one."""
    return catalog_behind(connection).missing_objects(connection) if version == REVISIONS[-1] else ()


# Checks ---------------------------------------------------------------------------------------------------


def check_table(
    name: str,
    columns: Mapping[str, ColumnFacts],
    expected: Iterable[str],
    *,
    key: str = "id",
    key_type: str = "INTEGER",
    extras: bool = True,
) -> None:
    """Refuse a table that lacks a column, has another key, or has a column more that must be given.

    Args:
        name: Its name.
        columns: Its columns.
        expected: Names of those it must have.
        key: The name of its primary key.
        key_type: The type of its primary key.
        extras: Whether it may have more columns that need not be given.

    Raises:
        UnknownSchemaError: It is another table.
    """
    check_columns(name, columns, expected)
    keys = {column: facts.type for column, facts in columns.items() if facts.primary}
    if key in keys and len(keys) > 1:
        raise errors.UnknownSchemaError(
            f"the primary key of table {name} is not {key} alone: it has {', '.join(keys)}",
            hint=f"nothing was changed; partition the table by {key} (RANGE or HASH), which needs no other column",
            table=name,
            column=key,
        )
    if list(keys) != [key] or keys[key] not in KEY_TYPES[key_type]:
        raise errors.UnknownSchemaError(
            f"the primary key of table {name} is not {key} {key_type}", table=name, column=key
        )
    for column in columns.keys() - set(expected):
        if columns[column].required or not extras:
            raise errors.UnknownSchemaError(
                f"table {name} has a column that no known version has: {column!r:.60}",
                table=name,
                column=column,
            )


def check_columns(name: str, columns: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        UnknownSchemaError: It does.
    """
    if missing := sorted(set(expected) - set(columns)):
        raise errors.UnknownSchemaError(
            f"table {name} has not the columns of any known version: {', '.join(missing)} missing",
            table=name,
            missing=missing,
        )


def refuse_stray_tables(found: Tables, others: Collection[str] = ()) -> None:
    """Refuse control tables, or `others` that only revisions make, in a database without a revision.

    Raises:
        UnknownSchemaError: There is one.
    """
    for name in sorted(found):
        if (is_control(name) and name != VERSION_TABLE) or name in others:
            raise errors.UnknownSchemaError(
                f"table {name} is there, but no revision is recorded in {VERSION_TABLE}", table=name
            )


def refuse_another_move(connection: Any, found: Tables, legacy: Iterable[str]) -> None:
    """Refuse a database that moves other tables: from its first upgrade on it records which ones it moves.

    Raises:
        SchemaError: It moves other tables.
    """
    recorded = _moved(connection, found)
    if recorded and recorded.isdisjoint(map(str.lower, legacy)):
        raise errors.SchemaError(
            f"this database moves other tables ({', '.join(sorted(recorded))}), and a database holds one move",
            hint="nothing was changed; name the moves of this database (--mapping), or use a database for each",
        )


def _moved(connection: Any, found: Tables) -> set[str]:
    """The legacy tables that a database moves; before revision 0011 the tables that its guards name."""
    if "moves" in found.get("consensus_orm_state", ()):
        rows = connection.execute("SELECT moves FROM consensus_orm_state WHERE moves <> ''").fetchall()
        if rows:  # none where a copy is not finished, or an older backup was restored
            return set(str(rows[0][0]).split("\n"))
    if "consensus_orm_guards" not in found:
        return set()
    rows = connection.execute("SELECT table_name FROM consensus_orm_guards WHERE kind IN ('table', 'view')").fetchall()
    return {str(name).lower() for (name,) in rows}


def check_managed(found: Tables) -> None:
    """Compare the control tables of a database at the newest revision with the models when it is opened.

    A table that holds rows of users and is missing, or lacks a column, is reported by the status (`ledgers.guards`):
    the database opens, and a statement that needs it says so.

    Raises:
        UnknownSchemaError: A control table is missing that cannot be made again, or lacks a column.
    """
    from consensus_orm.models import control
    from consensus_orm.models.base import Base

    replaceable = [model.__table__ for model in control.REPLACEABLE]
    for table in (table for name, table in Base.metadata.tables.items() if is_control(name)):
        if table.name in found:
            check_columns(table.name, found[table.name], table.columns.keys())
        elif table not in replaceable:
            raise errors.UnknownSchemaError(
                f"table {table.name} was dropped or renamed by another program",
                hint="nothing was changed; run: consensus-orm restore BACKUP",
                table=table.name,
            )
