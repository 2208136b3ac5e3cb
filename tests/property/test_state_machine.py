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
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consensus_orm import Phase
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.errors import ConsensusError, GateClosedError, UnknownAgentError
from consensus_orm.migration.planning import Choice
from consensus_orm.progress import Progress
from consensus_orm.times import time_text
from tests.property.model import (
    ATTRIBUTES,
    COLUMNS,
    CONTENTS,
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
    stored,
    typed,
)
from tests.property.other_programs import OtherPrograms

pytestmark = pytest.mark.long


class Machine(OtherPrograms):
    """Everybody who touches a file, one step at a time."""

    def teardown(self) -> None:
        try:
            if hasattr(self, "store") and sys.exc_info()[0] is None:
                self.all_the_way_back()
        finally:
            if hasattr(self, "store"):
                self.store.close()
            self.folder.cleanup()

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
