"""The commands that take the steps of a migration, on both databases."""

from __future__ import annotations

import contextlib
import json
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.errors import GateClosedError, InvalidValueError
from tests.support.commands import (
    SLOW,
    SLOW_ALONE,
    add_waiting_rows,
    interrupted,
    on_a_terminal,
    one_line_of,
    without_settings,
)
from tests.support.databases import Database, build_legacy

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_settings(monkeypatch)
    monkeypatch.setenv("CONSENSUS_ORM_BACKUP_DIR", str(tmp_path))


@pytest.fixture
def database(new_database: Database) -> Database:
    return new_database


@pytest.fixture
def run(database: Database) -> Run:
    """Call the command line, in this process."""

    def call(*words: str, code: int | None = None, **env: str) -> Result:
        result = CliRunner().invoke(main, ["--url", str(database.where), *words], env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        if code is not None:
            assert result.exit_code == code, result.output
        return result

    return call


def taken(database: Database, phase: Phase) -> None:
    """A legacy database taken to a phase."""
    build_legacy(database.where)
    with ConsensusStore.open(database.where) as store:
        store.migration.migrate(phase, soak=False)


def waiting_rows(database: Database, rows: int) -> None:
    """One in DUAL_WRITE with so many rows that nobody has carried."""
    taken(database, Phase.DUAL_WRITE)
    add_waiting_rows(database.where, rows)


def carried(database: Database) -> int:
    return int(database.scalar("SELECT coalesce(sum(rows), 0) FROM consensus_orm_backfill"))


def damage(database: Database, content: str = "another") -> None:
    """Change one normalized row behind everybody's back, triggers included."""
    database.unnoticed(f"UPDATE agent_outputs SET content = '{content}' WHERE id = 1")


def test_status_in_json_speaks_of_phases_by_name_and_of_durations_in_seconds(database: Database, run: Run) -> None:
    """Machines get names, ISO 8601 and seconds."""
    taken(database, Phase.CUTOVER)
    run("verify", code=0)
    found = json.loads(run("status", "--json", code=0).stdout)
    assert (found["phase"], found["writes"], found["reads"]) == ("CUTOVER", ["legacy", "normalized"], "normalized")
    assert found["since"].endswith("+00:00")
    assert 6.9 * 86400 < found["soak_left"] <= 7 * 86400
    assert 0 <= found["certificate"]["age"] < 60
    assert any("soak" in reason for reason in found["gate"])


def test_shut_gate_names_reasons_and_commands(database: Database, run: Run) -> None:
    """A gate refuses with exit code 1, a line for each reason, and a document for machines; nothing moves."""
    taken(database, Phase.DUAL_WRITE)
    result = run("advance", code=1)
    first, *reasons = result.stderr.splitlines()
    assert first == "consensus-orm: the gate to CUTOVER is shut (GATE_CLOSED)"
    assert all(reason.startswith("  - ") for reason in reasons)
    assert reasons[0].endswith(f"consensus-orm --url {shlex.quote(str(database.where))} backfill")
    assert result.stdout == ""  # whether it was rehearsed is said of a step that is taken
    refused = run("advance", "--json", code=1)
    one_line_of(refused)
    told = json.loads(refused.stdout)
    assert told["phase"] == "DUAL_WRITE"
    assert any("backfill" in reason for reason in told["refused"])


def test_migrate_stops_at_the_soak_and_goes_on_later(database: Database, run: Run) -> None:
    """Without --no-soak the first soak ends it with exit code 1; what was done stays, and the rest follows."""
    build_legacy(database.where)
    stopped = run("migrate", "--json", code=1)
    told = json.loads(stopped.stdout)
    assert told["phase"] == "DUAL_WRITE"
    assert [step["action"] for step in told["steps"]] == ["upgrade", "advance", "backfill", "verify"]
    assert "soak" in one_line_of(stopped)
    assert "reached CUTOVER" in run("migrate", "--to", "CUTOVER", "--no-soak", code=0).stdout
    assert one_line_of(run("migrate", "--to", "expand", code=2)).count("lies behind") == 1


def test_force_needs_a_reason_and_opens_no_gate_behind_which_rows_would_be_lost(database: Database, run: Run) -> None:
    """--force alone is wrong usage; with a reason it skips the soak, but not the backfill."""
    taken(database, Phase.DUAL_WRITE)
    run("advance", "--force", code=2)
    run("advance", "--force", "--reason", "hurry", code=1)
    run("backfill", code=0)
    run("verify", code=0)
    run("advance", "--force", "--reason", "hurry", code=0)
    assert "hurry (forced, skipped: the soak of DUAL_WRITE" in run("history").stdout


@pytest.mark.long
def test_mismatch_is_told_repaired_and_accepted(database: Database, run: Run) -> None:
    """A difference makes verify, mismatches, status and the dry run end with 1; reconcile repairs it."""
    taken(database, Phase.DUAL_WRITE)
    run("backfill", code=0)
    damage(database)
    differing = run("verify", code=1)
    assert "1 difference" in differing.stdout
    assert "content" in differing.stdout
    found = json.loads(run("mismatches", "--json", code=1).stdout)
    assert [(m["pair"], m["key"], m["column"], m["kind"]) for m in found] == [("artifacts", 1, "content", "different")]
    assert "1 x artifacts.content different" in run("status", code=1).stdout
    assert "1 row would be repaired" in run("reconcile", "--dry-run", code=1).stdout
    assert json.loads(run("verify", "--json", code=1).stdout)["clean"] is False
    assert "1 row repaired" in run("reconcile", code=0).stdout
    run("verify", code=0)
    run("mismatches", code=0)
    assert "repaired" in run("mismatches", "--all", code=0).stdout

    damage(database, "once more")
    run("verify", code=1)
    number = str(json.loads(run("mismatches", "--json").stdout)[0]["id"])
    run("mismatches", "accept", number, code=2)
    run("mismatches", "accept", number, "--reason", " ", code=2)
    run("mismatches", "accept", number, "--reason", "known", code=0)
    run("mismatches", "accept", number, "--reason", "known", code=2)
    assert "known" in run("history").stdout


def test_reject_is_told_resolved_and_accepted(database: Database, run: Run) -> None:
    """A row that cannot be carried makes backfill and rejects end with 1, until it is carried or accepted."""
    taken(database, Phase.DUAL_WRITE)
    meddle = "UPDATE agent_outputs SET content = 'x' WHERE id = NEW.id AND id IN (1, 2) AND content <> 'x'"
    if database.kind == "sqlite":  # a trigger has one event there
        database.script(f"CREATE TRIGGER fault_too AFTER UPDATE ON agent_outputs BEGIN {meddle}; END")
    database.fault("AFTER INSERT" if database.kind == "sqlite" else "AFTER INSERT OR UPDATE", "agent_outputs", meddle)
    before = database.rows("consensus_artifacts")
    assert "2 rejects open" in run("backfill", code=1).stdout
    found = json.loads(run("rejects", "--json", code=1).stdout)
    assert [(r["table"], r["key"], r["state"]) for r in found] == [
        ("consensus_artifacts", 1, "open"),
        ("consensus_artifacts", 2, "open"),
    ]
    first, second = (str(reject["id"]) for reject in found)
    assert "still open" in run("rejects", "resolve", first, code=1).stdout
    assert "there are no open rejects 98, 99" in run("rejects", "resolve", first, "98", "99", code=2).stderr
    tried = json.loads(run("rejects", "resolve", first, second, "--json", code=1).stdout)
    assert tried == {"resolved": [], "still_open": [int(first), int(second)]}
    run("rejects", "resolve", code=2)
    database.heal()
    if database.kind == "sqlite":
        database.script("DROP TRIGGER fault_too")
    run("rejects", "resolve", first, code=0)
    run("rejects", "accept", second, code=2)
    run("rejects", "accept", second, "--reason", "not needed", code=0)
    run("rejects", code=0)
    assert "not needed" in json.dumps(json.loads(run("rejects", "--all", "--json", code=0).stdout))
    run("rejects", "resolve", first, code=2)
    assert database.rows("consensus_artifacts") == before


@pytest.mark.long
def test_ctrl_c_leaves_the_last_finished_chunk_and_says_how_to_go_on(database: Database, run: Run) -> None:
    """Interrupted, the backfill ends with 130 and one line; the command that line names finishes it."""
    waiting_rows(database, 300)
    again = interrupted(["--url", str(database.where), "backfill"], lambda: carried(database) >= 5, **SLOW_ALONE)
    assert 5 <= carried(database) < 300
    assert CliRunner().invoke(main, again).exit_code == 0
    run("verify", code=0)


@pytest.mark.long
def test_ctrl_c_after_a_flip_takes_no_second_step(database: Database, run: Run) -> None:
    """A rollback interrupted while it rebuilds is gone on with to its own goal, not to one step behind it."""
    waiting_rows(database, 100)
    run("migrate", "--no-soak", code=0)
    ready = lambda: "consensus_artifacts" in database.tables()  # noqa: E731
    with in_company(database):
        again = interrupted(["--url", str(database.where), "rollback", "--reason", "no good"], ready, **SLOW)
    assert again[2:] == ["rollback", "--reason", "no good", "normalized"]
    for _ in range(2):
        assert CliRunner().invoke(main, again).exit_code == 0
    assert json.loads(run("status", "--json").stdout)["phase"] == "NORMALIZED"


@pytest.mark.long
def test_progress_is_shown_on_a_terminal_only(database: Database) -> None:
    """A bar with rate and time left on stderr; never with --json, never in what stdout holds."""
    waiting_rows(database, 60)
    slow = SLOW_ALONE if database.kind == "sqlite" else SLOW
    with in_company(database):
        out, seen = on_a_terminal(["--url", str(database.where), "backfill"], **slow)
    assert b"artifacts" in seen
    assert b"a second" in seen
    assert b"left" in seen
    assert b"\x1b" not in out
    for words in (["rollback"], ["advance"]):
        assert CliRunner().invoke(main, ["--url", str(database.where), *words]).exit_code == 0
    with in_company(database):
        out, seen = on_a_terminal(["--url", str(database.where), "backfill", "--json"], **slow)
    assert seen == b""
    assert json.loads(out)["rows"] > 60


@contextlib.contextmanager
def in_company(database: Database) -> Iterator[None]:
    """On a server, have others write: alone there, a backfill takes 20 times as many rows at once, and is soon done."""
    done = threading.Event()

    def write() -> None:
        while database.kind != "sqlite" and not done.wait(0.01):
            database.script("SELECT pg_current_xact_id()")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


def test_migrate_in_python(database: Database) -> None:
    """`migrate` tells each step when it is done, keeps what is done when a gate refuses, and goes on later."""
    build_legacy(database.where)
    with ConsensusStore.open(database.where) as store:
        told: list[str] = []
        with pytest.raises(GateClosedError, match="soak"):
            store.migration.migrate(tell=lambda step: told.append(step.action))
        assert told == ["upgrade", "advance", "backfill", "verify"]
        steps = store.migration.migrate("normalized", soak=False, reason="why")
        assert store.migration.phase is Phase.NORMALIZED
        assert [step.phase for step in steps if step.action == "advance"] == [Phase.CUTOVER, Phase.NORMALIZED]
        assert {entry.reason for entry in store.migration.history()[-2:]} == {"why"}
        assert [step.action for step in store.migration.migrate("normalized")] == ["upgrade"]
        with pytest.raises(InvalidValueError, match="lies behind"):
            store.migration.migrate("expand")


def test_impossible_phases_write_nothing(database: Database) -> None:
    """A phase that does not exist, or lies in the wrong direction, is refused before the schema is upgraded."""
    build_legacy(database.where)
    before = database.everything()
    with ConsensusStore.open(database.where) as store:
        for refused in (
            lambda: store.migration.advance("sideways"),
            lambda: store.migration.rollback("cutover"),
            lambda: store.migration.migrate("sideways"),
        ):
            with pytest.raises(InvalidValueError):
                refused()
    assert database.everything() == before
