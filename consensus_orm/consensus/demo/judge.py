"""The judge: what stands in a file, by plain SQL, every value in type and bytes.

It uses nothing of the package, so that a mistake there cannot hide itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Evidence", "Verdict", "judge", "look"]

KEYS = {"consensus_artifacts": "id", "consensus_synthesis": "id", "agent_executions": "agent_id"}
"""The legacy tables, and what tells their rows apart."""


@dataclass(frozen=True)
class Evidence:
    """What stands in the legacy tables of a file.

    Attributes:
        columns: The columns of each table, in order.
        rows: Of each table, a digest of each row by its key.
        schema: Everything the schema says of these tables, but for the triggers of the package.
        sequences: The highest id ever given, by table.
    """

    columns: Mapping[str, list[str]]
    rows: Mapping[str, Mapping[Any, str]]
    schema: frozenset[tuple[str, str, str]]
    sequences: Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """How a file compares with what it has to be.

    Attributes:
        original: Rows there were before.
        unchanged: Those of them that are what they were, in type and bytes.
        added: Rows that were added meanwhile and not deleted again.
        found: Those of them that stand there, exactly as meant.
        surplus: Rows that nobody wrote.
        schema_restored: Whether tables, indexes and triggers are defined as before.
        ids_continue: Whether no id that was ever given can be given again.
    """

    original: int
    unchanged: int
    added: int
    found: int
    surplus: int
    schema_restored: bool
    ids_continue: bool

    @property
    def exact(self) -> bool:
        """Whether nothing is missing, changed, or there without reason."""
        complete = self.unchanged == self.original and self.found == self.added and not self.surplus
        return complete and self.schema_restored and self.ids_continue


def look(path: Path, columns: Mapping[str, list[str]] | None = None) -> Evidence:
    """Take the evidence of a file.

    Args:
        path: The file; nothing is written to it.
        columns: The columns to read; all there are where left out.

    Returns:
        What stands there.
    """
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        known = columns if columns is not None else _columns(connection)
        return Evidence(known, _rows(connection, known), _schema(connection), _sequences(connection))


def judge(before: Evidence, after: Evidence, added: Mapping[str, Iterable[Mapping[str, Any]]], given: int) -> Verdict:
    """Compare what is there with what was there and what was added.

    Args:
        before: The evidence of the start.
        after: The evidence of the end.
        added: The rows that were added, by table, as they were meant.
        given: The highest id of an artifact that was given meanwhile.

    Returns:
        The verdict.
    """
    unchanged = found = surplus = expected = 0
    for table, columns in before.columns.items():
        old, new = before.rows[table], after.rows[table]
        meant = {row[KEYS[table]]: _digest(_cell(row.get(name)) for name in columns) for row in added.get(table, ())}
        unchanged += sum(new.get(key) == digest for key, digest in old.items())
        found += sum(new.get(key) == digest for key, digest in meant.items())
        surplus += len(new.keys() - old.keys() - meant.keys())
        expected += len(meant)
    return Verdict(
        original=sum(map(len, before.rows.values())),
        unchanged=unchanged,
        added=expected,
        found=found,
        surplus=surplus,
        schema_restored=before.schema == after.schema,
        ids_continue=all(after.sequences.get(table, 0) >= seq for table, seq in before.sequences.items())
        and after.sequences.get("consensus_artifacts", 0) >= given,
    )


def _columns(connection: sqlite3.Connection) -> dict[str, list[str]]:
    sql = "SELECT name FROM pragma_table_info(?)"
    found = {table: [name for (name,) in connection.execute(sql, (table,))] for table in KEYS}
    return {table: names for table, names in found.items() if names}


def _rows(connection: sqlite3.Connection, columns: Mapping[str, list[str]]) -> dict[str, dict[Any, str]]:
    found: dict[str, dict[Any, str]] = {}
    for table, names in columns.items():
        # hex() of a real number gives 15 of its 17 digits
        cells = ", ".join(
            f"typeof(\"{n}\") || ' ' || CASE typeof(\"{n}\") WHEN 'real' THEN printf('%!.20g', \"{n}\")"
            f' ELSE hex("{n}") END'
            for n in names
        )
        rows = connection.execute(f"SELECT {KEYS[table]}, {cells} FROM {table}")
        found[table] = {key: _digest(row) for key, *row in rows}
    return found


def _cell(value: Any) -> str:
    """What SQL says of a value that a writer meant: NULL, an integer or text."""
    if value is None:
        return "null "
    if isinstance(value, int):
        return f"integer {str(int(value)).encode().hex().upper()}"
    return f"text {value.encode('utf-8', 'surrogateescape').hex().upper()}"


def _digest(cells: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(cells).encode()).hexdigest()


def _schema(connection: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    sql = (
        "SELECT type, name, sql FROM sqlite_master WHERE tbl_name IN ('consensus_artifacts', 'consensus_synthesis')"
        " AND NOT (type = 'trigger' AND name LIKE 'consensus!_orm!_%' ESCAPE '!')"  # the package's own watch
    )
    return frozenset(connection.execute(sql))


def _sequences(connection: sqlite3.Connection) -> dict[str, int]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
        return {}
    return {name: seq for name, seq in connection.execute("SELECT name, seq FROM sqlite_sequence") if name in KEYS}
