"""How the database finds rows: whatever is asked for by keys or ranges of keys is looked up, and no table is read.

A table that is read whole under the write lock costs nothing in a test and seconds in the field. So every statement
that the mapping makes is planned here, and every one that an operation sends, in tables that are large enough.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import psycopg
import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.databases.opening import rendering
from consensus_orm.declaration.move import Move
from consensus_orm.models import Base
from consensus_orm.phase import Side
from consensus_orm.settings import Settings
from consensus_orm.statements.pairs import PairStatements, Statements
from consensus_orm.testing import artifact_values, spawn_values, synthesis_values, take_to
from consensus_orm.testing.plugin import History, QueryCounter
from tests.support import databases

ROWS = 20_000
"""Artifacts; three to a run, a hundred to a spec, and a synthesis to each four of them."""

IN_FLIGHT = 20
"""Executions that have not completed, however many there are."""


def _many(where: str | Path, rows: int = ROWS) -> None:
    """A legacy database with so many rows that PostgreSQL, too, would rather not read them all."""
    databases.build_legacy(where)
    database = databases.at(where)
    numbers = (
        f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})"
        if isinstance(where, Path)
        else f"WITH n AS (SELECT * FROM generate_series(1, {rows}) AS n(n))"
    )
    names = "spec_id, stage, run_id, created_at"
    execution = "spec_id, stage, run_id, spawned_at, completed_at, agent_id, phase_type, agent_name"
    values = "'SPEC-' || (n / 100), 'plan', 'run_' || (n / 3), '2025-11-04 02:23:58'"
    completed = f"CASE WHEN n % 100 > 0 OR n > {IN_FLIGHT * 100} THEN '2025-11-04 02:30:00' END"
    database.script(
        f"INSERT INTO consensus_artifacts ({names}, agent_name, content_json)"
        f" {numbers} SELECT {values}, 'agent ' || (n % 50), 'content' FROM n;"
        f"INSERT INTO consensus_synthesis ({names}, output_markdown, status)"
        f" {numbers} SELECT {values}, 'text', 'ok' FROM n WHERE n % 4 = 0;"
        f"INSERT INTO agent_executions ({execution})"
        f" {numbers} SELECT {values}, {completed}, 'agent_' || n, 'gate', 'a' FROM n;"
        "CREATE INDEX IF NOT EXISTS idx_agent_executions_run ON agent_executions(run_id);"
        "CREATE INDEX IF NOT EXISTS idx_agent_executions_branch ON agent_executions(spec_id, stage, branch_id);"
        "CREATE INDEX IF NOT EXISTS idx_agent_executions_completed ON agent_executions(completed_at);"
    )


@pytest.fixture
def consensus_history() -> History:
    return _many


# How a statement finds its rows ---------------------------------------------------------------------------

TOKENS = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|::|%%|:(?P<name>\w+)|%\((?P<named>\w+)\)s|(?P<place>\?|%s)")
VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
NOT_ROWS = (
    *(
        "json_each",
        "SCAN found",
        "anon_",
        "CONSTANT ROW",
        "(subquery",
        "pragma_",
        "sqlite_master",
        "sqlite_sequence",
        " pg_",
    ),
    *("consensus_orm_state", "consensus_orm_version", "consensus_orm_guards", "consensus_orm_saved_schema"),
    *("consensus_orm_control", "consensus_orm_keeper", "consensus_orm_reads", "consensus_orm_acceptances"),
)
"""What may be read whole: a value that is given, a catalog, a table of one row or of one for each legacy table."""


class Planner:
    """Says which tables a statement reads from end to end.

    Args:
        store: The store whose database it is.
        small: Whether some of its tables are so small that a server would read them whole: then it is asked whether
            it could do without.
    """

    def __init__(self, store: ConsensusStore, *, small: bool = False) -> None:
        self.store = store
        self.small = small
        self.kind = store.engine.dialect.name
        if self.kind == "postgresql":
            databases.behind(store).script("ANALYZE")

    def whole(self, sql: str) -> list[str]:
        """The tables, or their aliases, that are read whole."""
        found = self._of_file(sql) if self.kind == "sqlite" else self._of_server(sql)
        return [step for step in found if not any(word in step for word in NOT_ROWS)]

    def _of_file(self, sql: str) -> list[str]:
        with contextlib.closing(self.store.engine.raw_connection()) as connection:
            numbered, count = _numbered(sql, "?")
            driver: Any = connection.driver_connection
            rows = driver.execute(f"EXPLAIN QUERY PLAN {numbered}", (None,) * count).fetchall()
        return [step for *_, step in rows if step.startswith("SCAN")]

    def _of_server(self, sql: str) -> list[str]:
        numbered, count = _numbered(sql, "$")
        nulls = f"({', '.join(['NULL'] * count)})" if count else ""
        with psycopg.connect(str(databases.behind(self.store).where), autocommit=True) as connection:
            # The plan of a connection that has run it often, which no value decides.
            connection.execute("SET plan_cache_mode = force_generic_plan")
            if self.small or ":_first" in sql:  # a range holds enough to read a small table beside it
                connection.execute("SET enable_seqscan = off")
            connection.execute(f"PREPARE it AS {numbered}".encode())
            ((plan,),) = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE it{nulls}".encode()).fetchall()
        return list(_read_whole(plan[0]["Plan"]))


def _read_whole(node: dict[str, Any]) -> Iterator[str]:
    if "Relation Name" in node and node["Node Type"] != "ModifyTable" and not _is_looked_up(node):
        yield f"{node['Node Type']} {node['Relation Name']}"
    for child in node.get("Plans", []):
        # The first row in the order of an index is looked up, too.
        yield from _read_whole({**child, "Limited": node["Node Type"] == "Limit"})


def _is_looked_up(node: dict[str, Any]) -> bool:
    return (
        "Index Cond" in node
        or node["Node Type"] == "Bitmap Heap Scan"
        or (node.get("Limited", False) and node["Node Type"].startswith("Index"))
    )


def _numbered(sql: str, mark: str) -> tuple[str, int]:
    """A statement whose parameters are numbered, and how many there are."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found["place"] is None and found["name"] is None and found["named"] is None:
            return found[0].replace("%%", "%")
        name = found["name"] or found["named"] or f"{len(names)}"
        if name not in names:
            names.append(name)
        return f"{mark}{names.index(name) + 1}"

    return TOKENS.sub(number, sql), len(names)


# The statements of the mapping ----------------------------------------------------------------------------

WALKS = re.compile(r"count\(\*\) AS count_1\s+FROM (?!consensus_orm_)|ORDER BY consensus_orm_changes.id\s+LIMIT")

BY_KEYS = re.compile(r":_(key|keys|parent|first|last)\b")


def _made(database: str) -> Iterator[tuple[str, str]]:
    """Every statement that the mapping makes, and the name of what makes it."""
    statements = Statements(CONSENSUS, rendering(database))
    for pair in CONSENSUS:
        yield from _made_by(statements[pair], statements, pair)
    for parent in CONSENSUS.parents:
        yield from _made_by(statements.parents[parent.table.name], statements, CONSENSUS.members(parent)[0])


def _made_by(of: object, statements: Statements, pair: Move) -> Iterator[tuple[str, str]]:
    for name, member in inspect.getmembers(type(of)):
        if name.startswith("_"):
            continue
        if isinstance(member, cached_property | property):
            yield from ((name, sql) for sql in _flat(getattr(of, name)))
        elif callable(member):
            for given in _arguments(member, statements, pair):
                said = ", ".join(f"{key}={value}" for key, value in given.items())
                yield from ((f"{name}({said})", sql) for sql in _flat(getattr(of, name)(**given)))


def _arguments(method: Any, statements: Statements, pair: Move) -> Iterator[dict[str, Any]]:
    """All that a method can be called with; nothing where it takes expressions, so that it makes no statement."""
    choices: dict[Any, list[Any]] = {
        Side: list(Side),
        bool: [False, True],
        str: list(pair.columns),
        tuple[str, ...]: [(), *((name,) for name in pair.columns)],
        frozenset[str]: [frozenset()],
        PairStatements: [statements[member] for member in CONSENSUS],
    }
    hints = get_type_hints(method, localns={"PairStatements": PairStatements})
    parameters = inspect.signature(method).parameters.values()
    wanted = [p.name for p in parameters if p.name not in ("self", "more") and p.kind is not p.VAR_POSITIONAL]
    if all(hints[name] in choices for name in wanted):
        for values in product(*(choices[hints[name]] for name in wanted)):
            yield dict(zip(wanted, values, strict=True))


def _flat(value: object) -> Iterator[str]:
    if isinstance(value, tuple):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, str) and value.startswith(VERBS):
        yield value


@pytest.mark.long
@pytest.mark.parametrize("every_phase", ["CUTOVER"], indirect=True)
def test_no_statement_of_the_mapping_reads_a_table_where_keys_are_given(every_phase: ConsensusStore) -> None:
    """By one key, by many, by a range of them, by a parent: whatever of this is given, is looked up."""
    planner = Planner(every_phase)
    by_keys = [(name, sql) for name, sql in _made(planner.kind) if BY_KEYS.search(sql)]
    assert {"delete(side=legacy)", "unequal_in_keys", "settle", "refresh", "compare_range", "adopt"} <= {
        n for n, _ in by_keys
    }
    assert [(name, found, sql) for name, sql in by_keys if (found := planner.whole(sql))] == []


# What operations send -------------------------------------------------------------------------------------

Work = Callable[[ConsensusUnitOfWork], object]

LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)
"""Nothing has completed before."""

OPERATIONS: dict[str, Work] = {
    "add": lambda uow: uow.artifacts.add(**artifact_values(spec_id="NEW", run_id="NEW")),
    "add_synthesis": lambda uow: uow.syntheses.add(**synthesis_values(spec_id="NEW", run_id="NEW")),
    "get": lambda uow: uow.artifacts.get(500),
    "list_spec": lambda uow: uow.artifacts.list(spec_id="SPEC-7"),
    "list_stage": lambda uow: uow.artifacts.list(spec_id="SPEC-7", stage="plan", agent_name="agent 7", limit=3),
    "count_spec": lambda uow: uow.artifacts.count(spec_id="SPEC-7"),
    "latest_synthesis": lambda uow: uow.syntheses.latest(spec_id="SPEC-7", stage="plan"),
    "page": lambda uow: uow.artifacts.list(spec_id="SPEC-7", limit=3, after=750, oldest_first=True),
    "page_and_count": lambda uow: uow.syntheses.list_and_count(spec_id="SPEC-7", limit=3),
    "iterate": lambda uow: [*uow.artifacts.iterate(spec_id="SPEC-7")],
    "get_many": lambda uow: uow.artifacts.get_many([500, 501]),
    "exists": lambda uow: uow.artifacts.exists(500),
    "update": lambda uow: uow.artifacts.update(500, agent_name="other"),
    "delete_one": lambda uow: uow.artifacts.delete(502),
    "put_synthesis": lambda uow: uow.syntheses.put(
        **synthesis_values(spec_id="SPEC-9", stage="plan", run_id="run_301")
    ),
    "page_of_runs": lambda uow: uow.runs.list(spec_id="SPEC-7", limit=2),
    "iterate_runs": lambda uow: [*uow.runs.iterate(spec_id="SPEC-7", with_synthesis=True)],
    "latest_with_synthesis": lambda uow: uow.runs.latest(spec_id="SPEC-7", stage="plan", with_synthesis=True),
    "executions_page": lambda uow: uow.executions.list(spec_id="SPEC-7", limit=2, after="agent_701"),
    "executions_count": lambda uow: uow.executions.count(spec_id="SPEC-7"),
    "executions_many": lambda uow: uow.executions.get_many(["agent_5", "agent_6"]),
    "execution_exists": lambda uow: uow.executions.exists("agent_5"),
    "delete_execution": lambda uow: uow.executions.delete("agent_8"),
    "runs": lambda uow: uow.runs.list(spec_id="SPEC-7"),
    "latest_run": lambda uow: uow.runs.latest(spec_id="SPEC-7", stage="plan"),
    "delete": lambda uow: uow.artifacts.delete(spec_id="SPEC-8"),
    "delete_synthesis": lambda uow: uow.syntheses.delete(spec_id="SPEC-8"),
    "spawn": lambda uow: uow.executions.record_spawn(**spawn_values(agent_id="new")),
    "complete": lambda uow: uow.executions.record_completion("agent_5", "text"),
    "execution": lambda uow: uow.executions.get("agent_7"),
    "in_flight_spec": lambda uow: uow.executions.in_flight(spec_id="SPEC-7"),
    "executions_run": lambda uow: uow.executions.list(run_id="run_7"),
    "branch": lambda uow: uow.executions.for_branch(spec_id="SPEC-7", stage="plan", branch_id="b"),
    "failures": lambda uow: uow.executions.extraction_failures("SPEC-7"),
    "in_flight": lambda uow: uow.executions.in_flight(),
    "cleanup": lambda uow: uow.executions.cleanup(LONG_AGO),
    "specs": lambda uow: uow.artifacts.specs(),
    "list_run": lambda uow: uow.artifacts.list(run_id="run_7"),
}

READS_LEGACY_WHOLE = ("list_run",)
"""What reads a legacy table whole: it has no index for that, and gets none from us."""


@pytest.mark.long
def test_no_operation_of_a_repository_reads_a_table(every_phase: ConsensusStore, query_counter: QueryCounter) -> None:
    """In every phase an operation on some rows looks these up, its own SQL as text included."""
    planner = Planner(every_phase, small=True)
    whole = []
    legacy = every_phase.migration.phase.truth is Side.LEGACY
    for name, work in OPERATIONS.items():
        if legacy and name in READS_LEGACY_WHOLE:
            continue
        with every_phase.unit_of_work() as uow, query_counter(uow) as queries:
            work(uow)
        whole += [(name, found, sql) for sql in queries if sql.startswith(VERBS) and (found := planner.whole(sql))]
    assert whole == []


CONSENSUS_TABLES = {name for name in Base.metadata.tables if not name.startswith("consensus_orm_")}

FEW, MANY = 4_000, 32_000


@pytest.mark.long
@pytest.mark.sqlite
def test_no_operation_does_more_in_a_larger_table(tmp_path: Path, consensus_settings: Settings) -> None:
    """With eight times the rows, an operation takes as many steps of SQLite's machine: time would tell less.

    One that gives the specs takes as many for each of them.
    """
    steps: dict[int, dict[str, float]] = {}
    for rows in (FEW, MANY):
        _many(path := tmp_path / f"{rows}.db", rows)
        with ConsensusStore.open(path, settings=consensus_settings) as store:
            take_to(store, Phase.CUTOVER)
            steps[rows] = {name: _steps(store, work) for name, work in OPERATIONS.items()}
            steps[rows]["specs"] /= rows
    grown = {name: steps[MANY][name] / few for name, few in steps[FEW].items()}
    assert {name: factor for name, factor in grown.items() if factor > 1.3} == {}


def _steps(store: ConsensusStore, work: Work) -> int:
    """The steps that SQLite takes for an operation."""
    taken = 0

    def count() -> None:
        nonlocal taken
        taken += 1

    with store.unit_of_work() as uow:
        connection: Any = uow.session.connection().connection.driver_connection
        connection.set_progress_handler(count, 1)
        try:
            work(uow)
        finally:
            connection.set_progress_handler(None, 1)
    return taken


@pytest.mark.sqlite
def test_status_does_nothing_but_count(every_phase: ConsensusStore, query_counter: QueryCounter) -> None:
    """What reads a table whole for the status counts its rows, and looks at nothing in them."""
    planner = Planner(every_phase)
    with query_counter(every_phase) as queries:
        every_phase.migration.status()
    tables = re.compile("|".join(CONSENSUS_TABLES))
    whole = {sql for sql in queries if sql.startswith(VERBS) and tables.search(str(planner.whole(sql)))}
    assert whole
    assert [sql for sql in whole if not re.fullmatch(r'SELECT count\(\*\)( AS count_1)?\s+FROM "?\w+"?', sql)] == []


@pytest.mark.sqlite
def test_no_trigger_reads_a_table(every_phase: ConsensusStore) -> None:
    """What our triggers do at each write of any program looks up one row, too.

    A plan does not tell what triggers do; the program of a statement does, and theirs follow behind it.
    """
    with contextlib.closing(every_phase.engine.raw_connection()) as pooled:
        connection: Any = pooled.driver_connection
        of_page = dict(connection.execute("SELECT rootpage, tbl_name FROM sqlite_master WHERE rootpage > 0"))
        tables = set(of_page.values()) & set(Base.metadata.tables) - {"consensus_orm_state"}  # which has one row
        programs = 0
        for table in tables:
            ((first, *_),) = connection.execute(f"SELECT name FROM pragma_table_info('{table}') LIMIT 1")
            for sql in (
                f"INSERT INTO {table} SELECT * FROM {table} WHERE rowid = 1",
                f"UPDATE {table} SET {first} = {first} WHERE rowid = 1",
                f"DELETE FROM {table} WHERE rowid = 1",
            ):
                opened: dict[int, str] = {}
                for _, code, cursor, page, *_ in connection.execute(f"EXPLAIN {sql}"):
                    programs += code == "Program"
                    if code.startswith("Open"):
                        opened[cursor] = of_page.get(page, "") if code in ("OpenRead", "OpenWrite") else ""
                    assert not (code in ("Rewind", "Last") and opened[cursor] in tables), (sql, opened[cursor])
    assert programs or not every_phase.migration.phase.has_legacy


@pytest.mark.parametrize("every_phase", ["CUTOVER", "NORMALIZED"], indirect=True)
def test_no_repair_reads_a_table(every_phase: ConsensusStore, query_counter: QueryCounter) -> None:
    """Carrying what other programs wrote, repairing what differs and the way back look up the rows concerned."""
    planner = Planner(every_phase, small=True)
    work: Callable[[], object] = every_phase.migration.rollback
    if every_phase.migration.phase.compares:
        database, work = databases.behind(every_phase), partial(every_phase.migration.reconcile, foreign="adopt")
        database.script("UPDATE consensus_artifacts SET agent_name = 'other' WHERE id IN (50, 51)")
        database.script("DELETE FROM agent_outputs WHERE id = 60")
        database.unnoticed("UPDATE agent_outputs SET content = 'other' WHERE id = 70")
        database.unnoticed("DELETE FROM consensus_syntheses WHERE id = 7")
    else:
        with every_phase.unit_of_work() as uow:
            uow.artifacts.add(**artifact_values())
            uow.artifacts.delete(spec_id="SPEC-9")
    with query_counter(every_phase) as queries:
        work()
    # Where chunks lie, and the first of what waits, is found by walking along a key.
    some = [sql for sql in queries if sql.startswith(VERBS) and not WALKS.search(sql)]
    assert [(found, sql) for sql in dict.fromkeys(some) if (found := planner.whole(sql))] == []
