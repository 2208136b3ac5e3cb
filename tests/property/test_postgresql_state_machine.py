"""The state machine on PostgreSQL: the same model, the same rules, other programs in psycopg; and kills.

A few dozen runs in CI; a longer soak by command:

    CONSENSUS_ORM_TEST_SOAK=500 pytest -n 0 -m soak tests/property/test_postgresql_state_machine.py
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, seed
from hypothesis import Phase as Stage
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from consensus_orm import ConsensusStore, Phase
from consensus_orm.databases.postgresql.connection import ServerConnection
from consensus_orm.errors import GateClosedError
from consensus_orm.migration.planning import Choice
from consensus_orm.phase import Side
from tests.concurrency.databases import assert_sound, connect, legacy, normalized, query
from tests.concurrency.processes import wait_for
from tests.field import server as field
from tests.field.rows import ODD_ARTIFACTS
from tests.property.model import (
    COLUMNS,
    FOUNDING_MOMENTS,
    KINDS,
    MOMENTS,
    NORMALIZED,
    RUNS,
    SPECS,
    STAGES,
    TABLES,
    Kind,
    Row,
    equal,
    typed,
)
from tests.property.test_state_machine import Machine
from tests.support import servers

pytestmark = pytest.mark.long

CONTENTS = ("{}", "", "é – \U0001f600", "[" * 50)
TIMES = (None, "", "not a date", "1762743600", "2025-11-04 02:23:58.9999", "now")
ODD = sorted(name for name, columns in ODD_ARTIFACTS.items() if field.fits(columns) and name not in ("big", "long"))


class Killed(BaseException):
    """The process is gone, as far as the server can tell."""


class PostgresMachine(Machine):
    """Everybody who touches a database, one step at a time."""

    @initialize(odd=st.lists(st.sampled_from(ODD), max_size=4, unique=True))
    def a_legacy_file(self, odd: list[str]) -> None:
        self.stack = contextlib.ExitStack()
        self.url = self.stack.enter_context(servers.database(servers.template("machine", built)))
        self.program: psycopg.Connection[Any] = self.stack.enter_context(connect(self.url))
        for name in odd:
            field.insert(
                self.program, "consensus_artifacts", {k: v for k, v in ODD_ARTIFACTS[name].items() if k != "id"}
            )
        for kind in KINDS:
            self.model.rows[kind] = self.look(kind)
        self.model.executions = {"a1": "", "a2": None, "a3": ""}
        self.settings = self.settings.model_copy(update={"backup_dir": Path(self.folder.name)})
        self.open()
        self.phase = Phase.EXPAND

    def open(self) -> None:
        self.store = ConsensusStore.open(self.url, settings=self.settings)
        self.migration = self.store.migration

    def teardown(self) -> None:
        try:
            if hasattr(self, "store") and sys.exc_info()[0] is None:
                self.all_the_way_back()
        finally:
            if hasattr(self, "store"):
                self.store.close()
            if hasattr(self, "stack"):
                self.stack.close()
            self.folder.cleanup()

    # Helpers ------------------------------------------------------------------------------------------------

    def look(self, kind: Kind, key: int | None = None) -> dict[int, Row]:
        where = "" if key is None else f"WHERE id = {key}"
        found = query(self.url, f"SELECT {', '.join(COLUMNS[kind])} FROM {TABLES[kind]} {where}")
        return {row[0]: dict(zip(COLUMNS[kind][1:], row[1:], strict=True)) for row in found}

    def foreign(self, work: Callable[[Any], Any]) -> Any:
        with self.program.transaction():
            return work(self.program)

    def judge(self) -> None:
        if self.phase <= Phase.CUTOVER:
            equal(cells(legacy(self.url)), self.expected(Side.LEGACY))
        if self.phase >= Phase.DUAL_WRITE:
            equal(cells(normalized(self.url)), self.expected(Side.NORMALIZED))
        assert_sound(self.url)

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
        super().add_artifacts(spec, stage, many)

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
        super().add_synthesis(spec, stage, status, markdown, run, count, at)

    @rule(agent=st.sampled_from(("a1", "a2", "b1", "b2")), text=st.sampled_from(CONTENTS))
    def complete(self, agent: str, text: str) -> None:
        super().complete(agent, text)

    # Other programs -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.phase.writes_legacy and not self.fault)
    @rule(
        kind=st.sampled_from(KINDS),
        spec=st.sampled_from(SPECS),
        content=st.sampled_from(CONTENTS),
        at=st.sampled_from(TIMES),
        run=st.sampled_from((None, "", "run_a")),
    )
    def legacy_program_inserts(self, kind: Kind, spec: Any, content: Any, at: Any, run: Any) -> None:
        values = {"spec_id": spec, "stage": "plan", "run_id": run, "created_at": at}
        if kind == "artifacts":
            values |= {"agent_name": "old", "content_json": content}
        else:
            values |= {"status": "ok", "output_markdown": content, "degraded": len(content)}
        names = ", ".join(values)
        sql = f"INSERT INTO {TABLES[kind]} ({names}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id"
        ((key,),) = self.foreign(lambda program: program.execute(sql, list(values.values())).fetchall())
        self.wrote(kind, key, self.look(kind, key)[key], on_truth=self.truth_is_legacy)

    @precondition(lambda self: self.phase.writes_legacy and not self.fault)
    @rule(kind=st.sampled_from(KINDS), pick=st.integers(0, 99), content=st.sampled_from(CONTENTS), data=st.data())
    def legacy_program_updates(self, kind: Kind, pick: int, content: Any, data: st.DataObject) -> None:
        present = [key for key in self.free(kind) if self.look(kind, key)]
        if not present:
            return
        key = present[pick % len(present)]
        column = data.draw(st.sampled_from(("content", "run_id", "created_at")))
        value = data.draw(st.sampled_from(TIMES)) if column == "created_at" else content
        name = {"content": "content_json" if kind == "artifacts" else "output_markdown"}.get(column, column)
        sql = f"UPDATE {TABLES[kind]} SET {name} = %s WHERE id = %s"
        assert self.foreign(lambda program: program.execute(sql, (value, key)).rowcount) == 1
        self.wrote(kind, key, self.look(kind, key)[key], on_truth=self.truth_is_legacy)

    @precondition(lambda self: self.phase.writes_legacy and not self.fault)
    @rule(kind=st.sampled_from(KINDS), pick=st.integers(0, 99))
    def legacy_program_deletes(self, kind: Kind, pick: int) -> None:
        present = [key for key in self.free(kind) if self.look(kind, key)]
        if present:
            key = present[pick % len(present)]
            self.foreign(lambda program: program.execute(f"DELETE FROM {TABLES[kind]} WHERE id = %s", (key,)))
            self.wrote(kind, key, None, on_truth=self.truth_is_legacy)

    @precondition(lambda self: self.phase.freezes_legacy)
    @rule(table=st.sampled_from(sorted(TABLES.values())))
    def legacy_program_is_told(self, table: str) -> None:
        for sql in (f"INSERT INTO {table} (spec_id, stage) VALUES (1, 2)", f"TRUNCATE {table}"):
            with pytest.raises(psycopg.errors.RaiseException, match="frozen since phase NORMALIZED"):
                self.foreign(functools.partial(run, sql))

    @precondition(lambda self: self.phase.compares and not self.fault)
    @rule(spec=st.sampled_from(SPECS), ms=st.sampled_from(sorted(FOUNDING_MOMENTS)))
    def founding_program_inserts(self, spec: str, ms: int) -> None:
        def work(program: psycopg.Connection[Any]) -> int:
            run = "INSERT INTO consensus_runs (spec_id, stage, run_timestamp, consensus_ok)"
            output = "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp)"
            ((number,),) = program.execute(f"{run} VALUES (%s, 'plan', %s, TRUE) RETURNING id".encode(), (spec, ms))
            ((key,),) = program.execute(f"{output} VALUES (%s, 'new', 'f', %s) RETURNING id".encode(), (number, ms))
            return int(key)

        key = self.foreign(work)
        row: Row = dict.fromkeys(COLUMNS["artifacts"][1:])
        row |= {"spec_id": spec, "stage": "plan", "agent_name": "new", "content_json": "f", "ms": ms}
        self.wrote("artifacts", key, row, on_truth=not self.truth_is_legacy)

    @precondition(lambda self: self.phase.compares and not self.fault)
    @rule(pick=st.integers(0, 99), kind=st.sampled_from(KINDS))
    def founding_program_deletes(self, pick: int, kind: Kind) -> None:
        present = [key for key in self.free(kind) if key in self.on_normalized(kind)]
        if present:
            key = present[pick % len(present)]
            self.foreign(lambda program: program.execute(f"DELETE FROM {NORMALIZED[kind]} WHERE id = %s", (key,)))
            self.wrote(kind, key, None, on_truth=not self.truth_is_legacy)

    def update_of_founding(self, key: int, content: str) -> Any:
        return super().update_of_founding(key, content).encode()

    def on_normalized(self, kind: Kind) -> set[int]:
        return {key for (key,) in query(self.url, f"SELECT id FROM {NORMALIZED[kind]}")}

    # Faults and kills ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.phase.compares and not self.fault)
    @rule(kind=st.sampled_from(KINDS), op=st.sampled_from(("INSERT", "DELETE")), how=st.none())
    def the_shadow_side_begins_to_fail(self, kind: Kind, op: str, how: None) -> None:
        self.fault = NORMALIZED[kind] if self.truth_is_legacy else TABLES[kind]
        function = "FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a fault'; END $$"
        trigger = f"TRIGGER fault BEFORE {op} ON {self.fault} FOR EACH ROW EXECUTE FUNCTION fault()"
        self.foreign(lambda program: program.execute(f"CREATE OR REPLACE {function}; CREATE {trigger}"))

    @precondition(lambda self: self.fault)
    @rule()
    def the_fault_is_mended(self) -> None:
        self.foreign(lambda program: program.execute(f"DROP TRIGGER fault ON {self.fault}"))
        self.fault = None

    @rule()
    def connections_are_lost(self) -> None:
        """Those that nobody uses just now are replaced without anybody noticing."""
        ours = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with connect(self.url) as admin:
            admin.execute(f"SELECT pg_terminate_backend(pid) {ours} AND application_name = 'consensus_orm'".encode())
            left = f"SELECT count(*) {ours} AND application_name = 'consensus_orm'"
            wait_for(lambda: admin.execute(left.encode()).fetchone() == (0,))

    @precondition(lambda self: not self.fault)
    @rule(
        number=st.integers(1, 60),
        step=st.sampled_from(("backfill", "reconcile", "verify", "advance", "rollback", "rollback")),
        choice=st.sampled_from(("adopt", "repair")),
    )
    def a_step_is_killed(self, number: int, step: str, choice: Choice) -> None:
        """The process that takes a step is killed before the n-th thing that it sends; another takes over."""
        before = self.phase
        if step in ("backfill", "reconcile") and not before.compares:
            return
        if (step == "verify" and not before.writes_normalized) or not (before.previous if step == "rollback" else True):
            return
        try:
            with killed_at(number):
                if step == "advance":
                    self.advance_with_all_that_it_wants(choice)
                elif step == "reconcile":
                    self.migration.reconcile(foreign=choice)
                else:
                    getattr(self.migration, step)()
        except Killed:
            pass
        except GateClosedError:
            assert step == "rollback"
            assert self.model.undecided
        decided = choice if step in ("advance", "reconcile") else None
        self.open_again()
        self.phase = self.migration.phase
        if self.phase.compares:
            self.migration.backfill()
            self.migration.reconcile(foreign=decided)
        if before.compares and (self.phase.compares or self.phase is not before):
            self.model.settle(decided)
            self.judge()


@contextlib.contextmanager
def killed_at(number: int) -> Any:
    """Let every connection of this process end before the n-th thing that is sent."""
    execute, send = ServerConnection.execute, ServerConnection._send
    sent = 0

    def note(connection: ServerConnection) -> None:
        nonlocal sent
        sent += 1
        if sent >= number:
            connection.pgconn.finish()
            raise Killed

    def noted_execute(connection: ServerConnection, *arguments: Any, **options: Any) -> Any:
        note(connection)
        return execute(connection, *arguments, **options)

    def noted_send(connection: ServerConnection, commands: bytes) -> Any:
        if commands != b"ROLLBACK":
            note(connection)
        return send(connection, commands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServerConnection, "execute", noted_execute)
        patch.setattr(ServerConnection, "_send", noted_send)
        yield


def built(url: str) -> None:
    """A legacy database that our tables were added to."""
    field.build_legacy(url)
    with ConsensusStore.open(url) as store:
        store.upgrade()


def run(sql: str, program: psycopg.Connection[Any]) -> None:
    program.execute(sql.encode())


def cells(sides: dict[Kind, list[tuple[Any, ...]]]) -> dict[Kind, list[Any]]:
    return {kind: [typed(row) for row in found] for kind, found in sides.items()}


COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
IN_CI = hypothesis_settings(
    max_examples=8,
    stateful_step_count=25,
    database=None,
    print_blob=True,
    phases=(Stage.explicit, Stage.generate),  # a failure is shown as it is: to shrink it takes longer than a test may
    **COMMON,
)


@pytest.mark.parametrize("number", range(3))
def test_any_interleaving_equals_the_model(number: int) -> None:
    """Reads, both sides after a reconcile, and the legacy rows after the way back are what the model says."""
    run_state_machine_as_test(seed(number)(PostgresMachine), settings=IN_CI)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif("CONSENSUS_ORM_TEST_SOAK" not in os.environ, reason="CONSENSUS_ORM_TEST_SOAK says how many runs")
def test_many_more_interleavings_equal_the_model() -> None:
    """The same, at random, and as long as asked for."""
    runs = int(os.environ["CONSENSUS_ORM_TEST_SOAK"])
    run_state_machine_as_test(
        PostgresMachine, settings=hypothesis_settings(max_examples=runs, stateful_step_count=50, **COMMON)
    )
