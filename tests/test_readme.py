"""The README and the pages of the documentation are kept: what they show runs as it stands, what they name exists."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import consensus_orm
from consensus_orm import ConsensusStore, Settings
from consensus_orm.cli.app import main
from consensus_orm.cli.reference import REFERENCES
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.migration import Migration
from consensus_orm.schema import revisions
from tests.declaration.gallery.cases import CASES
from tests.field import builders
from tests.support import oracle
from tests.support.documentation import PAGES, ROOT, TEXTS, block, blocks, commands

DECLARATION = block("own-tables", "python", "class CustomerFlat")


def run(code: str, folder: Path) -> str:
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_the_example_runs_and_says_what_it_stored(tmp_path: Path) -> None:
    """The first example of the README runs in an empty folder and reads back what it wrote."""
    assert run(block("README", "python", "ConsensusStore"), tmp_path) == "run_1 ['gemini'] # Plan\n"
    with sqlite3.connect(tmp_path / "artifacts.db") as raw:
        stored = raw.execute("SELECT typeof(content), hex(content) FROM agent_outputs").fetchall()
    raw.close()
    assert stored == [("text", b'{"ok": true}'.hex().upper())]


@pytest.mark.long
def test_the_example_of_the_store_runs(tmp_path: Path) -> None:
    """The page of the store counts what it added."""
    assert run(block("store", "python"), tmp_path) == "1\n1\n"


@pytest.mark.long
def test_coroutines_write_and_read(tmp_path: Path) -> None:
    """The asyncio example writes from a hundred tasks and counts what it wrote."""
    assert run(block("asyncio", "python"), tmp_path) == "101 CONTRACT\n"


@pytest.mark.long
def test_own_tables_need_nothing_but_the_declaration(tmp_path: Path) -> None:
    """The declaration of the page takes a file with such tables to CUTOVER and writes both sides."""
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
    run(DECLARATION + block("own-tables", "python", "Store.open"), tmp_path)
    assert raw.execute("SELECT name, street FROM customers_flat ORDER BY id").fetchall() == [
        ("Bob", "2 Side St"),
        ("Eve", "2 Side St"),
        ("Ada", "1 Main St"),
    ]
    assert raw.execute("SELECT count(*) FROM addresses").fetchall() == [(2,)]
    raw.close()


@pytest.mark.long
def test_an_application_moves_to_its_new_classes(tmp_path: Path) -> None:
    """The story of the page, run word for word, loses no write, and the way back has all of them in legacy tables."""
    parts = [block("own-tables", "python", text) for text in ("def sell", "class Buyer(Base)", "def run")]
    back = "store.migration.rollback(Phase.EXPAND); run(OLD, 'Cyd', 'back')"
    assert run("\n".join([*parts, back]), tmp_path) == block("own-tables", "text", "Ada")
    sold = "SELECT b.artikel, b.menge, k.name FROM bestellungen AS b JOIN kunden AS k ON k.nr = b.kunde ORDER BY b.nr"
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as raw:
        assert raw.execute(sold).fetchall() == [
            ("expand", None, "Ada"),
            ("dual write", None, "Bob"),
            ("cutover, old code", None, "Ada"),
            ("cutover, new code", 1, "Ada"),
            ("cutover, old code again", None, "Bob"),
            ("normalized", 1, "Bob"),
            ("contract", 1, "Cyd"),
            ("back", None, "Cyd"),
        ]


def test_the_readme_shows_the_declaration_that_is_tested() -> None:
    """The teaser of the README is the end of the page's declaration."""
    assert DECLARATION.endswith(block("README", "python", "Move("))


@pytest.mark.parametrize("name", CASES)
def test_the_gallery_shows_the_declarations_that_are_tested(name: str) -> None:
    """Each case of the gallery stands in the page with its tables and its declaration as it is tested."""
    (section,) = re.findall(
        rf"^### {name[0].upper()}{name[1:]}\n(.*?)(?=^###|\Z)", TEXTS["own-tables"], re.DOTALL | re.MULTILINE
    )
    (shown,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (made,) = ast.parse(inspect.getsource(CASES[name])).body
    assert isinstance(made, ast.FunctionDef)
    assigned = [node for node in made.body if isinstance(node, ast.Assign)]
    moves = [place for place, node in enumerate(assigned) if "Move(" in ast.unparse(node)]
    declared = [ast.dump(node) for node in assigned[: moves[-1] + 1]]  # rows of the test may follow
    assert [ast.dump(node) for node in ast.parse(shown).body] == declared
    for table in CASES[name]().metadata.tables.values():
        assert f"`{table.name}({', '.join(column.name for column in table.columns)})`" in section.replace("\n", " ")


@pytest.mark.long
def test_an_application_is_tested_in_five_phases(tmp_path: Path) -> None:
    """The tests of the page run with nothing but the installed plugin: one once in each phase, one with strategies."""
    for name, text in (("application", "def remember"), ("strategies", "@given")):
        (tmp_path / f"test_{name}.py").write_text(block("testing", "python", text), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "6 passed" in done.stdout, done.stdout


def test_listeners_are_switched_on_by_one_call_each(tmp_path: Path) -> None:
    """The listeners of the page can be switched on together, and each hears of a unit of work."""
    for library in ("prometheus_client", "opentelemetry", "structlog"):
        pytest.importorskip(library)
    work = "with store.unit_of_work() as uow: uow.artifacts.count()"
    scrape = "import prometheus_client; print(prometheus_client.generate_latest().decode())"
    told = run("\n".join([block("observability", "python", "report_to_prometheus"), work, scrape]), tmp_path)
    assert 'consensus_orm_unit_of_work_duration_seconds_count{consensus_orm_outcome="committed"' in told
    assert "unit of work in contract: committed after" in told  # printed
    assert re.search(r"\[debug +] *consensus_orm\.unit_of_work", re.sub(r"\x1b\[\d*m", "", told))  # of structlog


@pytest.mark.parametrize("page", TEXTS)
def test_every_example_is_python(page: str) -> None:
    """Each Python block parses; what it imports from this package is there."""
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("consensus_orm"):
                module = importlib.import_module(node.module or "")
                for name in (alias.name for alias in node.names):
                    assert hasattr(module, name) or find_spec(f"{module.__name__}.{name}"), name


# Commands -------------------------------------------------------------------------------------------------


def shell(lines: list[str], folder: Path) -> None:
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    script = ["sh", "-c", "".join(f"{line} || exit\n" for line in lines)]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.skipif(find_spec("pygal") is None, reason="pygal draws the report")  # imported, it leaves traces
def test_a_copy_goes_all_the_way_and_back(tmp_path: Path) -> None:
    """The commands that the README gives to try out end where they began, with every legacy row as it was."""
    builders.odd_legacy(tmp_path / "copy.db")
    before = oracle.image(tmp_path / "copy.db", *oracle.LEGACY)[1]
    shell(commands("README", "rehearse"), tmp_path)
    assert oracle.image(tmp_path / "copy.db", *oracle.LEGACY)[1] == before
    assert "CONTRACT" in (tmp_path / "migration.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, in order, end with the exit codes that it tells, and every legacy row comes back as it was."""
    monkeypatch.chdir(tmp_path)
    before: Any = None
    shown = [line for each in blocks("tutorial", "console") for line in re.findall(r"^\$ (.*)$", each, re.MULTILINE)]
    for line in shown:
        command, _, comment = line.partition("  #")
        name, *words = shlex.split(command)
        if name == "export":
            monkeypatch.setenv(*words[0].split("=", 1))
            before = oracle.image(tmp_path / "tutorial.db", *oracle.LEGACY)[1]
        elif name == "consensus-orm":  # in this process, because most of a command's time is its imports
            result = CliRunner().invoke(main, words)
            assert result.exit_code == (comment == " exit code 1"), (line, result.output)
        else:
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
            assert done.returncode == (comment == " exit code 1"), (line, done.stderr)
    assert len(shown) > 20
    assert oracle.image(tmp_path / "tutorial.db", *oracle.LEGACY)[1] == before


def calls() -> Iterator[tuple[str, list[str]]]:
    """The commands of this package in the console blocks of all pages, in words, each with its page."""
    for page in TEXTS:
        for shown in blocks(page, "console"):
            for line in re.findall(r"^\$ (.*)$", shown, re.MULTILINE):
                for call in re.split(r"&&", line.partition("  #")[0]):
                    words = re.findall(r"'[^']*'|\"[^\"]*\"|\S+", call)
                    if words and words[0].endswith("consensus-orm"):
                        yield page, words[1:]


def test_every_command_that_is_shown_exists() -> None:
    """Each command in a console block has a name and options that there are."""
    seen = 0
    for page, words in calls():
        command: click.Command = main
        context = click.Context(main, info_name="consensus-orm")
        rest = list(words)
        while True:
            _, rest, _ = command.make_parser(context).parse_args(rest)
            if not isinstance(command, click.Group) or not rest:
                break
            inner = command.get_command(context, rest[0])
            assert inner is not None, (page, words)
            command, rest = inner, rest[1:]
            context = click.Context(command, context)
        seen += 1
    assert seen > 40


# Revisions ------------------------------------------------------------------------------------------------

ENVIRONMENT = """
from alembic import context
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, create_engine

MOVES, target_metadata = None, MetaData()
notes = Column("id", Integer, primary_key=True), Column("output", ForeignKey("agent_outputs.id"))
Table("notes", target_metadata, *notes)
with create_engine("sqlite:///app.db").begin() as connection:
{lines}
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


@pytest.mark.long
def test_revisions_of_others_live_beside_ours(tmp_path: Path) -> None:
    """With the page's ini both histories run, one table refers to another, and autogenerate finds nothing to do."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    # In a checkout the migrations lie elsewhere; tests/packaging runs them from where they are in a wheel.
    ini = block("own-revisions", "ini").replace("consensus_orm:_alembic", str(revisions.script_location()))
    (tmp_path / "alembic.ini").write_text(ini, encoding="utf-8")
    lines = textwrap.indent(block("own-revisions", "python"), "    ")
    (tmp_path / "migrations" / "env.py").write_text(ENVIRONMENT.format(lines=lines), encoding="utf-8")
    (tmp_path / "migrations" / "versions" / "notes.py").write_text(REVISION, encoding="utf-8")
    both = commands("own-revisions", "alembic -n")
    shell([*both, "alembic check", "consensus-orm --url app.db upgrade"], tmp_path)
    assert {"notes", "agent_outputs", "alembic_version", "consensus_orm_version"} <= set(
        oracle.tables(tmp_path / "app.db")
    )


# What pages name ------------------------------------------------------------------------------------------


def test_every_setting_is_listed_with_its_default_and_its_meaning() -> None:
    """The table of settings is complete but for functions, and spells defaults as people do."""
    page = "\n".join(REFERENCES["settings"]())
    listed = {name: rest for name, *rest in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)}
    assert set(listed) == {name.upper() for name in Settings.model_fields} - {"CLOCK", "PASSWORD"}
    defaults = {name: default for name, (default, _) in listed.items()}
    assert [defaults[name] for name in ("URL", "PROTECT", "SYNCHRONOUS", "POOL_SIZE")] == [
        "none",
        "true",
        "NORMAL",
        "10",
    ]
    assert [defaults[name] for name in ("SOAK_DUAL_WRITE", "POOL_TIMEOUT", "CHUNK_PAUSE")] == ["7 d", "30 s", "2 ms"]


def test_every_command_is_listed_with_its_help() -> None:
    """The page of commands shows what each command prints, those of groups included."""
    page = "\n".join(REFERENCES["commands"]())
    assert "### contract finish\n```text\nUsage: consensus-orm contract finish [OPTIONS]\n" in page
    assert "--keep-tables" in page


def test_every_class_and_function_is_listed_with_its_docstring() -> None:
    """The page of the API has each name that the package exports but errors, and each method of what a store gives."""
    page = "\n".join(REFERENCES["api"]())
    names = set(consensus_orm.__all__) - set(consensus_orm.errors.__all__) - {"__version__"}
    assert {name for name in names if f"### {name}\n" not in page} == set()
    for kind in (ConsensusStore, Migration, Maintenance):
        (shown,) = re.findall(rf"^### {kind.__name__}\n```text\n(.*?)\n```", page, re.DOTALL | re.MULTILINE)
        for name in (each for each in dir(kind) if not each.startswith("_")):
            first = (inspect.getdoc(inspect.getattr_static(kind, name)) or "").partition("\n")[0]
            assert re.search(rf"^{name}\b.*\n    {re.escape(first)}$", shown, re.MULTILINE), name
    assert "advance(to: Phase | str | int | None = None, *, reason: str | None = None" in page
    assert not re.search(r" at 0x|/site-packages/", page)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of a page is a file that is there, and its anchor a heading of it."""
    text = re.sub(r"^```.*?^```$", "", TEXTS[page.stem], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_the_index_names_every_page() -> None:
    """The index links each page, and the README each page or the index."""
    pages = {page.name for page in PAGES if page.parent != ROOT} - {"index.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", TEXTS["index"])) == pages


NAMED = sorted({name for text in TEXTS.values() for name in re.findall(r"`(tests/[\w/.*-]+)`", text)})


def test_promises_name_tests() -> None:
    """The page of guarantees has at least as many tests as the promises that were made so far."""
    assert len(set(re.findall(r"`(tests/[\w/.*-]+)`", TEXTS["guarantees"]))) >= 28


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name: str) -> None:
    """A promise points at tests that are there."""
    assert list(ROOT.glob(name.rstrip("/")))
