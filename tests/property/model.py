"""The model of the state machine: rows as the programs that wrote them see them, and what waits for a choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from consensus_orm.migration.planning import Choice
from consensus_orm.times import time_of
from tests.field import rows
from tests.support import oracle

# Values ---------------------------------------------------------------------------------------------------

START = datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC)
SPECS = ("SPEC-1", "spec-1", "S'; --")
STAGES = ("plan", "plan ")
RUNS = (None, "", "run_a", "at:2025-11-04 02:23:58")
CONTENTS = ("{}", "", "a\0b", "\ud800", "é – \U0001f600", "[" * 50)
MOMENTS = (START, START + timedelta(milliseconds=123), START + timedelta(seconds=1), START.replace(year=1))
FOUNDING_MOMENTS = {
    1762222238000: "2025-11-04 02:10:38",
    1762222238123: "2025-11-04 02:10:38.123",
    1762222239999: "2025-11-04 02:10:39.999",
}
"""Milliseconds as the founding programs write them, and the time that is made of them."""
FOREIGN_TIMES = (None, "", "not a date", 1762743600, "1762743600", 0.5, b"x", "2025-11-04 02:23:58.9999", "now")
FOREIGN_CONTENTS = ("{}", "", b"\x00\xff", 7, rows.bytes_as_text(b"\xff\x00"), "foreign")

Kind = str
KINDS = ("artifacts", "syntheses")
TABLES = {"artifacts": "consensus_artifacts", "syntheses": "consensus_synthesis"}
NORMALIZED = {"artifacts": "agent_outputs", "syntheses": "consensus_syntheses"}
COLUMNS: dict[Kind, tuple[str, ...]] = {"artifacts": oracle.ARTIFACTS, "syntheses": oracle.SYNTHESES}

Row = dict[str, Any]


def decoded(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def stored(value: Any) -> Any:
    """A value as SQLite gives it back: text that UTF-8 cannot say comes with its bytes escaped."""
    return decoded(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else value


def cell(value: Any) -> oracle.Cell:
    """A value of the model as the oracle sees it."""
    match value:
        case None:
            return ("null", "")
        case str():
            return ("text", value.encode("utf-8", "surrogateescape").hex().upper())
        case bytes():
            return ("blob", value.hex().upper())
        case bool() | int():
            return ("integer", str(int(value)).encode().hex().upper())
        case float():
            return ("real", f"{value!r}")
    raise TypeError(type(value))


def milliseconds(value: Any) -> int:
    moment = time_of(value)
    return 0 if moment is None else (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def equal(found: dict[Kind, list[oracle.Row]], expected: dict[Kind, list[oracle.Row]]) -> None:
    """Rows are equal; the message names what differs, and no more."""
    for kind, rows_ in expected.items():
        missing = [row for row in rows_ if row not in found[kind]]
        extra = [row for row in found[kind] if row not in rows_]
        assert found[kind] == rows_, f"{kind}: missing {missing}, not expected {extra}, else another order"


@dataclass
class Model:
    """What must be read, and what waits to be adopted."""

    rows: dict[Kind, dict[int, Row]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    pending: dict[Kind, dict[int, Row | None]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    """Writes of another program on the side that is not the truth; None is a delete. Of a row that the truth has, they
    wait for a choice."""
    stale: dict[Kind, dict[int, Row]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    """Rows that another program changed on the truth, as the other side has them until the change is carried."""
    executions: dict[str, str | None] = field(default_factory=dict)
    given: dict[Kind, set[int]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    """Every id that a unit of work ever gave."""

    @property
    def undecided(self) -> set[tuple[Kind, int]]:
        """What waits for a choice."""
        return {(kind, key) for kind in KINDS for key in self.pending[kind] if key in self.rows[kind]}

    def settle(self, choice: Choice = None) -> None:
        """What other programs inserted on the other side is adopted, and the rest as somebody chose."""
        for kind in KINDS:
            self.stale[kind].clear()
            waiting = {key for of, key in self.undecided if of == kind and choice is None}
            for key in self.pending[kind].keys() - waiting:
                row = self.pending[kind].pop(key)
                if key in self.rows[kind] and choice == "repair":
                    continue
                if row is None:
                    self.rows[kind].pop(key, None)
                else:
                    self.rows[kind][key] = row
            for row in self.rows[kind].values():
                if "ms" in row:
                    row["created_at"] = FOUNDING_MOMENTS[row.pop("ms")]

    def delete(self, kind: Kind, spec: str, stage: str | None) -> int:
        def hit(row: Row | None) -> bool:
            return row is not None and row["spec_id"] == spec and stage in (None, row["stage"])

        found = {key for key, row in self.rows[kind].items() if hit(row)}
        # A row that only looks so on the side that is not the truth is not what was asked for.
        waiting = {key for key, row in self.pending[kind].items() if hit(row) and key not in self.rows[kind]}
        for key in found | waiting:
            self.rows[kind].pop(key, None)
            self.pending[kind].pop(key, None)
        return len(found)

    def read(self, kind: Kind, **filters: Any) -> list[tuple[Any, ...]]:
        chosen = [
            (milliseconds_of(row), key, row)
            for key, row in self.rows[kind].items()
            if all(row[name] == value for name, value in filters.items())
        ]
        chosen.sort(key=lambda entry: entry[:2], reverse=True)
        return [(key, *(row[name] for name in COLUMNS[kind][1:])) for _, key, row in chosen]


def milliseconds_of(row: Row) -> int:
    found: int = row["ms"] if "ms" in row else milliseconds(row["created_at"])
    return found


ATTRIBUTES = {kind: [{"created_at": "created_at_raw"}.get(name, name) for name in COLUMNS[kind]] for kind in KINDS}


def typed(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values with their types: True is no 1, and 1.0 is none either."""
    return tuple(cell(value) for value in row)
