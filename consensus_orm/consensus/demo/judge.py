"""The judge of the demo: compares the rows of a file with what they were and were meant to be, in type and bytes.

It reads with raw SQL, as a rehearsal does, and uses nothing of the moves and the store, which could hide a mistake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consensus_orm.copying.values import cell
from consensus_orm.rehearsal.raw_sql import FileLook, SchemaObject
from consensus_orm.statements.rendering import quoted

__all__ = ["KEYS", "Evidence", "Verdict", "judge", "look"]

KEYS = {"consensus_artifacts": "id", "consensus_synthesis": "id", "agent_executions": "agent_id"}
"""The legacy tables and their keys."""


@dataclass(frozen=True)
class Evidence:
    """The contents of the legacy tables of a file.

    Attributes:
        columns: The columns of each table, in order.
        rows: Of each table, a digest of each row by its key.
        schema: The definitions of these tables, without the triggers of the package.
        sequences: The highest id ever given, by table.
    """

    columns: Mapping[str, list[str]]
    rows: Mapping[str, Mapping[Any, str]]
    schema: frozenset[SchemaObject]
    sequences: Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """How a file compares with what it must be.

    Attributes:
        original: Rows before the demo.
        unchanged: Those of them that are equal in type and bytes.
        added: Rows that were added meanwhile and not deleted again.
        found: Those of them that are there exactly as written.
        surplus: Rows that no writer added.
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
        """Whether nothing is missing, changed or surplus."""
        complete = self.unchanged == self.original and self.found == self.added and not self.surplus
        return complete and self.schema_restored and self.ids_continue


def look(path: Path, columns: Mapping[str, list[str]] | None = None) -> Evidence:
    """Read the legacy tables of a file: the given columns, or all of them. Writes nothing."""
    with FileLook.at(path) as at:
        known = columns or {table: [*names] for table in KEYS if (names := at.columns(table).values())}
        rows = {table: _rows(at, table, names) for table, names in known.items()}
        return Evidence(known, rows, at.objects(KEYS.keys() - {"agent_executions"}), _sequences(at))


def judge(before: Evidence, after: Evidence, added: Mapping[str, Iterable[Mapping[str, Any]]], given: int) -> Verdict:
    """Compare a file at the end with the file at the start and the rows that were added.

    Args:
        before: The file at the start.
        after: The file at the end.
        added: The rows that were added, by table, as they were written.
        given: The highest id that was given to an artifact.
    """
    unchanged = found = surplus = expected = 0
    for table, columns in before.columns.items():
        old, new = before.rows[table], after.rows[table]
        meant = {
            row[KEYS[table]]: _digest(cell for name in columns for cell in _cells(row.get(name)))
            for row in added.get(table, ())
        }
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


def _rows(at: FileLook, table: str, columns: Iterable[str]) -> dict[Any, str]:
    cells = ", ".join(at.cell(quoted(name)) for name in columns)
    return {_plain(key): _digest(row) for key, *row in at.stream(f"SELECT {KEYS[table]}, {cells} FROM {table}")}


def _plain(key: Any) -> Any:
    return key.decode() if isinstance(key, bytes) else key


def _cells(value: Any) -> Iterator[bytes]:
    """A written value as SQL reads it: its type and its bytes."""
    kind, digits = cell(int(value) if isinstance(value, bool) else value)
    yield kind.encode()
    yield bytes.fromhex(digits)


def _digest(cells: Iterable[bytes | None]) -> str:
    return hashlib.sha256(repr([cell or b"" for cell in cells]).encode()).hexdigest()


def _sequences(at: FileLook) -> dict[str, int]:
    if not at.rows("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'"):
        return {}
    return {name: seq for name, seq in at.rows("SELECT name, seq FROM sqlite_sequence") if name in KEYS}
