"""What is published: sdist and wheel hold all there is, and an installed wheel works by itself.

Builds and installs, which takes an index of packages and a minute: `pytest -n 0 -m packaging`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import oracle
from tests.support.documentation import TEXTS, block

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
THIS = "{}.{}".format(*sys.version_info)


def run(*command: str | Path, folder: Path, code: int = 0, url: str | None = None) -> str:
    """What a command prints; nothing of this checkout can be imported by it, and no setting reaches it."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("CONSENSUS_ORM_", "PYTHON"))}
    if url is not None:
        settings["CONSENSUS_ORM_URL"] = url
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


# What is in them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """The two distributions."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built from the sources as they are; the wheel from the sdist, so that what that lacks is lacking here."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel)


def below(folder: str, pattern: str = "*") -> set[str]:
    """The files of the checkout below a folder, caches left out."""
    found = (path for path in (ROOT / folder).rglob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_wheel_holds_the_package_and_the_migrations(built: Built) -> None:
    """Every file of the package, py.typed, factories and plugin among them, and every revision; no test."""
    with zipfile.ZipFile(built.wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        declared = archive.read(entry_points).decode()
    migrations = {f"consensus_orm/_{name}" for name in below("alembic")}
    assert held == below("consensus_orm") | migrations
    assert {"consensus_orm/py.typed", "consensus_orm/testing/models.py", "consensus_orm/testing/plugin.py"} <= held
    assert len([name for name in migrations if "/versions/0" in name]) >= 4
    assert "consensus-orm = consensus_orm.cli:main" in declared
    assert "consensus_orm = consensus_orm.testing.plugin" in declared


def test_sdist_holds_what_its_tests_need(built: Built) -> None:
    """The sources, the migrations, the tests, and what a reader looks for first."""
    with tarfile.open(built.sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = below("consensus_orm") | below("alembic") | below("tests", "*.py")
    assert wanted <= held
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"} <= held


# What they do once installed ------------------------------------------------------------------------------


def interpreter(version: str) -> Path | None:
    """An interpreter of a version: this one, one on the PATH, or one of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    on_path = shutil.which(f"python{version}")
    candidates = [
        *([Path(sys.executable)] if version == THIS else []),
        *([Path(on_path)] if on_path else []),
        *sorted(pyenv.glob(f"{version}.*/bin/python")),
    ]
    return next((found for found in candidates if _is(found, version)), None)


def _is(candidate: Path, version: str) -> bool:
    """Whether it runs at all: those of pyenv's shims that are not chosen do not."""
    ask = "import sys, venv; print('{}.{}'.format(*sys.version_info))"
    done = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel and what it depends on, and a folder that is not the checkout."""

    bin: Path
    folder: Path

    def call(self, program: str, *words: str | Path, code: int = 0, url: str | None = None) -> str:
        return run(self.bin / program, *words, folder=self.folder, code=code, url=url)

    def install(self, *what: str) -> None:
        self.call("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)


def environment(python: Path, folder: Path, *what: str) -> Installed:
    run(python, "-m", "venv", folder / "venv", folder=folder)
    made = Installed(folder / "venv" / "bin", folder / "work")
    made.folder.mkdir()
    made.install(*what)
    return made


@pytest.fixture(scope="module", params=PYTHONS)
def installed(request: pytest.FixtureRequest, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of each version of Python that is at hand."""
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"NOT TESTED with Python {request.param}: no such interpreter is at hand")
    return environment(python, tmp_path_factory.mktemp("installed"), str(built.wheel))


def schema(path: Path) -> Sequence[object]:
    with oracle.reading(path) as connection:
        return connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def test_both_ways_to_upgrade_make_the_same_schema(installed: Installed) -> None:
    """`consensus-orm upgrade`, and alembic with the migrations of the package, give the same tables."""
    installed.call("consensus-orm", "--url", "sqlite:///upgraded.db", "upgrade", "--create")
    (installed.folder / "alembic.ini").write_text("[alembic]\nscript_location = consensus_orm:_alembic\n")
    installed.call("alembic", "upgrade", "head", url="sqlite:///by_alembic.db")
    assert "(head)" in installed.call("alembic", "current", url="sqlite:///by_alembic.db")
    upgraded = schema(installed.folder / "upgraded.db")
    assert schema(installed.folder / "by_alembic.db") == upgraded
    assert len(upgraded) > 10


def test_demo(installed: Installed) -> None:
    """The first command of the README takes a file through all phases and back."""
    assert "\nOK: 0 mismatches, 0 rejects" in installed.call("consensus-orm", "demo")


def test_pages_are_shipped(installed: Installed) -> None:
    """Every page of the documentation is shown, with what is made from the code."""
    listed = {line.split()[0] for line in installed.call("consensus-orm", "docs").splitlines()}
    assert listed == set(TEXTS) - {"README"}
    assert installed.call("consensus-orm", "docs", "guarantees").strip() == TEXTS["guarantees"].strip()
    assert "| `POOL_SIZE` | 10 |" in installed.call("consensus-orm", "docs", "settings")


EVERY_MODULE = """
import importlib, pkgutil
import consensus_orm
for module in pkgutil.walk_packages(consensus_orm.__path__, "consensus_orm."):
    try:
        importlib.import_module(module.name)
    except (consensus_orm.ConsensusError, ModuleNotFoundError) as error:
        print(module.name, getattr(error, "name", None) or error)
"""
BEHIND_AN_EXTRA = {
    "consensus_orm.databases.postgresql.": "psycopg",
    "consensus_orm.external.mcp_messages": "anyio",
    "consensus_orm.integrations.fastapi": "consensus-orm[fastapi]",
    "consensus_orm.telemetry.opentelemetry": "opentelemetry",
    "consensus_orm.telemetry.prometheus": "prometheus_client",
    "consensus_orm.testing.plugin": "pytest",  # whoever loads it
    "consensus_orm.testing.": "consensus-orm[testing]",
}
"""How the names of modules begin that nothing else imports, and what they may lack."""


def test_modules_without_the_extras(installed: Installed) -> None:
    """Everything else imports without the optional extras."""
    for line in installed.call("python", "-c", EVERY_MODULE).splitlines():
        module, _, why = line.partition(" ")
        lacking = [lacking for name, lacking in BEHIND_AN_EXTRA.items() if module.startswith(name)]
        assert any(name in why for name in lacking[:1]), line


MISSING = {
    "fastapi": "import consensus_orm.integrations.fastapi",
    "observability": "from consensus_orm import ConsensusStore, telemetry; telemetry.report_to_prometheus(None)",
    "postgres": "from consensus_orm import ConsensusStore; ConsensusStore.open('postgresql://host/database')",
    "report": "from consensus_orm import ConsensusStore, report; report.write(ConsensusStore.open(':memory:'), 'r')",
    "testing": "from consensus_orm.testing import ArtifactFactory",
}


@pytest.mark.parametrize("extra", MISSING)
def test_missing_extra_is_named(installed: Installed, extra: str) -> None:
    """Whoever uses what an extra brings is told the command that installs it."""
    assert f"pip install 'consensus-orm[{extra}]'" in installed.call("python", "-c", MISSING[extra], code=1)


def test_testing_kit_and_report(built: Built, tmp_path: Path) -> None:
    """With their extras, the documentation's test of an application passes and a report is written."""
    made = environment(Path(sys.executable), tmp_path, f"{built.wheel}[testing,report]", "pytest")
    (made.folder / "test_application.py").write_text(block("testing", "python", "def remember"), encoding="utf-8")
    assert "5 passed" in made.call("python", "-m", "pytest", "-q")
    made.call("consensus-orm", "--url", "artifacts.db", "upgrade", "--create")
    made.call("consensus-orm", "--url", "artifacts.db", "report", "report.html")
    assert (made.folder / "report.html").stat().st_size > 1000
