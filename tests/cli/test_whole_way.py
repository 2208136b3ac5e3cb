"""The whole way and back by commands, on both databases, and no password in what anybody is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import make_url

from consensus_orm.cli import main
from tests.support.commands import without_settings
from tests.support.databases import Database, odd_history

LEGACY = ("consensus_artifacts", "consensus_synthesis")
PASSWORD = "s3cr3t-p@ss"
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_settings(monkeypatch)
    monkeypatch.setenv("CONSENSUS_ORM_BACKUP_DIR", str(tmp_path))
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")


@pytest.fixture
def url(new_database: Database) -> str:
    """The URL of a legacy database, with a password in it where there may be one."""
    odd_history(new_database.where)
    if new_database.kind == "sqlite":
        return str(new_database.where)
    given = make_url(str(new_database.where))
    return given.set(password=given.password or PASSWORD).render_as_string(hide_password=False)


def call(url: str, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["--url", url, *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    for told in (result.stdout, result.stderr):
        assert "s3cr3t" not in told
        assert "://" not in url or str(make_url(url).password) not in told
    return result


def facts(url: str, *words: str) -> Any:
    return json.loads(call(url, *words, "--json").stdout)


def image(database: Database) -> tuple[Any, ...]:
    """The legacy tables as they are, without the triggers of the package."""
    definitions, *found = cast("tuple[Any, ...]", database.image(*LEGACY))
    return ([entry for entry in definitions if not entry[1].startswith("consensus_orm_")], *found)


@pytest.mark.long
def test_the_whole_way_and_back(url: str, new_database: Database) -> None:
    """Status, upgrade, each step by command, and rollback: the legacy tables are what they were, byte for byte."""
    before = image(new_database)
    assert facts(url, "status")["prepared"] is False
    call(url, "upgrade")
    assert facts(url, "status")["phase"] == "EXPAND"
    call(url, "advance", "dual_write")
    call(url, "backfill")
    assert facts(url, "verify")["differences"] == []
    shut = call(url, "advance", code=1)
    assert "soak of DUAL_WRITE" in shut.stderr.replace("\n", " ")
    call(url, "advance", "--force", "--reason", "a test")
    call(url, "verify")
    call(url, "migrate", "--to", "contract", "--no-soak")
    assert facts(url, "status")["phase"] == "CONTRACT"
    assert set(new_database.tables()).isdisjoint({"consensus_artifacts", "consensus_synthesis"})
    call(url, "rollback", "expand")
    assert image(new_database) == before
    moves = [(entry["from_phase"], entry["to_phase"]) for entry in facts(url, "history") if entry["from_phase"]]
    assert len([move for move in moves if move[0] != move[1]]) == 8


@pytest.mark.long
def test_migrate_and_rollback(url: str, new_database: Database) -> None:
    """`migrate` carries everything to CONTRACT; `rollback expand` gives the legacy tables back exactly."""
    before = image(new_database)
    rows = sum(len(new_database.rows(table)) for table in LEGACY)
    call(url, "upgrade")
    told = facts(url, "migrate", "--to", "contract", "--no-soak")
    assert (told["phase"], told["refused"]) == ("CONTRACT", [])
    steps = [(step["phase"], step["action"]) for step in told["steps"]]
    assert steps == [
        ("EXPAND", "upgrade"),
        ("DUAL_WRITE", "advance"),
        ("DUAL_WRITE", "backfill"),
        ("DUAL_WRITE", "verify"),
        ("CUTOVER", "advance"),
        ("CUTOVER", "verify"),
        ("NORMALIZED", "advance"),
        ("NORMALIZED", "verify"),
        ("CONTRACT", "advance"),
    ]
    assert [s["result"]["compared"] for s in told["steps"] if s["action"] == "verify"] == [rows] * 3
    assert "consensus_artifacts" not in new_database.tables()
    told = call(url, "rollback", "expand", "--reason", "look").stdout
    assert told.startswith("the phase is EXPAND: CONTRACT -> EXPAND in ")
    assert image(new_database) == before
    assert "look" in call(url, "history").stdout


@pytest.mark.long
def test_what_was_found_is_told_and_repaired(url: str, new_database: Database) -> None:
    """A damaged row makes verify and status end with 1, and reconcile repairs it."""
    call(url, "migrate", "--to", "cutover", "--no-soak")
    new_database.unnoticed("UPDATE consensus_artifacts SET content_json = 'damaged' WHERE id = 1")
    call(url, "verify", code=1)
    call(url, "status", code=1)
    found = call(url, "mismatches", code=1)
    assert "damaged" not in found.output
    call(url, "reconcile")
    call(url, "verify")
    call(url, "mismatches")
    call(url, "rejects")


@pytest.mark.postgresql
def test_upkeep_by_command(url: str, tmp_path: Path) -> None:
    """Stats, vacuum, backup and rehearse work on a server."""
    call(url, "upgrade")
    assert facts(url, "stats")["tables"]["consensus_artifacts"]["bytes"] > 0
    assert "dead" in call(url, "stats").stdout
    call(url, "vacuum")
    assert "verified" in call(url, "backup", str(tmp_path / "backup")).stdout
    assert (tmp_path / "backup").is_dir()
    assert "\npassed\n" in call(url, "rehearse").stdout
    assert "rehearsal       passed " in call(url, "status").stdout


def test_a_command_before_the_upgrade_says_what_to_run(url: str, new_database: Database) -> None:
    """Nothing is prepared by the way on a server; a command that reads works, and changes nothing."""
    before = new_database.everything()
    for words in (("status",), ("history",), ("mismatches",)):
        call(url, *words)
    assert new_database.everything() == before


@pytest.mark.postgresql
@pytest.mark.parametrize("words", [("status",), ("upgrade",), ("stats",)], ids=str)
def test_a_server_that_cannot_be_reached_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    """No traceback, no password, and an exit code that says it failed."""
    nowhere = f"postgresql://postgres:{PASSWORD.replace('@', '%40')}@/nothing?host={tmp_path}"
    result = call(nowhere, *words, code=1)
    assert "Traceback" not in result.stderr
    told = [line for line in result.stderr.splitlines() if "warning: the password in --url" not in line]
    assert len(told) == 1, result.stderr
