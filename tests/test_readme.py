"""The README is kept: what it shows runs as it stands there."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import textwrap
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest

from consensus_orm import Settings, errors
from consensus_orm.schema import revisions
from tests.field import builders
from tests.support import oracle

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
USE_IT, ASYNCIO, DECLARATION, OWN_TABLES, ENV_LINES, TESTING, OBSERVING = EXAMPLES


def run(code: str, folder: Path) -> str:
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs_and_says_what_it_stored(tmp_path: Path) -> None:
    """The first example of the README runs in an empty folder and reads back what it wrote."""
    assert run(USE_IT, tmp_path) == "run_1 ['gemini'] # Plan\n"
    with sqlite3.connect(tmp_path / "artifacts.db") as raw:
        stored = raw.execute("SELECT typeof(content), hex(content) FROM agent_outputs").fetchall()
    raw.close()
    assert stored == [("text", b'{"ok": true}'.hex().upper())]


def test_coroutines_write_and_read(tmp_path: Path) -> None:
    """The asyncio example of the README writes from a hundred tasks and counts what it wrote."""
    assert run(ASYNCIO, tmp_path) == "101 CONTRACT\n"


def test_own_tables_need_nothing_but_the_declaration(tmp_path: Path) -> None:
    """The declaration of the README takes a file with such tables to CUTOVER and writes both sides."""
    raw = sqlite3.connect(tmp_path / "customers.db")
    raw.executescript("""
        CREATE TABLE customers_flat
            (id INTEGER PRIMARY KEY, name TEXT NOT NULL, street TEXT NOT NULL, city TEXT NOT NULL);
        CREATE TABLE addresses
            (id INTEGER PRIMARY KEY, street TEXT NOT NULL, city TEXT NOT NULL, UNIQUE (street, city));
        CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, mirrored BOOLEAN NOT NULL DEFAULT 0,
            address_id INTEGER NOT NULL REFERENCES addresses(id) ON DELETE CASCADE);
        INSERT INTO customers_flat VALUES (1, 'Bob', '2 Side St', 'Springfield');
        INSERT INTO customers_flat VALUES (2, 'Eve', '2 Side St', 'Springfield');
    """)
    run(DECLARATION + OWN_TABLES, tmp_path)
    assert raw.execute("SELECT name, street FROM customers_flat ORDER BY id").fetchall() == [
        ("Bob", "2 Side St"),
        ("Eve", "2 Side St"),
        ("Ada", "1 Main St"),
    ]
    assert raw.execute("SELECT count(*) FROM addresses").fetchall() == [(2,)]
    raw.close()


def test_an_application_is_tested_in_five_phases(tmp_path: Path) -> None:
    """The test of the README runs with nothing but the installed plugin, once in each phase."""
    (tmp_path / "test_application.py").write_text(TESTING, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "5 passed" in done.stdout, done.stdout


def test_listeners_are_switched_on_by_one_call_each(tmp_path: Path) -> None:
    """The listeners of the README can be switched on together, and each hears of a unit of work."""
    for library in ("prometheus_client", "opentelemetry", "structlog"):
        pytest.importorskip(library)
    work = "with store.unit_of_work() as uow: uow.artifacts.count()"
    scrape = "import prometheus_client; print(prometheus_client.generate_latest().decode())"
    told = run("\n".join([OBSERVING, work, scrape]), tmp_path)
    assert 'consensus_orm_unit_of_work_duration_seconds_count{consensus_orm_outcome="committed"' in told
    assert "unit of work in contract: committed after" in told  # printed
    assert re.search(r"\[debug +] *consensus_orm\.unit_of_work", re.sub(r"\x1b\[\d*m", "", told))  # of structlog


def commands(first: str) -> list[str]:
    """The commands of a console block, by how its first one begins."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    (found,) = (block for block in blocks if block.startswith(f"$ {first}"))
    return [line.removeprefix("$ ").partition("  #")[0] for line in found.splitlines()]


def shell(lines: list[str], folder: Path) -> None:
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    script = ["sh", "-c", "".join(f"{line} || exit\n" for line in lines)]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(find_spec("pygal") is None, reason="pygal draws the report")  # imported, it leaves traces
def test_a_copy_goes_all_the_way_and_back(tmp_path: Path) -> None:
    """The commands that the README gives to try out end where they began, with every legacy row as it was."""
    builders.odd_legacy(tmp_path / "copy.db")
    before = oracle.image(tmp_path / "copy.db", *oracle.LEGACY)[1]
    shell(commands("pip install '.[report")[1:], tmp_path)
    assert oracle.image(tmp_path / "copy.db", *oracle.LEGACY)[1] == before
    assert "CONTRACT" in (tmp_path / "migration.html").read_text(encoding="utf-8")


ENVIRONMENT = """
from alembic import context
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, create_engine

MOVES, target_metadata = None, MetaData()
notes = Column("id", Integer, primary_key=True), Column("output", ForeignKey("agent_outputs.id"))
Table("notes", target_metadata, *notes)
with create_engine("sqlite:///app.db").begin() as connection:
{readme}
    context.run_migrations()
"""
REVISION = """
from alembic import op
from sqlalchemy import Column, ForeignKey, Integer

revision, down_revision = "notes", None


def upgrade():
    output = Column("output", Integer, ForeignKey("agent_outputs.id"))
    op.create_table("notes", Column("id", Integer, primary_key=True), output)
"""


def test_revisions_of_others_live_beside_ours(tmp_path: Path) -> None:
    """With the README's ini both histories run, one table refers to another, and autogenerate finds nothing to do."""
    (ini,) = re.findall(r"```ini\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    # In a checkout the migrations lie elsewhere; tests/packaging runs them from where they are in a wheel.
    ini = ini.replace("consensus_orm:_alembic", str(revisions.script_location()))
    (tmp_path / "alembic.ini").write_text(ini, encoding="utf-8")
    (tmp_path / "migrations" / "env.py").write_text(
        ENVIRONMENT.format(readme=textwrap.indent(ENV_LINES, "    ")), encoding="utf-8"
    )
    (tmp_path / "migrations" / "versions" / "notes.py").write_text(REVISION, encoding="utf-8")
    shell([*commands("alembic -n"), "alembic check", "consensus-orm --url app.db upgrade"], tmp_path)
    assert {"notes", "agent_outputs", "alembic_version", "consensus_orm_version"} <= set(
        oracle.tables(tmp_path / "app.db")
    )


def spelled(default: object) -> str:
    """A default as the README gives it."""
    if isinstance(default, timedelta):
        for unit, size in (("d", timedelta(days=1)), ("s", timedelta(seconds=1))):
            if not default % size:
                return f"{default // size} {unit}"
        return f"{default // timedelta(milliseconds=1)} ms"
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def test_every_setting_is_listed_with_its_default() -> None:
    """The table of settings is complete, and each default is the one in force."""
    listed = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", README, flags=re.MULTILINE))
    fields = {name.upper(): spelled(field.default) for name, field in Settings.model_fields.items()}
    del fields["CLOCK"]  # tests set it, nobody else
    assert listed == fields


def test_every_error_is_explained() -> None:
    """The runbook names each error there is."""
    missing = [name for name in errors.__all__ if f"`{name}`" not in README]
    assert missing == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[\w/]+(?:\.py)?)/?`", README))))
def test_every_test_that_the_readme_names_exists(name: str) -> None:
    """A promise of the README points at tests that are there."""
    assert (Path(__file__).parent.parent / name).exists()
