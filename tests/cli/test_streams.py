"""The streams and signals of the command line: one JSON document whatever happens, and no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from tests.field import builders
from tests.support import oracle
from tests.support.commands import SCRIPT, SLOW_ALONE, add_waiting_rows, interrupted, without_settings
from tests.support.databases import Database, File, build_legacy

pytestmark = pytest.mark.long

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


def call(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own; `env` is added to the environment."""
    env = os.environ | options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 60} | options
    return subprocess.run([SCRIPT, *map(str, words)], env=env, check=False, **options)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON document on stdout; nothing may stand beside it."""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


# JSON -----------------------------------------------------------------------------------------------------

FAILING: dict[str, tuple[list[str], str, int]] = {
    "no such command": (["frobnicate", "--json"], "UsageError", 2),
    "no such option": (["status", "--json", "--frobnicate"], "UsageError", 2),
    "an option of other commands": (["status", "--json", "--writers", "2"], "UsageError", 2),
    "a missing argument": (["backup", "--json"], "UsageError", 2),
    "no such phase": (["advance", "sideways", "--json"], "InvalidValueError", 2),
    "force without a reason": (["advance", "--force", "--json"], "InvalidValueError", 2),
    "a step out of turn": (["verify", "--json"], "WrongPhaseError", 1),
    "nowhere to go back to": (["rollback", "--json"], "MigrationError", 1),
    "a target that is there": (["backup", "--json", "FILE"], "BackupError", 1),
}


@pytest.mark.parametrize("kind", FAILING)
def test_an_error_is_one_document(kind: str, tmp_path: Path) -> None:
    """With --json an error is told on stdout in class, exit code, message, hint and facts; on stderr in one line."""
    words, name, code = FAILING[kind]
    path = tmp_path / "artifacts.db"
    builders.build_legacy(path, columns=11)
    done = call("--url", path, *(word.replace("FILE", str(path)) for word in words))

    told = document(done)
    assert told.keys() == {"error"}
    assert told["error"].keys() == {"class", "code", "message", "hint", "explain", "facts"}
    assert (told["error"]["class"], told["error"]["code"], done.returncode) == (name, code, code)
    assert told["error"]["message"] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_shut_gate_is_one_document(new_database: Database) -> None:
    """What was done before the gate, the reasons and the error stand together in one document."""
    build_legacy(new_database.where)
    done = call("--url", new_database.where, "migrate", "--json")

    told = document(done)
    assert [step["action"] for step in told["steps"]] == ["upgrade", "advance", "backfill", "verify"]
    assert told["phase"] == "DUAL_WRITE"
    assert told["error"]["class"] == "GateClosedError"
    assert told["error"]["message"] == "the gate to CUTOVER is shut"
    assert told["error"]["hint"] == "; ".join(told["refused"])


@pytest.mark.parametrize(
    ("env", "name"),
    [({"CONSENSUS_ORM_POOL_SIZE": "secret"}, "ConfigurationError"), ({"HOME": "/nowhere"}, "StorageError")],
)
def test_what_fails_before_the_command_is_one_document(env: dict[str, str], name: str) -> None:
    """So are settings that cannot be used and a database that is not there."""
    done = call("verify", "--json", env=env)
    assert document(done)["error"]["class"] == name
    assert "secret" not in done.stdout + done.stderr


def test_an_interrupt_is_one_document(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a step: exit code 130, and the command to go on with, in one document."""
    path = tmp_path / "artifacts.db"
    in_dual_write(path)
    words = ["--url", str(path), "backfill", "--json"]
    with subprocess.Popen(
        [SCRIPT, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | SLOW_ALONE
    ) as process:
        while carried(path) < 5:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    told = json.loads(out)["error"]
    assert (process.returncode, told["class"], told["code"]) == (130, "Interrupted", 130)
    assert f"consensus-orm --url {path} backfill --json" in told["message"]
    assert "Traceback" not in err


def test_retries_print_nothing(tmp_path: Path) -> None:
    """Where structlog is installed, a command that is tried again still gives one document, and nothing on stderr."""
    pytest.importorskip("structlog")
    path = tmp_path / "artifacts.db"
    in_dual_write(path)
    with File(path).locked_for(2.0):
        done = call("--url", path, "rollback", "--json", env={"CONSENSUS_ORM_BUSY_TIMEOUT": "0.05"})
    assert document(done)["phase"] == "EXPAND"
    assert (done.returncode, done.stderr) == (0, "")


TALKATIVE = """
import atexit, logging, os, subprocess, sys
from consensus_orm.consensus.declaration import CONSENSUS as MOVES

print("print")
os.write(1, b"a library in C")
subprocess.run(["echo", "a process"])
logging.basicConfig(stream=sys.stdout, force=True)
logging.warning("a log")
atexit.register(print, "the exit")
try:
    import structlog
except ImportError:
    print("[info] structlog")
else:
    structlog.get_logger().info("structlog")
"""


def test_what_an_application_prints_is_not_in_the_document(tmp_path: Path) -> None:
    """The module of the moves may log and print to stdout as it likes: with --json that is on stderr, and kept."""
    path = tmp_path / "artifacts.db"
    builders.build_legacy(path)
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    for words, code in ((["status"], 0), (["backup", path], 1)):
        done = call("--url", path, "--mapping", "talkative:MOVES", *words, "--json", cwd=tmp_path)
        assert ("error" in document(done), done.returncode) == (code == 1, code)
        for told in ("print", "a library in C", "a process", "a log", "structlog", "the exit"):
            assert told in done.stderr
    assert "print" in call("--url", path, "--mapping", "talkative:MOVES", "status", cwd=tmp_path).stdout


RETRIES = """
import sys
from consensus_orm import ConsensusStore
from consensus_orm.errors import DatabaseBusyError

tries = []
def work(uow):
    tries.append(1)
    if len(tries) < 3:
        raise DatabaseBusyError
with ConsensusStore.open(sys.argv[1]) as store:
    store.run(work)
assert len(tries) == 3
optional = {"structlog", "prometheus_client", "opentelemetry", "rich", "click", "pygal", "psycopg"}
sys.exit(", ".join(optional & set(sys.modules)) or 0)
"""


def test_a_library_call_prints_nothing_and_loads_nothing_optional(tmp_path: Path) -> None:
    """A unit of work that is repeated imports no optional library and writes to no stream."""
    words = [sys.executable, "-c", RETRIES, str(tmp_path / "new.db")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# stdout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["status"], ["status", "--json"], ["history"], ["rollback", "--json"], ["--help"], ["copy", "--help"]]
)
@pytest.mark.parametrize("kind", ["full", "closed", "broken"])
def test_output_that_cannot_be_written(kind: str, words: list[str], tmp_path: Path) -> None:
    """Exit code 1 and one line that says what stands; none where the reader has gone, as `head` does."""
    path = tmp_path / "artifacts.db"
    in_dual_write(path)
    if kind == "full":
        with Path("/dev/full").open("w") as full:
            done = call("--url", path, *words, stdout=full)
    elif kind == "closed":
        done = call("--url", path, *words, stdout=None, preexec_fn=lambda: os.close(1))
    else:
        ours, theirs = os.pipe()
        os.close(ours)
        done = call("--url", path, *words, stdout=theirs)
        os.close(theirs)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    if kind == "broken":
        assert done.stderr == ""
    else:
        assert len(done.stderr.splitlines()) == 1
        assert "the output could not be written" in done.stderr
    with ConsensusStore.open(path) as store:
        assert store.migration.phase is (Phase.EXPAND if words[0] == "rollback" else Phase.DUAL_WRITE)


def test_without_any_stream_the_step_is_taken(tmp_path: Path) -> None:
    """A daemon without stdin, stdout and stderr: the file gets none of their numbers, and the exit code is told."""
    path = tmp_path / "artifacts.db"
    in_dual_write(path)

    def close() -> None:
        for number in (0, 1, 2):
            os.close(number)

    done = call("--url", path, "rollback", stdout=None, stderr=None, preexec_fn=close)
    assert done.returncode == 1
    with ConsensusStore.open(path) as store:
        assert store.migration.phase is Phase.EXPAND
    with oracle.reading(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Signals --------------------------------------------------------------------------------------------------

INTERRUPT_AT_IMPORT = """
import importlib.abc, os, sys
class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
module, number = sys.argv.pop(1), int(sys.argv.pop(1))
sys.meta_path.insert(0, Interrupting())
from consensus_orm.cli import main
main()
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", ["consensus_orm.cli.app", "click", "pydantic", "sqlalchemy"])
def test_interrupted_while_it_is_imported(module: str, number: int, tmp_path: Path) -> None:
    """A signal in the half second of imports ends the command at once: exit code 130, one sentence, one document.

    What the command alone needs is imported when it has begun; nothing is made before that.
    """
    words = [sys.executable, "-c", INTERRUPT_AT_IMPORT, module, str(int(number))]
    words += ["--url", str(tmp_path / "new.db"), "upgrade", "--create", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    began = "before the command began" not in done.stderr
    assert began is (module in ("pydantic", "sqlalchemy"))
    assert done.stderr.lstrip("\n").startswith("consensus-orm: interrupted")
    assert document(done)["error"]["class"] == "Interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_are_ctrl_c(number: signal.Signals, tmp_path: Path) -> None:
    """A service that is stopped and a terminal that is closed leave what Ctrl-C leaves."""
    path = tmp_path / "artifacts.db"
    in_dual_write(path)
    again = interrupted(["--url", str(path), "backfill"], lambda: carried(path) >= 5, number, **SLOW_ALONE)
    assert 5 <= carried(path) < 200
    assert call(*again).returncode == 0


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """With `nohup` a command goes on when its terminal is closed."""
    path = tmp_path / "artifacts.db"
    in_dual_write(path)
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    words = [str(SCRIPT), "--url", str(path), "backfill"]
    env = os.environ | SLOW_ALONE
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, preexec_fn=ignore) as process:
        while carried(path) < 5:
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0


def in_dual_write(path: Path, rows: int = 200) -> None:
    """A legacy file in DUAL_WRITE with rows that nobody has carried."""
    builders.build_legacy(path, columns=11)
    with ConsensusStore.open(path) as store:
        store.migration.advance(Phase.DUAL_WRITE)
    add_waiting_rows(path, rows)


def carried(path: Path) -> int:
    with oracle.reading(path) as connection:
        return int(connection.execute("SELECT coalesce(sum(rows), 0) FROM consensus_orm_backfill").fetchone()[0])


IN_A_CALLBACK = """
import os, signal, time, weakref
from consensus_orm.cli import process

class Dropped: pass

process.own()
try:
    with process.interruptible():
        dropped = Dropped()
        reference = weakref.ref(dropped, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        del dropped
        time.sleep(20)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_in_a_callback_of_python_is_not_lost() -> None:
    """Python drops what is raised within the callback of a weak reference; the step is interrupted all the same."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_CALLBACK], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
