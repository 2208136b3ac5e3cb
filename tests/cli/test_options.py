"""The options of every command: where they stand, what they load, and what they ask."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click import Command, Context, Group
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.cli.commands import MODULES
from tests.field import builders
from tests.migration.steps import BASE
from tests.support import oracle
from tests.support.commands import NO_SOAK, SCRIPT, on_two_terminals, without_settings


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


def legacy(path: Path) -> None:
    builders.build_legacy(path, columns=11)


def taken(path: Path, phase: Phase) -> None:
    legacy(path)
    with ConsensusStore.open(path, settings=BASE) as store:
        store.migration.migrate(phase, soak=False)


@pytest.mark.parametrize("words", [["status", "--json"], ["mismatches", "--json"], ["history", "--json"]])
def test_url_stands_before_the_command_or_behind_it(words: list[str], path: Path) -> None:
    """Both give the same document; the one behind wins, and each command that is named has it."""
    taken(path, Phase.DUAL_WRITE)
    before = CliRunner().invoke(main, ["--url", str(path), *words])
    behind = CliRunner().invoke(main, ["--url", "/nowhere.db", *words, "--url", str(path)])
    assert (before.exit_code, behind.exit_code) == (0, 0), behind.output
    if words[0] == "status":
        command = json.loads(behind.stdout)["next_command"]
        assert command == json.loads(before.stdout)["next_command"] == f"consensus-orm --url {path} backfill"
    refused = CliRunner().invoke(main, ["mismatches", "show", "7", "--url", str(path)])
    assert f"consensus-orm --url {path} mismatches --all" in refused.stderr


def _all(group: Command, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Command]:
    found = {words: group} if words else {}
    if isinstance(group, Group):
        for name in group.list_commands(Context(group)):
            command = group.get_command(Context(group), name)
            assert command is not None
            found |= _all(command, (*words, name))
    return found


def test_every_command_has_json_and_examples() -> None:
    """A program gets one document from each, and a reader sees how each is called."""
    main.get_command(Context(main), "status")
    commands = _all(main.main.__self__)  # type: ignore[attr-defined]  # a bound method of the group
    assert {words[0] for words in commands} == set(MODULES)
    for words, command in commands.items():
        options = {option for param in command.params for option in param.opts}
        # A group that only leads to others prints nothing, and alembic has a command line of its own.
        leads_on = isinstance(command, Group) and not command.invoke_without_command
        assert leads_on or words == ("alembic",) or "--json" in options, words
        assert getattr(command, "examples", None), words


@pytest.mark.parametrize("words", [("advance", "--wait"), ("alembic", "--url"), ("mismatches", "accept", "--reason")])
def test_an_option_without_its_argument_names_the_help_of_its_command(words: tuple[str, ...]) -> None:
    """That of the command that was called, not of all."""
    told = CliRunner().invoke(main, words).stderr
    assert f"requires an argument; see: consensus-orm {' '.join(words[:-1])} --help" in told


IMPORTED = """
import sys
from consensus_orm.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted({"sqlalchemy", "pydantic", "rich", "alembic", "stamina"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["--version"], ""),
        (["--help"], ""),
        (["explain", "GATE_CLOSED"], ""),
        (["advance", "--help"], ""),
        pytest.param(["status", "--json"], "pydantic sqlalchemy", marks=pytest.mark.long),
    ],
)
def test_a_command_loads_what_it_needs(words: list[str], loaded: str, path: Path) -> None:
    """Help and version load no database library; a document in JSON loads no tables, and a status no alembic."""
    legacy(path)
    environment = {**os.environ, "CONSENSUS_ORM_URL": str(path)} if words[0] == "status" else None
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *words], capture_output=True, text=True, env=environment, check=True
    )
    found = set(done.stderr.split())
    assert found <= set(loaded.split()), found


def _damaged(path: Path) -> None:
    taken(path, Phase.DUAL_WRITE)
    with ConsensusStore.open(path) as store:
        store.migration.backfill()
    with builders.writing(path) as connection:
        connection.execute("UPDATE agent_outputs SET content = 'x' WHERE id = 1")


def _ready(path: Path) -> None:
    taken(path, Phase.NORMALIZED)
    with ConsensusStore.open(path) as store:
        store.migration.verify()


def _with_backup(path: Path) -> None:
    legacy(path)
    with ConsensusStore.open(path) as store:
        store.maintenance.backup(path.with_name("backup.db"))


ASKED: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "contract": (_ready, ["advance"], "CONTRACT drops the legacy tables: consensus_artifacts ("),
    "migrate": (legacy, ["migrate", "--no-soak"], "A verified backup is made first"),
    "expand again": (lambda path: taken(path, Phase.CONTRACT), ["rollback"], "are made again from the normalized side"),
    "unfreeze": (lambda path: taken(path, Phase.NORMALIZED), ["rollback"], "becomes what the normalized side says"),
    "reconcile": (_damaged, ["reconcile", "--repair"], "1 row normalized: overwrite"),
    "backup": (_with_backup, ["backup", "BACKUP", "--overwrite"], "is replaced"),
    "restore": (_with_backup, ["restore", "BACKUP"], "the file that is there is kept beside it"),
    "vacuum": (legacy, ["vacuum", "--full"], "The whole database is rewritten"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ASKED)
def test_on_a_terminal_a_command_that_overwrites_asks_first(name: str, path: Path) -> None:
    """It says what will happen; a no changes nothing, and a yes, or --yes without a question, does it."""
    build, words, told = ASKED[name]
    build(path)
    backup = path.with_name("backup.db")
    words = ["--url", str(path), *(word.replace("BACKUP", str(backup)) for word in words)]
    before = oracle.sha256(path), oracle.sha256(backup) if backup.exists() else None
    code, seen, out = on_two_terminals(words, b"n\n", also_stdout=False, **NO_SOAK)
    assert (code, out) == (1, b""), seen
    assert told in " ".join(seen.split()), seen
    assert "not confirmed: nothing was changed" in seen
    assert (oracle.sha256(path), oracle.sha256(backup) if backup.exists() else None) == before
    code, seen, out = on_two_terminals([*words, "--yes"], b"", also_stdout=False, **NO_SOAK)
    assert (code, "[y/N]" in seen, bool(out)) == (0, False, True), seen


@pytest.mark.long
def test_times_are_not_broken_on_a_narrow_terminal(path: Path) -> None:
    """At 80 columns every time stands whole in its line."""
    taken(path, Phase.CONTRACT)
    ours, theirs = pty.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        for command in ("history", "status"):
            subprocess.run([str(SCRIPT), "--url", str(path), command], stdout=theirs, env=environment, check=True)
            seen = os.read(ours, 65536).decode()
            whole = re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", seen)
            assert whole
            assert len(whole) == len(re.findall(r"\d{4}-\d\d-\d\d", seen)), seen
    finally:
        os.close(ours)
        os.close(theirs)


def test_status_counts_the_tables_that_no_move_has(path: Path) -> None:
    """The executions of agents are among what a status says."""
    legacy(path)
    document = json.loads(CliRunner().invoke(main, ["status", "--json", "--url", str(path)]).stdout)
    with oracle.reading(path) as connection:
        rows = connection.execute("SELECT count(*) FROM agent_executions").fetchone()[0]
    assert document["other_tables"] == {"agent_executions": rows}
    assert f"agent_executions: {rows:,} rows" in CliRunner().invoke(main, ["status", "--url", str(path)]).stdout
