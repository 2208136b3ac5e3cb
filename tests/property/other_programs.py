"""The programs beside the package that write to the file of the state machine, each knowing one side."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from consensus_orm import ConsensusStore, Phase
from consensus_orm.phase import Side
from consensus_orm.settings import Settings
from tests.field import builders, rows
from tests.property.model import (
    COLUMNS,
    FOREIGN_CONTENTS,
    FOREIGN_TIMES,
    FOUNDING_MOMENTS,
    KINDS,
    NORMALIZED,
    SPECS,
    START,
    TABLES,
    Kind,
    Model,
    Row,
    decoded,
    equal,
    typed,
)
from tests.support import oracle


class Subject(RuleBasedStateMachine):
    """A file, the store that has it open, and what the model says of it."""

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


class OtherPrograms(Subject):
    """Programs that know one side, and are told of nothing."""

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
