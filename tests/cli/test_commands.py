"""The command line: what operators are told, exit codes, JSON, and that bad input changes nothing."""

from __future__ import annotations

import inspect
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import Context
from click.testing import CliRunner, Result
from rich.console import Console

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main, output
from consensus_orm.cli.commands import MODULES, SECTIONS
from consensus_orm.cli.output import one_line, plain
from consensus_orm.formats import duration, size
from consensus_orm.progress import Progress
from tests.field import builders
from tests.support import oracle
from tests.support.commands import (
    NO_SOAK,
    SCRIPT,
    SLOW,
    add_waiting_rows,
    interrupted,
    on_a_terminal,
    one_line_of,
    without_settings,
)

COMMANDS = {
    *("demo", "status", "upgrade", "backfill", "verify", "advance", "rollback", "migrate", "mismatches"),
    *("rejects", "reconcile", "history", "stats", "vacuum", "backup"),
}

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "artifacts.db"


@pytest.fixture
def run(path: Path) -> Run:
    """Call the command line on a file, in this process."""

    def call(*words: str, url: str | None = None, code: int | None = None, **env: str) -> Result:
        result = CliRunner().invoke(main, ["--url", url or str(path), *words], env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        if code is not None:
            assert result.exit_code == code, result.output
        return result

    return call


def legacy(path: Path) -> None:
    builders.build_legacy(path, columns=11)
    with builders.writing(path) as connection:
        connection.execute("UPDATE consensus_artifacts SET run_id = '' WHERE id = 1")


def at(phase: Phase) -> Callable[[Path], None]:
    """A legacy file taken to a phase."""

    def build(path: Path) -> None:
        legacy(path)
        with ConsensusStore.open(path) as store:
            store.migration.migrate(phase, soak=False)

    return build


def test_commands_are_those_of_the_design() -> None:
    """Every command exists and has help."""
    assert set(MODULES) >= COMMANDS
    whole = " ".join(CliRunner().invoke(main, ["--help"]).stdout.split())
    assert "130 interrupted" in whole
    for section in SECTIONS.values():
        for name, (_, sentence) in section.items():
            told = CliRunner().invoke(main, [name, "--help"], terminal_width=200)
            assert told.exit_code == 0, name
            assert f"{name} {sentence}" in whole
            assert f"Examples:\n  consensus-orm {name}" in told.stdout
            command = main.get_command(Context(main), name)
            assert command is not None
            doc = inspect.cleandoc(command.help or "").partition("\n\n")[0]
            assert " ".join(doc.split()) == sentence, name


def test_entry_point_runs_and_the_library_does_without_it(path: Path) -> None:
    """The installed script works; click and rich are imported by the command line alone."""
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("consensus-orm ")
    look = "import sys, consensus_orm; print({'click', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True).stdout == "set()\n"


# Reading --------------------------------------------------------------------------------------------------

STATES: dict[str, Callable[[Path], None]] = {
    "empty": builders.new,
    "legacy": legacy,
    "dual_write_build": builders.dual_write_build,
    "final_build": builders.final_build,
    **{phase.name: at(phase) for phase in Phase},
}


@pytest.mark.long
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("command", ["status", "stats", "history", "mismatches", "rejects"])
def test_reading_writes_nothing(command: str, state: str, path: Path, run: Run) -> None:
    """Whatever the file, looking at it leaves it byte for byte as it was; JSON is one document."""
    STATES[state](path)
    before = oracle.sha256(path)
    text, document = run(command), run(command, "--json")
    assert oracle.sha256(path) == before
    assert text.exit_code == document.exit_code == 0
    assert text.stderr == ""
    json.loads(document.stdout)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["legacy", "final_build", "dual_write_build", "empty"])
def test_next_commands_lead_to_the_end(kind: str, path: Path, run: Run) -> None:
    """Doing what `status` says, again and again, ends at CONTRACT; each command works as it is printed."""
    STATES[kind](path)
    for _ in range(20):
        command = json.loads(run("status", "--json", **NO_SOAK).stdout)["next_command"]
        if not command:
            break
        program, option, url, *words = shlex.split(command)
        assert (program, option, url) == ("consensus-orm", "--url", str(path))
        run(*words, code=0, **NO_SOAK)
    assert "nothing, this is the end" in run("status", code=0).stdout
    assert json.loads(run("status", "--json").stdout)["phase"] == "CONTRACT"


def test_pipes_get_plain_text(path: Path, run: Run) -> None:
    """No colour codes, nothing wrapped or cut, where the output is no terminal."""
    at(Phase.DUAL_WRITE)(path)
    reason = "a long reason " * 30
    run("rollback", "--reason", reason, code=0)
    listed = run("history", code=0).stdout
    assert reason.strip() in listed
    assert "\x1b" not in listed + run("status").stdout + run("stats").stdout


# Steps ----------------------------------------------------------------------------------------------------


def test_vacuum_and_backup_report(path: Path, run: Run, tmp_path: Path) -> None:
    """The vacuum tells bytes before and after; a backup opens, and is not overwritten unless asked."""
    legacy(path)
    copy = tmp_path / "copy.db"
    sha = oracle.sha256(path)
    assert json.loads(run("backup", str(copy), "--json", code=0).stdout)["path"] == str(copy)
    assert oracle.sha256(path) == sha
    assert oracle.image(copy, *oracle.LEGACY) == oracle.image(path, *oracle.LEGACY)
    assert "exists already" in one_line_of(run("backup", str(copy), code=1))
    run("backup", str(copy), "--overwrite", code=0)
    told = json.loads(run("vacuum", "--full", "--json", code=0).stdout)
    assert told["converted"]
    assert told["bytes_before"] > 0 < told["bytes_after"]
    assert "before" in run("vacuum", code=0).stdout


# Bad input ------------------------------------------------------------------------------------------------


def not_sqlite(path: Path) -> None:
    path.write_text("this is no database, however often it is read\n" * 100)


def newer(path: Path) -> None:
    at(Phase.EXPAND)(path)
    with builders.writing(path) as connection:
        connection.execute("UPDATE consensus_orm_version SET version_num = '9999'")


BAD_FILES: dict[str, Callable[[Path], None]] = {
    "not_sqlite": not_sqlite,
    "directory": lambda path: path.mkdir(),
    "newer": newer,
    **builders.DAMAGED,
}
EVERY_COMMAND = [
    *(["status"], ["upgrade"], ["backfill"], ["verify"], ["advance"], ["rollback"], ["migrate", "--no-soak"]),
    *(["mismatches"], ["mismatches", "accept", "1", "--reason", "x"], ["rejects"], ["rejects", "resolve", "1"]),
    *(["rejects", "accept", "1", "--reason", "x"], ["reconcile"], ["reconcile", "--dry-run"], ["history"]),
    *(["stats"], ["vacuum"], ["vacuum", "--full"], ["backup", "COPY"]),
]


@pytest.mark.long
@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_one_line(kind: str, path: Path, run: Run, tmp_path: Path) -> None:
    """Every command refuses a file it cannot work with: one line, no traceback, the file untouched."""
    BAD_FILES[kind](path)
    before = None if path.is_dir() else oracle.sha256(path)
    for words in EVERY_COMMAND:
        for more in ([], ["--json"]) if len(words) == 1 else ([],):
            result = run(*(word.replace("COPY", str(tmp_path / "copy")) for word in words), *more)
            assert result.exit_code in (1, 2), words
            one_line_of(result)
            told = json.loads(result.stdout)["error"] if more else {"code": result.exit_code}
            assert (told["code"], bool(result.stdout)) == (result.exit_code, bool(more))
    assert before is None or oracle.sha256(path) == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("words", [*EVERY_COMMAND, ["rehearse"], ["report", "COPY"]])
@pytest.mark.parametrize("name", ["mistyped.db", "no/such/folder/artifacts.db", "link.db"])
def test_missing_file_is_not_made(words: list[str], name: str, run: Run, tmp_path: Path) -> None:
    """A mistyped path makes no database, whatever the command, also where a link leads to nothing."""
    (tmp_path / "link.db").symlink_to(tmp_path / "nothing.db")
    result = run(*(word.replace("COPY", str(tmp_path / "copy")) for word in words), url=str(tmp_path / name))
    assert result.exit_code == 1
    assert "does not exist" in one_line_of(result)
    assert list(tmp_path.iterdir()) == [tmp_path / "link.db"]


def test_upgrade_makes_a_new_database_where_it_is_asked_to(path: Path, run: Run) -> None:
    """A file that is not there yet begins at CONTRACT; one that is there is upgraded as without the option."""
    assert "upgrade --create" in one_line_of(run("upgrade", code=1))
    assert json.loads(run("upgrade", "--create", "--json", code=0).stdout)["phase"] == "CONTRACT"
    assert json.loads(run("upgrade", "--create", "--json", code=0).stdout)["applied"] == []


def test_copy_makes_its_target_where_it_is_asked_to(path: Path, tmp_path: Path) -> None:
    """A mistyped target is no new file; neither is a mistyped source, even with the option."""
    legacy(path)
    target = tmp_path / "copy.db"
    words = ["copy", str(path), str(target)]
    assert "--create" in one_line_of(CliRunner().invoke(main, words))
    assert list(tmp_path.iterdir()) == [path]
    assert CliRunner().invoke(main, [*words, "--create"]).exit_code == 0
    assert oracle.rows(target, "consensus_artifacts") == oracle.rows(path, "consensus_artifacts")
    words = ["copy", "--create", str(tmp_path / "mistyped.db"), str(tmp_path / "other.db")]
    assert CliRunner().invoke(main, words).exit_code == 1
    assert not (tmp_path / "mistyped.db").exists()
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["advance", "sideways"], 2),
        (["advance", "6"], 2),
        (["rollback", "sideways"], 2),
        (["rollback", "contract"], 2),
        (["rollback"], 1),
        (["migrate", "--to", "sideways"], 2),
        (["advance", "--force"], 2),
        (["advance", "--force", "--reason", "  "], 2),
        (["backfill"], 1),
        (["verify"], 1),
        (["reconcile"], 1),
        (["mismatches", "accept", "0", "--reason", "x"], 2),
        (["mismatches", "accept", "-1", "--reason", "x"], 2),
        (["mismatches", "accept", "one", "--reason", "x"], 2),
        (["mismatches", "accept", "9" * 5000, "--reason", "x"], 2),
        (["rejects", "accept", f"1-{'9' * 5000}", "--reason", "x"], 2),
        (["throttle", "9" * 5000], 2),
        (["mismatches", "accept", "1"], 2),
        (["rejects", "accept", "1"], 2),
        (["rejects", "frobnicate"], 2),
        (["frobnicate"], 2),
        (["status", "--frobnicate"], 2),
        (["status", "more"], 2),
        (["backup"], 2),
        (["backup", "/nowhere/at/all"], 1),
    ],
)
def test_bad_arguments_are_refused_in_one_line(words: list[str], code: int, path: Path, run: Run) -> None:
    """A wrong argument or a step out of turn: one line, its exit code, a legacy file untouched."""
    legacy(path)
    before = oracle.sha256(path)
    result = run(*words, code=code)
    one_line_of(result)
    assert result.stdout == ""
    assert oracle.sha256(path) == before


def test_backup_onto_the_database_itself(path: Path, run: Run) -> None:
    """Not even asked to overwrite does a backup replace the database it is of."""
    legacy(path)
    before = oracle.sha256(path)
    one_line_of(run("backup", str(path), "--overwrite", code=1))
    assert oracle.sha256(path) == before


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "nonsense://x", "sqlite://host:port:more", "://"])
def test_bad_urls_are_wrong_usage_and_not_repeated(url: str, run: Run) -> None:
    """A URL that cannot be used: exit code 2, one line, without its password."""
    assert "secret" not in one_line_of(run("status", url=url, code=2))


def test_bad_setting_is_wrong_usage(run: Run) -> None:
    """A setting that cannot be read: exit code 2, one line that names it."""
    assert "pool_size" in one_line_of(run("status", code=2, CONSENSUS_ORM_POOL_SIZE="many"))


READ_ONLY = """
import contextlib, io, os, sys
from consensus_orm.cli import main, output
def call(*words):
    try:
        main(list(words))
    except SystemExit as end:
        return end.code
with contextlib.redirect_stderr(io.StringIO()):
    for words in ("upgrade", *sys.argv[3:]):
        call("--url", sys.argv[1], *words.split())  # imports everything while it still can
if os.geteuid() == 0:
    os.setegid(65534); os.seteuid(65534)
print(*(call("--url", sys.argv[2], *words.split()) for words in sys.argv[3:]))
"""


@pytest.mark.long
def test_read_only_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What only reads works on a file that cannot be written; what writes says so in one line."""
    folder = Path("/tmp") / f"consensus_orm-read-only-{os.getpid()}"
    folder.mkdir()
    try:
        path, copy = folder / "artifacts.db", folder / "copy.db"
        legacy(path)
        shutil.copy(path, copy)
        before = oracle.sha256(path)
        path.chmod(0o444)
        folder.chmod(0o555)
        words = ["status", "history", "stats --json", "upgrade", "migrate --json", "advance", "vacuum --full"]
        arguments = [sys.executable, "-c", READ_ONLY, str(copy), str(path), *words]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0 0 0 1 1 1 1", done.stderr
        assert "Traceback" not in done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == 4, done.stderr
        assert all("check the permissions of the file" in line and str(path) in line for line in lines)
        assert oracle.sha256(path) == before
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


# Long work ------------------------------------------------------------------------------------------------


def _dual_write_with_rows(path: Path, rows: int) -> None:
    at(Phase.DUAL_WRITE)(path)
    add_waiting_rows(path, rows)


def _rows_on_their_way_out(path: Path) -> int:
    """Rows of legacy tables that are not yet emptied; one more than none before they are dropped."""
    with oracle.reading(path) as connection:
        phase = connection.execute("SELECT phase FROM consensus_orm_state").fetchone()[0]
        names = [name for name in oracle.tables(path) if name.startswith("consensus_orm_dropped_")]
        if phase != Phase.CONTRACT:
            return 10**9
        return sum(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names)


@pytest.mark.long
def test_ctrl_c_while_legacy_tables_are_emptied(path: Path, run: Run) -> None:
    """The phase is CONTRACT by then: the command that goes on names it, empties the rest, and all can go back."""
    _dual_write_with_rows(path, 300)
    before = oracle.image(path, *oracle.LEGACY)[1]
    run("migrate", "--to", "normalized", "--no-soak", code=0, **NO_SOAK)
    run("verify", code=0)
    again = interrupted(["--url", str(path), "advance"], lambda: _rows_on_their_way_out(path) < 280, **NO_SOAK, **SLOW)
    assert again[2:] == ["advance", "contract"]
    assert 0 < _rows_on_their_way_out(path) < 280
    assert CliRunner().invoke(main, again).exit_code == 0
    assert not [name for name in oracle.tables(path) if name.startswith("consensus_orm_dropped_")]
    run("rollback", code=0)
    assert oracle.image(path, *oracle.LEGACY)[1] == before


@pytest.mark.long
def test_contract_shows_its_backup_and_what_it_empties(path: Path, run: Run) -> None:
    """The last step tells how far its backup and each table on its way out are."""
    _dual_write_with_rows(path, 60)
    run("migrate", "--to", "normalized", "--no-soak", code=0, **NO_SOAK)
    run("verify", code=0)
    out, seen = on_a_terminal(["--url", str(path), "advance"], **NO_SOAK, **SLOW)
    assert b"emptying consensus_artifacts" in seen
    assert b"rows" in seen
    lines = out.decode().splitlines()
    assert lines[0].startswith(f"backup: {path}.before-contract-")
    assert lines[1].startswith("the phase is CONTRACT: NORMALIZED -> CONTRACT in ")

    told: list[Progress] = []
    with ConsensusStore.open(path) as store:
        store.migration.rollback("normalized", progress=told.append)
        store.migration.verify()
        store.migration.advance(reason="again", force=True, progress=told.append)
    last = {seen.pair: seen for seen in told}
    assert list(last) == [
        *("artifacts", "syntheses", "backup"),
        *("emptying consensus_synthesis", "emptying consensus_artifacts"),
    ]
    assert all(seen.done == seen.total > 0 for seen in last.values())
    assert last["backup"].unit == "pages"


def test_what_cannot_be_counted_moves_until_there_is_something_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a moving bar shows that something is going on; the first real one takes its place."""
    monkeypatch.setattr(output, "PATIENCE", 0.01)
    screen = io.StringIO()
    monkeypatch.setattr(output, "_console", lambda **_: Console(file=screen, force_terminal=True, width=100))
    with output.Bars("vacuum") as bars:
        while "vacuum" not in screen.getvalue():
            time.sleep(0.01)
        assert bars.rows is not None
        at = screen.tell()
        bars.rows(Progress("artifacts", 5, 10, 2.0))
        bars.rows(Progress("artifacts", 10, 10, 2.0))
    shown = screen.getvalue()[at:]
    assert "10 of 10 rows, 2 a second, finishing" in shown
    assert "vacuum" not in shown.rpartition("artifacts")[2]
    assert output.Bars("vacuum", quiet=True).rows is None


# Words ----------------------------------------------------------------------------------------------------


def test_texts_of_others_cannot_steer_a_terminal(path: Path, run: Run) -> None:
    """Escape sequences in a reason are shown as characters, in one line."""
    at(Phase.DUAL_WRITE)(path)
    run("rollback", "--reason", "\x1b[2Jgone\nnext [red]line[/red]", code=0)
    listed = run("history", code=0).stdout
    assert "\x1b" not in listed
    assert "[2Jgone next [red]line[/red]" in listed
    assert one_line("a\x00b\udcff\n c") == "a\ufffdb\ufffd c"


def test_values_in_words() -> None:
    """Durations in two units, sizes in one; phases by name and durations in seconds for machines."""
    from datetime import UTC, datetime, timedelta

    assert [size(bytes_) for bytes_ in (0, 999, 1234, 5.6e6, 7e12)] == [
        *("0 bytes", "999 bytes", "1.2 kB", "5.6 MB", "7,000.0 GB")
    ]
    assert [duration(s) for s in (0.0001, 0.9995, 4.15, 59.95)] == ["1 ms", "1 s", "4.2 s", "1 min"]
    assert [duration(timedelta(seconds=s)) for s in (0, 0.2, 60, 3605, 604799)] == [
        "0 s",
        "200 ms",
        "1 min",
        "1 h",
        "6 d 23 h",
    ]
    moment = datetime(2025, 11, 4, tzinfo=UTC)
    values: dict[Any, Any] = {"phase": Phase.CUTOVER, "at": moment, "took": timedelta(hours=1), 1: (Path("/x"), None)}
    assert plain(values) == {"phase": "CUTOVER", "at": moment.isoformat(), "took": 3600.0, "1": ["/x", None]}


# For Python -----------------------------------------------------------------------------------------------
