"""The commands that tell whether a database can be served, and what the documentation says."""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.cli import main
from consensus_orm.cli.commands import MODULES
from tests.support.commands import on_two_terminals, one_line_of, without_settings
from tests.support.databases import Database, build_legacy


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


def call(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.mark.long
def test_health_follows_the_database(new_database: Database) -> None:
    """Not healthy before the upgrade, healthy after it with phase and certificate; nothing is written."""
    url = str(new_database.where)
    build_legacy(new_database.where)
    before = new_database.everything()
    sick = json.loads(call("health", "--json", "--url", url, code=1).stdout)
    assert (sick["healthy"], sick["reachable"], sick["schema_current"], sick["phase"]) == (False, True, False, "EXPAND")
    assert sick["problems"] == [f"the schema was never upgraded; run: consensus-orm --url {shlex.quote(url)} upgrade"]
    assert new_database.everything() == before
    with ConsensusStore.open(new_database.where) as store:
        store.migration.migrate(Phase.DUAL_WRITE)
        store.migration.backfill()
        assert store.health().certificate_at is None
        store.migration.verify()
        found = store.health()
    assert (found.healthy, found.phase, found.problems) == (True, Phase.DUAL_WRITE, ())
    assert found.certificate_at is not None
    assert abs((datetime.now(UTC) - found.certificate_at).total_seconds()) < 600
    assert found.pool is not None
    assert found.pool.lent == found.pool.waiting == 0
    assert (found.log_bytes is None) == (new_database.kind == "postgresql")
    assert "healthy" in call("health", "--url", url).stdout
    assert call("health", "--quiet", "--url", url).output == ""


@pytest.mark.parametrize("url", ["nowhere.db", "postgresql://me:secret@127.0.0.1:1/none"])
def test_health_of_what_does_not_answer(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, one document, no password, and no file is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSENSUS_ORM_RETRY_ATTEMPTS", "1")
    result = call("health", "--json", "--url", url, code=1)
    document = json.loads(result.stdout)
    assert (document["healthy"], document["reachable"], document["phase"]) == (False, False, None)
    assert document["problems"]
    assert "secret" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_every_page_is_shown_and_speaks_of_what_there_is() -> None:
    """Each Markdown file of the package and the page of errors is listed, shown, and given as JSON."""
    listed = {entry["topic"]: entry["title"] for entry in json.loads(call("docs", "--json").stdout)}
    files = {page.name[:-3] for page in resources.files("consensus_orm.docs").iterdir() if page.name.endswith(".md")}
    assert set(listed) == files | {"troubleshoot"}
    assert set(listed) >= {"phases", "glossary"}
    for topic, title in listed.items():
        assert f"{topic} " in call("docs").stdout
        shown = call("docs", topic).stdout
        assert shown.startswith(f"# {title}\n")
        assert json.loads(call("docs", topic.upper(), "--json").stdout)["text"].strip() == shown.strip()
    assert "the nearest one is phases" in one_line_of(call("docs", "phase", code=2))


def test_a_search_finds_the_section_that_answers() -> None:
    """Sections with all words, or most, are listed, titles first, also what is made from code; none found is exit 1."""
    for words, topic, heading in (
        ("rollback way back", "guarantees", "There is a way back from every step"),
        ("gate_closed", "troubleshoot", "GATE_CLOSED"),
        ("KEEP_VERIFY", "settings", "Settings"),
        ("SOAK_DUAL_WRITE", "settings", "Settings"),
        ("what is a gate?", "glossary", "Glossary"),
        ("gate_closed qwertz", "troubleshoot", "GATE_CLOSED"),  # none has all: those with most of the words
    ):
        found = json.loads(call("docs", "--search", words, "--json").stdout)
        assert {"topic": topic, "heading": heading} in [{k: each[k] for k in ("topic", "heading")} for each in found]
        text = call("docs", topic).stdout.lower()
        assert all(each["line"].lower() in text for each in found if each["topic"] == topic), words
    assert json.loads(call("docs", "--search", "gate_closed", "--json").stdout)[0]["heading"] == "GATE_CLOSED"
    assert "back" in call("docs", "--search", "way back").stdout
    assert json.loads(call("docs", "--search", "qwertz", "--json", code=1).stdout) == []
    assert "no section has any of: qwertz" in call("docs", "--search", "qwertz", code=1).stdout
    for wrong in (["phases", "--search", "gate"], ["--search", " "]):
        call("docs", *wrong, code=2)


def test_page_of_errors_has_every_error_with_its_remedy() -> None:
    """It is made from the errors themselves."""
    page = call("docs", "troubleshoot").stdout
    for name in errors.__all__:
        kind = getattr(errors, name)
        if issubclass(kind, errors.ConsensusError):
            assert f"## {kind.code}\n" in page
            assert kind.hint in page


def test_pages_name_commands_that_exist() -> None:
    """Every command that a page tells to call is one."""
    for page in resources.files("consensus_orm.docs").iterdir():
        if page.name.endswith(".md"):
            for word in re.findall(r"consensus-orm ([a-z]+)", page.read_text(encoding="utf-8")):
                assert word in MODULES, f"{page.name}: {word}"


def test_pages_are_formatted_on_a_terminal() -> None:
    """Headings are no longer marked by signs there."""
    code, seen, _ = on_two_terminals(["docs", "glossary"], b"", also_stdout=True)
    assert code == 0
    assert "Glossary" in seen
    assert "# Glossary" not in seen
    assert "**adopt**" not in seen
