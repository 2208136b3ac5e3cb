"""Files in the field: tell by inspection which program made one, and whether it can be adopted.

The version number of a file (`user_version`) does not tell: programs forgot to set it. What counts is which
tables are there and which columns they have. Nothing is written here; the revisions do the adopting.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias

from consensus_orm import errors
from consensus_orm.databases.base import ColumnFacts

__all__ = [
    "EXECUTIONS",
    "LEGACY",
    "PROTECTED",
    "REVISIONS",
    "UNPROTECTED",
    "VERSION_TABLE",
    "Identity",
    "Kind",
    "Rewrite",
    "identify",
    "table_names",
]

VERSION_TABLE = "consensus_orm_version"
"""Ours alone: another program that shares the file may have an alembic_version of its own."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""The revisions this program knows, oldest first; a store opens without asking alembic."""

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


KEY_TYPES = {"INTEGER": ("INTEGER", "BIGINT"), "TEXT": ("TEXT",)}
"""Types that a key may have: what SQLite calls INTEGER is BIGINT on PostgreSQL."""


class Kind(StrEnum):
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


PROGRAMS = {Kind.DUAL_WRITE_BUILD: "dual-write build", Kind.FINAL_BUILD: "final build"}
"""Programs whose normalized tables an upgrade makes anew."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file is.

    Attributes:
        kind: Which program made it.
        legacy_tables: Those of the two legacy tables that exist.
        version: Its revision; None where it never had one.
        user_version: SQLite's number of that name; None on a server.
    """

    kind: Kind
    legacy_tables: frozenset[str]
    version: str | None
    user_version: int | None = field(default=None, compare=False)

    @property
    def needs_upgrade(self) -> bool:
        """Whether there are revisions it has not seen."""
        return self.version != REVISIONS[-1]

    @property
    def rewritten(self) -> tuple[str, ...]:
        """The tables that an upgrade makes anew, so that the program which made them fails from then on."""
        return tuple(FOUNDING) if self.kind in PROGRAMS else ()

    @property
    def unprotected(self) -> bool:
        """Whether the founding builds take a file for one of theirs, by its user_version."""
        return self.user_version in UNPROTECTED


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What the upgrade of a file will do to tables that another program made.

    Attributes:
        file: The name of the database.
        made_by: Which program made it.
        rows: Rows of each table that is made anew.
        backup: Where the backup of the file goes first, its time left open; None for a database in memory.
        others: Who else has the file open now, as far as this user may see.
    """

    file: str
    made_by: Kind
    rows: Mapping[str, int]
    backup: str | None
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What will be done, and what it means for whom, in one sentence."""
        tables = " and ".join(f"{name} ({n:,} row{'' if n == 1 else 's'})" for name, n in self.rows.items())
        text = (
            f"{self.file} was made by the {PROGRAMS[self.made_by]}: the upgrade makes {tables} anew, and that program"
            " fails on them from then on"
        )
        if self.backup is not None:
            text += f"; a verified backup is made first, as {self.backup}"
        return text + "".join(f"; {other} has the file open now" for other in self.others[:1])


_Tables: TypeAlias = Mapping[str, Mapping[str, ColumnFacts]]


def identify(connection: Any, *, consensus: bool = True) -> Identity:
    """Say what a file is; reads the schema and, where there is one, the revision.

    Args:
        connection: A connection of the driver. Several statements are sent: hold a transaction, or another
            process may change the schema between two of them.
        consensus: Whether the consensus tables are expected; another move has the control tables alone.

    Returns:
        What the file is.

    Raises:
        UnknownSchemaError: A table of our names is not one of ours.
        SchemaTooNewError: Its revision is not known to this program.
        sqlite3.Error, psycopg.Error: It cannot be read; `engine.translated` says why.
    """
    tables = _tables(connection)
    version = _version(connection, tables)
    legacy = {name: tables[name] for name in LEGACY if name in tables}
    founding = {name: tables[name] for name in FOUNDING if name in tables}
    for name, columns in legacy.items():
        _check(name, columns, LEGACY[name])
    if EXECUTIONS in tables:
        _check(EXECUTIONS, tables[EXECUTIONS], EXECUTION_COLUMNS, key="agent_id", key_type="TEXT")
    if version is not None:
        if version == REVISIONS[-1]:
            _check_managed(tables, consensus=consensus)
        kind = Kind.MANAGED
    else:
        for name, columns in founding.items():
            # Not even a column more: its values would have no place to go.
            _check(name, columns, FOUNDING[name], extras=False)
        _refuse_stray_tables(tables)
        kind = _kind(legacy, founding, EXECUTIONS in tables)
    return Identity(kind, frozenset(legacy), version, _user_version(connection))


def _kind(legacy: _Tables, founding: _Tables, executions: bool) -> Kind:
    if founding:
        return Kind.DUAL_WRITE_BUILD if legacy else Kind.FINAL_BUILD
    if legacy:
        return Kind.LEGACY
    return Kind.EXECUTIONS if executions else Kind.NEW


def is_ours(name: str) -> bool:
    """Whether a table has a name that this package, or a program whose files it adopts, gives."""
    return name in LEGACY or name in FOUNDING or name in (EXECUTIONS, "consensus_syntheses") or _is_control(name)


def _is_control(name: str) -> bool:
    return name.startswith("consensus_orm_")


def _user_version(connection: Any) -> int | None:
    if not isinstance(connection, sqlite3.Connection):
        return None
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def table_names(connection: Any) -> set[str]:
    """Names of all tables, in small letters.

    Args:
        connection: As for `identify`.
    """
    return {name.lower() for name, (kind, _) in _relations(connection).items() if kind == "table"}


def _tables(connection: Any) -> _Tables:
    """The tables of our names with their columns; names in small letters, as SQLite compares them.

    Raises:
        UnknownSchemaError: One of them is a view.
    """
    found: dict[str, Mapping[str, ColumnFacts]] = {}
    for spelled, (kind, columns) in _relations(connection).items():
        name = spelled.lower()
        if not is_ours(name):
            continue
        if kind == "view" and name in LEGACY and _is_sign(connection, spelled):
            continue
        if kind == "view":
            raise errors.UnknownSchemaError(f"{name} is a view, not a table", table=name)
        found[name] = columns()
    return found


def _is_sign(connection: Any, name: str) -> bool:
    """Whether a view is the one that we left where a legacy table was: it is as it was recorded (`phase_guards`)."""
    recorded = "SELECT 1 FROM consensus_orm_guards AS g"
    if not isinstance(connection, sqlite3.Connection):
        if not connection.execute("SELECT to_regclass('consensus_orm_guards')").fetchone()[0]:
            return False
        same = f"{recorded} WHERE g.kind = 'view' AND g.name = ? AND CAST(g.definition AS oid) = to_regclass(g.name)"
        return connection.execute(same, (name,)).fetchone() is not None
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'consensus_orm_guards'").fetchone():
        return False
    same = f"{recorded} JOIN sqlite_master AS m ON m.name = g.name AND m.sql = g.definition WHERE g.name = ?"
    return connection.execute(f"{same} AND g.kind = 'view' AND m.type = 'view'", (name,)).fetchone() is not None


def _relations(connection: Any) -> Mapping[str, tuple[str, Callable[[], Mapping[str, ColumnFacts]]]]:
    """Kind and columns of each table and view."""
    if not isinstance(connection, sqlite3.Connection):
        from consensus_orm.databases.postgresql.catalog import relations

        return relations(connection)
    there = connection.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    return {name: (kind, partial(_columns, connection, name)) for name, kind in there}


def _columns(connection: sqlite3.Connection, table: str) -> dict[str, ColumnFacts]:
    rows = connection.execute(
        'SELECT lower(name), upper(type), "notnull" AND dflt_value IS NULL, pk FROM pragma_table_info(?)', (table,)
    )
    return {column: ColumnFacts(type_, bool(needed), bool(pk)) for column, type_, needed, pk in rows}


def _version(connection: Any, tables: _Tables) -> str | None:
    """The revision of a file; None where it has none, or had one and was downgraded to the start."""
    if VERSION_TABLE not in tables:
        return None
    _check_columns(VERSION_TABLE, tables[VERSION_TABLE], ("version_num",))
    versions = [str(row[0]) for row in connection.execute(f"SELECT version_num FROM {VERSION_TABLE}")]
    if unknown := sorted(set(versions) - set(REVISIONS)):
        raise errors.SchemaTooNewError(
            f"the schema is at revision {unknown[-1]!r:.40}, this program knows {REVISIONS[-1]!r}",
            version=unknown[-1],
        )
    return max(versions, default=None)


def _check(
    name: str,
    columns: Mapping[str, ColumnFacts],
    expected: Iterable[str],
    *,
    key: str = "id",
    key_type: str = "INTEGER",
    extras: bool = True,
) -> None:
    """Refuse a table that lacks a column, has another key, or has one more that must be given."""
    _check_columns(name, columns, expected)
    keys = {column: facts.type for column, facts in columns.items() if facts.primary}
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


def _check_columns(name: str, columns: Iterable[str], expected: Iterable[str]) -> None:
    if missing := sorted(set(expected) - set(columns)):
        raise errors.UnknownSchemaError(
            f"table {name} has not the columns of any known version: {', '.join(missing)} missing",
            table=name,
            missing=missing,
        )


def _refuse_stray_tables(tables: _Tables) -> None:
    """Refuse tables that only revisions make, in a file that has none."""
    for name in sorted(tables):
        if (_is_control(name) and name != VERSION_TABLE) or name == "consensus_syntheses":
            raise errors.UnknownSchemaError(
                f"table {name} is there, but no revision is recorded in {VERSION_TABLE}", table=name
            )


def _check_managed(tables: _Tables, *, consensus: bool) -> None:
    """Hold a file at the newest revision against the models, so that damage shows here and not later.

    A table with rows of users that another program has dropped is for the status to name (`phase_guards`): the file
    opens, and what needs the table says so.
    """
    from consensus_orm.consensus.models import normalized
    from consensus_orm.models import control

    for module in (control, normalized) if consensus else (control,):
        for model in module.__all__:
            table = getattr(module, model).__table__
            if table.name in tables:
                _check_columns(table.name, tables[table.name], table.columns.keys())
            elif module is control:
                raise errors.UnknownSchemaError(
                    f"table {table.name} was dropped or renamed by another program",
                    hint="nothing was changed; run: consensus-orm restore BACKUP",
                    table=table.name,
                )
