"""Which statements an operation sends, and how many, in each phase: counts do not flicker, times do.

A number that grows here is a cost for every write of every user: change it on purpose, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase
from consensus_orm.testing import QueryLog, artifact_values, spawn_values, synthesis_values
from consensus_orm.testing.plugin import History, QueryCounter

TABLES = {
    "consensus_orm_state": "state",
    "consensus_artifacts": "legacy",
    "consensus_synthesis": "legacy",
    "agent_outputs": "outputs",
    "consensus_syntheses": "syntheses",
    "consensus_runs": "runs",
    "agent_executions": "executions",
    "consensus_orm_changes": "changes",
    "sqlite_sequence": "sequence",
}
WRITES = re.compile(r'(INSERT INTO|UPDATE|DELETE FROM) "?(\w+)')
READS = re.compile(r'FROM "?(\w+)')


def sent(queries: QueryLog) -> list[str]:
    """Statements in short: `insert legacy`, `select runs`, `compare`, `next key`; without BEGIN, COMMIT and pragmas."""
    return [_short(sql) for sql in queries if sql.split()[0] not in QUIET]


QUIET = ("BEGIN", "COMMIT", "PRAGMA", "SAVEPOINT", "RELEASE")
"""On a server savepoints go with the statements between them, and wait for no answer of their own."""


def _short(sql: str) -> str:
    if sql.startswith("WITH") and not sql.startswith("WITH RECURSIVE"):
        legacy = ("INSERT INTO consensus_artifacts", "INSERT INTO consensus_synthesis ")
        return "write both" if any(insert in sql for insert in legacy) else "write normalized"
    if sql.startswith("LOCK"):
        return "lock"
    if "count(*)" in sql and "consensus_artifacts" in sql and "agent_outputs" in sql:
        return "compare"
    if "count(*)" in sql and "consensus_synthesis " in sql and "consensus_syntheses" in sql:
        return "compare"
    if match := WRITES.match(sql):
        return f"{match[1].split()[0].lower()} {TABLES[match[2]]}"
    if "sqlite_sequence" in sql:
        return "next key" if "coalesce" in sql else "last change"
    found = [name for name in READS.findall(sql) if name != "CAST"]  # as in extract(epoch FROM CAST(...))
    assert found, sql
    return f"select {TABLES.get(found[0], found[0])}"


@pytest.fixture
def consensus_history() -> History:
    """Tame rows, so that what is counted is the usual case."""
    from consensus_orm.testing import legacy_history

    return legacy_history


@pytest.fixture
def counted(
    every_phase: ConsensusStore, query_counter: QueryCounter
) -> Callable[[Callable[[ConsensusUnitOfWork], Any]], list[str]]:
    """What a piece of work sends after the phase was read, on a warm connection."""
    with every_phase.unit_of_work():
        pass

    def count(work: Callable[[ConsensusUnitOfWork], Any]) -> list[str]:
        with every_phase.unit_of_work() as uow, query_counter(uow) as queries:
            work(uow)
            return sent(queries)

    return count


def phase_of(request: pytest.FixtureRequest) -> Phase:
    return Phase.parse(request.node.callspec.params["every_phase"])


@pytest.mark.sqlite
def test_a_unit_of_work_itself(every_phase: ConsensusStore, query_counter: QueryCounter) -> None:
    """A writer sends BEGIN IMMEDIATE between two pragmas, one read of the phase, and COMMIT: nothing else.

    The read of the phase also says whether the schema is the one whose guards were last found in place.
    """
    with every_phase.unit_of_work():
        pass
    with query_counter(every_phase) as queries, every_phase.unit_of_work():
        pass
    assert [sql.partition("consensus")[0].strip() for sql in queries] == [
        "PRAGMA busy_timeout = 0",
        "BEGIN IMMEDIATE",
        "PRAGMA busy_timeout = 5000",
        "SELECT phase, epoch, schema_version, (SELECT schema_version FROM pragma_schema_version) FROM",
        "COMMIT",
    ]


@pytest.mark.postgresql
@pytest.mark.parametrize("read_only", [False, True])
def test_a_unit_of_work_on_a_server_itself(
    every_phase: ConsensusStore, query_counter: QueryCounter, read_only: bool
) -> None:
    """Begin, lock and phase, with the state of its guards, go as one message, COMMIT as another: nothing else."""
    with every_phase.unit_of_work():
        pass
    with query_counter(every_phase) as queries, every_phase.unit_of_work(read_only=read_only):
        pass
    assert queries.verbs == ["BEGIN", "COMMIT"]
    assert ("LOCK TABLE consensus_orm_fence IN ROW SHARE MODE" in queries[0]) is not read_only
    assert ("SELECT phase" if read_only else "EXECUTE consensus_orm_enter") in queries[0]


@pytest.mark.sqlite
def test_a_reader_itself(every_phase: ConsensusStore, query_counter: QueryCounter) -> None:
    """A reader sends BEGIN, one read of the phase, and COMMIT."""
    with every_phase.unit_of_work(read_only=True):
        pass
    with query_counter(every_phase) as queries, every_phase.unit_of_work(read_only=True):
        pass
    assert queries.verbs == ["BEGIN", "SELECT", "COMMIT"]
    assert queries[0] == "BEGIN"


Count = Callable[[Callable[[ConsensusUnitOfWork], Any]], list[str]]

BOTH = ["next key", "select runs", "insert runs", "insert outputs", "insert legacy", "compare"]
NORMALIZED = ["select runs", "insert runs", "insert outputs"]
ADD = {
    "sqlite": {
        Phase.EXPAND: ["insert legacy"],
        Phase.DUAL_WRITE: BOTH,
        Phase.CUTOVER: BOTH,
        Phase.NORMALIZED: NORMALIZED,
        Phase.CONTRACT: NORMALIZED,
    },
    # One statement writes a row with its run, and goes to the server with the one that compares.
    "postgresql": {
        Phase.EXPAND: ["insert legacy"],
        Phase.DUAL_WRITE: ["write both", "compare"],
        Phase.CUTOVER: ["write both", "compare"],
        Phase.NORMALIZED: ["write normalized"],
        Phase.CONTRACT: ["write normalized"],
    },
}


def test_an_artifact(counted: Count, request: pytest.FixtureRequest, kind: str) -> None:
    """The first artifact of a run: one statement on legacy, six where both sides are written and compared.

    On a server those six are two, and one trip; several rows are one trip, too.
    """
    add = ADD[kind][phase_of(request)]
    assert counted(lambda uow: uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW"))) == add


def test_a_further_artifact_of_a_run(counted: Count, request: pytest.FixtureRequest, kind: str) -> None:
    """In a file a run that is there is found, not written; a server finds or makes it with one statement."""
    add = ADD[kind][phase_of(request)]
    further = [statement for statement in add if statement != "insert runs" or kind == "postgresql"]
    rows = [artifact_values(spec_id="SPEC-NEW")] * 4

    assert counted(lambda uow: uow.artifacts.add_many(rows)) == add + further * 3


def test_a_synthesis(counted: Count, request: pytest.FixtureRequest, kind: str) -> None:
    """A synthesis costs what an artifact costs, and one update of what its run derives from it."""
    phase = phase_of(request)
    expected = ["insert syntheses" if s == "insert outputs" else s for s in ADD[kind][phase]]
    if "insert syntheses" in expected:
        expected.insert(expected.index("insert syntheses") + 1, "update runs")
    elif phase.writes_normalized:
        expected.append("update runs")

    assert counted(lambda uow: uow.syntheses.add(**synthesis_values(spec_id="SPEC-NEW"))) == expected


@pytest.mark.parametrize(
    ("call", "table"),
    [
        (lambda uow: uow.artifacts.get(1), "outputs"),
        (lambda uow: uow.artifacts.list(spec_id="SPEC-KIT-900"), "outputs"),
        (lambda uow: uow.artifacts.count(), "outputs"),
        (lambda uow: uow.artifacts.specs(), "runs"),
        (lambda uow: uow.syntheses.latest(spec_id="SPEC-KIT-900", stage="spec-plan"), "syntheses"),
        (lambda uow: uow.syntheses.list(), "syntheses"),
    ],
    ids=["get", "list", "count", "specs", "latest", "syntheses"],
)
def test_reads_are_one_statement(counted: Count, request: pytest.FixtureRequest, call: Any, table: str) -> None:
    """Each read is one statement, on the side that the phase reads, however many rows it gives."""
    expected = "legacy" if phase_of(request) < Phase.CUTOVER else table

    assert counted(call) == [f"select {expected}"]


def test_runs_are_two_statements(counted: Count, request: pytest.FixtureRequest) -> None:
    """All runs of a spec with their outputs and syntheses come with two statements, not with one for each run."""
    legacy = phase_of(request) < Phase.CUTOVER

    assert counted(lambda uow: uow.runs.list(spec_id="SPEC-KIT-900")) == (
        ["select legacy", "select legacy"] if legacy else ["select outputs", "select syntheses"]
    )


def test_the_newest_run_is_three_statements(counted: Count, request: pytest.FixtureRequest) -> None:
    """Which run of a stage is the newest, its outputs, and its syntheses; where there is none, the first alone."""
    legacy = phase_of(request) < Phase.CUTOVER
    found, *rows = ["select legacy"] * 3 if legacy else ["select outputs", "select outputs", "select syntheses"]

    assert counted(lambda uow: uow.runs.latest(spec_id="SPEC-KIT-900", stage="spec-plan")) == [found, *rows]
    assert counted(lambda uow: uow.runs.latest(spec_id="SPEC-NONE", stage="spec-plan")) == [found]


def test_a_delete_does_not_grow_with_its_rows(counted: Count) -> None:
    """Deleting a spec is a fixed number of statements: the same for 9 rows as for 1."""

    def delete(spec: str) -> list[str]:
        return counted(lambda uow: uow.artifacts.delete(spec_id=spec))

    counted(lambda uow: uow.artifacts.add(**artifact_values(spec_id="SPEC-ONE")))
    many = delete("SPEC-KIT-900")

    assert delete("SPEC-ONE") == many
    assert len(many) <= 13


@pytest.mark.parametrize("every_phase", ["DUAL_WRITE"], indirect=True)
def test_an_execution(counted: Count, kind: str) -> None:
    """A spawn, a completion and a read of executions: the statement, the columns there are, and what stands now."""
    columns = "select pragma_table_info" if kind == "sqlite" else "select pg_attribute"

    assert counted(lambda uow: uow.executions.record_spawn(**spawn_values(agent_id="a"))) == [
        columns,
        "insert executions",
        "select executions",
    ]
    assert counted(lambda uow: uow.executions.record_completion("a", "x")) == [
        columns,
        "update executions",
        "select executions",
    ]
    assert counted(lambda uow: uow.executions.in_flight()) == [columns, "select executions"]


def test_refused_values_send_nothing(counted: Count) -> None:
    """A value that cannot be accepted is refused without asking the database."""
    from consensus_orm.errors import InvalidValueError

    def work(uow: ConsensusUnitOfWork) -> None:
        with pytest.raises(InvalidValueError):
            uow.artifacts.add_many([artifact_values(), artifact_values(agent_name="")])

    assert counted(work) == []
