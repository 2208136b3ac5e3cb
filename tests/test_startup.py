"""What a program waits for when it starts: the modules that are imported, which do not flicker as times do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.field import builders

HEAVY = {
    "alembic",
    "asyncpg",
    "jinja2",
    "opentelemetry",
    "prometheus_client",
    "psycopg",
    "pygal",
    "stamina",
    "structlog",
}
"""Libraries that neither a look nor a store on a file needs."""


def imported(code: str, *words: str, folder: Path) -> set[str]:
    """The modules of a new interpreter after some code."""
    code = f"""
import json, sys
sys.argv = ["consensus-orm", *{words!r}]
try:
    {code}
except SystemExit as end:
    assert end.code in (None, 0, 1), end.code  # health: 1, because the copy was never upgraded
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONSENSUS_ORM_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def libraries(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.startswith("consensus_orm")}


COMMAND = "from consensus_orm.cli import main; main()"


@pytest.mark.long
@pytest.mark.sqlite
def test_a_command_imports_what_it_needs(tmp_path: Path) -> None:
    """--version and --help import no database library; a status neither alembic nor a command besides its own."""
    builders.odd_legacy(tmp_path / "copy.db")
    for words in (["--version"], ["--help"], ["docs"]):
        found = imported(COMMAND, *words, folder=tmp_path)
        assert libraries(found) & {"sqlalchemy", "pydantic", "rich", *HEAVY} == set(), words
        assert len(ours(found)) <= 20, words
    for words, needless in ((["status"], HEAVY), (["status", "--json"], HEAVY | {"rich"}), (["health"], HEAVY)):
        found = imported(COMMAND, *words[:1], "--url", "copy.db", *words[1:], folder=tmp_path)
        assert libraries(found) & needless == set(), words
        commands = {name for name in found if name.startswith("consensus_orm.cli.")}
        assert not commands & {f"consensus_orm.cli.{name}" for name in ("steps", "keep", "external", "maintenance")}, (
            words
        )
        assert not any(name.startswith("consensus_orm.external") for name in found), words
        assert len(ours(found)) <= 150, words


@pytest.mark.long
@pytest.mark.sqlite
def test_an_application_imports_what_it_needs(tmp_path: Path) -> None:
    """The store comes without the migration, the command line, the reports and what they stand on."""
    found = imported("from consensus_orm import ConsensusStore", folder=tmp_path)
    assert libraries(found) & {"click", "rich", *HEAVY} == set()
    parts = {".".join(name.split(".")[:2]) for name in ours(found)}
    beyond = (
        "asyncio",
        "cli",
        "copying",
        "external",
        "keeper",
        "migration",
        "rehearsal",
        "report",
        "telemetry",
        "testing",
    )
    assert parts & {f"consensus_orm.{part}" for part in beyond} == set()
    assert len(ours(found)) <= 105


@pytest.mark.long
@pytest.mark.sqlite
def test_an_application_builds_what_it_needs(tmp_path: Path) -> None:
    """An import configures no mapper, and builds no validator of a record: reads make records without."""
    imported(
        "from consensus_orm import ConsensusStore, Artifact, Run; from consensus_orm.models.base import Base;"
        " assert not any(mapper.configured for mapper in Base.registry.mappers);"
        " assert not any(each.__pydantic_complete__ for each in (Artifact, Run))",
        folder=tmp_path,
    )
