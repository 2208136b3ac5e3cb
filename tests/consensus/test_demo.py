"""The demo: what a stranger sees is true, and it says so when something is not as it should be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase, Settings
from consensus_orm.cli import demo as showcase
from consensus_orm.cli import main
from consensus_orm.consensus.demo import DemoReport, Leg, legacy_file, play
from consensus_orm.consensus.demo.judge import Verdict, judge, look
from consensus_orm.consensus.demo.report import WANTED, faults
from consensus_orm.consensus.demo.writers import OldProgram, Writer
from tests.field import builders
from tests.support import oracle

pytestmark = pytest.mark.long

SCRIPT = Path(sys.executable).parent / "consensus-orm"


def _demo(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONSENSUS_ORM_")}
    command = [str(SCRIPT), "demo", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**environment, **env}, timeout=250)


def test_demo_shows_the_whole_way_there_and_back(tmp_path: Path) -> None:
    """No word on stderr, every phase there and back, 0 mismatches, every row as it was, however busy the machine is."""
    done = _demo(cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    forward, back = done.stdout.split("Through all five phases: 0 mismatches, 0 rejects.")
    for phase in Phase:
        assert f"{phase.value} {phase.name}: " in forward
        assert phase is Phase.CONTRACT or f"{phase.value} {phase.name}: " in back
    counts = re.search(r"([\d,]+) of ([\d,]+) legacy rows are what they were", back)
    assert counts is not None
    assert counts[1] == counts[2] != "0"
    verdict, hint = done.stdout.splitlines()[-2:]
    assert verdict.startswith("OK: 0 mismatches, 0 rejects, ")
    assert "consensus-orm rehearse --url COPY.db" in hint
    assert list(tmp_path.iterdir()) == []


def test_demo_takes_a_copy(tmp_path: Path) -> None:
    """`--database FILE` leaves FILE untouched; settings of the environment change nothing; JSON is one document."""
    path, elsewhere = tmp_path / "artifacts.db", tmp_path / "backups"
    elsewhere.mkdir()
    builders.odd_legacy(path)
    before = oracle.sha256(path)
    env = {"CONSENSUS_ORM_BACKUP_DIR": str(elsewhere), "CONSENSUS_ORM_URL": str(tmp_path / "other.db")}
    done = _demo("--database", str(path), "--json", cwd=tmp_path, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["ok"]
    assert told["verdict"]["unchanged"] == told["verdict"]["original"] > 100
    phases = [(leg["phase"], leg["forward"]) for leg in told["legs"]]
    assert phases == [(p.name, True) for p in Phase] + [(p.name, False) for p in reversed(Phase) if p.has_legacy]
    assert told["problems"] == []
    assert all(min(leg["writes_by_thread"]) >= WANTED for leg in told["legs"])
    assert sum(leg["writes"] + leg["writes_before"] for leg in told["legs"]) <= told["writes"]
    assert oracle.sha256(path) == before
    assert sorted(tmp_path.iterdir()) == [path, elsewhere]
    assert list(elsewhere.iterdir()) == []


def _moved(path: Path) -> None:
    builders.first_version(path)
    with ConsensusStore.open(path) as store:
        store.migration.migrate("cutover", soak=False)


def _meddled(path: Path) -> None:
    """A file whose own trigger changes rows of one side as they are written."""
    builders.first_version(path)
    with builders.writing(path) as connection:
        connection.execute(
            "CREATE TRIGGER meddles AFTER INSERT ON consensus_artifacts WHEN NEW.spec_id LIKE 'DEMO-%' BEGIN"
            " UPDATE consensus_artifacts SET agent_name = 'x' WHERE id = NEW.id; END"
        )


@pytest.mark.parametrize(
    ("build", "code", "word"),
    [
        (lambda path: None, 2, "does not exist"),
        (lambda path: path.mkdir(), 1, ""),
        (lambda path: path.write_text("no database at all\n" * 99), 1, "not a database"),
        (builders.damaged, 1, "consensus_runs"),
        (builders.final_build, 1, "is at CONTRACT already"),
        (_moved, 1, "is at CUTOVER already"),
        (_meddled, 1, "mismatches are open"),
    ],
)
def test_demo_refuses_in_one_line(
    build: Callable[[Path], object], code: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file the demo cannot show, or one where the sides really differ: one error, exit code, the file untouched."""
    path = tmp_path / "artifacts.db"
    build(path)
    before = oracle.sha256(path) if path.is_file() else None
    done = CliRunner().invoke(main, ["demo", "--database", str(path)])
    assert done.exit_code == code, done.output
    told, *more = done.stderr.splitlines()
    assert all(line.startswith("  - ") for line in more), told  # what a gate wants, each in a line of its own
    assert word in done.stderr
    assert before is None or oracle.sha256(path) == before


def test_made_up_file_holds_the_shapes_of_the_field(tmp_path: Path) -> None:
    """The rows that break simple implementations are among those of the demo."""
    path = tmp_path / "artifacts.db"
    legacy_file.make(path)
    questions = {
        "run id NULL": "SELECT count(*) > 100 FROM consensus_artifacts WHERE run_id IS NULL",
        "run id ''": "SELECT count(*) FROM consensus_artifacts WHERE run_id = ''",
        "no JSON": "SELECT count(*) > 100 FROM consensus_artifacts WHERE NOT json_valid(content_json)",
        "stored as BLOB": "SELECT count(*) FROM consensus_artifacts WHERE typeof(content_json) = 'blob'",
        "5 MB": "SELECT count(*) FROM consensus_artifacts WHERE length(content_json) >= 5000000",
        "NUL": "SELECT count(*) FROM consensus_artifacts WHERE instr(CAST(content_json AS BLOB), x'00')",
        "a lone surrogate": "SELECT count(*) FROM consensus_artifacts WHERE hex(content_json) = 'EDA080'",
        "no time": "SELECT count(*) > 4 FROM consensus_artifacts WHERE datetime(created_at) IS NULL",
        "id above 2^31": "SELECT count(*) FROM consensus_artifacts WHERE id > 2147483648",
        "gaps": "SELECT max(id) > count(*) FROM consensus_artifacts",
        "twins": "SELECT count(*) FROM consensus_artifacts GROUP BY spec_id, stage, agent_name, content_json,"
        " run_id, created_at ORDER BY 1 DESC LIMIT 1",
        "the same words under six names": "SELECT count(DISTINCT agent_name) = 6 FROM consensus_artifacts"
        " WHERE length(content_json) BETWEEN 70000 AND 80000",
        "two syntheses in one run": "SELECT count(*) > 1 FROM consensus_synthesis WHERE created_at LIKE '2025%'"
        " GROUP BY spec_id ORDER BY 1 DESC LIMIT 1",
        "a long synthesis": "SELECT count(*) FROM consensus_synthesis WHERE length(output_markdown) > 1000000",
        "synthesis alone": "SELECT count(*) FROM consensus_synthesis WHERE spec_id NOT IN"
        " (SELECT spec_id FROM consensus_artifacts)",
        "never completed": "SELECT count(*) FROM agent_executions WHERE completed_at IS NULL",
    }
    with oracle.reading(path) as connection:
        connection.text_factory = bytes
        for shape, sql in questions.items():
            assert connection.execute(sql).fetchone()[0], shape


# What is not as it should be ---------------------------------------------------------------------------------


def test_demo_waits_for_its_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase ends when each thread has written in it, however long that takes; not after some time."""
    monkeypatch.setattr("consensus_orm.consensus.demo.stage.SHORTEST_LEG", 0.0)
    monkeypatch.setattr("consensus_orm.rehearsal.writers.PAUSE", 0.2)
    report = play()
    assert report.problems == []
    assert all(min(leg.writes_by_thread) >= WANTED for leg in report.legs)


def _starve(_: Leg) -> None:
    """Nothing: the threads are slow enough."""


def _fail(leg: Leg) -> None:
    """Have a write of a thread fail, from CUTOVER on."""
    if leg.phase is Phase.CUTOVER:
        setattr(Writer, "_complete", lambda *_: 1 / 0)  # noqa: B010


def _go_around(leg: Leg) -> None:
    """Have another program write what the old one is said to write alone."""
    if leg.phase is Phase.EXPAND and leg.forward:
        setattr(OldProgram, "write", lambda _: "it is ill")  # noqa: B010


@pytest.mark.parametrize(
    ("spoil", "settings", "where", "check", "found"),
    [
        (
            _starve,
            {"consensus.demo.stage.PATIENCE": 0.1, "rehearsal.writers.PAUSE": 0.5},
            "1 EXPAND",
            "each thread goes on",
            "thread 1 wrote ",
        ),
        (_fail, {}, "4 NORMALIZED", "no write fails", "ZeroDivisionError"),
        (
            _go_around,
            {},
            "2 DUAL_WRITE",
            "noticed and adopted",
            "0 adopted, and SQLite refused it: it is ill",
        ),
        (_go_around, {}, "4 NORMALIZED", "is refused", "it is ill"),
    ],
    ids=["starved", "failed", "not-noticed", "not-refused"],
)
def test_demo_names_what_is_wrong(
    spoil: Callable[[Leg], None],
    settings: dict[str, float],
    where: str,
    check: str,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where something is not as it should be, the demo says in which phase, which check, what it found, what to do."""
    for name, value in settings.items():
        monkeypatch.setattr(f"consensus_orm.{name}", value)
    for owner, name in ((Writer, "_complete"), (OldProgram, "write")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end
    told = showcase._tell

    def tell(leg: Leg) -> None:
        told(leg)
        spoil(leg)

    monkeypatch.setattr(showcase, "_tell", tell)
    done = CliRunner().invoke(main, ["demo"])
    assert done.exit_code == 1, done.output
    lines = [line for line in done.stdout.splitlines() if line.startswith("NOT as it should be, ")]
    assert any(where in line and check in line and found in line and "consensus-orm demo" in line for line in lines)
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"NOT OK, {len(lines)} of the checks failed: 0 mismatches, ")


# The judge ------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, Callable[[Verdict], bool]]] = {
    "one byte": (
        "UPDATE consensus_artifacts SET content_json = content_json || ' ' WHERE id = 1",
        lambda v: v.unchanged == v.original - 1,
    ),
    "another type": (
        "UPDATE consensus_artifacts SET content_json = CAST(content_json AS BLOB) WHERE id = 1",
        lambda v: v.unchanged == v.original - 1,
    ),
    "NULL for the empty string": (
        "UPDATE consensus_artifacts SET run_id = NULL WHERE run_id = ''",
        lambda v: v.unchanged < v.original,
    ),
    "a row less": ("DELETE FROM consensus_synthesis WHERE id = 1", lambda v: v.unchanged == v.original - 1),
    "an execution less": ("DELETE FROM agent_executions WHERE agent_id = 'a-2'", lambda v: v.unchanged < v.original),
    "a row more": (
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('s', 't', 'a', 'c')",
        lambda v: v.surplus == 1,
    ),
    "an index less": ("DROP INDEX idx_spec_stage", lambda v: not v.schema_restored),
    "a column more": ("ALTER TABLE consensus_synthesis ADD COLUMN x", lambda v: not v.schema_restored),
    "ids again": (
        "UPDATE sqlite_sequence SET seq = 1 WHERE name = 'consensus_artifacts'",
        lambda v: not v.ids_continue,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_judge_sees_every_fault(fault: str, tmp_path: Path) -> None:
    """Whatever differs from what it was, in type, bytes, rows, schema or sequences, is no exact return."""
    path = tmp_path / "artifacts.db"
    legacy_file.make(path)
    before = look(path)
    verdict = judge(before, look(path, before.columns), {}, 0)
    assert verdict.exact
    assert list(faults(verdict)) == []
    sql, seen = FAULTS[fault]
    with builders.writing(path) as connection:
        connection.execute(sql)
    verdict = judge(before, look(path, before.columns), {}, 0)
    assert not verdict.exact
    assert seen(verdict), verdict
    report = DemoReport(
        legs=[], verdict=verdict, writes=0, deleted=0, mismatches=0, rejects=0, seconds=0.0,
    )  # fmt: skip
    assert not report.ok
    assert {problem.where for problem in report.problems} == {"at the end"}


def test_judge_holds_added_rows_to_what_was_meant(tmp_path: Path) -> None:
    """A row that was added counts only as it was meant; one that is missing does not count."""
    path = tmp_path / "artifacts.db"
    builders.build_legacy(path)
    before = look(path)
    row = {"spec_id": "S", "stage": "plan", "agent_name": "a", "content_json": "\udcff", "created_at": "now"}
    with builders.writing(path) as connection:
        sql = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, created_at)"
        cursor = connection.execute(f"{sql} VALUES ('S', 'plan', 'a', CAST(x'ff' AS TEXT), 'now')")
    meant = {**row, "id": cursor.lastrowid}
    after = look(path, before.columns)
    assert judge(before, after, {"consensus_artifacts": [meant]}, cursor.lastrowid or 0).exact
    for wrong in ({**meant, "run_id": ""}, {**meant, "content_json": "ÿ"}, {**meant, "id": 10**6}):
        assert not judge(before, after, {"consensus_artifacts": [wrong]}, 0).exact
    assert not judge(before, after, {"consensus_artifacts": [meant]}, 10**6).exact


# What the demo found ----------------------------------------------------------------------------------------


def test_content_that_is_no_utf8_is_written_equal_on_both_sides(tmp_path: Path) -> None:
    """Text that has to be bound as bytes changes the type of no other value: not that of the run id."""
    path = tmp_path / "artifacts.db"
    builders.build_legacy(path)
    with ConsensusStore.open(path) as store:
        store.migration.migrate("dual_write")
        for run in (None, "", "run_1"):
            with store.unit_of_work() as uow:
                uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="\udcff", run_id=run)
        assert store.migration.mismatches(everything=True) == []
        store.migration.backfill()
        assert store.migration.verify().clean


def test_shadow_reads_do_not_alarm_before_the_backfill(tmp_path: Path) -> None:
    """A row that the backfill has not come to is no mismatch; one that is missing after it is."""
    path = tmp_path / "artifacts.db"
    builders.build_legacy(path)
    with ConsensusStore.open(path, settings=Settings(shadow_reads=1.0)) as store:
        store.migration.migrate("dual_write")
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.list()
        assert store.migration.mismatches(everything=True) == []
        store.migration.backfill()
        with builders.writing(path) as connection:
            connection.execute("DELETE FROM agent_outputs WHERE id = 1")
        with store.unit_of_work(read_only=True) as uow:
            uow.artifacts.list()
        assert [(m.key, m.kind) for m in store.migration.mismatches()] == [(1, "missing_normalized")]
