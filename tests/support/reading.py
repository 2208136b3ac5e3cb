"""What reads must give, worked out from a legacy database with raw SQL and Python; nothing of the package."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

Row = dict[str, Any]

TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d+))?", re.ASCII)


def _all(where: Path | str, table: str) -> list[Row]:
    if isinstance(where, str):
        with psycopg.connect(where, row_factory=dict_row) as server:
            return server.execute(f"SELECT * FROM {table}".encode()).fetchall()
    with contextlib.closing(sqlite3.connect(f"file:{where}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]


def moment(value: Any) -> datetime | None:
    """The time that a stored value is, or None."""
    match = TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    try:
        second = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return second + timedelta(microseconds=int(f"{match[2] or '':0<6.6}"))


def milliseconds(value: Any) -> int:
    """What orders rows: the time in ms, truncated; 0 for what is none."""
    time = moment(value)
    return 0 if time is None else (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def identity(row: Row) -> tuple[Any, ...]:
    """What tells one run from another."""
    if row["run_id"] is not None:
        return (row["spec_id"], row["stage"], "run", type(row["run_id"]), row["run_id"])
    at = row["created_at_raw"]
    if isinstance(at, str) and TIME.fullmatch(at):
        return (row["spec_id"], row["stage"], "second", str, at[:19])
    return (row["spec_id"], row["stage"], "value", type(at), at)


def _rows(where: Path | str, table: str) -> list[Row]:
    found = _all(where, table)
    for row in found:
        row["created_at_raw"] = row.pop("created_at")
        row["created_at"] = moment(row["created_at_raw"])
    return sorted(found, key=lambda row: (milliseconds(row["created_at_raw"]), row["id"]), reverse=True)


def artifacts(where: Path | str) -> list[Row]:
    """The artifacts of a legacy database, newest first."""
    return [{**row, "model_version": None} for row in _rows(where, "consensus_artifacts")]


def syntheses(where: Path | str) -> list[Row]:
    """The syntheses of a legacy database, newest first."""
    found = _rows(where, "consensus_synthesis")
    for row in found:
        if isinstance(row["degraded"], int) and row["degraded"] in (0, 1):
            row["degraded"] = bool(row["degraded"])
    return found


def _degraded(synthesis: Row) -> bool:
    flag = synthesis["degraded"]
    set_ = flag.lower() == "true" if isinstance(flag, str) else isinstance(flag, int | float) and flag != 0
    return set_ or "degraded" in _words(synthesis["status"])


def _words(status: Any) -> str:
    return (status.decode() if isinstance(status, bytes) else str(status)).lower()


def runs(where: Path | str, spec_id: Any) -> list[Row]:
    """The runs of a spec, newest first, each with its outputs and syntheses."""
    groups: dict[tuple[Any, ...], tuple[list[Row], list[Row]]] = {}
    for number, rows in enumerate((artifacts(where), syntheses(where))):
        for row in rows:
            if type(row["spec_id"]) is type(spec_id) and row["spec_id"] == spec_id:
                groups.setdefault(identity(row), ([], []))[number].append(row)
    return [_run(*group) for group in sorted(groups.values(), key=_age, reverse=True)]


def _age(group: tuple[list[Row], list[Row]]) -> tuple[int, int, int]:
    outputs, found = group
    start = min(milliseconds(row["created_at_raw"]) for row in (*outputs, *found))
    return start, max((o["id"] for o in outputs), default=0), max((s["id"] for s in found), default=0)


def _run(outputs: list[Row], found: list[Row]) -> Row:
    row = (outputs or found)[0]
    start = min(milliseconds(row["created_at_raw"]) for row in (*outputs, *found))
    return {
        "spec_id": row["spec_id"],
        "stage": row["stage"],
        "run_id": row["run_id"],
        "started_at": datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=start) if start else None,
        "consensus_ok": not found or "failed" not in _words(found[0]["status"]),
        "degraded": bool(found) and _degraded(found[0]),
        "outputs": [output["id"] for output in outputs],
        "syntheses": [synthesis["id"] for synthesis in found],
    }
