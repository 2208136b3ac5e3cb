"""Any interleaving of what users, operators, other programs and faults do, against a simple model.

The model is two dictionaries of rows, and what another program wrote on the side that is not the truth and
that was not settled yet: what it inserted is adopted, what it changed or deleted stays until somebody chooses.
After each step the reads equal it, in every phase; after a reconcile both sides equal it by raw SQL, each with
what waits there; and at the end of each run the legacy rows equal it in type and bytes at EXPAND.

A few hundred runs in CI; a longer soak by command:

    CONSENSUS_ORM_TEST_SOAK=2000 pytest -n 0 -m soak tests/property
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.errors import ConsensusError, GateClosedError, UnknownAgentError
from consensus_orm.migration.planning import Choice
from consensus_orm.phase import Side
from consensus_orm.progress import Progress
from consensus_orm.settings import Settings
from consensus_orm.times import time_of, time_text
from tests.field import builders, rows
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


class Machine(RuleBasedStateMachine):
    """Everybody who touches a file, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "c.sqlite"
        self.model = Model()
        self.fault: str | None = None
        self.now = START
        self.settings = Settings(
            soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0, synchronous="OFF",
            clock=self.clock,
        )  # fmt: skip

    def clock(self) -> datetime:
        self.now += timedelta(milliseconds=401)
        return self.now

    @initialize(odd=st.lists(st.sampled_from(sorted(rows.ODD_ARTIFACTS.keys() - {"big"})), max_size=4, unique=True))
    def a_legacy_file(self, odd: list[str]) -> None:
        builders.build_legacy(self.path)
        with builders.writing(self.path) as connection:
            for name in odd:
                rows.insert(connection, "consensus_artifacts", rows.ODD_ARTIFACTS[name])
        for kind in KINDS:
            self.model.rows[kind] = self.look(kind)
        self.model.executions = {"a1": "", "a2": None, "a3": ""}
        self.open()
        self.phase = Phase.EXPAND

    def open(self) -> None:
        self.store = ConsensusStore.open(self.path, settings=self.settings)
        self.migration = self.store.migration

    def teardown(self) -> None:
        try:
            if hasattr(self, "store") and sys.exc_info()[0] is None:
                self.all_the_way_back()
        finally:
            if hasattr(self, "store"):
                self.store.close()
            self.folder.cleanup()

    # Helpers ------------------------------------------------------------------------------------------------

    def look(self, kind: Kind, key: int | None = None) -> dict[int, Row]:
        """Legacy rows as the program that wrote them sees them."""
        with oracle.reading(self.path) as connection:
            connection.text_factory = decoded
            where = "" if key is None else f"WHERE id = {key}"
            found = connection.execute(f"SELECT {', '.join(COLUMNS[kind])} FROM {TABLES[kind]} {where}")
            return {row[0]: dict(zip(COLUMNS[kind][1:], row[1:], strict=True)) for row in found}

    def foreign(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """What a plain program does, which must notice nothing of us."""
        with builders.writing(self.path) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            return work(connection)

    @property
    def truth_is_legacy(self) -> bool:
        return self.phase.truth == "legacy"

    def free(self, kind: Kind) -> list[int]:
        """Ids that nobody waits to adopt."""
        return sorted(self.model.rows[kind].keys() - self.model.pending[kind].keys())

    def expected(self, side: Side) -> dict[Kind, list[tuple[Any, ...]]]:
        """The rows of a side: those of the model, and where it is not the truth with what waits there."""
        found: dict[Kind, list[tuple[Any, ...]]] = {}
        for kind in KINDS:
            rows_: dict[int, Row | None] = dict(self.model.rows[kind])
            if side is not self.phase.truth:
                rows_ |= self.model.pending[kind]
            found[kind] = [
                typed((key, *(row[name] for name in COLUMNS[kind][1:])))
                for key, row in sorted(rows_.items())
                if row is not None
            ]
        return found

    def judge(self) -> None:
        """Both sides equal the model, by raw SQL."""
        if self.phase <= Phase.CUTOVER:
            equal(self.with_reals(oracle.legacy(self.path)), self.expected(Side.LEGACY))
        if self.phase >= Phase.DUAL_WRITE:
            equal(self.with_reals(oracle.normalized(self.path)), self.expected(Side.NORMALIZED))
            with oracle.reading(self.path) as connection:
                empty = (
                    "SELECT count(*) FROM consensus_runs WHERE id NOT IN (SELECT run_id FROM agent_outputs)"
                    " AND id NOT IN (SELECT run_id FROM consensus_syntheses)"
                )
                assert connection.execute(empty).fetchone() == (0,), "a run without rows is left"

    @staticmethod
    def with_reals(sides: dict[str, list[oracle.Row]]) -> dict[str, list[oracle.Row]]:
        def plain(entry: oracle.Cell) -> oracle.Cell:
            return ("real", repr(float(entry[1]))) if entry[0] == "real" else entry

        return {kind: [tuple(map(plain, row)) for row in found] for kind, found in sides.items()}

    # Users --------------------------------------------------------------------------------------------------

    @rule(
        spec=st.sampled_from(SPECS),
        stage=st.sampled_from(STAGES),
        many=st.lists(
            st.tuples(st.sampled_from(CONTENTS), st.sampled_from(RUNS), st.sampled_from((None, *MOMENTS))),
            min_size=1,
            max_size=3,
        ),
    )
    def add_artifacts(self, spec: str, stage: str, many: list[tuple[str, str | None, datetime | None]]) -> None:
        common = {"spec_id": spec, "stage": stage, "agent_name": "gemini", "response_text": None}
        rows_: list[Row] = [
            {**common, "content_json": content, "run_id": run, "created_at": at} for content, run, at in many
        ]
        with self.store.unit_of_work() as uow:
            added = uow.artifacts.add_many(rows_)
            now = uow.now_text
        for artifact, row in zip(added, rows_, strict=True):
            at = row["created_at"]
            self.keep("artifacts", artifact.id, {**row, "created_at": now if at is None else time_text(at)})

    @rule(
        spec=st.sampled_from(SPECS),
        stage=st.sampled_from(STAGES),
        status=st.sampled_from(("ok", "degraded", "FAILED")),
        markdown=st.sampled_from(CONTENTS),
        run=st.sampled_from(RUNS),
        count=st.sampled_from((None, 0, 2**62)),
        at=st.sampled_from(MOMENTS),
    )
    def add_synthesis(
        self, spec: str, stage: str, status: str, markdown: str, run: str | None, count: int | None, at: datetime
    ) -> None:
        values: Row = {
            "spec_id": spec, "stage": stage, "output_markdown": markdown, "output_path": None, "status": status,
            "artifacts_count": count, "agreements": None, "conflicts": "[]", "degraded": False, "run_id": run,
        }  # fmt: skip
        with self.store.unit_of_work() as uow:
            added = uow.syntheses.add(**values, created_at=at)
        self.keep("syntheses", added.id, {**values, "degraded": 0, "created_at": time_text(at)})

    def keep(self, kind: Kind, key: int, row: Row) -> None:
        assert key not in self.model.given[kind] | self.model.rows[kind].keys(), "an id was given twice"
        self.model.given[kind].add(key)
        self.model.rows[kind][key] = {name: stored(row[name]) for name in COLUMNS[kind][1:]}

    @rule(
        kind=st.sampled_from(KINDS),
        spec=st.sampled_from((*SPECS, "SPEC-KIT-900")),
        stage=st.sampled_from((None, *STAGES)),
    )
    def delete(self, kind: Kind, spec: str, stage: str | None) -> None:
        with self.store.unit_of_work() as uow:
            repository = uow.artifacts if kind == "artifacts" else uow.syntheses
            gone = repository.delete(spec_id=spec, stage=stage)
        assert gone == self.model.delete(kind, spec, stage)

    @rule(spec=st.sampled_from(SPECS))
    def fail_half_way(self, spec: str) -> None:
        """A unit of work that ends in an exception leaves nothing."""

        def work(uow: ConsensusUnitOfWork) -> None:
            uow.artifacts.add(spec_id=spec, stage="plan", agent_name="a", content_json="never")
            uow.syntheses.delete(spec_id=spec)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.store.run(work)

    @rule(agent=st.sampled_from(("a1", "a2", "b1", "b2")))
    def spawn(self, agent: str) -> None:
        with self.store.unit_of_work() as uow:
            uow.executions.record_spawn(
                agent_id=agent, spec_id="S", stage="plan", phase_type="regular_stage", agent_name="x", branch_id="b"
            )
        self.model.executions.setdefault(agent, None)

    @rule(agent=st.sampled_from(("a1", "a2", "b1", "b2")), text=st.sampled_from(CONTENTS))
    def complete(self, agent: str, text: str) -> None:
        known = agent in self.model.executions
        try:
            with self.store.unit_of_work() as uow:
                uow.executions.record_completion(agent, text)
        except UnknownAgentError:
            assert not known
        else:
            assert known
            self.model.executions[agent] = text

    # Other programs -----------------------------------------------------------------------------------------

    def wrote(self, kind: Kind, key: int, row: Row | None, *, on_truth: bool) -> None:
        """Another program has written a row; what it wrote on the truth is read at once."""
        if on_truth:
            if row is None:
                del self.model.rows[kind][key]
            else:
                if self.phase.compares and key in self.model.rows[kind]:
                    self.model.stale[kind].setdefault(key, self.model.rows[kind][key])
                self.model.rows[kind][key] = row
        elif row != self.model.rows[kind].get(key):  # else it has written what was there
            self.model.pending[kind][key] = row

    def taken(self, kind: Kind, key: int) -> bool:
        return key in self.model.rows[kind] or key in self.model.pending[kind]

    @precondition(lambda self: self.phase.writes_legacy and not self.fault)
    @rule(
        kind=st.sampled_from(KINDS),
        spec=st.sampled_from((*SPECS, b"blob")),
        content=st.sampled_from(FOREIGN_CONTENTS),
        at=st.sampled_from(FOREIGN_TIMES),
        run=st.sampled_from((None, "", "run_a", b"run")),
    )
    def legacy_program_inserts(self, kind: Kind, spec: Any, content: Any, at: Any, run: Any) -> None:
        values = {"spec_id": spec, "stage": "plan", "run_id": run, "created_at": at}
        if kind == "artifacts":
            values |= {"agent_name": "old", "content_json": content}
        else:
            values |= {"status": "ok", "output_markdown": content, "degraded": at}
        if self.next_legacy_id(kind) in self.model.pending[kind]:
            return  # the other side gave that id to somebody else's row; tests of rejects tell what happens
        key = self.foreign(lambda connection: rows.insert(connection, TABLES[kind], values))
        self.wrote(kind, key, self.look(kind, key)[key], on_truth=self.truth_is_legacy)

    def next_legacy_id(self, kind: Kind) -> int:
        return oracle.sequences(self.path).get(TABLES[kind], 0) + 1

    def next_normalized_id(self, kind: Kind) -> int:
        return oracle.sequences(self.path).get(NORMALIZED[kind], 0) + 1

    @precondition(lambda self: self.phase.writes_legacy and not self.fault)
    @rule(
        kind=st.sampled_from(KINDS), pick=st.integers(0, 99), content=st.sampled_from(FOREIGN_CONTENTS), data=st.data()
    )
    def legacy_program_updates(self, kind: Kind, pick: int, content: Any, data: st.DataObject) -> None:
        present = [key for key in self.free(kind) if self.look(kind, key)]
        if not present:
            return
        key = present[pick % len(present)]
        column = data.draw(st.sampled_from(("content", "run_id", "created_at")))
        value = data.draw(st.sampled_from(FOREIGN_TIMES)) if column == "created_at" else content
        name = {"content": "content_json" if kind == "artifacts" else "output_markdown"}.get(column, column)
        expression = value.expression if isinstance(value, rows.Sql) else ":v"

        def work(connection: sqlite3.Connection) -> None:
            parameters = {} if isinstance(value, rows.Sql) else {"v": value}
            connection.execute(f"UPDATE {TABLES[kind]} SET {name} = {expression} WHERE id = {key}", parameters)
            assert connection.execute("SELECT changes()").fetchone() == (1,)

        self.foreign(work)
        self.wrote(kind, key, self.look(kind, key)[key], on_truth=self.truth_is_legacy)

    @precondition(lambda self: self.phase.writes_legacy and not self.fault)
    @rule(kind=st.sampled_from(KINDS), pick=st.integers(0, 99))
    def legacy_program_deletes(self, kind: Kind, pick: int) -> None:
        present = [key for key in self.free(kind) if self.look(kind, key)]
        if present:
            key = present[pick % len(present)]
            self.foreign(lambda connection: connection.execute(f"DELETE FROM {TABLES[kind]} WHERE id = ?", (key,)))
            self.wrote(kind, key, None, on_truth=self.truth_is_legacy)

    @precondition(lambda self: self.phase.freezes_legacy)
    @rule(table=st.sampled_from(sorted(TABLES.values())))
    def legacy_program_is_told(self, table: str) -> None:
        with pytest.raises(sqlite3.IntegrityError, match="frozen since phase NORMALIZED"):
            self.foreign(lambda connection: connection.execute(f"INSERT INTO {table} (spec_id, stage) VALUES (1, 2)"))

    @precondition(lambda self: self.phase.compares and not self.fault)
    @rule(spec=st.sampled_from(SPECS), ms=st.sampled_from(sorted(FOUNDING_MOMENTS)))
    def founding_program_inserts(self, spec: str, ms: int) -> None:
        """As the dual-write build did: a run, and an output in it."""
        if self.taken("artifacts", self.next_normalized_id("artifacts")):
            return

        def work(connection: sqlite3.Connection) -> int:
            run = connection.execute(
                "INSERT INTO consensus_runs (spec_id, stage, run_timestamp, consensus_ok) VALUES (?, 'plan', ?, 1)",
                (spec, ms),
            ).lastrowid
            key = connection.execute(
                "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp) VALUES (?, 'new', 'f', ?)",
                (run, ms),
            ).lastrowid
            assert connection.execute("SELECT last_insert_rowid(), changes()").fetchone() == (key, 1)
            assert key is not None
            return key

        key = self.foreign(work)
        row: Row = dict.fromkeys(oracle.ARTIFACTS[1:])
        row |= {"spec_id": spec, "stage": "plan", "agent_name": "new", "content_json": "f", "ms": ms}
        self.wrote("artifacts", key, row, on_truth=not self.truth_is_legacy)

    @precondition(lambda self: self.phase.compares and not self.fault)
    @rule(pick=st.integers(0, 99), kind=st.sampled_from(KINDS))
    def founding_program_deletes(self, pick: int, kind: Kind) -> None:
        present = [key for key in self.free(kind) if key in self.on_normalized(kind)]
        if present:
            key = present[pick % len(present)]
            self.foreign(lambda connection: connection.execute(f"DELETE FROM {NORMALIZED[kind]} WHERE id = ?", (key,)))
            self.wrote(kind, key, None, on_truth=not self.truth_is_legacy)

    @precondition(lambda self: self.phase.compares and not self.fault)
    @rule(pick=st.integers(0, 99), content=st.sampled_from(("{}", "foreign")))
    def founding_program_updates(self, pick: int, content: str) -> None:
        present = [key for key in self.free("artifacts") if key in self.on_normalized("artifacts")]
        if present:
            key = present[pick % len(present)]
            self.foreign(lambda program: program.execute(self.update_of_founding(key, content)))
            there = self.model.rows["artifacts"][key]
            if self.truth_is_legacy:
                there = self.model.stale["artifacts"].get(key, there)
            row = there | {"content_json": content}
            self.wrote("artifacts", key, row, on_truth=not self.truth_is_legacy)

    def update_of_founding(self, key: int, content: str) -> Any:
        return f"UPDATE agent_outputs SET content = '{content}' WHERE id = {key}"

    def on_normalized(self, kind: Kind) -> set[int]:
        """Ids that the normalized side has."""
        with oracle.reading(self.path) as connection:
            return {key for (key,) in connection.execute(f"SELECT id FROM {NORMALIZED[kind]}")}

    # Faults -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.phase.compares and not self.fault)
    @rule(kind=st.sampled_from(KINDS), op=st.sampled_from(("INSERT", "DELETE")), how=st.sampled_from(("ABORT", "FAIL")))
    def the_shadow_side_begins_to_fail(self, kind: Kind, op: str, how: str) -> None:
        self.fault = NORMALIZED[kind] if self.truth_is_legacy else TABLES[kind]
        sql = f"CREATE TRIGGER fault BEFORE {op} ON {self.fault} BEGIN SELECT RAISE({how}, 'a fault'); END"
        self.foreign(lambda connection: connection.execute(sql))

    @precondition(lambda self: self.fault)
    @rule()
    def the_fault_is_mended(self) -> None:
        self.foreign(lambda connection: connection.execute("DROP TRIGGER fault"))
        self.fault = None

    # Operators ----------------------------------------------------------------------------------------------

    def attempt(self, step: Callable[[], Any], *expected: type[Exception]) -> bool:
        """Take a step that a fault may stop; it is taken or not."""
        try:
            step()
        except expected:
            return False
        except ConsensusError:
            assert self.fault, "a step failed without a fault"
            return False
        finally:
            self.phase = self.migration.phase
        return True

    @precondition(lambda self: self.phase.compares)
    @rule()
    def backfill_one_chunk(self) -> None:
        class Stopped(Exception):
            pass

        def stop(_: Progress) -> None:
            raise Stopped

        if not self.attempt(lambda: self.migration.backfill(stop), Stopped) and self.fault:
            self.settle()
        self.model.settle()  # each chunk begins with what others wrote

    @precondition(lambda self: self.phase.compares)
    @rule()
    def backfill(self) -> None:
        if self.attempt(self.migration.backfill):
            self.model.settle()
        elif self.fault:
            self.settle()

    @precondition(lambda self: self.phase.writes_normalized)
    @rule()
    def verify(self) -> None:
        self.migration.verify()

    @precondition(lambda self: self.phase.writes_normalized)
    @rule(choice=st.sampled_from((None, "adopt", "repair")))
    def reconcile(self, choice: Choice) -> None:
        if self.attempt(lambda: self.reconcile_as_planned(choice)):
            self.model.settle(choice)
            self.judge()
        elif self.fault:
            self.settle(choice)

    def reconcile_as_planned(self, choice: Choice) -> None:
        """The preview lists exactly what is done, and exactly what waits."""
        planned = self.migration.reconcile(foreign=choice, dry_run=True)
        done = self.migration.reconcile(foreign=choice)
        assert (planned.actions, planned.undecided) == (done.actions, done.undecided)
        if self.phase.compares:
            waiting = self.model.undecided if choice is None else set()
            assert {(row.pair, row.key) for row in done.undecided} == waiting

    def settle(self, choice: Choice = None) -> None:
        """After a step that a fault stopped half way nobody knows what was settled: mend it and finish."""
        self.the_fault_is_mended()
        if self.phase.compares:
            self.migration.reconcile(foreign=choice)
            self.model.settle(choice)
            self.judge()

    @precondition(lambda self: self.phase.next)
    @rule(soak=st.booleans())
    def advance(self, soak: bool) -> None:
        if self.attempt(lambda: self.migration.advance(soak=soak), GateClosedError):
            assert not any(self.model.pending.values()), "a gate opened over writes that nobody had adopted"

    @precondition(lambda self: self.phase.next)
    @rule(choice=st.sampled_from(("adopt", "repair")))
    def advance_with_all_that_it_wants(self, choice: Choice) -> None:
        if self.fault:
            self.the_fault_is_mended()
        if self.phase.compares:
            self.migration.backfill()
            self.migration.reconcile(foreign=choice)
            self.model.settle(choice)
            self.judge()
        if self.phase.writes_normalized:
            assert self.migration.verify().clean
        self.phase = self.migration.advance(soak=False)

    @precondition(lambda self: self.phase.previous)
    @rule()
    def roll_back(self) -> None:
        before, waiting = self.phase, self.model.undecided
        if self.attempt(self.migration.rollback, *([GateClosedError] if waiting else [])):
            assert self.phase is before.previous
            assert not waiting, "a flip settled what nobody had decided"
            if before.compares:
                self.model.settle()
            if before.freezes_legacy:
                self.judge()
        elif self.fault:
            self.settle()
        else:
            self.model.settle()

    @rule()
    def open_again(self) -> None:
        """Another process takes over."""
        self.store.close()
        self.open()

    # What must hold -----------------------------------------------------------------------------------------

    @invariant()
    def reads_equal_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        with self.store.unit_of_work(read_only=True) as uow:
            phase = uow.phase if uow.prepared else Phase.EXPAND
            assert phase is self.phase
            artifacts = [tuple(getattr(a, name) for name in ATTRIBUTES["artifacts"]) for a in uow.artifacts.list()]
            syntheses = [tuple(getattr(s, name) for name in ATTRIBUTES["syntheses"]) for s in uow.syntheses.list()]
            some = [a.id for a in uow.artifacts.list(spec_id="SPEC-1", run_id="run_a", limit=2)]
            count = uow.artifacts.count(spec_id="SPEC-1")
            executions = {e.agent_id for e in uow.executions.in_flight()}
        model = self.model
        equal({"artifacts": list(map(typed, artifacts))}, {"artifacts": list(map(typed, model.read("artifacts")))})
        equal({"syntheses": list(map(typed, syntheses))}, {"syntheses": list(map(typed, model.read("syntheses")))})
        assert some == [row[0] for row in model.read("artifacts", spec_id="SPEC-1", run_id="run_a")[:2]]
        assert count == len(model.read("artifacts", spec_id="SPEC-1"))
        assert executions == {agent for agent, said in model.executions.items() if said is None}

    def all_the_way_back(self) -> None:
        """From wherever it is, to EXPAND: the legacy rows are the model, in type and bytes."""
        if self.fault:
            self.the_fault_is_mended()
        if self.phase is not Phase.EXPAND:
            if self.phase.compares:
                self.migration.reconcile(foreign="repair")
                self.model.settle("repair")
            self.phase = self.migration.rollback("expand")
        assert self.migration.rejects() == []
        self.reads_equal_the_model()
        self.judge()


ATTRIBUTES = {kind: [{"created_at": "created_at_raw"}.get(name, name) for name in COLUMNS[kind]] for kind in KINDS}


def typed(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values with their types: True is no 1, and 1.0 is none either."""
    return tuple(cell(value) for value in row)


COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
IN_CI = hypothesis_settings(max_examples=35, stateful_step_count=30, database=None, print_blob=True, **COMMON)


@pytest.mark.parametrize("number", range(3))
def test_any_interleaving_equals_the_model(number: int) -> None:
    """Reads, both sides after a reconcile, and the legacy rows after the way back are what the model says."""
    run_state_machine_as_test(seed(number)(Machine), settings=IN_CI)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif("CONSENSUS_ORM_TEST_SOAK" not in os.environ, reason="CONSENSUS_ORM_TEST_SOAK says how many runs")
def test_many_more_interleavings_equal_the_model() -> None:
    """The same, at random, and as long as asked for."""
    runs = int(os.environ["CONSENSUS_ORM_TEST_SOAK"])
    run_state_machine_as_test(
        Machine, settings=hypothesis_settings(max_examples=runs, stateful_step_count=60, **COMMON)
    )
