"""What each public operation costs in a small file and in a large one; `--rows` says how large."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.data import CREATED, artifact, legacy_file, raw_connection, store_in, synthesis
from benchmarks.harness import Bench, Group, Target, Work
from benchmarks.suites.reads import BY_ID
from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase
from consensus_orm.phase import Side

SMALL = 10_000
TEXT = "x" * 100
WRITE = Group(
    "a compared write in a growing file, phase 3",
    unit="write",
    count=500,
    baseline="write_small",
    targets=(
        Target(
            "write in the large file, to one in a file of 10,000 rows",
            "write_large",
            1.3,
            than="write_small",
            rows=10_000_000,
        ),
    ),
)
READ = Group(
    "a read by id in a growing file, phase 3",
    unit="read",
    count=2000,
    baseline="read_small",
    targets=(
        Target(
            "read of one of the newest 10,000 rows in the large file, to one in a file of 10,000",
            "read_recent",
            1.3,
            than="read_small",
            rows=10_000_000,
        ),
        Target(
            "read anywhere in the large file, to one in a file of 10,000 rows",
            "read_large",
            1.3,
            than="read_small",
            rows=10_000_000,
        ),
    ),
)


@dataclass(frozen=True)
class Operation:
    """A public operation, done several times in a round.

    Attributes:
        work: Does it once, given the store, the number of a row, which is one of the newest of the file, and a number
            that is not given twice.
        times: How often in a round.
        before: What is done before each, and not measured.
        of: How many things it did, given its result and the rows of the file; it counts as so many.
    """

    work: Callable[[ConsensusStore, int, int], Any]
    times: int = 50
    before: Callable[[ConsensusStore, int, int], object] | None = None
    of: Callable[[Any, int], int] = lambda _result, _rows: 1


def _in_unit(work: Callable[[ConsensusUnitOfWork, int, int], Any], *, read_only: bool = False) -> Any:
    """An operation of a repository, in a unit of work of its own."""

    def operation(store: ConsensusStore, row: int, new: int) -> Any:
        with store.unit_of_work(read_only=read_only) as uow:
            return work(uow, row, new)

    return operation


def _write(work: Callable[[ConsensusUnitOfWork, int, int], Any], before: Any = None) -> Operation:
    return Operation(_in_unit(work), before=before and _in_unit(before))


def _read(work: Callable[[ConsensusUnitOfWork, int, int], Any], **more: Any) -> Operation:
    return Operation(_in_unit(work, read_only=True), **more)


def _migration(work: Callable[[Any], Any], before: Callable[[Any], object] | None = None, **more: Any) -> Operation:
    """An operation of the migration."""
    ahead = None if before is None else lambda store, _row, _new: before(store.migration)
    return Operation(lambda store, _row, _new: work(store.migration), before=ahead, **more)


def _spec(row: int) -> dict[str, Any]:
    return {"spec_id": artifact(row)["spec_id"]}


def _stage(row: int) -> dict[str, Any]:
    return {name: artifact(row)[name] for name in ("spec_id", "stage")}


def _new(number: int) -> dict[str, Any]:
    return artifact(number, TEXT) | {"spec_id": f"NEW-{number}", "run_id": f"new_{number}"}


def _spawn(uow: ConsensusUnitOfWork, _row: int, new: int) -> object:
    return uow.executions.record_spawn(
        agent_id=f"new-{new}", spec_id=f"NEW-{new}", stage="spec-plan", phase_type="gate", agent_name="gemini"
    )


def _add_synthesis(uow: ConsensusUnitOfWork, _row: int, new: int) -> object:
    return uow.syntheses.add(**synthesis(new) | {"spec_id": f"NEW-{new}"})


def _put_synthesis(uow: ConsensusUnitOfWork, _row: int, new: int) -> object:
    return uow.syntheses.put(**synthesis(new) | {"spec_id": f"NEW-{new}"})


def _of_run(row: int) -> int:
    """The synthesis of about the same time: each twelfth artifact has one."""
    return row // 12 + 1


def _whole(_result: object, rows: int) -> int:
    return rows


LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)
OPERATIONS: dict[str, Operation] = {
    "artifacts.add": _write(lambda uow, _, new: uow.artifacts.add(**_new(new))),
    "artifacts.add_many": _write(lambda uow, _, new: uow.artifacts.add_many([_new(new)] * 10)),
    "artifacts.delete": _write(
        lambda uow, _, new: uow.artifacts.delete(spec_id=f"NEW-{new}"),
        lambda uow, _, new: uow.artifacts.add(**_new(new)),
    ),
    "artifacts.update": _write(lambda uow, row, new: uow.artifacts.update(row, agent_name=f"agent {new}")),
    "artifacts.exists": _read(lambda uow, row, _: uow.artifacts.exists(row)),
    "artifacts.get_many": _read(lambda uow, row, _: uow.artifacts.get_many([row, row - 1])),
    "artifacts.iterate": _read(lambda uow, row, _: [*uow.artifacts.iterate(**_spec(row))]),
    "artifacts.list_and_count": _read(lambda uow, row, _: uow.artifacts.list_and_count(**_spec(row), limit=3)),
    "artifacts.get": _read(lambda uow, row, _: uow.artifacts.get(row)),
    "artifacts.list of a spec": _read(lambda uow, row, _: uow.artifacts.list(**_spec(row))),
    "artifacts.list of an agent": _read(
        lambda uow, row, _: uow.artifacts.list(**_stage(row), agent_name="gemini", limit=3)
    ),
    "artifacts.list of a run": _read(lambda uow, row, _: uow.artifacts.list(run_id=artifact(row)["run_id"])),
    "artifacts.count": _read(lambda uow, row, _: uow.artifacts.count(**_spec(row))),
    "artifacts.specs": _read(lambda uow, _row, _: uow.artifacts.specs(), times=5, of=lambda found, _: len(found)),
    "syntheses.add": _write(_add_synthesis),
    "syntheses.delete": _write(lambda uow, _, new: uow.syntheses.delete(spec_id=f"NEW-{new}"), _add_synthesis),
    "syntheses.put": _write(_put_synthesis),
    "syntheses.update": _write(lambda uow, row, new: uow.syntheses.update(_of_run(row), status=f"ok {new}")),
    "syntheses.get": _read(lambda uow, row, _: uow.syntheses.get(_of_run(row))),
    "syntheses.exists": _read(lambda uow, row, _: uow.syntheses.exists(_of_run(row))),
    "syntheses.get_many": _read(lambda uow, row, _: uow.syntheses.get_many([_of_run(row)])),
    "syntheses.iterate": _read(lambda uow, row, _: [*uow.syntheses.iterate(**_spec(row))]),
    "syntheses.list_and_count": _read(lambda uow, row, _: uow.syntheses.list_and_count(**_spec(row), limit=3)),
    "syntheses.count": _read(lambda uow, row, _: uow.syntheses.count(**_spec(row))),
    "syntheses.latest": _read(lambda uow, row, _: uow.syntheses.latest(**_stage(row))),
    "syntheses.list": _read(lambda uow, row, _: uow.syntheses.list(**_spec(row))),
    "runs.list": _read(lambda uow, row, _: uow.runs.list(**_spec(row)), times=5),
    "runs.iterate": _read(lambda uow, row, _: [*uow.runs.iterate(**_spec(row))], times=5),
    "runs.latest": _read(lambda uow, row, _: uow.runs.latest(**_stage(row))),
    "executions.record_spawn": _write(_spawn),
    "executions.record_completion": _write(
        lambda uow, _, new: uow.executions.record_completion(f"new-{new}", TEXT), _spawn
    ),
    "executions.record_extraction_failure": _write(
        lambda uow, _, new: uow.executions.record_extraction_failure(f"new-{new}", TEXT, "none"), _spawn
    ),
    "executions.delete": _write(lambda uow, _, new: uow.executions.delete(f"new-{new}"), _spawn),
    "executions.exists": _read(lambda uow, row, _: uow.executions.exists(f"agent-{row // 3}")),
    "executions.get_many": _read(lambda uow, row, _: uow.executions.get_many([f"agent-{row // 3}"])),
    "executions.iterate": _read(lambda uow, row, _: [*uow.executions.iterate(**_spec(row))]),
    "executions.list_and_count": _read(lambda uow, row, _: uow.executions.list_and_count(**_spec(row), limit=3)),
    "executions.count": _read(lambda uow, row, _: uow.executions.count(**_spec(row))),
    "executions.get": _read(lambda uow, row, _: uow.executions.get(f"agent-{row // 3}")),
    "executions.in_flight": _read(lambda uow, _row, _: uow.executions.in_flight()),
    "executions.list": _read(lambda uow, row, _: uow.executions.list(run_id=artifact(row)["run_id"])),
    "executions.extraction_failures": _read(lambda uow, row, _: uow.executions.extraction_failures(**_spec(row))),
    "executions.for_branch": _read(lambda uow, row, _: uow.executions.for_branch(**_stage(row), branch_id="b")),
    "executions.cleanup of none": _write(lambda uow, _row, _: uow.executions.cleanup(LONG_AGO)),
    "migration.phase": _migration(lambda migration: migration.phase),
    "migration.upgrade": _migration(lambda migration: migration.upgrade()),
    "migration.mismatches": _migration(lambda migration: migration.mismatches()),
    "migration.rejects": _migration(lambda migration: migration.rejects()),
    "migration.images": _migration(lambda migration: migration.images()),
    "migration.history": _migration(lambda migration: migration.history()),
    "migration.control": _migration(lambda migration: migration.control()),
    "migration.dependencies": _migration(lambda migration: migration.dependencies()),
    "migration.pause": _migration(lambda migration: migration.pause()),
    "migration.resume": _migration(lambda migration: migration.resume()),
    "migration.throttle": _migration(lambda migration: migration.throttle(None)),
    "migration.hold": _migration(lambda migration: migration.hold()),
    "migration.release": _migration(lambda migration: migration.release()),
    "migration.check, a row": _migration(lambda migration: migration.check(), times=1, of=_whole),
    "migration.reconcile of none": _migration(lambda migration: migration.reconcile()),
    "migration.status, a row": _migration(lambda migration: migration.status(), times=1, of=_whole),
    "migration.backfill, a row": _migration(lambda migration: migration.backfill(), times=1, of=_whole),
    "migration.verify, a row": _migration(lambda migration: migration.verify(), times=1, of=_whole),
    "migration.advance": _migration(
        lambda migration: migration.advance(Phase.NORMALIZED, soak=False), lambda m: m.verify(), times=1
    ),
    "migration.rollback": _migration(lambda migration: migration.rollback(Phase.CUTOVER), times=1),
}
"""In the order in which they run: a rollback follows the step it takes back."""

EACH = Group(
    "each public operation in a growing file, phase 3",
    unit="operation",
    count=1,
    baseline="operation_artifacts.get_small",
    targets=tuple(
        Target(
            f"{name} in the large file, to one in a file of 10,000 rows",
            f"operation_{name}_large",
            1.5,
            than=f"operation_{name}_small",
            rows=10_000_000,
        )
        for name in OPERATIONS
    ),
)
GROUPS = (WRITE, READ, EACH)


def _rows(bench: Bench, size: str) -> int:
    return min(SMALL, bench.rows) if size == "small" else bench.rows


def _file(bench: Bench, size: str) -> Path:
    """The file of a size, made once for all groups."""
    path = bench.folder / f"{_rows(bench, size)}_{size}.db"
    return path if path.exists() else growth_file(path, _rows(bench, size))


def growth_file(path: Path, rows: int) -> Path:
    """A file with so many artifacts, a synthesis to each four runs and an execution to each, 100 runs to a spec."""
    numbers = "WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < :runs)"
    run = f"'SPEC-KIT-' || (n / 100), 'spec-plan', 'run_' || n, '{CREATED}'"
    given = {"runs": rows // 3, "text": TEXT}
    with closing(sqlite3.connect(legacy_file(path, rows, TEXT))) as connection, connection:
        connection.execute(
            "INSERT INTO consensus_synthesis (spec_id, stage, run_id, created_at, output_markdown, status)"
            f" {numbers} SELECT {run}, :text, 'ok' FROM n WHERE n % 4 = 0",
            given,
        )
    with store_in(path, Phase.CUTOVER), closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO agent_executions (spec_id, stage, run_id, spawned_at, completed_at, agent_id, phase_type,"
            f" agent_name, response_text) {numbers} SELECT {run}, '{CREATED}', 'agent-' || n, 'gate', 'gemini', :text"
            " FROM n",
            given,
        )
    return path


@WRITE.case("small", "large")
def write(bench: Bench, size: str) -> Iterator[Work]:
    """consensus_orm, cutover, the {} file (large: --rows)"""
    rows = _rows(bench, size)
    with ConsensusStore.open(_file(bench, size)) as store:

        def work(round_: int) -> None:
            start = rows + (round_ + 1) * bench.times(500)
            for number in range(start, start + bench.times(500)):
                with store.unit_of_work() as uow:
                    uow.artifacts.add(**artifact(number, TEXT))

        yield work


def _ids(bench: Bench, where: str, seed: int) -> list[int]:
    """Ids to read, each as likely as the other: in the small file, anywhere in the large one or at its end."""
    rows = _rows(bench, where)
    first = max(1, rows - SMALL) if where == "recent" else 1
    return random.Random(seed).choices(range(first, rows + 1), k=bench.times(2000))


@READ.case("small", "recent", "large")
def read(bench: Bench, where: str) -> Iterator[Work]:
    """consensus_orm, cutover, {} (large: anywhere among --rows; recent: among its newest 10,000)"""
    with ConsensusStore.open(_file(bench, where)) as store:

        def work(round_: int) -> None:
            with store.unit_of_work(read_only=True) as uow:
                for id_ in _ids(bench, where, round_):
                    assert uow.artifacts.get(id_) is not None

        yield work


@READ.case("small", "recent", "large")
def raw_read(bench: Bench, where: str) -> Iterator[Work]:
    """raw sqlite3, a tuple of the normalized side, {}: what the size of a file costs SQLite itself"""
    with closing(raw_connection(_file(bench, where))) as connection:

        def work(round_: int) -> None:
            connection.execute("BEGIN")
            for id_ in _ids(bench, where, round_):
                assert connection.execute(BY_ID[Side.NORMALIZED], (id_,)).fetchone() is not None
            connection.execute("COMMIT")

        yield work


@EACH.case(*(f"{name}_{size}" for name, size in product(OPERATIONS, ("small", "large"))))
def operation(bench: Bench, which: str) -> Iterator[Work]:
    """consensus_orm, cutover, {} (large: --rows)"""
    name, _, size = which.rpartition("_")
    operation, rows = OPERATIONS[name], _rows(bench, size)
    newest = range(max(1, rows - SMALL), rows)
    with ConsensusStore.open(_file(bench, size)) as store:

        def work(round_: int) -> dict[str, float]:
            seconds, done = 0.0, 0
            times = bench.times(operation.times)
            for number, row in enumerate(random.Random(round_).choices(newest, k=times)):
                new = rows + (list(OPERATIONS).index(name) * 1000 + round_ + 1) * operation.times + number
                if operation.before is not None:
                    operation.before(store, row, new)
                started = time.perf_counter()
                result = operation.work(store, row, new)
                seconds += time.perf_counter() - started
                done += operation.of(result, rows)
            return {"seconds": seconds / done}

        yield work
